"""What the files of the published research checkpoints do not say: whether there is a goal, and the trained frames."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from pathlib import Path

from ivideogpt.config import TransformerConfig
from ivideogpt.errors import ConfigError


@dataclass(frozen=True)
class Published:
    """What a published checkpoint is; its files say neither whether it has a goal nor its trained frames."""

    context_frames: int
    """t, the goal included."""
    trained_frames: int
    """Frames T of the sequences it was trained on, context and goal included."""
    resolution: int = 64
    """Pixels."""
    goal: bool = False
    """Whether the first context frame is the goal."""


PUBLISHED = {
    "thuml/ivideogpt-oxe-64-act-free": Published(2, 16),
    "thuml/ivideogpt-oxe-64-act-free-medium": Published(2, 16),
    "thuml/ivideogpt-oxe-256-act-free": Published(2, 16, resolution=256),
    "thuml/ivideogpt-oxe-64-goal-cond": Published(2, 17, goal=True),
    "thuml/ivideogpt-bair-64-act-free": Published(1, 16),
    "thuml/ivideogpt-bair-64-act-cond": Published(1, 16),
    "thuml/ivideogpt-robonet-64-act-cond": Published(2, 12),
    "thuml/ivideogpt-vp2-robosuite-64-act-cond": Published(2, 12),
    "thuml/ivideogpt-vp2-robodesk-64-act-cond": Published(2, 12),
}
"""Published checkpoints by their Hub id."""
USUAL_FRAMES = 16
"""Frames of the segments that most of them were trained on, a goal not counted."""


@dataclass(frozen=True)
class Told:
    """What the official layout does not say of a transformer; None where not known."""

    goal: bool | None = None
    trained_frames: int | None = None

    def settled(self, given: Told, name: str | Path) -> Told:
        """What is known, and what the caller gave where nothing is.

        Raises:
            ConfigError: both are there and differ.
        """
        for field_name in ("goal", "trained_frames"):
            known, value = getattr(self, field_name), getattr(given, field_name)
            if None not in (known, value) and known != value:
                raise ConfigError(
                    f"{field_name} is {value!r}, but model {str(name)!r} is known to have {field_name} {known!r}. "
                    f"Leave {field_name} out."
                )
        return Told(
            given.goal if self.goal is None else self.goal,
            given.trained_frames if self.trained_frames is None else self.trained_frames,
        )

    def completed(self, name: str | Path, config: TransformerConfig) -> Told:
        """What nobody said is assumed, with a warning."""
        goal = bool(self.goal)
        usual = USUAL_FRAMES + goal
        frames = self.trained_frames or (usual if usual > config.layout.context_frames else None)
        unsaid = [
            f"{what}={value}"
            for what, value, known in (("goal", goal, self.goal), ("trained_frames", frames, self.trained_frames))
            if known is None
        ]
        if unsaid:
            warnings.warn(
                f"model {str(name)!r} is in the official layout, which does not say everything. Assumed: "
                f"{', '.join(unsaid)}. Give goal= and trained_frames= (--goal and --trained-frames) if that is not "
                f"so. Both are known of the published ids, such as {next(iter(PUBLISHED))}.",
                stacklevel=4,
            )
        return Told(goal, frames)

    def applied(self, config: TransformerConfig) -> TransformerConfig:
        """The configuration of the transformer of which this is known.

        Raises:
            ConfigError: a goal needs 2 context frames, and training frames beyond the context.
        """
        if self.trained_frames is not None and self.trained_frames <= config.layout.context_frames:
            raise ConfigError(
                f"trained_frames is {self.trained_frames}; it counts the {config.layout.context_frames} context frames "
                "too, so it must be more."
            )
        layout = dataclasses.replace(config.layout, goal=bool(self.goal))
        return TransformerConfig.checked(**{**dict(config), "layout": layout, "trained_frames": self.trained_frames})


def known_of(name: str | Path, config: TransformerConfig, resolution: int) -> Told:
    """What is known of a checkpoint in the official layout: a published id, a folder called like one, or any other.

    There is a warning where the files are not what was published under that id.
    """
    place = Path(name).expanduser().absolute()
    cached = {f"models--{known.replace('/', '--')}": known for known in PUBLISHED}  # as the Hub's own cache calls them
    called = {known.split("/")[1]: known for known in PUBLISHED}
    identity = next((cached[part] for part in place.parts if part in cached), called.get(place.name))
    if identity is None:
        return Told(None, config.trained_frames)
    published, found = PUBLISHED[identity], (config.layout.context_frames, resolution)
    if found != (published.context_frames, published.resolution):
        warnings.warn(
            f"model {str(name)!r} has {found[0]} context frames of {found[1]} pixels; {identity} was published with "
            f"{published.context_frames} of {published.resolution} pixels. Goal and trained frames are taken from it "
            "nonetheless.",
            stacklevel=4,
        )
    return Told(published.goal, published.trained_frames)
