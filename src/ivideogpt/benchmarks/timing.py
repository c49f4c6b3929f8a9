"""Cases, and how they are timed: variants of the same work take turns, and medians are compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch

from ivideogpt.devices import Precision

Run = Callable[[], object]
"""Does the work once. If it returns a mapping, these are figures of its own, such as the seconds of its parts."""


@dataclass(frozen=True)
class Case:
    """A row of the table. Every variant has been run before, so that nothing is set up while the clock runs."""

    name: str
    work: str
    """Models, batch and frames."""
    variants: Mapping[str, Run]
    ratios: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    """What to compare, by name, the most important first: the slower variant and the faster one."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The share of the work that a variant does, where that is not all; its times are scaled up."""
    turns: int = 1
    """Timed runs of each variant for every repeat asked for."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, for JSON: the number of frames, differences between the variants."""

    @classmethod
    def against(
        cls,
        name: str,
        work: str,
        reference: Mapping[Precision, Run],
        ours: Mapping[Precision, Run],
        share: float = 1.0,
        **more: Any,
    ) -> Self:
        """The reference against ours, first in the same precision, then the mixed ratio.

        Args:
            name, work, more: fields of the case.
            reference, ours: what does the work, by precision.
            share: of the work, that the reference does.
        """
        theirs = {precision: f"reference, {precision}" for precision in reference}
        ratios = {f"both in {precision}": (slow, f"ours, {precision}") for precision, slow in theirs.items()}
        if len(theirs) > 1:
            ratios["float32 against ours in bf16"] = (theirs["float32"], "ours, bf16")
        variants = {theirs[precision]: run for precision, run in reference.items()}
        variants |= {f"ours, {precision}": run for precision, run in ours.items()}
        shares = dict.fromkeys(theirs.values(), share) if share != 1 else {}
        return cls(name, work, variants, ratios, shares, **more)


@dataclass(frozen=True)
class Timing:
    """Seconds that each run of a variant took, in their order, and what its last run reported."""

    seconds: tuple[float, ...]
    reported: Mapping[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        """Median of the runs, seconds."""
        return statistics.median(self.seconds)

    @property
    def p90(self) -> float:
        """Nine of ten runs took no longer, seconds."""
        return sorted(self.seconds)[math.ceil(0.9 * len(self.seconds)) - 1]


@dataclass(frozen=True)
class Measured:
    """A case and the times of its variants."""

    case: Case
    timings: Mapping[str, Timing]

    @property
    def ratios(self) -> dict[str, float]:
        """How many times faster, by the names of the case: ratios of medians."""
        pairs = self.case.ratios.items()
        return {name: self.timings[slow].median / self.timings[fast].median for name, (slow, fast) in pairs}

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        variants = {
            variant: {
                "median": timing.median,
                "p90": timing.p90,
                "seconds": list(timing.seconds),
                "share_measured": self.case.shares.get(variant, 1.0),
                "reported": dict(timing.reported),
            }
            for variant, timing in self.timings.items()
        }
        named = {"name": self.case.name, "work": self.case.work}
        return {**named, "ratios": self.ratios, "variants": variants, **self.case.facts}


def measure(case: Case, repeats: int, device: torch.device) -> Measured:
    """Run every variant once, then every variant again, so that a machine whose speed drifts slows all of them alike.

    Takes `repeats` times the case's own turns, and waits for the device before the clock stops.
    """
    seconds: dict[str, list[float]] = {variant: [] for variant in case.variants}
    reported: dict[str, Mapping[str, float]] = {}
    for _ in range(repeats * case.turns):
        for variant, run in case.variants.items():
            start = now(device)
            result = run()
            seconds[variant].append((now(device) - start) / case.shares.get(variant, 1.0))
            reported[variant] = result if isinstance(result, Mapping) else {}
    return Measured(case, {variant: Timing(tuple(runs), reported[variant]) for variant, runs in seconds.items()})


def now(device: torch.device) -> float:
    """The time, seconds, when a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
