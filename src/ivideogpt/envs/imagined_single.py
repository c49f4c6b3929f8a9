"""One imagined world as a Gymnasium environment.

Shapes: t context frames, A action size, M dynamics tokens a frame, R resolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode

from ivideogpt.config import SamplingConfig
from ivideogpt.envs.imagined import FRAME_RATE, RENDER_MODES, Actions, Contexts, Frames, ImaginedVectorEnv
from ivideogpt.envs.imagined_setup import DEFAULT_MODEL, Bound, RewardFunction
from ivideogpt.inference import Imagines


class ImaginedEnv(gymnasium.Env[Frames, Actions]):
    """One imagined world: an `ImaginedVectorEnv` of one, without its autoreset.

    The arguments, spaces and rewards are those of `ImaginedVectorEnv`; info has `origin` and, of a step, `tokens` (M,)
    and `entropy`. `gymnasium.make` keeps `max_episode_steps` for a wrapper that can only shorten episodes; for longer
    ones than the model's `trained_horizon` call this class itself, or `gymnasium.make_vec`.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": FRAME_RATE}

    def __init__(
        self,
        *,
        model: str | Path | Imagines = DEFAULT_MODEL,
        contexts: Contexts | None = None,
        reward: RewardFunction | None = None,
        max_episode_steps: int | None = None,
        action_low: Bound | None = None,
        action_high: Bound | None = None,
        sampling: SamplingConfig | None = None,
        device: str | torch.device | None = None,
        render_mode: str | None = None,
    ) -> None:
        self._world = ImaginedVectorEnv(
            model=model,
            contexts=contexts,
            reward=reward,
            max_episode_steps=max_episode_steps,
            action_low=action_low,
            action_high=action_high,
            autoreset_mode=AutoresetMode.DISABLED,
            sampling=sampling,
            device=device,
            render_mode=render_mode,
        )
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": self._world.metadata["render_fps"]}
        self.action_names = self._world.action_names
        """Name of each component of an action; empty where the model does not know them."""
        self.observation_space = self._world.single_observation_space
        self.action_space = self._world.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Frames, dict[str, Any]]:
        """Begin an episode; see `ImaginedVectorEnv.reset`. Returns the newest context frame and info."""
        frames, infos = self._world.reset(seed=seed, options=options)
        self._np_random, self._np_random_seed = self._world.np_random[0], self._world.np_random_seed[0]
        return frames[0], _only(infos)

    def step(self, action: npt.ArrayLike) -> tuple[Frames, float, bool, bool, dict[str, Any]]:
        """Imagine one frame; see `ImaginedVectorEnv.step`. The usual five of Gymnasium."""
        frames, rewards, terminated, truncated, infos = self._world.step([action])  # type: ignore[arg-type]
        return frames[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), _only(infos)

    def render(self) -> Frames | None:
        """The newest frame (R,R,3) uint8; None without a render mode."""
        frames = self._world.render()
        return None if frames is None else frames[0]

    def close(self) -> None:
        """Free the memory of the imagination."""
        self._world.close()


def _only(infos: dict[str, Any]) -> dict[str, Any]:
    """The info of the only environment."""
    return {key: values[0] for key, values in infos.items() if not key.startswith("_")}
