"""`--resume --out RUN` is enough, a finished run can be prolonged, and the next command fits the user's data."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from ivideogpt.cli.main import main
from ivideogpt.cli.resume import with_settings_of_run
from ivideogpt.cli.train_tokenizer import Options
from ivideogpt.cli.train_transformer import Options as TransformerOptions

SMALL = ["--batch-size", "2", "--validation-batches", "1", "--precision", "float32"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "my data"
    assert main(["record", "pusht", "--episodes", "4", "--length", "20", "--out", str(folder)]) == 0
    return folder


def test_what_the_run_was_told_is_told_again(tmp_path: Path) -> None:
    saved = {
        "data": "/d",
        "steps": 7,
        "states": True,
        "state_angles": [4, 5],
        "seed": 0,
        "max_minutes": 3.0,
        "out": "x",
    }
    (tmp_path / "training.json").write_text(json.dumps({**saved, "unknown": 1}))
    words = ["--resume", "--out", str(tmp_path), "--steps", "9"]
    told = with_settings_of_run(Options, words)
    assert told == [*words, "--data", "/d", "--states", "--state-angles", "4", "5"]
    (tmp_path / "training.json").write_text(json.dumps({"actions": False, "rewards": False}))
    assert with_settings_of_run(TransformerOptions, words) == [*words, "--no-actions"]
    for plain in (["--out", str(tmp_path)], ["--resume"], ["--resume", f"--out={tmp_path / 'none'}"]):
        assert with_settings_of_run(Options, plain) == plain


def test_from_a_tokenizer_to_a_prediction(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every `next` runs as it is printed, and every run goes on from its folder alone."""

    def next_command() -> list[str]:
        printed = capsys.readouterr()
        lines = [line for line in (printed.out + printed.err).splitlines() if line.startswith("next")]
        return shlex.split(lines[-1].removeprefix("next"))

    monkeypatch.chdir(tmp_path)
    tokenizer = ["train", "tokenizer", "--data", str(data), "--out", "runs/tokenizer", "--preset", "micro-16", *SMALL]
    assert main([*tokenizer, "--steps", "2", "--future-frames", "2"]) == 0
    words = next_command()
    assert words[:3] == ["ivideogpt", "train", "transformer"] and str(data) in words
    assert main(["train", "tokenizer", "--resume", "--out", "runs/tokenizer", "--steps", "3"]) == 0
    assert (tmp_path / "runs" / "tokenizer" / "checkpoints" / "step_00000003").is_dir()
    more = ["--preset", "micro", "--segment-frames", "5", "--validation-batches", "1", "--precision", "float32"]
    assert main([*words[1:], *more]) == 0
    words = next_command()
    held_out = json.loads((tmp_path / "runs" / "transformer" / "episodes.json").read_text())["held_out"]
    assert words[-1] == str(data / next(iter(held_out)))
    assert main(words[1:]) == 0
    capsys.readouterr()
    assert main(["train", "transformer", "--resume", "--out", "runs/transformer", "--steps", "9"]) == 2
    assert "A cosine has come to zero by its last step" in capsys.readouterr().err


def test_a_tokenizer_is_asked_for(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "transformer", "--data", str(data), "--out", str(tmp_path / "run")]) == 2
    assert "no tokenizer is named" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_from_another_folder(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = ["train", "tokenizer", "--data", "my data", "--out", "run", "--preset", "micro-16", *SMALL]
    assert main([*told, "--steps", "2", "--future-frames", "2"]) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = tmp_path / "run" / "model"
    (model / ".ipynb_checkpoints").mkdir()
    (model / "video.mp4").write_bytes(bytes(11_000_000))
    assert main(["train", "tokenizer", "--resume", "--out", "../run", "--steps", "3"]) == 0
    assert (model / ".ipynb_checkpoints").is_dir() and (model / "video.mp4").stat().st_size == 11_000_000
    assert json.loads((tmp_path / "run" / "training.json").read_text())["steps"] == 3


def test_another_spelling_of_a_tokenizer_is_the_same_tokenizer(tmp_path: Path, data: Path) -> None:
    tokenizer = ["train", "tokenizer", "--data", str(data), "--out", str(tmp_path / "t"), "--preset", "micro-16"]
    assert main([*tokenizer, *SMALL, "--steps", "1", "--future-frames", "2"]) == 0
    told = [
        "train",
        "transformer",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "run"),
        *SMALL,
        "--segment-frames",
        "4",
    ]
    told += ["--segment-frames", "4", "--steps", "2"]
    assert main([*told, "--tokenizer", str(tmp_path / "t")]) == 0
    again = ["train", "transformer", "--resume", "--out", str(tmp_path / "run")]
    assert main([*again, "--tokenizer", str(tmp_path / "t" / "model")]) == 0
