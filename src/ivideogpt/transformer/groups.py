"""Which rows continue which prefix, and products of rows with what belongs to their prefix.

Shapes: S prefixes, R rows, h heads, n new positions, X and Y anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor


class Groups:
    """Which rows continue which prefix.

    Neighbouring prefixes that equally many rows continue are one product: a matrix a prefix, read once for its rows.

    Args:
        prefix_of_row: R indices of prefixes.
        on_device: (R,) int64, the same where the products are made.
    """

    def __init__(self, prefix_of_row: Sequence[int], on_device: Tensor) -> None:
        rows_of: dict[int, list[int]] = {prefix: [] for prefix in sorted(set(prefix_of_row))}
        for row, prefix in enumerate(prefix_of_row):
            rows_of[prefix].append(row)
        runs = groupby(enumerate(rows_of), lambda item: (item[1] - item[0], len(rows_of[item[1]])))
        self._bands = []  # prefixes, and how many rows all of them have together
        for _, run in runs:
            prefixes = [prefix for _, prefix in run]
            band = slice(prefixes[0], prefixes[-1] + 1)
            self._bands.append((band, sum(len(rows_of[prefix]) for prefix in prefixes)))
        order = [row for rows in rows_of.values() for row in rows]
        in_order = order == list(range(len(order)))
        self.regular: slice | None = self._bands[0][0] if in_order and len(self._bands) == 1 else None
        """Where the rows stand prefix by prefix, equally many of each: those prefixes."""
        self._order = self._back = None
        if not in_order:
            self._order = on_device.argsort(stable=True)
            self._back = self._order.argsort()

    def multiply(self, x: Tensor, by_prefix: Tensor) -> Tensor:
        """Rows (R,h,n,X) times matrices (S,h,X,Y) of their prefixes -> (R,h,n,Y); each is read once for all rows."""
        if self._order is not None:
            x = x.index_select(0, self._order)
        parts = x.split([rows for _, rows in self._bands])
        made = [_multiply(part, by_prefix[band]) for part, (band, _) in zip(parts, self._bands, strict=True)]
        y = made[0] if len(made) == 1 else torch.cat(made)
        return y if self._back is None else y.index_select(0, self._back)


def _multiply(x: Tensor, by_prefix: Tensor) -> Tensor:
    """Rows (s*K,h,n,X), K of each prefix, times (s,h,X,Y) -> (s*K,h,n,Y)."""
    count = len(by_prefix)
    if len(x) == count:
        return x @ by_prefix
    together = x.unflatten(0, (count, -1)).transpose(1, 2).flatten(2, 3)  # (s, h, K*n, X)
    y = together @ by_prefix
    return y.unflatten(2, (-1, x.shape[2])).transpose(1, 2).flatten(0, 1)
