"""Trainings that are stopped early: what is said, what is kept, and the exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ivideogpt.cli.main import main
from ivideogpt.cli.training_progress import StopSignals, finish_training, show_training
from ivideogpt.training.config import TrainingConfig
from ivideogpt.training.loop import StepReport
from tests.cli.test_train import PLAIN, command_line, newest_state, train, words_of, write_episodes

AT_ONCE = "0.000001"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_episodes(tmp_path / "data")


@pytest.fixture
def config(tmp_path: Path) -> TrainingConfig:
    return TrainingConfig(data=tmp_path, out=tmp_path / "run", steps=4)


def signalled(*at: tuple[int, signal.Signals]) -> Callable[..., Iterator[StepReport]]:
    """A training that gets signals during some of its steps."""

    def run(config: TrainingConfig, stop: Callable[[], bool]) -> Iterator[StepReport]:
        for step in range(1, config.steps + 1):
            for when, number in at:
                if when == step:
                    signal.raise_signal(number)
            yield StepReport(step, {"loss": 1.0})
            if stop():
                return

    return run


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_after_its_step(
    config: TrainingConfig, number: signal.Signals, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    before = handlers()
    figures = show_training("training", signalled((2, number)), config)
    assert handlers() == before
    assert (figures["stopped_at"], figures["stopped_by"], figures["steps_trained_now"]) == (2, number.name, 2)
    with pytest.raises(SystemExit) as ended:
        finish_training(figures, config, "ivideogpt predict", as_json=False)
    assert ended.value.code == code
    said = capfd.readouterr()
    assert "the same signal once more ends at once" in said.err
    assert f"stopped by {number.name} after step 2 of 4" in said.err
    assert "--resume --out" in said.out and "ivideogpt predict" not in said.out
    assert str(config.out / "model") not in said.out  # nothing was written by this training


def test_a_second_signal_ends_at_once(config: TrainingConfig) -> None:
    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        show_training("training", signalled((2, signal.SIGTERM), (2, signal.SIGINT)), config)
    assert handlers() == before


def test_a_signal_in_the_last_step_changes_nothing(config: TrainingConfig) -> None:
    figures = show_training("training", signalled((4, signal.SIGTERM)), config)
    assert figures["steps_trained_now"] == 4 and "stopped_by" not in figures
    finish_training(figures, config, "next", as_json=True)


def test_in_another_thread_signals_are_left_alone() -> None:
    seen: list[Any] = []

    def look() -> None:
        with StopSignals() as stop:
            seen.extend([*handlers(), stop()])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [*handlers(), False]


def test_out_of_time(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train("tokenizer", data, out, "--max-minutes", AT_ONCE, "--json") == 0
    said = capsys.readouterr()
    figures = json.loads(said.out)
    assert (figures["stopped_at"], figures["stopped_by"]) == (1, "max_minutes")
    assert "stopped by max_minutes after step 1 of 4; all that was learned is saved" in said.err
    assert (
        f"wrote  model        {out}/model" in said.err and f"ivideogpt train tokenizer --resume --out {out}" in said.err
    )
    assert train("tokenizer", data, out, "--max-minutes", "99", "--resume") == 0
    said = capsys.readouterr()
    assert "steps_trained_now      3" in said.out and "stopped" not in said.out + said.err


def test_out_of_time_while_tokenizing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("tokenizer", data, tmp_path / "first", steps=1) == 0
    capsys.readouterr()
    words = ["--tokenizer", str(tmp_path / "first" / "model"), "--cache-tokens", "6"]
    assert train("transformer", data, tmp_path / "second", *words, "--max-minutes", AT_ONCE) == 0
    said = capsys.readouterr()
    assert "stopped by max_minutes while tokenizing: no step was done" in said.err
    assert "steps_trained_now  0" in said.out and "model" not in said.out.replace("/model", "")
    assert train("transformer", data, tmp_path / "second", *words, "--resume") == 0


def test_the_time_is_shown(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ivideogpt.cli.console.PLAIN_INTERVAL", 0)
    assert train("tokenizer", data, tmp_path / "run", "--max-minutes", "90") == 0
    assert " of 90 min\n" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGTERM, 1), (signal.SIGINT, 1)])
def test_stopped_from_outside_and_resumed(data: Path, tmp_path: Path, number: signal.Signals, workers: int) -> None:
    """The run has no end; its first validation tells that it is under way, and only stopping saves.

    Where there are workers they get the signal too, as from a terminal or a batch system.
    """
    out = tmp_path / "run"
    more = ["--save-every", "100000", "--workers", str(workers), "--json"]
    words = words_of("tokenizer", data, out, *more, steps=100_000)
    process = subprocess.Popen(
        command_line(PLAIN, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "pictures" / "step_00000004.png").exists() and process.poll() is None:
        time.sleep(0.01)
    assert not (out / "checkpoints").exists()
    (os.killpg if workers else os.kill)(process.pid, number)
    shown, said = process.communicate()
    assert process.returncode == 128 + number, said
    figures = json.loads(shown)
    assert figures["stopped_by"] == number.name and figures["stopped_at"] >= 4
    assert os.listdir(out / "checkpoints") == [f"step_{figures['stopped_at']:08}"]
    assert newest_state(out) and (out / "model" / "config.json").is_file()
    assert main([*words, "--resume", "--max-minutes", AT_ONCE]) == 0
    assert max(os.listdir(out / "checkpoints")) == f"step_{figures['stopped_at'] + 1:08}"
