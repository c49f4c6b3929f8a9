"""Episode: one recorded video with what was done and received along it; all above trust its checks."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ivideogpt.errors import EpisodeError

JsonValue: TypeAlias = "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


@dataclass(frozen=True, eq=False)
class Episode:
    """Frames of one episode and, where they were recorded, its actions, rewards, simulator states and contacts.

    Attributes:
        frames: (T, H, W, 3) uint8, RGB, at least one frame.
        actions: (T, A) float32, finite; `actions[j]` is taken at frame j, on the way to frame j + 1, so the
            last row is unused. None for plain video.
        rewards: (T,) float32, finite; `rewards[j]` is received on arriving at frame j, so the first is 0.
        states: (T, S) float32, finite; the truth about objects or the robot at each frame, for evaluation and to learn.
        contacts: (T,) float32, finite; `contacts[j]` counts how often the simulator found the agent touching an
            object on the way to frame j, so the first is 0.
        metadata: where the episode comes from; must survive a round trip through JSON.

    Raises:
        EpisodeError: an array has the wrong type, rank, channel order, length or values.
    """

    frames: npt.NDArray[np.uint8]
    actions: npt.NDArray[np.float32] | None = None
    rewards: npt.NDArray[np.float32] | None = None
    states: npt.NDArray[np.float32] | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)
    contacts: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        _check_frames(self.frames)
        require_track("actions", self.actions, rank=2, length=self.length)
        require_track("rewards", self.rewards, rank=1, length=self.length)
        require_track("states", self.states, rank=2, length=self.length)
        require_track("contacts", self.contacts, rank=1, length=self.length)
        _check_metadata(self.metadata)

    @property
    def length(self) -> int:
        """Number of frames T."""
        return len(self.frames)

    @property
    def action_size(self) -> int | None:
        """Width A of an action, or None for plain video."""
        return None if self.actions is None else self.actions.shape[1]


def require_channels_last(shape: tuple[int, ...], name: str = "frames") -> None:
    """Check that `shape` is (T, H, W, 3) with at least one frame of at least one pixel.

    Raises:
        EpisodeError: another rank, channels in front, not three channels, or nothing in it.
    """
    if len(shape) != 4:
        raise EpisodeError(f"{name} have shape {shape}; they must be (T, H, W, 3): the RGB frames of one episode.")
    _, second, _, last = shape
    if last != 3 and second == 3:
        raise EpisodeError(
            f"{name} have shape {shape}, channels first; they must be (T, H, W, 3). "
            "Transpose them: frames.transpose(0, 2, 3, 1)."
        )
    if last != 3 and second % 3 == 0 and 0 < second < min(shape[2:]):
        raise EpisodeError(
            f"{name} have shape {shape}, channels first, {second // 3} frames stacked as channels; they must "
            "be (T, H, W, 3). Keep one frame and transpose: frames[:, -3:].transpose(0, 2, 3, 1)."
        )
    if last != 3:
        raise EpisodeError(
            f"{name} have shape {shape}, {last} channels; they must be RGB, (T, H, W, 3). "
            "Convert grey frames by repeating the channel, and drop alpha or depth."
        )
    if 0 in shape:
        raise EpisodeError(f"{name} have shape {shape}; an episode needs at least one frame of one pixel.")


def _check_frames(frames: Any) -> None:
    if not isinstance(frames, np.ndarray):
        raise EpisodeError(f"frames are a {type(frames).__name__}; they must be a numpy array of uint8.")
    require_channels_last(frames.shape)
    if frames.dtype != np.uint8:
        raise EpisodeError(
            f"frames are {frames.dtype}; they must be uint8 in 0..255. Multiply frames in [0, 1] by 255 and round them."
        )


def require_track(name: str, values: Any, rank: int, length: int) -> None:
    """Check an optional array with one row per frame.

    Raises:
        EpisodeError: not float32, another rank or length, no columns, or a value that is not finite.
    """
    if values is None:
        return
    if not isinstance(values, np.ndarray) or values.dtype != np.float32:
        found = values.dtype if isinstance(values, np.ndarray) else f"a {type(values).__name__}"
        raise EpisodeError(f"{name} are {found}; they must be a numpy array of float32. Convert them.")
    if values.ndim != rank:
        wanted = "(T,)" if rank == 1 else "(T, size)"
        raise EpisodeError(f"{name} have shape {values.shape}; they must be {wanted}. Reshape them.")
    if len(values) != length:
        raise EpisodeError(
            f"{name} have {len(values)} rows for {length} frames; there must be one row per frame. "
            f"{_length_cure(name, len(values), length)}"
        )
    if rank == 2 and values.shape[1] == 0:
        raise EpisodeError(f"{name} have shape {values.shape}, no columns. Leave {name} out (None) instead.")
    bad = ~np.isfinite(values.reshape(length, -1)).all(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise EpisodeError(
            f"{name} row {row} is {values[row].tolist()}; all {name} must be finite. "
            f"Mend the recording, or cut the episode before frame {row}."
        )


def _length_cure(name: str, rows: int, length: int) -> str:
    if name == "actions" and rows == length - 1:
        return "Append one row for the last frame: it is never used."
    if name == "rewards" and rows == length - 1:
        return "Put a 0 in front: a reward belongs to the frame on which it is received."
    if name == "contacts" and rows == length - 1:
        return "Put a 0 in front: contacts belong to the frame to which they lead."
    return f"Cut {name} and frames to the same length."


def _check_metadata(metadata: Mapping[str, JsonValue]) -> None:
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise EpisodeError(
            f"metadata cannot be written as JSON ({error}). Keep to text, finite numbers, lists and mappings."
        ) from error
