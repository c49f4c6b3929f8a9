"""`ivideogpt record`: episodes from a simulator into a folder."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import Field, model_validator
from tyro.conf import Positional

from ivideogpt.cli.console import finish, progress, report
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import ConfigError


class Options(BaseOptions):
    """Record episodes from a simulator, one .npz file each. The same seed gives the same episode.

    In pusht the block is pushed to the goal about as people push it: mostly slowly, with corrections and pauses. In
    pusht-fast it is pushed faster and anywhere.
    """

    environment: Positional[str]
    """pusht or pusht-fast."""
    episodes: int = Field(ge=1)
    """How many episodes to record."""
    out: Path
    """Folder for the episodes."""
    seed: int = Field(0, ge=0)
    """Seed of the first episode; the others follow. Below 100,000 for training, from 900,000 for evaluation only."""
    length: int = Field(100, ge=2)
    """Frames of an episode."""
    behaviours: str | None = None
    """Weights of the behaviours slow, medium, fast and random, such as slow=0.6,medium=0.2,random=0.2, instead of the
    environment's own."""
    overwrite: bool = False
    """Replace the episodes that the folder holds."""
    resume: bool = False
    """Keep the episodes that the folder holds and record the missing ones."""
    as_json: Json = False
    """Print the figures as JSON."""

    @model_validator(mode="after")
    def _check(self) -> Options:
        if self.overwrite and self.resume:
            raise ConfigError("--overwrite and --resume exclude each other: replace what is there, or add to it.")
        return self


def run(options: Options) -> None:
    """Record the episodes."""
    from ivideogpt.envs.pusht_behaviours import parse_mixture
    from ivideogpt.envs.record import record_episodes

    mixture = None if options.behaviours is None else parse_mixture(options.behaviours)
    start = time.monotonic()
    with progress(f"recording {options.environment}", options.episodes, "episode") as bar:
        record_episodes(
            options.environment,
            options.episodes,
            options.out,
            seed=options.seed,
            length=options.length,
            overwrite=options.overwrite,
            resume=options.resume,
            mixture=mixture,
            progress=lambda done, _: bar.update(done),
        )
    figures = {
        "episodes": options.episodes,
        "frames": options.episodes * options.length,
        "seconds": round(time.monotonic() - start, 2),
        "out": options.out,
    }
    report(figures, options.as_json)
    finish(
        wrote=[("episodes", options.out)],
        next_steps=[f"ivideogpt train tokenizer --data {options.out} --out runs/tokenizer"],
        as_json=options.as_json,
    )
