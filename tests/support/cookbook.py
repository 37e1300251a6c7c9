"""The code blocks of docs/cookbook.md."""

import re

from jobs import ROOT

COOKBOOK = (ROOT / "docs/cookbook.md").read_text(encoding="utf-8")
FLAGS = re.MULTILINE | re.DOTALL


def _blocks(language: str) -> list[tuple[str, str]]:
    """Heading and text of each code block in a language."""
    found = []
    heading = ""
    for match in re.finditer(r"^#+ ([^\n]*)$|^```(\w+)\n(.*?)^```$", COOKBOOK, FLAGS):
        if match[1]:
            heading = match[1]
        elif match[2] == language:
            found.append((heading, match[3]))
    return found


QUERIES = _blocks("sql")
SNIPPETS = dict(_blocks("python"))
