"""The official episode format: one `.npz` per episode.

Keys: `image` (or the camera's name) (T, H, W, 3) and `action` (T, A); optional `reward` (T,), `state` (T, S),
`contact` (T,) and `metadata`, a JSON text. Files in the wild hold int64 images and float64 actions; reading converts
them.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.episode import Episode, require_channels_last, require_track
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import write_atomically

REWARD_KEY, STATE_KEY, CONTACT_KEY, METADATA_KEY = "reward", "state", "contact", "metadata"

_CURES = {
    "action key": " Video without actions: pass action_key=None, or --no-actions.",
    "state key": " Name the array that holds the states with --state-key, or leave --states out.",
}

# What numpy and zipfile raise on files that begin well.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError)


def read_episode(
    path: Path | str, camera_key: str = "image", action_key: str | None = "action", state_key: str | None = None
) -> Episode:
    """Read one episode file.

    Args:
        path: an `.npz` file.
        camera_key: which array holds the frames.
        action_key: which array holds the actions; None reads plain video.
        state_key: which array holds the states, which must be there; None takes `state` where there is one.

    Raises:
        EpisodeError: the file is missing or damaged, lacks a key, or its arrays are malformed. The message
            begins with the path.
    """
    with _opened(Path(path)) as archive:
        return _episode_from(archive, camera_key, action_key, state_key)


def write_episode(path: Path | str, episode: Episode) -> None:
    """Write one episode file that `read_episode` reads back without loss; whole or not at all.

    Raises:
        EpisodeError: the name does not end in `.npz`.
        OutputError: the disk is full or the folder is not writable.
    """
    path = Path(path)
    if path.suffix != ".npz":
        raise EpisodeError(f"{path}: an episode file must be called *.npz. Rename it.")
    arrays: dict[str, npt.NDArray[Any]] = {"image": episode.frames}
    optional = {
        "action": episode.actions,
        REWARD_KEY: episode.rewards,
        STATE_KEY: episode.states,
        CONTACT_KEY: episode.contacts,
    }
    arrays.update({key: values for key, values in optional.items() if values is not None})
    arrays[METADATA_KEY] = np.array(json.dumps(dict(episode.metadata), sort_keys=True))
    write_atomically(path, lambda temporary: np.savez_compressed(temporary, allow_pickle=False, **arrays))


class NpzFolder:
    """The episode files (`*.npz`) of one folder, in the order of their names.

    Raises:
        EpisodeError: the folder is missing or holds no episode file.
    """

    def __init__(
        self,
        folder: Path | str,
        camera_key: str = "image",
        action_key: str | None = "action",
        state_key: str | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.camera_key, self.action_key, self.state_key = camera_key, action_key, state_key
        if not self.folder.is_dir():
            raise EpisodeError(f"{self.folder}: no such folder. Give a folder of episode files (.npz).")
        # Names that begin with a dot are files still being written.
        self._paths = sorted(path for path in self.folder.glob("*.npz") if not path.name.startswith("."))
        if not self._paths:
            raise EpisodeError(f"{self.folder}: no episode file (*.npz) in it. Record some, or give another folder.")

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Path of episode `index`."""
        return self._paths[index]

    def read(self, index: int) -> Episode:
        """Read episode `index`; raises EpisodeError as `read_episode` does."""
        return read_episode(self._paths[index], self.camera_key, self.action_key, self.state_key)

    def read_tracks(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """States (T,S) and actions (T,A) or None of episode `index`, without its frames; raises as `read_episode`."""
        with _opened(self._paths[index]) as archive:
            states = _as_float32("states", _read_array(archive, self.state_key or STATE_KEY, "state key"))
            require_track("states", states, rank=2, length=states.shape[0] if states.ndim else 0)
            if self.action_key is None:
                return states, None
            actions = _as_float32("actions", _read_array(archive, self.action_key, "action key"))
            require_track("actions", actions, rank=2, length=len(states))
            return states, actions

    def read_actions(self, index: int) -> tuple[npt.NDArray[np.float32] | None, dict[str, Any]]:
        """Actions (T,A), or None where no key names any, and metadata of episode `index`, without its frames."""
        with _opened(self._paths[index]) as archive:
            metadata = _read_metadata(archive)
            if self.action_key is None:
                return None, metadata
            actions = _as_float32("actions", _read_array(archive, self.action_key, "action key"))
            require_track("actions", actions, rank=2, length=actions.shape[0] if actions.ndim else 0)
            return actions, metadata


@contextmanager
def _opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive, open for the length of the block, in which every fault is an `EpisodeError` that names the file."""
    if not path.is_file():
        raise EpisodeError(f"{path}: no such file. Give the path of an episode file (.npz).")
    try:
        if not _is_zip(path):
            raise EpisodeError(
                "truncated, or not an .npz archive at all. Copy or record it again, or save it with "
                "numpy.savez_compressed."
            )
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except _DAMAGE as error:
        raise EpisodeError(f"{path}: damaged ({error}). Copy or record it again.") from error


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK" and zipfile.is_zipfile(file)


def _episode_from(
    archive: np.lib.npyio.NpzFile, camera_key: str, action_key: str | None, state_key: str | None
) -> Episode:
    rewards = _read_optional(archive, REWARD_KEY)
    if rewards is not None and rewards.ndim == 2 and rewards.shape[1] == 1:
        rewards = rewards[:, 0]
    actions = None
    if action_key is not None:
        actions = _as_float32("actions", _read_array(archive, action_key, "action key"))
    if state_key is None:
        states = _read_optional(archive, STATE_KEY)
    else:
        states = _as_float32("states", _read_array(archive, state_key, "state key"))
    return Episode(
        frames=_as_uint8(_read_array(archive, camera_key, "camera key")),
        actions=actions,
        rewards=rewards,
        states=states,
        contacts=_read_contacts(archive),
        metadata=_read_metadata(archive),
    )


def _read_array(archive: np.lib.npyio.NpzFile, key: str, kind: str) -> npt.NDArray[Any]:
    if key not in archive.files:
        raise EpisodeError(unknown_name(kind, key, archive.files) + _CURES.get(kind, ""))
    try:
        return np.asarray(archive[key])
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise EpisodeError(
            f"key {key!r} holds Python objects, likely frames of unequal size; pickled data is never opened. "
            "Bring all frames of the episode to one size and save one plain array."
        ) from error


def _read_optional(archive: np.lib.npyio.NpzFile, key: str) -> npt.NDArray[np.float32] | None:
    return _as_float32(f"{key}s", _read_array(archive, key, "key")) if key in archive.files else None


def _read_contacts(archive: np.lib.npyio.NpzFile) -> npt.NDArray[np.float32] | None:
    """None also where the key means something else: anything but one number a frame."""
    if CONTACT_KEY not in archive.files:
        return None
    values = _read_array(archive, CONTACT_KEY, "key")
    return values.astype(np.float32) if values.ndim == 1 and values.dtype.kind in "iufb" else None


def _read_metadata(archive: np.lib.npyio.NpzFile) -> dict[str, Any]:
    if METADATA_KEY not in archive.files:
        return {}
    text = str(_read_array(archive, METADATA_KEY, "key"))
    try:
        metadata = json.loads(text)
    except json.JSONDecodeError as error:
        raise EpisodeError(f"key {METADATA_KEY!r} is not JSON ({error}). Store json.dumps of a dict.") from error
    if not isinstance(metadata, dict):
        raise EpisodeError(f"key {METADATA_KEY!r} is a {type(metadata).__name__}. Store json.dumps of a dict.")
    return metadata


def _as_uint8(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Frames of any number type as uint8: whole numbers in 0..255, or floats in [0, 1]."""
    require_channels_last(images.shape, "images")
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "iuf":
        raise EpisodeError(f"images are {images.dtype}; store them as uint8 in 0..255, or as floats in [0, 1].")
    low, high = images.min(), images.max()
    limit = 1 if images.dtype.kind == "f" else 255
    if not (low >= 0 and high <= limit):  # false for NaN as well
        cure = "Store frames in 0..255 as uint8." if limit == 255 or high > 1 else "Scale them to this range."
        raise EpisodeError(f"{images.dtype} images range over {low}..{high}; the range is 0..{limit}. {cure}")
    scaled = np.rint(images * 255) if limit == 1 else images
    return scaled.astype(np.uint8)


def _as_float32(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "iufb":
        raise EpisodeError(f"{name} are {values.dtype}; they must be real numbers.")
    with np.errstate(over="ignore"):  # Episode names the row that overflows
        return values.astype(np.float32)
