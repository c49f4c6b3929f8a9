"""Stores and data sets back into formats that others read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ivideogpt.data.episode import Episode
from ivideogpt.data.formats import open_source
from ivideogpt.data.shard import received
from ivideogpt.data.sources.npz import write_episode
from ivideogpt.data.sources.recording import Recording, Source
from ivideogpt.data.store import StoreSource, is_store
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import folder_written_atomically


def open_any(path: Path) -> Source:
    """What lies at a path, a store or a data set of any format that there is a reader for.

    Raises:
        EpisodeError: neither.
    """
    return StoreSource(path) if is_store(path) else open_source(path)[1]


def write_npz(recordings: Iterator[Recording], folder: Path, camera: str | None = None) -> Iterator[str]:
    """Write episode files (.npz) as our trainings and the official code read them; whole or not at all.

    Args:
        recordings: one in memory at a time.
        folder: takes the place of an older one.
        camera: whose frames; None takes the only one.

    Yields:
        The name of each episode, once it is written.

    Raises:
        EpisodeError: an episode lacks the camera, or has several and none was named; or two have one name.
        OutputError: the disk is full, or the folder cannot be written.
    """
    with folder_written_atomically(folder) as temporary:
        for recording in recordings:
            path = temporary / f"{recording.name.replace('/', '_')}.npz"
            if path.exists():
                raise EpisodeError(f"{recording.name}: two episodes would be {path.name}. Rename one in its source.")
            write_episode(path, _as_episode(recording, camera))
            yield recording.name


def _as_episode(recording: Recording, camera: str | None) -> Episode:
    if camera is None and len(recording.cameras) > 1:
        raise EpisodeError(
            f"{recording.name} has the cameras {', '.join(recording.cameras)}; an episode file has one. Name it with "
            "--camera-key."
        )
    name = camera or next(iter(recording.cameras))
    if name not in recording.cameras:
        raise EpisodeError(f"{recording.name}: {unknown_name('camera key', name, recording.cameras)}")
    rate = {} if recording.frame_rate is None else {"frame_rate": recording.frame_rate}
    language = {} if recording.language is None else {"language": recording.language}
    return Episode(
        frames=np.stack(list(recording.cameras[name]())),
        actions=recording.actions,
        rewards=received(recording),
        states=recording.states,
        metadata={**recording.metadata, **rate, **language},
    )
