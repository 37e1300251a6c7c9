"""Files by path or URI: the same on this machine and on a real store, which may go away."""

import errno
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from servers import PATIENCE_S
from store import Store

from beam.shared.prefetch import prefetch
from runtime import listing, object_store, storage
from runtime.errors import UnavailableError, UserError
from runtime.listing import SourceFile
from runtime.parquet import batches, read_footer, read_table


@pytest.fixture(params=["local", pytest.param("store", marks=pytest.mark.slow)])
def root(request, tmp_path: Path) -> str:
    """A folder to write to, on this machine or on the store."""
    if request.param == "local":
        return str(tmp_path)
    return request.getfixturevalue("bucket").uri(tmp_path.name)


def _write(root: str, *paths: str) -> None:
    for path in paths:
        if not storage.is_remote(root):
            Path(root, path).parent.mkdir(parents=True, exist_ok=True)
        storage.write_bytes(storage.join(root, path), path.encode())


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir("/")
    assert storage.absolute("~/raw") == f"{tmp_path}/raw"
    assert storage.local_root("~/out") == f"{tmp_path}/out"
    assert storage.absolute("a~b") == "/a~b"
    assert storage.absolute("s3://bucket/~/raw/") == "s3://bucket/~/raw"


def test_written_bytes_are_read_back(root: str) -> None:
    place = storage.join(root, "file")
    # Larger than one part of an upload.
    data = bytes(range(256)) * 80_000
    for content in (b"", b"some", data):
        storage.write_bytes(place, content)
        assert storage.read_bytes(place) == content
        assert storage.file_sha256(place) == storage.sha256(content)
        with storage.writing(storage.join(root, "other")) as path:
            path.write_bytes(content)
        with storage.local(storage.join(root, "other")) as path:
            assert path.read_bytes() == content
    assert time.time() - storage.modified(place) < 600


def test_a_local_place_is_written_where_it_is(tmp_path: Path) -> None:
    for context in (storage.writing, storage.local):
        with context(str(tmp_path / "file")) as path:
            assert path == tmp_path / "file"


def test_an_unfinished_write_leaves_no_object(bucket: Store) -> None:
    place = bucket.uri("unfinished")

    def write_half() -> None:
        with storage.writing(place) as path:
            path.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert not storage.is_file(place)


def test_folders_are_listed_without_hidden_files(root: str) -> None:
    paths = {"b/1.png", "b/c/2.png", "a/ü+ %.png", "3.png"}
    _write(root, *paths, ".hidden/4.png", "b/.hidden.png")
    found = list(listing.walk(root))
    assert {file.path for file in found} == paths
    assert all(file.size == len(file.path.encode()) for file in found)
    assert [file.path for file in listing.files(storage.join(root, "b"))] == ["1.png"]
    assert listing.folders(root) == [".hidden", "a", "b"]
    assert listing.files(storage.join(root, "none")) == []
    assert listing.folders(storage.join(root, "none")) == []
    with pytest.raises(UserError, match="none' cannot be listed"):
        list(listing.walk(storage.join(root, "none")))


def test_files_are_copied_and_removed(root: str, tmp_path: Path) -> None:
    _write(root, "a/1", "a/b/2", "c/3")
    storage.copy(storage.join(root, "a/1"), storage.join(root, "c/4"))
    storage.copy(storage.join(root, "c/4"), str(tmp_path / "here"))
    storage.copy(str(tmp_path / "here"), storage.join(root, "c/5"))
    assert storage.read_bytes(storage.join(root, "c/5")) == b"a/1"
    for _ in range(2):
        storage.remove(storage.join(root, "c/4"))
        storage.remove_tree(storage.join(root, "a"))
    assert {file.path for file in listing.walk(storage.join(root, "c"))} == {"3", "5"}
    assert not storage.is_folder(storage.join(root, "a"))
    assert storage.is_folder(storage.join(root, "c"))
    assert not storage.is_file(storage.join(root, "c"))
    assert storage.is_file(storage.join(root, "c/3"))
    for read in (storage.read_bytes, storage.file_sha256, read_footer, storage.modified):
        with pytest.raises(FileNotFoundError):
            read(storage.join(root, "a/1"))


def test_tables_are_read_by_columns_and_rows(root: str) -> None:
    places = [storage.join(root, f"version=v{number}.parquet") for number in (1, 2)]
    for number, place in enumerate(places):
        with storage.writing(place) as path:
            table = pa.table({"x": [number, 2], "y": ["a", "b"]}, metadata={"key": "value"})
            pq.write_table(table, path)
    assert read_table(places[0]).to_pydict() == {"x": [0, 2], "y": ["a", "b"]}
    assert read_table(places, ["x"]).to_pydict() == {"x": [0, 2, 1, 2]}
    found = read_table(places, filters=[("x", "=", 2)])
    assert found.to_pydict() == {"x": [2, 2], "y": ["b", "b"]}
    assert read_footer(places[0]).num_rows == 2
    assert read_footer(places[0]).metadata[b"key"] == b"value"
    assert [batch.num_rows for batch in batches(places[0], 1, ["x"])] == [1, 1]


def test_requests_are_retried_until_the_store_is_back(bucket: Store) -> None:
    storage.write_bytes(bucket.uri("patience/1"), b"before")
    bucket.stop()
    began = threading.Event()
    back = threading.Timer(3, lambda: (began.set(), bucket.start()))
    back.start()
    try:
        assert storage.read_bytes(bucket.uri("patience/1")) == b"before"
        assert began.is_set()
    finally:
        back.join()
    storage.write_bytes(bucket.uri("patience/2"), b"after")
    assert len(listing.files(bucket.uri("patience"))) == 2


def test_an_outage_that_lasts_is_one_line(bucket: Store, monkeypatch) -> None:
    monkeypatch.setattr(object_store, "RETRY_TIMEOUT_S", 0.5)
    bucket.stop()
    try:
        with pytest.raises(
            UnavailableError, match=r"does not answer .*Could not connect"
        ) as caught:
            storage.read_bytes(bucket.uri("away"))
        assert "\n" not in str(caught.value)
    finally:
        bucket.start()


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "refuses access .*AWS_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "nobody", "refuses access .*AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_one_line(bucket, monkeypatch, variable, value, complaint) -> None:
    monkeypatch.setenv(variable, value)
    object_store._store.cache_clear()
    try:
        with pytest.raises(UserError, match=complaint) as caught:
            storage.require_writable(bucket.uri("somewhere"))
        assert not isinstance(caught.value, UnavailableError)
        assert "\n" not in str(caught.value)
    finally:
        object_store._store.cache_clear()


def test_missing_buckets_and_invalid_uris_are_named(bucket: Store) -> None:
    for check in (storage.require_writable, lambda place: storage.require_folder(place, "source")):
        with pytest.raises(UserError, match="there is no bucket 'none'"):
            check("s3://none/somewhere")
    with pytest.raises(UserError, match=r"source .* there is no such folder"):
        storage.require_folder(bucket.uri("none"), "source")
    with pytest.raises(UserError, match=r"expected s3://<bucket>"):
        storage.read_bytes("https://somewhere/file")
    for use in (storage.read_bytes, storage.require_writable, storage.is_file):
        with pytest.raises(UserError, match=r"a//b.*: expected one slash between names"):
            use(bucket.uri("a//b"))


@pytest.mark.parametrize(
    ("root", "place"),
    [
        ("outputs//", "outputs/datasets"),
        ("/", "//datasets"),
        ("s3://lyft/", "s3://lyft/datasets"),
        ("s3://lyft/outputs/", "s3://lyft/outputs/datasets"),
        # Not a folder of this machine, but a place that the store refuses.
        ("s3://", "s3:///datasets"),
    ],
)
def test_a_root_may_end_with_a_slash(root: str, place: str) -> None:
    assert storage.join(root, "datasets") == place


def test_the_check_of_an_output_leaves_nothing(bucket: Store) -> None:
    storage.require_writable(bucket.uri("probed"))
    assert bucket.files("probed") == {}


def test_only_an_outage_is_retried(bucket: Store) -> None:
    place = bucket.uri("x")
    for text, calls in (("NETWORK_CONNECTION", 2), ("SLOW_DOWN", 2), ("ACCESS_DENIED", 1)):
        seen: list[str] = []

        def fail_once(_, key: str, seen=seen, text=text) -> str:
            seen.append(key)
            if len(seen) == 1:
                raise OSError(f"AWS Error {text} during PutObject operation: no")
            return "done"

        if calls == 2:
            assert object_store.request(place, fail_once) == "done"
        else:
            with pytest.raises(UserError):
                object_store.request(place, fail_once)
        assert len(seen) == calls


def test_prefetched_files_keep_their_order(root: str) -> None:
    paths = [f"ahead/{number}" for number in range(40)]
    _write(root, *paths)
    places = [storage.join(root, path) for path in (*paths, "ahead/none")]
    found = prefetch(storage.read_bytes, places, root)
    for path, (place, read) in zip(paths, found, strict=False):
        assert place == storage.join(root, path)
        assert read() == path.encode()
    ((_, read),) = found
    with pytest.raises(FileNotFoundError):
        read()
    assert storage.map_concurrently(storage.read_bytes, places[:40]) == [
        path.encode() for path in paths
    ]


def test_a_full_disk_is_not_the_stores_fault(bucket: Store) -> None:
    def fill(_store, _key: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        object_store.request(bucket.uri("x"), fill)
    assert caught.value.errno == errno.ENOSPC


def test_a_store_is_listed_in_one_go(bucket: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for Google's, of which pyarrow does not show the folders."""
    root = bucket.uri("flat")
    _write(root, "b/1.png", "b/c/2.png", ".hidden/4.png", "b/.hidden.png")
    expected = sorted(listing.walk(root), key=lambda one: one.path)
    monkeypatch.setattr(listing, "_walk_store", listing._walk_objects)
    assert sorted(listing.walk(root), key=lambda one: one.path) == expected
    hidden = {one.path for one in listing.walk_all(root) if one.skipped}
    assert hidden == {".hidden/4.png", "b/.hidden.png"}
    with pytest.raises(UserError, match="none' cannot be listed"):
        list(listing.walk(storage.join(root, "none")))


def test_folders_of_a_store_are_listed_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each listing waits until three others are under way."""
    together = threading.Barrier(4, timeout=PATIENCE_S)
    drives = ["a", "b", "c", "d"]

    def children(folder: str) -> list[SourceFile | str]:
        path = folder.removeprefix("s3://lyft/raw").lstrip("/")
        if not path:
            return [*drives, ".staging"]
        if path in drives:
            together.wait()
            return ["CameraRGB", SourceFile(".hidden", 1, 2.0)]
        return [SourceFile("1.png", 1, 2.0)]

    monkeypatch.setattr(listing, "_remote_children", children)
    found = list(listing.walk_all("s3://lyft/raw"))
    images = [SourceFile(f"{drive}/CameraRGB/1.png", 1, 2.0) for drive in drives]
    assert sorted((one for one in found if not one.skipped), key=lambda one: one.path) == images
    hidden = {one.path for one in found if one.skipped}
    assert hidden == {".staging", *(f"{drive}/.hidden" for drive in drives)}
    # The order follows from the names alone.
    assert list(listing.walk_all("s3://lyft/raw")) == found
