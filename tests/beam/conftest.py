"""Makes the many small pipelines of these tests cheaper."""

import pytest
from quick_beam import remember_what_is_looked_up


@pytest.fixture(scope="session", autouse=True)
def _quick_beam() -> None:
    remember_what_is_looked_up()
