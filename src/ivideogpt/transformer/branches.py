"""Many rows that continue few prefixes: each prefix is kept and read once, each row has a suffix of its own.

Shapes: L layers, S prefixes, R rows, h heads, n new positions, P positions of a prefix, U of a suffix, D channels a
head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.transformer.cache import KeyValueCache, require_capacity
from ivideogpt.transformer.groups import Groups


class Prefixes(NamedTuple):
    """Keys and values of S prefixes of the same length, each (L, S, h, P, D)."""

    keys: Tensor
    values: Tensor

    @classmethod
    def of(cls, cache: KeyValueCache) -> Prefixes:
        """What a cache holds, not copied."""
        filled = slice(0, cache.length)
        return cls(cache.keys[:, :, :, filled], cache.values[:, :, :, filled])


class Suffixes:
    """Keys and values of R rows, each with as many positions as it has got.

    Args:
        prefixes: what the rows continue: theirs are of the same kind.
        rows: R.
        capacity: most positions U of a row.
        memory: rows that memory is taken for, at least R.
    """

    def __init__(self, prefixes: Prefixes, rows: int, capacity: int, memory: int = 0) -> None:
        layers, _, heads, _, head_dim = prefixes.keys.shape
        shape = (layers, max(rows, memory), heads, capacity, head_dim)
        # Where rows are out of step, what one has not written is masked for it, but its values are multiplied by 0.
        self.keys, self.values = prefixes.keys.new_zeros(shape), prefixes.keys.new_zeros(shape)
        self.starts = torch.zeros(shape[1], dtype=torch.int64, device=self.keys.device)
        """(rows in memory,) the same as `lengths`, on the device."""
        self.lengths = [0] * rows
        """Positions filled of each row."""
        self.capacity = capacity

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return self.keys.nbytes + self.values.nbytes + self.starts.nbytes

    def bytes_of(self, rows: int, positions: int) -> int:
        """Memory of so many rows of so many positions, bytes."""
        return (self.bytes // len(self.starts) // max(1, self.capacity)) * rows * positions

    def rewind(self, lengths: Sequence[int]) -> None:
        """Go to these lengths, of which so much has been written before."""
        if list(lengths) != self.lengths:
            self.lengths = list(lengths)
            self.starts[: len(self.lengths)].copy_(torch.tensor(self.lengths))

    def restart(self, rows: Sequence[int], index: Tensor) -> None:
        """Let these rows, `index` on the device, begin again."""
        for row in rows:
            self.lengths[row] = 0
        self.starts.index_fill_(0, index, 0)

    def select(self, rows: Sequence[int], index: Tensor, others: Suffixes) -> None:
        """Become copies of other rows.

        Args:
            rows: numbers of rows there, one for each row here; one may come several times.
            index: (R,) the same on the device.
            others: the others.
        """
        self.lengths = [others.lengths[row] for row in rows]
        count, filled = len(rows), max(self.lengths)
        all_rows = list(rows) == list(range(len(others.lengths)))
        self.starts[:count] = others.starts[:count] if all_rows else others.starts.index_select(0, index)
        for mine, theirs in ((self.keys, others.keys), (self.values, others.values)):
            for layer, to in zip(theirs[:, :, :, :filled], mine[:, :count, :, :filled], strict=True):
                to.copy_(layer[:count] if all_rows else layer.index_select(0, index))

    def take(self, rows: Sequence[int], index: Tensor, others: Suffixes, count: int) -> None:
        """Copy what others, copies of these rows, have written since: `count` positions each. As in `select`."""
        places = self.starts.index_select(0, index)[:, None] + torch.arange(count, device=index.device)
        theirs = torch.arange(len(rows), device=index.device)[:, None]
        for mine, new in ((self.keys, others.keys), (self.values, others.values)):
            mine[:, index[:, None], :, places] = new[:, theirs, :, places]
        self.move(rows, index, count)

    def move(self, rows: Sequence[int], index: Tensor, count: int) -> None:
        """Count `count` more positions of these rows as filled."""
        for row in rows:
            self.lengths[row] += count
        self.starts.index_add_(0, index, torch.full_like(index, count))


class BranchedCache(Suffixes):
    """Every row's own suffix, behind prefixes that rows share and that belong to somebody else.

    Attention to a prefix is one product for all its rows, and is merged exactly with that to the suffix: one softmax
    over both. Rows may have suffixes of different length.

    Args:
        prefixes: what the rows continue.
        prefix_of_row: for each of R rows the index of its prefix.
        capacity, memory: as of `Suffixes`.
        on_device: (R,) int64, the same as `prefix_of_row`.
    """

    def __init__(
        self,
        prefixes: Prefixes,
        prefix_of_row: Sequence[int],
        capacity: int,
        memory: int = 0,
        on_device: Tensor | None = None,
    ) -> None:
        rows = len(prefix_of_row)
        super().__init__(prefixes, rows, capacity, memory)
        # Views; making them at each pass takes time.
        self._by_layer = list(zip(self.keys[:, :rows], self.values[:, :rows], strict=True))
        self._next = self.starts[:rows, None]  # (R, n) where the tokens of this pass stand in their suffixes
        self.prefix_length = prefixes.keys.shape[3]
        self.continue_prefixes(prefixes, prefix_of_row, on_device)

    def continue_prefixes(
        self, prefixes: Prefixes, prefix_of_row: Sequence[int], on_device: Tensor | None = None
    ) -> None:
        """Say anew which prefixes the rows continue; `on_device` (R,) says the same. The suffixes stay."""
        if on_device is None:
            on_device = torch.tensor(list(prefix_of_row), device=self.keys.device)
        self.prefixes, self.prefix_of_row, self.prefix_index = prefixes, list(prefix_of_row), on_device
        self.groups = Groups(prefix_of_row, on_device)

    def copy(self, rows: Sequence[int], index: Tensor, room: int) -> BranchedCache:
        """A cache of copies of some rows, `index` on the device, with room for so many more positions."""
        prefixes, capacity = [self.prefix_of_row[row] for row in rows], max(self.lengths[row] for row in rows) + room
        other = type(self)(self.prefixes, prefixes, capacity, on_device=self.prefix_index.index_select(0, index))
        other.select(rows, index, self)
        return other

    @property
    def max_length(self) -> int:
        """Positions filled in the longest row, prefix included."""
        return self.prefix_length + max(self.lengths)

    @property
    def in_lockstep(self) -> bool:
        """Whether all rows are equally far."""
        return min(self.lengths) == max(self.lengths)

    def positions(self, count: int) -> slice | Tensor:
        """See `Cache`."""
        if self.in_lockstep:
            return slice(self.max_length, self.max_length + count)
        starts = self.starts[: len(self.lengths), None]
        self._next = starts + torch.arange(count, device=starts.device)
        return self.prefix_length + self._next

    def require_room(self, tokens: int) -> None:
        """Raise `ShapeError` unless `tokens` more positions fit into every suffix."""
        require_capacity(max(self.lengths), tokens, self.capacity)

    def advance(self, tokens: int) -> None:
        """Count `tokens` more positions of every suffix as filled."""
        self.lengths = [length + tokens for length in self.lengths]
        self.starts[: len(self.lengths)] += tokens

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """See `Cache`; (R,h,n,D) each."""
        count = queries.shape[2]
        end = max(self.lengths) + count
        self._write(layer, keys, values)
        own_keys, own_values = (x.narrow(2, 0, end) for x in self._by_layer[layer])
        mask = self._causal_mask(count, end) if count > 1 or not self.in_lockstep else None
        queries = queries * queries.shape[-1] ** -0.5
        shared = self.groups.multiply(queries, self.prefixes.keys[layer].transpose(-1, -2))
        own = queries @ own_keys.transpose(-1, -2)  # (R, h, n, u)
        if mask is not None:
            own = own.masked_fill(mask, -torch.inf)
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        to_prefix, to_own = weights.split([self.prefix_length, end], dim=-1)
        return self.groups.multiply(to_prefix, self.prefixes.values[layer]) + to_own @ own_values

    def _causal_mask(self, count: int, end: int) -> Tensor:
        """Bool, True where a suffix position comes after the query: (n, end), or (R, 1, n, end) out of step."""
        places = torch.arange(end, device=self.keys.device)
        if self.in_lockstep:
            return places > places[end - count :, None]
        return places > self._next[:, None, :, None]

    def _write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        count = keys.shape[2]
        if self.in_lockstep:
            for ours, new in zip(self._by_layer[layer], (keys, values), strict=True):
                ours.narrow(2, self.lengths[0], count).copy_(new)
            return
        rows = torch.arange(len(keys), device=keys.device)[:, None]
        for ours, new in zip(self._by_layer[layer], (keys, values), strict=True):
            ours[rows, :, self._next] = new.transpose(1, 2)  # (R, n, h, D)
