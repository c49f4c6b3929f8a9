"""What there is to know of recorded episodes: whence they are, how fast, and what their actions are.

Shapes: T frames, A action size, N rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

_LEAST_STD = 1e-3  # of rewards that hardly differ: dividing by less would only make their noise large
_MOST_EPISODES = 1000  # spread over all; their statistics are as good, and reading more would take minutes


class ActionSource(Protocol):
    """A numbered collection of episodes that reads an episode's actions without its frames."""

    def read_actions(self, index: int) -> tuple[npt.NDArray[np.float32] | None, Mapping[str, Any]]:
        """Actions (T,A) or None, and metadata, of episode `index`."""
        ...


def facts_of(source: ActionSource, indices: Sequence[int]) -> dict[str, Any]:
    """Facts on episodes, as fields of `config.DataFacts`; what is not known, or differs among them, is left out.

    `env`, `frame_rate`, `action_names`, `action_low` and `action_high` are those of the metadata where all episodes say
    the same; statistics of the actions are taken from the actions, of at most 1,000 episodes, one in memory at a time.
    The last action of an episode leads nowhere and does not count.

    Args:
        source: of the episodes.
        indices: those to look at, at least one.

    Raises:
        EpisodeError: an episode that cannot be read.
    """
    statistics = _Statistics()
    said: list[dict[str, Any]] = []
    for index in _spread(indices):
        actions, metadata = source.read_actions(index)
        if actions is not None:
            statistics.add(actions[:-1] if len(actions) > 1 else actions)
        said.append(_legal(metadata, None if actions is None else actions.shape[1]))
    agreed = {name: value for name, value in said[0].items() if all(one.get(name) == value for one in said)}
    return agreed | statistics.summary()


class RewardSource(Protocol):
    """A numbered collection of episodes that reads an episode's rewards without its frames."""

    def read_rewards(self, index: int) -> npt.NDArray[np.float32]:
        """Rewards (T,) of episode `index`."""
        ...


@dataclass(frozen=True)
class RewardScale:
    """Mean and standard deviation of rewards, of their symlog where asked for, and the size of the largest."""

    mean: float = 0.0
    std: float = 1.0
    largest: float = 0.0


def reward_scale(source: RewardSource, indices: Sequence[int], *, symlog: bool) -> RewardScale:
    """The scale of rewards, of at most 1,000 episodes; the first of an episode was not earned and does not count.

    Raises:
        EpisodeError: an episode that cannot be read.
    """
    statistics = _Statistics()
    largest = 0.0
    for index in _spread(indices):
        rewards = source.read_rewards(index)[1:, None]
        if rewards.size:
            largest = max(largest, float(np.abs(rewards).max()))
            statistics.add(np.sign(rewards) * np.log1p(np.abs(rewards)) if symlog else rewards)
    if not statistics.count:
        return RewardScale()
    std = math.sqrt(float(statistics.squares[0]) / statistics.count)
    return RewardScale(float(statistics.mean[0]), max(std, _LEAST_STD), largest)


class _Statistics:
    """Running statistics of rows (N,A), in float64 whatever the rows are."""

    def __init__(self) -> None:
        self.count = 0
        self.same_size = True

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Count more rows in."""
        wide = rows.astype(np.float64)
        mean, squares = wide.mean(axis=0), wide.var(axis=0) * len(wide)
        if self.count == 0:
            self.count, self.mean, self.squares = len(wide), mean, squares
            self.low, self.high = wide.min(axis=0), wide.max(axis=0)
            return
        if mean.shape != self.mean.shape:
            self.same_size = False
            return
        total, apart = self.count + len(wide), mean - self.mean
        self.mean = self.mean + apart * len(wide) / total
        self.squares = self.squares + squares + apart**2 * self.count * len(wide) / total
        self.low, self.high = np.minimum(self.low, wide.min(axis=0)), np.maximum(self.high, wide.max(axis=0))
        self.count = total

    def summary(self) -> dict[str, tuple[float, ...]]:
        """Fields of `config.DataFacts`; none where no rows were counted, or rows of different sizes."""
        if not self.count or not self.same_size:
            return {}
        std = np.sqrt(self.squares / self.count)
        named = {"action_mean": self.mean, "action_std": std, "action_min": self.low, "action_max": self.high}
        return {name: tuple(values.tolist()) for name, values in named.items()}


def _spread(indices: Sequence[int]) -> Iterator[int]:
    """At most `_MOST_EPISODES` of them, as far apart as possible."""
    step = max(1, math.ceil(len(indices) / _MOST_EPISODES))
    return iter(indices[::step])


def _legal(metadata: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """What metadata say in a form that can be used; the rest is as if it were not there."""
    found: dict[str, Any] = {}
    if isinstance(metadata.get("env"), str):
        found["environment"] = metadata["env"]
    rate: Any = metadata.get("frame_rate")
    if _is_number(rate) and rate > 0:
        found["frame_rate"] = float(rate)
    names = metadata.get("action_names")
    if isinstance(names, list) and len(names) == size and all(isinstance(name, str) for name in names):
        found["action_names"] = tuple(names)
    low, high = (_bound(metadata.get(key), size) for key in ("action_low", "action_high"))
    if low and high and all(a < b for a, b in zip(low, high, strict=True)):
        found |= {"action_low": low, "action_high": high}
    return found


def _bound(values: Any, size: int | None) -> tuple[float, ...]:
    legal = isinstance(values, list) and len(values) == size and all(map(_is_number, values))
    return tuple(float(value) for value in values) if legal else ()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
