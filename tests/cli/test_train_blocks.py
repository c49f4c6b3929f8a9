"""`ivideogpt train --step-size` through the real command: a step takes all the actions of its frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium.spaces import Box

from ivideogpt import WorldModel
from ivideogpt.cli.main import main
from ivideogpt.envs.imagined_contexts import EpisodeFolder
from ivideogpt.envs.imagined_single import ImaginedEnv
from ivideogpt.errors import ConfigError
from tests.cli.test_train import refused, train, words_of

STEP = ["--step-size", "2"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A slide that moves as it is told; one episode is shorter than a segment."""
    for number, length in enumerate((14, 14, 6)):
        rng = np.random.default_rng(number)
        actions = rng.uniform(-1, 1, (length, 3))
        states = np.cumsum(np.vstack([rng.normal(0, 1, (1, 3)), actions[:-1]]), axis=0)
        frames = rng.integers(0, 256, (length, 16, 16, 3))
        (tmp_path / "data").mkdir(exist_ok=True)
        np.savez(tmp_path / "data" / f"{number}.npz", image=frames, action=actions, state=states)
    return tmp_path / "data"


@pytest.mark.parametrize("more", [[], ["--states"]])
def test_from_episodes_to_predictions(
    data: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "tokenizer", tmp_path / "transformer"
    assert train("tokenizer", data, first, *more) == 0  # of single steps, so that its usual change is another
    assert train("transformer", data, second, "--tokenizer", str(first / "model"), *STEP, *more) == 0
    model = WorldModel.from_pretrained(second / "model")
    assert model.transformer.config.action_dim == 6
    facts = model.facts
    assert (facts.step_size, facts.camera_key, facts.action_key) == (2, "image", "action")
    assert facts.state_key == ("state" if more else None)
    assert facts.action_size == 3 and max(facts.action_max) <= 1 and min(facts.action_std) > 0.4
    theirs, ours = model.tokenizer.config.state, model.transformer.config.state
    if more:
        assert theirs is not None and ours is not None and ours.change != theirs.change
        assert ours == theirs.model_copy(update={"change": ours.change})
    capsys.readouterr()

    predict = ["predict", "--model", str(second / "model"), "--episode", str(data / "0.npz"), "--device", "cpu"]
    assert main([*predict, "--horizon", "5", "--json", "--out", str(tmp_path / "out")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["step_size"], figures["horizon"]) == (2, 5) and "shuffled" in figures["psnr"]
    other = [*predict, "--horizon", "5", "--out", str(tmp_path / "none"), "--step-size", "1"]
    assert "step_size is 1, but this model was trained with step size 2" in refused(other, capsys)

    env = ImaginedEnv(model=model, contexts=data, reward=lambda frames: np.zeros(len(frames)))
    assert isinstance(env._world.contexts, EpisodeFolder) and env._world.contexts.step_size == 2
    assert isinstance(env.action_space, Box) and env.action_space.shape == (6,)
    known = model.facts
    np.testing.assert_allclose(env.action_space.low, [*known.action_min, *known.action_min], rtol=1e-6)
    with pytest.raises(ConfigError, match="step_size is 1, but this model was trained with step size 2"):
        ImaginedEnv(model=model, contexts=EpisodeFolder(data, 2, 16), reward=lambda frames: np.zeros(len(frames)))
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == (16, 16, 3)


def test_an_episode_too_short_for_the_context(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("tokenizer", data, tmp_path / "tokenizer") == 0
    words = ["--tokenizer", str(tmp_path / "tokenizer" / "model"), "--step-size", "7", "--batch-size", "16"]
    said = refused(words_of("transformer", data, tmp_path / "run", *words), capsys)
    assert "a segment of 5 frames spans 29 recorded ones, and the episodes have 6 to 14" in said
