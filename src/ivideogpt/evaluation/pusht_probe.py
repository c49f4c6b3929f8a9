"""Are the objects of Push-T there, and where? Pixel metrics barely notice when the agent, a small dot, is lost.

Agent and block are found by colour and compared with the simulator's truth. Measured on 720 true frames: the agent is
always seen, its position is off by 0.12 pixels in the median and 0.36 at most, and the block's mask overlaps the true
one with a mean IoU of 0.975, at least 0.92; the rest is the simulator's antialiasing.

Shapes: ... any leading dimensions, R resolution. Positions are (column, row) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.envs.pusht import (
    AGENT_COLOURS,
    BLOCK_COLOURS,
    GOAL_COLOUR,
    WORLD_SIZE,
    agent_position,
    block_mask,
)
from ivideogpt.errors import ShapeError

_AGENT_RADIUS = 15.0  # world units
_SPOT_REACH = 28.0  # world units: a square this far to every side of the agent's centre holds all of its blue
_CONTACT_RADIUS = 23.0  # world units: this near to the agent's centre, agent and block may share a pixel
# How much bluer than red a pixel is, of 255: the agent 160 or more, everything else (the block) at most 41.
_NOT_AGENT, _ALL_AGENT = 60.0, 160.0
# A spot of blue counts as the agent where it has this many times the agent's area: not a trace, not a smear.
_SMALLEST_SPOT, _LARGEST_SPOT = 0.3, 2.0
_WHITE, _WALL = (255, 255, 255), (211, 211, 211)
_OTHER_COLOURS = (*AGENT_COLOURS, GOAL_COLOUR, _WHITE, _WALL)


@dataclass(frozen=True)
class Agent:
    """The agent as found in frames."""

    visible: Tensor
    """(...) bool."""
    position: Tensor
    """(..., 2) float, centroid (column, row) in pixels; of no meaning where not visible."""


@dataclass(frozen=True)
class Objects:
    """How well the objects in frames agree with the simulator's truth."""

    agent_visible: Tensor
    """(...) bool."""
    agent_error: Tensor
    """(...) distance to the true position in pixels; infinite where the agent is not visible."""
    block_iou: Tensor
    """(...) intersection over union with the true mask, in [0, 1], away from the agent."""

    def summary(self) -> dict[str, Any]:
        """JSON-ready figures of (episodes, F) frames: over all frames, at the last frame, and frame by frame.

        A lost agent counts as an infinite position error, so it cannot flatter the median; an infinite median is None.
        """
        visible = self.agent_visible.float().mean(dim=0).tolist()
        error = [_finite(x) for x in _median(self.agent_error)]
        iou = self.block_iou.mean(dim=0).tolist()
        return {
            "agent_visible_share": sum(visible) / len(visible),
            "agent_median_error_at_last_frame_px": error[-1],
            "block_mean_iou_at_last_frame": iou[-1],
            "per_frame": {
                "agent_visible_share": visible,
                "agent_median_error_px": error,
                "block_mean_iou": iou,
            },
        }


def find_agent(frames: Tensor) -> Agent:
    """Find the agent in frames (..., 3, R, R), float in [0, 1]: the spot with most of its blue.

    Pixels weigh in softly, so a slightly blurred dot still counts; one spread thin, or blue noise, does not.
    """
    _check_frames(frames)
    red, blue = frames[..., 0, :, :].float(), frames[..., 2, :, :].float()
    weight = ((255 * (blue - red) - _NOT_AGENT) / (_ALL_AGENT - _NOT_AGENT)).clamp(0, 1)
    size = frames.shape[-1]
    weight = weight * _spot(weight, reach=round(_SPOT_REACH * size / WORLD_SIZE))
    area = weight.sum(dim=(-2, -1))
    pixels = torch.arange(size, dtype=weight.dtype, device=weight.device)
    column = (weight.sum(dim=-2) * pixels).sum(dim=-1)
    row = (weight.sum(dim=-1) * pixels).sum(dim=-1)
    position = torch.stack([column, row], dim=-1) / area.clamp(min=1e-6)[..., None]
    true_area = math.pi * (_AGENT_RADIUS * size / WORLD_SIZE) ** 2
    share = area / true_area
    return Agent(visible=(share >= _SMALLEST_SPOT) & (share <= _LARGEST_SPOT), position=position)


def find_block(frames: Tensor) -> Tensor:
    """Mask (..., R, R) of the pixels in frames (..., 3, R, R), float in [0, 1], whose nearest colour is the block's.

    The palette is every colour that the simulator draws; an edge pixel goes to the colour that covers most of it.
    """
    _check_frames(frames)
    palette = torch.tensor([*BLOCK_COLOURS, *_OTHER_COLOURS], dtype=torch.float32, device=frames.device) / 255
    pixels = frames.float().movedim(-3, -1)  # (..., R, R, 3)
    return torch.cdist(pixels, palette).argmin(dim=-1) < len(BLOCK_COLOURS)


def probe_objects(frames: Tensor, states: npt.NDArray[np.floating[Any]]) -> Objects:
    """Compare the objects in frames with the simulator's truth.

    Args:
        frames: (..., 3, R, R) float in [0, 1].
        states: (..., 5) as in `envs.pusht.PushT`, one a frame.

    Returns:
        Each figure (...), on the CPU.

    Raises:
        ShapeError: frames are not square colour frames, or states do not match them.
    """
    _check_frames(frames)
    leading, size = frames.shape[:-3], frames.shape[-1]
    if states.shape != (*leading, 5):
        raise ShapeError(f"states have shape {states.shape}; frames {tuple(frames.shape)} need {(*leading, 5)}.")
    rows = states.reshape(-1, 5)
    true_position = torch.from_numpy(np.stack([agent_position(state, size) for state in rows])).view(*leading, 2)
    true_mask = torch.from_numpy(np.stack([block_mask(state, size) for state in rows])).view(*leading, size, size)
    agent, mask = find_agent(frames.cpu()), find_block(frames.cpu())
    error = (agent.position - true_position).norm(dim=-1).float()
    clear = ~_near_agent(true_position, size)
    intersection = (mask & true_mask & clear).sum(dim=(-2, -1))
    union = ((mask | true_mask) & clear).sum(dim=(-2, -1))
    return Objects(
        agent_visible=agent.visible,
        agent_error=error.masked_fill(~agent.visible, math.inf),
        block_iou=intersection / union.clamp(min=1),
    )


def stack_objects(parts: Sequence[Objects]) -> Objects:
    """Figures (F) of several episodes as figures (episodes, F)."""
    return Objects(
        agent_visible=torch.stack([part.agent_visible for part in parts]),
        agent_error=torch.stack([part.agent_error for part in parts]),
        block_iou=torch.stack([part.block_iou for part in parts]),
    )


def _spot(weight: Tensor, reach: int) -> Tensor:
    """Mask (..., R, R) of the square of side 2 reach + 1 that holds most of the weight (..., R, R)."""
    size = weight.shape[-1]
    sums = F.avg_pool2d(weight.reshape(-1, 1, size, size), 2 * reach + 1, stride=1, padding=reach)
    best = sums.flatten(1).argmax(dim=1).reshape(weight.shape[:-2])
    pixels = torch.arange(size, device=weight.device)
    rows = (pixels - (best // size)[..., None]).abs() <= reach
    columns = (pixels - (best % size)[..., None]).abs() <= reach
    return rows[..., :, None] & columns[..., None, :]


def _near_agent(position: Tensor, size: int) -> Tensor:
    """(..., 2) agent positions -> (..., R, R) mask of the pixels that agent and block may share."""
    pixels = torch.arange(size, dtype=position.dtype)
    columns = pixels - position[..., 0, None]
    rows = pixels - position[..., 1, None]
    distance = torch.hypot(rows[..., :, None], columns[..., None, :])
    return distance <= _CONTACT_RADIUS * size / WORLD_SIZE


def _median(values: Tensor) -> list[float]:
    """Median over the first dimension, (episodes, F) -> F numbers; the mean of the middle two of an even number."""
    ordered = values.double().sort(dim=0).values
    count = len(ordered)
    return ((ordered[(count - 1) // 2] + ordered[count // 2]) / 2).tolist()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _check_frames(frames: Tensor) -> None:
    shape = tuple(frames.shape)
    if frames.ndim < 3 or shape[-3] != 3 or shape[-1] != shape[-2] or not frames.is_floating_point():
        raise ShapeError(f"frames are {frames.dtype} {shape}; they must be float in [0, 1], (..., 3, R, R).")
