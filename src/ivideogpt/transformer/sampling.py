"""Drawing the next token: temperature, top-k, top-p, and one random stream a row.

A row's draws depend on its own stream and logits alone. Batched products may round a row's logits differently in
batches of another size, which can only matter where a number falls within rounding of the boundary between two tokens.
The most likely tokens come first in the order of drawing, so their wide shares keep their places whatever the crowded
tail does. benchmarks/README.md says how often it still happens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig


class RowStreams:
    """One independent stream of uniform numbers a row, each known by a key.

    The numbers of a frame are a function of the row's key and of how many frames came before it, so a stream can be
    copied, or gone back in, by copying two numbers.

    Args:
        keys: one tuple of non-negative integers a row; equal keys give equal streams.
    """

    def __init__(self, keys: Sequence[tuple[int, ...]]) -> None:
        self._keys = [
            tuple(np.random.SeedSequence(key[0], spawn_key=key[1:]).generate_state(2, np.uint64).tolist())
            for key in keys
        ]
        self._frames = [0] * len(keys)

    def uniform(self, count: int) -> Tensor:
        """The numbers of every row's present frame, (rows, count) float32 in [0, 1)."""
        drawn = np.empty((len(self._keys), count), np.float32)
        for row, (key, frame) in enumerate(zip(self._keys, self._frames, strict=True)):
            counter = (0, frame, 0, 0)  # numbers of a frame count up the first word, so frames never meet
            np.random.Generator(np.random.Philox(key=key, counter=counter)).random(dtype=np.float32, out=drawn[row])
        return torch.from_numpy(drawn)

    def advance(self) -> None:
        """Go on to the next frame."""
        self._frames = [frame + 1 for frame in self._frames]

    def draw(self, count: int) -> Tensor:
        """`uniform`, then `advance`."""
        drawn = self.uniform(count)
        self.advance()
        return drawn

    def select(self, rows: Sequence[int]) -> RowStreams:
        """The streams of these rows, each as often as it is named, as far as they are."""
        other = RowStreams([])
        other._keys, other._frames = [self._keys[row] for row in rows], [self._frames[row] for row in rows]
        return other

    def restart(self, rows: Sequence[int], keys: Sequence[tuple[int, ...]]) -> None:
        """Give these rows new streams."""
        fresh = RowStreams(keys)
        for number, row in enumerate(rows):
            self._keys[row], self._frames[row] = fresh._keys[number], 0


def sample(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Draw one token a place by inverting the cumulative distribution.

    Args:
        logits: (..., K) of the tokens that are legal here.
        uniform: (...) in [0, 1), one number a token to draw.
        config: temperature, top-k and top-p.

    Returns:
        (...) int64 index into the K tokens, and (...) entropy of the distribution drawn from, in nats.
    """
    logits = logits.float()
    if config.temperature == 0:
        return logits.argmax(dim=-1), logits.new_zeros(logits.shape[:-1])
    kept = min(config.top_k or logits.shape[-1], logits.shape[-1])
    values, ids = (logits / config.temperature).topk(kept, dim=-1)  # most likely first
    probabilities = values.softmax(dim=-1)
    cumulative = probabilities.cumsum(dim=-1)
    if config.top_p < 1:
        tail = cumulative - probabilities >= config.top_p  # those before it suffice; never the first
        probabilities = probabilities.masked_fill(tail, 0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
        cumulative = probabilities.cumsum(dim=-1)
    threshold = uniform.to(logits.device)[..., None] * cumulative[..., -1:]
    last = (probabilities > 0).sum(dim=-1, keepdim=True) - 1
    choice = (cumulative <= threshold).sum(dim=-1, keepdim=True).minimum(last)
    return ids.gather(-1, choice)[..., 0], torch.special.entr(probabilities).sum(dim=-1)
