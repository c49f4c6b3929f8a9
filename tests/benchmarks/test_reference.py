"""The reference computes what ours computes, on the same weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ivideogpt import CompressiveTokenizer, VideoTransformer
from ivideogpt.benchmarks.generation import random_model
from ivideogpt.benchmarks.reference import PlainCrossAttention, PlainTransformerLearner, plain_twin
from ivideogpt.training.config import TransformerTrainingConfig
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner


@pytest.fixture(scope="module")
def tokenizer() -> CompressiveTokenizer:
    torch.manual_seed(0)
    return random_model("micro").tokenizer


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return torch.rand(2, 7, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_a_twin_shares_the_weights(tokenizer: CompressiveTokenizer) -> None:
    twin = plain_twin(tokenizer)
    assert all(ours is theirs for ours, theirs in zip(tokenizer.parameters(), twin.parameters(), strict=True))
    assert any(isinstance(module, PlainCrossAttention) for module in twin.modules())
    assert not any(isinstance(module, PlainCrossAttention) for module in tokenizer.modules())


def test_a_twin_in_another_precision_leaves_the_model_alone(tokenizer: CompressiveTokenizer, frames: Tensor) -> None:
    twin = plain_twin(tokenizer, torch.bfloat16)
    assert {weight.dtype for weight in twin.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in tokenizer.parameters()} == {torch.float32}
    assert torch.isfinite(twin.detokenize(twin.tokenize(frames))).all()


def test_the_same_tokens_and_frames(tokenizer: CompressiveTokenizer, frames: Tensor) -> None:
    twin, tokens = plain_twin(tokenizer), tokenizer.tokenize(frames)
    assert torch.equal(twin.tokenize(frames), tokens)
    torch.testing.assert_close(twin.detokenize(tokens), tokenizer.detokenize(tokens))


def test_the_same_gradients(tokenizer: CompressiveTokenizer, frames: Tensor) -> None:
    gradients = []
    for way in (tokenizer, plain_twin(tokenizer)):
        way.zero_grad()
        way(frames).future.square().mean().backward()
        gradients.append([None if p.grad is None else p.grad.clone() for p in way.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("bf16", [False, True])
def test_the_same_losses(tokenizer: CompressiveTokenizer, frames: Tensor, tmp_path: Path, bf16: bool) -> None:
    transformer = VideoTransformer.from_preset("micro", layout=tokenizer.layout, action_dim=2).eval()
    config = TransformerTrainingConfig(data=tmp_path, out=tmp_path)
    mask = torch.ones(frames.shape[:2], dtype=torch.bool)
    mask[0, 5:] = False
    batch = TokenBatch(tokenizer.tokenize(frames), mask=mask, actions=torch.rand(2, 7, 2))
    losses = [
        kind(copy.deepcopy(transformer), tokenizer, config, torch.device("cpu"), bf16).losses(batch, 0)["cross_entropy"]
        for kind in (TransformerLearner, PlainTransformerLearner)
    ]
    torch.testing.assert_close(*losses, rtol=1e-2 if bf16 else 1e-5, atol=0)
