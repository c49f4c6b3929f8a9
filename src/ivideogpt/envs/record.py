"""Recording episodes from a simulator: everything about an episode follows from its seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import read_episode, write_episode
from ivideogpt.envs.pusht import FRAME_RATE, PushT, world_to_action
from ivideogpt.envs.pusht_policies import Policy, ScriptedPusher, SmoothWanderer
from ivideogpt.errors import EpisodeError, InputError, unknown_name
from ivideogpt.files import require_free_output

TRAINING_SEEDS = range(100_000)
EVALUATION_SEEDS_FROM = 900_000
_LAST_SEED = 10**9
_SCRIPTED_SHARE = 0.7

Progress = Callable[[int, int], None]


def record_episodes(
    env_name: str,
    episodes: int,
    out: Path | str,
    *,
    seed: int = 0,
    length: int = 100,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
) -> list[Path]:
    """Record episodes into `out/episode_{seed:06d}.npz`, one file for each seed from `seed` on.

    Args:
        env_name: the simulator; `pusht` is the one there is.
        episodes: how many, at least 1.
        out: folder, made if need be.
        seed: seed of the first episode. Below 100,000 for training; 900,000 and up for evaluation only.
        length: frames of an episode, at least 2.
        overwrite: allow a folder that is not empty; episode files in it are removed first.
        resume: keep the episodes that `out` already holds and record the missing ones.
        progress: called with (done, total) after each episode.

    Returns:
        The paths of all episodes, in the order of their seeds.

    Raises:
        InputError: an unknown simulator, a bad number, or seeds that mix training with evaluation.
        OutputError: `out` is not empty and neither `overwrite` nor `resume` is set, or it cannot be written.
    """
    if env_name not in _RECORDERS:
        raise InputError(unknown_name("environment", env_name, _RECORDERS))
    _check_seeds(seed, episodes)
    _check_length(length)
    out = Path(out)
    require_free_output(out, overwrite=overwrite or resume, cure="--overwrite or --resume")
    if overwrite and not resume:
        for old in out.glob("episode_*.npz"):
            old.unlink()
    paths = [out / f"episode_{number:06d}.npz" for number in range(seed, seed + episodes)]
    for done, path in enumerate(paths):
        if not (resume and _is_recorded(path, env_name, seed + done, length)):
            write_episode(path, _RECORDERS[env_name](seed + done, length))
        if progress is not None:
            progress(done + 1, episodes)
    return paths


def pusht_episode(seed: int, length: int = 100) -> Episode:
    """Record one Push-T episode in memory; the same seed and length give the same episode.

    Seven in ten episodes push the block by script, the others move smoothly at random (metadata `policy`). An
    episode goes on after success. States are those of `PushT`.

    Raises:
        InputError: a seed that is neither for training nor for evaluation, or fewer than 2 frames.
    """
    _check_seeds(seed, 1)
    _check_length(length)
    rng = np.random.default_rng(seed)
    scripted = rng.random() < _SCRIPTED_SHARE
    policy: Policy = ScriptedPusher(rng) if scripted else SmoothWanderer(rng)
    env = PushT()
    frame, info = env.reset(seed=seed)
    frames, actions, rewards, states = [], [], [], []
    reward = 0.0
    for _ in range(length):
        action = world_to_action(policy(info["state"]))
        frames.append(frame)
        actions.append(action)
        rewards.append(reward)
        states.append(info["state"])
        frame, reward, _, _, info = env.step(action)
    env.close()
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        states=np.array(states, np.float32),
        metadata={
            "env": "pusht",
            "seed": seed,
            "policy": "scripted" if scripted else "smooth",
            "frame_rate": FRAME_RATE,
        },
    )


_RECORDERS: dict[str, Callable[[int, int], Episode]] = {"pusht": pusht_episode}


def _check_seeds(seed: int, episodes: int) -> None:
    if episodes < 1:
        raise InputError(f"episodes is {episodes}; record at least 1.")
    last = seed + episodes - 1
    trains = seed in TRAINING_SEEDS and last in TRAINING_SEEDS
    evaluates = seed >= EVALUATION_SEEDS_FROM and last <= _LAST_SEED
    if not trains and not evaluates:
        raise InputError(
            f"seeds {seed}..{last}: training episodes use seeds 0..{TRAINING_SEEDS[-1]}, evaluation episodes "
            f"{EVALUATION_SEEDS_FROM}..{_LAST_SEED}, and one recording stays in one of the two. "
            "Choose another first seed or fewer episodes."
        )


def _check_length(length: int) -> None:
    if length < 2:
        raise InputError(f"length is {length} frames; an episode needs at least 2.")


def _is_recorded(path: Path, env_name: str, seed: int, length: int) -> bool:
    """Whether `path` holds exactly the episode that would be recorded there."""
    try:
        episode = read_episode(path)
    except EpisodeError:
        return False
    made = (episode.metadata.get("env"), episode.metadata.get("seed"), episode.length)
    return made == (env_name, seed, length)
