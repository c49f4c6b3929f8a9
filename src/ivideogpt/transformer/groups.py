"""Which rows continue which prefix, and products of rows with what belongs to their prefix.

Shapes: S prefixes, R rows, h heads, n new positions, X and Y anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_WASTE = 1.5  # a band may hold this many times the places that its rows need


class _Band(NamedTuple):
    """Neighbouring prefixes that are continued by numbers of rows so alike that one product serves them all."""

    prefixes: slice
    """s of them."""
    rows: Tensor
    """(s*K,) their rows, prefix by prefix, each filled up to K with row 0; what that gets there is thrown away."""


class Groups:
    """Which rows continue which prefix.

    Args:
        prefix_of_row: R indices of prefixes.
        prefixes: S.
        device: where the products are made.
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
        self._bands: list[_Band] = []
        back: dict[int, int] = {}
        for band in _bands([len(group) for group in rows]):
            width, offset = max(len(group) for group in rows[band]), sum(len(band.rows) for band in self._bands)
            padded = [row for group in rows[band] for row in group + [0] * (width - len(group))]
            back |= {row: offset + s * width + k for s, group in enumerate(rows[band]) for k, row in enumerate(group)}
            self._bands.append(_Band(band, torch.tensor(padded, device=device)))
        self._back = torch.tensor([back[row] for row in range(len(flat))], device=device)

    @property
    def places(self) -> int:
        """Rows that are multiplied, those that fill up included."""
        return sum(len(band.rows) for band in self._bands)

    def multiply(self, x: Tensor, by_prefix: Tensor) -> Tensor:
        """Rows (R,h,n,X) times matrices (S,h,X,Y) of their prefixes -> (R,h,n,Y); each is read once for all rows."""
        if self.regular:
            return _multiply(x, by_prefix)
        parts = [_multiply(x[band.rows], by_prefix[band.prefixes]) for band in self._bands]
        return (parts[0] if len(parts) == 1 else torch.cat(parts))[self._back]


def _multiply(x: Tensor, by_prefix: Tensor) -> Tensor:
    """Rows (s*K,h,n,X), K of each prefix, times (s,h,X,Y) -> (s*K,h,n,Y)."""
    count = len(by_prefix)
    if len(x) == count:
        return x @ by_prefix
    together = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)  # (s, h, K*n, X)
    y = together @ by_prefix
    return y.unflatten(2, (-1, x.shape[2])).transpose(1, 2).flatten(0, 1)


def _bands(sizes: Sequence[int]) -> list[slice]:
    """Runs of neighbouring groups which, filled up to their largest, waste little; empty groups are left out."""
    bands: list[slice] = []
    for number, size in enumerate(sizes):
        if size == 0:
            continue
        if bands and bands[-1].stop == number:
            run = sizes[bands[-1].start : number + 1]
            if len(run) * max(run) <= _WASTE * sum(run):
                bands[-1] = slice(bands[-1].start, number + 1)
                continue
        bands.append(slice(number, number + 1))
    return bands


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
