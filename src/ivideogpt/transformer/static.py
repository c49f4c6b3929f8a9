"""A cache whose every step is the same operations on the same memory, as compilers and CUDA graphs need it.

Shapes: L layers, R rows, h heads, P positions of a prefix, U of a suffix, D channels a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


class StaticCache:
    """Rows behind a prefix each, for one frame; see `BranchedCache`.

    It attends to its whole capacity, what is not filled being masked, and where the rows stand is a tensor.

    Args:
        prefixes: keys and values (L,R,h,P,D).
        suffixes: keys and values (L,R,h,U,D), written in place.
        starts: (R,) int64 positions filled in each row's suffix.
        last: the last position that the model knows.
    """

    def __init__(
        self, prefixes: tuple[Tensor, Tensor], suffixes: tuple[Tensor, Tensor], starts: Tensor, last: int
    ) -> None:
        self._prefixes, self._suffixes, self._next, self._last = prefixes, suffixes, starts[:, None], last
        self.max_length = 0
        """Nobody knows without asking the device; whoever made this has seen to the room."""

    def positions(self, count: int) -> Tensor:
        """Positions (R, 1) of the next token."""
        assert count == 1, "a static pass is of one token"
        return (self._prefixes[0].shape[3] + self._next).clamp(max=self._last)  # rows that stay may be at the end

    def require_room(self, tokens: int) -> None:
        """Whoever made this has seen to it."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Cache`; (R,h,1,D) each."""
        rows = torch.arange(len(keys), device=keys.device)[:, None]
        own_keys, own_values = (suffix[layer] for suffix in self._suffixes)
        own_keys[rows, :, self._next] = keys.transpose(1, 2)
        own_values[rows, :, self._next] = values.transpose(1, 2)
        masked = torch.arange(own_keys.shape[2], device=keys.device) > self._next  # (R, U)
        prefix_keys, prefix_values = (prefix[layer] for prefix in self._prefixes)
        queries = queries * queries.shape[-1] ** -0.5
        own = (queries @ own_keys.transpose(-1, -2)).masked_fill(masked[:, None, None], -torch.inf)
        scores = torch.cat([queries @ prefix_keys.transpose(-1, -2), own], dim=-1)
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        to_prefix, to_own = weights.split([prefix_keys.shape[2], own_keys.shape[2]], dim=-1)
        return to_prefix @ prefix_values + to_own @ own_values

    def advance(self, tokens: int) -> None:
        """Go on to the next token."""
        self._next = self._next + tokens
