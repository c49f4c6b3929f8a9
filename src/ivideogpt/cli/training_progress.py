"""Progress and closing words shared by the training commands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ivideogpt.cli.console import Progress, finish, progress, report, tell
from ivideogpt.training.config import TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.loop import StepReport
from ivideogpt.training.run import CacheReport

_OF_CODES = ("_usage", "_perplexity", "_revived")


def show_training(
    title: str, reports: Iterator[StepReport | CacheReport] | Iterator[StepReport], config: TrainingConfig
) -> dict[str, Any]:
    """Drain a training, showing losses, rate, time left and validation figures; return the last figures."""
    start, trained = time.monotonic(), 0
    figures: dict[str, Any] = {}
    first = next(iter(reports), None)
    while isinstance(first, CacheReport):
        first = _show_cache(first, reports, config)
    if not isinstance(first, StepReport):
        tell(f"the run in {config.out} is complete; nothing is left to train")
        return {"steps": config.steps, "steps_trained_now": 0}
    with progress(title, config.steps, "step", done=first.step - 1) as bar:
        for step in _chained(first, reports):
            trained += 1
            figures = {**figures, **step.losses, **step.metrics}
            if step.validation:
                figures["held_out"] = step.validation
            _show_step(bar, step, figures)
    seconds = time.monotonic() - start
    return {"steps": config.steps, "steps_trained_now": trained, "seconds": round(seconds, 1), **figures}


def finish_training(figures: dict[str, Any], config: TrainingConfig, next_step: str, as_json: bool) -> None:
    """Report the last figures, what was written, and what to try next."""
    report(figures, as_json)
    finish(
        wrote=[
            ("model", config.out / "model"),
            ("checkpoints", config.out / "checkpoints"),
            ("pictures", config.out / "pictures"),
            ("curves", config.out / "tensorboard"),
        ],
        next_steps=[next_step, f"tensorboard --logdir {config.out}/tensorboard"],
        as_json=as_json,
    )


def _show_cache(
    first: CacheReport, reports: Iterator[StepReport | CacheReport] | Iterator[StepReport], config: TrainingConfig
) -> StepReport | CacheReport | None:
    assert isinstance(config, TransformerTrainingConfig), "only a transformer's tokens are cached"
    with progress("tokenizing", config.cache_tokens, "segment") as bar:
        bar.update(first.segments)
        for item in reports:
            if not isinstance(item, CacheReport):
                return item
            bar.update(item.segments)
    return None


def _show_step(bar: Progress, step: StepReport, figures: dict[str, Any]) -> None:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in step.losses.items() if value)
    bar.update(step.step, losses)
    if step.validation:
        held_out = "  ".join(f"{name} {value:.4g}" for name, value in step.validation.items())
        tell(f"step {step.step}, held-out episodes: {held_out}")
        codes = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name.endswith(_OF_CODES))
        if codes:
            tell(f"step {step.step}, codes of late: {codes}")


def _chained(first: StepReport, rest: Iterator[Any]) -> Iterator[StepReport]:
    yield first
    for item in rest:
        assert isinstance(item, StepReport), "tokens are cached before the first step"
        yield item
