"""Folders of video files, with or without tables of actions beside them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ivideogpt.data.episode import JsonValue
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.data.sources.video import Video
from ivideogpt.data.sources.video_actions import actions_beside, read_actions
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

VIDEO_SUFFIXES = (".mp4", ".webm", ".mkv", ".avi", ".gif", ".mov")
CAMERA = "video"


def recognises(path: Path) -> bool:
    """Whether `path` is a video by its suffix, or a folder with one in it or below it."""
    try:
        path = look_at(path, EpisodeError)
        return _is_video(path.name) if path.is_file() else next(_walk(path), None) is not None
    except (EpisodeError, OSError):
        return False


class VideoFolder:
    """Every video in a folder and the folders below it, or one video.

    Videos are told by their suffix; other files, and names that begin with a dot, are passed over. The order is that
    of the paths, numbers in them compared as numbers; names are the paths below the folder.
    Beside `clip.mp4` may lie its actions: `clip.npy`, `clip.parquet` or `clip.csv`, a row for each frame or one fewer.

    Raises:
        EpisodeError: the path is missing, cannot be searched, or no video is in it.
    """

    def __init__(self, path: Path | str) -> None:
        path = look_at(path, EpisodeError)
        self.root = path.parent if path.is_file() else path
        suffixes = ", ".join(VIDEO_SUFFIXES)
        if path.is_file():
            if not _is_video(path.name):
                raise EpisodeError(f"{path}: no video by its name; the suffix must be one of {suffixes}. Rename it.")
            self._names = [path.name]
            return
        if not path.is_dir():
            raise EpisodeError(f"{path}: no such file or folder. Give a video, or a folder of videos.")
        try:
            self._names = sorted(_walk(path), key=_by_number)
        except OSError as error:
            raise EpisodeError(
                f"{error.filename or path}: this folder cannot be searched ({error.strerror}). Change its permissions."
            ) from error
        if not self._names:
            raise EpisodeError(f"{path}: no video ({suffixes}) in it or below it. Give another folder.")

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """Path of video `index` below the folder."""
        return self._names[index]

    def read(self, index: int) -> Recording:
        """Video `index`; its length is known where there are actions, for which frames are counted."""
        path = self.root / self._names[index]
        with Video(path) as video:
            rate, (stream, streams) = video.frame_rate, video.stream
            table = actions_beside(path)
            length = None if table is None else video.count()
        actions = None if table is None or length is None else read_actions(table, length)
        metadata: dict[str, JsonValue] = {"video_stream": stream, "video_streams": streams} if streams > 1 else {}
        return Recording(
            name=self._names[index],
            cameras={CAMERA: partial(stream_video, path)},
            length=length,
            actions=None if actions is None else actions.values,
            action_parts=() if actions is None else actions.parts,
            frame_rate=rate,
            metadata=metadata,
        )


def stream_video(path: Path) -> Iterator[Frame]:
    """All frames of a video file, which is closed behind them; raises as `Video.frames`."""
    with Video(path) as video:
        yield from video.frames()


def _is_video(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES)


def _walk(root: Path) -> Iterator[str]:
    """Paths of videos below `root`; every folder is entered once, however many links lead there."""

    def refuse(error: OSError) -> None:
        raise error

    entered: set[tuple[int, int]] = set()
    for folder, below, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in entered:
            below.clear()
            continue
        entered.add((status.st_dev, status.st_ino))
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in files if _is_video(name))


def _by_number(name: str) -> tuple[list[list[tuple[bool, int, str]]], str]:
    """Sort key of a path: digits by their value, all else by its letters."""
    parts = [re.findall(r"[0-9]+|[^0-9]+", part) for part in name.split("/")]
    keys = [[(False, int(p), "") if p[0] in "0123456789" else (True, 0, p) for p in part] for part in parts]
    return keys, name
