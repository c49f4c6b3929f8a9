"""`ivideogpt bench` through the real command, on the smallest models."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ivideogpt.benchmarks import generation, training
from ivideogpt.cli.main import main

pytest.importorskip("transformers")

GENERATED = ["tokenize", "detokenize", "one"]
VARIANTS = ["reference, float32", "reference, bf16", "ours, float32", "ours, bf16"]


@pytest.fixture(autouse=True)
def micro(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same measurements on models that take milliseconds, in both precisions whatever the processor."""
    micro = generation.SIZES["micro"]
    monkeypatch.setattr(generation, "SIZES", {"nano": micro, "official": micro})
    monkeypatch.setattr(generation, "precisions_on", lambda _: ["float32", "bf16"])
    monkeypatch.setattr(generation, "HORIZON", 2)
    monkeypatch.setattr(training, "TOKENIZER", "micro-16")
    monkeypatch.setattr(training, "TRANSFORMER", "micro")


def bench(out: Path, *more: str) -> int:
    return main(["bench", "--out", str(out), "--device", "cpu", "--repeats", "2", *more])


def measured(out: Path) -> list[str]:
    return [result["name"] for result in json.loads(out.read_text())["results"]]


def test_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out) == 0
    assert measured(out) == [*GENERATED, *GENERATED, "train tokenizer", "train transformer"]
    said = capsys.readouterr().out
    assert "reference, bf16" in said and "one, official, 1 x 1 x (2 + 2) frames: both in float32 " in said
    assert str(out) in said


def test_json_is_the_file_and_says_what_it_ran_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--json", "--only", "training") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads(out.read_text())
    assert figures["command"] == ("ivideogpt bench --repeats 2 --precision all --device cpu --only training --size all")
    assert figures["hardware"]["cores"] >= 1 and figures["hardware"]["gpu"] is None
    assert set(figures["versions"]) == {"python", "torch", "transformers", "ivideogpt"}
    for result in figures["results"]:
        check_result(result, runs=8)


def test_one_size_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--only", "generation", "--size", "official") == 0
    figures = json.loads(out.read_text())
    assert [result["work"].split(",")[0] for result in figures["results"]] == ["official"] * 3
    for result in figures["results"]:
        check_result(result, runs=2)
        assert all(value < 1e-3 for value in result["differences"]["float32"].values())


def test_one_precision_alone(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    assert bench(out, "--size", "nano", "--precision", "bf16") == 0
    for result in json.loads(out.read_text())["results"]:
        assert list(result["variants"]) == ["reference, bf16", "ours, bf16"]
        assert list(result["ratios"]) == ["both in bf16"]


def check_result(result: dict[str, Any], runs: int) -> None:
    assert list(result["variants"]) == VARIANTS
    assert all(len(way["seconds"]) == runs and way["median"] > 0 for way in result["variants"].values())
    assert list(result["ratios"]) == ["both in float32", "both in bf16", "float32 against ours in bf16"]
    medians = {way: figures["median"] for way, figures in result["variants"].items()}
    assert result["ratios"]["both in bf16"] == medians["reference, bf16"] / medians["ours, bf16"]


def test_what_is_missing_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert bench(tmp_path / "bench.json") == 2
    said = capsys.readouterr().err
    assert "pip install 'ivideogpt[hf]'" in said and "x\n" not in said, "nothing was measured before"


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
