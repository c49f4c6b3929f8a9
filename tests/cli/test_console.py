"""What commands print, and where."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ivideogpt.cli.console import BarProgress, PlainProgress, finish, progress, report, tell


class Clock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_plain_progress_writes_now_and_then() -> None:
    clock, stream = Clock(), io.StringIO()
    bar = PlainProgress("recording", 100, "episode", stream=stream, now=clock)
    for second in range(1, 26):
        clock.seconds = second
        bar.update(4 * second, note=f"second {second}")
    bar.close()
    assert stream.getvalue().splitlines() == [
        "recording: 40/100 episodes, 4.0 episodes/s, 0:15 left  second 10",
        "recording: 80/100 episodes, 4.0 episodes/s, 0:05 left  second 20",
        "recording: 100/100 episodes, in 0:25",
    ]


def test_work_done_earlier_does_not_count_for_the_rate() -> None:
    clock = Clock()
    bar = PlainProgress("training", 5000, "step", done=1000, stream=io.StringIO(), now=clock)
    assert bar.pace() == "starting"
    clock.seconds = 20.0
    bar.advance(10)
    assert bar.done == 1010
    assert bar.pace() == "2.0 s/step, 2:13:00 left"


def test_work_that_never_started_says_nothing() -> None:
    stream = io.StringIO()
    PlainProgress("recording", 3, "episode", stream=stream).close()
    assert stream.getvalue() == ""


def test_progress_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("recording", 2, "episode") as bar:
        bar.advance()
        bar.advance()
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("recording: 2/2 episodes, in ")


def test_the_bar_runs(capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarProgress("training", 10, "step")
    bar.advance(3, note="loss 0.5 [l1]")
    bar.close()
    shown = capsys.readouterr()
    assert shown.out == "" and "3/10 steps" in shown.err


def test_report_as_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report({"psnr": 29.12345, "frames": 14, "ratio": {"nano": np.float32(0.25)}, "hosts": ["a", "b"]})
    assert capsys.readouterr().out.splitlines() == [
        "psnr        29.12",
        "frames      14",
        "ratio.nano  0.25",
        "hosts       a, b",
    ]


def test_report_as_json_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "loss": torch.tensor(0.5),
        "psnr": float("inf"),
        "out": Path("a/b"),
        "rows": [{"ok": True}, None],
    }
    tell("a warning")
    report(figures, as_json=True)
    finish(wrote=[("video", "a.mp4")], next_steps=["ivideogpt info"], as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"loss": 0.5, "psnr": None, "out": "a/b", "rows": [{"ok": True}, None]}
    assert "a warning" in shown.err and "a.mp4" in shown.err


def test_finish_says_what_and_what_next(capsys: pytest.CaptureFixture[str]) -> None:
    finish(wrote=[("video", "a.mp4"), ("metrics", "a.json")], next_steps=["try this", "or that"])
    assert capsys.readouterr().out.splitlines() == [
        "wrote  video    a.mp4",
        "       metrics  a.json",
        "next   try this",
        "       or that",
    ]
