"""Where an episode of a LeRobot data set lies, in whichever version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Place:
    """Where the frames of an episode begin: a video file and the number of the first frame in it."""

    path: Path
    start: int


@dataclass(frozen=True)
class Entry:
    """What a data set's list says of one episode.

    Attributes:
        number: its `episode_index`.
        length: frames T.
        tasks: texts that are listed with it, in no order that means something.
        table: file with its rows.
        whole: whether its table and its videos hold no other episode.
        videos: place of each camera's frames, by key.
    """

    number: int
    length: int
    tasks: tuple[str, ...]
    table: Path
    whole: bool
    videos: Mapping[str, Place]


class Layout(Protocol):
    """The list of episodes of one version; `numbers` are the `episode_index` of all, broken ones included, sorted."""

    numbers: npt.NDArray[np.int64]

    def entry(self, number: int) -> Entry:
        """Where episode `number` lies; raises EpisodeError where the list does not say."""
        ...

    def task(self, number: int) -> str:
        """Text of a task; raises EpisodeError where the table of tasks is broken or lacks it."""
        ...
