"""`ivideogpt bench rollout`: sessions against Hugging Face's `generate`, and the delay of a step."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from ivideogpt.cli.bench import aligned, claim, publish
from ivideogpt.cli.console import tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from ivideogpt.benchmarks.rollouts import Latency, RolloutComparison

_ROWS = ("one", "eight", "hundred", "contexts", "latency")


class Options(BaseOptions):
    """Measure sessions against the official pattern: `generate` called again for every frame, each future by itself.

    The same random weights, in turns, in the same run; 2 context and 10 future frames, actions. Needs the extra hf. A
    ratio is one of medians; leave the machine alone meanwhile.
    """

    rows: str = ",".join(_ROWS)
    """Rows of the table, with commas: one rollout; eight or hundred futures of one context; 32 contexts with rewards;
    latency of a step of pusht-64. On a CPU the straightforward way imagines no more than 8 futures of a row, and its
    time is scaled."""
    size: Literal["official", "nano", "micro"] = "official"
    """Models, but for latency; official is 114 M tokenizer and 138 M transformer."""
    ways: str | None = None
    """Precisions of ours, with commas: float32, bf16; all that the hardware multiplies where left out."""
    repeats: int = Field(3, ge=1)
    """Timed runs of each way."""
    rows_at_once: int = Field(128, ge=1)
    """Futures that the straightforward way works on together; fewer where memory is short."""
    out: Path | None = None
    """File for everything measured; outputs/bench/<date and time>.json where left out."""
    overwrite: bool = False
    """Replace the file if it exists."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    as_json: Json = False
    """Print everything measured as JSON."""

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: str) -> str:
        for name in rows.split(","):
            if name not in _ROWS:
                raise ConfigError(unknown_name("row", name, _ROWS))
        return rows


def run(options: Options) -> None:
    """Measure, print the table and write the JSON."""
    from ivideogpt.benchmarks.floor import measure_rates
    from ivideogpt.benchmarks.generation import precisions
    from ivideogpt.benchmarks.rollouts import (
        LATENCY,
        measure_latency,
        measure_rollouts,
        row_counts,
        ways_on,
    )
    from ivideogpt.devices import choose_device

    device = choose_device(options.device)
    file = claim(options.out, options.overwrite)
    names = options.rows.split(",")
    ways = ways_on(device, None if options.ways is None else options.ways.split(","))
    rates = measure_rates(device, precisions(device).values(), row_counts(names))
    measured = []
    for row in measure_rollouts(options.size, names, options.repeats, device, rates, ways, options.rows_at_once):
        measured.append(row)
        tell(f"{_title(row)}: {row.ratio(row.best):.1f}x")
    latency = measure_latency(device, rates, ways) if LATENCY in names else None
    results: list[dict[str, Any]] = [row.figures() for row in measured]
    tables = [_table(measured)] if measured else []
    if latency is not None:
        results.append(latency.figures())
        tables.append(_latency_table(latency))
    publish(file, _command(options), device, rates, results, "\n\n".join(tables), options.as_json)


def _command(options: Options) -> str:
    """The command line that measures the same again."""
    chosen = {
        "--rows": options.rows,
        **({} if options.ways is None else {"--ways": options.ways}),
        "--size": options.size,
        "--repeats": options.repeats,
        "--rows-at-once": options.rows_at_once,
        "--device": options.device,
    }
    return shlex.join(["ivideogpt", "bench", "rollout", *(str(word) for pair in chosen.items() for word in pair)])


def _title(row: RolloutComparison) -> str:
    return f"{row.name}, {row.size}, {row.work}"


def _table(measured: list[RolloutComparison]) -> str:
    """For each row a line of the straightforward way and one of each of ours, with its parts and its floor."""
    head = ("median", "way", "time", "frames/s", "times faster", "floor", "start", "steps", "decode", "session")
    lines: list[tuple[str, ...]] = [head]
    for row in measured:
        scaled = row.reference_measured_on < row.row.rows
        plain = f"straightforward, from {row.reference_measured_on}" if scaled else "straightforward"
        lines.append((_title(row), plain, *_speed(row, "reference"), "", "", *_parts(row, "reference"), ""))
        for way in row.ours:
            ratio, floor, held = row.ratio(way), row.floor[way], row.session_bytes[way]
            shown = (f"{ratio:.1f}", f"{floor:.3g} s", *_parts(row, way), f"{held / 1e6:.3g} MB")
            lines.append(("", f"ours, {way}", *_speed(row, way), *shown))
    return aligned(lines)


def _speed(row: RolloutComparison, way: str) -> tuple[str, str]:
    timing = row.ours.get(way, row.reference)
    return f"{timing.median:.3g} s", f"{row.frames_a_second(timing):.3g}"


def _parts(row: RolloutComparison, way: str) -> list[str]:
    """Shares of the time in tokenizing and reading the context, in sampling tokens, and in decoding frames."""
    seconds = row.profile[way]
    return [f"{seconds[part] / sum(seconds.values()):.0%}" for part in ("start", "steps", "decode")]


def _latency_table(latency: Latency) -> str:
    lines: list[tuple[str, ...]] = [("one step with pixels", "way", "median", "p90", "floor", "session")]
    for way, timing in latency.ours.items():
        times = (timing.median, timing.p90, latency.floor[way])
        held = f"{latency.session_bytes[way] / 1e6:.3g} MB"
        lines.append((latency.model, f"ours, {way}", *(f"{seconds * 1e3:.3g} ms" for seconds in times), held))
    return aligned(lines)
