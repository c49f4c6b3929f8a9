"""`ivideogpt bench` through the real command, on the smallest models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ivideogpt.benchmarks import generation, training
from ivideogpt.cli.main import main


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurements on models that take milliseconds."""
    size = generation.Size("micro-16", "micro", 2)
    monkeypatch.setattr(generation, "SIZES", {"nano": size, "official": size})
    monkeypatch.setattr(training, "TOKENIZER", "micro-16")
    monkeypatch.setattr(training, "TRANSFORMER", "micro")


def bench(out: Path, *more: str) -> int:
    return main(["bench", "--out", str(out), "--device", "cpu", "--repeats", "2", *more])


def measured(out: Path) -> list[tuple[str, str]]:
    return [(result["name"], result["size"]) for result in json.loads(out.read_text())["results"]]


def test_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out) == 0
    generated = [(name, size) for size in ("nano", "official") for name in ("tokenize", "rollout", "detokenize")]
    assert measured(out) == [("train tokenizer", "nano"), ("train transformer", "nano"), *generated]
    said = capsys.readouterr().out
    assert "straightforward" in said and "rollout, official, 1 x (2 + 10) frames" in said and str(out) in said


def test_json_is_the_file_and_says_what_it_ran_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--json", "--only", "training") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(out.read_text())
    assert figures["command"] == "ivideogpt bench --only training --size all --repeats 2 --device cpu"
    assert figures["hardware"]["cores"] >= 1 and figures["hardware"]["gpu"] is None
    assert set(figures["versions"]) == {"python", "torch", "transformers", "ivideogpt"}
    for result in figures["results"]:
        check_result(result, runs=8)


def test_one_size_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--only", "generation", "--size", "official") == 0
    figures = json.loads(out.read_text())
    assert [result["size"] for result in figures["results"]] == ["official"] * 3
    for result in figures["results"]:
        check_result(result, runs=2)
        assert all(0 < way["floor_seconds"] < way["median"] for way in result["ours"].values())
        assert all(value < 1e-3 for value in result["ours"]["float32"]["differences"].values())


def check_result(result: dict[str, Any], runs: int) -> None:
    ways = [result["reference"], *result["ours"].values()]
    assert all(len(way["seconds"]) == runs and way["median"] > 0 for way in ways)
    assert result["ratio"] == max(way["ratio"] for way in result["ours"].values())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--repeats", "0"], "greater than or equal to 1"),
        (["--device", "gpu"], "unknown device"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert bench(tmp_path / "bench.json", *more) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    out.write_text("mine")
    assert bench(out) == 2
    assert "--overwrite" in capsys.readouterr().err and out.read_text() == "mine"
    assert bench(tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err
    assert bench(out / "below.json") == 2
    assert "Choose another place" in capsys.readouterr().err
    assert bench(out, "--overwrite", "--only", "training") == 0
    assert len(measured(out)) == 2
