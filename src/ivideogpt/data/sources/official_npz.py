"""Folders of episode files (.npz) as others wrote them: any camera key, any number type, actions or none.

Cameras are the arrays (T, H, W, 3). The official converters write `image` int64 and `action` float64, sometimes one row
short, for example `train_eps_00000010.npz` or `train/traj_00000.npz`; our own episodes are such files, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.npz import (
    ACTION_KEY,
    METADATA_KEY,
    REWARD_KEY,
    STATE_KEY,
    as_float32,
    as_uint8,
    claimed_shape,
    opened,
    read_array,
    read_metadata,
)
from ivideogpt.data.sources.recording import Frame, Recording, as_track
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

_SPLITS = ("train", "val", "validation", "test")


def recognises(path: Path) -> bool:
    """Whether there are .npz files in the folder, or in folders of it that are called as splits."""
    try:
        return bool(_files(look_at(path, EpisodeError)))
    except (EpisodeError, OSError):
        return False


class OfficialNpz:
    """The episode files of a folder, or of its folders `train`, `val`, `test`, in the order of their numbers.

    Args:
        path: the folder.
        split: one of the folders; None takes all.

    Raises:
        EpisodeError: there is no such folder, or no episode file in it.
    """

    def __init__(self, path: Path | str, split: str | None = None) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.is_dir():
            raise EpisodeError(f"{self.root}: no such folder. Give the one that the episode files (.npz) are in.")
        self._paths = [file for file in _files(self.root) if split in (None, _split_of(self.root, file))]
        if not self._paths:
            of_split = "" if split is None else f" of split {split!r}"
            raise EpisodeError(f"{self.root}: no episode file (.npz){of_split} in it. Give another folder.")

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, index: int) -> str:
        """The file's path below the folder, without its ending."""
        return self._paths[index].relative_to(self.root).with_suffix("").as_posix()

    def read(self, index: int) -> Recording:
        """Episode `index`; its frames are read when they are asked for."""
        path = self._paths[index]
        with opened(path) as archive:
            shapes = {key: claimed_shape(archive, key, "key") for key in archive.files if key != METADATA_KEY}
            cameras = {key: shape for key, shape in shapes.items() if len(shape) == 4 and shape[-1] == 3}
            if not cameras:
                found = ", ".join(f"{key} {shape}" for key, shape in shapes.items())
                raise EpisodeError(f"no camera, an array (T, H, W, 3), in it; it holds {found or 'nothing'}.")
            lengths = {key: shape[0] for key, shape in cameras.items()}
            if len(set(lengths.values())) > 1:
                raise EpisodeError(f"cameras have different lengths, {lengths}. Cut them to one.")
            length = next(iter(lengths.values()))
            actions = _actions(archive, length) if ACTION_KEY in archive.files else None
            rewards, states = (_track(archive, key, length) for key in (REWARD_KEY, STATE_KEY))
            metadata = read_metadata(archive)
        rate = metadata.get("frame_rate")
        return Recording(
            name=self.name(index),
            cameras={key: _Camera(path, key) for key in cameras},
            length=length,
            actions=actions,
            action_parts=_parts(metadata.get("action_names"), actions),
            rewards=None if rewards is None or rewards.shape[1] != 1 else rewards[:, 0],
            states=states,
            split=_split_of(self.root, path),
            frame_rate=float(rate) if isinstance(rate, (int, float)) and rate > 0 else None,
            metadata=metadata,
        )


class _Camera:
    """Streams one array of an episode file."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def __call__(self) -> Iterator[Frame]:
        with opened(self.path) as archive:
            frames = as_uint8(read_array(archive, self.key, "camera key"))
        yield from frames


def _actions(archive: np.lib.npyio.NpzFile, length: int) -> npt.NDArray[np.float32]:
    values = as_float32("actions", read_array(archive, ACTION_KEY, "action key"))
    if values.ndim and len(values) == length - 1:
        values = np.concatenate([values, values[-1:]])
    return as_track("actions", values, length)


def _track(archive: np.lib.npyio.NpzFile, key: str, length: int) -> npt.NDArray[np.float32] | None:
    if key not in archive.files:
        return None
    return as_track(key, as_float32(key, read_array(archive, key, "key")), length)


def _parts(names: Any, actions: npt.NDArray[np.float32] | None) -> tuple[tuple[str, int], ...]:
    """A part for each column that has a name."""
    if actions is None or not isinstance(names, list) or len(names) != actions.shape[1]:
        return ()
    return tuple((str(name), 1) for name in names)


def _files(root: Path) -> list[Path]:
    found = [*root.glob("*.npz"), *(file for split in _SPLITS for file in (root / split).glob("*.npz"))]
    return sorted((file for file in found if not file.name.startswith(".")), key=lambda file: _order(root, file))


def _order(root: Path, file: Path) -> tuple[int, list[tuple[int, str]]]:
    """Splits in their usual order, then numbers as numbers."""
    split = file.relative_to(root).parts[0] if file.parent != root else ""
    pieces = [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", file.stem)]
    return (_SPLITS.index(split) if split in _SPLITS else -1), pieces


def _split_of(root: Path, file: Path) -> str | None:
    """The folder that is called as a split, or the word that the file's name begins with."""
    if file.parent != root:
        return file.parent.name
    first = file.stem.split("_")[0]
    return first if first in _SPLITS else None
