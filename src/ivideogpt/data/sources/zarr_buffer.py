"""Zarr replay buffers of Diffusion Policy: `data/*` of all episodes behind each other, cut by `meta/episode_ends`.

Cameras are the arrays (N, H, W, 3); floats are in 0..255 or in [0, 1]. A folder, or `.zarr.zip`; zarr formats 2 and 3.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.data.sources.recording import Frame, Recording, as_track
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

_ACTION, _STATE = "action", "state"
_BLOCK_BYTES = 64_000_000  # of frames read at a time
# What zarr, its codecs and zipfile raise on damaged parts.
_DAMAGE = (
    OSError, RuntimeError, SystemError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError,
    zipfile.BadZipFile,
)  # fmt: skip


def recognises(path: Path) -> bool:
    """Whether a zarr group lies there that has `meta/episode_ends`."""
    try:
        path = look_at(path, EpisodeError)
        known = path.suffix == ".zip" or any((path / name).is_file() for name in (".zgroup", "zarr.json"))
        if not known:
            return False
        with _opened(path) as root:
            return "meta/episode_ends" in root
    except (EpisodeError, OSError):
        return False


class ZarrReplayBuffer:
    """The episodes of one buffer.

    Raises:
        EpisodeError: no buffer, one that cannot be read, without cameras, or whose `episode_ends` do not rise or fit.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = look_at(path, EpisodeError)
        with _opened(self.path) as root:
            ends = _numbers(root, "meta/episode_ends")
            data = {key: _array(root, f"data/{key}") for key in _keys(root)}
            lengths = {key: array.shape[0] for key, array in data.items() if array.ndim}
            if not _rise(ends):
                raise EpisodeError(f"meta/episode_ends are {ends.tolist()[:10]}; they must be whole numbers that rise.")
            short = {key: length for key, length in lengths.items() if length != int(ends[-1])}
            if short:
                raise EpisodeError(f"episodes end at {int(ends[-1])}, but data have {short} rows. Record it again.")
            self._cameras = [key for key, array in data.items() if array.ndim == 4 and array.shape[-1] == 3]
            if not self._cameras:
                raise EpisodeError(f"data hold no camera, an array (N, H, W, 3); but {', '.join(data) or 'nothing'}.")
            self._tracks = [key for key, array in data.items() if array.ndim in (1, 2) and array.dtype.kind in "iufb"]
        self._ends = [0, *map(int, ends)]

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, index: int) -> str:
        """`episode_000000` and so on."""
        return f"episode_{index:06d}"

    def read(self, index: int) -> Recording:
        """Episode `index`. Other tracks than `action` and `state` are the states where there is no `state`."""
        start, end = self._ends[index], self._ends[index + 1]
        with _opened(self.path) as root:
            tracks = {key: as_track(f"data/{key}", root[f"data/{key}"][start:end], end - start) for key in self._tracks}
        actions = tracks.pop(_ACTION, None)
        states = {_STATE: tracks[_STATE]} if _STATE in tracks else tracks
        return Recording(
            name=self.name(index),
            cameras={key: _Camera(self.path, key, start, end) for key in self._cameras},
            length=end - start,
            actions=actions,
            states=np.concatenate(list(states.values()), axis=1) if states else None,
            state_parts=tuple((key, track.shape[1]) for key, track in states.items()),
        )


class _Camera:
    """Streams the rows of one episode of an array."""

    def __init__(self, path: Path, key: str, start: int, end: int) -> None:
        self.path, self.key, self.start, self.end = path, key, start, end

    def __call__(self) -> Iterator[Frame]:
        with _opened(self.path) as root:
            array = _array(root, f"data/{self.key}")
            rows = max(
                1, min(array.chunks[0], _BLOCK_BYTES // max(1, math.prod(array.shape[1:]) * array.dtype.itemsize))
            )
            for start in range(self.start, self.end, rows):
                yield from _as_pixels(self.key, np.asarray(array[start : min(start + rows, self.end)]))


def _as_pixels(key: str, block: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Pixels 0..255, also where they are floats: those above 1 are not in [0, 1]."""
    if block.dtype == np.uint8:
        return block
    if block.dtype.kind not in "iuf":
        raise EpisodeError(f"data/{key} is of {block.dtype}; frames must be numbers in 0..255.")
    low, high = float(block.min()), float(block.max())
    if not (low >= 0 and high <= 255):
        raise EpisodeError(f"data/{key} ranges over {low:g}..{high:g}; the range is 0..255. Store frames as uint8.")
    scale = 255 if block.dtype.kind == "f" and high <= 1 else 1
    return np.rint(block * scale).astype(np.uint8)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The root group, in whose block every fault is an `EpisodeError` that names the path."""
    import zarr
    from zarr.storage import ZipStore

    if not path.exists():
        raise EpisodeError(f"{path}: nothing lies there. Give a replay buffer, a folder or .zarr.zip.")
    if path.is_file() and not zipfile.is_zipfile(path):
        raise EpisodeError(f"{path}: truncated, or no zip archive. Copy it again.")
    store = None
    try:
        store = ZipStore(path, mode="r") if path.is_file() else None
        yield zarr.open_group(path if store is None else store, mode="r")
    except EpisodeError as error:
        known = str(error).startswith(str(path))
        raise error if known else EpisodeError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise EpisodeError(f"{path}: damaged, or no zarr ({error}). Copy or record it again.") from error
    finally:
        if store is not None:
            store.close()


def _rise(ends: npt.NDArray[Any]) -> bool:
    """Whether these are ends of episodes of at least one frame each."""
    if ends.ndim != 1 or ends.dtype.kind not in "iu" or not len(ends):
        return False
    return bool((np.diff(ends.astype(np.int64), prepend=0) > 0).all())


def _keys(root: Any) -> list[str]:
    if "data" not in root:
        raise EpisodeError("no group data in it. Give a replay buffer of Diffusion Policy.")
    return sorted(key for key, _ in root["data"].arrays())


def _array(root: Any, key: str) -> Any:
    if key not in root:
        group, _, name = key.rpartition("/")
        raise EpisodeError(unknown_name("array", name, list(root[group]) if group in root else []))
    array, free = root[key], free_memory(torch.device("cpu"))
    chunk = math.prod(array.chunks) * array.dtype.itemsize
    if free is not None and chunk > free // 4:
        raise EpisodeError(
            f"{key} claims chunks {array.chunks} of {array.dtype}, {chunk / 1e9:.3g} GB. Record it again."
        )
    return array


def _numbers(root: Any, key: str) -> npt.NDArray[Any]:
    array, free = _array(root, key), free_memory(torch.device("cpu"))
    if free is not None and math.prod(array.shape) * array.dtype.itemsize > free // 4:
        raise EpisodeError(f"{key} claims to hold {array.shape} of {array.dtype}. Record it again.")
    return np.asarray(array[...])
