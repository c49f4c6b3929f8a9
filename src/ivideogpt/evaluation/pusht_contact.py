"""Does a world model of Push-T know contact? Whether the block moves where it is pushed, and rests where it is not.

Most frames of a recording change little, and a model that copies looks good on them. So the frames in which the block
moves count apart, and beside what is imagined stands what copying would have shown. Two things are asked: where the
block is in a rollout, imagined from the context alone; and how it moves in one step from the truth, each future frame
imagined from the true frames before it.

    rollout          imagined from the context frames, one sample
    copy_last        the last context frame: what a rollout must beat
    one_step         imagined from the t true frames before it as a fresh context
    with_history     imagined from all true frames before it; up to the trained horizon
    copy_previous    the true frame before it: what one step must beat
    reconstruction   the true frame through the tokenizer and back: the upper bound of all

A frame in which no block is found counts as if the block had stayed where it last was in the frames that were given;
in medians its error is infinite.

Shapes: B episodes, T = t + F sequence frames, t context frames, F future frames.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.data.episode import Episode
from ivideogpt.errors import EpisodeError
from ivideogpt.evaluation.one_step import from_fresh_contexts, with_history
from ivideogpt.evaluation.prediction import Prediction, predict_episodes
from ivideogpt.evaluation.pusht_pose import TURNING_RADIUS, Pose, find_pose, true_pose, wrapped
from ivideogpt.evaluation.pusht_probe import Objects, probe_objects
from ivideogpt.inference import Imagines

MOVING = 0.5
"""Pixels: the block moves where its points do so by more than this, root mean square, since the frame before."""
TURNING = 1.0
"""Degrees: the block turns where it does so by more than this since the frame before."""

ONE_STEP = ("one_step", "with_history", "copy_previous", "reconstruction")
"""Videos whose frames are judged as a step from the true frame before."""
_COPIES = {"one_step": "copy_previous", "with_history": "copy_previous", "rollout": "copy_last"}
_FROM_CONTEXT = ("rollout", "copy_last")  # where a block that is not found counts as lying where the context had it


@dataclass(frozen=True, eq=False)
class Track:
    """The objects in one kind of video, (B,F) figures on the CPU."""

    found: Tensor
    """(B,F) bool: whether a block is there."""
    position: Tensor
    """(B,F,2) centre of mass (column, row) in pixels; where not found, that of the last frame given."""
    angle: Tensor
    """(B,F) radians; where not found, that of the last frame given."""
    objects: Objects
    """Overlap of the block's mask with the true one, and the agent."""


@dataclass(frozen=True, eq=False)
class Contact:
    """What the block did, and what it does in each kind of video."""

    true_position: Tensor
    """(B,F+1,2) as in `Track`, from the last context frame on."""
    true_angle: Tensor
    """(B,F+1)."""
    tracks: Mapping[str, Track]
    """By the names above."""

    @property
    def motion(self) -> Tensor:
        """(B,F,2) pixels: how the true block moved since the frame before."""
        return self.true_position.diff(dim=1)

    @property
    def turn(self) -> Tensor:
        """(B,F) radians: how it turned since the frame before."""
        return wrapped(self.true_angle.diff(dim=1))

    @property
    def moving(self) -> Tensor:
        """(B,F) bool: see `MOVING`."""
        return (self.motion.square().sum(dim=-1) + (TURNING_RADIUS * self.turn).square()).sqrt() > MOVING

    @property
    def turning(self) -> Tensor:
        """(B,F) bool: see `TURNING`."""
        return self.turn.abs() > math.radians(TURNING)

    def position_error(self, name: str) -> Tensor:
        """(B,F) pixels."""
        return (self.tracks[name].position - self.true_position[:, 1:]).norm(dim=-1)

    def angle_error(self, name: str) -> Tensor:
        """(B,F) degrees, in [0, 180]."""
        return wrapped(self.tracks[name].angle - self.true_angle[:, 1:]).abs().rad2deg()

    def motion_explained(self, name: str) -> float | None:
        """Share of the squared motion since the true frame before that shows in a video, over moving frames.

        1 for the truth, 0 for none, negative for worse than none; None where nothing moves.
        """
        shown = self.tracks[name].position - self.true_position[:, :-1]
        return _explained(shown, self.motion, self.moving)

    def rotation_explained(self, name: str) -> float | None:
        """The same of the turn, over turning frames."""
        shown = wrapped(self.tracks[name].angle - self.true_angle[:, :-1])
        return _explained(shown[..., None], self.turn[..., None], self.turning)

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures; what does not exist, as figures of moving frames where nothing moves, is None.

        `way_to_reconstruction`: how far the IoU on moving frames stands on the way from copying to reconstruction.
        `per_frame`: means over the episodes.
        """
        steps = [name for name in ONE_STEP if name in self.tracks]
        moving, motion, turn = self.moving, self.motion.norm(dim=-1), self.turn.abs().rad2deg()
        return {
            "moving": {
                "share": float(moving.float().mean()),
                "mean_motion_px": _mean(motion[moving]),
                "turning_share": float(self.turning.float().mean()),
                "mean_turn_deg": _mean(turn[self.turning]),
            },
            "tokenizer_centre_error_px": _median(self._strict("reconstruction", self.position_error)),
            "motion_explained": {name: self.motion_explained(name) for name in steps},
            "rotation_explained": {name: self.rotation_explained(name) for name in steps},
            "way_to_reconstruction": {name: self._way(name) for name in _COPIES if name in self.tracks},
            "block": {name: self._block(name) for name in self.tracks},
            "per_frame": {name: self._per_frame(name) for name in self.tracks},
        }

    def _block(self, name: str) -> dict[str, Any]:
        track, moving = self.tracks[name], self.moving
        position, angle = self._strict(name, self.position_error), self._strict(name, self.angle_error)
        last = torch.zeros_like(moving)
        last[:, -1] = True
        groups = {"moving": moving, "still": ~moving, "turning": self.turning, "last_frame": last}
        return {
            "not_found_share": float((~track.found).float().mean()),
            "not_found_share_moving": _mean((~track.found)[moving].float()),
            "median_position_error_px": {group: _median(position[chosen]) for group, chosen in groups.items()},
            "median_angle_error_deg": {group: _median(angle[chosen]) for group, chosen in groups.items()},
            "iou": {group: _mean(track.objects.block_iou[chosen]) for group, chosen in groups.items()},
            "agent_visible_share": float(track.objects.agent_visible.float().mean()),
            "agent_median_error_at_last_frame_px": _median(track.objects.agent_error[:, -1]),
        }

    def _per_frame(self, name: str) -> dict[str, list[float]]:
        return {
            "position_error_px": self.position_error(name).mean(dim=0).tolist(),
            "angle_error_deg": self.angle_error(name).mean(dim=0).tolist(),
            "iou": self.tracks[name].objects.block_iou.mean(dim=0).tolist(),
        }

    def _strict(self, name: str, error: Callable[[str], Tensor]) -> Tensor:
        return error(name).masked_fill(~self.tracks[name].found, math.inf)

    def _way(self, name: str) -> float | None:
        names = (_COPIES[name], name, "reconstruction")
        iou = [_mean(self.tracks[n].objects.block_iou[self.moving]) for n in names]
        low, reached, high = (math.nan if x is None else x for x in iou)
        return (reached - low) / (high - low) if high > low else None


def contact_figures(
    world_model: Imagines,
    episodes: Sequence[Episode],
    horizon: int = 14,
    seed: int = 0,
    *,
    start: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> Contact:
    """Imagine Push-T episodes, whole and step by step, and look where the block is.

    Args:
        world_model: the model; its tokenizer's frames have 64 pixels.
        episodes: with states.
        horizon, seed, start, sampling, batch_size: as in `predict_episodes`.
        progress: called with (done, total) after each rollout.

    Raises:
        EpisodeError: an episode without the states of Push-T, or as in `predict_episodes`.
        ShapeError: a horizon that is too long for the model, or frames of another size.
    """
    predictions = []
    for prediction in predict_episodes(
        world_model, episodes, start=start, horizon=horizon, seed=seed, sampling=sampling, batch_size=batch_size
    ):
        predictions.append(prediction)
        if progress is not None:
            progress(len(predictions), len(episodes))
    return contact_of(world_model, predictions, seed=seed, sampling=sampling, batch_size=batch_size)


def contact_of(
    world_model: Imagines,
    predictions: Sequence[Prediction],
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
) -> Contact:
    """The same of episodes that have been predicted already, all with one start and horizon."""
    states = _states_of(predictions)
    t = predictions[0].context_frames
    real = torch.stack([prediction.real for prediction in predictions])
    taken = [prediction.actions for prediction in predictions if prediction.actions is not None]
    actions = torch.stack(taken) if taken else None
    how: dict[str, Any] = {"seed": seed, "sampling": sampling, "batch_size": batch_size}
    steps = {"one_step": from_fresh_contexts(world_model, real, actions, **how)}
    if real.shape[1] - t <= world_model.trained_horizon:
        steps["with_history"] = with_history(world_model, real, actions, **how)
    steps["copy_previous"] = real[:, t - 1 : -1]
    return track_blocks({**_predicted(predictions), **steps}, states)


def track_predictions(predictions: Sequence[Prediction]) -> Contact:
    """Look where the block is in predictions, without steps from the truth; errors as `contact_figures`."""
    return track_blocks(_predicted(predictions), _states_of(predictions))


def track_blocks(videos: Mapping[str, Tensor], states: np.ndarray[Any, Any]) -> Contact:
    """Look where the block is in future frames.

    Args:
        videos: by name, future frames (B,F,3,64,64), uint8 or float in [0,1].
        states: (B,F+1,5), the simulator's, from the last context frame on.
    """
    truth = true_pose(states)
    tracks = {name: _track(name, video, states, truth) for name, video in videos.items()}
    return Contact(truth.position, truth.angle, tracks)


def _track(name: str, video: Tensor, states: np.ndarray[Any, Any], truth: Pose) -> Track:
    frames = (video if video.is_floating_point() else video.float() / 255).cpu()
    pose = find_pose(frames)
    given = slice(0, 1) if name in _FROM_CONTEXT else slice(0, -1)
    position = torch.where(pose.found[..., None], pose.position, truth.position[:, given])
    angle = torch.where(pose.found, pose.angle, truth.angle[:, given])
    return Track(pose.found, position, angle, probe_objects(frames, states[:, 1:]))


def _predicted(predictions: Sequence[Prediction]) -> dict[str, Tensor]:
    """Future frames (B,F,3,R,R) by name."""
    t = predictions[0].context_frames
    return {
        "rollout": torch.stack([prediction.imagined[t:] for prediction in predictions]),
        "copy_last": torch.stack([prediction.copy_last[t:] for prediction in predictions]),
        "reconstruction": torch.stack([prediction.reconstruction[t:] for prediction in predictions]),
    }


def _states_of(predictions: Sequence[Prediction]) -> np.ndarray[Any, Any]:
    """(B,F+1,5)."""
    states = [prediction.states for prediction in predictions if prediction.states is not None]
    if len(states) < len(predictions):
        raise EpisodeError(
            "contact is measured against the simulator's states of Push-T, and an episode has none. "
            "Record episodes with: ivideogpt record pusht."
        )
    return np.stack(states)


def _explained(shown: Tensor, true: Tensor, chosen: Tensor) -> float | None:
    """1 - sum |shown - true|^2 / sum |true|^2 over the chosen of (B,F,n)."""
    missed, all_of_it = (shown - true)[chosen].double().square().sum(), true[chosen].double().square().sum()
    return float(1 - missed / all_of_it) if float(all_of_it) > 0 else None


def _mean(values: Tensor) -> float | None:
    return float(values.double().mean()) if values.numel() else None


def _median(values: Tensor) -> float | None:
    """None for no values, or where half of them are infinite."""
    if not values.numel():
        return None
    ordered = values.double().flatten().sort().values
    middle = float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)
    return middle if math.isfinite(middle) else None
