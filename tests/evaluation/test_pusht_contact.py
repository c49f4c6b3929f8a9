from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.data.episode import Episode
from ivideogpt.envs.record import pusht_episode
from ivideogpt.errors import EpisodeError, ShapeError
from ivideogpt.evaluation.prediction import predict_episodes
from ivideogpt.evaluation.pusht_contact import (
    MOVING,
    Contact,
    contact_figures,
    contact_of,
    track_blocks,
    track_predictions,
)

KINDS = {"rollout", "copy_last", "one_step", "with_history", "copy_previous", "reconstruction"}


@pytest.fixture(scope="module")
def pushed() -> tuple[Tensor, np.ndarray[Any, Any]]:
    """Frames (4,15,3,64,64) uint8 and states (4,15,5) in which the block is pushed about."""
    recorded = [pusht_episode(seed, 15, "pusht-fast") for seed in (900_001, 900_003, 900_004, 900_005)]
    frames = torch.from_numpy(np.stack([episode.frames for episode in recorded])).movedim(-1, 2)
    return frames, np.stack([episode.states for episode in recorded if episode.states is not None])


@pytest.fixture(scope="module")
def perfect(pushed: tuple[Tensor, np.ndarray[Any, Any]]) -> Contact:
    """A model that imagines the truth, beside copies."""
    frames, states = pushed
    return track_blocks(videos_with(frames, frames[:, 1:]), states)


def videos_with(frames: Tensor, shown: Tensor) -> Mapping[str, Tensor]:
    future = frames[:, 1:]
    return {
        "rollout": shown,
        "copy_last": frames[:, :1].expand_as(future),
        "one_step": shown,
        "copy_previous": frames[:, :-1],
        "reconstruction": future,
    }


def test_the_truth_explains_all_motion_and_a_copy_none(perfect: Contact) -> None:
    assert perfect.moving.any()
    assert not perfect.moving.all()
    for explained in (perfect.motion_explained, perfect.rotation_explained):
        assert explained("one_step") == pytest.approx(1, abs=0.03)
        assert explained("copy_previous") == pytest.approx(0, abs=0.05)
    figures = perfect.summary()
    assert figures["tokenizer_centre_error_px"] < 0.1
    assert figures["way_to_reconstruction"] == {"one_step": 1.0, "rollout": 1.0}
    assert figures["block"]["one_step"]["iou"]["moving"] > 0.95
    assert figures["block"]["copy_last"]["iou"]["last_frame"] < 0.9
    assert figures["moving"]["share"] == pytest.approx(float(perfect.moving.float().mean()))


def test_moving_frames_are_those_in_which_the_block_moves(
    perfect: Contact, pushed: tuple[Tensor, np.ndarray[Any, Any]]
) -> None:
    pushed_states = pushed[1].copy()
    pushed_states[:, 1:] = pushed_states[:, :1]
    pushed_states[0, 3:, 2] += 8 * (MOVING + 0.1)  # one step sideways
    pushed_states[1, 5:, 4] += 0.2  # one turn, and the origin lies off the centre that is looked at
    frames = pushed[0][:, :1].expand_as(pushed[0])
    contact = track_blocks({"one_step": frames[:, 1:]}, pushed_states)
    assert contact.moving.nonzero().tolist() == [[0, 2], [1, 4]]
    assert contact.turning.nonzero().tolist() == [[1, 4]]


def test_a_block_that_is_not_found_counts_as_resting(pushed: tuple[Tensor, np.ndarray[Any, Any]]) -> None:
    frames, states = pushed
    contact = track_blocks(videos_with(frames, torch.full_like(frames[:, 1:], 255)), states)
    assert contact.motion_explained("one_step") == 0
    assert contact.rotation_explained("one_step") == 0
    copied = contact.position_error("copy_last")
    assert torch.allclose(contact.position_error("rollout"), copied, atol=0.3)
    figures = contact.summary()["block"]["rollout"]
    assert figures["not_found_share"] == figures["not_found_share_moving"] == 1
    assert set(figures["median_position_error_px"].values()) == {None}
    assert set(figures["median_angle_error_deg"]) == {"moving", "still", "turning", "last_frame"}


def test_motion_the_wrong_way_is_worse_than_none(pushed: tuple[Tensor, np.ndarray[Any, Any]]) -> None:
    frames, states = pushed
    mirrored = states.copy()
    mirrored[:, 1:] = 2 * states[:, :-1] - states[:, 1:]
    contact = track_blocks({"one_step": frames[:, 1:]}, np.concatenate([states[:, :1], mirrored[:, 1:]], axis=1))
    explained = contact.motion_explained("one_step")
    assert explained is not None
    assert explained < 0


def test_still_recordings_have_no_figures_of_motion(pushed: tuple[Tensor, np.ndarray[Any, Any]]) -> None:
    frames, states = (
        x[:, :1].repeat(15, axis=1) if isinstance(x, np.ndarray) else x[:, :1].expand_as(x) for x in pushed
    )
    figures = track_blocks(videos_with(frames, frames[:, 1:]), states).summary()
    assert figures["motion_explained"]["one_step"] is None
    assert figures["way_to_reconstruction"]["rollout"] is None
    assert figures["block"]["rollout"]["iou"]["moving"] is None
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_a_world_model_is_measured(world_model: WorldModel, episodes: list[Episode]) -> None:
    seen: list[tuple[int, int]] = []
    contact = contact_figures(world_model, episodes[:3], horizon=4, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    figures = contact.summary()
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert set(contact.tracks) == KINDS
    for name in KINDS:
        assert contact.tracks[name].found.shape == (3, 4)
        assert {len(values) for values in figures["per_frame"][name].values()} == {4}
    assert contact.tracks["copy_previous"].found.all()
    assert set(figures["motion_explained"]) == {"one_step", "with_history", "copy_previous", "reconstruction"}
    predicted = list(predict_episodes(world_model, episodes[:3], horizon=4))
    again = contact_of(world_model, predicted, batch_size=2).summary()
    assert again["block"]["copy_last"] == figures["block"]["copy_last"]
    only = track_predictions(predicted).summary()
    assert set(only["block"]) == {"rollout", "copy_last", "reconstruction"}
    assert only["block"]["rollout"] == figures["block"]["rollout"]
    assert set(only["motion_explained"]) == {"reconstruction"}


def test_models_with_a_goal_or_without_actions(
    make_world_model: Callable[..., WorldModel], episodes: list[Episode]
) -> None:
    for model in (make_world_model(goal=True), make_world_model(action_dim=None)):
        contact = contact_figures(model, episodes[:2], horizon=3, start=2)
        assert contact.tracks["one_step"].found.shape == (2, 3)
        assert contact.tracks["copy_previous"].found.all()
        assert contact.position_error("reconstruction").shape == (2, 3)


def test_episodes_need_states(world_model: WorldModel, episodes: list[Episode]) -> None:
    for wrong in (None, np.zeros((12, 7), np.float32)):
        with pytest.raises(EpisodeError, match="an episode has none"):
            contact_figures(world_model, [episodes[0], dataclasses.replace(episodes[0], states=wrong)], horizon=2)
    with pytest.raises(ShapeError, match="horizon is 0"):
        contact_figures(world_model, episodes[:1], horizon=0)
