"""Pushing the block of Push-T to a pose as people do with a mouse: slowly, with corrections, pauses and mistakes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivideogpt.envs.pusht import WORLD_SIZE
from ivideogpt.envs.pusht_pushes import (
    AGENT_RADIUS,
    GOAL_POSE,
    Push,
    choose_push,
    outward,
    pose_distance,
    way_round,
)

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pace:
    """Speeds of the hand, in world units a step of a tenth of a second.

    Attributes:
        travel: on the way to where a push begins.
        push: while it pushes.
    """

    travel: float
    push: float


SLOW = Pace(travel=16.5, push=11.0)
MEDIUM = Pace(travel=28.0, push=18.0)

# The agent trails the target: at a steady speed the target is this many steps' way ahead.
_LEAD_STEPS = 2.5
_LONGEST_LEAD = 110.0
_MARGIN = AGENT_RADIUS  # targets stay this far from the edge of the world
_RUN_UP = 12.0  # room between agent and block where a push begins
_TURN_EARLY, _ARRIVED = 28.0, 13.0  # this near to a point of the way, the hand heads for the next; the push begins
_LOST = 24.0  # this far from where the agent should touch, the block is lost
_WHIM = 2.5  # how roughly a person weighs pushes against each other
_PAUSE_CHANCE, _PAUSE_STEPS = 0.2, (3, 9)
_SLIP_CHANCE, _SLIP = 0.15, 22.0  # a push begun beside where it was meant to be
_NUDGED = 8.0  # the block has moved this much while walked round: another push may be better
_ANTICIPATED = 0.6  # steps' way that the agent still makes when the hand stops
_KEPT_AWAY, _SHYNESS = 24.0, 0.8  # the hand shies away from the block on its way round
_LONGEST_PUSH, _LONGEST_WAY = 30, 45  # steps, after which it is thought over
_CLOSE, _CLOSE_ENOUGH = 4.0, 25.0  # the goal is reached; or is, when no push would gain much
_LEAST_GAIN = 2.0


class PersistentPusher:
    """Pushes the block to the goal pose, position and angle, choosing pushes and walking round the block.

    What is not exact: where a push begins, how pushes are weighed, how steadily the hand moves. So the block drifts
    and turns, is lost now and then, and is pushed again from another side. When the block is at the goal it is pushed
    to some other pose, then back: every frame shows work.
    """

    def __init__(self, rng: np.random.Generator, pace: Pace = SLOW) -> None:
        self._rng = rng
        own_pace = float(np.exp(0.2 * np.clip(rng.normal(), -1.5, 1.5)))
        self._pace = Pace(pace.travel * own_pace, pace.push * own_pace)
        self._tremor = rng.uniform(0.3, 1.2)
        self._hurry = 1.0  # changes slowly
        self._aim = GOAL_POSE
        self._push: Push | None = None
        self._way: list[Vector] = []
        self._planned = self._seen = np.zeros(3)  # the block when the push was chosen, and when the way was found
        self._pushing = False
        self._before = np.zeros(2)  # the agent a step ago, while pushing
        self._steps = 0  # of this way or push
        self._pause = int(rng.integers(0, 8))
        self._hand: Vector | None = None
        self._velocity = np.zeros(2)

    def __call__(self, state: Vector) -> Vector:
        """Next target (2,) for the state (5,)."""
        agent, block = state[:2], state[2:]
        if self._hand is None:
            self._hand = agent.copy()
        self._hurry += 0.15 * (1.0 - self._hurry) + self._rng.normal(0.0, 0.12)
        self._steps += 1
        if self._pause > 0:
            self._pause -= 1
            return self._move(agent, agent, 6.0)
        if self._push is None:
            self._push = self._choose(agent, block)
        return self._follow_push(agent, block, self._push) if self._pushing else self._walk(agent, block, self._push)

    def _choose(self, agent: Vector, block: Vector) -> Push:
        """Choose the next push, and another pose to aim at when this one is reached."""
        push = choose_push(agent, block, self._aim, self._rng, _WHIM)
        at_goal, distance = self._aim is GOAL_POSE, pose_distance(block, self._aim)
        if distance < _CLOSE_ENOUGH and (not at_goal or distance < _CLOSE or push.gain < _LEAST_GAIN):
            self._aim = self._another_pose() if at_goal else GOAL_POSE
            self._pause = int(self._rng.integers(3, 12))
            push = choose_push(agent, block, self._aim, self._rng, _WHIM)
        slip = self._rng.normal(0.0, 2.5)
        if self._rng.random() < _SLIP_CHANCE:
            slip += self._rng.uniform(-_SLIP, _SLIP)
        self._pushing, self._steps, self._way, self._planned = False, 0, [], block.copy()
        return push.beside(slip)

    def _another_pose(self) -> Vector:
        x, y = self._rng.normal(WORLD_SIZE / 2, 60.0, 2)
        return np.array([x, y, GOAL_POSE[2] + self._rng.normal(0.0, 0.9)])

    def _walk(self, agent: Vector, block: Vector, push: Push) -> Vector:
        """Go to where the push begins."""
        start = push.agent_at_contact(block) - _RUN_UP * push.direction(block)
        if not self._way or np.abs(block - self._seen).max() > 2.0:
            self._way, self._seen = way_round(agent, start, block), block.copy()
        assert self._hand is not None
        while len(self._way) > 1 and np.linalg.norm(self._way[0] - self._hand) < _TURN_EARLY:
            self._way.pop(0)
        if len(self._way) == 1 and np.linalg.norm(start - agent) < _ARRIVED:
            self._pushing, self._steps, self._before = True, 0, agent.copy()
        elif self._steps > _LONGEST_WAY or np.abs(block - self._planned).max() > _NUDGED:
            self._end_push()
        goal = self._way[0]
        if len(self._way) > 1:  # no slowing down before it is reached
            goal = self._hand + 100.0 * (goal - self._hand) / max(float(np.linalg.norm(goal - self._hand)), 1e-6)
        gap, away = outward(np.stack([agent, 0.5 * (agent + self._hand)]), block)
        nearer = int(gap.argmin())
        shy = _SHYNESS * max(0.0, _KEPT_AWAY - float(gap[nearer])) * away[nearer]
        return self._move(goal, agent, self._pace.travel, shy)

    def _follow_push(self, agent: Vector, block: Vector, push: Push) -> Vector:
        """Push on until the block is where it should be, or is lost."""
        touch, direction = push.agent_at_contact(block), push.direction(block)
        away = agent - touch
        remaining, moved = push.remaining(block), float((agent - self._before) @ direction)
        self._before = agent.copy()
        behind = float(away @ direction)
        lost = abs(float(away[0] * direction[1] - away[1] * direction[0])) > _LOST or behind < -1.5 * _LOST
        if lost or remaining < max(1.0, _ANTICIPATED * moved) or self._steps > _LONGEST_PUSH:
            self._end_push(lost)
            return self._move(agent - 0.5 * AGENT_RADIUS * direction, agent, self._pace.push)
        speed = min(self._pace.push, 4.0 + 0.3 * remaining)
        return self._move(touch + _LEAD_STEPS * speed * self._hurry * direction, agent, 2.0 * speed)

    def _end_push(self, lost: bool = False) -> None:
        self._push, self._pushing = None, False
        if lost:  # sees it late
            self._pause = int(self._rng.integers(1, 4))
        elif self._rng.random() < _PAUSE_CHANCE:
            self._pause = int(self._rng.integers(*_PAUSE_STEPS))

    def _move(self, goal: Vector, agent: Vector, speed: float, shy: Vector | float = 0.0) -> Vector:
        """Move the hand towards `goal` at `speed`, smoothly, and aside by `shy`: the next target."""
        assert self._hand is not None
        wish = goal - self._hand
        length = float(np.linalg.norm(wish))
        wish *= min(0.6, speed * max(self._hurry, 0.3) / max(length, 1e-6))
        self._velocity = 0.4 * self._velocity + 0.6 * wish
        hand = self._hand + self._velocity + shy + self._rng.normal(0.0, self._tremor, 2)
        lead = hand - agent
        lead *= min(1.0, _LONGEST_LEAD / max(float(np.linalg.norm(lead)), 1e-6))
        self._hand = np.clip(agent + lead, _MARGIN, WORLD_SIZE - _MARGIN)
        return self._hand.copy()
