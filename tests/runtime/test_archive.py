"""Zip and tar archives read in place, by one process or several, with odd or damaged members."""

import io
import multiprocessing
import os
import struct
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime import archive, object_store, storage
from runtime.errors import UnavailableError, UserError
from runtime.listing import walk, walk_all
from runtime.storage import modified, read_bytes, require_folder

NAMES = ("a/CameraRGB/1.png", "a/CameraRGB/2.png", "b.zip/c.txt")


def _content(name: str) -> bytes:
    return name.encode() * 5_000


@pytest.fixture(params=["zip", "stored.ZIP", "tar"])
def packed(request, tmp_path: Path) -> Path:
    """An archive in a folder whose own name ends in .zip."""
    path = tmp_path / "x.zip" / f"set.{request.param}"
    path.parent.mkdir()
    if request.param == "tar":
        for name in NAMES:
            (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name).write_bytes(_content(name))
        with tarfile.open(path, "w") as file:
            file.add(tmp_path / "in", ".")
        return path
    kind = zipfile.ZIP_STORED if "stored" in request.param else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(path, "w", kind) as file:
        for name in NAMES:
            file.writestr(name, _content(name))
    return path


@pytest.fixture(params=["local", pytest.param("store", marks=pytest.mark.slow)])
def placed(request, packed: Path) -> str:
    """The archive on this machine, or on a store."""
    if request.param == "local":
        return str(packed)
    folder = storage.join(request.getfixturevalue("bucket").uri(packed.parent.parent.name), "x.zip")
    storage.write_bytes(place := storage.join(folder, packed.name), packed.read_bytes())
    return place


def test_files_are_listed_and_read_like_those_of_a_folder(placed: str) -> None:
    found = list(walk(placed))
    assert sorted((one.path, one.size) for one in found) == [
        (name, len(_content(name))) for name in NAMES
    ]
    for one in found:
        assert read_bytes(f"{placed}/{one.path}") == _content(one.path)
        assert modified(f"{placed}/{one.path}") == one.modified == modified(placed)
    for none in (f"{placed}/none", f"{placed}/a"):
        with pytest.raises(FileNotFoundError):
            read_bytes(none)
    storage.require_folder(placed, "source")
    with pytest.raises(UserError, match="there is no such folder or archive"):
        storage.require_folder(placed.replace("set", "other"), "source")


def test_what_is_below_a_file_that_is_no_archive_is_not_there() -> None:
    for ask in (read_bytes, modified):
        with pytest.raises(NotADirectoryError):
            ask(f"{__file__}/none")


@pytest.mark.parametrize("on_store", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_archive_that_is_replaced_is_read_anew(on_store: bool, tmp_path: Path, request) -> None:
    path = tmp_path / "a.zip"
    place = request.getfixturevalue("bucket").uri("replaced.zip") if on_store else str(path)
    for content in (b"old", b"newer"):
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("1", content)
        if on_store:
            storage.write_bytes(place, path.read_bytes())
        assert read_bytes(f"{place}/1") == content


def test_threads_share_one_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        for number in range(16):
            file.writestr(str(number), _content(str(number)))
    made: list[str] = []
    second, list_zip = threading.Event(), archive._list_zip

    def slowly(file):
        made.append(threading.current_thread().name)
        if len(made) > 1:
            second.set()
        # Time for another thread to begin, too, if it can.
        second.wait(0.5)
        return list_zip(file)

    monkeypatch.setattr(archive, "_list_zip", slowly)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda number: read_bytes(f"{path}/{number}"), range(16)))
    assert found == [_content(str(number)) for number in range(16)]
    assert len(made) == 1


@pytest.mark.parametrize(("longer", "reads"), [(0, 1), (200, 1), (2_000, 2)])
def test_a_zipped_file_takes_one_read(tmp_path: Path, longer: int, reads: int) -> None:
    """But two, if its header is much longer than the zip's directory says."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("1.png", _content("1.png"))
    data = bytearray(path.read_bytes())
    data[28:30] = struct.pack("<H", longer)
    data[35:35] = bytes(longer)
    data[-6:-2] = struct.pack("<I", struct.unpack("<I", data[-6:-2])[0] + longer)
    path.write_bytes(data)

    class Counted:
        def __init__(self, file) -> None:
            self.file, self.reads = file, 0

        def seek(self, position: int) -> None:
            self.file.seek(position)

        def read(self, size: int) -> bytes:
            self.reads += 1
            return self.file.read(size)

    with path.open("rb") as file, zipfile.ZipFile(path) as zipped:
        counted = Counted(file)
        (info,) = zipped.infolist()
        assert archive._read_zipped(info, counted) == _content("1.png")
    assert counted.reads == reads


def _reads(place: str) -> bool:
    name = place.partition("/n")[2]
    return all(read_bytes(place) == _content(f"n{name}") for _ in range(200))


def test_forked_processes_read_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for number in range(4):
            file.writestr(f"n{number}", _content(f"n{number}"))
    # Its index is made before the fork.
    assert read_bytes(f"{path}/n0")
    with multiprocessing.get_context("fork").Pool(4) as pool:
        assert all(pool.map(_reads, [f"{path}/n{number}" for number in range(4)]))


def test_hidden_escaping_damaged_and_encrypted_members_are_marked(tmp_path: Path) -> None:
    path = tmp_path / "odd.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("__MACOSX/CameraRGB/._1.png", "../CameraRGB/2.png", "CameraRGB\\3.png"):
            file.writestr(zipfile.ZipInfo(name), b"x")
    data = bytearray(path.read_bytes())
    found = {one.path: one for one in walk_all(path)}
    assert found["__MACOSX/CameraRGB/._1.png"].skipped == "hidden"
    assert "leads out of the archive" in found["../CameraRGB/2.png"].error
    assert read_bytes(f"{path}/CameraRGB/3.png") == b"x"

    # A stored byte of the last file is changed, and then its flag says that it is encrypted.
    data[data.index(b"CameraRGB\\3.png") + len("CameraRGB\\3.png")] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="damaged in its archive: Bad CRC-32"):
        read_bytes(f"{path}/CameraRGB/3.png")
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert {one.path: one.error for one in walk_all(path)}["CameraRGB/3.png"] == "it is encrypted"


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_names_of_a_zip_without_the_flag_of_utf_8(tmp_path: Path, encoding: str) -> None:
    path, name = tmp_path / "a.zip", "dü/ä.png"
    stand_in = "?" * len(name.encode(encoding))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(stand_in, b"x")
    path.write_bytes(path.read_bytes().replace(stand_in.encode(), name.encode(encoding)))
    assert [one.path for one in walk(path)] == [name]
    assert read_bytes(f"{path}/{name}") == b"x"


def test_symbolic_links_in_a_tar_are_skipped_and_hard_links_read(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(b"x")
    (tmp_path / "2.png").symlink_to("1.png")
    (tmp_path / "3.png").hardlink_to(tmp_path / "1.png")
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in ("1.png", "2.png", "3.png"):
            file.add(tmp_path / name, f"./{name}")
        nowhere = tarfile.TarInfo("4.png")
        nowhere.type, nowhere.linkname = tarfile.LNKTYPE, "none.png"
        file.addfile(nowhere)
    found = {one.path: one for one in walk_all(tmp_path / "a.tar")}
    assert {name: one.skipped for name, one in found.items() if not one.error} == {
        "1.png": "",
        "2.png": "no regular file",
        "3.png": "",
    }
    assert found["3.png"].size == 1
    assert read_bytes(f"{tmp_path}/a.tar/3.png") == b"x"
    assert "'none.png', which is not in the archive" in found["4.png"].error


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_members_with_one_name_the_last_counts(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    versions = (b"old", b"newer")
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as zipped:
            for data in versions:
                zipped.writestr("1.png", data)
    else:
        for mode, data in zip("wa", versions, strict=True):
            with tarfile.open(path, mode) as file:
                info = tarfile.TarInfo("1.png")
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    assert [(one.size, one.skipped) for one in walk_all(path)] == [(3, "replaced later"), (5, "")]
    assert read_bytes(f"{path}/1.png") == b"newer"


def test_a_tar_that_tarfile_would_list_in_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    (tmp_path / "any").write_bytes(b"x")
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for number in range(3):
            file.add(tmp_path / "any", f"{number}.png")
    whole = path.read_bytes()
    second = whole.index(b"1.png")
    assert len(list(walk(path))) == 3
    damaged = bytearray(whole)
    damaged[second] ^= 1
    for content, complaint in (
        (bytes(damaged), f"damaged at byte {second:,}"),
        (whole[:second], "its end is missing"),
        (whole[: second + 100], f"damaged at byte {second:,}"),
        (whole + whole, "or more tars are appended"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            list(walk(path))


def test_damaged_members_of_any_compression_are_told_as_such(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        content = os.urandom(1000)
        with zipfile.ZipFile(path, "w", kind) as file:
            file.writestr("1", content)
        assert read_bytes(f"{path}/1") == content
        data = bytearray(path.read_bytes())
        data[300:320] = bytes(20)
        path.write_bytes(data)
        with pytest.raises(OSError, match="damaged in its archive"):
            read_bytes(f"{path}/1")
    # A central directory of a version that Python does not know.
    data[data.rindex(b"PK\x01\x02") + 6] = 200
    path.write_bytes(data)
    with pytest.raises(UserError, match="cannot be read: zip file version"):
        list(walk(path))


def test_a_method_that_is_not_known_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as file:
        file.writestr("1.png", "x")
    (found,) = walk_all(path)
    assert found.error == "it is compressed by method 14; expected deflate"


def test_a_store_that_goes_away_is_no_damaged_zip(monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(io.RawIOBase):
        def readable(self) -> bool:
            return True

        seekable = readable

        def size(self) -> int:
            return 1_000

        def metadata(self) -> dict[str, bytes]:
            return {}

        def seek(self, position: int, whence: int = 0) -> int:
            return position + (self.size() if whence else 0)

        def readinto(self, _) -> int:
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation: no route")

        def open_input_file(self, _: str) -> "Away":
            return self

    monkeypatch.setattr(object_store, "_store", lambda *_: Away())
    monkeypatch.setattr(object_store, "RETRY_TIMEOUT_S", 0)
    with pytest.raises(UnavailableError, match=r"a.zip': the store does not answer"):
        archive.members("s3://bucket/a.zip")


def test_a_small_file_that_takes_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("1.png", b"x")
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 24] = struct.pack("<I", 1 << 31)
    path.write_bytes(data)
    (found,) = walk_all(path)
    assert found.error == "its 1 bytes take 2,147,483,648 in the archive"


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_compressed_tars_and_truncated_zips_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with tarfile.open(path, "w:gz") as file:
        file.add(__file__, "test.py")
    with pytest.raises(
        UserError, match=r"cannot be read: .*; expected a \.zip, or a \.tar that is"
    ):
        list(walk(path))
    # Cut off.
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as zipped:
        zipped.write(__file__, "1")
    (tmp_path / "b.zip").write_bytes((tmp_path / "b.zip").read_bytes()[:-10])
    with pytest.raises(UserError, match="not a zip file"):
        list(archive.members(str(tmp_path / "b.zip")))


def test_an_archive_of_another_kind_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected a folder, a \.zip, or a \.tar that is not comp"):
        require_folder(tmp_path / "a.tar.gz", "source")
    with pytest.raises(UserError, match="there is no such folder or archive"):
        require_folder(tmp_path / "b.zip", "source")
