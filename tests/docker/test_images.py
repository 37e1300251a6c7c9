"""Dockerfile and locks, checked against the project."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from containers import (
    ARGS,
    IMAGES,
    LOCKS,
    PROJECT,
    instructions,
    lineage,
    locked,
    of_image,
    version,
)
from jobs import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from setuptools import find_packages

from beam.tools import FLINK


def test_bases_are_exact_releases_and_agree_with_the_locks():
    python = re.search(
        r"^python:(\d+\.\d+\.\d+)-slim-bookworm@sha256:[0-9a-f]{64}$", ARGS["PYTHON"]
    )
    assert python, ARGS["PYTHON"]
    assert python[1] in SpecifierSet(PROJECT["requires-python"])
    minor = python[1].rpartition(".")[0]
    beam = version(LOCKS["cpu"], "apache-beam")
    assert ARGS["BEAM"].endswith(f"/beam_python{minor}_sdk:{beam}")
    assert f"--python-version {minor} " in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_every_copied_path_exists_and_is_not_ignored():
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    copied = set()
    for _, word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            copied |= {path.rstrip("/") for path in rest.split()[:-1]}
    for path in copied:
        assert (ROOT / path).exists(), path
        parents = {path, *map(str, Path(path).parents)}
        assert parents & admitted, f"{path} is ignored"
    for path in admitted:
        assert any(one == path or one.startswith(f"{path}/") for one in copied), f"{path}: no COPY"


def test_the_whole_project_is_in_the_image():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    copied = {
        rest.split()[0]
        for stage, word, rest in instructions()
        if word == "COPY"
        if stage == "project"
    }
    packages = set(
        find_packages(str(ROOT), include=setuptools["setuptools"]["packages"]["find"]["include"])
    )
    assert {one.partition(".")[0] for one in packages} <= copied
    folders = (path.parent.relative_to(ROOT) for path in ROOT.glob("[!.]*/**/__init__.py"))
    found = {".".join(folder.parts) for folder in folders if folder.parts[0] in copied}
    assert packages == found


@pytest.mark.parametrize("image", IMAGES)
def test_images_run_unprivileged_and_without_compilers(image):
    assert of_image(image, "USER")[-1] == "10001:10001"
    commands = of_image(image, "RUN")
    if image == "flink":
        # Java comes from Debian, and nothing else does.
        (java,) = (one for one in commands if "apt-get" in one)
        commands.remove(java)
        assert re.findall(r"install --yes --no-install-recommends (.+?) &&", java) == [
            "openjdk-17-jre-headless=17.*"
        ]
        assert java.endswith("&& rm -rf /var/lib/apt/lists/*")
    assert not re.search(r"\b(apt-get|apk|pip|curl|wget|mvn)\b", " ".join(commands))
    assert len([stage for stage in lineage(image) if stage]) >= 2
    labels = " ".join(of_image(image, "LABEL"))
    for label in ("title", "description", "licenses", "version", "revision"):
        assert f"org.opencontainers.image.{label}=" in labels
    assert f'image.version="{PROJECT["version"]}"' in labels


@pytest.mark.parametrize("image", IMAGES)
def test_code_is_copied_after_dependencies(image):
    copies = of_image(image, "COPY")
    dependencies = [n for n, one in enumerate(copies) if "/opt/venv" in one]
    code = [n for n, one in enumerate(copies) if one.endswith((" /app", " /app/"))]
    assert dependencies
    assert code
    assert max(dependencies) < min(code)


def test_flink_tools_stage_has_all_files_that_it_needs(tmp_path):
    stage = [(word, rest) for where, word, rest in instructions() if where == "flink-tools"]
    for rest in (rest for word, rest in stage if word == "COPY"):
        *paths, target = rest.split()
        for path in paths:
            place = tmp_path / target if target.endswith("/") else tmp_path
            if (ROOT / path).is_dir():
                shutil.copytree(ROOT / path, tmp_path / target)
            else:
                place.mkdir(exist_ok=True)
                shutil.copy(ROOT / path, place)
    fetch = next(rest for word, rest in stage if word == "RUN" and "beam.tools" in rest)
    kept = re.search(r"LYFT_TOOLS=(\S+) python -m beam.tools flink$", fetch)
    assert kept
    assert f"--from=flink-tools {kept[1]} {kept[1]}" in of_image("flink", "COPY")
    assert any(f"LYFT_TOOLS={kept[1]} " in one for one in of_image("flink", "ENV"))
    # Tools that are in the folder already are not fetched again.
    tools = tmp_path / "tools"
    (tools / f"flink-{FLINK}").mkdir(parents=True)
    (tools / "beam-flink-runner.jar").touch()
    done = subprocess.run(
        [sys.executable, "-P", "-m", "beam.tools", "flink"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "LYFT_TOOLS": str(tools)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{tools}\n", "")


def test_all_images_but_the_beam_worker_have_health_checks():
    checks = {image: of_image(image, "HEALTHCHECK")[-1] for image in IMAGES}
    assert checks.pop("worker") == "NONE"
    assert all("HEALTH_URL" in check for check in checks.values())
    for image in checks:
        assert any("HEALTH_URL=http://127.0.0.1:" in one for one in of_image(image, "ENV"))


def test_nothing_is_installed_without_a_hash():
    installs = [rest for _, word, rest in instructions() if word == "RUN" and "pip install" in rest]
    used = set()
    for command in installs:
        # Otherwise pip looks outside the lock for packages with extras, and finds them without a
        # hash.
        assert "--no-deps" in command
        if "--no-index" in command:
            continue
        assert "--require-hashes" in command
        assert "--only-binary=:all:" in command
        used |= set(re.findall(r"-r (\w+)\.lock", command))
    assert used == set(LOCKS)


@pytest.mark.parametrize("name", ["build", "cpu", "gpu", "servers"])
def test_locks_pin_versions_and_hashes_and_name_no_index(name):
    text = LOCKS[name].read_text(encoding="utf-8")
    assert "://" not in re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    entries = locked(LOCKS[name])
    assert entries
    for requirements in entries.values():
        for requirement, hashes in requirements:
            assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), requirement
            assert hashes, requirement


def test_locks_satisfy_the_projects_requirements():
    asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["gpu"]
    for requirement in map(Requirement, asked):
        name = requirement.name
        found = version(LOCKS["cpu"], name) or version(LOCKS["gpu"], name)
        assert found, f"{name} is not locked: make lock"
        assert found in requirement.specifier, f"{requirement}, locked {found}: make lock"


def test_images_install_the_versions_of_requirements_lock():
    ours = ROOT / "requirements.lock"
    for name, lock in LOCKS.items():
        shared = set(locked(lock)) & set(locked(ours))
        assert shared or name == "gpu"
        different = {one for one in shared if version(lock, one) != version(ours, one)}
        assert not different, f"{name}.lock is of another day than requirements.lock: make lock"


def test_gpu_lock_adds_cuda_for_tensorflow_and_jax():
    extra = [Requirement(one) for one in metadata.requires("tensorflow") or [] if "and-cuda" in one]
    assert len(extra) > 5
    for requirement in extra:
        found = version(LOCKS["gpu"], requirement.name)
        assert found, requirement
        assert found in requirement.specifier
    # A plugin takes the JAX of its own version alone.
    jax = {version(LOCKS["gpu"], name) for name in ("jax", "jaxlib", "jax-cuda12-plugin")}
    assert jax == {metadata.version("jax")}
    assert not set(locked(LOCKS["gpu"])) & set(locked(LOCKS["cpu"]))


def test_slim_removes_headers_and_tests_and_keeps_modules(tmp_path):
    packages = tmp_path / "lib/python3.12/site-packages"
    for path in (
        "tensorflow/include/a.h",
        "pandas/tests/b.py",
        "scipy/fft/tests/c.py",
        "scipy/fft/d.py",
    ):
        (packages / path).parent.mkdir(parents=True, exist_ok=True)
        (packages / path).touch()
    subprocess.run(["sh", str(ROOT / "docker/slim.sh"), str(tmp_path)], check=True)
    assert sorted(path.name for path in packages.rglob("*.*")) == ["d.py"]


def test_hadolint_passes():
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not installed")
    done = subprocess.run(
        [program, ROOT / "docker/Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
