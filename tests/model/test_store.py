"""MLflow stores that are unusable, unreachable or lack a model: a one-line error tells which."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from jobs import Job, Trained
from servers import answering, free_port

from runtime.errors import UnavailableError, UserError
from schemas.config import InferConfig, TrainConfig

OTHER_VERSION = "tables are of another MLflow version"


def _text(file: Path, _: Trained) -> None:
    file.write_text("no database, by its first bytes\n" * 100)


def _folder(file: Path, _: Trained) -> None:
    file.mkdir()


def _later_version(file: Path, trained: Trained) -> None:
    shutil.copy(trained.tracking_uri.removeprefix("sqlite:///"), file)
    with sqlite3.connect(file) as store:
        store.execute("UPDATE alembic_version SET version_num = 'feedfacecafe'")


def _another_programs(file: Path, _: Trained) -> None:
    """Writes a store that alembic accepts as its own until it looks for the revision."""
    with sqlite3.connect(file) as store:
        store.execute("CREATE TABLE alembic_version (version_num TEXT)")
        store.execute("INSERT INTO alembic_version VALUES ('feedfacecafe')")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (_text, r"as a SQLite database \(file is not a database\)"),
        (_folder, "as a SQLite database"),
        (_later_version, OTHER_VERSION),
        (_another_programs, OTHER_VERSION),
    ],
)
def test_a_file_that_is_no_store_is_refused_at_once(
    make: Callable[[Path, Trained], None], complaint: str, trained: Trained, tmp_path: Path
) -> None:
    from beam.infer.model_uri import resolve_model
    from model import tracking

    file = tmp_path / "some.db"
    make(file, trained)
    uri = f"sqlite:///{file}"
    for ask in (
        lambda: tracking.connect(uri),
        lambda: resolve_model(trained.model, InferConfig(), uri, str(tmp_path)),
    ):
        with pytest.raises(UserError, match=complaint) as caught:
            ask()
        assert not isinstance(caught.value, UnavailableError)
        assert str(caught.value).startswith(f"MLflow store {uri!r} cannot be used: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [_text, _another_programs])
def test_commands_say_it_in_one_line(
    make: Callable[[Path, Trained], None], trained, dataset: Path, tmp_path: Path, job: Job
) -> None:
    make(tmp_path / "some.db", trained)
    data, store = f"--dataset={dataset}", f"--tracking_uri=sqlite:///{tmp_path}/some.db"
    for command in (
        ("model.train", data, store, f"--state={tmp_path}"),
        ("beam.infer", f"--model={trained.model}", data, f"--output={tmp_path}/out", store),
    ):
        done = job(*command)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert "cannot be used" in done.stderr


def test_a_store_that_cannot_be_created(tmp_path: Path) -> None:
    from model import tracking

    (tmp_path / "file").touch()
    for folder in ("/proc/none", f"{tmp_path}/file"):
        with pytest.raises(UserError, match="cannot be used") as caught:
            tracking.connect(f"sqlite:///{folder}/mlflow.db")
        assert folder in str(caught.value)


@pytest.fixture(params=["nobody", "busy", "broken"])
def away(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address at which nobody listens, or of a server that responds with errors."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    if request.param == "nobody":
        yield f"http://127.0.0.1:{free_port()}"
        return
    code, body = {
        "busy": (503, b"busy"),
        "broken": (501, b'{"error_code": "INTERNAL_ERROR", "message": "the disk is full"}'),
    }[request.param]

    with answering(lambda _: (code, body)) as address:
        yield address


@pytest.fixture
def asked(away: str, trained: Trained) -> Iterator[str]:
    """The same address, set as MLflow's tracking URI; afterwards, that of the tests' model."""
    import mlflow

    mlflow.set_tracking_uri(away)
    try:
        yield away
    finally:
        mlflow.set_tracking_uri(trained.tracking_uri)


def test_an_outage_is_no_missing_model(asked: str, tmp_path: Path) -> None:
    from beam.infer.model_uri import resolve_model
    from model import registry

    for ask in (
        lambda: registry.metadata("models:/small-unet/1"),
        lambda: registry.version_of("models:/small-unet@champion"),
        lambda: resolve_model("models:/small-unet/1", InferConfig(), asked, str(tmp_path)),
    ):
        with pytest.raises(UnavailableError, match=r"MLflow store .* cannot be used") as caught:
            ask()
        assert repr(asked) in str(caught.value)
        assert "cannot be found" not in str(caught.value)


def test_another_server_than_mlflows_is_a_mistake(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    from beam.infer.model_uri import resolve_model

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    try:
        with (
            answering(lambda _: (404, b"")) as server,
            pytest.raises(UserError, match=r"cannot be used: .* 404") as caught,
        ):
            resolve_model("models:/small-unet/1", InferConfig(), server)
    finally:
        mlflow.set_tracking_uri(trained.tracking_uri)
    assert not isinstance(caught.value, UnavailableError)


def test_a_model_that_is_missing_is_no_outage(trained: Trained, tmp_path: Path) -> None:
    from beam.infer.model_uri import resolve_model
    from model import registry, tracking

    tracking.connect(trained.tracking_uri)
    for uri in ("models:/small-unet/77", "models:/small-unet@none", "models:/", "runs:/none/unet"):
        for ask in (
            lambda uri=uri: registry.metadata(uri),
            lambda uri=uri: resolve_model(uri, InferConfig(), trained.tracking_uri, str(tmp_path)),
        ):
            with pytest.raises(UserError, match=r"cannot be found|names no version") as caught:
                ask()
            assert not isinstance(caught.value, UnavailableError)


def test_an_outage_after_the_start_is_unavailable(
    asked: str, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model import gate, sweep, tracking, train

    monkeypatch.setattr(tracking, "connect", lambda _: None)
    (tmp_path / "state").mkdir()
    state, config = (
        str(tmp_path / "state"),
        TrainConfig(architecture="unet", model_name="away", epochs=1, filters=2),
    )
    for ask in (
        lambda: train.run(str(dataset), config, asked, state=state),
        lambda: train.run(str(dataset), config, asked, gate.GateConfig(promote="never")),
        lambda: sweep.run(str(dataset), [config], asked, gate.GateConfig(), state),
        lambda: gate.main(["--rollback=away", f"--tracking_uri={asked}"]),
    ):
        with pytest.raises(
            UnavailableError, match=r"MLflow does not answer: .*again when it does$"
        ):
            ask()


@pytest.mark.usefixtures("asked")
def test_retries_during_an_outage_cover_metadata(trained: Trained) -> None:
    import mlflow

    from model import registry, tracking

    said: list[str] = []

    def log(text: str) -> None:
        said.append(text)
        mlflow.set_tracking_uri(trained.tracking_uri)

    found = tracking.retry_during_outage(lambda: registry.metadata(trained.model), 10, log)
    assert found["geometry"]
    assert len(said) == 1
    assert "MLflow does not answer" in said[0]
