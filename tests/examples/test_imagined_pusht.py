"""The example runs: on imagined worlds, on simulated ones, and with a clear word where a model has no rewards."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import gymnasium
import numpy as np
import pytest

from ivideogpt import WorldModel
from ivideogpt.envs.pusht import PushT

MakeWorldModel = Callable[..., WorldModel]

EXAMPLE = Path(__file__).parents[2] / "examples" / "imagined_pusht.py"


@pytest.fixture
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("imagined_pusht", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_two_updates_on_imagined_worlds(example: ModuleType, make_world_model: MakeWorldModel) -> None:
    contexts = np.random.default_rng(0).integers(0, 256, (4, 2, 16, 16, 3), np.uint8)
    model = make_world_model(action_dim=2, reward=True)
    envs = gymnasium.make_vec("ivideogpt/Imagined-v0", num_envs=4, model=model, contexts=contexts, max_episode_steps=3)
    history = example.train(envs, updates=2, steps=5)
    assert np.isfinite(history).all()
    assert len(history) == 2


def test_the_same_loop_on_the_simulator(example: ModuleType) -> None:
    envs = gymnasium.vector.SyncVectorEnv([PushT] * 2)
    assert len(example.train(envs, updates=2, steps=3)) == 2
    envs.close()


def test_a_model_without_rewards_is_refused_in_words(make_world_model: MakeWorldModel, tmp_path: Path) -> None:
    model = make_world_model(action_dim=2).save_pretrained(tmp_path / "model")
    done = subprocess.run([sys.executable, EXAMPLE, "--model", model], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no reward head" in done.stderr
    assert "Traceback" not in done.stderr
