"""10,000 mutated PNGs, and 1,000 in a job."""

from pathlib import Path

import pytest
from inference import query, run_infer
from mutants import mutants, read_beside_pillow

from images import png
from runtime.errors import RejectError
from schemas.config import InferConfig

pytestmark = pytest.mark.soak

MUTANTS, IN_A_JOB = 10_000, 1_000


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_each_of_10_000_mutants_is_read_as_pillow_reads_it_or_rejected(capsys) -> None:
    outcomes = read_beside_pillow(MUTANTS)
    read = sum(count for name, count in outcomes.items() if name.endswith("read"))
    with capsys.disabled():
        print(f"\n{MUTANTS:,} mutants, {read:,} read, the others rejected:")
        for name, count in sorted(outcomes.items()):
            print(f"  {name} {count}")


def test_a_job_predicts_what_the_decoder_reads(trained, tmp_path: Path, capsys) -> None:
    expected: dict[str, str | None] = {}
    (tmp_path / "raw/CameraRGB").mkdir(parents=True)
    for index, (_, data) in enumerate(mutants(IN_A_JOB)):
        name = f"{index:04d}"
        (tmp_path / f"raw/CameraRGB/{name}.png").write_bytes(data)
        try:
            png.decode_image(data, InferConfig().max_pixels)
            expected[name] = None
        except RejectError as error:
            expected[name] = error.code
    output = run_infer(trained, tmp_path / "out", source=tmp_path / "raw")
    rejects = dict(query(output, "FROM rejects SELECT image_id, code"))
    assert rejects == {name: code for name, code in expected.items() if code}
    predicted = {row[0] for row in query(output, "FROM masks SELECT image_id")}
    assert predicted == expected.keys() - rejects.keys()
    with capsys.disabled():
        print(f"\n{IN_A_JOB:,} mutants in a job: {len(predicted)} predicted, the others rejected")
