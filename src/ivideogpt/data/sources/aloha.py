"""HDF5 of ALOHA and Mobile ALOHA: `episode_N.hdf5` with `observations/images/CAMERA`, `observations/qpos`, `action`.

Frames are arrays (T, H, W, 3), or JPEG pictures in rows (T, N) that are padded with zeros. The recorder of Mobile ALOHA
swaps red and blue in them, which nothing in the file tells: `convert --swap-colours` puts them right.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.sources.hdf5 import array_of, files_of, frames_of, holds, is_camera, opened, track_of
from ivideogpt.data.sources.images import decode_image
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

_IMAGES, _JOINTS = "observations/images", "observations/qpos"


def recognises(path: Path) -> bool:
    """Whether the file, or the first in the folder, is an episode of this layout."""
    return holds(path, _IMAGES, "action")


class AlohaFolder:
    """The episodes of a folder, and of those below it, in the order of their numbers.

    Raises:
        EpisodeError: no such folder, or no HDF5 file in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.exists():
            raise EpisodeError(f"{self.root}: nothing lies there. Give the folder of the episodes.")
        self._files = files_of(self.root)
        if not self._files:
            raise EpisodeError(f"{self.root}: no HDF5 file in it. Give the folder of the episodes.")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path below the folder, without its ending."""
        file = self._files[index]
        return file.stem if file == self.root else file.relative_to(self.root).with_suffix("").as_posix()

    def read(self, index: int) -> Recording:
        """Episode `index`."""
        path = self._files[index]
        with opened(path) as file:
            if _IMAGES not in file:
                raise EpisodeError(f"no {_IMAGES} in it; it holds {', '.join(file) or 'nothing'}.")
            images = file[_IMAGES]
            lengths = {key: len(array_of(images, key)) for key in images if _is_frames(images[key])}
            if not lengths:
                raise EpisodeError(f"no camera in {_IMAGES}; it holds {', '.join(images) or 'nothing'}.")
            length = next(iter(lengths.values()))
            actions = track_of(file, "action", None)
            if len({*lengths.values(), len(actions)}) > 1:
                raise EpisodeError(f"frames {lengths} and {len(actions)} actions; there must be as many. Record again.")
            states = track_of(file, _JOINTS, length) if _JOINTS in file else None
            simulated = file.attrs.get("sim")
        return Recording(
            name=self.name(index),
            cameras={key: _Camera(path, key) for key in lengths},
            length=length,
            actions=actions,
            states=states,
            state_parts=() if states is None else (("qpos", states.shape[1]),),
            metadata={} if simulated is None else {"simulated": bool(simulated)},
        )


class _Camera:
    """Streams one camera of an episode."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key

    def __call__(self) -> Iterator[Frame]:
        with opened(self.path) as file:
            array = array_of(file[_IMAGES], self.key)
            if array.ndim == 4:
                yield from frames_of(array)
                return
            for number in range(len(array)):
                # An end-of-image mark ends each picture, so that no zero that is cut off belongs to it.
                picture = np.asarray(array[number], np.uint8).tobytes().rstrip(b"\0")
                yield decode_image(picture, f"{self.path}: {self.key}, frame {number}")


def _is_frames(array: Any) -> bool:
    return is_camera(array) or (getattr(array, "ndim", 0) == 2 and array.dtype == np.uint8)
