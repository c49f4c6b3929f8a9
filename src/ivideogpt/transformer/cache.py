"""The key-value cache: a bounded object of its own, allocated once and filled in place.

Shapes: B rows, h heads, n new positions, D channels a head.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.transformer.kernels import attend


class Cache(Protocol):
    """What the transformer asks of a cache: where new tokens stand, and attention to all that came before."""

    @property
    def max_length(self) -> int:
        """Positions filled in the longest row, as far as that is known without asking a device."""
        ...

    def positions(self, count: int) -> slice | Tensor:
        """Positions of the next `count` tokens: a slice where all rows are in lockstep, else (B, n)."""
        ...

    def require_room(self, tokens: int) -> None:
        """Raise `ShapeError` unless `tokens` more positions fit into every row."""
        ...

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Write the keys and values (B,h,n,D) of new positions, and attend from their queries to all up to them."""
        ...

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions as filled, after the last layer."""
        ...


class KeyValueCache:
    """Keys and values of every layer for a fixed number of rows and positions; all rows in lockstep.

    Args:
        layers, rows, heads, capacity, head_dim: sizes; each of keys and values is
            (layers, rows, heads, capacity, head_dim).
        device, dtype: where and how it is stored.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        heads: int,
        capacity: int,
        head_dim: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (layers, rows, heads, capacity, head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.capacity = capacity
        self.length = 0
        """Positions filled so far."""

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def max_length(self) -> int:
        """Positions filled so far."""
        return self.length

    def positions(self, count: int) -> slice:
        """Positions of the next `count` tokens."""
        return slice(self.length, self.length + count)

    def require_room(self, tokens: int) -> None:
        """Raise `ShapeError` unless `tokens` more positions fit."""
        require_capacity(self.length, tokens, self.capacity)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Cache`."""
        keys, values = self.append(layer, keys, values)
        return attend(queries, keys, values, self.length, dropout=0.0)

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (rows, heads, n, head_dim) behind what is there; return all filled keys and values of the layer.

        The length moves on only when `advance` is called, after the last layer.
        """
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length : end] = keys
        self.values[layer, :, :, self.length : end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions as filled."""
        self.length += tokens


def require_capacity(filled: int, tokens: int, capacity: int) -> None:
    """Raise `ShapeError` unless `tokens` more positions fit behind those that are filled."""
    if filled + tokens > capacity:
        raise ShapeError(
            f"{filled} + {tokens} tokens exceed the cache's {capacity} positions. "
            "Start a session with a longer horizon."
        )
