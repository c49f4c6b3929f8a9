"""Recording episodes from a simulator: everything about an episode follows from its seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ivideogpt.data.episode import Episode, JsonValue
from ivideogpt.data.sources.npz import read_episode, write_episode
from ivideogpt.envs.pusht import FRAME_RATE, PushT, world_to_action
from ivideogpt.envs.pusht_behaviours import BEHAVIOURS, MIXTURES, checked_mixture, draw_behaviour
from ivideogpt.errors import EpisodeError, InputError, unknown_name
from ivideogpt.files import require_free_output
from ivideogpt.locks import Claim

TRAINING_SEEDS = range(100_000)
EVALUATION_SEEDS_FROM = 900_000
_LAST_SEED = 10**9
_TRACKS: dict[str, JsonValue] = {
    "state_names": ["agent x", "agent y", "block x", "block y", "block angle"],
    "state_angles": [4],  # columns that are angles, in radians
    "action_names": ["target x", "target y"],
    "action_low": [-1.0, -1.0],
    "action_high": [1.0, 1.0],
}

Progress = Callable[[int, int], None]


def record_episodes(
    environment: str,
    episodes: int,
    out: Path | str,
    *,
    seed: int = 0,
    length: int = 100,
    overwrite: bool = False,
    resume: bool = False,
    mixture: Mapping[str, float] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Record episodes into `out/episode_{seed:06d}.npz`, one file for each seed from `seed` on.

    Args:
        environment: `pusht` or `pusht-fast`, as for `pusht_episode`.
        episodes: how many, at least 1.
        out: folder, made if need be.
        seed: seed of the first episode. Below 100,000 for training; 900,000 and up for evaluation only.
        length: frames of an episode, at least 2.
        overwrite: allow a folder that is not empty; episode files in it are removed first.
        resume: keep the episodes that `out` already holds and record the missing ones; episodes of another length or
            mixture count as missing.
        mixture: weights of the behaviours, as for `pusht_episode`.
        progress: called with (done, total) after each episode.

    Returns:
        The paths of all episodes, in the order of their seeds.

    Raises:
        InputError: an unknown environment or behaviour, a bad number, or seeds that mix training with evaluation.
        OutputError: `out` is not empty and neither `overwrite` nor `resume` is set, or it cannot be written.
    """
    shares = _shares(environment, mixture)
    _check_seeds(seed, episodes)
    _check_length(length)
    out = Path(out)
    require_free_output(out, overwrite=overwrite or resume, cure="--overwrite or --resume")
    claim = Claim(out, shared=resume)  # several may record what is missing
    if overwrite and not resume:
        for old in out.glob("episode_*.npz"):
            old.unlink()
    paths = [out / f"episode_{number:06d}.npz" for number in range(seed, seed + episodes)]
    for done, path in enumerate(paths):
        if not (resume and _is_recorded(path, seed + done, length, shares)):
            write_episode(path, pusht_episode(seed + done, length, environment, shares))
        if progress is not None:
            progress(done + 1, episodes)
    claim.release()
    return paths


def pusht_episode(
    seed: int, length: int = 100, environment: str = "pusht", mixture: Mapping[str, float] | None = None
) -> Episode:
    """Record one Push-T episode in memory; the same arguments give the same episode, which goes on after success.

    Args:
        seed: below 100,000 for training; 900,000 and up for evaluation only.
        length: frames, at least 2.
        environment: `pusht`, pushed as people push, or `pusht-fast`, pushed faster and anywhere.
        mixture: weights of the behaviours `slow`, `medium`, `fast` and `random`, instead of the environment's own.

    Returns:
        The episode, its states those of `PushT`. Metadata `behaviour` is the one it has, `behaviours` the shares
        it was drawn from.

    Raises:
        InputError: a seed that is neither for training nor for evaluation, fewer than 2 frames, an unknown
            environment or behaviour, or weights that are no weights.
    """
    _check_seeds(seed, 1)
    _check_length(length)
    shares = _shares(environment, mixture)
    rng = np.random.default_rng(seed)
    behaviour = draw_behaviour(shares, rng)
    policy = BEHAVIOURS[behaviour](rng)
    env = PushT()
    frame, info = env.reset(seed=seed)
    frames, actions, rewards, states, contacts = [], [], [], [], []
    reward = 0.0
    for _ in range(length):
        action = world_to_action(policy(info["state"]))
        frames.append(frame)
        actions.append(action)
        rewards.append(reward)
        states.append(info["state"])
        contacts.append(info["contacts"])
        frame, reward, _, _, info = env.step(action)
    env.close()
    return Episode(
        frames=np.stack(frames),
        actions=np.stack(actions),
        rewards=np.array(rewards, np.float32),
        states=np.array(states, np.float32),
        contacts=np.array(contacts, np.float32),
        metadata={
            "env": "pusht",
            "seed": seed,
            "behaviour": behaviour,
            "behaviours": shares,
            "frame_rate": FRAME_RATE,
            **_TRACKS,
        },
    )


def _shares(environment: str, mixture: Mapping[str, float] | None) -> dict[str, float]:
    if environment not in MIXTURES:
        raise InputError(unknown_name("environment", environment, MIXTURES))
    return checked_mixture(MIXTURES[environment] if mixture is None else mixture)


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


def _is_recorded(path: Path, seed: int, length: int, shares: dict[str, float]) -> bool:
    """Whether `path` holds exactly the episode that would be recorded there."""
    try:
        episode = read_episode(path)
    except EpisodeError:
        return False
    made = tuple(episode.metadata.get(key) for key in ("env", "seed", "behaviours"))
    return (*made, episode.length) == ("pusht", seed, shares, length)
