"""Type of the flows' parameters that are paths or URIs."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from runtime.storage import absolute

PathOrUri = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""A path or URI, made absolute: relative paths are in the project's folder, ``~`` is the home."""
