"""`ivideogpt bench sessions` through the real command, on the smallest model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ivideogpt.benchmarks import generation, sessions
from ivideogpt.cli.main import main


def test_measures_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = generation.random_model("micro", trained_frames=5).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(sessions, "WORLDS", 8)
    monkeypatch.setattr(sessions, "SOME", 4)
    out = tmp_path / "bench.json"
    words = ["--model", str(model), "--precision", "float32", "--repeats", "1", "--device", "cpu", "--out", str(out)]
    assert main(["bench", "sessions", *words]) == 0
    results = json.loads(out.read_text())["results"]
    assert [result["name"] for result in results] == ["reset", "fork", "phases", "some rows"]
    for variant in ("start 8 worlds", "reset, its memory"):
        memory = results[0]["variants"][variant]["reported"]
        assert 0 < memory["peak bytes"] <= 1.1 * memory["checked bytes"] + 4096
    said = capsys.readouterr()
    assert "reset 1 of 8 rows" in said.out and "4 worlds out of phase" in said.out and str(out) in said.out
