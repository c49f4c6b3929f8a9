"""`ivideogpt train --states` through the real command, on episodes from elsewhere: other names, and no metadata."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from tests.cli.test_train import refused, train, words_of

STATES = ["--states", "--state-key", "proprio"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A joint that turns and a slide that moves as they are told; of types as found in the wild."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(3):
        rng = np.random.default_rng(number)
        actions = rng.uniform(-1, 1, (10, 2))
        states = np.cumsum(np.vstack([rng.normal(0, 1, (1, 2)), actions[:-1]]), axis=0)
        frames = rng.integers(0, 256, (10, 16, 16, 3))
        np.savez(folder / f"{number}.npz", image=frames, action=actions, proprio=states)
    return folder


@pytest.mark.parametrize("more", [[], ["--state-angles", "1"]])
def test_from_episodes_to_a_model_that_foretells_states(
    data: Path, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "tokenizer", tmp_path / "transformer"
    assert train("tokenizer", data, first, *STATES, *more, "--prior-weight", "0.1", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"state_frame", "state_dynamics", "residual", "prior"} <= set(figures)
    assert {"state_frame", "psnr_states_alone", "psnr_tokens_alone"} <= set(figures["held_out"])
    words = ["--tokenizer", str(first / "model"), *STATES, *more]
    assert train("transformer", data, second, *words, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert {"state_seen", "state_dynamics"} <= set(figures)
    assert {"state_seen", "state_next"} <= set(figures["held_out"])
    for out, command, options in ((first, "tokenizer", [*STATES, *more]), (second, "transformer", words)):
        options = [*options, "--prior-weight", "0.1"] if command == "tokenizer" else options
        assert train(command, data, out, *options, "--resume") == 0
        assert "nothing is left to train" in capsys.readouterr().err
    model = WorldModel.from_pretrained(second / "model")
    state = model.transformer.config.state
    assert state is not None and state == model.tokenizer.config.state
    assert (state.size, state.names, state.angles) == (2, (), (1,) if more else ())
    step = model.start(torch.zeros(1, 2, 3, 16, 16)).step(torch.zeros(1, 2))
    assert step.state is not None and step.state.shape == (1, 2) and torch.isfinite(step.state).all()


@pytest.mark.parametrize("command", ["tokenizer", "transformer"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--states --state-key propio", "unknown state key 'propio'. Did you mean 'proprio'?"),
        ("--states", "unknown state key 'state'"),
        ("--states --state-key proprio --state-angles 2", "angles is (2,); they must be columns of the state, 0..1"),
        ("--states --state-key proprio --state-weight -1", "state-weight is -1.0"),
    ],
)
def test_wrong_words(
    data: Path, tmp_path: Path, command: str, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = WorldModel(CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro"))
    more = ["--tokenizer", str(model.save_pretrained(tmp_path / "model"))] if command == "transformer" else []
    assert expected in refused(words_of(command, data, tmp_path / "run", *more, *words.split()), capsys)
    assert not (tmp_path / "run").exists()
