"""The prior of the tokenizer's tokens: what it sees of what, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import CompressiveTokenizer
from ivideogpt.config import StateConfig, TokenizerConfig
from ivideogpt.presets import micro_16
from ivideogpt.states import encode_states
from ivideogpt.training.prior import TokenPrior, prior_loss

POSE = StateConfig(angles=(1,), mean=(10.0, 0.0), std=(2.0, 1.0), change=(1.0, 0.5))
B, F, M, N, W = 2, 3, 4, 16, 8  # of `micro-16`


def prior_of(state: StateConfig | None = None, seed: int = 0) -> TokenPrior:
    torch.manual_seed(seed)
    prior = TokenPrior(TokenizerConfig(**{**dict(micro_16()), "state": state}), W, W)
    if prior.state is not None:
        torch.nn.init.normal_(prior.state.state_out.weight)
    return prior


def vectors_of(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Context (B,N,W), dynamics vectors (B,F,M,W) and states' features (B,F,D)."""
    numbers = torch.Generator().manual_seed(seed)
    return (
        torch.randn(B, N, W, generator=numbers),
        torch.randn(B, F, M, W, generator=numbers),
        encode_states(torch.randn(B, F, 2, generator=numbers), POSE),
    )


@torch.no_grad()
def test_nothing_is_foretold_from_itself_or_what_comes_later() -> None:
    prior, (context, vectors, states) = prior_of(POSE), vectors_of()
    predicted = prior(context, vectors, states)
    assert predicted.shape == (B, F, M, W)
    for f in range(F):
        for i in range(M):
            other = vectors.clone()
            other[0, f, i] += 1
            changed = ((prior(context, other, states) - predicted).abs().amax(dim=3) > 1e-6)[0]
            expected = torch.zeros(F, M, dtype=torch.bool)
            expected[f, i + 1 :] = True  # later places of its frame
            expected[f + 1 : f + 2] = True  # the whole next frame, which looks back at this one
            assert torch.equal(changed, expected), (f, i)
            assert torch.equal(prior(context, other, states)[1], predicted[1]), "the other video"


@torch.no_grad()
def test_the_context_and_a_frames_own_state_are_seen_from_the_start() -> None:
    prior, (context, vectors, states) = prior_of(POSE), vectors_of()
    predicted = prior(context, vectors, states)
    other = context.clone()
    other[0, 5] += 1
    assert (prior(other, vectors, states) - predicted).abs().amax(dim=3)[0].min() > 1e-6
    for f in range(F):
        shown = states.clone()
        shown[0, f] += 1
        changed = ((prior(context, vectors, shown) - predicted).abs().amax(dim=3) > 1e-6)[0]
        assert changed[f].all() and not changed[torch.arange(F) != f].any()
    assert not torch.equal(prior(context, vectors, None), predicted)


@torch.no_grad()
def test_without_states() -> None:
    prior, (context, vectors, _) = prior_of(), vectors_of()
    assert prior.state is None and prior(context, vectors, None).shape == (B, F, M, W)


@torch.no_grad()
def test_a_token_looks_at_the_context_cells_under_it() -> None:
    prior = prior_of()
    context = torch.arange(N, dtype=torch.float32).view(1, N, 1).expand(1, N, W)
    seen: list[torch.Tensor] = []
    prior.context.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    prior(context, torch.zeros(1, 1, M, W), None)
    patches = seen[0].view(M, 4, W)[..., 0]  # 4 x 4 cells, 2 x 2 of them under each token
    assert patches.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]


def test_the_loss_is_the_mean_over_real_frames() -> None:
    prior, (context, vectors, states) = prior_of(POSE), vectors_of()
    mask = torch.ones(B, F, dtype=torch.bool)
    mask[0, -1] = False
    loss = prior_loss(prior, context, vectors, states, mask)
    torch.testing.assert_close(loss, (prior(context, vectors, states) - vectors)[mask].square().mean())
    wild = vectors.clone()
    wild[0, -1] = 1e3
    torch.testing.assert_close(prior_loss(prior, context, wild, states, mask), loss)
    assert prior_loss(prior, context, vectors, states, torch.zeros_like(mask)) == 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior_loss(prior, context.bfloat16().float(), vectors, states, mask).detach().float(),
                           prior_loss(prior, context.bfloat16(), vectors, states, mask).detach())  # fmt: skip


@pytest.mark.parametrize("kind", ["vq", "fsq"])
def test_its_error_reaches_the_encoder(kind: str) -> None:
    torch.manual_seed(0)
    changes: dict[str, Any] = {"quantizer": kind}
    if kind == "fsq":
        changes |= {"context_levels": (4, 8), "dynamics_levels": (4, 8)}
    tokenizer = CompressiveTokenizer.from_preset("micro-16", **changes)
    prior = TokenPrior(tokenizer.config, tokenizer.context_quantizer.width, tokenizer.dynamics_quantizer.width)
    output = tokenizer(torch.rand(2, 5, 3, 16, 16))
    mask = torch.ones(2, 3, dtype=torch.bool)
    prior_loss(prior, output.context_quantized[:, -1], output.dynamics_quantized, None, mask).backward()  # type: ignore[no-untyped-call]
    for module in (tokenizer.prediction_encoder, tokenizer.dynamics_in, tokenizer.context_encoder, prior):
        assert any(weight.grad is not None and weight.grad.any() for weight in module.parameters())
    assert all(weight.grad is None for weight in tokenizer.prediction_decoder.parameters())


def test_it_learns_what_can_be_known() -> None:
    """A frame's first vector follows from its state, and each later one from the one before it."""
    prior, numbers = prior_of(POSE), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(prior.parameters(), lr=2e-3)
    mask, drawing = torch.ones(16, F, dtype=torch.bool), torch.randn(3, W, generator=numbers)
    losses = []
    for _ in range(60):
        states = torch.randn(16, F, 2, generator=numbers) * torch.tensor([2.0, 1.0]) + torch.tensor([10.0, 0.0])
        features = encode_states(states, POSE)
        first = features @ drawing
        vectors = torch.stack([first.roll(i, dims=-1) for i in range(M)], dim=2)
        loss = prior_loss(prior, torch.zeros(16, N, W), vectors, features, mask)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])
