from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from kornia.filters import gaussian_blur2d
from torch import Tensor

from ivideogpt.data.episode import Episode
from ivideogpt.envs.pusht import PushT, block_mask
from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.pusht_pose import _REACH, TURNING_RADIUS, Pose, _draw, find_pose, true_pose, wrapped

States = npt.NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def frames(episodes: list[Episode]) -> Tensor:
    """(60, 3, 64, 64)."""
    stacked = np.concatenate([episode.frames for episode in episodes])
    return torch.from_numpy(stacked).movedim(-1, 1).float() / 255


@pytest.fixture(scope="module")
def states(episodes: list[Episode]) -> States:
    return np.concatenate([episode.states for episode in episodes if episode.states is not None])


def staged(states: States) -> tuple[Tensor, States]:
    """Frames (N,3,64,64) and states of a simulator put into these states; it may push touching objects apart."""
    env = PushT()
    frames, reached = [], []
    for state in states:
        frame, info = env.reset(seed=0, options={"reset_to_state": state})
        frames.append(frame)
        reached.append(info["state"])
    env.close()
    return torch.from_numpy(np.stack(frames)).movedim(-1, 1).float() / 255, np.stack(reached)


def errors(found: Pose, states: States) -> tuple[Tensor, Tensor]:
    """Pixels and degrees."""
    truth = true_pose(states)
    position = (found.position - truth.position).norm(dim=-1)
    return position, wrapped(found.angle - truth.angle).abs().rad2deg()


def test_the_block_is_found_in_true_frames(frames: Tensor, states: States) -> None:
    pose = find_pose(frames)
    position, angle = errors(pose, states)
    assert pose.found.all()
    assert float(position.median()) < 0.1
    assert float(position.max()) < 0.4
    assert float(angle.median()) < 0.5
    assert float(angle.max()) < 3


def test_every_orientation_is_told_apart() -> None:
    turned = np.stack([[80.0, 80.0, 270.0, 260.0, angle] for angle in np.linspace(-3.1, 3.1, 37)])
    frames, states = staged(turned)
    pose = find_pose(frames)
    position, angle = errors(pose, states)
    assert pose.found.all()
    assert float(position.max()) < 0.4
    assert float(angle.max()) < 3


def test_walls_and_the_agent_in_contact_do_not_disturb() -> None:
    walls = [[256.0, 256.0, x, y, 0.7] for x in (75.0, 440.0) for y in (75.0, 440.0)]
    touched = [[250.0 + 90 * math.cos(a), 290.0 + 90 * math.sin(a), 250.0, 245.0, 0.0] for a in np.arange(0, 6.2, 0.5)]
    frames, states = staged(np.array(walls + touched))
    pose = find_pose(frames)
    position, angle = errors(pose, states)
    assert pose.found.all()
    assert float(position.max()) < 0.4
    assert float(angle.max()) < 3


def test_blur_and_noise_do_little(frames: Tensor, states: States) -> None:
    noise = 0.05 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    for disturbed in (gaussian_blur2d(frames, (9, 9), (1.0, 1.0)), (frames + noise).clamp(0, 1)):
        pose = find_pose(disturbed)
        position, angle = errors(pose, states)
        assert pose.found.all()
        assert float(position.median()) < 0.15
        assert float(angle.median()) < 1


def test_shifts_are_measured_in_pixels(frames: Tensor) -> None:
    inside = (find_pose(frames).position - 32).abs().amax(dim=-1) < 15
    pose, moved = find_pose(frames[inside]), find_pose(frames[inside].roll((2, -1), dims=(-1, -2)))
    shift = moved.position - pose.position
    assert (shift - torch.tensor([2.0, -1.0])).abs().max() < 0.1
    assert wrapped(moved.angle - pose.angle).abs().rad2deg().max() < 1


def test_what_is_no_block_is_not_found(frames: Tensor, states: States) -> None:
    gone = frames.clone()
    for frame, state in zip(gone, states, strict=True):
        frame[
            :, gaussian_blur2d(torch.from_numpy(block_mask(state)).float()[None, None], (5, 5), (2.0, 2.0))[0, 0] > 0.02
        ] = 1.0
    grey = torch.tensor((143, 163, 184)).view(3, 1, 1) / 255
    pixels = torch.arange(64) - 32
    disc = torch.hypot(pixels[:, None].float(), pixels[None].float()) < 6
    blot = torch.where(disc, grey, torch.ones(3, 64, 64))
    scattered = torch.where(torch.rand(64, 64, generator=torch.Generator().manual_seed(0)) < 0.1, grey, torch.ones(()))
    assert not find_pose(gone).found.any()
    for picture in (blot, scattered, grey.expand(3, 64, 64), torch.zeros(3, 64, 64), torch.ones(3, 64, 64)):
        assert not find_pose(picture).found
    assert not find_pose(gaussian_blur2d(frames, (25, 25), (4.0, 4.0))).found.any()


def test_any_leading_shape_and_company(frames: Tensor) -> None:
    pose = find_pose(frames.view(5, 12, 3, 64, 64))
    assert pose.found.shape == pose.angle.shape == pose.overlap.shape == (5, 12)
    assert pose.position.shape == (5, 12, 2)
    alone = find_pose(frames[19])
    assert alone.found.shape == ()
    assert torch.allclose(alone.position, pose.position[1, 7], atol=1e-3)
    assert find_pose(frames[:0]).position.shape == (0, 2)


def test_the_drawn_block_is_the_simulators() -> None:
    """The mask of the block in the simulator, and the derivatives that least squares follow."""
    state = np.array([0.0, 0.0, 250.0, 240.0, 0.4])
    [column, row] = true_pose(state).position.tolist()
    corner = (round(column) - _REACH, round(row) - _REACH)
    pose = torch.tensor([[column - round(column), row - round(row), 0.4 * TURNING_RADIUS]], dtype=torch.float64)
    side = 2 * _REACH + 1
    drawn, slope = _draw(pose, 1.0)
    mask = torch.from_numpy(block_mask(state)[corner[1] : corner[1] + side, corner[0] : corner[0] + side])
    assert torch.equal(drawn.view(side, side) > 0.5, mask)
    for i in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[i]
        numeric = (_draw(pose + step, 2.0)[0] - _draw(pose - step, 2.0)[0]) / 2e-5
        assert ((numeric - _draw(pose, 2.0)[1][:, i]).abs() > 1e-4).float().mean() < 0.01  # but at kinks
    assert slope.shape == (1, 3, side * side)


def test_frames_must_be_those_of_pusht(frames: Tensor) -> None:
    for wrong in ((frames * 255).to(torch.uint8), frames[..., :32], frames[:, 0]):
        with pytest.raises(ShapeError, match=r"must be float in \[0, 1\]"):
            find_pose(wrong)
