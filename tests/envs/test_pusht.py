from __future__ import annotations

import sys
import warnings
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from ivideogpt.envs.pusht import (
    AGENT_COLOURS,
    BLOCK_COLOURS,
    GOAL_COLOUR,
    PushT,
    action_to_world,
    agent_position,
    block_mask,
    world_to_action,
)
from ivideogpt.errors import InputError

SEEDS = range(8)


def near(frame: np.ndarray, *colours: tuple[int, int, int], tolerance: int = 12) -> np.ndarray:
    """(H, W) bool: pixels whose colour is one of these."""
    distance = np.abs(frame[:, :, None].astype(int) - np.array(colours)).max(axis=-1)
    result: np.ndarray = distance.min(axis=-1) <= tolerance
    return result


def some_frames() -> list[tuple[np.ndarray, np.ndarray]]:
    """Frames and states along random play."""
    env, found = PushT(), []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        frame, info = env.reset(seed=seed)
        for _ in range(5):
            found.append((frame, info["state"]))
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            for _ in range(4):
                frame, _, _, _, info = env.step(action)
    env.close()
    return found


def test_is_a_gymnasium_environment() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(PushT(), skip_render_check=True)


def test_observation_and_info() -> None:
    env = PushT()
    frame, info = env.reset(seed=0)
    assert frame.shape == (64, 64, 3)
    assert frame.dtype == np.uint8
    assert info["state"].shape == (5,)
    following, reward, terminated, truncated, info = env.step(np.zeros(2, np.float32))
    assert not np.array_equal(frame, following)
    np.testing.assert_array_equal(env.render(), following)
    assert 0 <= reward <= 1
    assert not terminated
    assert not truncated
    assert PushT(render_mode=None).render() is None


def test_same_seed_and_actions_give_the_same_episode() -> None:
    one, other = PushT(), PushT()
    other.reset(seed=99)
    other.step(np.ones(2, np.float32))  # what came before must not matter
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(one.reset(seed=5)[0], other.reset(seed=5)[0])
    for _ in range(60):
        action = rng.uniform(-1, 1, 2).astype(np.float32)
        ours, theirs = one.step(action), other.step(action)
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[4]["state"], theirs[4]["state"])
        assert ours[1:4] == theirs[1:4]


def test_the_agent_goes_where_the_action_says() -> None:
    env = PushT()
    for action in ([-0.9, -0.9], [0.9, -0.9], [0.5, 0.8]):
        env.reset(seed=1)
        for _ in range(30):
            _, _, _, _, info = env.step(np.array(action, np.float32))
        np.testing.assert_allclose(info["state"][:2], action_to_world(np.array(action)), atol=1)


def test_actions_outside_the_range_are_clipped() -> None:
    one, other = PushT(), PushT()
    one.reset(seed=0)
    other.reset(seed=0)
    ours, theirs = one.step(np.array([7, -3], np.float32)), other.step(np.array([1, -1], np.float32))
    np.testing.assert_array_equal(ours[0], theirs[0])


def test_actions_and_world_units_are_inverse() -> None:
    actions = np.linspace(-1, 1, 22, dtype=np.float32).reshape(11, 2)
    np.testing.assert_allclose(world_to_action(action_to_world(actions)), actions, atol=1e-6)
    assert world_to_action(np.array([-10.0, 600.0])).tolist() == [-1, 1]


@pytest.mark.parametrize("action", [[np.nan, 0], [0, np.inf], [0], [0, 0, 0]])
def test_refuses_actions(action: list[float]) -> None:
    env = PushT()
    env.reset(seed=0)
    with pytest.raises(InputError, match="two finite numbers"):
        env.step(np.array(action, np.float32))


def test_contacts_are_those_of_agent_and_block() -> None:
    env = PushT()
    _, info = env.reset(options={"reset_to_state": [256, 480, 256, 200, 0]})
    assert info["contacts"] == 0
    found = []
    for _ in range(6):
        before = info["state"][2:]
        _, _, _, _, info = env.step(world_to_action(np.array([256.0, 100.0])))
        found.append((info["contacts"], float(np.abs(info["state"][2:] - before).max())))
    assert found[0] == (0, 0)
    assert max(contacts for contacts, _ in found) == 10  # the stem's end is met in one point
    assert all(contacts > 0 for contacts, moved in found if moved > 5)
    assert all(moved > 0 for contacts, moved in found if contacts > 0)


def test_a_block_in_the_wall_is_no_contact() -> None:
    env = PushT()
    _, info = env.reset(options={"reset_to_state": [400, 400, 40, 200, 0]})
    before = info["state"][2:]
    _, _, _, _, info = env.step(world_to_action(np.array([400.0, 400.0])))
    assert np.abs(info["state"][2:] - before).max() > 1
    assert info["contacts"] == 0


def test_block_mask_lines_up_with_the_picture() -> None:
    for frame, state in some_frames():
        drawn, true = near(frame, *BLOCK_COLOURS), block_mask(state)
        covered = near(frame, *AGENT_COLOURS, tolerance=60)
        union = (drawn | true) & ~covered
        assert (drawn & true).sum() / union.sum() > 0.85  # the rim is antialiased
        assert not (drawn & ~true).sum() > 0.05 * true.sum()


def test_block_mask_at_other_resolutions() -> None:
    state = np.array([100.0, 100.0, 256.0, 200.0, 0.7])
    area = (124 * 34 + 34 * 90) / 512**2  # bar and stem, each 2 units larger all round
    for resolution in (64, 128, 512):
        mask = block_mask(state, resolution)
        assert mask.shape == (resolution, resolution)
        assert mask.mean() == pytest.approx(area, rel=0.03)


def test_agent_position_lines_up_with_the_picture() -> None:
    for frame, state in some_frames():
        rows, columns = np.nonzero(near(frame, *AGENT_COLOURS, tolerance=60))
        np.testing.assert_allclose([columns.mean(), rows.mean()], agent_position(state), atol=0.6)


def test_agent_position_scales() -> None:
    state = np.array([255.5, 3.5, 0, 0, 0])
    assert agent_position(state, 64).tolist() == [31.5, 0]
    assert agent_position(state, 512).tolist() == [255.5, 3.5]


def test_goal_colour() -> None:
    assert any(near(frame, GOAL_COLOUR).sum() > 40 for frame, _ in some_frames())


def test_missing_simulator(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Any = None
    monkeypatch.setitem(sys.modules, "gym_pusht.envs.pusht", absent)
    with pytest.raises(InputError, match="pip install gym-pusht"):
        PushT()
