"""`ivideogpt bench sessions`: what resets, forks, worlds out of phase and single rows cost, and their memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ivideogpt.cli.bench import BenchOptions, measure_all

if TYPE_CHECKING:
    import torch

    from ivideogpt.benchmarks.timing import Case
    from ivideogpt.devices import Precision


class Options(BenchOptions):
    """Measure what keeping many worlds in one session costs.

    One of 256 rows reset against its context read alone, and the most memory that takes beside what was checked; forks
    and snapshots; 16 worlds out of phase against 16 in phase; 8 rows of 16 against a session of 8.
    """

    model: str = "pusht-64"
    """A shipped model, a model folder, or a Hub id."""


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    measure_all("bench sessions", options, _cases)


def _cases(options: Options, device: torch.device, precisions: list[Precision]) -> Iterator[Case]:
    from ivideogpt.benchmarks.sessions import session_cases

    yield from session_cases(options.model, device, precisions)
