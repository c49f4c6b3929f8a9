"""Latent maps cut into square patches, one a dynamics token, and put together again.

Shapes: B frames, C channels, h side of the map, p side of a patch, M patches.
"""

from __future__ import annotations

from torch import Tensor


def to_patches(maps: Tensor, p: int) -> Tensor:
    """(B,C,h,h) -> (B,M,p*p*C): a patch vector runs over row in patch, column in patch, channel."""
    side = maps.shape[-1] // p
    x = maps.unflatten(2, (side, p)).unflatten(4, (side, p))  # (B, C, rows, p, columns, p)
    return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def from_patches(patches: Tensor, p: int) -> Tensor:
    """(B,M,p*p*C) -> (B,C,h,h): the inverse of `to_patches`, M a square number."""
    side = round(patches.shape[1] ** 0.5)
    x = patches.unflatten(2, (p, p, -1)).unflatten(1, (side, side))  # (B, rows, columns, p, p, C)
    return x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
