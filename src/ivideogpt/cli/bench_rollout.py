"""`ivideogpt bench rollout`: sessions against Hugging Face's `generate`, and the delay of a step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from ivideogpt.cli.bench import BenchOptions, measure_all
from ivideogpt.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import torch

    from ivideogpt.benchmarks.timing import Case
    from ivideogpt.devices import Precision

_ROWS = ("one", "eight", "hundred", "contexts", "latency")


class Options(BenchOptions):
    """Measure sessions against the official pattern: `generate` called again for every frame, each future by itself.

    The same random weights, in turns, in the same run; 2 context and 10 future frames, actions. Needs the extra hf. A
    ratio is one of medians, of the same precision unless it says otherwise; leave the machine alone meanwhile.
    """

    rows: str = ",".join(_ROWS)
    """Rows of the table, with commas: one rollout; eight or hundred futures of one context; 32 contexts with rewards;
    latency of a step of pusht-64. On a CPU the reference imagines no more than 8 futures of a row, and its
    time is scaled."""
    size: Literal["official", "nano", "micro"] = "official"
    """Models, but for latency; official is 114 M tokenizer and 138 M transformer."""

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: str) -> str:
        for name in rows.split(","):
            if name not in _ROWS:
                raise ConfigError(unknown_name("row", name, _ROWS))
        return rows


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    measure_all("bench rollout", options, _cases)


def _cases(options: Options, device: torch.device, precisions: list[Precision]) -> Iterator[Case]:
    from ivideogpt.benchmarks.generation import LATENCY, latency_case, rollout_cases

    names = options.rows.split(",")
    yield from rollout_cases(options.size, names, device, precisions)
    if LATENCY in names:
        yield latency_case(device, precisions)
