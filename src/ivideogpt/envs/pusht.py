"""Push-T: a round agent pushes a T-shaped block towards a goal pose. A thin wrapper of `gym-pusht`.

The simulator's world is a square of 512 units, x to the right and y down. Pixel i of R along a side of a
frame shows the world at (i + 0.5) * 512 / R - 0.5.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from ivideogpt.envs.interrupts import interrupts_afterwards
from ivideogpt.errors import InputError

WORLD_SIZE = 512.0
RESOLUTION = 64
FRAME_RATE = 10
# Colours as the simulator draws them: a lighter inside and a darker rim.
BLOCK_COLOURS = ((143, 163, 184), (119, 136, 153))
AGENT_COLOURS = ((78, 126, 255), (65, 105, 225))
GOAL_COLOUR = (144, 238, 144)

# The T in the block's own frame: (left, top, right, bottom) of bar and stem, in world units.
_BLOCK_PARTS = ((-60.0, 0.0, 60.0, 30.0), (-15.0, 30.0, 15.0, 120.0))
# The simulator draws the outline with a pen of this radius, so the picture is larger than the shape.
_PEN_RADIUS = 2.0

Floats = npt.NDArray[np.floating[Any]]


class PushT(gymnasium.Env[npt.NDArray[np.uint8], npt.NDArray[np.float32]]):
    """Push-T with small RGB frames and actions in [-1, 1]^2.

    Observation: (64, 64, 3) uint8. Action: (2,) float32, the position the agent is drawn to, (-1, -1) the top
    left corner and (1, 1) the bottom right; values outside are clipped. Reward in [0, 1]: the part of the goal
    that is covered. `info["state"]`: (5,) float64, agent x, y and block x, y in world units, block angle in radians
    (unwrapped). `info["contacts"]`: in how many points, over the ten steps of the simulator in one of ours, the agent
    touched the block; 0 after a reset. `terminated` when the goal is covered to 95 %; stepping on is allowed. 10 steps
    a second.

    Raises:
        InputError: `gym-pusht` is not installed, or an action is not two finite numbers.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": FRAME_RATE}

    def __init__(self, render_mode: str | None = "rgb_array") -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(0, 255, (RESOLUTION, RESOLUTION, 3), np.uint8)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self._simulator = _load_simulator()
        self._frame = np.zeros((RESOLUTION, RESOLUTION, 3), np.uint8)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Start an episode; the same seed gives the same start. Returns the first frame and info."""
        super().reset(seed=seed)
        with interrupts_afterwards():
            self._frame, info = self._simulator.reset(seed=seed, options=options)
            self._simulator.count_contacts()
        return self._frame.copy(), self._with_truth(info)

    def step(self, action: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.uint8], float, bool, bool, dict[str, Any]]:
        """Draw the agent towards `action` for a tenth of a second; the usual five of Gymnasium."""
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (2,) or not np.isfinite(wanted).all():
            raise InputError(f"action {wanted.tolist()}: a Push-T action is two finite numbers in [-1, 1].")
        target = action_to_world(np.clip(wanted, -1.0, 1.0))
        with interrupts_afterwards():
            self._frame, reward, terminated, truncated, info = self._simulator.step(target)
        return self._frame.copy(), float(reward), bool(terminated), truncated, self._with_truth(info)

    def render(self) -> npt.NDArray[np.uint8] | None:
        """The current frame, (64, 64, 3) uint8; None without a render mode."""
        return self._frame.copy() if self.render_mode == "rgb_array" else None

    def close(self) -> None:
        """Release the simulator."""
        self._simulator.close()

    def _with_truth(self, info: dict[str, Any]) -> dict[str, Any]:
        state = np.concatenate([info["pos_agent"], info["block_pose"]])
        return {**info, "state": state, "contacts": self._simulator.n_contact_points}


def action_to_world(action: Floats) -> Floats:
    """Map actions in [-1, 1] to world units, any shape."""
    return np.multiply(action + 1.0, WORLD_SIZE / 2)


def world_to_action(position: Floats) -> npt.NDArray[np.float32]:
    """Map world units to actions, clipped to [-1, 1]; the inverse of `action_to_world`."""
    return np.clip(position / (WORLD_SIZE / 2) - 1.0, -1.0, 1.0).astype(np.float32)


def block_mask(state: Floats, resolution: int = RESOLUTION) -> npt.NDArray[np.bool_]:
    """True block mask (resolution, resolution): the pixels whose centre lies in the block as drawn.

    Args:
        state: (5,) as in `PushT`.
        resolution: pixels along a side.
    """
    centres = _pixel_centres(resolution)
    offset_x, offset_y = np.meshgrid(centres - state[2], centres - state[3])
    cos, sin = np.cos(state[4]), np.sin(state[4])
    own_x, own_y = cos * offset_x + sin * offset_y, cos * offset_y - sin * offset_x
    mask = np.zeros((resolution, resolution), np.bool_)
    for left, top, right, bottom in _BLOCK_PARTS:
        outside_x = np.maximum(np.maximum(left - own_x, own_x - right), 0)
        outside_y = np.maximum(np.maximum(top - own_y, own_y - bottom), 0)
        mask |= np.hypot(outside_x, outside_y) <= _PEN_RADIUS
    return mask


def agent_position(state: Floats, resolution: int = RESOLUTION) -> Floats:
    """Centre of the agent as (column, row) in pixels, where whole numbers are pixel centres.

    Args:
        state: (5,) as in `PushT`.
        resolution: pixels along a side.
    """
    return (state[:2].astype(np.float64) + 0.5) * (resolution / WORLD_SIZE) - 0.5


def _pixel_centres(resolution: int) -> Floats:
    return (np.arange(resolution) + 0.5) * (WORLD_SIZE / resolution) - 0.5


def _load_simulator() -> Any:
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # draw without a screen
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        simulator = _simulator_class()
    except ImportError as error:
        raise InputError(
            f"Push-T needs the package gym-pusht, which cannot be imported ({error}). Install it: pip install gym-pusht"
        ) from error
    return simulator(obs_type="pixels", observation_width=RESOLUTION, observation_height=RESOLUTION)


def _simulator_class() -> Any:
    """The simulator with its pictures sampled by us, so that it runs without OpenCV.

    gym-pusht imports OpenCV, whose wheel needs libGL, GLib and X11 from the system, only to make its picture smaller
    and to draw a marker that we never ask for. Where OpenCV cannot be imported, an empty module stands in for it
    while gym-pusht is imported.
    """
    stand_in = not _has_opencv()
    if stand_in:
        sys.modules["cv2"] = ModuleType("cv2")
    try:
        from gym_pusht.envs.pusht import PushTEnv
    finally:
        if stand_in:
            del sys.modules["cv2"]
    from pygame.surfarray import pixels3d

    class Simulator(PushTEnv):  # type: ignore[misc]
        def _get_img(self, screen: Any, width: int, height: int, render_action: bool = False) -> Any:
            return _shrink(pixels3d(screen).transpose(1, 0, 2), width)

        def count_contacts(self) -> None:
            """Count from 0 the points in which agent and block touch.

            gym-pusht's own count takes in the block's contacts with walls, and its `n_contacts` is always 0 or 1.
            """
            (agent,) = self.agent.shapes
            self.n_contact_points = 0

            def add(arbiter: Any, space: Any, data: Any) -> None:
                if agent in arbiter.shapes:
                    self.n_contact_points += len(arbiter.contact_point_set.points)

            self.collision_handeler.post_solve = add

    return Simulator


def _has_opencv() -> bool:
    try:
        import cv2  # noqa: F401
    except ImportError:
        return False
    return True


def _shrink(picture: npt.NDArray[np.uint8], resolution: int) -> npt.NDArray[np.uint8]:
    """Sample a square picture at the pixel centres: bilinear, to the last bit what OpenCV's resize gives."""
    step = len(picture) // resolution
    near = np.arange(resolution) * step + step // 2 - 1
    total = np.full((resolution, resolution, 3), 2, np.uint16)
    for rows in (near, near + 1):
        for columns in (near, near + 1):
            total += picture[rows[:, None], columns]
    return (total // 4).astype(np.uint8)
