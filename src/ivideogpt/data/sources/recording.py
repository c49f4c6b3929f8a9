"""What every reader of a foreign format gives: recordings, whose numbers are in memory and whose frames are streamed.

A reader knows one format and nothing else: it neither resizes, nor chooses a camera, nor repairs. `convert` makes
episodes of a store out of recordings. Shapes: T frames, A action size, S state size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ivideogpt.data.episode import JsonValue, require_track
from ivideogpt.errors import EpisodeError

Frame: TypeAlias = npt.NDArray[np.uint8]  # (H, W, 3), RGB
Frames: TypeAlias = Callable[[], Iterator[Frame]]  # from the first frame, each time it is called


@dataclass(frozen=True, eq=False)
class Recording:
    """One episode as its source has it.

    Attributes:
        name: unique within the source, the same whenever it is opened: what reports and manifests call it.
        cameras: by the source's own names, in its own order; calling one streams its frames, one in memory at a time.
            What cannot be decoded is an `EpisodeError` then.
        length: frames T of each camera as far as the source can say without decoding; None where only decoding tells.
        actions: (T, A) float32; row j is taken at frame j, on the way to frame j + 1. Where the source has T - 1, the
            last is repeated (it is never used). None for plain video.
        action_parts: names and widths of what `actions` consist of, in order: the parts of a dictionary, or one for
            each column that has a name. Empty where the source says nothing.
        rewards: (T,) float32, a row as the source has it.
        rewards_follow: whether `rewards[j]` is earned by action j, so on arriving at frame j + 1 (LeRobot's
            `next.reward`, RLDS, robomimic); else it is received on arriving at frame j.
        states: (T, S) float32, proprioception or simulator state.
        state_parts: as `action_parts`.
        language: instruction, if any.
        split: of the source (`train`, `val`, `test` ...), if it says.
        frame_rate: frames a second, if it says.
        metadata: anything else worth keeping; JSON.
    """

    name: str
    cameras: Mapping[str, Frames]
    length: int | None
    actions: npt.NDArray[np.float32] | None = None
    action_parts: tuple[tuple[str, int], ...] = ()
    rewards: npt.NDArray[np.float32] | None = None
    rewards_follow: bool = False
    states: npt.NDArray[np.float32] | None = None
    state_parts: tuple[tuple[str, int], ...] = ()
    language: str | None = None
    split: str | None = None
    frame_rate: float | None = None
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


class Source(Protocol):
    """A numbered collection of recordings in one foreign format; can be pickled, so that workers open their own.

    Opening one reads as little as numbering takes; `EpisodeError` where the whole of it cannot be used. A broken
    recording is an `EpisodeError` of `read`, or of the camera's frames, that begins with the path of the broken file
    and names value, rule and cure; the others stay readable.
    """

    def __len__(self) -> int:
        """How many recordings there are, broken ones included."""
        ...

    def name(self, index: int) -> str:
        """Name of recording `index`, also of a broken one."""
        ...

    def read(self, index: int) -> Recording:
        """Recording `index`."""
        ...


def as_track(name: str, values: Any, length: int | None) -> npt.NDArray[np.float32]:
    """Numbers with one row a frame as (T, size) float32; (T,) becomes (T, 1).

    Args:
        name: what to call them in a message.
        values: anything that numpy takes as an array of real numbers.
        length: rows there must be; None takes them as they are.

    Raises:
        EpisodeError: not real numbers, not finite, another rank or length.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "iufb":
        raise EpisodeError(f"{name} are {array.dtype}; they must be real numbers. Record them as float32.")
    with np.errstate(over="ignore"):  # require_track names the row that overflows
        track = array.astype(np.float32)
    track = track[:, None] if track.ndim == 1 else track
    require_track(name, track, rank=2, length=len(track) if length is None and track.ndim else length or 0)
    return track
