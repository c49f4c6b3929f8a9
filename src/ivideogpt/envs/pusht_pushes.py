"""What a push does to the Push-T block, which push brings it nearer to a pose, and the way round it.

Nothing slides on and no contact rubs in the simulator, so a push along a face's normal moves the block exactly as its
mass and its moment of inertia say: a point turns about a centre, and the arc has a closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ivideogpt.envs.pusht import WORLD_SIZE

Vector = npt.NDArray[np.float64]

AGENT_RADIUS = 15.0
GOAL_POSE = np.array([256.0, 256.0, np.pi / 4])  # block x, y and angle, as in the state
MASS_CENTRE = np.array([0.0, 45.0])  # of the block, in its own frame

_INERTIA = 3000.0  # per mass, about the mass centre
_ANGLE_WORTH = 60.0  # units of position that a radian counts for
_PUSH_LENGTHS = np.array([5.0, 10.0, 20.0, 36.0, 60.0, 90.0, 120.0])
_SECOND_PUSH = 16.0  # what another push costs, in units of distance from the pose
_TRAVEL_COST = 0.06  # the same for a unit of way to where a push begins
_FAR_SIDE = 100.0  # of way, when the block is in between
_ROOM = (75.0, WORLD_SIZE - 75.0)  # where the mass centre may be without the block touching a wall
_NEAR_WALL = 22.0  # a push cannot begin nearer to a wall
_KEPT_CLEAR = 18.0  # between the agent's centre and the block on the way round it
_BOXES = np.array([[-60.0, 0.0, 60.0, 30.0], [-15.0, 30.0, 15.0, 120.0]])  # bar and stem: left, top, right, bottom


def _contacts() -> tuple[Vector, Vector]:
    """Points of the outline that the agent can reach, and the inward normals there, (K, 2) each, in the block's frame.

    The inner corners are out of reach, and outer corners would slip.
    """
    bar, below, stem = np.linspace(-54, 54, 11), np.array([38.0, 46.0, 54.0]), np.linspace(54, 114, 5)
    faces: list[tuple[list[tuple[float, float]], tuple[float, float]]] = [
        ([(x, 0.0) for x in bar], (0.0, 1.0)),
        ([(side * x, 30.0) for x in below for side in (-1, 1)], (0.0, -1.0)),
        ([(x, 120.0) for x in (-9.0, 0.0, 9.0)], (0.0, -1.0)),
    ]
    for side in (-1.0, 1.0):
        ends = [(side * 60.0, y) for y in (6.0, 15.0, 24.0)] + [(side * 15.0, y) for y in stem]
        faces.append((ends, (-side, 0.0)))
    points = [point for face, _ in faces for point in face]
    return np.array(points), np.array([normal for face, normal in faces for _ in face])


def _turned(vectors: Vector, angle: Vector | float) -> Vector:
    """Vectors (..., 2) turned by angles (...)."""
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vectors[..., 0], vectors[..., 1]
    return np.stack([cos * x - sin * y, sin * x + cos * y], axis=-1)


def _arc(point: Vector, normal: Vector, length: Vector) -> tuple[Vector, Vector]:
    """How a push at `point` along `normal` moves the mass centre (..., 2), in the block's frame, and the turn."""
    arm = point - MASS_CENTRE
    lever = arm[..., 0] * normal[..., 1] - arm[..., 1] * normal[..., 0]
    share = 1 / (1 + lever**2 / _INERTIA)
    turn = lever / _INERTIA * share * length
    chord = share * length * np.sinc(turn / (2 * np.pi))
    return _turned(normal, turn / 2) * chord[..., None], turn


POINTS, NORMALS = _contacts()
_BETWEEN = np.linalg.norm(POINTS[:, None] - POINTS[None], axis=2) + _FAR_SIDE * (NORMALS @ NORMALS.T < 0)
_RING = np.array([[-82.0, -22], [82, -22], [88, 52], [38, 146], [-38, 146], [-88, 52]])  # round the block
_MOVES, _TURNS = (
    values.reshape(-1, *values.shape[2:]) for values in _arc(POINTS[:, None], NORMALS[:, None], _PUSH_LENGTHS[None])
)


@dataclass(frozen=True)
class Push:
    """A push of the block.

    Attributes:
        point: (2,) where the agent touches, in the block's frame.
        normal: (2,) the direction of the push, in the block's frame.
        pose: (3,) the block's pose that it should lead to.
        gain: how much nearer to the wanted pose it brings the block, alone or with a push after it.
    """

    point: Vector
    normal: Vector
    pose: Vector
    gain: float

    def agent_at_contact(self, block: Vector) -> Vector:
        """Where the agent's centre touches the block at pose (3,)."""
        return to_world(self.point - AGENT_RADIUS * self.normal, block)

    def direction(self, block: Vector) -> Vector:
        """The direction of the push in the world."""
        return _turned(self.normal, float(block[2]))

    def beside(self, slip: float) -> Push:
        """The same push, begun `slip` units to the side, yet not in an inner corner, where the agent has no room."""
        point = self.point + slip * np.array([-self.normal[1], self.normal[0]])
        if self.normal[1] < 0 and self.point[1] == _BOXES[0, 3]:
            point[0] = np.copysign(max(abs(point[0]), 36.0), self.point[0])
        elif self.normal[0] != 0 and self.point[1] > _BOXES[0, 3]:
            point[1] = max(point[1], 52.0)
        return Push(point, self.normal, self.pose, self.gain)

    def after(self, block: Vector, length: float) -> Vector:
        """The block's pose (3,) when it has been pushed `length` units from pose (3,)."""
        move, turn = _arc(self.point, self.normal, np.array(length))
        return _pose(mass_centre(block) + _turned(move, float(block[2])), float(block[2] + turn))

    def remaining(self, block: Vector) -> float:
        """How much further to push from pose (3,) so that the block comes nearest to what was intended."""
        lengths = np.linspace(0.0, 130.0, 66)
        move, turn = _arc(self.point, self.normal, lengths)
        gaps = mass_centre(block) + _turned(move, float(block[2])) - mass_centre(self.pose)
        return float(lengths[_distance(gaps, block[2] + turn - self.pose[2]).argmin()])


def to_world(point: Vector, block: Vector) -> Vector:
    """Points (..., 2) of the block's frame in the world, for the block at pose (3,)."""
    return block[:2] + _turned(point, float(block[2]))


def mass_centre(block: Vector) -> Vector:
    """The mass centre (2,) of the block at pose (3,)."""
    return to_world(MASS_CENTRE, block)


def wrapped(angle: Vector | float) -> Vector:
    """Angles in [-pi, pi)."""
    return np.asarray(np.mod(np.asarray(angle) + np.pi, 2 * np.pi) - np.pi)


def pose_distance(block: Vector, pose: Vector) -> float:
    """How far a block's pose (3,) is from another: the distance of the mass centres, with the angle as if one."""
    return float(_distance(mass_centre(block) - mass_centre(pose), block[2] - pose[2]))


def outward(points: Vector, block: Vector) -> tuple[Vector, Vector]:
    """How far points (N, 2) are from the block at pose (3,), and the directions away from it: (N,), (N, 2)."""
    own = _turned(points - block[:2], float(-block[2]))
    nearest = np.clip(own[:, None], _BOXES[:, :2], _BOXES[:, 2:])
    gaps = np.linalg.norm(own[:, None] - nearest, axis=-1)
    box = gaps.argmin(axis=1)
    rows = np.arange(len(points))
    gap, away = gaps[rows, box], (own[:, None] - nearest)[rows, box]
    return gap, _turned(away / np.maximum(gap, 1e-6)[:, None], float(block[2]))


def choose_push(agent: Vector, block: Vector, pose: Vector, rng: np.random.Generator, whim: float) -> Push:
    """The push, followed by a second where that helps, that brings the block nearest to `pose`; short ways count too.

    Args:
        agent: (2,) the agent's position.
        block: (3,) the block's pose.
        pose: (3,) the pose it should reach.
        rng: draws the whim.
        whim: scale, in units of distance, of what a person would not weigh exactly.
    """
    centres = mass_centre(block) + _turned(_MOVES, float(block[2]))
    angles = block[2] + _TURNS
    after_one = _distance(centres - mass_centre(pose), angles - pose[2])
    after_two = _best_after_another(centres - mass_centre(pose), angles, pose[2])
    outside = np.clip(_ROOM[0] - centres, 0, None) + np.clip(centres - _ROOM[1], 0, None)
    starts = to_world(POINTS - (AGENT_RADIUS + 5.0) * NORMALS, block)
    cost = np.minimum(after_one, after_two) + 2 * outside.sum(axis=1)
    per_contact = _TRAVEL_COST * _way(agent, starts, block)
    per_contact += 1000.0 * ((starts < _NEAR_WALL) | (starts > WORLD_SIZE - _NEAR_WALL)).any(axis=1)
    per_contact += rng.gumbel(0.0, whim, len(POINTS))
    best = int((cost.reshape(len(POINTS), -1) + per_contact[:, None]).argmin())
    contact = best // len(_PUSH_LENGTHS)
    gain = pose_distance(block, pose) - float(min(after_one[best], after_two[best]))
    return Push(POINTS[contact], NORMALS[contact], _pose(centres[best], float(angles[best])), gain)


def way_round(agent: Vector, goal: Vector, block: Vector) -> list[Vector]:
    """Points to head for, one after the other, from agent to `goal` (2,) without touching the block at pose (3,)."""
    start, end = (_turned(point - block[:2], float(-block[2])) for point in (agent, goal))
    if _clear(start, end[None])[0]:
        return [goal]
    ring = len(_RING)
    steps = (np.arange(ring)[None] - np.arange(ring)[:, None]) % ring  # from i to j, one way round
    edges = np.linalg.norm(np.roll(_RING, -1, axis=0) - _RING, axis=1)
    along = np.concatenate([[0.0], np.cumsum(np.tile(edges, 2))])
    forwards = along[np.arange(ring)[:, None] + steps] - along[:ring, None]
    backwards = (edges.sum() - forwards) * (steps > 0)
    world = to_world(_RING, block)
    walled = 200.0 * ((world < AGENT_RADIUS) | (world > WORLD_SIZE - AGENT_RADIUS)).any(axis=1)
    first = np.linalg.norm(_RING - start, axis=1) + 1e4 * ~_clear(start, _RING) + walled
    last = np.linalg.norm(_RING - end, axis=1) + 1e4 * ~_clear(end, _RING) + walled
    total = first[:, None] + np.minimum(forwards, backwards) + last[None]
    i, j = divmod(int(total.argmin()), ring)
    step = 1 if forwards[i, j] <= backwards[i, j] else -1
    count = int(steps[i, j]) if step == 1 else int(ring - steps[i, j]) % ring
    return [*(world[(i + step * k) % ring] for k in range(count + 1)), goal]


def _pose(centre: Vector, angle: float) -> Vector:
    """The pose (3,) of a block whose mass centre is at `centre`."""
    return np.append(centre - _turned(MASS_CENTRE, angle), angle)


def _distance(gap: Vector, angle: Vector | float) -> Vector:
    result: Vector = np.sqrt((gap**2).sum(axis=-1) + (_ANGLE_WORTH * wrapped(angle)) ** 2)
    return result


def _best_after_another(gaps: Vector, angles: Vector, wanted: float) -> Vector:
    """The least cost after another push, for blocks at `gaps` (N, 2) and `angles` (N,) from the pose: (N,)."""
    own = _turned(gaps, -angles)
    squared = (gaps**2).sum(axis=1)[:, None] + (_MOVES**2).sum(axis=1)[None]
    squared += 2 * (own[:, :1] * _MOVES[:, 0] + own[:, 1:] * _MOVES[:, 1])
    squared += (_ANGLE_WORTH * wrapped(angles[:, None] + _TURNS[None] - wanted)) ** 2
    distance = np.sqrt(np.clip(squared, 0.0, None)).reshape(len(gaps), len(POINTS), -1).min(axis=2)
    change = np.repeat(_BETWEEN, len(_PUSH_LENGTHS), axis=0)
    return np.asarray((distance + _TRAVEL_COST * change).min(axis=1) + _SECOND_PUSH)


def _way(agent: Vector, starts: Vector, block: Vector) -> Vector:
    """About how long the ways to `starts` (K, 2) are."""
    ahead = ((agent - starts) * _turned(NORMALS, float(block[2]))).sum(axis=1) > 10.0
    result: Vector = np.linalg.norm(starts - agent, axis=1) + _FAR_SIDE * ahead
    return result


def _clear(start: Vector, ends: Vector) -> npt.NDArray[np.bool_]:
    """Whether straight ways from start (2,) to ends (N, 2) keep clear of the block, all in its frame.

    A way may begin close to the block if it leads away.
    """
    along = np.linspace(0.0, 1.0, 13)[None, :, None]
    points = start + along * (ends[:, None] - start)
    travelled = np.linalg.norm(points - start, axis=-1)
    needed = np.minimum(_KEPT_CLEAR, float(_gap(start)) - 1.0 + 0.1 * travelled)
    return (_gap(points) >= needed).all(axis=1)


def _gap(points: Vector) -> Vector:
    """Distances (...) from points (..., 2) to the block, in its frame; 0 inside."""
    apart = np.maximum(_BOXES[:, :2] - points[..., None, :], points[..., None, :] - _BOXES[:, 2:])
    result: Vector = np.linalg.norm(np.clip(apart, 0.0, None), axis=-1).min(axis=-1)
    return result
