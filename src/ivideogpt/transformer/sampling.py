"""Sampling the next token: temperature, top-k, top-p, and the probability that a token had.

A row's samples depend on its own numbers and logits alone. Batched products may round a row's logits differently in
batches of another size, which can only matter where a number falls within rounding of the boundary between two tokens.
The most likely tokens come first in the order of sampling, so their wide shares keep their places whatever the crowded
tail does. benchmarks/README.md says how often it still happens.

Shapes: ... any leading dimensions, K legal tokens, k of them kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig


class Sampled(NamedTuple):
    """Tokens, and what is known of the distributions they were sampled from."""

    code: Tensor
    """(...) int64 among the K legal tokens."""
    entropy: Tensor
    """(...) of the distribution, in nats."""
    logprob: Tensor
    """(...) log-probability of the token in it, in nats."""


def sample(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Sampled:
    """Sample one token a place by inverting the cumulative distribution.

    Args:
        logits: (..., K) of the tokens that are legal here.
        uniform: (...) in [0, 1), one number a token to sample.
        config: temperature, top-k and top-p.
    """
    logits = logits.float()
    if config.temperature == 0:
        certain = logits.new_zeros(logits.shape[:-1])
        return Sampled(logits.argmax(dim=-1), certain, certain)
    ids, probabilities = _kept(logits, config)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.to(logits.device)[..., None] * cumulative[..., -1:]
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    choice = (cumulative <= threshold).sum(dim=-1, keepdim=True).minimum(last)
    chosen = [of.gather(-1, choice)[..., 0] for of in (ids, probabilities)]
    return Sampled(chosen[0], torch.special.entr(probabilities).sum(dim=-1), chosen[1].log())


def log_probability(logits: Tensor, index: Tensor, config: SamplingConfig) -> Tensor:
    """Log-probability (...) of tokens in the distributions that `sample` takes them from, with gradients.

    Args:
        logits: (..., K) of the legal tokens.
        index: (...) int64 among them.
        config: how they were sampled; minus infinity for a token that it never samples.
    """
    logits = logits.float()
    if config.temperature == 0:
        return torch.where(logits.argmax(dim=-1) == index, 0.0, -torch.inf)
    ids, probabilities = _kept(logits, config)
    return torch.where(ids == index[..., None], probabilities, 0.0).sum(dim=-1).log()


def _kept(logits: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """The k tokens that may be sampled, the most likely first, and their probabilities, each (..., k)."""
    count = min(config.top_k or logits.shape[-1], logits.shape[-1])
    values, ids = (logits / config.temperature).topk(count, dim=-1)
    probabilities = values.softmax(dim=-1)
    if config.top_p < 1:
        tail = probabilities.cumsum(dim=-1) - probabilities >= config.top_p  # those before it suffice; never the first
        probabilities = probabilities.masked_fill(tail, 0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return ids, probabilities
