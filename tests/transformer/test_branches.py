"""Many rows behind few prefixes: grouping, and attention against one row at a time without sharing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import VideoTransformer
from ivideogpt.errors import ShapeError
from ivideogpt.transformer import BranchedCache, Prefixes

MakeTransformer = Callable[..., VideoTransformer]

PREFIX = 12


def prefixes_of(model: VideoTransformer, x: Tensor) -> Prefixes:
    cache = model.new_cache(len(x), x.shape[1])
    model.hidden_states(x, cache)
    return Prefixes.of(cache)


def inputs(rows: int, count: int, seed: int) -> Tensor:
    return torch.randn(rows, count, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prefix_of_row", [[0, 1, 2], [0, 0, 1, 1, 2, 2], [2, 0, 2, 2, 1], [1, 1, 1]])
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [2, 1, 3], [6]])
@torch.no_grad()
def test_sharing_changes_nothing(
    make_transformer: MakeTransformer, prefix_of_row: list[int], pieces: list[int]
) -> None:
    model, shared = make_transformer(), inputs(3, PREFIX, seed=0)
    own = inputs(len(prefix_of_row), sum(pieces), seed=1)
    cache = BranchedCache(prefixes_of(model, shared), prefix_of_row, capacity=8)
    made = torch.cat([model.hidden_states(piece, cache) for piece in own.split(pieces, dim=1)], dim=1)
    whole = model.hidden_states(torch.cat([shared[prefix_of_row], own], dim=1))[:, PREFIX:]
    torch.testing.assert_close(made, whole)
    assert (cache.max_length, cache.in_lockstep) == (PREFIX + sum(pieces), True)


@torch.no_grad()
def test_rows_out_of_step(make_transformer: MakeTransformer) -> None:
    """Rows 0 and 2 begin anew behind other prefixes; then all go on, each at its own place."""
    model, prefixes = make_transformer(), inputs(4, PREFIX, seed=0)
    own, more = inputs(4, 3, seed=2), inputs(4, 5, seed=3)
    cache = BranchedCache(prefixes_of(model, prefixes), [0, 0, 1, 1], capacity=8)
    model.hidden_states(own, cache)
    cache.restart([0, 2], torch.tensor([0, 2]))
    cache.continue_prefixes(cache.prefixes, [3, 0, 2, 1])
    assert torch.isfinite(cache.values).all(), "what a row has not written is multiplied by 0 all the same"
    assert (cache.in_lockstep, cache.lengths, cache.starts.tolist()) == (False, [0, 3, 0, 3], [0, 3, 0, 3])
    made = torch.cat([model.hidden_states(piece, cache) for piece in more.split([1, 2, 2], dim=1)], dim=1)
    before = [prefixes[3], torch.cat([prefixes[0], own[1]]), prefixes[2], torch.cat([prefixes[1], own[3]])]
    for row, (past, future) in enumerate(zip(before, more, strict=True)):
        alone = model.hidden_states(torch.cat([past, future])[None])[0, len(past) :]
        torch.testing.assert_close(made[row], alone)


@torch.no_grad()
def test_copies_of_rows_go_their_own_ways(make_transformer: MakeTransformer) -> None:
    model, shared, own = make_transformer(), inputs(2, PREFIX, seed=0), inputs(2, 3, seed=1)
    cache = BranchedCache(prefixes_of(model, shared), [0, 1], capacity=8)
    model.hidden_states(own, cache)
    other, more = cache.copy([1, 1, 0], torch.tensor([1, 1, 0]), 2), inputs(3, 2, seed=2)
    made = model.hidden_states(more, other)
    whole = torch.cat([shared[[1, 1, 0]], own[[1, 1, 0]], more], dim=1)
    torch.testing.assert_close(made, model.hidden_states(whole)[:, PREFIX + 3 :])
    again = model.hidden_states(more[:2], cache)
    expected = model.hidden_states(torch.cat([shared, own, more[:2]], dim=1))[:, PREFIX + 3 :]
    torch.testing.assert_close(again, expected)


@torch.no_grad()
def test_what_copies_wrote_is_taken_back(make_transformer: MakeTransformer) -> None:
    model, shared, own = make_transformer(), inputs(3, PREFIX, seed=0), inputs(3, 3, seed=1)
    cache = BranchedCache(prefixes_of(model, shared), [0, 1, 2], capacity=8)
    model.hidden_states(own, cache)
    some, more = [2, 0], inputs(2, 2, seed=2)
    other = cache.copy(some, torch.tensor(some), 2)
    model.hidden_states(more, other)
    cache.take(some, torch.tensor(some), other, 2)
    assert (cache.lengths, cache.starts.tolist()) == ([5, 3, 5], [5, 3, 5])
    last = inputs(3, 1, seed=3)
    made = model.hidden_states(last, cache)
    past = [torch.cat([own[0], more[1]]), own[1], torch.cat([own[2], more[0]])]
    for row, before in enumerate(past):
        alone = model.hidden_states(torch.cat([shared[row], before, last[row]])[None])[0, -1:]
        torch.testing.assert_close(made[row], alone)


@torch.no_grad()
def test_rewinding(make_transformer: MakeTransformer) -> None:
    model, shared, own = make_transformer(), inputs(1, PREFIX, seed=0), inputs(2, 4, seed=1)
    cache = BranchedCache(prefixes_of(model, shared), [0, 0], capacity=4)
    expected = model.hidden_states(own, cache)
    with pytest.raises(ShapeError, match=r"4 \+ 1 tokens exceed the cache's 4 positions"):
        model.hidden_states(own[:, :1], cache)
    cache.rewind([1, 1])
    torch.testing.assert_close(model.hidden_states(own[:, 1:], cache), expected[:, 1:])
    held = 2 * 2 * 2 * 4 * 16 * 4  # keys and values, layers, rows, positions, channels, bytes
    assert cache.bytes == held + 2 * 8, "and where the rows stand"
