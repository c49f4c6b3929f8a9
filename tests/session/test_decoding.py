"""Tokens guessed and checked together are those drawn one by one, whatever the guesses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import VideoTransformer, WorldModel
from ivideogpt.config import SamplingConfig
from ivideogpt.sequence import TokenLayout
from ivideogpt.session.decoding import Drafting, decode_frame, decode_frame_from_draft
from ivideogpt.transformer import BranchedCache, Prefixes

MakeTransformer = Callable[..., VideoTransformer]

M, FIRST = 4, 32  # tokens a frame, and the first id that is legal there
SAMPLING = SamplingConfig(temperature=1.2, top_k=20)


@pytest.fixture
def transformer(make_transformer: MakeTransformer) -> VideoTransformer:
    return make_transformer(place_embedding=True)


def begun(transformer: VideoTransformer, rows: int) -> tuple[BranchedCache, Tensor, Tensor]:
    """A cache with a prefix behind it, the embeddings that lead to a frame, and the numbers that decide it."""
    generator = torch.Generator().manual_seed(rows)
    cache = transformer.new_cache(1, 10)
    transformer.hidden_states(torch.randn(1, 10, 16, generator=generator), cache)
    lead = torch.randn(rows, 2, 16, generator=generator)
    return BranchedCache(Prefixes.of(cache), [0] * rows, 20), lead, torch.rand(rows, M, generator=generator)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("wrong", [(), (0,), (1,), (3,), (0, 2), (0, 1, 2, 3)])
@torch.no_grad()
def test_drafts_change_nothing(transformer: VideoTransformer, rows: int, wrong: tuple[int, ...]) -> None:
    cache, lead, uniform = begun(transformer, rows)
    expected = decode_frame(transformer, cache, lead, uniform, SAMPLING, read_last=False)
    draft = expected.tokens.clone()
    for place in wrong:
        draft[rows - 1, place] = FIRST + (draft[rows - 1, place] - FIRST + 1) % 32
    other, lead, uniform = begun(transformer, rows)
    made, passes = decode_frame_from_draft(transformer, other, lead, uniform, SAMPLING, draft, read_last=False)
    assert torch.equal(made.tokens, expected.tokens)
    torch.testing.assert_close(made[1:3], expected[1:3])
    assert other.lengths == cache.lengths
    end = cache.lengths[0]
    torch.testing.assert_close(other.keys[:, :, :, :end], cache.keys[:, :, :, :end])
    assert passes == 1 + len([place for place in wrong if place < M - 1]), "the last guess is read by nobody"


@torch.no_grad()
def test_a_hopeless_frame_is_drawn_in_turn(make_transformer: MakeTransformer, monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = make_transformer(layout=TokenLayout(2, 16, 16, 32, 32))
    prefix = transformer.new_cache(1, 10)
    transformer.hidden_states(torch.randn(1, 10, 16), prefix)
    caches = [BranchedCache(Prefixes.of(prefix), [0], 20) for _ in range(2)]
    lead, uniform = torch.randn(1, 1, 16), torch.rand(1, 16)
    expected = decode_frame(transformer, caches[0], lead, uniform, SAMPLING, read_last=False).tokens
    reads: list[int] = []
    plain = transformer.hidden_states
    monkeypatch.setattr(transformer, "hidden_states", lambda x, cache: (reads.append(x.shape[1]), plain(x, cache))[1])
    wrong = FIRST + (expected - FIRST + 1) % 32
    made, passes = decode_frame_from_draft(transformer, caches[1], lead, uniform, SAMPLING, wrong, read_last=False)
    assert torch.equal(made.tokens, expected)
    assert passes == 16 and reads == [16, 15, 14] + [1] * 13


def test_drafting_stops_where_it_does_not_pay() -> None:
    drafting = Drafting()
    assert drafting.worthwhile(1, 1) and not drafting.worthwhile(1, 0) and not drafting.worthwhile(2, 1)
    drafting.learn(passes=4, tokens=16)
    assert drafting.worthwhile(1, 1)
    drafting.learn(passes=12, tokens=16)
    waited = [drafting.worthwhile(1, 1) for _ in range(20)]
    assert not any(waited[:15]) and waited[15], "tried again after a while"
    assert not Drafting(allowed=False).worthwhile(1, 1)


def test_a_session_guesses_from_the_frame_before(
    make_world_model: Callable[..., WorldModel], make_frames: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same number for every draw of a place, a model that is sure of itself repeats its frames."""
    model = make_world_model()
    with torch.no_grad():
        model.transformer.head.weight.zero_()  # every id is as likely, so only the number decides
    monkeypatch.setattr(
        "ivideogpt.session.state.uniform_numbers", lambda keys, *_: torch.full((1, 5, M), 0.5, device=keys.device)
    )
    reads: list[int] = []
    plain = model.transformer.hidden_states
    monkeypatch.setattr(
        model.transformer, "hidden_states", lambda x, cache: (reads.append(x.shape[1]), plain(x, cache))[1]
    )
    session = model.start(make_frames(1, 2), horizon=5)
    reads.clear()
    for _ in range(3):
        session.step(decode=False)
    drafted = model.device.type == "cpu"
    assert reads == ([2, 1, 1, 1, 2 + M - 1, 2 + M - 1] if drafted else [2, 1, 1, 1] * 3)
    plain_session = model.start(make_frames(1, 2), horizon=5, drafts=False)
    reads.clear()
    for _ in range(3):
        plain_session.step(decode=False)
    assert reads == [2, 1, 1, 1] * 3
