"""Drawing the next token: temperature, top-k, and one random stream a row.

A row's draws depend on its own stream and logits alone. Batched matrix products may round a row's logits differently
in batches of different size, which can only matter where a uniform number falls within rounding of a boundary between
two tokens; sorting by probability before drawing keeps the wide, likely tokens away from the crowded tail.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig


class RowStreams:
    """One independent stream of uniform numbers a row, each known by a key.

    Args:
        keys: one tuple of non-negative integers a row; equal keys give equal streams.
    """

    def __init__(self, keys: list[tuple[int, ...]]) -> None:
        self._generators = [np.random.Generator(np.random.Philox(np.random.SeedSequence(key))) for key in keys]

    def draw(self, count: int) -> Tensor:
        """The next `count` uniform numbers of every row, (rows, count) float32 in [0, 1)."""
        drawn = np.stack([g.random(count, dtype=np.float32) for g in self._generators])
        return torch.from_numpy(drawn)


def sample(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution.

    Args:
        logits: (rows, K) of the tokens that are legal here.
        uniform: (rows,) in [0, 1), one number a row.
        config: temperature and top-k.

    Returns:
        (rows,) int64 index into the K tokens, and (rows,) entropy of the distribution drawn from, in nats.
    """
    logits = logits.float()
    if config.temperature == 0:
        return logits.argmax(dim=-1), logits.new_zeros(len(logits))
    kept = min(config.top_k or logits.shape[-1], logits.shape[-1])
    values, ids = (logits / config.temperature).topk(kept, dim=-1)  # most likely first
    probabilities = values.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.to(logits.device)[:, None] * cumulative[:, -1:]
    choice = (cumulative <= threshold).sum(dim=-1, keepdim=True).clamp(max=kept - 1)
    return ids.gather(1, choice)[:, 0], torch.special.entr(probabilities).sum(dim=-1)
