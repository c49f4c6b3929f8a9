"""Where imagined worlds begin: sources of context frames.

Shapes: N contexts, t context frames, R resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ivideogpt.config import DataFacts
from ivideogpt.data.segment import fit_to_square
from ivideogpt.data.sources.npz import NpzFolder
from ivideogpt.data.store import Store, is_store, stored_name
from ivideogpt.envs.record import EVALUATION_SEEDS_FROM, TRAINING_SEEDS, pusht_episode
from ivideogpt.errors import ConfigError, EpisodeError, ShapeError
from ivideogpt.sequence import TokenLayout

PUSHT = "pusht"

Frames = npt.NDArray[np.uint8]


@runtime_checkable
class ContextSource(Protocol):
    """Draws contexts; whatever has this method can be given as `contexts`."""

    def draw(self, rng: np.random.Generator) -> tuple[Frames, str]:
        """One context.

        Args:
            rng: the only randomness to use, so that a seed decides what is drawn.

        Returns:
            Frames (t,R,R,3) uint8, oldest first, with a goal the goal before them; and their origin in words.
        """
        ...


class PushTOpenings:
    """The first frames of Push-T episodes, simulated when they are drawn. Origins look like `pusht:900003@0`.

    Args:
        context_frames: t.
        resolution: R.
        seeds: of the episodes. Below 100,000 for training; 900,000 and up for evaluation only.
        step_size: recorded frames from one frame of a context to the next, as the model was trained.

    Raises:
        ConfigError: no seeds, some that are neither for training nor for evaluation, or a step size below 1.
    """

    def __init__(self, context_frames: int, resolution: int, seeds: range = TRAINING_SEEDS, step_size: int = 1) -> None:
        _require_step_size(step_size)
        ends = (seeds[0], seeds[-1]) if seeds else ()
        trains = all(seed in TRAINING_SEEDS for seed in ends)
        evaluates = all(seed >= EVALUATION_SEEDS_FROM for seed in ends)
        if not ends or not (trains or evaluates):
            raise ConfigError(
                f"seeds is {seeds}; it must name at least one seed, all in 0..{TRAINING_SEEDS[-1]} (training) or all "
                f"from {EVALUATION_SEEDS_FROM} on (evaluation)."
            )
        self.context_frames, self.resolution, self.seeds = context_frames, resolution, seeds
        self.step_size = step_size

    def draw(self, rng: np.random.Generator) -> tuple[Frames, str]:
        """Simulate the opening of a random seed."""
        seed = self.seeds[int(rng.integers(len(self.seeds)))]
        span = (self.context_frames - 1) * self.step_size + 1
        frames = pusht_episode(seed, length=max(span, 2)).frames[: span : self.step_size]
        return _fitted(frames, self.resolution), f"{PUSHT}:{seed}@0"


class EpisodeFolder:
    """Random places in the `.npz` episodes of a folder, or in those of a store. Origins look like
    `data/episode_000012.npz@17` or `store#episode_000012@17`.

    Args:
        folder: holds the episodes; each is as likely as any other, and so is each start in it.
        context_frames: t.
        resolution: R; frames are cropped to a square and resized.
        step_size: recorded frames from one frame of a context to the next, as the model was trained.
        camera_key: which array of a file holds the frames, or which camera of a store.

    Raises:
        EpisodeError: the folder is missing or holds no episode file; when drawing also a damaged or too short episode.
        ConfigError: a step size below 1.
    """

    def __init__(
        self, folder: Path | str, context_frames: int, resolution: int, step_size: int = 1, camera_key: str = "image"
    ) -> None:
        _require_step_size(step_size)
        reader = Store if is_store(Path(folder).expanduser()) else NpzFolder
        self.episodes = reader(folder, camera_key, action_key=None)
        self.context_frames, self.resolution, self.step_size = context_frames, resolution, step_size

    def draw(self, rng: np.random.Generator) -> tuple[Frames, str]:
        """Read a random episode and cut a random place out of it."""
        index = int(rng.integers(len(self.episodes)))
        name, length = self._name(index), self.episodes.length(index)
        span = (self.context_frames - 1) * self.step_size + 1
        if length < span:
            raise EpisodeError(
                f"{name}: {length} frames are too few for {self.context_frames} context frames with a step "
                f"size of {self.step_size}. Remove the episode from the folder, or take a smaller step size."
            )
        start = int(rng.integers(length - span + 1))
        rows = np.arange(start, start + span, self.step_size)
        return _fitted(self._frames(index, rows), self.resolution), f"{name}@{start}"

    def _frames(self, index: int, rows: npt.NDArray[np.int64]) -> Frames:
        if isinstance(self.episodes, Store):
            return self.episodes.frames(index, rows)
        return self.episodes.read(index).frames[rows]

    def _name(self, index: int) -> str:
        name = self.episodes.name(index)
        folder = self.episodes.folder
        return stored_name(folder, name) if isinstance(self.episodes, Store) else str(folder / name)


class GivenContexts:
    """Contexts from an array or tensor, each as likely as any other. Origins look like `contexts[3]`.

    Args:
        contexts: (N,t,R,R,3) or (N,t,3,R,R), uint8 or float in [0,1]. A uint8 array is not copied.

    Raises:
        ShapeError: another shape, type or range, or no context.
    """

    def __init__(self, contexts: npt.NDArray[Any] | Tensor) -> None:
        array = contexts.detach().cpu().numpy() if isinstance(contexts, Tensor) else contexts
        if array.ndim == 5 and array.shape[-1] != 3 and array.shape[2] == 3:
            array = array.transpose(0, 1, 3, 4, 2)
        if array.ndim != 5 or array.shape[-1] != 3 or 0 in array.shape:
            raise ShapeError(
                f"contexts have shape {tuple(contexts.shape)}; give (N, t, R, R, 3) or (N, t, 3, R, R): N contexts of "
                "t frames each."
            )
        self.frames = _as_uint8(array)

    def draw(self, rng: np.random.Generator) -> tuple[Frames, str]:
        """One of the contexts."""
        index = int(rng.integers(len(self.frames)))
        return self.frames[index], f"contexts[{index}]"


def open_contexts(
    contexts: str | Path | npt.NDArray[Any] | Tensor | ContextSource,
    layout: TokenLayout,
    resolution: int,
    facts: DataFacts | None = None,
) -> ContextSource:
    """The source that a user means.

    Args:
        contexts: `"pusht"` for fresh Push-T openings, a folder of `.npz` episodes, an array or tensor (see
            `GivenContexts`), or any `ContextSource`.
        layout: of the model that will continue the contexts.
        resolution: R, of the same model.
        facts: on the data of the same model, for its step size and camera key; 1 and `image` where not known.

    Raises:
        ConfigError: none of these, a goal would be needed that the source does not know, or the source has another step
            size than the model.
        EpisodeError, ShapeError: a folder or an array with a fault.
    """
    step_size = 1 if facts is None else facts.steps_of(None)
    camera_key = (None if facts is None else facts.camera_key) or "image"
    if isinstance(contexts, (np.ndarray, Tensor)):
        return GivenContexts(contexts)
    if isinstance(contexts, (str, Path)):
        if layout.goal:
            raise ConfigError(
                f"contexts is {str(contexts)!r}, but this model is led by a goal frame, which that cannot choose. "
                "Give an array (N, t, R, R, 3) of contexts with the goal first, or a ContextSource."
            )
        if contexts == PUSHT:
            return PushTOpenings(layout.context_frames, resolution, step_size=step_size)
        if Path(contexts).is_dir():
            return EpisodeFolder(contexts, layout.context_frames, resolution, step_size, camera_key)
    elif isinstance(contexts, ContextSource) and not isinstance(contexts, type):
        own = getattr(contexts, "step_size", None)
        if facts is not None and isinstance(own, int) and layout.context_frames > 1:
            facts.steps_of(own)
        return contexts
    raise ConfigError(
        f"contexts is {contexts!r}, which is neither {PUSHT!r} nor an existing folder. Available: {PUSHT!r} (fresh "
        "Push-T openings), a folder of .npz episodes, an array (N, t, R, R, 3) of contexts, or an object with a "
        "method draw(rng) -> (frames, origin)."
    )


def draw_contexts(
    source: ContextSource, generators: Sequence[np.random.Generator], expected: tuple[int, ...]
) -> tuple[Frames, list[str]]:
    """Draw one context from each generator, checked.

    Args:
        source: where from.
        generators: n.
        expected: (t,R,R,3), what the model takes.

    Returns:
        Contexts (n,t,R,R,3) and their origins.

    Raises:
        ShapeError: the source draws something else.
    """
    drawn, origins = [], []
    for rng in generators:
        frames, origin = source.draw(rng)
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.shape != expected:
            found = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else f"a {type(frames).__name__}"
            raise ShapeError(
                f"{type(source).__name__} drew {found} as the context {origin!r}; this model takes a uint8 array of "
                f"shape (t, R, R, 3) = {expected}."
            )
        drawn.append(frames)
        origins.append(str(origin))
    return np.stack(drawn), origins


def _require_step_size(step_size: int) -> None:
    if step_size < 1:
        raise ConfigError(f"step_size is {step_size}; it must be at least 1.")


def _fitted(frames: Frames, resolution: int) -> Frames:
    """Frames (t,H,W,3) as (t,R,R,3)."""
    fitted = fit_to_square(torch.from_numpy(frames).permute(0, 3, 1, 2), resolution)
    return np.ascontiguousarray(fitted.permute(0, 2, 3, 1).numpy())


def _as_uint8(frames: npt.NDArray[Any]) -> Frames:
    if frames.dtype == np.uint8:
        return frames
    if frames.dtype.kind != "f":
        raise ShapeError(f"contexts have type {frames.dtype}; give uint8 in 0..255 or float in [0, 1].")
    low, high = frames.min(), frames.max()
    if not (low >= 0 and high <= 1):  # false for NaN as well
        raise ShapeError(
            f"float contexts must lie in [0, 1] and be finite; these lie in [{low:g}, {high:g}]. "
            "Divide 0..255 frames by 255, or give uint8."
        )
    return np.rint(frames * 255).astype(np.uint8)
