"""What an imagined environment checks and works out before it is made: model, action space, reward, numbers.

Shapes: n environments, A action size, R resolution.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from ivideogpt.config import DataFacts, TransformerConfig
from ivideogpt.devices import choose_device
from ivideogpt.envs.imagined_contexts import PUSHT
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.hub import shipped_models
from ivideogpt.inference import Imagines
from ivideogpt.world_model import WorldModel

DEFAULT_MODEL = "pusht-64"

Bound = float | Sequence[float] | npt.NDArray[np.floating[Any]]
RewardFunction = Callable[[npt.NDArray[np.uint8]], npt.ArrayLike]


def default_contexts(model: str | Path | Imagines, facts: DataFacts) -> str:
    """Where episodes begin if nobody says it: Push-T openings, for a model of Push-T.

    Raises:
        ConfigError: the model is not known to be one of Push-T.
    """
    if facts.environment == PUSHT or str(model) in shipped_models():
        return PUSHT
    raise ConfigError(
        "contexts is left out, and this model is not known to be one of Push-T. Say where episodes begin: a folder of "
        f".npz episodes, an array (N, t, R, R, 3) of contexts, {PUSHT!r}, or a ContextSource."
    )


def open_model(model: str | Path | Imagines, device: str | torch.device | None) -> Imagines:
    """The model that a user means.

    Args:
        model: a shipped model, a folder or a Hub id, or a model that is already loaded.
        device: where to load it: cpu, cuda, cuda:n or auto, which is also meant where left out.

    Raises:
        ConfigError: a loaded model is to run elsewhere, or it is no model at all.
        CheckpointError, DeviceError: it cannot be loaded.
    """
    if isinstance(model, (str, Path)):
        return WorldModel.from_pretrained(model, device="auto" if device is None else device)
    if not isinstance(model, Imagines):
        raise ConfigError(
            f"model is a {type(model).__name__}; give a shipped model such as 'pusht-64', a folder, a Hub id, or a "
            "WorldModel or InferenceModel."
        )
    if device is not None:
        wanted = choose_device(str(device))
        if wanted != model.device:
            raise ConfigError(
                f"device is {device}, but the model that was given runs on {model.device}. "
                f"Load it there, WorldModel.from_pretrained(..., device={str(wanted)!r}), or leave device out."
            )
    return model


def action_space(config: TransformerConfig, low: Bound | None, high: Bound | None) -> gymnasium.spaces.Box:
    """Box (A,) float32 of the actions that are allowed.

    Args:
        config: of the model's transformer. Its data's bounds hold for each component, or else its `action_limit`, or
            else the range of the actions it was trained on, or else 1.
        low, high: other bounds, one number or A.

    Raises:
        ConfigError: the model takes no actions, or bounds that are no bounds or exceed the model's own.
    """
    if config.action_dim is None:
        raise ConfigError(
            "this model has no action input, so there is nothing to act with. Train its transformer with actions, or "
            "imagine without an environment: WorldModel.start(context), session.step()."
        )
    known = _known_bounds(config, config.action_dim)
    lows = _bound("action_low", known[0] if low is None else low, config.action_dim)
    highs = _bound("action_high", known[1] if high is None else high, config.action_dim)
    if not (lows < highs).all():
        raise ConfigError(f"action_low is {lows.tolist()} and action_high {highs.tolist()}; low must be below high.")
    limit = config.action_limit
    if limit is not None and max(abs(lows).max(), abs(highs).max()) > np.float32(limit):
        raise ConfigError(
            f"action_low is {lows.tolist()} and action_high {highs.tolist()}, but this model only takes actions in "
            f"[-{limit:g}, {limit:g}]. Scale the actions."
        )
    return gymnasium.spaces.Box(lows, highs, dtype=np.float32)


def action_names(config: TransformerConfig) -> tuple[str, ...]:
    """Name of each of the A components of an action; of a block of k, each with its place in it. Empty: not known."""
    names, steps = config.data.action_names, config.data.steps_of(None)
    if steps == 1:
        return names
    return tuple(f"{name} ({place} of {steps})" for place in range(1, steps + 1) for name in names)


def require_actions(
    actions: Any,
    space: gymnasium.spaces.Box,
    envs: int,
    looked_at: npt.NDArray[np.bool_],
    names: Sequence[str] = (),
) -> npt.NDArray[np.float32]:
    """Actions (n,A) float32, checked.

    Args:
        actions: anything that numpy makes (n,A) numbers of.
        space: that each must lie in.
        envs: n.
        looked_at: (n,) the environments that take their action; the other actions become the space's middle.
        names: of the components, for what is said of them.

    Raises:
        ShapeError: another shape, no numbers, or an action outside the space; names the environment and the rule.
    """
    expected = (envs, *space.shape)
    try:
        array = np.array(actions, np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"the actions are no array of numbers ({error}); give (n, A) = {expected}.") from error
    if array.shape != expected:
        raise ShapeError(f"actions have shape {array.shape}; these environments take (n, A) = {expected}.")
    array[~looked_at] = (space.low + space.high) / 2
    wrong = ~((array >= space.low) & (array <= space.high))  # True also for NaN
    if wrong.any():
        env, component = (int(index) for index in np.argwhere(wrong)[0])
        called = f" ({names[component]})" if names else ""
        raise ShapeError(
            f"component {component}{called} of the action of env {env} is {array[env, component]:g}; it must be finite "
            f"and lie in [{space.low[component]:g}, {space.high[component]:g}]. Mend or clip it; no environment has "
            "moved."
        )
    return array


def require_reward(model: Imagines, reward: RewardFunction | None) -> None:
    """Check that there is a reward.

    Raises:
        ConfigError: no function and no reward head, or a function that cannot be called.
    """
    if reward is None and model.transformer.reward_head is None:
        raise ConfigError(
            "this model has no reward head and no reward function was given. Pass reward=, a function of frames "
            "(n, R, R, 3) uint8 that returns (n,) rewards, or train the transformer with rewards: "
            "ivideogpt train transformer --rewards."
        )
    if reward is not None and not callable(reward):
        raise ConfigError(f"reward is {reward!r}; it must be a function of frames (n, R, R, 3), or left out.")


def call_reward(reward: RewardFunction, frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Rewards (n,) of frames (n,R,R,3), checked.

    Raises:
        ShapeError: another shape, or a reward that is not finite.
    """
    rewards = np.asarray(reward(frames), np.float64)
    if rewards.shape != (len(frames),) or not np.isfinite(rewards).all():
        found = f"shape {rewards.shape}" if rewards.shape != (len(frames),) else f"{rewards.tolist()}"
        raise ShapeError(
            f"the reward function returned {found} for {len(frames)} frames; one finite number is due each."
        )
    return rewards


def require_count(name: str, value: Any) -> int:
    """A whole number of at least 1.

    Raises:
        ConfigError: it is not.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number of at least 1.")
    return count


def require_seeds(seed: SupportsIndex | Sequence[SupportsIndex | None] | None, envs: int) -> list[int | None]:
    """A seed for each of n environments, as Gymnasium counts them: s, s + 1, ... from one number s.

    Raises:
        ShapeError: another number of seeds, or one that is negative or no whole number.
    """
    if seed is None:
        return [None] * envs
    try:
        if isinstance(seed, SupportsIndex):
            first = operator.index(seed)
            seeds: list[int | None] = [first + env for env in range(envs)]
        else:
            seeds = [None if one is None else operator.index(one) for one in seed]
    except TypeError as error:
        raise ShapeError(f"seed is {seed!r}; give a whole number, or a list with one for each environment.") from error
    if len(seeds) != envs or any(one is not None and one < 0 for one in seeds):
        raise ShapeError(f"seed is {seed!r}; give a number from 0 on, or a list of {envs}, one for each environment.")
    return seeds


def require_autoreset(mode: str | AutoresetMode) -> AutoresetMode:
    """The autoreset mode that a user means; its value (`"NextStep"`) will do.

    Raises:
        ConfigError: there is no such mode.
    """
    try:
        return AutoresetMode(mode)
    except ValueError as error:
        available = ", ".join(repr(known.value) for known in AutoresetMode)
        raise ConfigError(f"unknown autoreset_mode {mode!r}. Available: {available}.") from error


def require_reset_mask(mask: Any, envs: int) -> npt.NDArray[np.bool_]:
    """The mask (n,) of environments to reset.

    Raises:
        ShapeError: another type or shape, or nothing is to be reset.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (envs,) or not mask.any():
        raise ShapeError(
            f"options['reset_mask'] is {mask!r}; it must be a bool array of shape ({envs},) with a True in it."
        )
    return mask


def _known_bounds(config: TransformerConfig, size: int) -> tuple[Bound, Bound]:
    """Bounds (A,) of the components as far as the model knows, or one number for all."""
    data, limit = config.data, config.action_limit
    low, high = data.action_low, data.action_high
    if not low and limit is None:
        low, high = data.action_min, data.action_max
    if not low:
        return -(limit or 1.0), limit or 1.0
    lows, highs = np.array(low), np.array(high)
    if limit is not None:
        lows, highs = lows.clip(-limit, limit), highs.clip(-limit, limit)
    still = lows >= highs  # a component that never moved in training
    lows, highs = np.where(still, np.minimum(lows, -1), lows), np.where(still, np.maximum(highs, 1), highs)
    return np.resize(lows, size), np.resize(highs, size)


def _bound(name: str, value: Bound, size: int) -> npt.NDArray[np.float32]:
    bound = np.asarray(value, np.float32)
    if bound.shape not in ((), (size,)) or not np.isfinite(bound).all():
        raise ConfigError(f"{name} is {value!r}; it must be one finite number, or {size} of them.")
    return np.broadcast_to(bound, (size,)).copy()
