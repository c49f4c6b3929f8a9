from __future__ import annotations

import itertools

import numpy as np
import pytest

from ivideogpt.envs.pusht import PushT
from ivideogpt.envs.pusht_pushes import (
    AGENT_RADIUS,
    GOAL_POSE,
    NORMALS,
    POINTS,
    Push,
    choose_push,
    outward,
    pose_distance,
    way_round,
)

POSES = [np.array([x, y, angle]) for x, y, angle in ((250, 250, 0.3), (200, 300, -2.0), (330, 200, 4.0))]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> PushT:
    """Push-T that draws nothing: only states matter here."""
    env = PushT()
    monkeypatch.setattr(env._simulator, "_render", lambda *_: np.zeros((64, 64, 3), np.uint8))
    return env


def placed(env: PushT, agent: np.ndarray, block: np.ndarray) -> np.ndarray:
    """The state after a reset to about these places."""
    _, info = env.reset(options={"reset_to_state": [*agent, *block]})
    state: np.ndarray = info["state"]
    return state


@pytest.mark.parametrize("contact", range(0, len(POINTS), 3))
def test_a_push_does_in_the_simulator_what_was_foretold(env: PushT, contact: int) -> None:
    block = placed(env, np.array([20, 20]), np.array([256, 256, 0.5]))[2:]
    push = Push(POINTS[contact], NORMALS[contact], block, 0.0)
    agent = push.agent_at_contact(block) - 2 * push.direction(block)
    simulator = env._simulator
    simulator.agent.position = agent.tolist()
    intended, pose = push.after(block, 40.0), block
    for _ in range(42):  # a unit a step, kept where it touches
        direction, aside = push.direction(pose), push.agent_at_contact(pose) - np.array(simulator.agent.position)
        aside -= (aside @ direction) * direction
        simulator.agent.velocity = (100.0 * (direction + aside)).tolist()
        simulator.space.step(0.01)
        pose = np.array([*simulator.block.position, simulator.block.angle])
    assert pose_distance(pose, intended) < 4
    assert pose_distance(block, intended) > 15


def test_remaining_is_what_is_left_of_a_push() -> None:
    block = POSES[0]
    for point, normal in zip(POINTS[::4], NORMALS[::4], strict=True):
        push = Push(point, normal, block, 0.0)
        push = Push(point, normal, push.after(block, 60.0), 0.0)
        assert push.remaining(block) == pytest.approx(60, abs=2)
        assert push.remaining(push.after(block, 40.0)) == pytest.approx(20, abs=2)
        assert push.remaining(push.after(block, 90.0)) == 0


@pytest.mark.parametrize("block", POSES)
def test_the_chosen_push_gains(block: np.ndarray) -> None:
    push = choose_push(np.array([400.0, 60.0]), block, GOAL_POSE, np.random.default_rng(0), 0.0)
    assert push.gain > 10
    again = choose_push(np.array([400.0, 60.0]), push.pose, GOAL_POSE, np.random.default_rng(0), 0.0)
    assert pose_distance(push.pose, GOAL_POSE) - again.gain < pose_distance(block, GOAL_POSE) - 10


def test_no_push_gains_at_the_goal() -> None:
    assert choose_push(np.array([400.0, 60.0]), GOAL_POSE, GOAL_POSE, np.random.default_rng(0), 0.0).gain < 0


@pytest.mark.parametrize("block", POSES)
def test_ways_round_do_not_touch_the_block(block: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        agent = rng.uniform(20, 492, 2)
        if outward(agent[None], block)[0][0] < 20:
            continue
        contact = int(rng.integers(len(POINTS)))
        push = Push(POINTS[contact], NORMALS[contact], block, 0.0)
        goal = push.agent_at_contact(block) - 12 * push.direction(block)
        way = [agent, *way_round(agent, goal, block)]
        np.testing.assert_array_equal(way[-1], goal)
        points = np.concatenate([np.linspace(a, b, 40) for a, b in itertools.pairwise(way)])
        assert outward(points, block)[0].min() > AGENT_RADIUS


def test_outward_leads_away() -> None:
    block, points = POSES[1], np.random.default_rng(0).uniform(0, 512, (50, 2))
    gap, direction = outward(points, block)
    free = gap > 0
    np.testing.assert_allclose(np.linalg.norm(direction[free], axis=1), 1)
    assert (outward(points[free] + direction[free], block)[0] > gap[free]).all()


def test_pushes_beside_stay_out_of_the_corners() -> None:
    for point, normal in zip(POINTS, NORMALS, strict=True):
        for slip in (-30.0, 30.0):
            push = Push(point, normal, POSES[0], 0.0).beside(slip)
            agent = push.agent_at_contact(POSES[0]) - push.direction(POSES[0])
            assert outward(agent[None], POSES[0])[0][0] > AGENT_RADIUS - 1
