"""Publishing: one writer at a time, each table whole, and completed after a kill at any step."""

import itertools
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from kills import Killed
from servers import until

from beam.infer import publish
from beam.infer.publish import partition_lock
from beam.infer.runs import TABLES
from beam.shared import staging
from runtime.locks import lock

PARTITION = "model=m/version=v1/source=s"
FILES = 3


def _stage(root: Path, name: str) -> Path:
    """Stages tables whose files contain ``name``."""
    staged = root / f".staging-{name}/tables"
    for table in TABLES:
        (staged / table).mkdir(parents=True)
        for index in range(FILES):
            (staged / table / f"{name}-{index}.parquet").write_text(name)
    return staged


def _publish(root: Path, name: str) -> None:
    with partition_lock(root, PARTITION):
        publish.publish(_stage(root, name), root, PARTITION)
        shutil.rmtree(root / f".staging-{name}")


def _publish_killed(root: Path, name: str, call: int = 1, *, after: bool = False) -> None:
    """Publishes, and is killed before or after its n-th swap of a table's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(staging, "swap", Dying(staging.swap, call, after=after))
        with pytest.raises(Killed):
            _publish(root, name)


def _seen(root: Path, table: str) -> list[str]:
    """Contents of the files that a reader finds with a glob."""
    return [path.read_text() for path in sorted(root.glob(f"{table}/**/*.parquet"))]


def _is_published(root: Path, name: str) -> bool:
    """Whether a reader finds the staged tables of this name, whole."""
    return all(_seen(root, table) == [name] * FILES for table in TABLES)


def test_a_table_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for name in ("old", "new"):
        _publish(tmp_path, name)
        assert _is_published(tmp_path, name)
    # No hidden file is left, here or in a partition.
    assert {path.name for path in tmp_path.iterdir()} == set(TABLES)
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


class Dying:
    """A function that is killed before or after its n-th call."""

    def __init__(self, function, call: int, *, after: bool) -> None:
        self._function = function
        self._left = call
        self._after = after

    def __call__(self, *args, **options):
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        result = self._function(*args, **options)
        if self._left == 0:
            raise Killed
        return result


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("call", range(1, len(TABLES) + 1))
def test_a_kill_at_any_step_is_completed_by_the_next_job(
    tmp_path: Path, call: int, after: bool, first: bool
) -> None:
    if not first:
        _publish(tmp_path, "old")
    before = [] if first else ["old"] * FILES
    _publish_killed(tmp_path, "new", call, after=after)
    swapped = call if after else call - 1
    for index, table in enumerate(TABLES):
        assert _seen(tmp_path, table) == (["new"] * FILES if index < swapped else before)
    with partition_lock(tmp_path, PARTITION):
        assert _is_published(tmp_path, "new")
    assert list(tmp_path.rglob(".new")) == []


@pytest.mark.parametrize("after", [True, False])
def test_a_kill_while_the_old_files_are_removed(tmp_path, monkeypatch, after: bool) -> None:
    _publish(tmp_path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(publish.shutil, "rmtree", Dying(shutil.rmtree, 1, after=after))
        with pytest.raises(Killed):
            _publish(tmp_path, "new")
    with partition_lock(tmp_path, PARTITION):
        assert _is_published(tmp_path, "new")
        assert list(tmp_path.glob(".publish-*")) == []


def test_a_kill_in_one_partition_is_completed_by_a_job_in_another(tmp_path: Path) -> None:
    _publish_killed(tmp_path, "new")
    assert not any(_seen(tmp_path, table) for table in TABLES)
    with partition_lock(tmp_path, PARTITION.replace("v1", "v2")):
        assert _is_published(tmp_path, "new")


def test_jobs_in_other_partitions_may_remove_the_rest_at_the_same_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove = shutil.rmtree

    def beside(folder: Path, **options: bool) -> None:
        note = folder / "partition"
        if note.exists():
            note.unlink()
            with partition_lock(tmp_path, PARTITION.replace("v1", "v2")):
                pass
        remove(folder, **options)

    (tmp_path / "runs").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(publish.shutil, "rmtree", beside)
        _publish(tmp_path, "new")
    assert _is_published(tmp_path, "new")
    assert list(tmp_path.glob(".publish-*")) == []


def _steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A list that collects what is synced, by path, and which paths get another name."""
    steps: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def synced(file: int) -> None:
        steps.append(("sync", os.readlink(f"/proc/self/fd/{file}")))
        fsync(file)

    def renamed(old: os.PathLike[str], new: os.PathLike[str]) -> None:
        steps.append(("rename", str(old)))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    return steps


def test_files_and_folders_are_on_the_disk_before_they_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut may leave names without content."""
    dataset = tmp_path / ".staging-a/dataset"
    (dataset / "inner").mkdir(parents=True)
    for name in ("manifest.json", "inner/file"):
        (dataset / name).touch()
    steps = _steps(monkeypatch)
    staging.publish(str(dataset), str(tmp_path / "version"), "manifest.json")
    (seen,) = [at for at, step in enumerate(steps) if step[0] == "rename"]
    names = ("", "/manifest.json", "/inner", "/inner/file")
    assert {("sync", f"{dataset}{name}") for name in names} <= set(steps[:seen])
    assert steps[seen + 1 :] == [("sync", str(tmp_path))]

    root = tmp_path / "tables"
    root.mkdir()
    tables = _stage(root, "first")
    files = {str(path) for path in (tables, *tables.rglob("*"))}
    steps.clear()
    with partition_lock(str(root), PARTITION):
        publish.publish(str(tables), str(root), PARTITION)
    renames = [at for at, step in enumerate(steps) if step[0] == "rename"]
    assert files <= {path for _, path in steps[: renames[0]]}
    # Each new name is synced at once, too: of the whole, and then of each table's folder.
    named = [root, *((root / table / PARTITION).parent for table in TABLES)]
    assert [steps[at + 1] for at in renames] == [("sync", str(folder)) for folder in named]


def test_a_kill_before_the_first_step_shows_nothing(tmp_path: Path) -> None:
    _publish(tmp_path, "old")
    with partition_lock(tmp_path, PARTITION):
        _stage(tmp_path, "new")
    # The lock of a staging folder whose process is dead.
    (tmp_path / ".staging-new.lock").touch()
    with partition_lock(tmp_path, PARTITION):
        assert _is_published(tmp_path, "old")
    assert {path.name for path in tmp_path.iterdir()} == set(TABLES)


def _seen_quickly(root: Path, table: str) -> list[str] | None:
    """What a reader sees, unless it takes longer than replaced files stay, or one has just gone."""
    started = time.monotonic()
    try:
        found = _seen(root, table)
    except FileNotFoundError:
        return None
    return found if time.monotonic() - started < publish._GRACE_S else None


def test_readers_see_a_whole_state_while_others_are_published(tmp_path: Path) -> None:
    """A file that a reader has just listed may be gone, but it never finds a mixture of states."""
    _publish(tmp_path, "state-0")
    done = threading.Event()
    seen: set[str] = set()
    wrong: list[list[str]] = []

    def read() -> None:
        while not done.is_set():
            for table in TABLES:
                found = _seen_quickly(tmp_path, table)
                if found is None:
                    continue
                seen.update(found)
                if len(set(found)) != 1 or len(found) != FILES:
                    wrong.append(found)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for number in itertools.count(1):
        _publish(tmp_path, f"state-{number}")
        # Goes on until the readers have run as well, however seldom they do.
        if number >= 30 and len(seen) > 1:
            break
    done.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert len(seen) > 1


def test_one_job_at_a_time_writes_a_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    lines: list[str] = []
    monkeypatch.setattr(publish, "log", lines.append)
    inside = threading.Event()

    def second() -> None:
        inside.wait()
        with partition_lock(tmp_path, PARTITION):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with partition_lock(tmp_path, PARTITION):
        inside.set()
        # Another partition is not locked meanwhile.
        with partition_lock(tmp_path, PARTITION.replace("v1", "v2")):
            order.append("other")
        until(lambda: lines, "the other job's line that it waits")
        order.append("first")
    thread.join()
    assert order == ["other", "first", "second"]
    assert lines == [f"another job is publishing {PARTITION}: waiting for it"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_has_one_holder_among_many(tmp_path: Path) -> None:
    """The lock file is created and removed again and again, but no two holders ever overlap."""
    inside: list[int] = []
    most: list[int] = []

    def work(number: int) -> None:
        for _ in range(50):
            with lock(tmp_path / "lock", wait=True) as held:
                assert held
                inside.append(number)
                most.append(len(inside))
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(most) == 200
    assert max(most) == 1


def test_a_file_in_the_way_is_found_before_anything_is_published(tmp_path: Path) -> None:
    (tmp_path / "masks").touch()
    with pytest.raises(NotADirectoryError):
        _publish(tmp_path, "new")
    assert not any(_seen(tmp_path, table) for table in TABLES)
    assert list(tmp_path.glob(".publish-*")) == []


def test_what_cannot_be_completed_keeps_no_other_partition_from_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    _publish_killed(tmp_path, "new")

    def fail(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(staging, "swap", fail)
        with partition_lock(tmp_path, PARTITION.replace("v1", "v2")):
            pass
        assert f"cannot complete what a killed job published in {PARTITION}: " in (
            capsys.readouterr().err
        )
        with pytest.raises(PermissionError), partition_lock(tmp_path, PARTITION):
            pass
    with partition_lock(tmp_path, PARTITION):
        assert _is_published(tmp_path, "new")


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """An output whose rejects are in the folder that they had before; s was published since."""
    _publish(tmp_path, "new")
    for source in ("s", "t", "u"):
        folder = tmp_path / "_rejects" / PARTITION.replace("source=s", f"source={source}")
        folder.mkdir(parents=True)
        (folder / "old.parquet").write_text(f"old {source}")
    return tmp_path


def test_rejects_of_earlier_versions_move_with_the_next_job(former: Path) -> None:
    with partition_lock(former, PARTITION.replace("v1", "v2")):
        assert not (former / "_rejects").exists()
        assert _seen(former, "rejects") == [*["new"] * FILES, "old t", "old u"]
    _publish(former, "newer")
    assert _seen(former, "rejects") == [*["newer"] * FILES, "old t", "old u"]


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize(("module", "name", "call"), [(shutil, "rmtree", 1), (os, "rename", 3)])
def test_a_kill_while_they_are_moved(
    former: Path, monkeypatch: pytest.MonkeyPatch, module, name: str, call: int, after: bool
) -> None:
    # The first rename is that of s, which is refused, since s has been published.
    with monkeypatch.context() as patch:
        patch.setattr(module, name, Dying(getattr(module, name), call, after=after))
        with pytest.raises(Killed), partition_lock(former, PARTITION):
            pass
    left = {*_seen(former, "rejects"), *_seen(former, "_rejects")} - {"old s"}
    assert left == {"new", "old t", "old u"}
    with partition_lock(former, PARTITION):
        assert not (former / "_rejects").exists()
        assert _seen(former, "rejects") == [*["new"] * FILES, "old t", "old u"]


def test_what_an_earlier_version_half_published_is_completed(tmp_path: Path) -> None:
    _publish_killed(tmp_path, "new")
    (pending,) = tmp_path.glob(".publish-*")
    (pending / "rejects").rename(pending / "_rejects")
    with partition_lock(tmp_path, PARTITION):
        assert _is_published(tmp_path, "new")
    assert not (tmp_path / "_rejects").exists()
    assert list(tmp_path.glob(".publish-*")) == []
