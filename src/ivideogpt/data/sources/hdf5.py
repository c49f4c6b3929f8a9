"""HDF5 files read with care: every fault told with the file's path, nothing taken in that a file merely claims."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.data.sources.npz import as_uint8
from ivideogpt.data.sources.recording import Frame, as_track
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

ENDINGS = (".hdf5", ".h5")

_BLOCK_BYTES = 64_000_000  # of frames read at a time
_MOST_DEFLATED = 1033  # no deflated data become more times as long
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, OverflowError)


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, open for the length of the block, in which every fault is an `EpisodeError` that names the file."""
    import h5py

    path = look_at(path, EpisodeError)
    if not path.is_file():
        raise EpisodeError(f"{path}: no such file. Give the path of an HDF5 file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except EpisodeError as error:
        known = str(error).startswith(str(path))
        raise error if known else EpisodeError(f"{path}: {error}") from error
    except _DAMAGE as error:
        raise EpisodeError(f"{path}: damaged, or no HDF5 file ({error}). Copy or record it again.") from error


def array_of(group: Any, key: str) -> Any:
    """The array `key` of a group, which holds plain numbers that can be there, none of them read yet.

    Raises:
        EpisodeError: there is none, it lies in another file, or it claims to hold more than it can.
    """
    import h5py

    where = f"{group.name.rstrip('/')}/{key}"
    if key not in group:
        raise EpisodeError(f"{where}: {unknown_name('array', key, list(group))}")
    if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
        raise EpisodeError(f"{where} lies in another file, which is never opened. Copy it into this one.")
    array = group[key]
    if not isinstance(array, h5py.Dataset):
        raise EpisodeError(f"{where} is a group; it must be an array.")
    if array.is_virtual or array.external:
        raise EpisodeError(f"{where} lies in other files, which are never opened. Copy it into this one.")
    if array.dtype.kind not in "iufb":
        raise EpisodeError(f"{where} is of {array.dtype}; it must be plain numbers.")
    claimed, stored = math.prod(array.shape) * array.dtype.itemsize, array.id.get_storage_size()
    chunk = math.prod(array.chunks or (0,)) * array.dtype.itemsize
    free = free_memory(torch.device("cpu"))
    if claimed > max(stored, 1) * _MOST_DEFLATED or (free is not None and chunk > free // 4):
        raise EpisodeError(
            f"{where} claims to hold {array.shape} of {array.dtype}, {claimed / 1e9:.3g} GB, in {stored} bytes of the "
            "file. Record it again."
        )
    return array


def numbers_of(group: Any, key: str) -> npt.NDArray[Any]:
    """All of an array that is small enough for the memory there is.

    Raises:
        EpisodeError: as `array_of`, or it does not fit.
    """
    array, free = array_of(group, key), free_memory(torch.device("cpu"))
    if free is not None and array.nbytes > free // 2:
        raise EpisodeError(f"{array.name} takes {array.nbytes / 1e9:.3g} GB; {free / 1e9:.3g} GB of memory are free.")
    return np.asarray(array[()])


def track_of(group: Any, key: str, length: int | None) -> npt.NDArray[np.float32]:
    """An array with one row a frame as (T, size) float32; errors as `numbers_of` and `as_track`."""
    return as_track(f"{group.name.rstrip('/')}/{key}", numbers_of(group, key), length)


def is_camera(array: Any) -> bool:
    """Whether an array may be RGB frames: (T, H, W, 3) or (T, 3, H, W)."""
    shape: tuple[int, ...] = getattr(array, "shape", ())
    return len(shape) == 4 and 0 not in shape and (shape[-1] == 3 or shape[1] == 3)


def frames_of(array: Any) -> Iterator[Frame]:
    """The frames of an array, a few read at a time; channels come last, and floats are in [0, 1].

    Raises:
        EpisodeError: values out of range, or frames too large.
    """
    first = array.shape[-1] != 3
    frame_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
    if frame_bytes > _BLOCK_BYTES * 4:
        raise EpisodeError(f"{array.name} has frames of {array.shape[1:]}, which is too large. Record smaller ones.")
    rows = max(1, min(array.chunks[0] if array.chunks else 16, _BLOCK_BYTES // frame_bytes))
    for start in range(0, len(array), rows):
        block = np.asarray(array[start : start + rows])
        yield from as_uint8(block.transpose(0, 2, 3, 1) if first else block)


def natural(text: str) -> list[tuple[int, str]]:
    """A key that sorts numbers as numbers: demo_2 before demo_10."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", text)]


def files_of(root: Path) -> list[Path]:
    """The HDF5 files at a path: itself, or those in the folder and below, in order; hidden ones are left out."""
    if root.is_file():
        return [root]
    found = (path for path in root.rglob("*") if path.suffix in ENDINGS and path.is_file())
    visible = (path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
    return sorted(visible, key=lambda path: [natural(part) for part in path.relative_to(root).parts])


def holds(path: Path, *keys: str) -> bool:
    """Whether the first HDF5 file at a path has one of these groups or arrays; False for anything else."""
    try:
        files = files_of(look_at(path, EpisodeError))
        if not files or files[0].suffix not in ENDINGS:
            return False
        with opened(files[0]) as file:
            return all(key in file for key in keys)
    except (EpisodeError, OSError):
        return False
