"""Rows and the prefixes they continue: each row is multiplied with its own, whatever the order and the numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivideogpt.transformer.groups import Groups, regrouped

CPU = torch.device("cpu")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_every_row_is_multiplied_with_its_prefix(prefix_of_row: list[int]) -> None:
    x, matrices = torch.randn(len(prefix_of_row), 2, 3, 5), torch.randn(6, 2, 5, 4)
    groups = Groups(prefix_of_row, 6, CPU)
    torch.testing.assert_close(groups.multiply(x, matrices), x @ matrices[prefix_of_row])
    assert groups.places <= 1.5 * len(prefix_of_row)


def test_a_large_group_beside_small_ones_is_not_what_they_are_filled_up_to() -> None:
    assert Groups([0] * 50 + list(range(1, 51)), 51, CPU).places == 100


@pytest.mark.parametrize(
    ("prefix_of_row", "regular"),
    [([0, 1, 2], True), ([0, 0, 1, 1], True), ([0, 1, 0, 1], False), ([0, 0, 1], False), ([1, 0], False)],
)
def test_regular_rows_need_not_be_moved(prefix_of_row: list[int], regular: bool) -> None:
    assert Groups(prefix_of_row, max(prefix_of_row) + 1, CPU).regular == regular


def test_regrouping() -> None:
    kept, after = regrouped([0, 0, 1, 2], rows=[1, 3], new_prefix_of_row=[1, 0])
    assert kept == [0, 1]
    assert after == [0, 3, 1, 2]
    assert regrouped([0, 1], [0, 1], [0, 1]) == ([], [0, 1])
