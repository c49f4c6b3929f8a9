from __future__ import annotations

import numpy as np
import pytest

from ivideogpt.envs.pusht import WORLD_SIZE
from ivideogpt.envs.pusht_policies import Policy, ScriptedPusher, SmoothWanderer
from ivideogpt.envs.record import pusht_episode

STATE = np.array([100.0, 400.0, 256.0, 200.0, 0.3])


@pytest.mark.parametrize("kind", [ScriptedPusher, SmoothWanderer])
def test_targets_lie_inside_and_follow_from_the_generator(
    kind: type[ScriptedPusher | SmoothWanderer],
) -> None:
    one, other = (kind(np.random.default_rng(3)) for _ in range(2))
    different: Policy = kind(np.random.default_rng(4))
    targets = [one(STATE) for _ in range(50)]
    assert np.min(targets) > 0
    assert np.max(targets) < WORLD_SIZE
    np.testing.assert_array_equal(targets, [other(STATE) for _ in range(50)])
    assert not np.array_equal(targets, [different(STATE) for _ in range(50)])


def test_a_wanderer_moves_smoothly() -> None:
    policy = SmoothWanderer(np.random.default_rng(0))
    targets = np.array([policy(STATE) for _ in range(100)])
    assert np.linalg.norm(np.diff(targets, axis=0), axis=1).max() < 80
    assert np.ptp(targets, axis=0).min() > 60


def test_the_pusher_moves_the_block_in_most_windows() -> None:
    moved = []
    for seed in range(12):
        episode = pusht_episode(seed, environment="pusht-fast")
        if episode.metadata["behaviour"] == "fast":
            assert episode.states is not None
            block = episode.states[:, 2:]
            windows = np.stack([np.abs(block[j : j + 16] - block[j]).max(axis=0) for j in range(85)])
            moved.append(((windows[:, :2].max(axis=1) > 8) | (windows[:, 2] > 0.1)).mean())
            assert (block[:, :2] > -60).all()
            assert (block[:, :2] < WORLD_SIZE + 60).all()
    assert len(moved) >= 6
    assert np.mean(moved) > 0.7
