"""Random numbers: one independent stream a row, made for all rows and frames together on the model's device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011): a number is a function of a key and
a counter, so a stream can be copied, or gone back in, by copying its key and the number of a frame.

Shapes: R rows, F frames, M numbers a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def stream_key(numbers: Sequence[int]) -> tuple[int, int]:
    """The two words that name the stream of some non-negative integers; equal integers name equal streams."""
    sequence = np.random.SeedSequence(numbers[0], spawn_key=tuple(numbers[1:]))
    first, second = sequence.generate_state(2, np.uint32).tolist()
    return first, second


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Four random words of a counter of four words and a key of two, all int64 of one shape, in [0, 2^32)."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # The product of two words may pass 2^63, but the bits of its halves are right all the same.
        p0, p1 = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b, c, d = (p1 >> 32 & _WORD) ^ b ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ d ^ k1, p0 & _WORD
        k0, k1 = k0 + _INCREMENTS[0] & _WORD, k1 + _INCREMENTS[1] & _WORD
    return [a, b, c, d]


def uniform_numbers(keys: Tensor, first: Tensor, frames: int, count: int) -> Tensor:
    """Numbers of R streams, each from a frame of its own on.

    Args:
        keys: (R, 2) int64, of `stream_key`.
        first: (R,) int64, the frame that each begins at, from 0.
        frames: F.
        count: M; more of them change none.

    Returns:
        (R, F, M) float32 in [0, 1).
    """
    frame = first[:, None] + torch.arange(frames, device=first.device)
    block = torch.arange(-(-count // 4), device=first.device)
    shape = (*frame.shape, len(block))
    zero = torch.zeros_like(first[0])
    counter = [word.expand(shape) for word in (block, frame[:, :, None], zero, zero)]
    words = torch.stack(philox(counter, [key[:, None, None] for key in keys.unbind(1)]), dim=-1)
    return (words.flatten(2)[:, :, :count] >> 8).to(torch.float32) * 2**-24
