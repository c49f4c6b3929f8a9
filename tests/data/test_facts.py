"""What is known of recorded episodes, from their metadata and their actions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivideogpt.config import DataFacts
from ivideogpt.data.facts import RewardScale, facts_of, reward_scale
from ivideogpt.data.sources.npz import NpzFolder

METADATA = {"env": "pusht", "frame_rate": 10, "action_names": ["x", "y"], "action_low": [-1, -2], "action_high": [1, 2]}


def write(folder: Path, number: int, actions: Any, metadata: dict[str, Any] | None = None) -> None:
    folder.mkdir(exist_ok=True)
    tracks = {"act": actions, "metadata": np.array(json.dumps(metadata or {}))}
    np.savez(folder / f"{number}.npz", image=np.zeros((len(actions), 8, 8, 3), np.uint8), **tracks)


@pytest.mark.parametrize("action_key", ["act", None])
def test_facts_of_many_episodes(tmp_path: Path, action_key: str | None) -> None:
    rng = np.random.default_rng(0)
    lengths = (5, 9, 2, 30)
    tracks = [rng.normal([100, -1], [3, 0.01], (length, 2)).astype(np.float32) for length in lengths]
    for number, actions in enumerate(tracks):
        write(tmp_path / "data", number, actions, METADATA)
    source = NpzFolder(tmp_path / "data", action_key=action_key)
    facts = DataFacts.checked(**facts_of(source, [0, 1, 3]))
    assert (facts.environment, facts.frame_rate) == ("pusht", 10)
    if action_key is None:
        assert facts.action_size is None
        return
    rows = np.concatenate([tracks[i][:-1] for i in (0, 1, 3)]).astype(np.float64)
    np.testing.assert_allclose(facts.action_mean, rows.mean(axis=0))
    np.testing.assert_allclose(facts.action_std, rows.std(axis=0))
    assert facts.action_min == tuple(rows.min(axis=0)) and facts.action_max == tuple(rows.max(axis=0))
    assert (facts.action_names, facts.action_low, facts.action_high) == (("x", "y"), (-1, -2), (1, 2))


def test_what_differs_or_makes_no_sense_is_not_known(tmp_path: Path) -> None:
    odd = {"frame_rate": "ten", "env": 3, "action_names": ["x"], "action_low": [1, 1], "action_high": [0, 2]}
    for number, metadata in enumerate([METADATA, {**METADATA, "frame_rate": 5}, odd, {}]):
        write(tmp_path / "data", number, np.zeros((3, 2)), metadata)
    source = NpzFolder(tmp_path / "data", action_key="act")
    assert "frame_rate" not in facts_of(source, [0, 1]) and facts_of(source, [0, 1])["environment"] == "pusht"
    for indices in ([2], [0, 3]):
        assert set(facts_of(source, indices)) == {"action_mean", "action_std", "action_min", "action_max"}


@pytest.mark.parametrize("symlog", [False, True])
def test_scale_of_rewards(tmp_path: Path, symlog: bool) -> None:
    rng = np.random.default_rng(0)
    tracks = [rng.normal(30, 8, length).astype(np.float32) for length in (4, 9)]
    for number, rewards in enumerate(tracks):
        np.savez(tmp_path / f"{number}.npz", image=np.zeros((len(rewards), 8, 8, 3), np.uint8), reward=rewards)
    scale = reward_scale(NpzFolder(tmp_path), [0, 1], symlog=symlog)
    earned = np.concatenate([rewards[1:] for rewards in tracks]).astype(np.float64)
    learned = np.log1p(earned) if symlog else earned
    assert scale.mean == pytest.approx(learned.mean()) and scale.std == pytest.approx(learned.std())
    assert scale.largest == pytest.approx(earned.max())


def test_rewards_that_never_differ_have_a_scale(tmp_path: Path) -> None:
    for number, length in enumerate((1, 5)):
        np.savez(tmp_path / f"{number}.npz", image=np.zeros((length, 8, 8, 3), np.uint8), reward=np.full(length, 2.0))
    assert reward_scale(NpzFolder(tmp_path), [0], symlog=False) == RewardScale()
    assert reward_scale(NpzFolder(tmp_path), [0, 1], symlog=False) == RewardScale(2.0, 1e-3, 2.0)


def test_a_single_frame_and_actions_of_different_sizes(tmp_path: Path) -> None:
    write(tmp_path / "data", 0, np.ones((1, 2)))
    write(tmp_path / "data", 1, np.ones((4, 3)))
    source = NpzFolder(tmp_path / "data", action_key="act")
    assert facts_of(source, [0])["action_mean"] == (1, 1)
    assert facts_of(source, [0, 1]) == {}


def test_many_episodes_are_sampled() -> None:
    looked_at = []

    class Source:
        def read_actions(self, index: int) -> tuple[np.ndarray[Any, Any], dict[str, Any]]:
            looked_at.append(index)
            return np.zeros((3, 1), np.float32), {}

    facts_of(Source(), range(2500))
    assert looked_at == list(range(0, 2500, 3))
