from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivideogpt.data.augment import STANDARD
from ivideogpt.data.episode import Episode
from ivideogpt.data.loader import Batch, SegmentLoader, split_episodes
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.sources.npz import NpzFolder, write_episode
from ivideogpt.errors import ConfigError, EpisodeError

MakeEpisode = Callable[..., Episode]
SPEC = SegmentSpec(5, 2, horizon=8, selection="random_future")


class Episodes:
    """A source that counts how often it is read."""

    def __init__(self, *episodes: Episode) -> None:
        self.episodes = episodes
        self.reads = 0

    def __len__(self) -> int:
        return len(self.episodes)

    def read(self, index: int) -> Episode:
        self.reads += 1
        return self.episodes[index]


def counting(length: int) -> np.ndarray:
    """States (length, 3) that tell the number of their frame."""
    return np.repeat(np.arange(length, dtype=np.float32), 3).reshape(length, 3)


def assert_equal(one: Batch, other: Batch) -> None:
    for name in ("frames", "actions", "rewards", "mask", "states"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours is theirs is None or torch.equal(ours, theirs)


@given(count=st.integers(2, 500), every=st.integers(2, 150), seed=st.integers(0, 10_000))
def test_split(count: int, every: int, seed: int) -> None:
    train, validation = split_episodes(count, every, seed)
    assert train
    assert validation
    assert sorted(train + validation) == list(range(count))
    assert len(validation) <= count // min(every, count) + 1
    assert split_episodes(count, every, seed) == (train, validation)


def test_split_holds_out_every_hundredth() -> None:
    assert split_episodes(300)[1] == [0, 100, 200]
    assert split_episodes(300, seed=7)[1] == [7, 107, 207]


def test_split_of_too_little() -> None:
    with pytest.raises(EpisodeError, match="1 episode; training needs at least 2"):
        split_episodes(1)
    with pytest.raises(ConfigError, match="validation_every is 1"):
        split_episodes(10, validation_every=1)


def test_shapes(make_episode: MakeEpisode) -> None:
    source = Episodes(make_episode(length=9), make_episode(length=30))
    batch = SegmentLoader(source, [0, 1], SPEC, 4, batch_size=3, seed=0).batch_at(0)
    assert batch.frames.shape == (3, 5, 3, 4, 4)
    assert batch.frames.dtype == torch.uint8
    assert batch.actions is not None
    assert batch.actions.shape == (3, 5, 2)
    assert batch.rewards is not None
    assert batch.rewards.shape == (3, 5)
    assert batch.mask.shape == (3, 5)
    assert_equal(batch, batch.to("cpu"))


def test_frames_actions_and_rewards_stay_together(make_episode: MakeEpisode) -> None:
    loader = SegmentLoader(Episodes(make_episode(length=30)), [0], SPEC, 8, batch_size=8, seed=0)
    batch = loader.batch_at(3)
    number = batch.frames[:, :, 0, 0, 0].float()
    assert batch.actions is not None
    assert torch.equal(batch.actions[..., 0], number)
    assert batch.rewards is not None
    assert torch.equal(batch.rewards, number)


def test_a_step_takes_a_block_of_actions_and_never_shrinks(make_episode: MakeEpisode) -> None:
    spec = SegmentSpec(length=5, context_frames=2, step_size=3)
    for actions, step in ((True, 3), (False, 1)):
        episode = make_episode(length=8, **({} if actions else {"actions": None}))
        batch = SegmentLoader(Episodes(episode), [0], spec, 8, batch_size=4, seed=0).batch_at(0)
        number = batch.frames[:, :, 0, 0, 0].float()
        assert (number[:, 1] - number[:, 0] == step).all()
        assert batch.rewards is not None and torch.equal(batch.rewards, number)
        if batch.actions is not None:
            assert number.tolist() == [[0, 3, 6, 6, 6]] * 4 and batch.mask.tolist() == [[True] * 3 + [False] * 2] * 4
            assert batch.actions[0, :3].tolist() == [[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [6, 6, 7, 7, 7, 7]]
        assert (batch.actions is not None) == actions


def test_an_episode_whose_context_does_not_fit_the_step_is_named(make_episode: MakeEpisode) -> None:
    spec = SegmentSpec(length=5, context_frames=2, step_size=3)
    loader = SegmentLoader(Episodes(make_episode(length=3)), [0], spec, 8, batch_size=1, seed=0)
    with pytest.raises(EpisodeError, match=r"episode 0 of the dataset: the episode has 3 frames; .* needs 4"):
        loader.batch_at(0)


def test_states_come_where_they_are_asked_for(tmp_path: Path, make_episode: MakeEpisode) -> None:
    write_episode(tmp_path / "0.npz", make_episode(length=30, states=counting(30)))
    write_episode(tmp_path / "1.npz", make_episode(length=6, states=counting(6)))
    source = NpzFolder(tmp_path)
    assert SegmentLoader(source, [0, 1], SPEC, 8, 2, seed=0).batch_at(0).states is None
    loader = SegmentLoader(source, [0, 1], SPEC, 8, batch_size=8, seed=0, augment=STANDARD, states=True)
    batch = loader.batch_at(0)
    assert batch.states is not None and batch.states.dtype == torch.float32 and batch.states.shape == (8, 5, 3)
    assert batch.rewards is not None
    assert torch.equal(batch.states, batch.rewards[..., None].expand(-1, -1, 3))
    assert_equal(batch, batch.to("cpu"))
    helped = SegmentLoader(source, [0, 1], SPEC, 8, batch_size=8, seed=0, augment=STANDARD, workers=1, states=True)
    assert_equal(next(helped.iterate()), batch)


def test_episodes_whose_states_differ_matter_only_where_they_are_asked_for(make_episode: MakeEpisode) -> None:
    states = [np.zeros((20, 2), np.float32), np.zeros((20, 3), np.float32), None]
    source = Episodes(*(make_episode(states=values) for values in states))
    SegmentLoader(source, [0, 1, 2], SPEC, 8, batch_size=16, seed=0).batch_at(0)
    for indices, sizes in (([0, 1], "2 and 3"), ([0, 2], "2 and none")):
        with pytest.raises(EpisodeError, match=rf"states differ .*states per frame: {sizes}"):
            SegmentLoader(source, indices, SPEC, 8, batch_size=16, seed=0, states=True).batch_at(0)


def test_plain_video(make_episode: MakeEpisode) -> None:
    source = Episodes(make_episode(actions=None, rewards=None))
    batch = SegmentLoader(source, [0], SPEC, 8, batch_size=2, seed=0).batch_at(0).to("cpu")
    assert batch.actions is None
    assert batch.rewards is None


def test_a_batch_follows_from_seed_and_step(make_episode: MakeEpisode) -> None:
    source = Episodes(*(make_episode(length=length) for length in (9, 20, 30)))
    loader = SegmentLoader(source, [0, 1, 2], SPEC, 8, batch_size=4, seed=1, augment=STANDARD)
    again = SegmentLoader(source, [0, 1, 2], SPEC, 8, batch_size=4, seed=1, augment=STANDARD, cache_mb=0)
    later = [loader.batch_at(step) for step in (5, 4)]
    assert_equal(again.batch_at(4), later[1])
    assert_equal(again.batch_at(5), later[0])
    for number, batch in enumerate(islice(loader.iterate(4), 2)):
        assert_equal(batch, later[1 - number])
    other = SegmentLoader(source, [0, 1, 2], SPEC, 8, batch_size=4, seed=2, augment=STANDARD)
    assert not torch.equal(other.batch_at(4).frames, later[1].frames)
    assert not torch.equal(later[0].frames, later[1].frames)


def test_only_the_given_episodes_are_drawn_all_alike(make_episode: MakeEpisode) -> None:
    source = Episodes(*(make_episode(rewards=np.full(20, number, np.float32)) for number in range(4)))
    batch = SegmentLoader(source, [1, 3], SPEC, 8, batch_size=400, seed=0).batch_at(0)
    assert batch.rewards is not None
    counts = np.bincount(batch.rewards[:, 0].int().numpy(), minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[1] == pytest.approx(200, abs=50)


def test_workers_change_nothing(tmp_path: Path, make_episode: MakeEpisode) -> None:
    for number in range(3):
        write_episode(tmp_path / f"{number}.npz", make_episode(length=20 + number))
    alone, helped = (
        SegmentLoader(NpzFolder(tmp_path), range(3), SPEC, 8, 2, seed=0, augment=STANDARD, workers=workers)
        for workers in (0, 2)
    )
    for ours, theirs in zip(islice(alone.iterate(7), 5), helped.iterate(7), strict=False):
        assert_equal(ours, theirs)


def test_a_mistake_in_a_worker_reads_like_one_here(tmp_path: Path, make_episode: MakeEpisode) -> None:
    write_episode(tmp_path / "0.npz", make_episode(length=1))
    loader = SegmentLoader(NpzFolder(tmp_path), [0], SPEC, 8, batch_size=1, seed=0, workers=1)
    with pytest.raises(EpisodeError) as caught:
        next(loader.iterate())
    assert str(caught.value).startswith("episode 0 of the dataset: the episode has 1 frames; the context alone")
    assert "Traceback" not in str(caught.value)


def test_cache_is_bounded(make_episode: MakeEpisode) -> None:
    episodes = [make_episode(length=100, height=64, width=64) for _ in range(4)]  # 1.2 MB each
    for cache_mb, reads in ((0, 80), (3, None), (100, 4)):
        source = Episodes(*episodes)
        loader = SegmentLoader(source, range(4), SPEC, 8, batch_size=8, seed=0, cache_mb=cache_mb)
        for step in range(10):
            loader.batch_at(step)
        assert loader._episodes._bytes <= cache_mb * 2**20
        assert source.reads == reads if reads is not None else 4 < source.reads < 80


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "actions differ between the episodes.*2 and none"),
        ({"actions": np.zeros((20, 7), np.float32)}, "actions differ between the episodes.*2 and 7"),
        ({"rewards": None}, "rewards differ between the episodes"),
    ],
)
def test_episodes_that_do_not_go_together(
    make_episode: MakeEpisode, changes: dict[str, np.ndarray | None], message: str
) -> None:
    source = Episodes(make_episode(), make_episode(**changes))
    with pytest.raises(EpisodeError, match=message):
        SegmentLoader(source, [0, 1], SPEC, 8, batch_size=16, seed=0).batch_at(0)


def test_refuses_nothing_to_draw_from() -> None:
    with pytest.raises(ConfigError, match="indices is empty"):
        SegmentLoader(Episodes(), [], SPEC, 8, batch_size=1, seed=0)
    with pytest.raises(ConfigError, match="batch_size is 0"):
        SegmentLoader(Episodes(), [0], SPEC, 8, batch_size=0, seed=0)
