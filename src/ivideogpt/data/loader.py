"""Batches of segments whose content follows from (seed, step) alone, whatever prepares them and wherever it starts.

Shapes: B segments, T frames, R resolution, A action size, S state size.
"""

from __future__ import annotations

import signal
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ivideogpt.data.augment import NONE, AugmentSpec, augment
from ivideogpt.data.episode import Episode
from ivideogpt.data.processes import readable_worker_errors, require_shared_memory
from ivideogpt.data.segment import FrameChoice, Segment, SegmentSpec, Tracks, choose_frames, cut_segment, segment_of
from ivideogpt.errors import ConfigError, EpisodeError, InputError


class EpisodeSource(Protocol):
    """A numbered collection of episodes."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def read(self, index: int) -> Episode:
        """Episode `index`."""
        ...


@runtime_checkable
class TrackSource(EpisodeSource, Protocol):
    """One that can read an episode's numbers without its frames."""

    def read_tracks(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """States (T,S) and actions (T,A) or None of episode `index`."""
        ...


@runtime_checkable
class PartSource(EpisodeSource, Protocol):
    """One that can read single frames; nothing of it is kept in memory."""

    def length(self, index: int) -> int:
        """Frames of episode `index`."""
        ...

    def frames(self, index: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Frames (N,H,W,3) of episode `index`, in the order of `rows`."""
        ...

    def tracks(self, index: int) -> Tracks:
        """What was recorded beside the frames of episode `index`."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Segments of one length.

    Attributes:
        frames: (B, T, 3, R, R) uint8.
        actions: (B, T, A) float32; `actions[:, j]` is taken at frame j; with a step size k the k actions from frame j
            on, (B, T, k*A), see `segment.action_blocks`. None for plain video.
        rewards: (B, T) float32; `rewards[:, j]` is received on arriving at frame j. None where not recorded.
        mask: (B, T) bool, False on padding.
        states: (B, T, S) float32, that of each frame. None where they were not asked for.
    """

    frames: Tensor
    actions: Tensor | None
    rewards: Tensor | None
    mask: Tensor
    states: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        return Batch(
            frames=self.frames.to(device),
            actions=None if self.actions is None else self.actions.to(device),
            rewards=None if self.rewards is None else self.rewards.to(device),
            mask=self.mask.to(device),
            states=None if self.states is None else self.states.to(device),
        )


def split_episodes(count: int, validation_every: int = 100, seed: int = 0) -> tuple[list[int], list[int]]:
    """Divide episodes 0 .. count - 1 into those to train on and those held out.

    Args:
        count: episodes in the dataset, at least 2, so that neither side is empty.
        validation_every: one episode in this many is held out; at least 2.
        seed: which of them: episode `seed % validation_every` is the first.

    Returns:
        Indices for training and for validation, both rising.

    Raises:
        EpisodeError: fewer than 2 episodes.
        ConfigError: `validation_every` below 2.
    """
    if count < 2:
        raise EpisodeError(
            f"the dataset has {count} episode{'' if count == 1 else 's'}; training needs at least 2, one of them held "
            "out for validation. Record more."
        )
    if validation_every < 2:
        raise ConfigError(f"validation_every is {validation_every}; it must be at least 2.")
    period = min(validation_every, count)
    held_out = range(seed % period, count, period)
    return [index for index in range(count) if index not in held_out], list(held_out)


class SegmentLoader:
    """Batches of segments from episodes drawn with equal probability.

    Batch number `step` is a pure function of (seed, step): a run that resumes at any step sees what it would have
    seen, and worker processes change nothing but the speed.

    Args:
        source: the episodes.
        indices: which of them to draw from.
        spec: what a segment consists of.
        resolution: side R of the frames.
        batch_size: segments B in a batch.
        seed: decides episodes, frames and augmentation.
        augment: ranges of the augmentation.
        workers: processes that prepare batches ahead in `iterate`; 0 prepares them in this process.
        cache_mb: memory for episodes already read, shared out among the workers.
        states: whether batches carry the episodes' states.

    Raises:
        ConfigError: no episodes to draw from, or a batch size below 1.
    """

    def __init__(
        self,
        source: EpisodeSource,
        indices: Sequence[int],
        spec: SegmentSpec,
        resolution: int,
        batch_size: int,
        seed: int,
        augment: AugmentSpec = NONE,
        workers: int = 0,
        cache_mb: int = 1024,
        states: bool = False,
    ) -> None:
        if not indices:
            raise ConfigError("indices is empty; a loader needs at least one episode to draw from.")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
        self.indices = list(indices)
        self.spec = spec
        self.resolution = resolution
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.workers = workers
        self.states = states
        self._parts = source if isinstance(source, PartSource) else None
        self._episodes = _EpisodeCache(source, limit=cache_mb * 2**20 // max(1, workers))

    def batch_at(self, step: int) -> Batch:
        """Batch number `step`.

        Raises:
            EpisodeError: an episode cannot be read, is shorter than its context, or does not go with the others.
        """
        return _stack([self._segment(step, row) for row in range(self.batch_size)])

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        """Batches from number `start_step` on, for ever; raises as `batch_at` does."""
        if self.workers == 0:
            return map(self.batch_at, _StepsFrom(start_step))
        return self._iterate_in_workers(start_step)

    def _iterate_in_workers(self, start_step: int) -> Iterator[Batch]:
        require_shared_memory(self.workers, self.batch_size * self.spec.length * 3 * self.resolution**2)
        loader: DataLoader[Batch | InputError] = DataLoader(
            _Steps(self.batch_at),
            batch_size=None,
            sampler=_StepsFrom(start_step),
            num_workers=self.workers,
            multiprocessing_context="forkserver",
            worker_init_fn=_ignore_signals,
            generator=torch.Generator(),  # its own, so that the global random stream stays as it was
        )
        with readable_worker_errors():
            for batch in loader:
                if isinstance(batch, InputError):
                    raise batch
                yield batch

    def _segment(self, step: int, row: int) -> Segment:
        rng = np.random.default_rng((self.seed, step, row))
        index = self.indices[rng.integers(len(self.indices))]
        segment = self._read_part(index, rng) if self._parts is not None else self._cut(index, rng)
        frames = augment(segment.frames, self.augment, self.resolution, rng)
        states = segment.states if self.states else None
        return Segment(frames, segment.actions, segment.rewards, segment.mask, states)

    def _cut(self, index: int, rng: np.random.Generator) -> Segment:
        episode = self._episodes.read(index)
        choice = self._choose(index, episode.length, rng, shrink=episode.actions is None)
        return cut_segment(episode, choice, resolution=None)

    def _read_part(self, index: int, rng: np.random.Generator) -> Segment:
        """The same without reading any other frame."""
        assert self._parts is not None, "the source reads parts"
        tracks = self._parts.tracks(index)
        choice = self._choose(index, self._parts.length(index), rng, shrink=tracks.actions is None)
        return segment_of(self._parts.frames(index, choice.indices), tracks, choice)

    def _choose(self, index: int, length: int, rng: np.random.Generator, *, shrink: bool) -> FrameChoice:
        try:
            return choose_frames(self.spec, length, rng, shrink=shrink)
        except EpisodeError as error:
            raise EpisodeError(f"episode {index} of the dataset: {error}") from error


class _EpisodeCache:
    """The episodes used last, as many as fit into `limit` bytes."""

    def __init__(self, source: EpisodeSource, limit: int) -> None:
        self._source = source
        self._limit = limit
        self._bytes = 0
        self._episodes: OrderedDict[int, Episode] = OrderedDict()

    def __reduce__(self) -> tuple[type[_EpisodeCache], tuple[EpisodeSource, int]]:
        """Travel to a worker process empty: reading an episode there is cheaper than sending it."""
        return _EpisodeCache, (self._source, self._limit)

    def read(self, index: int) -> Episode:
        if index in self._episodes:
            self._episodes.move_to_end(index)
            return self._episodes[index]
        episode = self._source.read(index)
        self._episodes[index] = episode
        self._bytes += _size(episode)
        while self._bytes > self._limit and self._episodes:
            _, oldest = self._episodes.popitem(last=False)
            self._bytes -= _size(oldest)
        return episode


class _Steps(Dataset["Batch | InputError"]):
    """Batches by their number. A user's mistake travels as a value: a worker would wrap it into its traceback."""

    def __init__(self, batch_at: Callable[[int], Batch]) -> None:
        self._batch_at = batch_at

    def __getitem__(self, step: int) -> Batch | InputError:
        try:
            return self._batch_at(step)
        except InputError as error:
            return error


class _StepsFrom(Sampler[int]):
    """start, start + 1, ... for ever."""

    def __init__(self, start: int) -> None:
        self._start = start

    def __iter__(self) -> Iterator[int]:
        step = self._start
        while True:
            yield step
            step += 1


def _ignore_signals(worker: int) -> None:
    """A signal to the whole group of processes is for the training, which may finish its step; its workers end with it.

    Here and not only before the process begins: torch gives its workers a handler of their own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _size(episode: Episode) -> int:
    arrays = (episode.frames, episode.actions, episode.rewards, episode.states)
    return sum(array.nbytes for array in arrays if array is not None)


def _stack(segments: list[Segment]) -> Batch:
    return Batch(
        frames=torch.stack([segment.frames for segment in segments]),
        actions=_stack_optional("actions", [segment.actions for segment in segments]),
        rewards=_stack_optional("rewards", [segment.rewards for segment in segments]),
        mask=torch.stack([segment.mask for segment in segments]),
        states=_stack_optional("states", [segment.states for segment in segments]),
    )


def _stack_optional(name: str, tracks: list[Tensor | None]) -> Tensor | None:
    """Stack what either all segments have or none, in one shape."""
    present = [track for track in tracks if track is not None]
    if not present:
        return None
    shapes = {tuple(track.shape[1:]) for track in present}
    if len(present) < len(tracks) or len(shapes) > 1:
        sizes = sorted({"none" if track is None else str(track.shape[1:].numel()) for track in tracks})
        raise EpisodeError(
            f"{name} differ between the episodes of the dataset ({name} per frame: {' and '.join(sizes)}); one dataset "
            "has one kind. Keep episodes of another kind in another folder."
        )
    return torch.stack(present)
