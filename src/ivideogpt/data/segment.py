"""Segments: which frames of an episode a model sees, and cutting them out (paper appendix A.2).

A segment of T frames comes from a window of `horizon` frames, `step_size` recorded frames apart, that starts
anywhere in the episode with equal probability. Plain video shorter than the window first shrinks the step to
`max(1, length // horizon)`; where actions are used the step stays, so that a step always takes as many of them. What is
still missing is padded by repeating the last frame, and the mask says so.

With a step size k the actions in between are kept: an action block, k actions from the chosen frame on, oldest first,
is what one step takes. The published models drop those in between. Rewards and states are those of the chosen frames.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.data.episode import Episode
from ivideogpt.errors import ConfigError, EpisodeError, unknown_name

Selection = Literal["contiguous", "random_future", "shuffled"]


@dataclass(frozen=True)
class SegmentSpec:
    """What a segment consists of.

    Attributes:
        length: frames T of the segment, the goal included.
        context_frames: context frames t, the goal included; fewer than `length`.
        step_size: recorded frames from one frame of the window to the next.
        horizon: frames of the window; as many as the segment needs where None.
        selection: `contiguous` takes the window as it is; `random_future` takes its first frames as context and
            draws the future frames from the rest, in order of time; `shuffled` draws all frames in any order.
        goal: put the last chosen frame first as well: goal, then `length - 1` frames.

    Raises:
        ConfigError: a value is out of range, or the window is too small for the segment.
    """

    length: int
    context_frames: int
    step_size: int = 1
    horizon: int | None = None
    selection: Selection = "contiguous"
    goal: bool = False

    def __post_init__(self) -> None:
        if self.selection not in get_args(Selection):
            raise ConfigError(unknown_name("selection", self.selection, get_args(Selection)))
        least_context = 2 if self.goal else 1
        if not least_context <= self.context_frames < self.length:
            raise ConfigError(
                f"context_frames is {self.context_frames} in a segment of {self.length} frames; the range is "
                f"{least_context}..{self.length - 1}{', the goal included' if self.goal else ''}."
            )
        if self.step_size < 1:
            raise ConfigError(f"step_size is {self.step_size}; it must be at least 1.")
        if self.window < self.drawn_frames:
            raise ConfigError(
                f"horizon is {self.horizon}; a segment of {self.length} frames draws {self.drawn_frames} from it. "
                "Raise the horizon or shorten the segment."
            )
        if self.selection == "contiguous" and self.window > self.drawn_frames:
            raise ConfigError(
                f"horizon is {self.horizon}; a contiguous segment of {self.length} frames fills its horizon of "
                f"{self.drawn_frames}. Leave the horizon out."
            )

    @property
    def drawn_frames(self) -> int:
        """Frames drawn from the window: all but the goal in front."""
        return self.length - self.goal

    @property
    def window(self) -> int:
        """Frames of the window."""
        return self.drawn_frames if self.horizon is None else self.horizon

    def real_frames(self, episode_length: int, *, shrink: bool = True) -> int:
        """Drawn frames that an episode of `episode_length` frames has; the others are padding.

        Raises:
            EpisodeError: not even the context.
        """
        step = _step_that_fits(self, episode_length, shrink)
        return min(self.drawn_frames, -(-episode_length // step))


@dataclass(frozen=True, eq=False)
class FrameChoice:
    """Frames of an episode, in the order of the segment.

    Attributes:
        indices: (T,) int64, frames of the episode.
        mask: (T,) bool, True for a real frame, False for padding.
        step_size: actions k from each of them on that belong to the segment.
    """

    indices: npt.NDArray[np.int64]
    mask: npt.NDArray[np.bool_]
    step_size: int


@dataclass(frozen=True, eq=False)
class Segment:
    """A piece of an episode, ready for a batch.

    Attributes:
        frames: (T, 3, H, W) uint8.
        actions: (T, k*A) float32; `actions[j]` are those taken from frame j on, see `action_blocks`. None for plain
            video.
        rewards: (T,) float32; `rewards[j]` is received on arriving at frame j. None where not recorded.
        mask: (T,) bool, False on padding.
        states: (T, S) float32; `states[j]` is that of frame j. None where not recorded.
    """

    frames: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    mask: Tensor
    states: Tensor | None = None


class Tracks(NamedTuple):
    """What was recorded beside the frames of a whole episode, see `Episode`."""

    actions: npt.NDArray[np.float32] | None
    rewards: npt.NDArray[np.float32] | None
    states: npt.NDArray[np.float32] | None


def action_blocks(
    actions: npt.NDArray[np.float32], frames: Sequence[int] | npt.NDArray[np.int64], step_size: int
) -> npt.NDArray[np.float32]:
    """What one step from each frame takes: its action and the following ones, oldest first.

    Args:
        actions: (L, A) of a whole episode.
        frames: N frames of it.
        step_size: actions k in a block.

    Returns:
        (N, k*A); past the episode's end its last action is repeated.
    """
    moments = np.asarray(frames, np.int64)[:, None] + np.arange(step_size)
    blocks = actions[np.minimum(moments, len(actions) - 1)]
    return blocks.reshape(len(moments), step_size * actions.shape[1])


def choose_frames(
    spec: SegmentSpec, episode_length: int, rng: np.random.Generator, *, shrink: bool = True
) -> FrameChoice:
    """Draw the frames of a segment from an episode of `episode_length` frames.

    Args:
        spec: what a segment consists of.
        episode_length: frames of the episode.
        rng: decides what is drawn.
        shrink: whether a short episode shrinks the step; not where its actions are used.

    Raises:
        EpisodeError: the episode has fewer frames than the context spans.
    """
    step = _step_that_fits(spec, episode_length, shrink)
    last_start = episode_length - 1 - step * (spec.window - 1)
    start = int(rng.integers(last_start + 1)) if last_start > 0 else 0
    window = np.arange(start, episode_length, step)[: spec.window]
    if spec.selection == "random_future":
        context, rest = np.split(window, [spec.context_frames - spec.goal])
        future = rng.permutation(rest)[: spec.length - spec.context_frames]
        window = np.concatenate([context, np.sort(future)])
    elif spec.selection == "shuffled":
        window = rng.permutation(window)[: spec.drawn_frames]
    return _padded(spec, window)


def first_frames(spec: SegmentSpec, episode_length: int, *, shrink: bool = True) -> FrameChoice:
    """The segment that begins at frame 0 and goes on frame by frame, for evaluation; `selection` is ignored.

    Arguments and errors as in `choose_frames`.
    """
    step = _step_that_fits(spec, episode_length, shrink)
    return _padded(spec, np.arange(0, episode_length, step)[: spec.drawn_frames])


def cut_segment(episode: Episode, choice: FrameChoice, resolution: int | None) -> Segment:
    """Cut the chosen frames out of an episode.

    Args:
        episode: the episode that `choice` was drawn for.
        choice: frames, padding mask and how many actions each has.
        resolution: side R of the frames; see `fit_to_square`. None keeps them as recorded.
    """
    segment = segment_of(
        episode.frames[choice.indices], Tracks(episode.actions, episode.rewards, episode.states), choice
    )
    return segment if resolution is None else replace(segment, frames=fit_to_square(segment.frames, resolution))


def segment_of(frames: npt.NDArray[np.uint8], tracks: Tracks, choice: FrameChoice) -> Segment:
    """The segment of the chosen frames (N,H,W,3), which are all that was read, and the tracks of a whole episode."""
    rows, actions = choice.indices, None
    if tracks.actions is not None:
        actions = torch.from_numpy(action_blocks(tracks.actions, rows, choice.step_size))
    return Segment(
        frames=torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous(),
        actions=actions,
        rewards=None if tracks.rewards is None else torch.from_numpy(tracks.rewards[rows]),
        mask=torch.from_numpy(choice.mask),
        states=None if tracks.states is None else torch.from_numpy(tracks.states[rows]),
    )


def fit_to_square(frames: Tensor, resolution: int) -> Tensor:
    """Centre-crop frames (T, 3, H, W) uint8 to a square and resize it to (T, 3, R, R): bilinear, antialiased.

    Frames that are not square lose what lies beside the middle square; a warning says so, once.
    """
    height, width = frames.shape[-2:]
    if height != width:
        # No numbers, so that it is one warning whatever sizes the episodes have.
        warnings.warn(
            "some frames are not square: their middle square is used, and what lies beside it is not seen. If it "
            "matters, pad or resize the frames to a square yourself.",
            stacklevel=1,
        )
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = frames[..., top : top + side, left : left + side]
    if side == resolution:
        return square.contiguous()
    return to_uint8(resize(square.float(), resolution))


def resize(frames: Tensor, resolution: int) -> Tensor:
    """Resize float frames (T, 3, H, W) to (T, 3, R, R): bilinear, antialiased."""
    return F.interpolate(frames, size=(resolution, resolution), mode="bilinear", antialias=True)


def to_uint8(frames: Tensor) -> Tensor:
    """Round float frames in 0..255 to uint8."""
    return frames.round().clamp(0, 255).to(torch.uint8)


def _step_that_fits(spec: SegmentSpec, episode_length: int, shrink: bool) -> int:
    """The step size, smaller where the episode is too short for it and it may shrink."""
    needed = spec.context_frames - spec.goal
    if not shrink:
        needed = (needed - 1) * spec.step_size + 1
    if episode_length < needed:
        smaller = f" or with a step_size below {spec.step_size}" if needed > spec.context_frames - spec.goal else ""
        raise EpisodeError(
            f"the episode has {episode_length} frames; the context alone needs {needed}. "
            f"Leave the episode out, or use a model with fewer context frames{smaller}."
        )
    if shrink and episode_length < spec.step_size * spec.window:
        return max(1, episode_length // spec.window)
    return spec.step_size


def _padded(spec: SegmentSpec, frames: npt.NDArray[np.int64]) -> FrameChoice:
    """Repeat the last of the real frames up to the segment's length, and put the goal first."""
    missing = spec.drawn_frames - len(frames)
    indices = np.concatenate([frames, np.repeat(frames[-1:], missing)])
    mask = np.arange(spec.drawn_frames) < len(frames)
    if spec.goal:
        indices = np.concatenate([indices[-1:], indices])
        mask = np.concatenate([[True], mask])
    return FrameChoice(indices.astype(np.int64), mask, spec.step_size)
