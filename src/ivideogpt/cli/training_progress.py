"""Progress, stopping early and closing words, shared by the training commands."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import FrameType
from typing import Any, Self, TypeVar

from ivideogpt.cli.console import Progress, finish, progress, report, tell
from ivideogpt.data.processes import readable_worker_errors
from ivideogpt.training.config import TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.loop import StepReport
from ivideogpt.training.run import CacheReport

_OF_CODES = ("_usage", "_perplexity", "_revived")
_ASK_TO_STOP = (signal.SIGTERM, signal.SIGINT)

AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)
Reports = Iterator[StepReport | CacheReport] | Iterator[StepReport]


class StopSignals:
    """Notes a SIGTERM or a Ctrl-C that comes inside its block; a second one does what it would do without.

    Args:
        workers: processes that prepare batches, which a Ctrl-C on a terminal reaches too.
    """

    def __init__(self, workers: int = 0) -> None:
        self.received: signal.Signals | None = None
        self._workers = workers
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether a signal came."""
        return self.received is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # signals can be handled nowhere else
            if self._workers:
                self._handle(signal.SIG_IGN)  # handed down to the parent of the workers, which starts here
                try:
                    with readable_worker_errors():
                        multiprocessing.forkserver.ensure_running()
                finally:
                    self._restore()
            self._handle(self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _handle(self, handler: Any) -> None:
        self._before = {number: signal.signal(number, handler) for number in _ASK_TO_STOP}

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        with suppress(OSError):  # written past Python's stream, in whose middle the signal may have come
            os.write(2, b"\nstopping after this step; the same signal once more ends at once\n")


def show_training(
    title: str, train: Callable[[AnyConfig, Callable[[], bool]], Reports], config: AnyConfig, notice: str = ""
) -> dict[str, Any]:
    """Train, showing losses, rate, time left and validation figures; return the last figures.

    A SIGTERM, a Ctrl-C or `max_minutes` end the training early; `stopped_at` and `stopped_by` are then among the
    figures.
    """
    start = time.monotonic()
    with StopSignals(config.workers) as stop:
        reports = train(config, stop)
        if notice:  # not before everything has been found good
            tell(notice)
        figures = _show(title, reports, config, start)
    if "stopped_at" in figures:
        figures["stopped_by"] = "max_minutes" if stop.received is None else stop.received.name
    return figures


def finish_training(figures: dict[str, Any], config: TrainingConfig, next_step: str, as_json: bool) -> None:
    """Report the last figures, what was written, and what to try next.

    Raises:
        SystemExit: a signal ended the training early; with the code that stands for that signal.
    """
    report(figures, as_json)
    next_steps = [next_step, f"tensorboard --logdir {shlex.quote(str(config.out / 'tensorboard'))}"]
    stopped_by = str(figures.get("stopped_by", ""))
    if stopped_by:
        tell(_stopped(figures))
        kind = "transformer" if isinstance(config, TransformerTrainingConfig) else "tokenizer"
        next_steps[0] = f"ivideogpt train {kind} --resume --out {shlex.quote(str(config.out))}"
    wrote = [
        ("model", config.out / "model"),
        ("checkpoints", config.out / "checkpoints"),
        ("pictures", config.out / "pictures"),
        ("curves", config.out / "tensorboard"),
    ]
    finish([(what, path) for what, path in wrote if path.exists()], next_steps, as_json)
    if stopped_by in signal.Signals.__members__:
        raise SystemExit(128 + signal.Signals[stopped_by])


def _stopped(figures: dict[str, Any]) -> str:
    cause, step = figures["stopped_by"], figures["stopped_at"]
    if step == 0:
        return f"stopped by {cause} while tokenizing: no step was done, and tokens are kept only when all are there"
    return f"stopped by {cause} after step {step} of {figures['steps']}; all that was learned is saved"


def _show(title: str, reports: Reports, config: TrainingConfig, start: float) -> dict[str, Any]:
    trained, figures = 0, dict[str, Any]()
    first = next(iter(reports), None)
    if isinstance(first, CacheReport):
        first = _show_cache(first, reports, config, start)
    if isinstance(first, CacheReport):
        return {"steps": config.steps, "steps_trained_now": 0, "stopped_at": 0}
    if first is None:
        tell(f"the run in {config.out} is complete; nothing is left to train")
        return {"steps": config.steps, "steps_trained_now": 0}
    last = first.step
    with progress(title, config.steps, "step", done=first.step - 1) as bar:
        for step in _chained(first, reports):
            trained, last = trained + 1, step.step
            figures = {**figures, **step.losses, **step.metrics}
            if step.validation:
                figures["held_out"] = step.validation
            _show_step(bar, step, figures, _time_limit(config, start))
    early = {"stopped_at": last} if last < config.steps else {}
    seconds = round(time.monotonic() - start, 1)
    return {"steps": config.steps, "steps_trained_now": trained, "seconds": seconds, **early, **figures}


def _show_cache(
    first: CacheReport, reports: Reports, config: TrainingConfig, start: float
) -> StepReport | CacheReport | None:
    """Show the tokens being cached; what comes after, or the last report on them if that was the end."""
    assert isinstance(config, TransformerTrainingConfig), "only a transformer's tokens are cached"
    last = first
    with progress("tokenizing", config.cache_tokens, "segment") as bar:
        bar.update(first.segments, _time_limit(config, start))
        for item in reports:
            if not isinstance(item, CacheReport):
                return item
            last = item
            bar.update(item.segments, _time_limit(config, start))
    return last if last.segments < config.cache_tokens else None


def _show_step(bar: Progress, step: StepReport, figures: dict[str, Any], time_limit: str) -> None:
    losses = "  ".join(f"{name} {value:.4f}" for name, value in step.losses.items() if value)
    bar.update(step.step, f"{losses}  {time_limit}".rstrip())
    if step.validation:
        held_out = "  ".join(f"{name} {value:.4g}" for name, value in step.validation.items())
        tell(f"step {step.step}, held-out episodes: {held_out}")
        codes = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if name.endswith(_OF_CODES))
        if codes:
            tell(f"step {step.step}, codes of late: {codes}")


def _time_limit(config: TrainingConfig, start: float) -> str:
    """How much of `max_minutes` has passed."""
    if config.max_minutes is None:
        return ""
    return f"{(time.monotonic() - start) / 60:.1f} of {config.max_minutes:g} min"


def _chained(first: StepReport, rest: Iterator[Any]) -> Iterator[StepReport]:
    yield first
    for item in rest:
        assert isinstance(item, StepReport), "tokens are cached before the first step"
        yield item
