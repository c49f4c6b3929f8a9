"""`ivideogpt record` through the real command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivideogpt.cli.main import main
from ivideogpt.data.sources.npz import read_episode


def record(out: Path, *more: str) -> int:
    return main(["record", "pusht", "--episodes", "2", "--length", "4", "--out", str(out), *more])


def test_records_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "episodes"
    assert record(out, "--seed", "7", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["episodes"], figures["frames"], figures["out"]) == (2, 8, str(out))
    paths = sorted(out.iterdir())
    assert [path.name for path in paths] == ["episode_000007.npz", "episode_000008.npz"]
    assert read_episode(paths[0]).frames.shape == (4, 64, 64, 3)


def test_keeps_what_is_there_unless_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(tmp_path) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert record(tmp_path, "--seed", "50") == 2
    assert "--overwrite or --resume" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert record(tmp_path, "--seed", "2", "--resume") == 0
    assert len(list(tmp_path.iterdir())) == 4
    assert record(tmp_path, "--overwrite") == 0
    assert len(list(tmp_path.iterdir())) == 2


def test_behaviours_by_weight(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert record(tmp_path, "--behaviours", "random=1, slow=0") == 0
    assert main(["record", "pusht-fast", "--episodes", "4", "--length", "4", "--out", str(tmp_path), "--resume"]) == 0
    capsys.readouterr()
    found = [read_episode(path).metadata["behaviours"] for path in sorted(tmp_path.iterdir())]
    assert found == [{"fast": 0.7, "random": 0.3}] * 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["record", "push", "--episodes", "1"], "'pusht'"),
        (["record", "pusht", "--episodes", "1", "--behaviours", "slow"], "is not name=weight"),
        (["record", "pusht", "--episodes", "1", "--behaviours", "slwo=1"], "Did you mean 'slow'"),
        (["record", "pusht", "--episodes", "0"], "greater than or equal to 1"),
        (["record", "pusht", "--episodes", "1", "--length", "1"], "greater than or equal to 2"),
        (["record", "pusht", "--episodes", "1", "--seed", "100000"], "900000"),
        (["record", "pusht", "--episodes", "1", "--overwrite", "--resume"], "exclude each other"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "episodes"
    assert main([*words, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
