"""`ivideogpt bench data`: how fast clips are read from a store, and data sets are converted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pydantic import Field

from ivideogpt.cli.bench import BenchOptions, measure_all

if TYPE_CHECKING:
    import torch

    from ivideogpt.benchmarks.timing import Case
    from ivideogpt.devices import Precision


class Options(BenchOptions):
    """Measure how fast clips are read from a store, against the official pattern, and how fast data are converted.

    The official pattern unpacks the whole file of an episode for each clip and resizes frame by frame. Nothing is kept
    in memory between clips on either side. Frames of 64 x 64 and of 256 x 320 pixels, clips of 16 frames at 64 pixels.
    """

    episodes: int = Field(12, ge=1)
    """Episodes of each size."""
    length: int = Field(100, ge=16)
    """Frames of an episode."""


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    measure_all("bench data", options, _cases)


def _cases(options: Options, device: torch.device, precisions: list[Precision]) -> Iterator[Case]:
    from ivideogpt.benchmarks.data import data_cases

    yield from data_cases(((64, 64), (256, 320)), options.episodes, options.length)
