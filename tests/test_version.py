"""One version number: that of the package, the deployments, the images and the changelog."""

import re
import tomllib

import yaml
from jobs import ROOT


def test_all_places_name_the_newest_version_of_the_changelog() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.findall(r"^## (\S+), ", changelog, re.MULTILINE)[0]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    dockerfile = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
    assert project["project"]["version"] == newest
    assert {one["version"] for one in deployments} == {newest}
    assert re.findall(r'image\.version="(.*)"', dockerfile) == [newest]
