"""Batches of tokens, made as they come or cached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ivideogpt import CompressiveTokenizer, hub
from ivideogpt.data.loader import Batch, SegmentLoader
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.sources.npz import NpzFolder
from ivideogpt.training.loop import StepReport
from ivideogpt.training.run import CacheReport, train_transformer
from ivideogpt.training.tokens import CachedTokens, TokenBatch, TokenizedBatches, fill_cache, read_cache

Make = Callable[..., Any]
Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]
CPU = torch.device("cpu")
PARTS = ("tokens", "mask", "actions", "rewards", "states")


def numbered(count: int) -> TokenBatch:
    """Segments whose every entry tells their number."""
    rows = torch.arange(count)
    return TokenBatch(
        tokens=rows[:, None].expand(-1, 7).int(),
        mask=(rows % 2 == 0)[:, None].expand(-1, 3),
        actions=rows[:, None, None].expand(-1, 3, 2).float(),
        rewards=rows[:, None].expand(-1, 3).float(),
        states=rows[:, None, None].expand(-1, 3, 4).float(),
    )


def equal(one: TokenBatch, other: TokenBatch) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in PARTS]
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("count", "batch_size"), [(12, 4), (10, 4), (3, 8)])
def test_each_round_visits_every_segment_once(count: int, batch_size: int) -> None:
    cached = CachedTokens(numbered(count), batch_size, seed=3)
    rows = torch.cat([batch.tokens[:, 0] for batch in islice(cached.iterate(), 3 * count)])
    rounds = rows[: len(rows) // count * count].view(-1, count)
    assert all(sorted(visited) == list(range(count)) for visited in rounds.tolist())
    assert len({tuple(visited) for visited in rounds.tolist()}) > 1  # in another order each time


def test_cached_batches_are_a_pure_function_of_seed_and_step() -> None:
    cached = CachedTokens(numbered(10), 4, seed=3)
    later = [cached.batch_at(step) for step in (7, 2, 5)]
    again = CachedTokens(numbered(10), 4, seed=3)
    assert equal(again.batch_at(5), later[2]) and equal(again.batch_at(7), later[0])
    assert equal(next(again.iterate(2)), later[1])
    assert not equal(CachedTokens(numbered(10), 4, seed=4).batch_at(5), later[2])


def test_the_parts_of_a_segment_stay_together() -> None:
    batch = CachedTokens(numbered(10), 6, seed=0).batch_at(1)
    assert batch.tokens.dtype == torch.int64 and batch.tokens.shape == (6, 7)
    assert batch.actions is not None and batch.rewards is not None and batch.states is not None
    for row in range(6):
        number = int(batch.tokens[row, 0])
        assert batch.actions[row, 0, 0] == batch.rewards[row, 0] == batch.states[row, 0, 0] == number
        assert bool(batch.mask[row, 0]) == (number % 2 == 0)


class CountedLoader:
    """Batches of frames that counts how many were made."""

    def __init__(self, loader: SegmentLoader) -> None:
        self.loader, self.made = loader, 0

    def batch_at(self, step: int) -> Batch:
        self.made += 1
        return self.loader.batch_at(step)

    def iterate(self, start_step: int = 0) -> Iterator[Batch]:
        step = start_step
        while True:
            yield self.batch_at(step)
            step += 1


@pytest.fixture
def frames(make_episodes: MakeEpisodes) -> CountedLoader:
    spec = SegmentSpec(length=4, context_frames=2)
    source = NpzFolder(make_episodes(rewards=True, states=True))
    return CountedLoader(SegmentLoader(source, range(4), spec, 16, 3, seed=0, states=True))


@pytest.fixture
def tokenized(frames: CountedLoader, make_tokenizer: Make) -> TokenizedBatches:
    return TokenizedBatches(frames, make_tokenizer(), CPU, bf16=False)


def test_tokenized_batches(frames: CountedLoader, tokenized: TokenizedBatches) -> None:
    batch, source = tokenized.batch_at(2), frames.batch_at(2)
    assert torch.equal(batch.tokens, tokenized.tokenizer.tokenize(source.frames))
    assert torch.equal(batch.actions, source.actions) and torch.equal(batch.mask, source.mask)  # type: ignore[arg-type]
    assert equal(next(tokenized.iterate(2)), batch)
    assert equal(batch.to(CPU), batch)


def test_the_cache_file_holds_the_first_segments_of_the_stream(
    tmp_path: Path, frames: CountedLoader, tokenized: TokenizedBatches
) -> None:
    file = tmp_path / "run" / "tokens" / "segments.safetensors"
    assert read_cache(file, "this") is None
    assert list(fill_cache(tokenized, 7, file, "this")) == [3, 6, 7]
    assert frames.made == 3
    cached = read_cache(file, "this")
    assert cached is not None
    made = [tokenized.batch_at(step) for step in range(3)]
    for name in PARTS:
        assert torch.equal(getattr(cached, name), torch.cat([getattr(batch, name) for batch in made])[:7])
    assert cached.tokens.dtype == torch.int32
    assert list(tmp_path.glob("run/tokens/.*")) == []


def test_plain_video_is_cached_without_actions(tmp_path: Path, tokenized: TokenizedBatches) -> None:
    class Silent(TokenizedBatches):
        def iterate(self, start_step: int = 0) -> Iterator[TokenBatch]:
            return (TokenBatch(batch.tokens, batch.mask) for batch in super().iterate(start_step))

    silent = Silent(tokenized.batches, tokenized.tokenizer, CPU, bf16=False)
    list(fill_cache(silent, 2, tmp_path / "segments.safetensors", "this"))
    cached = read_cache(tmp_path / "segments.safetensors", "this")
    assert cached is not None and cached.actions is None and cached.rewards is None
    batch = CachedTokens(cached, 2, seed=0).batch_at(0)
    assert batch.actions is None and batch.states is None


@pytest.mark.parametrize("damage", ["interrupted", "truncated", "empty"])
def test_a_cache_that_is_not_whole_is_none(tmp_path: Path, tokenized: TokenizedBatches, damage: str) -> None:
    file = tmp_path / "segments.safetensors"
    if damage == "interrupted":
        next(fill_cache(tokenized, 7, file, "this"))
    else:
        list(fill_cache(tokenized, 7, file, "this"))
        file.write_bytes(file.read_bytes()[:-8] if damage == "truncated" else b"")
    assert read_cache(file, "this") is None
    list(fill_cache(tokenized, 7, file, "this"))
    assert read_cache(file, "this") is not None
    assert read_cache(file, "something else") is None


def test_a_training_keeps_its_cache_and_redoes_a_broken_one(
    tmp_path: Path, make_tokenizer: Make, make_episodes: MakeEpisodes, transformer_settings: Settings
) -> None:
    tokenizer: CompressiveTokenizer = make_tokenizer()
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    make_episodes()
    file = tmp_path / "run" / "tokens" / "segments.safetensors"

    def kinds(stop: int, **changes: Any) -> list[type]:
        return [type(item) for item in islice(train_transformer(transformer_settings(cache_tokens=4, **changes)), stop)]

    assert kinds(1) == [CacheReport]
    assert not file.exists()
    assert kinds(5, resume=True) == [CacheReport, CacheReport, *[StepReport] * 3]  # interrupted, so redone
    written = file.stat().st_mtime_ns
    assert kinds(1, resume=True) == [StepReport]
    assert file.stat().st_mtime_ns == written
    content = file.read_bytes()
    file.write_bytes(content[:50])
    assert kinds(3, resume=True) == [CacheReport, CacheReport, StepReport]
    assert file.read_bytes() == content
