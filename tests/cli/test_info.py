"""`ivideogpt info` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivideogpt import hub
from ivideogpt.cli.main import main
from ivideogpt.config import DataFacts
from tests.conftest import MakeWorldModel


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["info", *words]) == 0
    return capsys.readouterr().out


def test_a_model_in_a_dozen_lines(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys)
    assert len(text.splitlines()) <= 16
    for line in (
        "64 x 64 pixels",
        "trained horizon  14 frames",
        "target x, target y",
        "[-1, 1] [-1, 1]",
        "step size 1",
    ):
        assert line in text
    assert "feed_forward" not in text
    assert len(said(capsys, "--config").splitlines()) > 40
    assert json.loads(said(capsys, "--json"))["transformer"]["data"]["frame_rate"] == 10


def test_facts_on_the_data_are_shown(
    make_world_model: MakeWorldModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_world_model(action_dim=4).save_pretrained(tmp_path / "model")
    text = said(capsys, str(folder))
    assert "step size not known, taken as 1" in text and "4 numbers a step\n" in text and "horizon  not known" in text
    seen = {"action_min": (-3, 0), "action_max": (30, 1), "action_mean": (0.5, 0.25), "action_std": (2, 0.125)}
    hub.write_facts(
        folder, DataFacts(step_size=2, camera_key="front", action_key="act", action_names=("x", "grip"), **seen)
    )
    text = said(capsys, str(folder))
    assert "4 numbers a step, 2 of 2 one after another: x, grip" in text
    assert "[-3, 30] [0, 1], mean±std 0.5±2 0.25±0.12" in text
    assert "step size 2, keys front act" in text


def test_without_actions_and_without_a_transformer(
    make_world_model: MakeWorldModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_world_model()
    text = said(capsys, str(model.save_pretrained(tmp_path / "model")))
    assert "actions" in text and "none" in text
    alone = hub.Checkpoint(tokenizer=(model.tokenizer.config, model.tokenizer.state_dict()))
    text = said(capsys, str(hub.save(tmp_path / "tokenizer", alone)))
    assert "16 x 16 pixels" in text and "next" not in text and "sampling" not in text


def test_what_is_said_next_is_for_models_of_pusht(
    make_world_model: MakeWorldModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other data are not known here."""
    folder = make_world_model(action_dim=2).save_pretrained(tmp_path / "my model")
    assert "ivideogpt predict" not in said(capsys, str(folder))
    hub.write_facts(folder, DataFacts(environment="pusht"))
    assert f"next   ivideogpt predict --model '{folder}' --episode pusht:900000" in said(capsys, str(folder))
