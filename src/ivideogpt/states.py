"""States as features for a model, and back: columns of about unit size, and angles as cosine and sine.

A state is any row of S numbers about a frame. Its D features are, in this order: the columns that are no angles, less
their mean and divided by their standard deviation; then cosine and sine of each angle.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ivideogpt.config import StateConfig
from ivideogpt.errors import EpisodeError, ShapeError

# Relative to a column's largest value: what rounding to float32 leaves of a constant, and the least deviation used.
_ROUNDING, _LEAST = 1e-6, 1e-4
_LEAST_CHANGE = 0.02  # deviations: errors are measured in usual changes, and noise on a column at rest is no large one


def encode_states(states: Tensor, config: StateConfig) -> Tensor:
    """Features of states.

    Args:
        states: (..., S), real numbers.
        config: what the columns mean.

    Returns:
        (..., D) float32, differentiable.

    Raises:
        ShapeError: another number of columns.
    """
    _require_columns("states", states, config.size)
    states = states.float()
    plain, angles = _columns(config)
    mean, std = _scale(config, states)
    turned = states[..., angles]
    circle = torch.stack([turned.cos(), turned.sin()], dim=-1).flatten(-2)
    return torch.cat([(states[..., plain] - mean) / std, circle], dim=-1)


def decode_states(features: Tensor, config: StateConfig) -> Tensor:
    """States of features; the inverse of `encode_states`, but for whole turns of an angle.

    Args:
        features: (..., D), real numbers. Cosine and sine need not lie on the unit circle.
        config: what the columns mean.

    Returns:
        (..., S) float32, differentiable; angles between -pi and pi.

    Raises:
        ShapeError: another number of features.
    """
    _require_columns("features", features, config.features)
    features = features.float()
    plain, angles = _columns(config)
    mean, std = _scale(config, features)
    cos, sin = features[..., len(plain) :].unflatten(-1, (len(angles), 2)).unbind(-1)
    values = torch.cat([features[..., : len(plain)] * std + mean, torch.atan2(sin, cos)], dim=-1)
    places = torch.tensor([*plain, *angles], device=values.device).argsort()
    return values[..., places]


def change_scale(config: StateConfig) -> Tensor:
    """(D,) typical change of each feature from one frame to the next, in features."""
    plain, angles = _columns(config)
    relative = [config.change[column] / config.std[column] for column in plain]
    turns = [config.change[column] for column in angles for _ in range(2)]  # at most, of a cosine or sine
    return torch.tensor([*relative, *turns])


def on_circle(features: Tensor, config: StateConfig) -> Tensor:
    """Features (..., D) with every pair of cosine and sine brought to length 1, as those of a state are."""
    if not config.angles:
        return features
    plain = config.size - len(config.angles)
    pairs = features[..., plain:].unflatten(-1, (-1, 2))
    pairs = pairs / pairs.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return torch.cat([features[..., :plain], pairs.flatten(-2)], dim=-1)


def state_statistics(
    episodes: Iterable[npt.NDArray[Any]], names: Sequence[str] = (), angles: Sequence[int] = (), step_size: int = 1
) -> StateConfig:
    """Mean, standard deviation and usual change of every column over all frames of some episodes.

    A column that never changes gets standard deviation 1, one that hardly changes at least a ten-thousandth of its
    largest value, and an angle mean 0 and standard deviation 1.

    Args:
        episodes: (T, S) each, with one S.
        names: name of each column, or none.
        angles: columns that are angles in radians, in any order.
        step_size: frames over which a change is measured.

    Raises:
        EpisodeError: no episodes, or states of different sizes.
        ConfigError: names or angles that do not fit the columns.
    """
    count, mean, squares, largest = 0, np.zeros(0), np.zeros(0), np.zeros(0)
    changes, steps = np.zeros(0), 0
    for episode in episodes:
        rows = episode.astype(np.float64)
        if count == 0:
            mean = squares = largest = changes = np.zeros(rows.shape[1])
        if rows.shape[1] != len(mean):
            raise EpisodeError(
                f"states have {len(mean)} columns in one episode and {rows.shape[1]} in another; one dataset has one "
                "kind. Keep episodes of another kind in another folder."
            )
        # Two groups of rows become one (Chan et al.): sums of squares would lose what differs beside a large mean.
        total, shift = count + len(rows), rows.mean(axis=0) - mean
        squares = squares + rows.var(axis=0) * len(rows) + shift**2 * (count * len(rows) / total)
        mean = mean + shift * (len(rows) / total)
        largest = np.maximum(largest, np.abs(rows).max(axis=0))
        count = total
        change = rows[step_size:] - rows[:-step_size]
        turning = [column for column in angles if 0 <= column < len(mean)]  # StateConfig refuses the others
        change[:, turning] = (change[:, turning] + np.pi) % (2 * np.pi) - np.pi
        changes, steps = changes + np.square(change).sum(axis=0), steps + len(change)
    if count == 0:
        raise EpisodeError("there are no episodes to measure states on. Give at least one.")
    std = np.sqrt(squares / count)
    std = np.where(std <= _ROUNDING * largest, 1.0, np.maximum(std, _LEAST * largest))
    mean[turning], std[turning] = 0.0, 1.0
    change = np.maximum(np.sqrt(changes / max(1, steps)), _LEAST_CHANGE * std)
    return StateConfig.checked(
        names=tuple(names),
        angles=tuple(sorted(angles)),
        mean=mean.tolist(),
        std=std.tolist(),
        change=change.tolist(),
    )


def _require_columns(name: str, values: Tensor, columns: int) -> None:
    if values.ndim == 0 or values.shape[-1] != columns:
        raise ShapeError(f"{name} have shape {tuple(values.shape)}; this model's have {columns} numbers at the end.")


def _columns(config: StateConfig) -> tuple[list[int], list[int]]:
    """Columns that are no angles, and those that are."""
    angles = list(config.angles)
    return [column for column in range(config.size) if column not in angles], angles


def _scale(config: StateConfig, like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the columns that are no angles, beside `like`."""
    plain, _ = _columns(config)
    mean, std = (like.new_tensor([values[column] for column in plain]) for values in (config.mean, config.std))
    return mean, std
