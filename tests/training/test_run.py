"""Whole trainings, ended early and continued."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ivideogpt import CompressiveTokenizer, hub
from ivideogpt.errors import ConfigError
from ivideogpt.training.loop import StepReport
from ivideogpt.training.run import CacheReport, train_tokenizer, train_transformer
from tests.training.states import same, saved

Make = Callable[..., Any]
Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]
AT_ONCE = 1e-9
"""Minutes that have passed before anything is done."""


@pytest.fixture(params=["tokenizer", "transformer"])
def start(
    request: pytest.FixtureRequest, tmp_path: Path, make_tokenizer: Make, make_episodes: MakeEpisodes
) -> Callable[..., Iterator[Any]]:
    """Begin a training of either kind; settings change by keyword."""
    tokenizer: CompressiveTokenizer = make_tokenizer()
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    make_episodes()
    settings: Settings = request.getfixturevalue(f"{request.param}_settings")
    train: Any = train_tokenizer if request.param == "tokenizer" else train_transformer

    def begin(*stop: Callable[[], bool], **changes: Any) -> Iterator[Any]:
        reports: Iterator[Any] = train(settings(**changes), *stop)
        return reports

    return begin


def test_a_run_out_of_time_ends_after_its_step_and_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, start: Callable[..., Iterator[Any]]
) -> None:
    list(start(out=tmp_path / "whole"))
    (first,) = start(max_minutes=AT_ONCE)
    assert first.step == 1 and first.saved.name == "step_00000001"
    assert (tmp_path / "run" / "model").is_dir()
    (second,) = start(max_minutes=2 * AT_ONCE, resume=True)
    assert second.step == 2
    rest = list(start(max_minutes=60, resume=True))
    assert [report.step for report in rest] == [3, 4, 5, 6]
    assert same(saved(tmp_path / "run"), saved(tmp_path / "whole"))


def test_a_run_is_stopped_from_outside(tmp_path: Path, start: Callable[..., Iterator[Any]]) -> None:
    asked = iter([False, True])
    assert [report.step for report in start(lambda: next(asked), save_every=100)] == [1, 2]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]


@pytest.mark.parametrize("start", ["transformer"], indirect=True)
def test_tokens_are_kept_only_when_all_are_there(tmp_path: Path, start: Callable[..., Iterator[Any]]) -> None:
    cache = {"cache_tokens": 5}  # in batches of two
    kinds = [type(report) for report in start(max_minutes=AT_ONCE, **cache)]
    assert kinds == [CacheReport]
    assert not (tmp_path / "run" / "tokens").exists() and not (tmp_path / "run" / "checkpoints").exists()
    asked = iter([False, False, True])  # after two and four segments, then after the first step
    kinds = [type(report) for report in start(lambda: next(asked), resume=True, **cache)]
    assert kinds == [*[CacheReport] * 3, StepReport]
    assert [report.step for report in start(resume=True, **cache)] == [2, 3, 4, 5, 6]


def test_a_limit_is_a_time(tokenizer_settings: Settings) -> None:
    with pytest.raises((ConfigError, ValueError), match="max_minutes"):
        tokenizer_settings(max_minutes=0)
