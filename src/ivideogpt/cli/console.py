"""What every command says, and where: figures on stdout, progress on stderr.

With `--json` the JSON of the figures stands alone on stdout and everything else goes to stderr.
"""

from __future__ import annotations

import json
import math
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines where there is no terminal."""


class Progress(ABC):
    """Counts work done and shows it with its rate and the time left."""

    def __init__(self, title: str, total: int, unit: str, done: int, now: Callable[[], float]) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.done = done
        self._now = now
        self._first = done
        self._start = now()

    def update(self, done: int, note: str = "") -> None:
        """Set the units done so far; `note` is shown beside them, e.g. the losses."""
        self.done = done
        self._show(note)

    def advance(self, count: int = 1, note: str = "") -> None:
        """Add `count` to the units done."""
        self.update(self.done + count, note)

    def pace(self) -> str:
        """Rate since the start, and the time left at that rate."""
        rate = (self.done - self._first) / max(self._now() - self._start, 1e-9)
        if rate <= 0:
            return "starting"
        speed = f"{rate:.1f} {self.unit}s/s" if rate >= 1 else f"{1 / rate:.1f} s/{self.unit}"
        return f"{speed}, {_duration((self.total - self.done) / rate)} left"

    @abstractmethod
    def _show(self, note: str) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Stop showing."""


class PlainProgress(Progress):
    """A line now and then, for logs."""

    def __init__(
        self,
        title: str,
        total: int,
        unit: str,
        done: int = 0,
        stream: TextIO | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(title, total, unit, done, now)
        self._stream = stream or sys.stderr
        self._next_line = self._start + PLAIN_INTERVAL

    def _show(self, note: str) -> None:
        if self._now() < self._next_line:
            return
        self._next_line = self._now() + PLAIN_INTERVAL
        self._write(self.pace(), note)

    def close(self) -> None:
        """Say how much was done, and in which time; nothing if nothing was."""
        if self.done > self._first:
            self._write(f"in {_duration(self._now() - self._start)}", "")

    def _write(self, pace: str, note: str) -> None:
        line = f"{self.title}: {self.done}/{self.total} {self.unit}s, {pace}"
        print(f"{line}  {note}" if note else line, file=self._stream, flush=True)


class BarProgress(Progress):
    """A live bar, for terminals."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        super().__init__(title, total, unit, done, time.monotonic)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn(f"{{task.completed:.0f}}/{{task.total:.0f}} {unit}s"),
            TextColumn("{task.fields[pace]}  {task.fields[note]}", markup=False),
        )
        self._bar = RichProgress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task(title, total=total, completed=done, pace="starting", note="")

    def _show(self, note: str) -> None:
        self._bar.start()  # not before: work that is refused at once leaves no empty bar
        self._bar.update(self._task, completed=self.done, pace=self.pace(), note=note)

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._bar.stop()


@contextmanager
def progress(title: str, total: int, unit: str = "step", done: int = 0) -> Iterator[Progress]:
    """Show the progress of the work inside the block: a bar on a terminal, else a line every ten seconds.

    Args:
        title: what is being done, e.g. `recording`.
        total: units of work in all.
        unit: one unit, in the singular.
        done: units that an earlier run had done; they don't count for the rate.
    """
    kind = BarProgress if sys.stderr.isatty() else PlainProgress
    shown = kind(title, total, unit, done)
    try:
        yield shown
    finally:
        shown.close()


def tell(text: str) -> None:
    """Say one thing that is worth knowing while a command runs."""
    print(text, file=sys.stderr, flush=True)


def report(figures: Mapping[str, Any], as_json: bool = False) -> None:
    """Print figures: one `name  value` a line, or all of them as JSON.

    Args:
        figures: numbers, texts and paths, in mappings and sequences of any depth; 0-d arrays and tensors count
            as numbers. What is not finite becomes null in JSON.
        as_json: whether `--json` was given.
    """
    if as_json:
        print(json.dumps(_plain(figures), indent=2, allow_nan=False))
        return
    rows = list(_rows(figures))
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def finish(
    wrote: Sequence[tuple[str, Path | str]] = (),
    next_steps: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Close a command: what was written and where, and what to try next.

    Args:
        wrote: (what, path) of everything that was written.
        next_steps: command lines worth trying.
        as_json: whether `--json` was given; stdout is then left alone.
    """
    stream = sys.stderr if as_json else sys.stdout
    width = max((len(what) for what, _ in wrote), default=0)
    for number, (what, path) in enumerate(wrote):
        print(f"{'wrote' if number == 0 else '':<7}{what:<{width}}  {path}", file=stream)
    for number, step in enumerate(next_steps):
        print(f"{'next' if number == 0 else '':<7}{step}", file=stream)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _rows(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from _rows(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value))
    if hasattr(value, "item"):
        value = value.item()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)
