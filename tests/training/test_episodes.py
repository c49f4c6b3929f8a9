"""A run knows its data: where they lie does not matter, what they are does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ivideogpt.errors import ConfigError, OutputError
from ivideogpt.training.run import train_tokenizer

Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]


def test_the_same_data_elsewhere(tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    data = make_episodes()
    list(train_tokenizer(tokenizer_settings(steps=2, save_every=1)))
    named = json.loads((tmp_path / "run" / "episodes.json").read_text())
    names = sorted(path.name for path in data.iterdir())
    assert sorted([*named["training"], *named["held_out"]]) == names and named["held_out"]
    data.rename(tmp_path / "moved")
    assert list(train_tokenizer(tokenizer_settings(data=tmp_path / "moved", steps=2, resume=True))) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: (data / "000.npz").unlink(), r"1 missing \(000.npz\)"),
        (lambda data: shutil.copy(data / "000.npz", data / "900.npz"), r"1 new \(900.npz\)"),
        (lambda data: shutil.copy(data / "000.npz", data / "001.npz"), r"1 changed \(001.npz\)"),
        (
            lambda data: (data / "000.npz").rename(data / "9.npz"),
            r"1 missing.*, 1 of the missing .*under other names, .*order",
        ),
    ],
)
def test_other_data_are_refused(
    tmp_path: Path,
    tokenizer_settings: Settings,
    make_episodes: MakeEpisodes,
    change: Callable[[Path], Any],
    message: str,
) -> None:
    data = make_episodes()
    list(train_tokenizer(tokenizer_settings(steps=2, save_every=1)))
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    change(data)
    with pytest.raises(ConfigError, match=f"was started on other data: {message}, of 4 episodes"):
        train_tokenizer(tokenizer_settings(steps=9, resume=True))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_run_from_before_is_continued(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    make_episodes()
    list(train_tokenizer(tokenizer_settings(steps=2, save_every=1)))
    (tmp_path / "run" / "episodes.json").unlink()
    assert list(train_tokenizer(tokenizer_settings(steps=2, resume=True))) == []


@pytest.mark.parametrize("more", [{"resume": True}, {"overwrite": True}])
def test_a_run_that_goes_on_is_left_alone(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes, more: dict[str, bool]
) -> None:
    make_episodes()
    running = train_tokenizer(tokenizer_settings(steps=6))
    next(running)
    told = (tmp_path / "run" / "training.json").read_bytes()
    with pytest.raises(OutputError, match="another process is writing"):
        train_tokenizer(tokenizer_settings(steps=9, **more))
    assert (tmp_path / "run" / "training.json").read_bytes() == told
    assert [report.step for report in running] == [2, 3, 4, 5, 6]
