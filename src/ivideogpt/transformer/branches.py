"""Many rows that continue few prefixes: each prefix is kept and read once, each row has a suffix of its own.

Shapes: S prefixes, R rows, h heads, n new positions, P positions of a prefix, U of a suffix, D channels a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.transformer.cache import KeyValueCache, require_capacity
from ivideogpt.transformer.groups import Groups, regrouped, used_by


class Prefixes(NamedTuple):
    """Keys and values of S prefixes of the same length, each (layers, S, h, P, D); never written to again."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, cache: KeyValueCache) -> Prefixes:
        """What a cache holds, not copied."""
        filled = slice(0, cache.length)
        return cls(cache.keys[:, :, :, filled], cache.values[:, :, :, filled])

    def with_others(self, kept: Sequence[int], others: Prefixes) -> Prefixes:
        """Some of these, copied, and others behind them."""
        if not kept:
            return others
        index = torch.tensor(list(kept), device=self.keys.device)
        pairs = zip(self, others, strict=True)
        return Prefixes(*(torch.cat([ours.index_select(1, index), theirs], dim=1) for ours, theirs in pairs))


class BranchedCache:
    """Keys and values of prefixes, each shared by the rows that continue it, and of every row's own suffix.

    Attention to the prefix is one product for all rows of a prefix, and is merged exactly with that to the suffix:
    one softmax over both. Rows may have suffixes of different length.

    Args:
        prefixes: what the rows continue.
        prefix_of_row: for each row the index of its prefix.
        capacity: most positions U of a suffix.
    """

    def __init__(self, prefixes: Prefixes, prefix_of_row: Sequence[int], capacity: int) -> None:
        layers, count, heads, self.prefix_length, head_dim = prefixes.keys.shape
        shape = (layers, len(prefix_of_row), heads, capacity, head_dim)
        self.prefixes, self.groups = prefixes, Groups(prefix_of_row, count, prefixes.keys.device)
        # Where rows are out of step, what one has not written is masked for it, but its values are multiplied by 0.
        self.keys, self.values = prefixes.keys.new_zeros(shape), prefixes.keys.new_zeros(shape)
        self._by_layer = list(zip(self.keys, self.values, strict=True))  # views; making them at each pass takes time
        self.capacity = capacity
        self.lengths = [0] * len(prefix_of_row)
        """Positions filled in each row's suffix."""
        self._positions: tuple[tuple[tuple[int, ...], int], Tensor] | None = None

    @property
    def bytes(self) -> int:
        """Memory held, bytes; prefixes that are shared with another session are counted here too."""
        return sum(x.nbytes for x in (*self.prefixes, self.keys, self.values))

    @property
    def furthest(self) -> int:
        """Positions filled in the row that got furthest, prefix included."""
        return self.prefix_length + max(self.lengths)

    @property
    def in_step(self) -> bool:
        """Whether all rows are equally far."""
        return min(self.lengths) == max(self.lengths)

    def positions(self, count: int) -> slice | Tensor:
        """See `Cache`."""
        if self.in_step:
            return slice(self.furthest, self.furthest + count)
        return self.prefix_length + self._own_positions(count)

    def require_room(self, tokens: int) -> None:
        """Raise `ShapeError` unless `tokens` more positions fit into every suffix."""
        require_capacity(max(self.lengths), tokens, self.capacity)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Memory`; (R,h,n,D) each."""
        count, end = queries.shape[2], max(self.lengths) + queries.shape[2]
        self._write(layer, keys, values)
        later = self._later(count, end) if count > 1 or not self.in_step else None
        own_keys, own_values = (x.narrow(2, 0, end) for x in self._by_layer[layer])
        return self._attend_to(layer, queries, own_keys, own_values, later)

    def _attend_to(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, later: Tensor | None) -> Tensor:
        """From queries (R,h,n,D) to the prefixes and to keys and values (R,h,u,D), but for those that come later."""
        queries = queries * queries.shape[-1] ** -0.5
        shared = self.groups.multiply(queries, self.prefixes.keys[layer].transpose(-1, -2))
        own = queries @ keys.transpose(-1, -2)  # (R, h, n, u)
        if later is not None:
            own = own.masked_fill(later, -torch.inf)
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        to_prefix, to_own = weights.split([self.prefix_length, keys.shape[2]], dim=-1)
        seen = self.groups.multiply(to_prefix, self.prefixes.values[layer])
        return seen + to_own @ values

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions of every suffix as filled."""
        self.lengths = [length + tokens for length in self.lengths]

    def rewind(self, lengths: Sequence[int]) -> None:
        """Forget what was written behind these lengths of the suffixes."""
        self.lengths = list(lengths)

    def select(self, rows: Sequence[int]) -> BranchedCache:
        """A cache of these rows, each as often as it is named; see `used_by`. The suffixes are copied."""
        used, prefix_of_row = used_by(self.groups.prefix_of_row, rows)
        prefixes = self.prefixes
        if len(used) < self.groups.prefixes:
            index = torch.tensor(used, device=self.keys.device)
            prefixes = Prefixes(*(x.index_select(1, index) for x in prefixes))
        other = type(self)(prefixes, prefix_of_row, self.capacity)
        filled, index = slice(0, max(self.lengths)), torch.tensor(list(rows), device=self.keys.device)
        other.keys[:, :, :, filled] = self.keys[:, :, :, filled].index_select(1, index)
        other.values[:, :, :, filled] = self.values[:, :, :, filled].index_select(1, index)
        other.lengths = [self.lengths[row] for row in rows]
        return other

    def restart(self, rows: Sequence[int], prefixes: Prefixes, prefix_of_row: Sequence[int]) -> None:
        """Let these rows continue new prefixes from the beginning; prefixes without a row are dropped."""
        kept, after = regrouped(self.groups.prefix_of_row, rows, prefix_of_row)
        joined = self.prefixes.with_others(kept, prefixes)
        groups = Groups(after, joined.keys.shape[1], self.keys.device)
        self.prefixes, self.groups = joined, groups  # now that nothing can fail any more
        for row in rows:
            self.lengths[row] = 0

    def _own_positions(self, count: int) -> Tensor:
        """(R, n) positions of the next tokens in their suffixes; all layers of a pass ask for the same."""
        key = (tuple(self.lengths), count)
        if self._positions is None or self._positions[0] != key:
            device = self.keys.device
            starts = torch.tensor(self.lengths, device=device)
            self._positions = key, starts[:, None] + torch.arange(count, device=device)
        return self._positions[1]

    def _later(self, count: int, end: int) -> Tensor:
        """Bool, True where a suffix position comes after the query: (n, end), or (R, 1, n, end) out of step."""
        places = torch.arange(end, device=self.keys.device)
        if self.in_step:
            return places > places[end - count :, None]
        return places > self._own_positions(count)[:, None, :, None]

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        count = keys.shape[2]
        if self.in_step:
            for ours, new in zip(self._by_layer[layer], (keys, values), strict=True):
                ours.narrow(2, self.lengths[0], count).copy_(new)
            return
        rows, places = torch.arange(len(keys), device=keys.device)[:, None], self._own_positions(count)
        self.keys[layer][rows, :, places] = keys.transpose(1, 2)  # (R, n, h, D)
        self.values[layer][rows, :, places] = values.transpose(1, 2)
