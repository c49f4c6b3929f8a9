"""Random streams: known answers, one stream a row, and numbers that depend on nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ivideogpt.transformer.streams import philox, stream_key, uniform_numbers


def drawn(keys: Sequence[tuple[int, ...]], first: Sequence[int] = (), frames: int = 1, count: int = 50) -> Tensor:
    made = torch.tensor([stream_key(key) for key in keys])
    return uniform_numbers(made, torch.tensor(list(first) or [0] * len(keys)), frames, count)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    """Those published with Random123, for Philox4x32-10."""
    words = philox([torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key])
    assert [int(word) for word in words] == expected


def test_a_stream_is_known_by_its_key() -> None:
    keys = [(7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (2**62 + 1, 0, 0)]
    numbers = drawn(keys)[:, 0]
    assert (numbers.shape, numbers.dtype) == ((5, 50), torch.float32)
    assert 0 <= numbers.min() <= numbers.max() < 1
    assert len({tuple(row) for row in numbers.tolist()}) == len(keys)
    for i, key in enumerate(keys):
        assert torch.equal(drawn([key])[0, 0], numbers[i]), "whatever else is in the batch"


def test_a_stream_goes_on() -> None:
    whole = drawn([(3,), (4,)], frames=6, count=16)
    assert len({tuple(frame) for frame in whole.flatten(0, 1).tolist()}) == 12
    assert torch.equal(drawn([(3,), (4,)], [2, 5], 1, 16)[:, 0], torch.stack([whole[0, 2], whole[1, 5]]))
    assert torch.equal(drawn([(3,), (4,)], frames=6, count=5), whole[:, :, :5]), "how many are drawn changes none"


def test_streams_leave_the_global_generators_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    drawn([(1, 2, 3)])
    assert torch.equal(torch.rand(1), expected)


def test_keys_of_large_numbers_are_kept_apart() -> None:
    assert not torch.equal(drawn([(5 + 3 * 2**32, 2, 0)]), drawn([(5, 3, 2)]))


def test_streams_are_independent() -> None:
    numbers = drawn([(0, b, k) for b in range(8) for k in range(8)], count=2000)[:, 0]
    correlation = torch.corrcoef(numbers)
    correlation.fill_diagonal_(0)
    assert correlation.abs().max() < 5 / math.sqrt(2000)
