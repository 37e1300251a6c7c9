"""Loads YAML files into pydantic models, by the name of a built-in file or by a user's path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from runtime.errors import UserError

Content = TypeVar("Content", bound=BaseModel)


@dataclass(frozen=True)
class YamlFiles(Generic[Content]):
    """The YAML files of one kind.

    Attributes:
        kind: what messages call one of them; model: of their content.
        folder: where the built-in ones are.
        remedy: advice in the message for an unknown name.
    """

    kind: str
    model: type[Content]
    folder: Path
    remedy: str

    def names(self) -> list[str]:
        """Names of the built-in files."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def load(self, name_or_path: str) -> Content:
        """Reads a built-in file by its name, or any YAML file by its path.

        Raises:
            UserError: there is no such file, or it is invalid.
        """
        path = self.folder / f"{name_or_path}.yaml"
        if not path.is_file():
            path = Path(name_or_path)
        if not path.is_file():
            raise UserError(
                f"{self.kind} {name_or_path!r} is neither one of {', '.join(self.names())} nor a "
                f"YAML file; {self.remedy}"
            )
        try:
            text = path.read_text(encoding="utf-8")
            content = yaml.load(text, _Loader)  # noqa: S506 - it is a safe one
            return self.model.model_validate(content)
        except (ValidationError, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.kind} file {path}: {explain(error)}") from error


class _Loader(yaml.SafeLoader):
    """A safe loader that refuses a key that occurs twice, of which PyYAML takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Overrides PyYAML's."""
        seen: list[Any] = []
        for place, _ in node.value:
            if place.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(place, deep=True)
            if key in seen:
                problem = f"found the key {key!r} twice"
                raise yaml.constructor.ConstructorError(None, None, problem, place.start_mark)
            seen.append(key)
        return super().construct_mapping(node, deep)


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
