"""`ivideogpt bench rollout` through the real command, on the smallest models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ivideogpt.benchmarks import generation
from ivideogpt.cli import bench_rollout
from ivideogpt.cli.main import main

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same measurements, of a few frames and steps, in both precisions whatever the processor."""
    torch.manual_seed(0)
    model = generation.random_model("micro", trained_frames=5)
    monkeypatch.setattr(generation, "LATENCY_MODEL", str(model.save_pretrained(tmp_path_factory.mktemp("latency"))))
    monkeypatch.setattr(generation, "_LATENCY_TURNS", 4)
    monkeypatch.setattr(generation, "HORIZON", 2)
    monkeypatch.setattr(generation, "precisions_on", lambda _: ["float32", "bf16"])


def bench(out: Path, *more: str) -> int:
    words = ["--size", "micro", "--repeats", "2", "--device", "cpu", "--out", str(out), *more]
    return main(["bench", "rollout", *words])


def test_measures_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out) == 0
    said = capsys.readouterr()
    results = json.loads(out.read_text())["results"]
    assert [result["name"] for result in results] == ["one", "eight", "hundred", "contexts", "latency"]
    for result, rows in zip(results, (1, 8, 100, 32), strict=False):
        check_row(result, rows)
    check_latency(results[-1])
    assert "hundred, micro, 1 x 100 x (2 + 2) frames: both in float32" in said.out
    assert "reference, float32, from 8%" in said.out
    assert "latency, " in said.out and "one step with its pixels" in said.out and str(out) in said.out
    assert "contexts, micro, 32 x 1 x (2 + 2) frames, rewards: both in float32" in said.err


def check_row(result: dict[str, Any], rows: int) -> None:
    assert result["frames"] == 2 * rows
    for name, way in result["variants"].items():
        assert len(way["seconds"]) == 2
        plain = name.startswith("reference")
        assert way["share_measured"] == (min(1, 8 / rows) if plain else 1)
        assert set(way["reported"]) == (set() if plain else {"start", "steps", "decode", "session_bytes"})
    assert all(value < 1e-3 for value in result["differences"]["float32"].values())


def check_latency(result: dict[str, Any]) -> None:
    assert list(result["variants"]) == ["ours, float32", "ours, bf16"] and not result["ratios"]
    for way in result["variants"].values():
        assert len(way["seconds"]) == 8 and 0 < way["median"] <= way["p90"]


def test_chosen_rows_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--rows", "contexts,one", "--json", "--precision", "float32") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(out.read_text())
    assert [result["name"] for result in figures["results"]] == ["one", "contexts"]
    assert figures["command"] == (
        "ivideogpt bench rollout --repeats 2 --precision float32 --device cpu --rows contexts,one --size micro"
    )
    assert figures["versions"]["transformers"]


def test_the_named_rows_are_those_measured() -> None:
    assert bench_rollout.Options().rows.split(",") == [*generation.ROLLOUTS, generation.LATENCY]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "one,hundert"], "unknown row 'hundert'. Did you mean 'hundred'?"),
        (["--repeats", "0"], "greater than or equal to 1"),
        (["--device", "gpu"], "unknown device"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert bench(tmp_path / "bench.json", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
