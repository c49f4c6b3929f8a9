"""`ivideogpt bench`: our speed against a reference, measured in one run."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from pydantic import Field

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import OutputError

if TYPE_CHECKING:
    import torch

    from ivideogpt.benchmarks.timing import Case, Measured
    from ivideogpt.devices import Precision

_NOT_MEASURED = ("out", "overwrite", "as_json")


class BenchOptions(BaseOptions):
    """What every benchmark is told."""

    repeats: int = Field(3, ge=1)
    """Timed runs of each variant; several times as many where a run is short."""
    precision: Literal["all", "float32", "bf16"] = "all"
    """What the reference and ours compute in; all is float32 and, where the hardware multiplies it, bf16."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    out: Path | None = None
    """File for everything measured; outputs/bench/<date and time>.json where left out."""
    overwrite: bool = False
    """Replace the file if it exists."""
    as_json: Json = False
    """Print everything measured as JSON."""


AnyBench = TypeVar("AnyBench", bound=BenchOptions)


class Options(BenchOptions):
    """Measure speed against a reference: the same work on the same weights, in turns, in the same run.

    Training: optimizer steps of the nano tokenizer and transformer. Generation: tokenizing, decoding and imagining
    10 future frames of one video, random weights; needs the extra hf. A ratio is one of medians, of the same precision
    unless it says otherwise; leave the machine alone meanwhile. `ivideogpt bench rollout` measures many futures.
    """

    only: Literal["all", "training", "generation"] = "all"
    """What to measure."""
    size: Literal["all", "nano", "official"] = "all"
    """Models to generate with; official is 114 M tokenizer and 138 M transformer. Training is always nano."""


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    measure_all("bench", options, _cases)


def _cases(options: Options, device: torch.device, precisions: list[Precision]) -> Iterator[Case]:
    from ivideogpt.benchmarks.generation import generation_cases
    from ivideogpt.benchmarks.training import training_cases

    if options.only != "training":  # first: what it lacks is found before anything has been measured
        for size in ("nano", "official") if options.size == "all" else (options.size,):
            yield from generation_cases(size, device, precisions)
    if options.only != "generation":
        yield from training_cases(device, precisions)


def measure_all(
    name: str,
    options: AnyBench,
    cases: Callable[[AnyBench, torch.device, list[Precision]], Iterable[Case]],
) -> None:
    """Measure all cases, print their table or JSON, and write the JSON.

    Args:
        name: the command's, for example `bench rollout`.
        options: what it was told.
        cases: makes the cases, each when the one before it has been measured.
    """
    from ivideogpt.benchmarks.generation import precisions_on
    from ivideogpt.benchmarks.machine import describe_machine
    from ivideogpt.benchmarks.timing import measure
    from ivideogpt.devices import choose_device
    from ivideogpt.files import write_text_atomically

    device = choose_device(options.device)
    started = time.strftime("%Y%m%d-%H%M%S")
    out = _claim(options.out or Path("outputs/bench") / f"{started}.json", options.overwrite)
    tell("measuring; this takes minutes, and other work on this machine would spoil it")
    measured = []
    precisions = precisions_on(device) if options.precision == "all" else [options.precision]
    for case in cases(options, device, precisions):
        measured.append(measure(case, options.repeats, device))
        tell(f"{case.name}, {case.work}: {_ratios(measured[-1]) or 'done'}")
    figures = {
        "command": _command(name, options),
        "started": started,
        "device": str(device),
        **describe_machine(device),
        "results": [one.figures() for one in measured],
    }
    write_text_atomically(out, json.dumps(figures, indent=2) + "\n")
    if options.as_json:
        report(figures, as_json=True)
    else:
        print("\n\n".join(_table(one) for one in measured))
    finish([("figures", out)], as_json=options.as_json)


def _claim(out: Path, overwrite: bool) -> Path:
    """The file that everything will be written to.

    Raises:
        OutputError: it cannot be written; better before the minutes of measuring than after.
    """
    from ivideogpt.files import look_at, readable_write_errors

    out = look_at(out, OutputError)
    if out.is_dir():
        raise OutputError(f"output file {out} is a folder. Name a file, for example {out / 'bench.json'}.")
    if out.exists() and not overwrite:
        raise OutputError(f"output file {out} exists. Choose another name, or pass --overwrite.")
    with readable_write_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    return out


def _command(name: str, options: BenchOptions) -> str:
    """The command line that measures the same again."""
    chosen = {key: value for key, value in options.model_dump().items() if key not in _NOT_MEASURED}
    argv = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
    return shlex.join(["ivideogpt", *name.split(), *argv])


def _ratios(measured: Measured) -> str:
    return ", ".join(f"{name} {ratio:.1f}x" for name, ratio in measured.ratios.items())


def _table(measured: Measured) -> str:
    """A title with the ratios, and a line for each variant."""
    case, ratios = measured.case, _ratios(measured)
    title = f"{case.name}, {case.work}" + (f": {ratios}" if ratios else "")
    lines = [("variant", "median", "9 of 10", "frames/s", "parts of the last run")]
    for variant, timing in measured.timings.items():
        shown = f"{variant}, from {case.shares[variant]:.0%}" if variant in case.shares else variant
        rate = f"{case.facts['frames'] / timing.median:.3g}" if "frames" in case.facts else ""
        parts = ", ".join(f"{part} {_amount(part, value)}" for part, value in timing.reported.items())
        lines.append((shown, _seconds(timing.median), _seconds(timing.p90), rate, parts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join([title, *(f"  {row}".rstrip() for row in rows)])


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _amount(part: str, value: float) -> str:
    return f"{value / 1e6:.3g} MB" if part.endswith("bytes") else _seconds(value)
