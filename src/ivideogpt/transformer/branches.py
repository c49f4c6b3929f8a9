"""Many rows that continue few prefixes: each prefix is kept and read once, each row has a suffix of its own.

Shapes: S prefixes, R rows, h heads, n new positions, P positions of a prefix, U of a suffix, D channels a head,
X anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.transformer.cache import KeyValueCache, require_capacity


class Groups:
    """Which rows continue which prefix, and how rows are laid side by side for one product a prefix.

    Args:
        prefix_of_row: R indices of prefixes.
        prefixes: S.
        device: where they are laid side by side.
    """

    def __init__(self, prefix_of_row: Sequence[int], prefixes: int, device: torch.device) -> None:
        self.prefix_of_row, self.prefixes = tuple(prefix_of_row), prefixes
        rows: list[list[int]] = [[] for _ in range(prefixes)]
        for row, prefix in enumerate(self.prefix_of_row):
            rows[prefix].append(row)
        self.largest = max(len(group) for group in rows)
        flat = [row for group in rows for row in group]
        self.regular = flat == list(range(len(flat))) and all(len(group) == self.largest for group in rows)
        """Whether the rows stand prefix by prefix, equally many of each: then nothing need be moved."""
        # Small groups are filled up with row 0; what it gets there is thrown away.
        padded = [row for group in rows for row in group + [0] * (self.largest - len(group))]
        self._padded = torch.tensor(padded, device=device)
        back = {row: s * self.largest + k for s, group in enumerate(rows) for k, row in enumerate(group)}
        self._back = torch.tensor([back[row] for row in range(len(flat))], device=device)

    def gather(self, x: Tensor) -> Tensor:
        """(R,h,n,X) -> (S,h,K*n,X), K the size of the largest group."""
        padded = x if self.regular else x[self._padded]
        if self.largest == 1:
            return padded
        return padded.unflatten(0, (self.prefixes, self.largest)).transpose(1, 2).flatten(2, 3)

    def scatter(self, x: Tensor) -> Tensor:
        """(S,h,K*n,X) -> (R,h,n,X): the inverse of `gather`."""
        if self.largest > 1:
            x = x.unflatten(2, (self.largest, -1)).transpose(1, 2).flatten(0, 1)
        return x if self.regular else x[self._back]


def regrouped(
    prefix_of_row: Sequence[int], rows: Sequence[int], new_prefix_of_row: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Where every row stands once some `rows` have moved to new prefixes.

    Returns:
        The old prefixes that are still in use, and for every row its prefix among those and, behind them, the new.
    """
    moved = dict(zip(rows, new_prefix_of_row, strict=True))
    kept = sorted({prefix for row, prefix in enumerate(prefix_of_row) if row not in moved})
    place = {old: new for new, old in enumerate(kept)}
    after = [len(kept) + moved[row] if row in moved else place[prefix] for row, prefix in enumerate(prefix_of_row)]
    return kept, after


def used_by(prefix_of_row: Sequence[int], rows: Sequence[int]) -> tuple[list[int], list[int]]:
    """The prefixes that some rows, in the order given, continue, and for each of those rows its prefix among them."""
    used = sorted({prefix_of_row[row] for row in rows})
    place = {prefix: number for number, prefix in enumerate(used)}
    return used, [place[prefix_of_row[row]] for row in rows]


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
        shared = self.groups.scatter(self.groups.gather(queries) @ self.prefixes.keys[layer].transpose(-1, -2))
        own = queries @ keys.transpose(-1, -2)  # (R, h, n, u)
        if later is not None:
            own = own.masked_fill(later, -torch.inf)
        weights = torch.cat([shared, own], dim=-1).softmax(dim=-1, dtype=torch.float32).to(values.dtype)
        to_prefix, to_own = weights.split([self.prefix_length, keys.shape[2]], dim=-1)
        seen = self.groups.scatter(self.groups.gather(to_prefix) @ self.prefixes.values[layer])
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
