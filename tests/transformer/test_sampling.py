"""Sampling tokens: the distribution, temperature, top-k, top-p, entropy, and the probability that a token had."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.transformer.sampling import log_probability, sample
from ivideogpt.transformer.streams import stream_key, uniform_numbers

K, DRAWS = 12, 40_000


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(K, generator=torch.Generator().manual_seed(0)) * 2


def draw_many(logits: Tensor, config: SamplingConfig) -> Tensor:
    """How often each token was drawn, (K,)."""
    uniform = uniform_numbers(torch.tensor([stream_key((0, 0, 0))]), torch.zeros(1, dtype=torch.int64), 1, DRAWS)[0, 0]
    return torch.bincount(sample(logits.expand(DRAWS, -1), uniform, config)[0], minlength=K)


def expected_share(logits: Tensor, config: SamplingConfig) -> Tensor:
    scaled = logits / config.temperature
    if config.top_k:
        scaled = scaled.masked_fill(scaled < scaled.topk(min(config.top_k, K)).values[-1], -math.inf)
    return scaled.softmax(dim=0)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 3, 100])
def test_distribution_is_the_softmax(logits: Tensor, temperature: float, top_k: int) -> None:
    config = SamplingConfig(temperature=temperature, top_k=top_k)
    counts, expected = draw_many(logits, config), DRAWS * expected_share(logits, config)
    assert not counts[expected == 0].any(), "a token outside the top k"
    possible = expected > 0
    chi_square = ((counts - expected).square() / expected)[possible].sum()
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 5 * math.sqrt(2 * freedom)


def test_top_1_and_temperature_0_take_the_likeliest(logits: Tensor) -> None:
    for config in (SamplingConfig(top_k=1), SamplingConfig(temperature=0), SamplingConfig(temperature=0, top_k=3)):
        tokens, entropy, logprob = sample(logits.expand(50, -1), torch.rand(50), config)
        assert (tokens == logits.argmax()).all()
        assert (entropy == 0).all() and (logprob == 0).all()


@pytest.mark.parametrize("top_k", [0, 3])
def test_entropy_is_that_of_the_distribution_drawn_from(logits: Tensor, top_k: int) -> None:
    config = SamplingConfig(temperature=1.5, top_k=top_k)
    share = expected_share(logits, config)
    expected = -(share[share > 0] * share[share > 0].log()).sum()
    entropy = sample(logits.expand(3, -1), torch.rand(3), config)[1]
    torch.testing.assert_close(entropy, expected.expand(3))


def test_entropy_of_equal_tokens_is_the_logarithm_of_their_number() -> None:
    entropy = sample(torch.zeros(1, K), torch.tensor([0.5]), SamplingConfig(top_k=0))[1]
    assert float(entropy) == pytest.approx(math.log(K))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_the_ends_of_the_unit_interval(uniform: float) -> None:
    # The last two tokens are impossible in float32: not even the last number before 1 may find them.
    logits = torch.tensor([[0.0, 1.0, 2.0, -1e4, -1e4]])
    token = sample(logits, torch.tensor([uniform]), SamplingConfig(top_k=0))[0]
    assert int(token) == {0.0: 2, 0.5: 2}.get(uniform, 0)


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1000])
def test_only_legal_ids(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    logits = torch.randn(500, count, generator=generator) * 5
    uniform = torch.rand(500, generator=generator)
    tokens = sample(logits, uniform, SamplingConfig(top_k=0))[0]
    assert tokens.dtype == torch.int64
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < count


def test_rows_are_drawn_on_their_own(logits: Tensor) -> None:
    rows = torch.stack([logits, logits.flip(0), logits * 0.1])
    uniform = torch.tensor([0.9, 0.2, 0.7])
    together = sample(rows, uniform, SamplingConfig())
    for i in range(3):
        alone = sample(rows[i : i + 1], uniform[i : i + 1], SamplingConfig())
        assert torch.equal(alone[0], together[0][i : i + 1])


def test_a_likelier_token_needs_no_more_than_its_share() -> None:
    """Most likely first: rounding of the crowded tail cannot move the draw of a likely token."""
    logits = torch.zeros(1, 1000)
    logits[0, 613] = 12.0
    for uniform in (0.0, 0.3, 0.9):
        assert int(sample(logits, torch.tensor([uniform]), SamplingConfig(top_k=0))[0]) == 613


def test_half_precision_logits(logits: Tensor) -> None:
    tokens, entropy, _ = sample(logits.bfloat16()[None], torch.tensor([0.4]), SamplingConfig())
    exact, *_ = sample(logits.bfloat16().float()[None], torch.tensor([0.4]), SamplingConfig())
    assert torch.equal(tokens, exact)
    assert entropy.dtype == torch.float32


def test_top_p_keeps_the_fewest_tokens_that_make_up_the_share() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log().expand(1000, -1)
    uniform = torch.linspace(0, 1, 1001)[:1000]
    for top_p, kept in ((0.35, {0}), (0.4, {0}), (0.5, {0, 1}), (0.7, {0, 1}), (0.75, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        drawn, entropy, logprob = sample(logits, uniform, SamplingConfig(top_k=0, top_p=top_p))
        assert set(drawn.tolist()) == kept, top_p
        shares = torch.tensor([0.4, 0.3, 0.2, 0.1])[: len(kept)]
        shares = shares / shares.sum()
        found = torch.bincount(drawn, minlength=4)[: len(kept)] / 1000
        torch.testing.assert_close(found, shares, atol=2e-3, rtol=0)
        torch.testing.assert_close(logprob, shares.log()[drawn], atol=1e-5, rtol=0)
        torch.testing.assert_close(entropy[0], torch.special.entr(shares).sum(), atol=1e-4, rtol=1e-4)


def test_several_places_are_drawn_at_once_as_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, uniform = torch.randn(3, 5, 40, generator=generator), torch.rand(3, 5, generator=generator)
    config = SamplingConfig(temperature=0.8, top_k=20, top_p=0.9)
    together = sample(logits, uniform, config)
    for i in range(5):
        for whole, one in zip(together, sample(logits[:, i], uniform[:, i], config), strict=True):
            assert torch.equal(whole[:, i], one)


@pytest.mark.parametrize(
    "config",
    [
        SamplingConfig(),
        SamplingConfig(temperature=0.7, top_k=5),
        SamplingConfig(top_p=0.8),
        SamplingConfig(temperature=0),
    ],
)
def test_the_log_probability_of_a_token_is_that_of_its_sampling(config: SamplingConfig) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(200, 40, generator=generator) * 2
    logits.requires_grad_()
    sampled = sample(logits, torch.rand(200, generator=generator), config)
    again = log_probability(logits, sampled.code, config)
    torch.testing.assert_close(again, sampled.logprob)
    least = logits.argmin(dim=-1)
    if config.top_k < 40 or config.top_p < 1 or not config.temperature:
        assert (log_probability(logits, least, config) == -math.inf).all(), "never sampled"
    if config.temperature:
        again.sum().backward()
        assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0  # type: ignore[union-attr, arg-type]
