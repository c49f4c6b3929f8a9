"""States become features and come back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ivideogpt.config import StateConfig
from ivideogpt.errors import ConfigError, EpisodeError, ShapeError
from ivideogpt.states import change_scale, decode_states, encode_states, on_circle, state_statistics

POSE = StateConfig(
    names=("x", "turn", "y"), angles=(1,), mean=(10.0, 0.0, -2.0), std=(2.0, 1.0, 0.5), change=(1.0, 0.5, 0.2)
)


def test_features_are_plain_columns_then_cosine_and_sine() -> None:
    features = encode_states(torch.tensor([[12.0, math.pi / 2, -2.5]], dtype=torch.float64), POSE)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, torch.tensor([[1.0, -1.0, 0.0, 1.0]]))


@given(
    size=st.integers(1, 5),
    angles=st.sets(st.integers(0, 4)),
    leading=st.sampled_from([(), (3,), (2, 4), (0,)]),
    seed=st.integers(0, 99),
)
def test_decoding_is_the_inverse(size: int, angles: set[int], leading: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    columns = tuple(sorted(angle for angle in angles if angle < size))
    config = StateConfig(
        angles=columns,
        mean=tuple(rng.normal(0, 5, size).tolist()),
        std=tuple(rng.uniform(0.1, 9, size).tolist()),
        change=(1.0,) * size,
    )
    states = torch.from_numpy(rng.uniform(-3, 3, (*leading, size)))
    features = encode_states(states, config)
    assert features.shape == (*leading, config.features)
    torch.testing.assert_close(decode_states(features, config), states.float(), atol=1e-4, rtol=1e-4)


def test_an_angle_is_the_same_after_a_whole_turn_and_needs_no_unit_circle() -> None:
    config = StateConfig(angles=(0,), mean=(0.0,), std=(1.0,), change=(1.0,))
    torch.testing.assert_close(
        encode_states(torch.tensor([[0.5 + 2 * math.pi]]), config), encode_states(torch.tensor([[0.5]]), config)
    )
    torch.testing.assert_close(decode_states(torch.tensor([[0.0, -7.0]]), config), torch.tensor([[-math.pi / 2]]))
    torch.testing.assert_close(decode_states(torch.tensor([[-2.0, 0.0]]), config), torch.tensor([[math.pi]]))


def test_gradients_flow_both_ways() -> None:
    states = torch.randn(2, 3, requires_grad=True)
    decode_states(encode_states(states, POSE), POSE).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(states.grad, torch.ones(2, 3))


@pytest.mark.parametrize(
    ("coded", "shape", "columns"), [(encode_states, (4, 4), 3), (decode_states, (4, 3), 4), (encode_states, (), 3)]
)
def test_another_number_of_columns_is_refused(coded: Any, shape: tuple[int, ...], columns: int) -> None:
    with pytest.raises(ShapeError, match=rf"have shape .*this model's have {columns} numbers at the end"):
        coded(torch.zeros(shape), POSE)


def test_statistics_are_those_of_all_frames_together() -> None:
    rng = np.random.default_rng(0)
    episodes = [rng.normal([3.0, -1.0, 1e6], [0.1, 20.0, 200.0], (length, 3)) for length in (1, 7, 300)]
    together = np.concatenate(episodes)
    config = state_statistics(iter(episodes), names=["a", "b", "c"])
    np.testing.assert_allclose(config.mean, together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(config.std, together.std(axis=0), rtol=1e-9)
    assert config.names == ("a", "b", "c") and config.angles == ()
    features = encode_states(torch.from_numpy(together), config)
    torch.testing.assert_close(features.std(dim=0, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_angles_are_left_as_they_are() -> None:
    config = state_statistics([np.random.default_rng(0).normal(5, 2, (50, 4)).astype(np.float32)], angles=(3, 1))
    assert config.angles == (1, 3)
    assert [config.mean[i] for i in config.angles] == [0, 0] and [config.std[i] for i in config.angles] == [1, 1]


@pytest.mark.parametrize("step_size", [1, 3])
def test_the_usual_change_is_measured_within_episodes_over_the_steps_of_a_segment(step_size: int) -> None:
    rng = np.random.default_rng(0)
    episodes = [rng.normal(100 * number, 1, (length, 2)).cumsum(axis=0) for number, length in enumerate((20, 3, 1, 40))]
    config = state_statistics(iter(episodes), step_size=step_size)
    changes = np.concatenate([rows[step_size:] - rows[:-step_size] for rows in episodes])
    np.testing.assert_allclose(config.change, np.sqrt(np.square(changes).mean(axis=0)), rtol=1e-12)


def test_an_angle_changes_by_the_shorter_way_round() -> None:
    turn = np.cumsum(np.full(40, 0.5)) % (2 * np.pi) - np.pi
    back = np.cumsum(np.full(40, -0.25)) % (2 * np.pi) - np.pi
    rows = np.stack([turn, back, turn], axis=1)
    change = state_statistics([rows], angles=(1, 0)).change
    assert change[:2] == pytest.approx((0.5, 0.25))
    assert change[2] > 1, "no angle: it jumps"


def test_columns_that_never_change_have_a_change_to_divide_by() -> None:
    rows = np.stack([np.ones(9), np.arange(9) * 5.0], axis=1)
    config = state_statistics([rows, rows[:1]])
    assert config.change == pytest.approx((0.02, 5.0))  # of a deviation: noise on it is then no large error
    assert state_statistics([rows[:1], rows[3:4]]).change[1] == pytest.approx(0.02 * 7.5)  # no frame follows another


def test_changes_in_features() -> None:
    scale = change_scale(POSE)
    torch.testing.assert_close(scale, torch.tensor([1.0 / 2.0, 0.2 / 0.5, 0.5, 0.5]))  # x, y, cosine, sine
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1000, 3, generator=generator) * torch.tensor(POSE.std) + torch.tensor(POSE.mean)
    moved = states + torch.tensor(POSE.change) * torch.where(torch.rand(1000, 3, generator=generator) < 0.5, 1, -1)
    change = encode_states(moved, POSE) - encode_states(states, POSE)
    torch.testing.assert_close(change[:, :2].square().mean(dim=0).sqrt(), scale[:2])
    assert (change[:, 2:].abs() <= scale[2:]).all() and change[:, 2:].abs().max() > 0.9 * scale[2]


def test_cosine_and_sine_are_brought_to_the_circle_and_nothing_else() -> None:
    features = torch.tensor([[5.0, -7.0, 3.0, 4.0], [0.1, 0.2, 0.0, -0.01], [0.0, 0.0, 0.0, 0.0]], requires_grad=True)
    found = on_circle(features, POSE)
    expected = torch.tensor([[5.0, -7.0, 0.6, 0.8], [0.1, 0.2, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(decode_states(found, POSE), decode_states(features, POSE))
    found.sum().backward()  # type: ignore[no-untyped-call]
    assert features.grad is not None and torch.isfinite(features.grad).all()
    several = StateConfig(angles=(0, 1), mean=(0.0,) * 2, std=(1.0,) * 2, change=(1.0,) * 2)
    states = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(on_circle(encode_states(states, several) * 3, several), encode_states(states, several))
    plain = StateConfig(mean=(0.0,), std=(1.0,), change=(1.0,))
    assert torch.equal(on_circle(features[:, :1], plain), features[:, :1])


def test_columns_that_hardly_change_are_not_blown_up() -> None:
    rows = np.zeros((100, 4), np.float32)
    rows[:, 1] = 0.1  # a constant that float32 cannot hold exactly
    rows[:, 2] = 500 + 5e-3 * np.sin(np.arange(100))
    rows[:, 3] = 1e-6 * np.sin(np.arange(100))  # small, but not beside its own size
    std = state_statistics([rows[:50], rows[50:]]).std
    assert std[:2] == (1.0, 1.0)
    assert std[2] == pytest.approx(0.05, rel=1e-3)
    assert std[3] == pytest.approx(0.7e-6, rel=0.05)


def test_what_has_no_statistics() -> None:
    with pytest.raises(EpisodeError, match="no episodes to measure states on"):
        state_statistics([])
    with pytest.raises(EpisodeError, match="states have 2 columns in one episode and 3 in another"):
        state_statistics([np.zeros((4, 2)), np.zeros((4, 3))])


@pytest.mark.parametrize(
    ("names", "angles", "message"),
    [
        ((), (2,), r"angles is \(2,\); they must be columns of the state, 0\.\.1"),
        ((), (-1,), r"angles is \(-1,\)"),
        ((), (0, 0), r"angles is \(0, 0\)"),
        (("x",), (), r"2 means, 2 standard deviations, 2 changes and 1 names"),
        (("x", "x"), (), "no two columns of a state may have one name"),
    ],
)
def test_names_and_angles_that_do_not_fit(names: Sequence[str], angles: Sequence[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        state_statistics([np.zeros((4, 2))], names, angles)
