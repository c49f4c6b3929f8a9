from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from ivideogpt.data.episode import Episode
from ivideogpt.errors import EpisodeError

FRAMES = np.zeros((5, 8, 6, 3), np.uint8)
ACTIONS = np.zeros((5, 2), np.float32)


def with_value(array: np.ndarray, place: tuple[int, ...], value: float) -> np.ndarray:
    changed = array.copy()
    changed[place] = value
    return changed


def test_properties() -> None:
    episode = Episode(FRAMES, ACTIONS, np.zeros(5, np.float32), np.zeros((5, 7), np.float32), {"seed": 1})
    assert episode.length == 5
    assert episode.action_size == 2
    assert Episode(FRAMES).action_size is None


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (FRAMES[0], r"shape \(8, 6, 3\).*must be \(T, H, W, 3\)"),
        (FRAMES.transpose(0, 3, 1, 2), r"channels first.*transpose\(0, 2, 3, 1\)"),
        (np.zeros((5, 9, 64, 64), np.uint8), r"3 frames stacked as channels.*frames\[:, -3:\]"),
        (np.zeros((5, 8, 6, 4), np.uint8), "4 channels.*RGB"),
        (FRAMES[:0], "at least one frame"),
        (FRAMES.astype(np.int64), "int64; they must be uint8"),
        (FRAMES.astype(np.float32), "float32; they must be uint8.*255"),
        ([1, 2], "frames are a list"),
    ],
)
def test_refuses_frames(frames: Any, message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        Episode(frames)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"actions": ACTIONS.astype(np.float64)}, "actions are float64.*float32"),
        ({"actions": [[0.0]] * 5}, "actions are a list"),
        ({"actions": ACTIONS[:, 0]}, r"actions have shape \(5,\); they must be \(T, size\)"),
        ({"actions": ACTIONS[:, :0]}, "no columns"),
        ({"actions": ACTIONS[:4]}, "4 rows for 5 frames.*Append one row"),
        ({"actions": ACTIONS[:2]}, "2 rows for 5 frames.*Cut actions"),
        ({"actions": with_value(ACTIONS, (3, 1), np.nan)}, r"actions row 3 is \[0.0, nan\].*finite"),
        ({"rewards": with_value(np.zeros(5, np.float32), (2,), np.inf)}, "rewards row 2 is inf.*finite"),
        ({"rewards": np.zeros(4, np.float32)}, "4 rows for 5 frames.*0 in front"),
        ({"rewards": np.zeros((5, 1), np.float32)}, r"must be \(T,\)"),
        ({"states": np.zeros(5, np.float32)}, "states have shape"),
        ({"contacts": np.zeros(5)}, "contacts are float64.*float32"),
        ({"contacts": np.zeros(4, np.float32)}, "contacts have 4 rows for 5 frames.*0 in front"),
        ({"contacts": np.zeros((5, 1), np.float32)}, r"contacts have shape \(5, 1\); they must be \(T,\)"),
        ({"metadata": {"when": object()}}, "metadata cannot be written as JSON"),
        ({"metadata": {"loss": float("nan")}}, "metadata cannot be written as JSON"),
    ],
)
def test_refuses_other_fields(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        Episode(FRAMES, **fields)
