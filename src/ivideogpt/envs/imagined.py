"""Imagined worlds as Gymnasium environments: every step is a frame that a world model imagines.

Shapes: n environments, t context frames, A action size, M dynamics tokens a frame, R resolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.envs.imagined_contexts import ContextSource, draw_contexts, open_contexts
from ivideogpt.envs.imagined_setup import (
    DEFAULT_MODEL,
    Bound,
    RewardFunction,
    action_names,
    action_space,
    call_reward,
    default_contexts,
    open_model,
    require_actions,
    require_autoreset,
    require_count,
    require_reset_mask,
    require_reward,
    require_seeds,
)
from ivideogpt.errors import ConfigError, SessionError, unknown_name
from ivideogpt.inference import Imagines
from ivideogpt.session import Session, Step

RENDER_MODES = ("rgb_array",)
FRAME_RATE = 10  # of rendered videos, where a model does not know how fast time passes in it

Frames = npt.NDArray[np.uint8]
Actions = npt.NDArray[np.float32]
Contexts = str | Path | npt.NDArray[Any] | Tensor | ContextSource


class ResetNeeded(SessionError, gymnasium.error.ResetNeeded):
    """An environment is stepped before its first reset, or after its end where nothing resets it."""


class ImaginedVectorEnv(VectorEnv[Frames, Actions, npt.NDArray[Any]]):
    """Many imagined worlds that one world model steps together.

    Observation: the newest frame, (R,R,3) uint8. Action: (A,) float32 within the bounds of the space; others are
    refused, and then no environment has moved. A model trained with a step size k moves k recorded frames in a step and
    takes an action block, oldest action first: A is then k times the size of one. Reward: of the model's reward head,
    or of a function. Episodes never terminate; they are truncated after `max_episode_steps`.

    Info, arrays over all environments, each `key` with its mask `_key`: `origin`, where the episode's context came
    from; of a step also `tokens` (n,M) int64 and `entropy` (n,) float32, the mean entropy in nats of the distributions
    that the frame's tokens were drawn from.

    An environment with seed s gives the same episodes whatever other environments there are (but for rounding, which
    differs a little between batch sizes).

    Args:
        num_envs: n.
        model: a shipped model such as `"pusht-64"`, a folder, a Hub id, or a loaded model.
        contexts: where episodes begin: `"pusht"` (fresh Push-T openings), a folder of `.npz` episodes, an array or
            tensor (N,t,R,R,3), or a `ContextSource`. The first two take the model's own step size and camera key. Left
            out: Push-T openings, for a model of Push-T.
        reward: frames (k,R,R,3) uint8 -> (k,) rewards on arriving there, used instead of the reward head.
        max_episode_steps: frames imagined in an episode; the model's `trained_horizon` where left out. It can be
            longer: an imagination goes on for ever.
        action_low, action_high: bounds of an action's components, one number or A. Left out: the bounds that the model
            knows of its data, else its `action_limit`, else the range of the actions it was trained on, else 1.
        autoreset_mode: `"NextStep"`, `"SameStep"` or `"Disabled"`, as Gymnasium defines them.
        sampling: how tokens are drawn; the model's own way where left out.
        device: where a model that is given by name runs: cpu, cuda, cuda:n or auto, which is also meant where left out.
        render_mode: None or `"rgb_array"`.

    Raises:
        ConfigError: an argument that makes no sense, a model without an action input, or no reward.
        CheckpointError, DeviceError, EpisodeError, ShapeError: the model or the contexts cannot be loaded.
    """

    metadata: dict[str, Any] = {
        "render_modes": list(RENDER_MODES),
        "render_fps": FRAME_RATE,
        "autoreset_mode": AutoresetMode.NEXT_STEP,
    }

    def __init__(
        self,
        num_envs: int = 1,
        *,
        model: str | Path | Imagines = DEFAULT_MODEL,
        contexts: Contexts | None = None,
        reward: RewardFunction | None = None,
        max_episode_steps: int | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        sampling: SamplingConfig | None = None,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = require_count("num_envs", num_envs)
        if render_mode not in (None, *RENDER_MODES):
            raise ConfigError(unknown_name("render_mode", str(render_mode), RENDER_MODES))
        self.render_mode = render_mode
        self.autoreset_mode = require_autoreset(autoreset_mode)
        self.model = open_model(model, device)
        facts = self.model.facts
        rate = FRAME_RATE if facts.frame_rate is None else facts.frame_rate / facts.steps_of(None)
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode, "render_fps": rate}
        require_reward(self.model, reward)
        self.reward = reward
        self.sampling = sampling
        layout, resolution = self.model.transformer.layout, self.model.tokenizer.config.resolution
        begins = default_contexts(model, facts) if contexts is None else contexts
        self.contexts = open_contexts(begins, layout, resolution, facts)
        steps = self.model.trained_horizon if max_episode_steps is None else max_episode_steps
        self.max_episode_steps = require_count("max_episode_steps", steps)

        frame = (resolution, resolution, 3)
        self._box = action_space(self.model.transformer.config, action_low, action_high)
        self.action_names = action_names(self.model.transformer.config)
        """Name of each component of an action; empty where the model does not know them."""
        self.single_action_space: gymnasium.Space[Any] = self._box
        self.action_space = batch_space(self._box, self.num_envs)
        self.single_observation_space = gymnasium.spaces.Box(0, 255, frame, np.uint8)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)

        self._context_shape = (layout.context_frames, *frame)
        self._session: Session | None = None
        self._pending: _Beginning | None = None  # drawn, and not begun yet
        self._moved: _Moved | None = None  # imagined, and not returned yet
        fresh = [seeding.np_random() for _ in range(self.num_envs)]
        self._generators, self._seeds = [rng for rng, _ in fresh], [seed for _, seed in fresh]
        self._frames = np.zeros((self.num_envs, *frame), np.uint8)
        self._origins = np.full(self.num_envs, None, object)
        self._elapsed = np.zeros(self.num_envs, np.int64)

    # The five of Gymnasium

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> tuple[Frames, dict[str, Any]]:
        """Begin episodes anew.

        Args:
            seed: decides contexts and every draw from here on. An int s: environment i has the seed s + i. A list: one
                each. None, also in the list: go on with the randomness there is.
            options: `reset_mask`, (n,) bool, the environments to reset; all where left out.

        Returns:
            Newest context frames (n,R,R,3) uint8, and info with `origin`.

        Raises:
            ConfigError: an unknown option.
            ShapeError: seeds or a mask that do not fit, or contexts that do not fit the model.
            ResetNeeded: only some are to be reset before the first reset of all.
        """
        for name in options or {}:
            if name != "reset_mask":
                raise ConfigError(unknown_name("option", str(name), ["reset_mask"]))
        self._require_open()
        mask = np.ones(self.num_envs, np.bool_)
        if options and "reset_mask" in options:
            mask = require_reset_mask(options["reset_mask"], self.num_envs)
        if self._session is None and not mask.all():
            raise ResetNeeded("there is nothing yet that could be kept. Call reset() without a mask first.")
        for env, one in enumerate(require_seeds(seed, self.num_envs)):
            if mask[env] and one is not None:
                self._generators[env], self._seeds[env] = seeding.np_random(one)
        self._moved, self._pending = None, self._draw(mask)
        self._begin()
        return self._frames.copy(), _masked(mask, origin=self._origins)

    def step(
        self, actions: npt.ArrayLike
    ) -> tuple[Frames, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Imagine one frame in every environment; with `"NextStep"`, those that are over begin anew instead.

        Args:
            actions: (n,A), taken at the present frame, on the way to the next; not looked at where one begins anew.

        Returns:
            Frames (n,R,R,3) uint8, rewards (n,) float64, terminated and truncated (n,) bool, and info. With
            `"SameStep"`, info holds `final_obs` and `final_info` of those that ended and began anew.

        Where imagining or a reward fails, no environment has moved. Where others cannot begin anew after that, the step
        has been taken: the next call, whatever its actions, lets them begin and returns it.

        Raises:
            ShapeError: an action of the wrong shape, outside the space or not finite (names environment and rule);
                or what a reward function or a context source returned does not fit.
            ResetNeeded: reset was never called, or an environment is over and autoreset is disabled.
            SessionError: the environments are closed.
        """
        self._require_started()
        if self._moved is None:
            self._begin()  # where a reset failed
            over = self._over()
            if over.any() and self.autoreset_mode is AutoresetMode.DISABLED:
                raise ResetNeeded(f"the episodes of environments {np.flatnonzero(over).tolist()} are over. Reset them.")
            renewed = over & (self.autoreset_mode is AutoresetMode.NEXT_STEP)
            wanted = require_actions(actions, self._box, self.num_envs, ~renewed, self.action_names)
            self._moved = self._imagine(wanted, ~renewed)
        result = self._begin_after(self._moved)
        self._moved = None
        return result

    def render(self) -> tuple[Frames, ...] | None:
        """The newest frame (R,R,3) uint8 of each environment; None without a render mode."""
        if self.render_mode is None:
            return None
        self._require_started()
        return tuple(self._frames.copy())

    def close_extras(self, **kwargs: Any) -> None:
        """Free the memory of the imagination; `close` calls this once."""
        if self._session is not None:
            self._session.close()

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The random generator of each environment."""
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seed of each environment's generator."""
        return tuple(self._seeds)

    # Beginning, moving, ending

    def _draw(self, mask: npt.NDArray[np.bool_]) -> _Beginning | None:
        """Draw what the environments in the mask (n,) begin with."""
        envs = np.flatnonzero(mask).tolist()
        if not envs:
            return None
        generators = [self._generators[env] for env in envs]
        before = [rng.bit_generator.state for rng in generators]
        # First, so that they do not depend on how much a source draws.
        seeds = [int(rng.integers(2**63)) for rng in generators]
        try:
            return _Beginning(envs, seeds, *draw_contexts(self.contexts, generators, self._context_shape))
        except BaseException:
            for rng, state in zip(generators, before, strict=True):
                rng.bit_generator.state = state
            raise

    def _begin(self) -> None:
        """Let the environments begin for which there are contexts."""
        if self._pending is None:
            return
        envs, seeds, contexts, origins = self._pending
        frames = torch.from_numpy(contexts).permute(0, 1, 4, 2, 3)
        if self._session is None:
            self._session = self.model.start(frames, seed=seeds, sampling=self.sampling)
        else:
            self._session.reset(frames, envs, seed=seeds)
        self._frames[envs] = contexts[:, -1]
        self._origins[envs] = origins
        self._elapsed[envs] = 0
        self._pending = None

    def _imagine(self, actions: Actions, moved: npt.NDArray[np.bool_]) -> _Moved:
        """Step the environments in the mask (n,), or none of them where that or their reward fails."""
        rewards, entropy = np.zeros(self.num_envs), np.zeros(self.num_envs, np.float32)
        tokens = np.zeros((self.num_envs, self.model.transformer.layout.dynamics_tokens), np.int64)
        if moved.any():
            session = self._require_started()
            step = session.step(torch.from_numpy(actions[moved]), np.flatnonzero(moved).tolist())
            assert step.frame is not None, "a step decodes unless told otherwise"
            frames = (step.frame * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
            try:
                rewards[moved] = self._rewards(step, frames)
            except BaseException:
                session.take_back()
                raise
            tokens[moved], entropy[moved] = step.tokens.cpu().numpy(), step.entropy.float().cpu().numpy()
            self._frames[moved] = frames
            self._elapsed[moved] += 1
        return _Moved(moved, rewards, self._over(), {"tokens": tokens, "entropy": entropy})

    def _rewards(self, step: Step, frames: Frames) -> npt.NDArray[Any]:
        """Rewards (k,) of a step to frames (k,R,R,3)."""
        if self.reward is not None:
            return call_reward(self.reward, frames)
        assert step.reward is not None, "there is a reward head where there is no function"
        rewards: npt.NDArray[Any] = step.reward.cpu().numpy()
        return rewards

    def _begin_after(
        self, step: _Moved
    ) -> tuple[Frames, npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Let those begin anew that have to after a step, and say what it came to; where that fails, call it again."""
        moved, info = step.moved, {}
        truncated = step.over & moved
        anew = ~moved
        if self.autoreset_mode is AutoresetMode.SAME_STEP and truncated.any():
            anew, info = truncated, self._final(truncated, step.told)
            moved = moved & ~truncated
        if self._pending is None:
            self._pending = self._draw(anew)
        self._begin()
        info |= _masked(moved, **step.told) | _masked(np.ones_like(moved), origin=self._origins)
        return self._frames.copy(), step.rewards, np.zeros_like(truncated), truncated, info

    def _final(self, ended: npt.NDArray[np.bool_], told: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
        """Info on the last step of episodes that ended (n,) and are about to begin anew."""
        frames = np.full(self.num_envs, None, object)
        for env in np.flatnonzero(ended):
            frames[env] = self._frames[env].copy()
        info = _masked(ended, **told, origin=self._origins)
        return {"final_obs": frames, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}

    def _over(self) -> npt.NDArray[np.bool_]:
        over: npt.NDArray[np.bool_] = self._elapsed >= self.max_episode_steps
        return over

    def _require_open(self) -> None:
        if self.closed:
            raise SessionError("these environments are closed. Make new ones.")

    def _require_started(self) -> Session:
        self._require_open()
        if self._session is None:
            raise ResetNeeded("there is no episode yet. Call reset() first.")
        return self._session


class _Moved(NamedTuple):
    """A step of the environments, all arrays (n, ...)."""

    moved: npt.NDArray[np.bool_]
    rewards: npt.NDArray[np.float64]
    over: npt.NDArray[np.bool_]
    told: dict[str, npt.NDArray[Any]]
    """What info says of those that moved."""


class _Beginning(NamedTuple):
    """What some environments begin with."""

    envs: list[int]
    seeds: list[int]
    contexts: Frames
    """(len(envs),t,R,R,3)"""
    origins: list[str]


def _masked(mask: npt.NDArray[np.bool_], **values: npt.NDArray[Any]) -> dict[str, Any]:
    """Values (n,...) of the environments in the mask (n,), in the form of Gymnasium's vector info."""
    info: dict[str, Any] = {}
    for key, value in values.items():
        kept = np.full_like(value, None if value.dtype == object else 0)
        kept[mask] = value[mask]
        info[key], info[f"_{key}"] = kept, mask.copy()
    return info
