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
from ivideogpt.envs.pusht import AGENT_COLOURS, agent_position, block_mask
from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.pusht_probe import find_agent, find_block, probe_objects, stack_objects

States = npt.NDArray[np.floating[Any]]


@pytest.fixture(scope="module")
def frames(episodes: list[Episode]) -> Tensor:
    """(60, 3, 64, 64)."""
    stacked = np.concatenate([episode.frames for episode in episodes])
    return torch.from_numpy(stacked).movedim(-1, 1).float() / 255


@pytest.fixture(scope="module")
def states(episodes: list[Episode]) -> States:
    return np.concatenate([episode.states for episode in episodes if episode.states is not None])


def without_agent(frames: Tensor) -> Tensor:
    blue = (frames[:, 2] - frames[:, 0]) > 50 / 255
    return frames.masked_fill(blue[:, None], 1.0)


def test_true_frames_score_as_true(frames: Tensor, states: States) -> None:
    objects = probe_objects(frames, states)
    assert objects.agent_visible.all()
    assert float(objects.agent_error.median()) < 0.2
    assert float(objects.agent_error.max()) < 0.5
    assert float(objects.block_iou.mean()) > 0.95
    assert float(objects.block_iou.min()) > 0.9


def test_a_vanished_agent_is_missed_and_not_forgiven(frames: Tensor, states: States) -> None:
    objects = probe_objects(without_agent(frames), states)
    assert not objects.agent_visible.any()
    assert objects.agent_error.isinf().all()
    assert float(objects.block_iou.mean()) > 0.9  # the block is still there


def test_a_slightly_blurred_agent_counts_and_a_smeared_one_does_not(frames: Tensor, states: States) -> None:
    slightly = probe_objects(gaussian_blur2d(frames, (9, 9), (0.8, 0.8)), states)
    assert slightly.agent_visible.all()
    assert float(slightly.agent_error.median()) < 0.3
    assert not find_agent(gaussian_blur2d(frames, (15, 15), (2.5, 2.5))).visible.any()


def test_noise_neither_hides_nor_moves_the_agent(frames: Tensor, states: States) -> None:
    noise = 0.05 * torch.randn(frames.shape, generator=torch.Generator().manual_seed(0))
    objects = probe_objects((frames + noise).clamp(0, 1), states)
    assert objects.agent_visible.all()
    assert float(objects.agent_error.median()) < 0.3


def test_a_blue_flood_is_no_agent() -> None:
    flood = torch.tensor(AGENT_COLOURS[0]).view(3, 1, 1).expand(3, 64, 64) / 255
    assert not find_agent(flood).visible


@pytest.mark.parametrize("shift", [1, 3])
def test_errors_are_measured_in_pixels(frames: Tensor, states: States, shift: int) -> None:
    objects = probe_objects(frames.roll(shift, dims=-1), states)
    assert float(objects.agent_error.median()) == pytest.approx(shift, abs=0.2)
    assert float(objects.block_iou.mean()) < 0.85


def test_positions_and_masks_agree_with_the_simulator(frames: Tensor, states: States) -> None:
    """Columns are columns and rows are rows, in any leading shape."""
    agent, mask = find_agent(frames.view(5, 12, 3, 64, 64)), find_block(frames.view(5, 12, 3, 64, 64))
    assert agent.position.shape == (5, 12, 2)
    assert np.abs(agent.position[1, 7].numpy() - agent_position(states[19])).max() < 0.5
    agreement = mask[1, 7].numpy() == block_mask(states[19])
    assert agreement.mean() > 0.99


def test_summary_does_not_let_lost_agents_flatter(frames: Tensor, states: States) -> None:
    probed = probe_objects(frames, states)
    lost = probe_objects(without_agent(frames), states)
    truth = stack_objects([probed, probed, lost]).summary()
    assert truth["agent_visible_share"] == pytest.approx(2 / 3)
    assert truth["agent_median_error_at_last_frame_px"] < 0.5
    mostly_lost = stack_objects([probed, lost, lost]).summary()
    assert mostly_lost["agent_median_error_at_last_frame_px"] is None
    assert len(mostly_lost["per_frame"]["agent_median_error_px"]) == 60
    assert math.isclose(truth["block_mean_iou_at_last_frame"], truth["per_frame"]["block_mean_iou"][-1])


def test_frames_and_states_must_match(frames: Tensor, states: States) -> None:
    with pytest.raises(ShapeError, match=r"need \(60, 5\)"):
        probe_objects(frames, states[:3])
    with pytest.raises(ShapeError, match="float in"):
        find_agent((frames * 255).to(torch.uint8))
    with pytest.raises(ShapeError, match="float in"):
        find_block(frames[..., :32])
