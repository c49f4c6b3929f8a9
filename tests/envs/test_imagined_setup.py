"""What an imagined environment checks before it is made or reset: bounds, rewards, settings, seeds, options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.config import DataFacts
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.imagined_single import ImaginedEnv
from ivideogpt.errors import ConfigError, DeviceError, ShapeError

MakeWorldModel = Callable[..., WorldModel]

A, N = 2, 3
CONTEXTS = np.random.default_rng(0).integers(0, 256, (6, 2, 16, 16, 3), np.uint8)
ACTIONS = np.zeros((N, A), np.float32)


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, action_limit=1.0, reward=True)


@pytest.fixture
def envs(model: WorldModel) -> ImaginedVectorEnv:
    return ImaginedVectorEnv(N, model=model, contexts=CONTEXTS)


def test_action_bounds(make_world_model: MakeWorldModel, model: WorldModel) -> None:
    free = make_world_model(action_dim=A, reward=True)
    assert ImaginedEnv(model=free, contexts=CONTEXTS).action_space == gymnasium.spaces.Box(-1, 1, (A,))
    own = ImaginedEnv(model=free, contexts=CONTEXTS, action_low=[0, -2], action_high=3)
    assert own.action_space == gymnasium.spaces.Box(np.float32([0, -2]), np.float32([3, 3]))
    own.reset(seed=0)
    own.step([2.5, -2])
    for bounds, message in [
        ({"action_low": 1.0}, "low must be below high"),
        ({"action_high": [0.5, np.nan]}, "must be one finite number, or 2 of them"),
        ({"action_high": [0.5] * 3}, "must be one finite number, or 2 of them"),
        ({"action_high": 2.0}, re.escape("only takes actions in [-1, 1]")),
    ]:
        with pytest.raises(ConfigError, match=message):
            ImaginedEnv(model=model, contexts=CONTEXTS, **bounds)  # type: ignore[arg-type]


def test_the_model_knows_its_actions(make_world_model: MakeWorldModel) -> None:
    """Bounds of its data before its limit, its limit before what was seen; a block of 2 has the bounds twice."""
    names, bounds = {"action_names": ("x", "grip")}, {"action_low": (0.0, -3.0), "action_high": (0.5, 3.0)}
    seen = {"action_min": (-9.0, 2.0), "action_max": (7.0, 2.0)}
    for told, limit, low, high in [
        (names | bounds | seen, None, [0, -3], [0.5, 3]),
        (names | bounds, 1.0, [0, -1], [0.5, 1]),
        (names | seen, 1.0, [-1, -1], [1, 1]),
        (names | seen, None, [-9, -1], [7, 2]),
    ]:
        facts = DataFacts(step_size=2, frame_rate=10, **told)
        model = make_world_model(action_dim=4, action_limit=limit, reward=True, data=facts)
        envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS)
        expected = gymnasium.spaces.Box(np.float32([*low, *low]), np.float32([*high, *high]))
        assert envs.single_action_space == expected
        assert envs.action_names == ("x (1 of 2)", "grip (1 of 2)", "x (2 of 2)", "grip (2 of 2)")
        assert envs.metadata["render_fps"] == 5
        envs.reset(seed=0)
        with pytest.raises(ShapeError, match=re.escape("component 3 (grip (2 of 2)) of the action of env 0 is 4")):
            envs.step(np.float32([[0.1, 0.1, 0.1, 4]] * N))
    assert ImaginedEnv(model=model, contexts=CONTEXTS).metadata["render_fps"] == 5


def test_a_model_must_take_actions(make_world_model: MakeWorldModel) -> None:
    with pytest.raises(ConfigError, match="no action input"):
        ImaginedEnv(model=make_world_model(reward=True), contexts=CONTEXTS)


def test_a_reward_comes_from_the_head_or_from_a_function(make_world_model: MakeWorldModel) -> None:
    model = make_world_model(action_dim=A)
    with pytest.raises(ConfigError, match=r"Pass reward=.*or train the transformer with rewards"):
        ImaginedVectorEnv(N, model=model, contexts=CONTEXTS)
    with pytest.raises(ConfigError, match="must be a function of frames"):
        ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, reward="high")  # type: ignore[arg-type]
    envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, reward=lambda frames: frames.mean((1, 2, 3)))
    envs.reset(seed=0)
    frames, rewards, *_ = envs.step(ACTIONS)
    np.testing.assert_allclose(rewards, frames.mean((1, 2, 3)))
    for reward, message in [(lambda frames: 1.0, "shape ()"), (lambda frames: [np.nan] * N, "nan")]:
        faulty = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, reward=reward)
        faulty.reset(seed=0)
        with pytest.raises(ShapeError, match=re.escape(message)):
            faulty.step(ACTIONS)


def test_a_copy_for_inference_will_do(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(N, model=model.for_inference("float32"), contexts=CONTEXTS)
    envs.reset(seed=0)
    _, rewards, *_ = envs.step(ACTIONS)
    expected = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS)
    expected.reset(seed=0)
    np.testing.assert_allclose(rewards, expected.step(ACTIONS)[1], atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"max_episode_steps": 0}, "max_episode_steps is 0"),
        ({"max_episode_steps": 2.5}, "max_episode_steps is 2.5"),
        ({"autoreset_mode": "Sometimes"}, "Available: 'NextStep', 'SameStep', 'Disabled'"),
        ({"render_mode": "human"}, "Available: rgb_array"),
        ({"model": 3}, "model is a int"),
        ({"device": "meta"}, "unknown device 'meta'"),
        ({"device": torch.device("meta")}, "unknown device 'meta'"),
    ],
)
def test_wrong_settings_are_refused(model: WorldModel, change: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, DeviceError), match=re.escape(message)):
        ImaginedVectorEnv(**{"model": model, "contexts": CONTEXTS, **change})


@pytest.mark.parametrize("seed", [-1, [1, 2], [1, -2, 3], "five", 1.5])
def test_wrong_seeds_are_refused(envs: ImaginedVectorEnv, seed: Any) -> None:
    with pytest.raises(ShapeError, match="seed is"):
        envs.reset(seed=seed)


@pytest.mark.parametrize("mask", [[True] * N, np.ones(N), np.ones(N + 1, bool), np.zeros(N, bool)])
def test_wrong_options_are_refused(envs: ImaginedVectorEnv, mask: Any) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'reset_mask'"):
        envs.reset(options={"reset_msk": mask})
    with pytest.raises(ShapeError, match="a bool array of shape"):
        envs.reset(options={"reset_mask": mask})
