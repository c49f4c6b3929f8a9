"""Statistics that a LeRobot data set holds: of each column and camera, for each episode and for all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.recording import Frame

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}

_SIDE = 150  # pixels that are looked at along the shorter side of a picture

Numbers = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Statistics:
    """Of so many rows: arrays (size,) of a column, or (3, 1, 1) of a camera, whose colours are in 0..1."""

    count: int
    values: dict[str, Numbers]

    def as_lists(self) -> dict[str, Any]:
        """As JSON and parquet take it."""
        return {name: values.tolist() for name, values in self.values.items()} | {"count": [self.count]}


def of_track(track: npt.NDArray[Any]) -> Statistics:
    """Of a column (T, size)."""
    values = track.astype(np.float64)
    held = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    return Statistics(len(values), held | dict(zip(QUANTILES, quantiles, strict=True)))


@dataclass
class Colours:
    """How often each colour was seen by a camera; of a large picture, on a grid of its pixels."""

    frames: int = 0
    seen: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 256), np.int64))

    def add(self, frame: Frame) -> None:
        """Look at one more picture."""
        step = max(1, min(frame.shape[:2]) // _SIDE)
        for channel in range(3):
            self.seen[channel] += np.bincount(frame[::step, ::step, channel].ravel(), minlength=256)
        self.frames += 1

    def statistics(self) -> Statistics:
        """Of all that was seen; there must be a picture."""
        levels = np.arange(256) / 255
        share = self.seen / self.seen.sum(axis=1, keepdims=True)
        mean = share @ levels
        held = {
            "min": levels[(self.seen > 0).argmax(axis=1)],
            "max": levels[255 - (self.seen[:, ::-1] > 0).argmax(axis=1)],
            "mean": mean,
            "std": np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1)),
        }
        below = share.cumsum(axis=1)
        for name, part in QUANTILES.items():
            held[name] = levels[np.minimum((below < part).sum(axis=1), 255)]
        return Statistics(self.frames, {name: values.reshape(3, 1, 1) for name, values in held.items()})


@dataclass
class Total:
    """Statistics of all episodes so far. Quantiles are means of theirs, as in the package `lerobot`."""

    held: dict[str, Statistics] = field(default_factory=dict)

    def add(self, episode: Mapping[str, Statistics]) -> None:
        """Take one more episode in."""
        for key, new in episode.items():
            self.held[key] = _together(self.held[key], new) if key in self.held else new

    def as_lists(self) -> dict[str, dict[str, Any]]:
        """As JSON takes it."""
        return {key: statistics.as_lists() for key, statistics in self.held.items()}


def _together(a: Statistics, b: Statistics) -> Statistics:
    count = a.count + b.count
    share = b.count / count

    def mixed(one: Numbers, other: Numbers) -> Numbers:
        return one + (other - one) * share

    held = {name: mixed(a.values[name], b.values[name]) for name in ("mean", *QUANTILES)}
    held["min"] = np.minimum(a.values["min"], b.values["min"])
    held["max"] = np.maximum(a.values["max"], b.values["max"])
    variance = mixed(a.values["std"] ** 2, b.values["std"] ** 2)
    apart = b.values["mean"] - a.values["mean"]
    held["std"] = np.sqrt(variance + share * (1 - share) * apart**2)
    return Statistics(count, held)
