"""HDF5 of robomimic, and of VP2, which has the same layout: `data/demo_N/obs/CAMERA`, `actions`, `mask/train`.

Cameras are the arrays of `obs` with three channels that are neither depth nor segmentation; what else is in `obs` with
one row a frame is the state, and `states` where there is nothing. `rewards[j]` is earned by action j.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.hdf5 import array_of, files_of, frames_of, holds, is_camera, natural, opened, track_of
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

_NOT_RGB = ("depth", "segmentation")
_USUAL = ("train", "valid", "test")
_Parts: TypeAlias = tuple[tuple[str, int], ...]


class _Demo(NamedTuple):
    path: Path
    demo: str
    masks: tuple[str, ...]
    fault: str = ""


def recognises(path: Path) -> bool:
    """Whether the file, or the first in the folder, has demonstrations under `data`."""
    try:
        if not holds(path, "data"):
            return False
        with opened(files_of(look_at(path, EpisodeError))[0]) as file:
            return any("obs" in demo or "actions" in demo for demo in file["data"].values())
    except (EpisodeError, AttributeError, TypeError):
        return False


class RobomimicFile:
    """The demonstrations of a file, or of all files of a folder, in the order of their numbers.

    Args:
        path: an HDF5 file, or a folder of them.
        split: name of a mask, such as `train` or `valid`; None takes all.

    Raises:
        EpisodeError: no such file, one that cannot be read, or no demonstration in it.
    """

    def __init__(self, path: Path | str, split: str | None = None) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.exists():
            raise EpisodeError(f"{self.root}: nothing lies there. Give an HDF5 file, or a folder of them.")
        self._demos: list[_Demo] = []
        for file in files_of(self.root):
            try:
                self._demos += _demos(file)
            except EpisodeError as error:
                if file == self.root:
                    raise
                self._demos.append(_Demo(file, "", (), str(error)))
        self._demos = [demo for demo in self._demos if split is None or split in demo.masks]
        if not self._demos:
            of_split = "" if split is None else f" of mask {split!r}"
            raise EpisodeError(f"{self.root}: no demonstration{of_split} in it. Give another path.")

    def __len__(self) -> int:
        return len(self._demos)

    def name(self, index: int) -> str:
        """Name of the demonstration, with that of its file where there may be several."""
        demo = self._demos[index]
        if demo.path == self.root:
            return demo.demo
        file = demo.path.relative_to(self.root).with_suffix("").as_posix()
        return f"{file}/{demo.demo}" if demo.demo else file

    def read(self, index: int) -> Recording:
        """Demonstration `index`."""
        demo = self._demos[index]
        if demo.fault:
            raise EpisodeError(demo.fault)
        with opened(demo.path) as file:
            group = file["data"][demo.demo]
            observed = group.get("obs", {})
            cameras = {key: array_of(observed, key) for key in observed if _is_rgb(key, observed[key])}
            if not cameras:
                found = ", ".join(observed) or "nothing"
                raise EpisodeError(f"{demo.demo} has no camera, an array of RGB frames, in obs; it holds {found}.")
            lengths = {key: len(array) for key, array in cameras.items()}
            length = next(iter(lengths.values()))
            actions = track_of(group, "actions", None) if "actions" in group else None
            if actions is not None and len(actions) == length - 1:
                actions = np.concatenate([actions, actions[-1:]])
            if len(set(lengths.values())) > 1 or (actions is not None and len(actions) != length):
                rows = "" if actions is None else f" and {len(actions)} actions"
                raise EpisodeError(f"{demo.demo} has frames {lengths}{rows}; they must be as many. Record it again.")
            states, parts = _states(group, observed, length)
            rewards = track_of(group, "rewards", length)[:, 0] if "rewards" in group else None
            metadata = _metadata(file, demo)
        return Recording(
            name=self.name(index),
            cameras={key: _Camera(demo, key) for key in cameras},
            length=length,
            actions=actions,
            rewards=rewards,
            rewards_follow=True,
            states=states,
            state_parts=parts,
            split=demo.masks[0] if demo.masks else None,
            metadata=metadata,
        )


class _Camera:
    """Streams one camera of a demonstration."""

    def __init__(self, demo: _Demo, key: str) -> None:
        self.demo, self.key = demo, key

    def __call__(self) -> Iterator[Frame]:
        with opened(self.demo.path) as file:
            yield from frames_of(array_of(file["data"][self.demo.demo]["obs"], self.key))


def _demos(path: Path) -> list[_Demo]:
    with opened(path) as file:
        if "data" not in file:
            raise EpisodeError(f"no group data in it; it holds {', '.join(file) or 'nothing'}.")
        masks: dict[str, list[str]] = {}
        for mask in file.get("mask", {}):
            for name in np.asarray(file["mask"][mask]).ravel():
                masks.setdefault(name.decode() if isinstance(name, bytes) else str(name), []).append(mask)
        names = sorted(file["data"], key=natural)
    return [_Demo(path, demo, tuple(sorted(masks.get(demo, []), key=_usual_first))) for demo in names]


def _usual_first(mask: str) -> tuple[int, str]:
    return (_USUAL.index(mask) if mask in _USUAL else len(_USUAL)), mask


def _is_rgb(key: str, array: Any) -> bool:
    return is_camera(array) and not any(word in key for word in _NOT_RGB)


def _states(group: Any, observed: Any, length: int) -> tuple[npt.NDArray[np.float32] | None, _Parts]:
    keys = [key for key in sorted(observed) if _is_low_dimensional(observed[key], length)]
    parts = {key: track_of(observed, key, length) for key in keys}
    if not parts and "states" in group:
        parts = {"states": track_of(group, "states", length)}
    if not parts:
        return None, ()
    return np.concatenate(list(parts.values()), axis=1), tuple((key, part.shape[1]) for key, part in parts.items())


def _is_low_dimensional(array: Any, length: int) -> bool:
    shape: tuple[int, ...] = getattr(array, "shape", ())
    return len(shape) in (1, 2) and shape[0] == length and array.dtype.kind in "iufb"


def _metadata(file: Any, demo: _Demo) -> dict[str, Any]:
    metadata: dict[str, Any] = {"masks": list(demo.masks)} if demo.masks else {}
    told = file["data"].attrs.get("env_args")
    try:
        name = json.loads(told)["env_name"] if isinstance(told, str) else None
    except (ValueError, KeyError, TypeError):
        name = None
    return metadata | ({"env": name} if isinstance(name, str) else {})
