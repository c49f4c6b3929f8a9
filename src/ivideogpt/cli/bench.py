"""`ivideogpt bench`: our speed against the straightforward way, measured in one run."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import OutputError

if TYPE_CHECKING:
    import torch

    from ivideogpt.benchmarks.floor import Rates
    from ivideogpt.benchmarks.timing import Comparison, Timing


class Options(BaseOptions):
    """Measure speed against the straightforward way: the same work on the same weights, in turns, in the same run.

    Training: optimizer steps of the nano tokenizer and transformer. Generation: tokenizing, imagining and decoding
    10 future frames of one video, random weights. A ratio is one of medians; leave the machine alone meanwhile.
    `ivideogpt bench rollout` measures sessions of many futures.
    """

    only: Literal["all", "training", "generation"] = "all"
    """What to measure."""
    size: Literal["all", "nano", "official"] = "all"
    """Models to generate with; official is 114 M tokenizer and 138 M transformer. Training is always nano."""
    repeats: int = Field(5, ge=1)
    """Timed runs of each way; four times as many training steps."""
    out: Path | None = None
    """File for everything measured; outputs/bench/<date and time>.json where left out."""
    overwrite: bool = False
    """Replace the file if it exists."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    as_json: Json = False
    """Print everything measured as JSON."""


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    from ivideogpt.benchmarks.floor import measure_rates
    from ivideogpt.benchmarks.generation import precisions
    from ivideogpt.devices import choose_device

    device = choose_device(options.device)
    file = claim(options.out, options.overwrite)
    rates = measure_rates(device, precisions(device).values())
    comparisons = []
    for comparison in _measure(options, device, rates):
        comparisons.append(comparison)
        tell(f"{_title(comparison)}: {comparison.ratio(comparison.best):.1f}x")
    results = [comparison.figures() for comparison in comparisons]
    publish(file, _command(options), device, rates, results, _table(comparisons), options.as_json)


class File(NamedTuple):
    """Where everything measured is going to be written."""

    path: Path
    started: str


def claim(out: Path | None, overwrite: bool) -> File:
    """Choose the file, and say that it will take a while.

    Raises:
        OutputError: it cannot be written; better before the minutes of measuring than after.
    """
    from ivideogpt.files import readable_write_errors

    started = time.strftime("%Y%m%d-%H%M%S")
    out = out or Path("outputs/bench") / f"{started}.json"
    if out.is_dir():
        raise OutputError(f"output file {out} is a folder. Name a file, for example {out / 'bench.json'}.")
    if out.exists() and not overwrite:
        raise OutputError(f"output file {out} exists. Choose another name, or pass --overwrite.")
    with readable_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    tell("measuring; this takes minutes, and other work on this machine would spoil it")
    return File(out, started)


def publish(
    file: File,
    command: str,
    device: torch.device,
    rates: Rates,
    results: list[dict[str, Any]],
    table: str,
    as_json: bool,
) -> None:
    """Write the JSON, and print it or the table."""
    from ivideogpt.benchmarks.machine import describe_machine
    from ivideogpt.files import write_text_atomically

    figures = {
        "command": command,
        "started": file.started,
        "device": device,
        **describe_machine(device),
        "rates": rates.figures(),
        "results": results,
    }
    write_text_atomically(file.path, json.dumps(figures, indent=2, default=str) + "\n")
    if as_json:
        report(figures, as_json=True)
    else:
        print(table)
    finish([("figures", file.path)], as_json=as_json)


def aligned(rows: list[tuple[str, ...]]) -> str:
    """A table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def _measure(options: Options, device: torch.device, rates: Rates) -> Iterator[Comparison]:
    from ivideogpt.benchmarks.generation import SIZES, measure_generation
    from ivideogpt.benchmarks.training import measure_training

    if options.only != "generation":
        yield from measure_training(options.repeats, device)
    if options.only != "training":
        for size in SIZES if options.size == "all" else [options.size]:
            yield from measure_generation(size, options.repeats, device, rates)


def _command(options: Options) -> str:
    """The command line that measures the same again."""
    chosen = {"--only": options.only, "--size": options.size, "--repeats": options.repeats, "--device": options.device}
    return shlex.join(["ivideogpt", "bench", *(str(word) for pair in chosen.items() for word in pair)])


def _title(comparison: Comparison) -> str:
    return f"{comparison.name}, {comparison.size}, {comparison.work}"


def _table(comparisons: list[Comparison]) -> str:
    """A row for each comparison: the straightforward way, ours, how many times faster, and the floor."""
    rows: list[tuple[str, ...]] = [("median", "straightforward", "ours", "precision", "times faster", "floor")]
    for one in comparisons:
        floor = f"{one.floor[one.best]:.3g} s" if one.best in one.floor else ""
        speeds = [_speed(one, timing) for timing in (one.reference, one.ours[one.best])]
        rows.append((_title(one), *speeds, one.best, f"{one.ratio(one.best):.1f}", floor))
    return aligned(rows)


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [text.rjust(width) for text, width in zip(row, widths, strict=True)]
    return "  ".join([row[0].ljust(widths[0]), *cells[1:]]).rstrip()


def _speed(comparison: Comparison, timing: Timing) -> str:
    return f"{comparison.speed(timing):.3g} {comparison.unit}"
