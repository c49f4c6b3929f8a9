"""The demo and the description of a model, with the shipped model, through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivideogpt.cli import demo
from ivideogpt.cli.main import main


def test_demo_shows_and_trains(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_TRAINING_EPISODES", 2)
    monkeypatch.setattr(demo, "_FINE_TUNING", {**demo._FINE_TUNING, "batch_size": 2, "cache_tokens": 4})
    out = tmp_path / "demo"
    assert main(["demo", "--out", str(out), "--episodes", "1", "--fine-tune-seconds", "0.1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["episodes"] == 1
    assert figures["fine_tuning"]["steps"] >= 1
    page = (out / "index.html").read_text()
    assert figures["contact"]["tokenizer_centre_error_px"] < 1
    assert "src='block.png'" in page
    for name in ("prediction.gif", "strip.png", "psnr.png", "block.png"):
        assert f"episode_910000/{name}" in page
        assert (out / "episode_910000" / name).is_file()
    assert (out / "fine-tuned" / "model" / "config.json").is_file()
    assert main(["demo", "--out", str(out)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_info_says_what_a_model_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "pusht-64", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["transformer"]["action_dim"] == 2
    assert figures["tokenizer"]["stored_as"] == ["bfloat16"]
    assert main(["info", "pusht-63"]) == 2
    assert "pusht-64" in capsys.readouterr().err


def test_the_shipped_model_fits_into_the_package() -> None:
    from ivideogpt import hub

    for name in hub.shipped_models():
        weights = hub.resolve(name).glob("*.safetensors")
        assert sum(path.stat().st_size for path in weights) <= 25e6
