"""A cache whose every step is the same operations on the same memory, as compilers and CUDA graphs need it.

Shapes: R rows, h heads, U positions of a suffix, D channels a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivideogpt.transformer.branches import BranchedCache, Prefixes


class StaticCache(BranchedCache):
    """A `BranchedCache` that attends to its whole capacity, what is not filled being masked.

    Where the rows stand is a tensor, so that a compiled step need not be made anew when they move. Several new
    positions at once take the ordinary way.
    """

    def __init__(self, prefixes: Prefixes, prefix_of_row: Sequence[int], capacity: int) -> None:
        super().__init__(prefixes, prefix_of_row, capacity)
        device = self.keys.device
        if device.type == "cuda":
            for memory in (*prefixes, self.keys, self.values):
                torch._dynamo.mark_static_address(memory, guard=False)  # a CUDA graph may write there
        self.places = torch.zeros(len(prefix_of_row), 1, dtype=torch.int64, device=device)
        """(R, 1) where each row's next token will stand in its suffix; see `settle`."""
        self._rows = torch.arange(len(prefix_of_row), device=device)[:, None]
        self._every = torch.arange(capacity, device=device)

    def settle(self) -> Tensor:
        """Bring `places` up to date before a step of one token; positions (R, 1) in the whole sequence."""
        if self.in_step:
            self.places.fill_(self.lengths[0])
        else:
            self.places.copy_(torch.tensor(self.lengths)[:, None])
        return self.prefix_length + self.places

    def attend_one(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`attend` for one new position (R,h,1,D), without a look at `lengths`."""
        self.keys[layer][self._rows, :, self.places] = keys.transpose(1, 2)
        self.values[layer][self._rows, :, self.places] = values.transpose(1, 2)
        later = (self._every > self.places)[:, None, None]  # (R, 1, 1, U)
        return self._attend_to(layer, queries, self.keys[layer], self.values[layer], later)


class OneToken:
    """A static cache in a step of one token: what a layer sees of it."""

    def __init__(self, cache: StaticCache) -> None:
        self._cache = cache

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Memory`."""
        return self._cache.attend_one(layer, queries, keys, values)
