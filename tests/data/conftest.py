"""Episodes made up for the tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ivideogpt.data.episode import Episode

MakeEpisode = Callable[..., Episode]


@pytest.fixture
def make_episode() -> MakeEpisode:
    """Make an episode whose pixels, actions and rewards all tell the number of their frame."""

    def make(length: int = 20, height: int = 8, width: int = 8, action_size: int = 2, **changes: Any) -> Episode:
        number = np.arange(length)
        fields: dict[str, Any] = {
            "frames": np.broadcast_to(number[:, None, None, None], (length, height, width, 3)).astype(np.uint8),
            "actions": np.repeat(number[:, None], action_size, axis=1).astype(np.float32),
            "rewards": number.astype(np.float32),
        }
        return Episode(**(fields | changes))

    return make
