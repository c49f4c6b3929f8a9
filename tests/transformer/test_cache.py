"""The cached path against full recomputation, and the cache as a bounded object."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import VideoTransformer
from ivideogpt.errors import ShapeError
from ivideogpt.transformer import KeyValueCache

MakeTransformer = Callable[..., VideoTransformer]

LENGTH = 40


@pytest.fixture
def embeddings() -> Tensor:
    return torch.randn(3, LENGTH, 16, generator=torch.Generator().manual_seed(0))


def in_pieces(model: VideoTransformer, x: Tensor, pieces: list[int], capacity: int = LENGTH) -> Tensor:
    cache = model.new_cache(len(x), capacity)
    return torch.cat([model.hidden_states(piece, cache) for piece in x.split(pieces, dim=1)], dim=1)


@pytest.mark.parametrize(
    "pieces", [[LENGTH], [1] * LENGTH, [33, 1, 1, 1, 2, 1, 1], [10, 10, 10, 10], [39, 1], [1, 39], [5, 35]]
)
@torch.no_grad()
def test_equals_full_recomputation(make_transformer: MakeTransformer, embeddings: Tensor, pieces: list[int]) -> None:
    model = make_transformer()
    torch.testing.assert_close(in_pieces(model, embeddings, pieces), model.hidden_states(embeddings))


@torch.no_grad()
def test_half_precision_takes_the_same_path(make_transformer: MakeTransformer, embeddings: Tensor) -> None:
    model = make_transformer()
    exact = model.hidden_states(embeddings)
    made = in_pieces(model.to(torch.bfloat16), embeddings.bfloat16(), [33, 1, 1, 1, 2, 1, 1])
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made.float(), exact, atol=0.1, rtol=0.05)


@torch.no_grad()
def test_room_to_spare_changes_nothing(make_transformer: MakeTransformer, embeddings: Tensor) -> None:
    model = make_transformer()
    spare = in_pieces(model, embeddings, [30, 1, 9], capacity=200)
    torch.testing.assert_close(spare, model.hidden_states(embeddings))


@torch.no_grad()
def test_a_full_cache_says_so(make_transformer: MakeTransformer, embeddings: Tensor) -> None:
    model = make_transformer()
    cache = model.new_cache(3, 35)
    model.hidden_states(embeddings[:, :30], cache)
    with pytest.raises(ShapeError, match=r"30 \+ 10 tokens exceed the cache's 35 positions"):
        model.hidden_states(embeddings[:, 30:], cache)
    assert cache.length == 30
    model.hidden_states(embeddings[:, 30:35], cache)
    assert cache.length == 35


@torch.no_grad()
def test_positions_run_out(make_transformer: MakeTransformer, embeddings: Tensor) -> None:
    model = make_transformer(max_positions=39)
    cache = model.new_cache(3, LENGTH)
    model.hidden_states(embeddings[:, :39], cache)
    with pytest.raises(ShapeError, match="40 tokens exceeds the model's 39 positions"):
        model.hidden_states(embeddings[:, 39:], cache)


def test_bounded_and_allocated_once() -> None:
    cache = KeyValueCache(2, 3, 4, 10, 8, torch.device("cpu"), torch.bfloat16)
    assert cache.bytes == 2 * (2 * 3 * 4 * 10 * 8) * 2
    address = cache.keys.data_ptr()
    keys, values = torch.randn(2, 3, 4, 5, 8)
    filled = cache.append(0, keys, values)
    assert cache.length == 0, "the other layers are still to come"
    assert torch.equal(filled[0], keys.bfloat16())
    assert torch.equal(filled[1], values.bfloat16())
    cache.append(1, keys, values)
    cache.advance(5)
    more, _ = cache.append(0, keys[:, :, :1], values[:, :, :1])
    assert torch.equal(more, torch.cat([keys, keys[:, :, :1]], dim=2).bfloat16())
    assert cache.keys.data_ptr() == address == more.data_ptr()


def test_follows_the_weights(make_transformer: MakeTransformer) -> None:
    cache = make_transformer(layers=3).to(torch.bfloat16).new_cache(2, 7)
    assert cache.keys.shape == cache.values.shape == (3, 2, 2, 7, 8)
    assert cache.keys.dtype == torch.bfloat16
