"""The official pattern, through Hugging Face's `generate`, computes what ours computes on the same weights."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.benchmarks.generation import random_model
from ivideogpt.benchmarks.reference_rollout import Reference
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import CheckpointError, ConfigError

pytest.importorskip("transformers")

GREEDY = SamplingConfig(temperature=0)
FRAMES, ROWS = 5, 3


@pytest.fixture(scope="module")
def model() -> WorldModel:
    torch.manual_seed(0)
    model = random_model("micro", reward=True, reward_symlog=True)
    for layer in model.transformer.layers:
        for weight in layer.parameters():
            weight.data.mul_(4)  # far apart, so that rounding tips no choice
    return model


@pytest.fixture(scope="module")
def context() -> Tensor:
    return torch.rand(ROWS, 2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def actions() -> Tensor:
    """One a frame of the whole video."""
    return torch.rand(ROWS, 2 + FRAMES, 2, generator=torch.Generator().manual_seed(2)) * 2 - 1


def random_tokens(model: WorldModel) -> Tensor:
    layout, generator = model.transformer.layout, torch.Generator().manual_seed(3)
    context = torch.randint(layout.context_codes, (ROWS, 2, layout.context_tokens), generator=generator)
    shape = (ROWS, FRAMES, layout.dynamics_tokens)
    return layout.assemble(context, torch.randint(layout.dynamics_codes, shape, generator=generator))


@torch.no_grad()
def test_the_same_logits_of_legal_tokens(model: WorldModel, actions: Tensor) -> None:
    tokens, ids = random_tokens(model), model.transformer.layout.dynamics_ids
    legal = slice(ids.start, ids.stop)
    theirs = Reference(model).logits(tokens, actions[:, 1:-1])[..., legal]
    torch.testing.assert_close(theirs, model.transformer(tokens, actions).logits[..., legal], atol=1e-4, rtol=0)
    without = Reference(model).logits(tokens, None)[..., legal]
    torch.testing.assert_close(without, model.transformer(tokens).logits[..., legal], atol=1e-4, rtol=0)
    assert (theirs - without).abs().max() > 0.01, "actions matter"


def test_greedy_rollouts_are_the_same(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    theirs = Reference(model).rollout(context, actions[:, 1:-1], FRAMES, sampling=GREEDY)
    ours = model.rollout(context, actions, sampling=GREEDY)
    torch.testing.assert_close(theirs.video[:, 2:], ours.video[:, 0, 2:])
    torch.testing.assert_close(theirs.rewards, None if ours.rewards is None else ours.rewards[:, 0])
    with model.start(context, horizon=FRAMES, sampling=GREEDY) as session:
        steps = [session.step(actions[:, 1 + j], decode=False).tokens for j in range(FRAMES)]
    positions = model.transformer.layout.dynamics_positions(2 + FRAMES)
    assert torch.equal(theirs.tokens[:, positions], torch.stack(steps, dim=1))


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.5, top_k=0, top_p=0.9)])
def test_drawn_tokens_are_legal(model: WorldModel, context: Tensor, actions: Tensor, sampling: SamplingConfig) -> None:
    made = [Reference(model).rollout(context, actions[:, 1:-1], FRAMES, sampling=sampling) for _ in range(2)]
    for rollout in made:
        model.transformer.layout.split(rollout.tokens)  # refuses an id that is not legal where it stands
        assert rollout.video.shape == (ROWS, 2 + FRAMES, 3, 16, 16)
        assert rollout.rewards is not None and rollout.rewards.shape == (ROWS, FRAMES)
    assert not torch.equal(made[0].tokens, made[1].tokens), "they are drawn"


@torch.no_grad()
def test_bf16_is_near(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    tokens, used = random_tokens(model), actions[:, 1:-1]
    exact, near = Reference(model), Reference(model, torch.bfloat16)
    assert near.llama.dtype == torch.bfloat16 and model.transformer.embedding.weight.dtype == torch.float32
    apart = (near.logits(tokens, used).float() - exact.logits(tokens, used)).square().mean()
    assert 0 < apart < 0.02 * exact.logits(tokens, used).square().mean()
    rollout = near.rollout(context, used, FRAMES)
    assert torch.isfinite(rollout.video).all()
    assert rollout.rewards is not None and rollout.rewards.dtype == torch.float32


def test_no_actions_and_no_rewards(context: Tensor) -> None:
    torch.manual_seed(0)
    rollout = Reference(random_model("micro")).rollout(context, None, 1)
    assert rollout.rewards is None


def test_a_model_that_theirs_cannot_express_is_refused() -> None:
    with pytest.raises(CheckpointError, match="place_embedding"):
        Reference(random_model("micro", place_embedding=True))


def test_the_missing_library_is_named(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'ivideogpt\[hf\]'"):
        Reference(model)
