"""`ivideogpt bench rollout` through the real command, on the smallest models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ivideogpt.benchmarks import rollouts
from ivideogpt.benchmarks.generation import random_model
from ivideogpt.cli import bench_rollout
from ivideogpt.cli.main import main

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same measurements, of a few frames and steps."""
    torch.manual_seed(0)
    model = random_model(rollouts.SIZES["micro"], trained_frames=5)
    monkeypatch.setattr(rollouts, "LATENCY_MODEL", str(model.save_pretrained(tmp_path_factory.mktemp("latency"))))
    monkeypatch.setattr(rollouts, "LATENCY_STEPS", 4)
    monkeypatch.setattr(rollouts, "HORIZON", 2)


def bench(out: Path, *more: str) -> int:
    words = ["--size", "micro", "--repeats", "2", "--device", "cpu", "--out", str(out), *more]
    return main(["bench", "rollout", *words])


def test_measures_every_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out) == 0
    said = capsys.readouterr()
    figures = json.loads(out.read_text())
    assert [result["name"] for result in figures["results"]] == ["one", "eight", "hundred", "contexts", "latency"]
    assert [result["reference_measured_on"] for result in figures["results"][:-1]] == [1, 8, 8, 8]
    for result in figures["results"][:-1]:
        check_row(result)
    check_latency(figures["results"][-1])
    assert "hundred, micro, 1 x 100 x (2 + 2) frames" in said.out and "straightforward, from 8" in said.out
    assert "one step with pixels" in said.out and str(out) in said.out
    assert "contexts, micro, 32 x 1 x (2 + 2) frames, rewards: " in said.err


def check_row(result: dict[str, Any]) -> None:
    rows = result["contexts"] * result["branches"]
    for way in (result["reference"], *result["ours"].values()):
        assert len(way["seconds"]) == 2
        assert way["frames_per_second"] == pytest.approx(rows * 2 / way["median"])
        assert set(way["profile_seconds"]) == {"start", "steps", "decode"}
    for way in result["ours"].values():
        assert 0 < way["floor_seconds"] == pytest.approx(sum(way["floor_parts_seconds"].values()))
        assert way["session_bytes"] > 0 and way["counted"]["steps_gb"] > 0
    assert result["ours"]["float32"]["differences"]["largest_difference"] < 1e-3


def check_latency(result: dict[str, Any]) -> None:
    for way in result["ours"].values():
        assert len(way["seconds"]) == 4 and 0 < way["median"] <= way["p90"]
        assert way["floor_seconds"] > 0 and way["session_bytes"] > 0


def test_chosen_rows_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--rows", "contexts,one", "--json", "--rows-at-once", "1") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(out.read_text())
    assert [result["name"] for result in figures["results"]] == ["one", "contexts"]
    assert figures["command"] == (
        "ivideogpt bench rollout --rows contexts,one --size micro --repeats 2 --rows-at-once 1 --device cpu"
    )
    assert figures["versions"]["transformers"]


def test_one_way_and_latency_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--rows", "latency", "--ways", "float32") == 0
    figures = json.loads(out.read_text())
    assert "--rows latency --ways float32 --size micro" in figures["command"]
    [latency] = figures["results"]
    assert latency["name"] == "latency" and list(latency["ours"]) == ["float32"]


def test_the_named_rows_are_those_measured() -> None:
    assert bench_rollout.Options().rows.split(",") == [*rollouts.ROWS, rollouts.LATENCY]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--rows", "one,hundert"], "unknown row 'hundert'. Did you mean 'hundred'?"),
        (["--ways", "float32,fp8"], "unknown way 'fp8'."),
        (["--repeats", "0"], "greater than or equal to 1"),
        (["--device", "gpu"], "unknown device"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert bench(tmp_path / "bench.json", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
