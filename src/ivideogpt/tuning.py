"""Choosing by measurement, once: which of several ways of doing the same is fastest on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ivideogpt.errors import OutputError
from ivideogpt.files import write_text_atomically

_RUNS = 3


class Choice(NamedTuple):
    """The fastest way."""

    name: str
    seconds: dict[str, float]
    """What every way took, in seconds; best of a few runs."""
    remembered: bool
    """Whether this was measured at another time."""

    def __str__(self) -> str:
        times = ", ".join(f"{name} {1000 * seconds:.1f} ms" for name, seconds in self.seconds.items())
        return f"{self.name} is fastest here ({times}{', measured earlier' if self.remembered else ''})"


def fastest(what: str, ways: Mapping[str, Callable[[], Callable[[], object]]]) -> Choice:
    """The way that takes least time, measured the first time `what` is asked for and then remembered.

    What is remembered of more ways also answers for fewer.

    Args:
        what: names the question, with all that the answer depends on: machine, model, versions.
        ways: by name; each makes, when it is its turn, what is timed. That is run once before, and must have waited
            for its device when it returns.
    """
    file = _file()
    known = _read(file)
    if set(ways) <= set(known.get(what, {})):
        seconds = {name: known[what][name] for name in ways}
        return Choice(min(seconds, key=seconds.__getitem__), seconds, remembered=True)
    seconds = {name: _seconds(way) for name, way in ways.items()}
    with contextlib.suppress(OutputError):  # it is measured again another time
        write_text_atomically(file, json.dumps({**known, what: seconds}, indent=2))
    return Choice(min(seconds, key=seconds.__getitem__), seconds, remembered=False)


def _seconds(way: Callable[[], Callable[[], object]]) -> float:
    work = way()
    work()
    taken = []
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def _file() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ivideogpt" / "fastest.json"


def _read(file: Path) -> dict[str, dict[str, float]]:
    """What is remembered; nothing where the file is missing or not ours."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {str(what): {str(k): float(v) for k, v in seconds.items()} for what, seconds in known.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
