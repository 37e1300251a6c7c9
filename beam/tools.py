"""Downloads the Java side of the Flink and Spark runners: Flink's jars and Beam's job servers.

Everything is pinned, checked against hashes and kept in one folder: ``outputs/tools``, or the one
that the variable LYFT_TOOLS names. It is downloaded when an engine is first used, or beforehand by
``python -m beam.tools flink|spark``.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.command_line import Parser, run_main
from runtime.errors import UserError
from runtime.locks import lock
from runtime.storage import file_sha256

FLINK = "1.19.3"
"""The last major version with the batch engine that Beam's Python jobs use. On Flink 2, they run as
streams, which hold all grouped data in memory."""

_FLINK_SHA256 = "4a58e3a1fb7d83340bc96b6c080624c6d792d69fae5d294b96224775204a9c60"
_FLINK_JARS = ("flink-dist-", "log4j-")
_FLINK_RUNNER = "a7bfa75782298af6cafdcdca0a5b53e7bcf6c204b6f60f21e2d64a7094bb6870"
_SPARK_RUNNER = "ce097ff16ded711e30f24b8d90711c3df3d606f0e1462920d036b4a656ddec1b"
"""Hashes over the names and hashes of all jars of flink.xml and of spark.xml."""

_SPARK_JAR = "job-server.jar"
_SPARK_MAIN = "org.apache.beam.runners.spark.SparkJobServerDriver"

_POMS = Path(__file__).parent / "jars"
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_NOT_MERGED = ("/", "META-INF/MANIFEST.MF", ".SF", ".DSA", ".RSA", "module-info.class")
"""Endings of what cannot be merged: folders, signatures and files that describe a whole jar."""


def tools_folder() -> Path:
    """The folder of everything that was downloaded."""
    return Path(os.environ.get("LYFT_TOOLS", "outputs/tools")).absolute()


def flink_jars() -> Path:
    """Folder of the jars of Flink's distribution, from the package apache-flink-libraries.

    Raises:
        UserError: it cannot be fetched.
    """
    return _fetch_once(f"flink-{FLINK}", _fetch_flink)


def flink_runner() -> Path:
    """Path of Beam's runner for Flink with all its dependencies, in one jar.

    Raises:
        UserError: it cannot be fetched.
    """
    return _fetch_once("beam-flink-runner.jar", _fetch_flink_runner)


def spark_job_server() -> Path:
    """Path of Beam's job server for Spark: a jar that names the jars beside it, Spark included.

    Raises:
        UserError: it cannot be fetched.
    """
    return _fetch_once("beam-spark-runner", _fetch_spark) / _SPARK_JAR


def java() -> str:
    """Path of the Java program.

    Raises:
        UserError: Java is not found.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=f"{home}/bin" if home else None)
    if found is None:
        raise UserError("java: expected a Java 17 runtime, found none; install openjdk-17-jre")
    return found


def _fetch_once(name: str, fetch: Callable[[Path, Path], None]) -> Path:
    """The file or folder of this name; if it is missing, fetches it and moves it there whole."""
    path = tools_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with lock(path.parent / f"{name}.lock", wait=True):
            if not path.exists():
                with tempfile.TemporaryDirectory(dir=path.parent) as work:
                    staged = Path(work, name)
                    fetch(staged, Path(work))
                    staged.rename(path)
    return path


def _fetch_flink(target: Path, work: Path) -> None:
    pinned = work / "requirements.txt"
    pinned.write_text(
        f"apache-flink-libraries=={FLINK} --hash=sha256:{_FLINK_SHA256}\n", encoding="utf-8"
    )
    options = ["--no-deps", "--no-binary=:all:", "--no-build-isolation", "--require-hashes"]
    _run([sys.executable, "-m", "pip", "download", *options, "-r", str(pinned), "-d", str(work)])
    (archive,) = work.glob("apache*.tar.gz")
    target.mkdir()
    with tarfile.open(archive) as sources:
        for member in sources:
            name = Path(member.name).name
            if member.isfile() and name.startswith(_FLINK_JARS) and name.endswith(".jar"):
                sources.extract(member.replace(name=name), target, filter="data")


def _fetch_flink_runner(target: Path, work: Path) -> None:
    _merge(_fetch_jars("flink", _FLINK_RUNNER, work), target)


def _fetch_spark(target: Path, work: Path) -> None:
    target.mkdir()
    jars = _fetch_jars("spark", _SPARK_RUNNER, work)
    for jar in jars:
        jar.rename(target / jar.name)
    # A manifest's lines are limited in length; a line with a leading space continues the last one.
    class_path = "\r\n  ".join(jar.name for jar in jars)
    lines = ["Manifest-Version: 1.0", f"Main-Class: {_SPARK_MAIN}", f"Class-Path: {class_path}"]
    with zipfile.ZipFile(target / _SPARK_JAR, "w") as archive:
        archive.writestr(_entry("META-INF/MANIFEST.MF"), "\r\n".join([*lines, ""]))


def _merge(jars: Sequence[Path], target: Path) -> None:
    """Merges jars into one: joins lists of services; of any other file, keeps the first.

    Flink would send separate jars to each machine one by one, a tenth of a second per jar.
    """
    services: dict[str, list[bytes]] = defaultdict(list)
    with zipfile.ZipFile(target, "w") as merged:
        seen = set()
        for jar in jars:
            with zipfile.ZipFile(jar) as archive:
                for name in archive.namelist():
                    if name.startswith("META-INF/services/"):
                        services[name].append(archive.read(name))
                    elif name not in seen and not name.endswith(_NOT_MERGED):
                        seen.add(name)
                        merged.writestr(_entry(name), archive.read(name))
        for name, lists in services.items():
            merged.writestr(_entry(name), b"\n".join(lists))


def _entry(name: str) -> zipfile.ZipInfo:
    """A ZIP entry with a fixed time, so that the jar has the same bytes each time."""
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry


def _fetch_jars(pom: str, expected: str, work: Path) -> list[Path]:
    """Downloads all jars that a POM requires and returns them sorted by name.

    Raises:
        UserError: Maven is missing or fails, or the jars are not those expected.
    """
    if shutil.which("mvn") is None:
        raise UserError("mvn: expected Maven, to fetch Beam's runners in Java; install maven")
    _run(
        [
            *("mvn", "--batch-mode", "--strict-checksums", f"--file={_POMS / pom}.xml", _COPY),
            *("-DincludeScope=runtime", f"-DoutputDirectory={work}/jars"),
            f"-Dmaven.repo.local={work}/repository",
        ]
    )
    jars = sorted((work / "jars").iterdir())
    listing = "".join(f"{jar.name} {file_sha256(jar)}\n" for jar in jars)
    found = hashlib.sha256(listing.encode()).hexdigest()
    if found != expected:
        raise UserError(f"jars of {pom}.xml: expected hash {expected}, found {found}; not used")
    return jars


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        lines = done.stdout.splitlines() or ["it said nothing"]
        reason = next((line for line in lines if "ERROR" in line.upper()), lines[0]).strip()
        raise UserError(f"{' '.join(command[:4])} … failed: {reason}")


def main(arguments: Sequence[str]) -> str:
    """Runs the command line and returns the folder of the downloads."""
    parser = Parser(prog="python -m beam.tools", description=__doc__)
    parser.add_argument("engine", choices=("flink", "spark"))
    if parser.parse_args(arguments).engine == "flink":
        flink_jars()
        flink_runner()
    else:
        spark_job_server()
    return str(tools_folder())


if __name__ == "__main__":
    sys.exit(run_main(main))
