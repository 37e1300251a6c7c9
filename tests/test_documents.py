"""Versions, files and functions that the documents name exist."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from jobs import ROOT

DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FOLDERS = "analysis|beam|benchmarks|docker|docs|flows|images|model|runtime|schemas|tests"


def test_all_places_name_the_newest_version_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\S+), ", changelog, re.MULTILINE)[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert project["project"]["version"] == newest
    assert {one["version"] for one in deployments} == {newest}
    assert re.findall(r'image\.version="(.*)"', dockerfile) == [newest]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.\w+)`", text)
    linked = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    missing = [name for name in named if "NAME" not in name and not (ROOT / name).exists()]
    missing += [name for name in linked if not (document.parent / name).exists()]
    assert missing == []


def test_walkthroughs_name_existing_functions() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    steps = re.findall(r"^\| `(\S+\.py)` \| (.+?) \|", text, re.MULTILINE)
    assert len(steps) > 15
    for path, names in steps:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        top = {
            one.name: one for one in tree.body if isinstance(one, ast.ClassDef | ast.FunctionDef)
        }
        for name in re.findall(r"`([\w.]+)`", names):
            outer, _, inner = name.partition(".")
            assert outer in top, f"{path} has no {outer}"
            if inner:
                assert re.search(rf"\b{inner}\b", ast.unparse(top[outer])), f"{path}: no {name}"
