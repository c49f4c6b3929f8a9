"""Timing that stands noise: ways of doing the same work take turns, and medians are compared."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

REFERENCE = "reference"
"""Name of the straightforward way among the ways that take turns."""

Unit = Literal["s", "steps/s"]


@dataclass(frozen=True)
class Timing:
    """Seconds that each run of one way took, in the order of the runs."""

    runs: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the runs, seconds."""
        return statistics.median(self.runs)

    @property
    def p90(self) -> float:
        """Nine of ten runs took no longer, seconds."""
        return sorted(self.runs)[math.ceil(0.9 * len(self.runs)) - 1]

    def scaled(self, factor: float) -> Timing:
        """As if every run had taken `factor` times as long."""
        return Timing(tuple(seconds * factor for seconds in self.runs))


class Laps:
    """Takes the time of the parts of a run, one after the other; it runs from when it is made.

    Args:
        device: whose queue is waited for at the end of every part.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = {}
        """What each part took so far."""
        self._device = device
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as time of `part`."""
        now = self._now()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class Comparison:
    """The straightforward way and ours on the same work, measured in one run."""

    name: str
    """What is measured, for example `rollout`."""
    size: str
    """Models it is measured with, for example `official`."""
    work: str
    """Batch and frames of one run."""
    unit: Unit
    """How the speed is shown: seconds a run, or runs (training steps) a second."""
    reference: Timing
    """The straightforward way, float32."""
    ours: Mapping[str, Timing]
    """Ours, by precision."""
    differences: Mapping[str, Mapping[str, float]]
    """Between the outputs of the two ways, by precision."""
    floor: Mapping[str, float] = field(default_factory=dict)
    """Least seconds that this machine could take, by precision."""

    @property
    def best(self) -> str:
        """The precision in which ours is fastest."""
        return min(self.ours, key=lambda precision: self.ours[precision].median)

    def ratio(self, precision: str) -> float:
        """How many times faster than the straightforward way: the ratio of the medians."""
        return self.reference.median / self.ours[precision].median

    def speed(self, timing: Timing) -> float:
        """The median of a timing in this comparison's unit."""
        return timing.median if self.unit == "s" else 1 / timing.median

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        ours = {
            precision: {
                **self._figures(timing),
                "ratio": self.ratio(precision),
                "floor_seconds": self.floor.get(precision),
                "differences": dict(self.differences[precision]),
            }
            for precision, timing in self.ours.items()
        }
        return {
            "name": self.name,
            "size": self.size,
            "work": self.work,
            "unit": self.unit,
            "reference": self._figures(self.reference),
            "ours": ours,
            "best": self.best,
            "ratio": self.ratio(self.best),
        }

    def _figures(self, timing: Timing) -> dict[str, Any]:
        return {"median": self.speed(timing), "seconds": list(timing.runs)}


def take_turns(ways: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, Timing]:
    """Run every way once, then every way again, so that a machine whose speed drifts slows all of them alike.

    Args:
        ways: what to run, by name; each has been run before, so that nothing is set up while the clock runs.
        repeats: runs of each way.
        device: whose queue is waited for before the clock stops.
    """
    runs: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            synchronize(device)
            start = time.perf_counter()
            way()
            synchronize(device)
            runs[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(seconds)) for name, seconds in runs.items()}


def synchronize(device: torch.device) -> None:
    """Wait for what the device still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
