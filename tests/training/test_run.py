"""Whole trainings, ended early and continued."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivideogpt import CompressiveTokenizer, hub
from ivideogpt.data.sources.npz import read_episode, write_episode
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


@pytest.mark.parametrize(("scale", "warns"), [(1.0, False), (3.0, True)])
def test_actions_beyond_the_usual_range_are_spoken_of(
    transformer_settings: Settings, make_episodes: MakeEpisodes, make_tokenizer: Any, scale: float, warns: bool
) -> None:
    data = make_episodes()
    for path in data.iterdir():
        episode = read_episode(path)
        assert episode.actions is not None
        write_episode(path, dataclasses.replace(episode, actions=episode.actions * scale))
    config = transformer_settings(steps=1)
    tokenizer: CompressiveTokenizer = make_tokenizer()
    hub.save(config.tokenizer, hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        list(train_transformer(config))
    spoken = [str(warning.message) for warning in said if "actions leave" in str(warning.message)]
    assert len(spoken) == warns
    if warns:
        assert re.match(r"actions leave \[-1, 1\]: number 0 from -\d.* to \d.*, mean .*; number 1 .*scale", spoken[0])


def test_a_run_writes_down_how_it_goes(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    """Gradient norms, steps a second and its settings; often enough, where nothing is said of it."""
    make_episodes()
    list(train_tokenizer(tokenizer_settings(steps=4, log_every=None)))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    for name in ("gradient_norm", "steps_per_second"):
        entries = events.Scalars(f"train/{name}")
        assert [entry.step for entry in entries] == [1, 2, 3, 4] and all(entry.value > 0 for entry in entries)
    assert "settings/text_summary" in events.Tags()["tensors"]
