"""Rows and the prefixes they continue: each row is multiplied with its own, whatever the order and the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.transformer.groups import Groups


def groups_of(prefix_of_row: list[int]) -> Groups:
    return Groups(prefix_of_row, torch.tensor(prefix_of_row))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
@settings(deadline=None)
def test_every_row_is_multiplied_with_its_prefix(prefix_of_row: list[int]) -> None:
    x, matrices = torch.randn(len(prefix_of_row), 2, 3, 5), torch.randn(6, 2, 5, 4)
    torch.testing.assert_close(groups_of(prefix_of_row).multiply(x, matrices), x @ matrices[prefix_of_row])


@pytest.mark.parametrize(
    ("prefix_of_row", "regular"),
    [
        ([0, 1, 2], slice(0, 3)),
        ([0, 0, 1, 1], slice(0, 2)),
        ([3, 4], slice(3, 5)),
        ([0, 1, 0, 1], None),
        ([0, 0, 1], None),
        ([1, 0], None),
        ([0, 2], None),
    ],
)
def test_regular_rows_need_not_be_moved(prefix_of_row: list[int], regular: slice | None) -> None:
    assert groups_of(prefix_of_row).regular == regular
