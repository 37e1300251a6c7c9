"""Which images go through the model."""

from collections.abc import Callable

import pytest

from beam.infer import handler


@pytest.fixture
def predicted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Returns the ids of the images that went through the model since its last call."""
    seen: list[str] = []
    predict = handler.predict

    def spy(batch, *engine):
        seen.extend(picture.image_id for picture in batch)
        return predict(batch, *engine)

    monkeypatch.setattr(handler, "predict", spy)

    def taken() -> list[str]:
        found = sorted(seen)
        seen.clear()
        return found

    return taken
