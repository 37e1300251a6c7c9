"""YAML files that come with the project and are known by name, or that a user wrote."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from runtime.errors import UserError

Content = TypeVar("Content", bound=BaseModel)


@dataclass(frozen=True)
class YamlFiles(Generic[Content]):
    """A kind of such files.

    Attributes:
        what: the word for one of them; model: what it holds; folder: where the project's own are.
        remedy: what to do about a name that does not exist.
    """

    what: str
    model: type[Content]
    folder: Path
    remedy: str

    def names(self) -> list[str]:
        """Names of those that come with the project."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def load(self, name_or_path: str) -> Content:
        """Reads one by its name, or a YAML file by its path.

        Raises:
            UserError: there is no such file, or it is invalid.
        """
        path = self.folder / f"{name_or_path}.yaml"
        if not path.is_file():
            path = Path(name_or_path)
        if not path.is_file():
            raise UserError(
                f"{self.what} {name_or_path!r} is neither one of {', '.join(self.names())} nor a "
                f"YAML file; {self.remedy}"
            )
        try:
            return self.model.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (ValidationError, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.what} file {path}: {explain(error)}") from error


def explain(error: Exception) -> str:
    """A pydantic or YAML error in one line: field, what was expected, what was found."""
    if not isinstance(error, ValidationError):
        return " ".join(str(error).split())
    problems = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        found = item["input"] if not isinstance(item["input"], dict) else "a mapping"
        message = item["msg"].removeprefix("Value error, ")
        problems.append(f"{field}: {message}, found {found!r}" if field else message)
    return "; ".join(problems)
