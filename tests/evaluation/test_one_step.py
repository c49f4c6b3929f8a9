from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import SamplingConfig, StateConfig
from ivideogpt.data.episode import Episode
from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.one_step import from_fresh_contexts, with_history
from tests.conftest import enliven

WAYS = (from_fresh_contexts, with_history)


@pytest.fixture(scope="module")
def recorded(episodes: list[Episode]) -> tuple[Tensor, Tensor]:
    """Frames (3,6,3,64,64) uint8 and actions (3,6,2)."""
    frames = torch.from_numpy(np.stack([e.frames[:6] for e in episodes[:3]])).movedim(-1, 2)
    return frames, torch.from_numpy(np.stack([e.actions[:6] for e in episodes[:3] if e.actions is not None]))


def test_a_fresh_context_is_a_rollout_of_one_frame(world_model: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    frames, actions = recorded
    imagined = from_fresh_contexts(world_model, frames, actions, seed=3, batch_size=2)
    assert imagined.shape == (3, 4, 3, 64, 64)
    # Episode 2, future frame 1: from frames 1 and 2 by the action at frame 2.
    alone = world_model.rollout(frames[2:, 1:3], actions[2:, 2:3], horizon=1, seed=[3 + 4 * 2 + 1]).video[0, 0, -1]
    assert torch.allclose(imagined[2, 1], alone, atol=1e-3)


def test_with_history_begins_as_a_rollout(world_model: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    frames, actions = recorded
    imagined = with_history(world_model, frames, actions, seed=3, batch_size=2)
    assert imagined.shape == (3, 4, 3, 64, 64)
    rollout = world_model.rollout(frames[:, :2], actions, horizon=4, seed=[3, 4, 5]).video[:, 0, 2:]
    assert torch.allclose(imagined[:, 0], rollout[:, 0], atol=1e-3)


def test_with_history_follows_the_truth(world_model: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    """The most likely tokens, one frame after the other, each read again from the start: slow and plain."""
    frames, actions = recorded
    layout, greedy = world_model.transformer.layout, SamplingConfig(temperature=0)
    imagined = with_history(world_model, frames, actions, sampling=greedy)
    true = world_model.tokenizer.tokenize(frames)
    drawn = true.clone()
    for positions in layout.dynamics_positions(6).tolist():
        tokens = true.clone()
        for position in positions:
            logits = world_model.transformer(tokens, actions).logits[:, position - 1]
            legal = logits[:, layout.dynamics_ids.start : layout.dynamics_ids.stop]
            tokens[:, position] = drawn[:, position] = legal.argmax(dim=-1) + layout.dynamics_ids.start
    plain = world_model.tokenizer.detokenize(drawn)[:, 2:]
    assert torch.allclose(imagined, plain, atol=1e-3)


@pytest.fixture
def knowing(make_world_model: Callable[..., WorldModel]) -> WorldModel:
    """A model that knows states, and whose parts listen to them."""
    model = make_world_model(state=StateConfig(angles=(1,), mean=(9.0, 0.0), std=(2.0, 1.0), change=(0.5, 0.3)))
    for part in (model.tokenizer, model.transformer):
        enliven(part, seed=3)
    return model


def test_states_of_the_first_frame_are_those_of_a_rollout(knowing: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    frames, actions = recorded
    rollout = knowing.rollout(frames[:, :2], actions, horizon=4, seed=[3, 4, 5]).video[:, 0, 2]
    imagined = with_history(knowing, frames, actions, seed=3, batch_size=2)
    assert torch.allclose(imagined[:, 0], rollout, atol=1e-3)


@torch.no_grad()
def test_states_are_foretold_from_the_true_frames_before(knowing: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    """One frame at a time, from what is read of the two frames before it."""
    (frames, actions), greedy = recorded, SamplingConfig(temperature=0)
    layout, path = knowing.transformer.layout, knowing.transformer.require_states()
    imagined = with_history(knowing, frames, actions, sampling=greedy)
    read = knowing.tokenizer.read_states(frames)
    features, predicted = path.features(read), read.clone()
    for j in range(2, 6):
        predicted[:, j] = path.decoded(path.next(features[:, j - 2], features[:, j - 1], actions[:, j - 1]))
    true = knowing.tokenizer.tokenize(frames, read)
    embedded = knowing.transformer.embed(true, actions, features)
    ahead = knowing.transformer.embed(true, actions, path.features(predicted))
    drawn = true.clone()
    for positions in layout.dynamics_positions(6).tolist():
        x = embedded.clone()
        x[:, positions[0] - 1] = ahead[:, positions[0] - 1]  # only this frame's state is predicted
        for place, position in zip(layout.dynamics_places, positions, strict=True):
            logits = knowing.transformer.dynamics_logits(knowing.transformer.hidden_states(x)[:, position - 1])
            drawn[:, position] = logits.argmax(dim=-1) + layout.dynamics_ids.start
            x[:, position] = knowing.transformer.embed_tokens(drawn[:, position], place)
    plain = knowing.tokenizer.detokenize(drawn, predicted)[:, 2:]
    assert torch.allclose(imagined, plain, atol=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_the_seed_decides(world_model: WorldModel, recorded: tuple[Tensor, Tensor], way: Callable[..., Tensor]) -> None:
    same, again, other = (way(world_model, *recorded, seed=seed) for seed in (1, 1, 100))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


@pytest.mark.parametrize("way", WAYS)
def test_models_with_a_goal_or_without_actions(
    make_world_model: Callable[..., WorldModel], recorded: tuple[Tensor, Tensor], way: Callable[..., Tensor]
) -> None:
    frames, actions = recorded
    assert way(make_world_model(goal=True), frames, actions).shape == (3, 4, 3, 64, 64)
    assert way(make_world_model(action_dim=None), frames, None).shape == (3, 4, 3, 64, 64)


def test_too_long_a_history_is_refused(world_model: WorldModel, recorded: tuple[Tensor, Tensor]) -> None:
    count = world_model.longest_horizon + 3
    frames, actions = recorded[0][:1, :1].expand(-1, count, -1, -1, -1), recorded[1][:1, :1].expand(-1, count, -1)
    with pytest.raises(ShapeError, match="exceeds the model"):
        with_history(world_model, frames, actions)
