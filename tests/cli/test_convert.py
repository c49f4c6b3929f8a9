"""`ivideogpt convert` and `data` through the real commands: from somebody's data to an imagined episode."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.cli.main import main
from ivideogpt.data.store import Store

PLAIN = "import sys; from ivideogpt.cli.main import main; sys.exit(main(sys.argv[1:]))"


def record(folder: Path, episodes: int = 6, side: int = 24) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for number in range(episodes):
        frames = rng.integers(0, 256, (10 + number, side, side, 3))
        actions, rewards = rng.normal(size=(len(frames), 2)), rng.normal(size=len(frames))
        np.savez(folder / f"train_eps_{number:08d}.npz", wrist=frames, action=actions, reward=rewards)
    return folder


def exit_code(*argv: str) -> int:
    try:
        return main(argv)
    except SystemExit as end:
        return int(end.code or 0)


def test_from_somebodys_data_to_an_imagined_episode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = record(tmp_path / "their data")
    assert main(["convert", str(data), "--out", "store", "--side", "16", "--shard-episodes", "4", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["format"], figures["episodes"], figures["cameras"]) == ("npz", 6, ["wrist"])
    few = ["--batch-size", "2", "--steps", "2", "--validation-batches", "1", "--precision", "float32"]
    tokenizer = ["train", "tokenizer", "--data", "store", "--out", "t", "--preset", "micro-16", "--future-frames", "2"]
    assert main([*tokenizer, *few]) == 0
    transformer = ["train", "transformer", "--data", "store", "--tokenizer", "t", "--out", "w", "--preset", "micro"]
    capsys.readouterr()
    assert main([*transformer, *few, "--segment-frames", "5", "--rewards"]) == 0
    assert "predict --model w --episode 'store#train_eps_00000000'" in capsys.readouterr().out
    assert main(["predict", "--model", "w", "--episode", "store#train_eps_00000000", "--horizon", "3"]) == 0
    said = capsys.readouterr()
    assert "'store#train_eps_00000001'" in said.out and (tmp_path / "outputs").is_dir()


def test_a_store_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = str(tmp_path / "store")
    assert main(["convert", str(record(tmp_path / "data")), "--out", store, "--licence", "CC BY 4.0"]) == 0
    capsys.readouterr()
    assert main(["data", "info", store, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["episodes"], told["frames"], told["licence"], told["action_size"]) == (6, 75, "CC BY 4.0", 2)
    assert main(["data", "stats", store, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["actions"]["q50"]) == 2
    assert main(["data", "verify", store]) == 0
    assert main(["data", "show", store, "--episodes", "3"]) == 0
    assert (tmp_path / "store" / "contact_sheet.png").stat().st_size > 1000
    shard = tmp_path / "store" / "shards" / "000000.safetensors"
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(damaged)
    assert exit_code("data", "verify", store) == 1
    assert "damaged: train_eps_" in capsys.readouterr().err


def test_broken_episodes_end_it_with_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = record(tmp_path / "data", episodes=2)
    (data / "train_eps_00000001.npz").write_bytes(b"PK broken")
    assert exit_code("convert", str(data), "--out", str(tmp_path / "store")) == 1
    said = capsys.readouterr().err
    assert "broken: train_eps_00000001: " in said and "train_eps_00000001.npz: truncated" in said
    assert len(Store(tmp_path / "store")) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--format", "hdf6"], "unknown format 'hdf6'"),
        (["--shard", "2/2"], "shard is '2/2'; it must be i/n"),
        (["--split", "nonsense"], "of split 'nonsense' in it"),
    ],
)
def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    data = record(tmp_path / "data", episodes=1)
    assert exit_code("convert", str(data), "--out", str(tmp_path / "store"), *more) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "store").exists()


def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    """Each time a little later, until one run comes through."""
    data = record(tmp_path / "data", episodes=40, side=48)
    argv = ["convert", str(data), "--shard-episodes", "2", "--encoding", "png", "--out"]
    assert main([*argv, str(tmp_path / "whole")]) == 0
    for attempt in range(6):
        words = [sys.executable, "-c", PLAIN, *argv, str(tmp_path / "store")]
        process = subprocess.Popen(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        reports = tmp_path / "store" / "shards"
        before = len(list(reports.glob("*.json"))) if reports.is_dir() else 0
        while process.poll() is None and len(list(reports.glob("*.json")) if reports.is_dir() else []) < before + 2:
            time.sleep(0.001)
        time.sleep(0.002 * attempt)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert main([*argv, str(tmp_path / "store")]) == 0
    assert contents(tmp_path / "whole") == contents(tmp_path / "store")


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files}
