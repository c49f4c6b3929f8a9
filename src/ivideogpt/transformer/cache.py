"""The key-value cache: a bounded object of its own, allocated once and filled in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.errors import ShapeError


class KeyValueCache:
    """Keys and values of every layer for a fixed number of rows and positions.

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
        """Positions filled so far; all rows march in step."""

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def require_room(self, tokens: int) -> None:
        """Raise `ShapeError` unless `tokens` more positions fit."""
        if self.length + tokens > self.capacity:
            raise ShapeError(
                f"{self.length} + {tokens} tokens exceed the cache's {self.capacity} positions. "
                "Start a session with a longer horizon."
            )

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

    def repeated(self, times: int, capacity: int) -> KeyValueCache:
        """A cache of `capacity` positions in which each row stands `times` times, one after the other."""
        layers, rows, heads, _, head_dim = self.keys.shape
        other = KeyValueCache(layers, rows * times, heads, capacity, head_dim, self.keys.device, self.keys.dtype)
        filled = slice(0, self.length)
        other.keys[:, :, :, filled] = self.keys[:, :, :, filled].repeat_interleave(times, dim=1)
        other.values[:, :, :, filled] = self.values[:, :, :, filled].repeat_interleave(times, dim=1)
        other.length = self.length
        return other
