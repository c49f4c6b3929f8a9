"""HDF5 of RoboNet: a trajectory a file, `env/camN_video` as mp4 or JPEG, `policy/actions`, `env/state`.

Robots have 3 to 5 action columns (x, y, z, yaw, grasp); as in the official preparation all get five: missing ones are
0, but where the gripper closed by itself (`autograsp`) the fifth says what it did, by the state that followed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.hdf5 import files_of, holds, natural, numbers_of, opened, track_of
from ivideogpt.data.sources.images import decode_image
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.data.sources.video import Video
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

_CAMERA = re.compile(r"cam\d+_video")
_COLUMNS = ("x", "y", "z", "yaw", "grasp")
_TOLD = (
    "robot",
    "lab",
    "primitives",
    "gripper",
    "camera_type",
    "background",
    "bin_type",
    "policy_desc",
    "action_space",
)


def recognises(path: Path) -> bool:
    """Whether the file, or the first in the folder, is a trajectory of this layout."""
    return holds(path, "env", "policy/actions")


class RoboNetFolder:
    """The trajectories of a folder, and of those below it, in the order of their names.

    Raises:
        EpisodeError: no such folder, or no HDF5 file in it.
    """

    def __init__(self, path: Path | str) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.exists():
            raise EpisodeError(f"{self.root}: nothing lies there. Give the folder of the trajectories.")
        self._files = files_of(self.root)
        if not self._files:
            raise EpisodeError(f"{self.root}: no HDF5 file in it. Give the folder of the trajectories.")

    def __len__(self) -> int:
        return len(self._files)

    def name(self, index: int) -> str:
        """The file's path below the folder, without its ending."""
        file = self._files[index]
        return file.stem if file == self.root else file.relative_to(self.root).with_suffix("").as_posix()

    def read(self, index: int) -> Recording:
        """Trajectory `index`: as many frames as there are states, pictures, and actions and one more."""
        path = self._files[index]
        with opened(path) as file:
            if "env" not in file:
                raise EpisodeError(f"no group env in it; it holds {', '.join(file) or 'nothing'}.")
            cameras = sorted(
                (key for key in file["env"] if key.startswith("cam") and key.endswith("_video")), key=natural
            )
            if not cameras:
                raise EpisodeError(f"no camera camN_video in env; it holds {', '.join(file['env']) or 'nothing'}.")
            counts = {key: _pictures(file["env"][key]) for key in cameras}
            actions, states = track_of(file["policy"], "actions", None), track_of(file["env"], "state", None)
            length = min(len(states), len(actions) + 1, *(count for count in counts.values() if count is not None))
            told = dict(file["metadata"].attrs) if "metadata" in file else {}
            metadata = {key: str(told[key]) for key in _TOLD if key in told}
            five = _five_columns(file, actions, states, metadata.get("primitives", ""))[: length - 1]
        return Recording(
            name=self.name(index),
            cameras={key.removesuffix("_video"): _Camera(path, key, length) for key in cameras},
            length=length,
            actions=np.concatenate([five, five[-1:]]),
            action_parts=tuple((name, 1) for name in _COLUMNS),
            states=states[:length],
            state_parts=tuple((name, 1) for name in _COLUMNS[: states.shape[1]]) if states.shape[1] <= 5 else (),
            metadata=metadata,
        )


class _Camera:
    """Streams the first frames of one camera of a trajectory."""

    def __init__(self, path: Path, key: str, length: int) -> None:
        self.path, self.key, self.length = path, key, length

    def __call__(self) -> Iterator[Frame]:
        count = 0
        for frame in islice(self._all(), self.length):
            count += 1
            yield frame
        if count < self.length:
            raise EpisodeError(f"{self.path}: {self.key} has {count} frames instead of {self.length}. Record it again.")

    def _all(self) -> Iterator[Frame]:
        with opened(self.path) as file:
            group = file["env"][self.key]
            if "frames" not in group:
                for key in _numbered(group):
                    picture = numbers_of(group, key).astype(np.uint8).tobytes()
                    yield decode_image(picture, f"{self.path}: {self.key}, {key}")
                return
            film = numbers_of(group, "frames").astype(np.uint8).tobytes()
        with Video(film, f"{self.path}: {self.key}") as video:
            yield from video.frames()


def _pictures(group: Any) -> int | None:
    """How many frames a camera has, by what its group says; None where only decoding tells."""
    if "frames" not in group:
        return len(_numbered(group))
    told = group["frames"].attrs.get("T")
    return int(told) if isinstance(told, (int, np.integer)) and told > 0 else None


def _numbered(group: Any) -> list[str]:
    return sorted((key for key in group if key.startswith("frame")), key=natural)


def _five_columns(
    file: Any, actions: npt.NDArray[np.float32], states: npt.NDArray[np.float32], primitives: str
) -> npt.NDArray[np.float32]:
    if not 1 <= actions.shape[1] <= len(_COLUMNS):
        raise EpisodeError(f"policy/actions have {actions.shape[1]} columns; there are at most {len(_COLUMNS)}.")
    five = np.zeros((len(actions), len(_COLUMNS)), np.float32)
    five[:, : actions.shape[1]] = actions
    if actions.shape[1] == 4 and primitives == "autograsp":
        low, high = (track_of(file["env"], key, None)[-1, -1] for key in ("low_bound", "high_bound"))
        following = states[1 : len(actions) + 1, -1]
        five[: len(following), 4] = np.where(following > (low + high) / 2, high, low)
    return five
