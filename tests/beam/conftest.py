"""Caches what Beam looks up for each of the many small pipelines of these tests."""

import pytest
from quick_beam import cache_beam_lookups


@pytest.fixture(scope="session", autouse=True)
def _quick_beam() -> None:
    cache_beam_lookups()
