"""The straightforward way computes what ours computes, on the same weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ivideogpt import VideoTransformer, WorldModel
from ivideogpt.benchmarks.generation import Size, random_model
from ivideogpt.benchmarks.reference import plain_rollout, plain_twin


@pytest.fixture(scope="module", params=["the paper's parts", "with a place embedding"])
def model(request: pytest.FixtureRequest) -> WorldModel:
    torch.manual_seed(0)
    plain = random_model(Size("micro-16", "micro", 2))
    if request.param == "the paper's parts":
        return plain
    placed = VideoTransformer.from_preset("micro", action_dim=2, place_embedding=True)
    placed.load_state_dict(plain.transformer.state_dict(), strict=False)
    return WorldModel(plain.tokenizer, placed)


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.rand(2, 7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def actions() -> Tensor:
    return torch.rand(2, 7, 2, generator=torch.Generator().manual_seed(2))


def test_a_twin_shares_the_weights(model: WorldModel) -> None:
    twin = plain_twin(model)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True))
    plain = {type(module).__name__ for module in twin.modules()} - {type(m).__name__ for m in model.modules()}
    assert plain == {"PlainAttention", "PlainSelfAttention", "PlainCrossAttention"}
    assert not any(type(module).__name__.startswith("Plain") for module in model.modules())


def test_the_same_tokens_frames_and_logits(model: WorldModel, frames: Tensor, actions: Tensor) -> None:
    twin = plain_twin(model)
    tokens = model.tokenizer.tokenize(frames)
    assert torch.equal(twin.tokenizer.tokenize(frames), tokens)
    torch.testing.assert_close(twin.tokenizer.detokenize(tokens), model.tokenizer.detokenize(tokens))
    torch.testing.assert_close(twin.transformer(tokens, actions).logits, model.transformer(tokens, actions).logits)


def test_the_same_gradients(model: WorldModel, frames: Tensor) -> None:
    twin = plain_twin(model)
    gradients = []
    for way in (model, twin):
        way.zero_grad()
        way.tokenizer(frames).future.square().mean().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in way.tokenizer.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_same_rollout(model: WorldModel, frames: Tensor, actions: Tensor) -> None:
    context = frames[:, :2]
    plain = plain_rollout(plain_twin(model), context, actions[:, 1:-1], seed=3)
    ours = model.rollout(context, actions, seed=3)
    torch.testing.assert_close(plain.video[:, 2:], ours.video[:, 0, 2:])
    assert model.transformer.layout.frames(plain.tokens.shape[1]) == 7
