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
    assert (cache.furthest, cache.in_step) == (PREFIX + sum(pieces), True)


@torch.no_grad()
def test_rows_out_of_step(make_transformer: MakeTransformer) -> None:
    """Rows 0 and 2 begin anew behind other prefixes; then all go on, each at its own place."""
    model, first, second = make_transformer(), inputs(2, PREFIX, seed=0), inputs(2, PREFIX, seed=1)
    own, more = inputs(4, 3, seed=2), inputs(4, 5, seed=3)
    cache = BranchedCache(prefixes_of(model, first), [0, 0, 1, 1], capacity=8)
    model.hidden_states(own, cache)
    cache.restart([0, 2], prefixes_of(model, second), [1, 0])
    assert torch.isfinite(cache.values).all(), "what a row has not written is multiplied by 0 all the same"
    assert (cache.in_step, cache.lengths) == (False, [0, 3, 0, 3])
    made = torch.cat([model.hidden_states(piece, cache) for piece in more.split([1, 2, 2], dim=1)], dim=1)
    before = [second[1], torch.cat([first[0], own[1]]), second[0], torch.cat([first[1], own[3]])]
    for row, (past, future) in enumerate(zip(before, more, strict=True)):
        alone = model.hidden_states(torch.cat([past, future])[None])[0, len(past) :]
        torch.testing.assert_close(made[row], alone)


@torch.no_grad()
def test_selected_rows_go_their_own_ways(make_transformer: MakeTransformer) -> None:
    model, shared, own = make_transformer(), inputs(2, PREFIX, seed=0), inputs(2, 3, seed=1)
    cache = BranchedCache(prefixes_of(model, shared), [0, 1], capacity=8)
    model.hidden_states(own, cache)
    other, more = cache.select([1, 1, 0]), inputs(3, 2, seed=2)
    assert other.prefixes is cache.prefixes
    assert cache.select([1, 1]).prefixes.keys.shape[1] == 1, "what no row continues is not kept"
    made = model.hidden_states(more, other)
    whole = torch.cat([shared[[1, 1, 0]], own[[1, 1, 0]], more], dim=1)
    torch.testing.assert_close(made, model.hidden_states(whole)[:, PREFIX + 3 :])
    again = model.hidden_states(more[:2], cache)
    expected = model.hidden_states(torch.cat([shared, own, more[:2]], dim=1))[:, PREFIX + 3 :]
    torch.testing.assert_close(again, expected)


@torch.no_grad()
def test_rewinding(make_transformer: MakeTransformer) -> None:
    model, shared, own = make_transformer(), inputs(1, PREFIX, seed=0), inputs(2, 4, seed=1)
    cache = BranchedCache(prefixes_of(model, shared), [0, 0], capacity=4)
    expected = model.hidden_states(own, cache)
    with pytest.raises(ShapeError, match=r"4 \+ 1 tokens exceed the cache's 4 positions"):
        model.hidden_states(own[:, :1], cache)
    cache.rewind([1, 1])
    torch.testing.assert_close(model.hidden_states(own[:, 1:], cache), expected[:, 1:])
    held = 2 * 2 * (1 * PREFIX + 2 * 4) * 16 * 4  # keys and values, layers, positions, channels, bytes
    assert cache.bytes == held
