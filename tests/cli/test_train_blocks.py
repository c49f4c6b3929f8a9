"""`ivideogpt train --step-size` through the real command: a step takes all the actions of its frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ivideogpt import WorldModel
from ivideogpt.cli.main import main
from ivideogpt.envs.imagined_contexts import EpisodeFolder
from ivideogpt.envs.imagined_single import ImaginedEnv
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
    theirs, ours = model.tokenizer.config.state, model.transformer.config.state
    if more:
        assert theirs is not None and ours is not None and ours.change != theirs.change
        assert ours == theirs.model_copy(update={"change": ours.change})
    capsys.readouterr()

    predict = ["predict", "--model", str(second / "model"), "--episode", str(data / "0.npz"), "--device", "cpu"]
    assert main([*predict, "--horizon", "5", *STEP, "--json", "--out", str(tmp_path / "out")]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["step_size"], figures["horizon"]) == (2, 5) and "shuffled" in figures["psnr"]
    assert "With step size k" in refused([*predict, "--horizon", "5", "--out", str(tmp_path / "none")], capsys)

    contexts = EpisodeFolder(data, 2, 16, step_size=2)
    env = ImaginedEnv(model=model, contexts=contexts, reward=lambda frames: np.zeros(len(frames)))
    assert env.action_space.shape == (6,)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == (16, 16, 3)


def test_an_episode_too_short_for_the_context(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("tokenizer", data, tmp_path / "tokenizer") == 0
    words = ["--tokenizer", str(tmp_path / "tokenizer" / "model"), "--step-size", "7", "--batch-size", "16"]
    said = refused(words_of("transformer", data, tmp_path / "run", *words), capsys)
    assert "episode 2 of the dataset: the episode has 6 frames; the context alone needs 8" in said
