"""Two ways to move in Push-T that make a world model see what matters: contacts, and free motion.

A policy maps the simulator's state (5,) to the next target of the agent, both in world units (see `pusht`).
Its randomness comes only from the generator it is given.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from ivideogpt.envs.pusht import WORLD_SIZE

Vector = npt.NDArray[np.float64]

_MARGIN = 30.0  # targets stay this far from the walls
_GOAL = np.array([256.0, 256.0])
_MASS_CENTRE = np.array([0.0, 45.0])  # of the block, in its own frame
_CLEARANCE = 90.0  # distance from the block's centre at which the agent passes without touching it


class Policy(Protocol):
    """Chooses the next target of the agent."""

    def __call__(self, state: Vector) -> Vector:
        """Next target (2,) for the state (5,)."""
        ...


class ScriptedPusher:
    """Contact-rich motion: go to a side of the block, push through it, go to another side, and so on.

    About half of the pushes head for the goal, the others anywhere; a sideways offset makes the block turn. The
    agent's speed differs from episode to episode, and noise that changes slowly is added to every target.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._lead = rng.uniform(60.0, 110.0)  # how far the target runs ahead of the agent: its speed
        self._noise = _SlowNoise(rng, scale=6.0)
        self._direction = np.zeros(2)
        self._offset = 0.0
        self._steps_left = 0
        self._pushing = False

    def __call__(self, state: Vector) -> Vector:
        """Next target (2,) for the state (5,)."""
        agent, block = state[:2], _block_centre(state)
        if self._steps_left == 0 or (self._pushing and _heads_for_wall(block, self._direction)):
            self._plan_push(agent, block)
        self._steps_left -= 1
        start = _push_start(block, self._direction, self._offset)
        if not self._pushing and np.linalg.norm(start - agent) < 30.0:
            self._pushing = True
            self._steps_left = int(self._rng.integers(8, 18))
        goal = agent + self._direction * WORLD_SIZE if self._pushing else _around(agent, start, block)
        return _inside(agent + _clipped(goal - agent, self._lead) + self._noise())

    def _plan_push(self, agent: Vector, block: Vector) -> None:
        """Draw a few pushes and take the one that begins nearest: little time passes without contact."""
        candidates = [(self._draw_direction(block), self._rng.uniform(-45.0, 45.0)) for _ in range(3)]
        self._direction, self._offset = min(
            candidates, key=lambda push: float(np.linalg.norm(_push_start(block, *push) - agent))
        )
        self._pushing = False
        self._steps_left = 20  # gives up an approach that takes longer

    def _draw_direction(self, block: Vector) -> Vector:
        """Anywhere or towards the goal, but not into a wall that is near."""
        direction = self._rng.normal(size=2)
        if self._rng.random() < 0.5 or _heads_for_wall(block, direction):
            direction = _GOAL + self._rng.normal(0.0, 40.0, 2) - block
        return direction / max(float(np.linalg.norm(direction)), 1e-6)


class SmoothWanderer:
    """Free motion: the target follows slow sines, different ones in x and y, around a point near the block.

    It meets the block now and then, from any side and at any speed.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._frequency = rng.uniform(0.04, 0.22, (2, 3))  # radians a step
        self._phase = rng.uniform(0.0, 2 * np.pi, (2, 3))
        weight = rng.uniform(0.2, 1.0, (2, 3))
        self._weight = weight / weight.sum(axis=1, keepdims=True)
        self._reach = rng.uniform(100.0, 300.0)
        self._centre: Vector | None = None
        self._rng = rng
        self._noise = _SlowNoise(rng, scale=4.0)
        self._step = 0

    def __call__(self, state: Vector) -> Vector:
        """Next target (2,) for the state (5,), which matters only at the first step."""
        if self._centre is None:
            self._centre = _inside(_block_centre(state) + self._rng.normal(0.0, 80.0, 2))
        waves = np.sin(self._frequency * self._step + self._phase)
        self._step += 1
        return _inside(self._centre + self._reach * (self._weight * waves).sum(axis=1) + self._noise())


class _SlowNoise:
    """Ornstein-Uhlenbeck noise (2,) with standard deviation `scale` and a memory of about five steps."""

    def __init__(self, rng: np.random.Generator, scale: float) -> None:
        self._rng = rng
        self._scale = scale
        self._value = rng.normal(0.0, scale, 2)

    def __call__(self) -> Vector:
        keep = 0.8
        self._value = keep * self._value + self._rng.normal(0.0, self._scale * np.sqrt(1 - keep**2), 2)
        return self._value


def _block_centre(state: Vector) -> Vector:
    cos, sin = np.cos(state[4]), np.sin(state[4])
    centre: Vector = state[2:4] + np.array([[cos, -sin], [sin, cos]]) @ _MASS_CENTRE
    return centre


def _push_start(block: Vector, direction: Vector, offset: float) -> Vector:
    """Where a push begins: behind the block, `offset` to the side of its centre."""
    side = np.array([-direction[1], direction[0]])
    return _inside(block + side * offset - direction * _CLEARANCE)


def _heads_for_wall(block: Vector, direction: Vector) -> bool:
    """Whether a block near a wall would be pushed into it."""
    offset = block - WORLD_SIZE / 2
    return bool(((np.abs(offset) > 130.0) & (offset * direction > 0)).any())


def _around(agent: Vector, goal: Vector, block: Vector) -> Vector:
    """A point to head for on the way from agent to goal that leads round the block, not through it."""
    path = goal - agent
    along = np.clip(np.dot(block - agent, path) / max(float(path @ path), 1e-6), 0.0, 1.0)
    nearest = agent + along * path - block
    gap = float(np.linalg.norm(nearest))
    if gap > 0.8 * _CLEARANCE:
        return goal
    outward = nearest / gap if gap > 1e-6 else np.array([-path[1], path[0]]) / np.linalg.norm(path)
    return _inside(block + outward * 1.2 * _CLEARANCE)


def _clipped(vector: Vector, longest: float) -> Vector:
    return vector * min(1.0, longest / max(float(np.linalg.norm(vector)), 1e-6))


def _inside(point: Vector) -> Vector:
    return np.clip(point, _MARGIN, WORLD_SIZE - _MARGIN)
