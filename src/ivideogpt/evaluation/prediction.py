"""Predicting recorded episodes and scoring it: does the model imagine what really happened, and follow the actions?

Every prediction stands beside a baseline, copying the last context frame, and an upper bound, the tokenizer's own
reconstruction of the true frames. Imagining again with wrong actions shows what the actions are worth.

Shapes: B episodes, T = t + F sequence frames, t context frames, F future frames (the horizon), A action size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.data.episode import Episode
from ivideogpt.data.segment import action_blocks, fit_to_square
from ivideogpt.errors import EpisodeError
from ivideogpt.evaluation.frame_metrics import psnr, ssim
from ivideogpt.evaluation.pusht_probe import Objects, probe_objects, stack_objects
from ivideogpt.inference import Imagines

_PUSHT_STATE_SIZE = 5
_PROBED = ("real", "reconstruction", "imagined")  # videos in which the Push-T objects are looked for


@dataclass(frozen=True)
class FrameScores:
    """How near one video's future frames come to the real ones."""

    psnr: Tensor
    """(F,) dB."""
    ssim: Tensor
    """(F,)."""


@dataclass(frozen=True, eq=False)
class Prediction:
    """One episode, real and imagined. Videos are (T, 3, H, W) uint8, the context frames first, on the CPU."""

    real: Tensor
    """What was recorded."""
    imagined: Tensor
    """What the model imagines from the context frames and the recorded actions."""
    copy_last: Tensor
    """The last context frame, repeated: the baseline."""
    reconstruction: Tensor
    """The real frames through the tokenizer and back: the upper bound."""
    shuffled: Tensor | None
    """Imagined with the actions of another time or episode; None where the model takes none or there is only one."""
    context_frames: int
    """t."""
    scores: Mapping[str, FrameScores]
    """Scores of the videos above by name, from the frames before they were rounded to uint8."""
    objects: Mapping[str, Objects] = field(default_factory=dict)
    """For Push-T: the objects, (F,) a figure, in the real, reconstructed and imagined video by name."""
    actions: Tensor | None = None
    """(T, k*A) as recorded from each frame on, in their order, k the step size; None where the model takes none."""
    states: np.ndarray[Any, Any] | None = None
    """For Push-T: the simulator's (F+1, 5), from the last context frame on."""

    @property
    def metrics(self) -> dict[str, Any]:
        """JSON-ready figures, as `summarize` gives them."""
        return summarize([self])


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Predictions of many episodes, and what they add up to."""

    predictions: list[Prediction]
    """In the order of the episodes."""
    metrics: dict[str, Any]
    """JSON-ready figures, as `summarize` gives them."""


@dataclass(frozen=True)
class _Batch:
    """Segments cut from some episodes, on the CPU."""

    frames: Tensor  # (B, T, 3, H, W) uint8
    actions: Tensor | None  # (B, T, k*A)
    shuffled_actions: Tensor | None  # (B, T, k*A)
    states: list[np.ndarray[Any, Any] | None]  # (F+1, 5) for each episode of Push-T, see `Prediction`

    def part(self, start: int, size: int) -> _Batch:
        rows = slice(start, start + size)
        actions, shuffled = (None if x is None else x[rows] for x in (self.actions, self.shuffled_actions))
        return _Batch(self.frames[rows], actions, shuffled, self.states[rows])


def predict_episode(
    world_model: Imagines,
    episode: Episode,
    *,
    start: int = 0,
    horizon: int = 14,
    step_size: int | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
) -> Prediction:
    """Predict one episode from its context frames; the shuffled actions are its own in another order of time.

    Args:
        world_model: the model.
        episode: frames of any size (they are cropped and resized as in training), with actions where the model takes
            them.
        start: first context frame.
        horizon: future frames F, at least 1.
        step_size: recorded frames k from one frame of the prediction to the next; a step takes an action block, k
            actions of the episode. Left out: the model's own, which a given one may not contradict.
        seed: decides every draw.
        sampling: how tokens are drawn; the model's own way where left out.

    Raises:
        ConfigError: another step size than the model was trained with.
        EpisodeError: too few frames, or actions that the model cannot take.
        ShapeError: a horizon that is too long for the model.
    """
    [prediction] = predict_episodes(
        world_model, [episode], start=start, horizon=horizon, step_size=step_size, seed=seed, sampling=sampling
    )
    return prediction


def predict_episodes(
    world_model: Imagines,
    episodes: Sequence[Episode],
    *,
    start: int = 0,
    horizon: int = 14,
    step_size: int | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
) -> Iterator[Prediction]:
    """Predict many episodes in batches, one after the other.

    Episode i draws from the stream of seed + i, so its future does not depend on the batch; its shuffled actions are
    those of another episode. Arguments and errors as in `predict_episode`.
    """
    segments = _cut_segments(world_model, episodes, start, horizon, world_model.facts.steps_of(step_size), seed)
    for first in range(0, len(episodes), batch_size):
        batch = segments.part(first, batch_size)
        seeds = [seed + first + i for i in range(len(batch.frames))]
        yield from _predict_batch(world_model, batch, horizon, seeds, sampling)


def evaluate_episodes(
    world_model: Imagines,
    episodes: Sequence[Episode],
    *,
    start: int = 0,
    horizon: int = 14,
    step_size: int | None = None,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Predict many episodes, one sample each, and sum up.

    Args:
        progress: called with (done, total) after each episode.
        world_model, episodes, start, horizon, step_size, seed, sampling, batch_size: as in `predict_episodes`.

    Raises:
        ConfigError, EpisodeError, ShapeError: as in `predict_episode`.
    """
    predictions = []
    for prediction in predict_episodes(
        world_model,
        episodes,
        start=start,
        horizon=horizon,
        step_size=step_size,
        seed=seed,
        sampling=sampling,
        batch_size=batch_size,
    ):
        predictions.append(prediction)
        if progress is not None:
            progress(len(predictions), len(episodes))
    return Evaluation(predictions, summarize(predictions))


def summarize(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """JSON-ready figures over the future frames of at least one prediction.

    `psnr` and `ssim`: means by video. `share_of_ceiling`: how far the imagined PSNR stands on the way from copying the
    last frame to the tokenizer's reconstruction. `psnr_lost_by_shuffling`: what wrong actions cost, dB. `objects`: see
    `Objects.summary`. `per_frame` and `per_episode`: the same, resolved. What does not exist is None.
    """
    names = list(predictions[0].scores)
    psnrs = {name: torch.stack([p.scores[name].psnr for p in predictions]) for name in names}
    ssims = {name: torch.stack([p.scores[name].ssim for p in predictions]) for name in names}
    mean_psnr = {name: float(values.mean()) for name, values in psnrs.items()}
    shuffled = mean_psnr.get("shuffled")
    return {
        "episodes": len(predictions),
        "context_frames": predictions[0].context_frames,
        "horizon": psnrs["imagined"].shape[1],
        "psnr": mean_psnr,
        "ssim": {name: float(values.mean()) for name, values in ssims.items()},
        "share_of_ceiling": _share_of_ceiling(mean_psnr),
        "psnr_lost_by_shuffling": None if shuffled is None else mean_psnr["imagined"] - shuffled,
        "objects": _summarize_objects(predictions),
        "per_frame": {
            "psnr": {name: values.mean(dim=0).tolist() for name, values in psnrs.items()},
            "ssim": {name: values.mean(dim=0).tolist() for name, values in ssims.items()},
        },
        "per_episode": {
            "psnr": {name: values.mean(dim=1).tolist() for name, values in psnrs.items()},
            "ssim": {name: values.mean(dim=1).tolist() for name, values in ssims.items()},
        },
    }


def headline(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of `summarize` that fit on a screen: without those per frame and per episode, and without None."""
    return {
        name: headline(value) if isinstance(value, Mapping) else value
        for name, value in metrics.items()
        if value is not None and not name.startswith("per_")
    }


def shuffle_actions(actions: Tensor, used: range, seed: int) -> Tensor | None:
    """Give every row the actions of another episode, or a single row its own in another order of time.

    Args:
        actions: (B, T, A).
        used: the frames whose action is used.
        seed: decides the order.

    Returns:
        (B, T, A) where no row (or, with one row, no used frame) keeps its actions; None where there is only one.
    """
    rng = np.random.default_rng(seed)
    if len(actions) > 1:
        return actions[_derangement(len(actions), rng)]
    if len(used) < 2:
        return None
    shuffled = actions.clone()
    shuffled[:, used.start : used.stop] = actions[:, used.start + _derangement(len(used), rng)]
    return shuffled


def _cut_segments(
    world_model: Imagines, episodes: Sequence[Episode], start: int, horizon: int, step_size: int, seed: int
) -> _Batch:
    layout, config = world_model.transformer.layout, world_model.transformer.config
    frames = layout.context_frames + horizon  # of the sequence, where a goal comes first
    length = frames - 1 if layout.goal else frames  # of the video
    order = [start + step_size * index for index in layout.frame_order(length)]
    if not episodes:
        raise EpisodeError("there are 0 episodes to predict; give at least one.")
    for episode in episodes:
        _require_usable(episode, start, step_size * (length - 1) + 1, config.action_dim, step_size)
    videos = [torch.from_numpy(episode.frames[order]).movedim(-1, 1) for episode in episodes]
    fitted = torch.stack([fit_to_square(video, world_model.tokenizer.config.resolution) for video in videos])
    actions = shuffled = None
    if config.action_dim is not None:
        taken = [episode.actions for episode in episodes if episode.actions is not None]
        actions = torch.from_numpy(np.stack([action_blocks(track, order, step_size) for track in taken]))
        shuffled = shuffle_actions(actions, layout.action_frames(frames), seed)
    states = [_pusht_states(episode, order[layout.context_frames - 1 :]) for episode in episodes]
    return _Batch(fitted, actions, shuffled, states)


def _require_usable(episode: Episode, start: int, length: int, action_dim: int | None, step_size: int) -> None:
    if start < 0 or start + length > episode.length:
        raise EpisodeError(
            f"the episode has {episode.length} frames; a prediction that spans {length} frames (context and "
            f"horizon) from frame {start} needs {start + length}. Start earlier, shorten the horizon, or give a longer "
            "episode."
        )
    size = episode.action_size
    if action_dim is None or (size is not None and step_size * size == action_dim):
        return
    found = "no actions" if size is None else f"actions of size {size}"
    if size is not None and step_size > 1:
        found += f", {step_size * size} numbers with step size {step_size}"
    blocks = action_dim // size if size is not None and action_dim % size == 0 else 1
    likely = f" Perhaps its step size is {blocks}." if blocks not in (1, step_size) else ""
    raise EpisodeError(
        f"the episode has {found}; this model takes actions of size {action_dim}. With step size k a model takes k "
        f"actions in one step.{likely} Give the step size and an episode of the environment that the model was trained "
        "on, or another model."
    )


def _pusht_states(episode: Episode, frames: Sequence[int]) -> np.ndarray[Any, Any] | None:
    states = episode.states
    if episode.metadata.get("env") != "pusht" or states is None or states.shape[1] != _PUSHT_STATE_SIZE:
        return None
    return states[frames]


@torch.no_grad()
def _predict_batch(
    world_model: Imagines, batch: _Batch, horizon: int, seeds: list[int], sampling: SamplingConfig | None
) -> Iterator[Prediction]:
    t = world_model.transformer.layout.context_frames
    frames = batch.frames.to(world_model.device)
    real = frames.float() / 255

    def imagine(actions: Tensor | None) -> Tensor:
        rollout = world_model.rollout(frames[:, :t], actions, horizon=horizon, seed=seeds, sampling=sampling)
        return rollout.video[:, 0]

    told = world_model.transformer.states is not None  # what its tokens leave to the states
    videos = {
        "imagined": imagine(batch.actions),
        "copy_last": torch.cat([real[:, :t], real[:, t - 1 : t].expand(-1, horizon, -1, -1, -1)], dim=1),
        "reconstruction": world_model.tokenizer.reconstruct(frames, told=told).float(),
    }
    if batch.shuffled_actions is not None:
        videos["shuffled"] = imagine(batch.shuffled_actions)
    future = {name: (video[:, t:], real[:, t:]) for name, video in videos.items()}
    scores = {name: (psnr(*pair).cpu(), ssim(*pair).cpu()) for name, pair in future.items()}
    on_cpu = {name: video.cpu() for name, video in {"real": real, **videos}.items()}
    for i, states in enumerate(batch.states):
        shown = {name: (video[i] * 255).round().to(torch.uint8) for name, video in on_cpu.items()}
        objects = {}
        if states is not None:
            objects = {name: probe_objects(on_cpu[name][i, t:], states[1:]) for name in _PROBED}
        yield Prediction(
            real=shown["real"],
            imagined=shown["imagined"],
            copy_last=shown["copy_last"],
            reconstruction=shown["reconstruction"],
            shuffled=shown.get("shuffled"),
            context_frames=t,
            scores={name: FrameScores(psnrs[i], ssims[i]) for name, (psnrs, ssims) in scores.items()},
            objects=objects,
            actions=None if batch.actions is None else batch.actions[i],
            states=states,
        )


def _derangement(size: int, rng: np.random.Generator) -> Tensor:
    """Random order of `size` >= 2 things in which none stays in its place: one cycle through all."""
    cycle = rng.permutation(size)
    order = np.empty_like(cycle)
    order[cycle] = np.roll(cycle, 1)
    return torch.from_numpy(order)


def _summarize_objects(predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """None unless every prediction is one of Push-T."""
    if not all(p.objects for p in predictions):
        return None
    return {name: stack_objects([p.objects[name] for p in predictions]).summary() for name in _PROBED}


def _share_of_ceiling(mean_psnr: Mapping[str, float]) -> float | None:
    """None where copying is as good as the tokenizer: there is no way to go."""
    way = mean_psnr["reconstruction"] - mean_psnr["copy_last"]
    return (mean_psnr["imagined"] - mean_psnr["copy_last"]) / way if way > 0 else None
