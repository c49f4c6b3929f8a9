from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ivideogpt.data.episode import Episode
from ivideogpt.data.segment import (
    SegmentSpec,
    action_blocks,
    choose_frames,
    cut_segment,
    first_frames,
    fit_to_square,
)
from ivideogpt.errors import ConfigError, EpisodeError

MakeEpisode = Callable[..., Episode]


@st.composite
def specs(draw: st.DrawFn) -> SegmentSpec:
    goal = draw(st.booleans())
    context = draw(st.integers(1, 3)) + goal
    length = context + draw(st.integers(1, 8))
    selection = draw(st.sampled_from(["contiguous", "random_future", "shuffled"]))
    horizon = None if selection == "contiguous" else length - goal + draw(st.integers(0, 8))
    return SegmentSpec(length, context, draw(st.integers(1, 4)), horizon, selection, goal)


@settings(max_examples=300, deadline=None)
@given(spec=specs(), extra=st.integers(0, 60), seed=st.integers(0, 2**32), shrink=st.booleans())
def test_chosen_frames(spec: SegmentSpec, extra: int, seed: int, shrink: bool) -> None:
    context = spec.context_frames - spec.goal
    episode_length = (context if shrink else (context - 1) * spec.step_size + 1) + extra
    choice = choose_frames(spec, episode_length, np.random.default_rng(seed), shrink=shrink)
    assert choice.step_size == spec.step_size
    assert choice.indices.shape == choice.mask.shape == (spec.length,)
    assert choice.indices.dtype == np.int64
    assert choice.indices.min() >= 0
    assert choice.indices.max() < episode_length

    indices, mask = choice.indices, choice.mask
    if spec.goal:
        assert mask[0]
        assert indices[0] == indices[-1]
        indices, mask = indices[1:], mask[1:]
    real = indices[mask]
    assert mask[: len(real)].all(), "padding comes last"
    assert (indices[len(real) :] == real[-1]).all(), "padding repeats the last frame"
    reached = episode_length if shrink else -(-episode_length // spec.step_size)
    assert len(real) == min(spec.drawn_frames, reached)
    assert len(set(real.tolist())) == len(real), "no frame twice"

    step = spec.step_size
    if shrink and episode_length < step * spec.window:
        step = max(1, episode_length // spec.window)
    assert ((real - real.min()) % step == 0).all()
    assert np.ptp(real) <= step * (spec.window - 1)
    ordered = spec.context_frames - spec.goal if spec.selection == "random_future" else len(real)
    if spec.selection != "shuffled":
        assert (np.diff(real[:ordered]) == step).all()
        assert (np.diff(real) > 0).all()


def test_every_start_is_equally_likely() -> None:
    spec, rng = SegmentSpec(4, 1, step_size=2), np.random.default_rng(0)
    starts = [int(choose_frames(spec, 10, rng).indices[0]) for _ in range(4000)]
    share = np.bincount(starts) / len(starts)
    np.testing.assert_allclose(share, np.full(4, 0.25), atol=0.03)  # starts 0..3: 3 + 3 x 2 is the last frame


def test_every_future_frame_is_equally_likely() -> None:
    spec, rng = SegmentSpec(5, 2, horizon=8, selection="random_future"), np.random.default_rng(0)
    drawn = np.concatenate([choose_frames(spec, 8, rng).indices[2:] for _ in range(2000)])
    share = np.bincount(drawn, minlength=8)[2:] / len(drawn)
    np.testing.assert_allclose(share, np.full(6, 1 / 6), atol=0.02)


def test_step_shrinks_before_frames_are_padded() -> None:
    spec, rng = SegmentSpec(4, 1, step_size=5), np.random.default_rng(0)
    assert np.diff(choose_frames(spec, 19, rng).indices).tolist() == [4, 4, 4]
    assert np.diff(choose_frames(spec, 8, rng).indices).tolist() == [2, 2, 2]
    padded = choose_frames(spec, 3, rng)
    assert padded.indices.tolist() == [0, 1, 2, 2]
    assert padded.mask.tolist() == [True, True, True, False]


def test_the_step_stays_where_actions_are_used() -> None:
    spec, rng = SegmentSpec(4, 2, step_size=5), np.random.default_rng(0)
    assert choose_frames(spec, 16, rng, shrink=False).indices.tolist() == [0, 5, 10, 15]
    for length, expected in ((15, [0, 5, 10, 10]), (11, [0, 5, 10, 10]), (10, [0, 5, 5, 5]), (6, [0, 5, 5, 5])):
        for choice in (choose_frames(spec, length, rng, shrink=False), first_frames(spec, length, shrink=False)):
            assert choice.indices.tolist() == expected
            assert choice.mask.tolist() == [True, True, expected[2] == 10, False]
    for choose in (lambda: choose_frames(spec, 5, rng, shrink=False), lambda: first_frames(spec, 5, shrink=False)):
        with pytest.raises(
            EpisodeError, match=r"5 frames; the context alone needs 6\..* or with a step_size below 5\."
        ):
            choose()
    assert np.diff(choose_frames(spec, 5, rng).indices).tolist() == [1, 1, 1]


def test_blocks_hold_the_actions_of_a_step_oldest_first() -> None:
    actions = np.stack([np.arange(6), 10 + np.arange(6)], axis=1).astype(np.float32)
    blocks = action_blocks(actions, [0, 2, 5, 4], 3)
    assert blocks.dtype == np.float32
    assert blocks.tolist() == [
        [0, 10, 1, 11, 2, 12],
        [2, 12, 3, 13, 4, 14],
        [5, 15, 5, 15, 5, 15],  # past the end the last action is repeated
        [4, 14, 5, 15, 5, 15],
    ]
    assert np.array_equal(action_blocks(actions, np.array([3, 0, 3]), 1), actions[[3, 0, 3]])
    assert action_blocks(actions, [], 3).shape == (0, 6)


def test_goal_comes_first() -> None:
    choice = choose_frames(SegmentSpec(17, 2, goal=True), 16, np.random.default_rng(0))
    assert choice.indices.tolist() == [15, *range(16)]


def test_first_frames() -> None:
    spec = SegmentSpec(5, 2, step_size=2, horizon=8, selection="random_future")
    assert first_frames(spec, 30).indices.tolist() == [0, 2, 4, 6, 8]
    assert first_frames(spec, 3).indices.tolist() == [0, 1, 2, 2, 2]
    assert first_frames(SegmentSpec(4, 2, goal=True), 30).indices.tolist() == [2, 0, 1, 2]


def test_too_few_frames_for_the_context() -> None:
    spec = SegmentSpec(8, 3)
    assert choose_frames(spec, 3, np.random.default_rng(0)).mask.sum() == 3
    with pytest.raises(EpisodeError, match="2 frames; the context alone needs 3"):
        choose_frames(spec, 2, np.random.default_rng(0))
    with pytest.raises(EpisodeError, match="2 frames; the context alone needs 3"):
        first_frames(spec, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context_frames": 0}, r"context_frames is 0 .*1\.\.7"),
        ({"context_frames": 8}, r"context_frames is 8 .*1\.\.7"),
        ({"context_frames": 1, "goal": True}, r"2\.\.7, the goal included"),
        ({"step_size": 0}, "step_size is 0"),
        ({"horizon": 7, "selection": "shuffled"}, "horizon is 7; a segment of 8 frames draws 8"),
        ({"horizon": 16}, "contiguous segment of 8 frames"),
        ({"selection": "shuffle"}, "Did you mean 'shuffled'"),
    ],
)
def test_refuses_specs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SegmentSpec(**({"length": 8, "context_frames": 2} | fields))


def test_cut_takes_what_was_recorded_at_the_chosen_frames(make_episode: MakeEpisode) -> None:
    choice = first_frames(SegmentSpec(4, 1, step_size=3), 20)
    states = np.repeat(np.arange(20, dtype=np.float32), 3).reshape(20, 3)
    segment = cut_segment(make_episode(states=states), choice, resolution=8)
    assert segment.frames.shape == (4, 3, 8, 8)
    assert segment.frames.dtype == torch.uint8
    assert segment.frames[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert segment.actions is not None
    assert segment.actions.tolist() == [[n, n, n + 1, n + 1, n + 2, n + 2] for n in (0, 3, 6, 9)]
    assert segment.rewards is not None
    assert segment.rewards.tolist() == [0, 3, 6, 9]
    assert segment.states is not None
    assert segment.states.tolist() == [[0] * 3, [3] * 3, [6] * 3, [9] * 3]
    assert segment.mask.all()


def test_actions_without_a_step_are_those_of_the_frames(make_episode: MakeEpisode) -> None:
    segment = cut_segment(make_episode(), first_frames(SegmentSpec(4, 1), 20), resolution=None)
    assert segment.actions is not None
    assert segment.actions.tolist() == [[0, 0], [1, 1], [2, 2], [3, 3]]


@pytest.mark.parametrize("selection", ["random_future", "shuffled"])
def test_blocks_follow_frames_in_any_order_and_the_goal(make_episode: MakeEpisode, selection: Any) -> None:
    spec = SegmentSpec(6, 2, step_size=3, horizon=8, selection=selection, goal=True)
    episode = make_episode(length=23, action_size=1)
    for seed in range(20):
        choice = choose_frames(spec, 23, np.random.default_rng(seed), shrink=False)
        segment = cut_segment(episode, choice, resolution=None)
        assert segment.actions is not None and segment.actions.shape == (6, 3)
        first = segment.frames[:, 0, 0, 0].float()
        assert torch.equal(segment.actions, (first[:, None] + torch.arange(3)).clamp(max=22))
        assert torch.equal(segment.actions[0], segment.actions[-1])


def test_cut_of_plain_video_at_its_own_size(make_episode: MakeEpisode) -> None:
    episode = make_episode(height=6, width=10, actions=None, rewards=None)
    segment = cut_segment(episode, first_frames(SegmentSpec(4, 1), 20), resolution=None)
    assert segment.frames.shape == (4, 3, 6, 10)
    assert segment.actions is None
    assert segment.rewards is None
    assert segment.states is None


def test_fit_crops_the_middle_and_resizes() -> None:
    frames = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
    frames[..., 2:10] = 200  # the middle square; what lies beside it must not be seen
    assert (fit_to_square(frames, 8) == 200).all()
    assert (fit_to_square(frames, 4) == 200).all()
    assert fit_to_square(frames, 16).shape == (2, 3, 16, 16)


def test_fit_is_antialiased() -> None:
    stripes = torch.arange(16).remainder(2).mul(255).to(torch.uint8).expand(1, 3, 16, 16)
    small = fit_to_square(stripes, 4)[..., 1:3]
    assert small.float().sub(127.5).abs().max() < 20


def test_frames_that_are_not_square_are_said_once() -> None:
    """Their middle is used as it is, not squeezed."""
    frames = torch.arange(12, dtype=torch.uint8).expand(2, 3, 8, 12)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        fitted = [fit_to_square(frames, 8), fit_to_square(frames[..., :10], 8), fit_to_square(frames[..., :8], 8)]
    assert [int(one[0, 0, 0, 0]) for one in fitted] == [2, 1, 0]
    assert torch.equal(fitted[0], frames[..., 2:10])
    assert len(said) == 1 and "their middle square is used" in str(said[0].message)
