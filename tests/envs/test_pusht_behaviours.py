from __future__ import annotations

import numpy as np
import pytest

from ivideogpt.data.episode import Episode
from ivideogpt.envs import pusht
from ivideogpt.envs.pusht import WORLD_SIZE, action_to_world
from ivideogpt.envs.pusht_behaviours import BEHAVIOURS, MIXTURES, checked_mixture, draw_behaviour, parse_mixture
from ivideogpt.envs.record import pusht_episode
from ivideogpt.errors import InputError

STATE = np.array([100.0, 400.0, 256.0, 200.0, 0.3])


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames stay black: only states and actions matter, and drawing takes most of the time."""
    real = pusht._simulator_class

    def simulator_class() -> object:
        kind = real()
        kind._render = lambda self, visualize=False: np.zeros((64, 64, 3), np.uint8)
        return kind

    monkeypatch.setattr(pusht, "_simulator_class", simulator_class)


def tracks(episodes: list[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """States (N, T, 5) and actions in world units (N, T, 2)."""
    states = [episode.states for episode in episodes if episode.states is not None]
    actions = [action_to_world(episode.actions.astype(float)) for episode in episodes if episode.actions is not None]
    return np.stack(states).astype(float), np.stack(actions)


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_targets_lie_inside_and_follow_from_the_generator(name: str) -> None:
    one, other, different = (BEHAVIOURS[name](np.random.default_rng(seed)) for seed in (3, 3, 4))
    targets = [one(STATE) for _ in range(50)]
    assert np.min(targets) > 0
    assert np.max(targets) < WORLD_SIZE
    np.testing.assert_array_equal(targets, [other(STATE) for _ in range(50)])
    assert not np.array_equal(targets, [different(STATE) for _ in range(50)])


@pytest.mark.usefixtures("undrawn")
def test_slow_episodes_move_about_as_people_do() -> None:
    states, targets = tracks([pusht_episode(seed, 100, mixture={"slow": 1}) for seed in range(32)])
    speed = 10 * np.diff(states[..., :2], axis=1)
    assert np.all((speed.std(axis=(0, 1)) > 60) & (speed.std(axis=(0, 1)) < 85))
    ahead = ((targets - states[..., :2]) / 100).std(axis=(0, 1))
    assert np.all((ahead > 0.15) & (ahead < 0.22))
    np.testing.assert_allclose(states[..., :2].mean(axis=(0, 1)), [237, 265], atol=50)
    np.testing.assert_allclose(states[..., :2].std(axis=(0, 1)), [101, 87], atol=30)
    np.testing.assert_allclose(states[..., 2:4].mean(axis=(0, 1)), [255, 266], atol=35)
    assert states[..., 2:4].std(axis=(0, 1)).max() < 85
    motion = np.linalg.norm(np.diff(states[..., 2:4], axis=1), axis=2)
    assert 0.15 < (motion > 4).mean() < 0.4
    turned = np.abs(np.diff(states[..., 4], axis=1))
    assert (((motion > 1) | (turned > 0.02)).sum(axis=1) > 12).all()  # none stalls


@pytest.mark.usefixtures("undrawn")
def test_slow_episodes_reach_the_goal_and_go_on() -> None:
    episodes = [pusht_episode(seed, 240, mixture={"slow": 1}) for seed in range(10)]
    rewards = np.stack([episode.rewards for episode in episodes if episode.rewards is not None])
    assert (rewards.max(axis=1) > 0.8).mean() >= 0.7
    states, _ = tracks(episodes)
    assert (np.abs(np.diff(states[:, -80:, 2:], axis=1)).max(axis=2) > 1).any(axis=1).mean() >= 0.8


@pytest.mark.usefixtures("undrawn")
def test_paces_differ() -> None:
    def speed(name: str) -> float:
        states, _ = tracks([pusht_episode(seed, 60, mixture={name: 1}) for seed in range(8)])
        return float(np.linalg.norm(np.diff(states[..., :2], axis=1), axis=2).mean())

    slow, medium, fast = speed("slow"), speed("medium"), speed("fast")
    assert 6 < slow < 11
    assert 1.15 * slow < medium < 18
    assert fast > 20


def test_behaviours_occur_by_weight() -> None:
    for mixture in MIXTURES.values():
        shares = checked_mixture(mixture)
        drawn = [draw_behaviour(shares, np.random.default_rng(seed)) for seed in range(1000)]
        for name, share in shares.items():
            assert drawn.count(name) / 1000 == pytest.approx(share, abs=0.05)


def test_weights_become_shares() -> None:
    assert parse_mixture("random=4,slow=6") == parse_mixture("slow=0.6, random=0.4,fast=0")
    assert list(parse_mixture("random=1,slow=1")) == ["slow", "random"]
    assert checked_mixture(MIXTURES["pusht-fast"]) == MIXTURES["pusht-fast"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' is not name=weight.*slow=0.9,random=0.1.*Available: slow, medium, fast, random"),
        ("slow", "'slow' is not name=weight"),
        ("slow=a", "'slow=a' is not name=weight"),
        ("slow=1,slow=2", "'slow' has two weights"),
        ("fats=1", "unknown behaviour 'fats'. Did you mean 'fast'.*Available: fast, medium, random, slow"),
        ("slow=-1", "behaviour 'slow' has weight -1.0; a weight is a finite number, 0 or more"),
        ("slow=nan", "behaviour 'slow' has weight nan"),
        ("slow=0", "at least one must be above 0"),
        ("slow=1e308,fast=1e308", "their sum finite"),
    ],
)
def test_refuses_weights(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_mixture(text)
