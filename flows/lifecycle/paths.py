"""Paths and URIs among the parameters of flows."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from runtime.storage import absolute

Place = Annotated[str, Field(min_length=1), AfterValidator(absolute)]
"""A folder or a URI; flows get it absolute: relative ones are in the project, ``~`` is the home."""
