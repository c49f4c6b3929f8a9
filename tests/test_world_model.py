"""Rollouts: shapes, seeds, rows on their own, forms of actions, refusals; and the model as a whole."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.transformer.symlog import symexp, symlog

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 4


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=True)


@pytest.fixture
def context(make_frames: MakeFrames) -> Tensor:
    return make_frames(3, 2)


@pytest.fixture
def actions() -> Tensor:
    """(3, T, A) for 2 context and 4 future frames."""
    return torch.rand(3, 2 + HORIZON, A, generator=torch.Generator().manual_seed(5)) * 2 - 1


def test_rollout_is_the_steps_of_a_session(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    rollout = model.rollout(context, actions, samples=2, seed=3)
    session = model.start(context, branches=2, seed=3)
    for j in range(HORIZON):
        step = session.step(actions[:, 1 + j].repeat_interleave(2, dim=0))
        assert step.frame is not None
        assert step.reward is not None
        torch.testing.assert_close(rollout.video[:, :, 2 + j].flatten(0, 1), step.frame, atol=1e-5, rtol=1e-5)
        assert rollout.rewards is not None
        assert torch.equal(rollout.rewards[:, :, j].flatten(), step.reward)


def test_shapes(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    rollout = model.rollout(context, actions, samples=2)
    assert rollout.video.shape == (3, 2, 2 + HORIZON, 3, 16, 16)
    assert rollout.rewards is not None
    assert rollout.rewards.shape == (3, 2, HORIZON)
    assert rollout.video.dtype == torch.float32
    assert 0 <= rollout.video.min() <= rollout.video.max() <= 1
    step = model.start(context, branches=2).step(actions[:, 0].repeat_interleave(2, dim=0))
    assert step.frame is not None
    assert step.reward is not None
    assert (step.frame.shape, step.reward.shape) == ((6, 3, 16, 16), (6,))
    assert (step.entropy.shape, step.tokens.shape) == ((6,), (6, 4))


def test_the_context_comes_first_as_it_was_given(model: WorldModel, context: Tensor) -> None:
    video = model.rollout(context, horizon=1, samples=2).video
    for k in range(2):
        assert torch.equal(video[:, k, :2], context)


@pytest.mark.parametrize("context_frames", [1, 3])
def test_other_numbers_of_context_frames(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, context_frames: int
) -> None:
    model = make_world_model(context_frames=context_frames, action_dim=A)
    actions = torch.rand(2, context_frames + 2, A)
    assert model.rollout(make_frames(2, context_frames), actions).video.shape[2] == context_frames + 2
    session = model.start(make_frames(1, context_frames), horizon=2)
    assert session.step(actions[:1, 0]).tokens.shape == (1, 4)


# Randomness


def test_a_seed_decides_everything(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    first, again, other = (model.rollout(context, actions, samples=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.video, again.video)
    assert not torch.equal(first.video, other.video)
    unseeded = model.rollout(context, actions, samples=2)
    assert not torch.equal(unseeded.video, model.rollout(context, actions, samples=2).video)


def test_samples_differ(model: WorldModel, context: Tensor) -> None:
    video = model.rollout(context, horizon=3, samples=3, seed=0).video
    futures = {tuple(video[b, k, 2:].flatten().tolist()) for b in range(3) for k in range(3)}
    assert len(futures) == 9


def test_a_row_does_not_depend_on_the_rest_of_the_batch(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    together = model.rollout(context, actions, samples=2, seed=[11, 12, 13])
    for b, seed in enumerate([11, 12, 13]):
        alone = model.rollout(context[b : b + 1], actions[b : b + 1], samples=2, seed=[seed])
        torch.testing.assert_close(alone.video[0], together.video[b], atol=1e-5, rtol=1e-5)
    shuffled = model.rollout(context[[2, 0]], actions[[2, 0]], samples=3, seed=[13, 11])
    torch.testing.assert_close(shuffled.video[:, :2], together.video[[2, 0]], atol=1e-5, rtol=1e-5)
    single = model.rollout(context[:1], actions[:1], seed=11)
    torch.testing.assert_close(single.video[0, 0], together.video[0, 0], atol=1e-5, rtol=1e-5)


def test_a_longer_horizon_only_adds(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    short = model.rollout(context, actions[:, :4], seed=4).video
    torch.testing.assert_close(model.rollout(context, actions, seed=4).video[:, :, :4], short, atol=1e-5, rtol=1e-5)


def test_only_legal_ids(model: WorldModel, context: Tensor) -> None:
    session = model.start(context, branches=4, seed=0, sampling=SamplingConfig(temperature=50.0, top_k=0))
    tokens = torch.stack([session.step().tokens for _ in range(10)])
    assert set(tokens.unique().tolist()) == set(model.transformer.layout.dynamics_ids), "all of them, and no other"


def test_temperature_zero_is_the_same_whatever_the_seed(model: WorldModel, context: Tensor) -> None:
    greedy = SamplingConfig(temperature=0)
    first, second = (model.rollout(context, horizon=3, seed=s, sampling=greedy).video for s in (1, 2))
    assert torch.equal(first, second)
    assert (model.start(context, sampling=greedy).step().entropy == 0).all()


def test_the_models_own_sampling_is_the_default(model: WorldModel, context: Tensor) -> None:
    model.sampling = SamplingConfig(temperature=0)
    first, second = (model.rollout(context, horizon=3, seed=seed).video for seed in (1, 2))
    assert torch.equal(first, second)


def test_entropy_is_the_mean_over_the_frame(model: WorldModel, context: Tensor) -> None:
    flat = SamplingConfig(temperature=1e6, top_k=8)
    entropy = model.start(context, sampling=flat).step().entropy
    torch.testing.assert_close(entropy, torch.full((3,), 8.0).log(), atol=1e-3, rtol=0.0)


# Actions


def test_all_forms_of_actions_are_one(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    whole = model.rollout(context, actions, seed=1)
    for other in (
        model.rollout(context, actions, HORIZON, seed=1),
        model.rollout(context, actions[:, 1 : 1 + HORIZON], HORIZON, seed=1),  # from the last context frame on
        model.rollout(context, actions[:, : 1 + HORIZON], HORIZON, seed=1),  # the last one is not used
    ):
        assert torch.equal(other.video, whole.video)
    shorter = model.rollout(context, actions, 2, seed=1)
    torch.testing.assert_close(shorter.video, whole.video[:, :, :4], atol=1e-5, rtol=1e-5)


def test_actions_matter_and_only_those_used(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    plain = model.rollout(context, actions, seed=1)
    for j in range(2 + HORIZON):
        changed = actions.clone()
        changed[:, j] = -changed[:, j] * 3
        rewards = model.rollout(context, changed, seed=1).rewards
        assert torch.equal(rewards, plain.rewards) == (j in (0, 1 + HORIZON))  # type: ignore[arg-type]


def test_rollout_finds_a_bad_action_before_it_begins(
    model: WorldModel, context: Tensor, actions: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "start", lambda *_, **__: pytest.fail("it began"))
    actions[2, HORIZON, 0] = torch.nan
    with pytest.raises(ShapeError, match="the action of row 2 holds nan"):
        model.rollout(context, actions, samples=4)
    with pytest.raises(ShapeError, match=re.escape("(3, 4, 2); this model takes (B, T, A) = (3, 4, 3)")):
        model.rollout(context, torch.zeros(3, 6, 2))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({}, "neither actions nor a horizon were given"),
        ({"horizon": 0}, "the horizon is 0 frames"),
        ({"horizon": -2}, "the horizon is -2 frames"),
        ({"actions": torch.zeros(3, 2, A)}, "the horizon is 0 frames"),
        ({"actions": torch.zeros(3, 4, A), "horizon": 5}, "4 actions are too few for 2 context frames and horizon 5"),
        ({"actions": torch.zeros(2, 6, A)}, r"actions have shape \(2, 6, 3\) for 3 contexts"),
        ({"actions": torch.zeros(3, A)}, r"actions have shape \(3, 3\) for 3 contexts"),
        ({"horizon": 2, "samples": 0}, "branches is 0"),
        ({"horizon": 2, "seed": [1, 2]}, "2 seeds for 3 contexts"),
        ({"horizon": 2, "seed": -1}, "seed is -1; seeds must not be negative"),
        ({"horizon": 2, "seed": [1, -2, 3]}, "seeds must not be negative"),
    ],
)
def test_refuses_a_rollout(model: WorldModel, context: Tensor, arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ShapeError, match=complaint):
        model.rollout(context, **arguments)


def test_bytes_are_the_same_as_floats(model: WorldModel, context: Tensor) -> None:
    frames = (context * 255).round().to(torch.uint8)
    first, second = (model.rollout(x, horizon=2, seed=1).video for x in (frames, frames.float() / 255))
    assert torch.equal(first, second)


def test_imagines_in_eval_mode(model: WorldModel, context: Tensor) -> None:
    expected = model.rollout(context, horizon=2, seed=1).video
    model.train()
    assert torch.equal(model.rollout(context, horizon=2, seed=1).video, expected)
    assert not any(module.training for module in model.modules())


def test_keeps_no_gradients(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    rollout = model.rollout(context, actions.requires_grad_())
    assert not rollout.video.requires_grad
    assert not model.start(context).step(actions[:, 0]).tokens.requires_grad


def test_half_precision(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    rollout = model.to(torch.bfloat16).rollout(context, actions, samples=2, seed=1)
    assert rollout.video.dtype == torch.float32
    assert torch.isfinite(rollout.video).all()


# The model as a whole


def test_saved_and_loaded_it_imagines_the_same(
    model: WorldModel, context: Tensor, actions: Tensor, tmp_path: Path
) -> None:
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "model"))
    first, second = (m.rollout(context, actions, samples=2, seed=9) for m in (model, again))
    assert torch.equal(first.video, second.video)
    assert torch.equal(first.rewards, second.rewards)  # type: ignore[arg-type]


def test_rewards_come_back_in_reward_units(make_world_model: MakeWorldModel, context: Tensor) -> None:
    plain, squeezed = (make_world_model(reward=True, reward_symlog=symlogged) for symlogged in (False, True))
    first, second = (m.rollout(context, horizon=2, seed=1).rewards for m in (plain, squeezed))
    torch.testing.assert_close(second, symexp(first))  # type: ignore[arg-type]


def test_symlog_and_back() -> None:
    x = torch.tensor([-100.0, -1.0, 0.0, 0.5, 1000.0])
    torch.testing.assert_close(symlog(x), x.sign() * (x.abs() + 1).log())
    torch.testing.assert_close(symexp(symlog(x)), x)


@pytest.mark.parametrize("field", ["context_frames", "context_tokens", "dynamics_codes"])
def test_refuses_parts_of_different_layouts(make_tokenizer: Any, make_transformer: Any, field: str) -> None:
    tokenizer = make_tokenizer()
    other = dataclasses.replace(tokenizer.layout, **{field: getattr(tokenizer.layout, field) + 1})
    with pytest.raises(ConfigError, match=f"the tokenizer writes .*, but the transformer continues .*{field}"):
        WorldModel(tokenizer, make_transformer(layout=other))


def test_a_goal_is_one_of_the_context_frames(make_tokenizer: Any, make_transformer: Any, context: Tensor) -> None:
    tokenizer = make_tokenizer()
    layout = dataclasses.replace(tokenizer.layout, goal=True)
    model = WorldModel(tokenizer, make_transformer(layout=layout))
    assert model.rollout(context, horizon=2).video.shape == (3, 1, 4, 3, 16, 16)


def test_actions_for_a_model_without_are_refused_before_any_work(
    make_world_model: MakeWorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_world_model()
    monkeypatch.setattr(model, "start", lambda *_, **__: pytest.fail("work has begun"))
    with pytest.raises(ShapeError, match="actions were given, but this model takes none"):
        model.rollout(context, torch.zeros(len(context), 4, 2))
