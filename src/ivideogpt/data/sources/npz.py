"""The official episode format: one `.npz` per episode.

Keys: `image` (or the camera's name) (T, H, W, 3) and `action` (T, A); optional `reward` (T,), `state` (T, S),
`contact` (T,) and `metadata`, a JSON text. Files in the wild hold int64 images and float64 actions; reading converts
them. Nothing is read that nobody asked for; an optional key that holds something else counts as absent. What a file
claims to hold is compared with its size before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.data.episode import Episode, require_channels_last, require_track
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at, write_atomically

ACTION_KEY, REWARD_KEY, STATE_KEY, CONTACT_KEY, METADATA_KEY = "action", "reward", "state", "contact", "metadata"

_CURES = {
    "action key": " Video without actions: pass action_key=None, or --no-actions.",
    "state key": " Name the array that holds the states with --state-key, or leave --states out.",
    "reward key": " Record rewards, or leave --rewards out.",
}

_PLAIN = {
    "camera key": "Bring all frames of the episode to one size, and save one plain array (T, H, W, 3).",
    "action key": "Save one plain array of numbers (T, A), a row for each frame.",
    "state key": "Save one plain array of numbers (T, S), a row for each frame.",
    "reward key": "Save one plain array of numbers (T,), one for each frame.",
    "key": "Save a plain array.",
}

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_MOST_DEFLATED = 1033  # no deflated data become more times as long

# What numpy and zipfile raise on files that begin well.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError, KeyError, MemoryError)


def read_episode(
    path: Path | str,
    camera_key: str = "image",
    action_key: str | None = "action",
    state_key: str | None = None,
    *,
    rewards: bool = False,
    action_shift: int = 0,
) -> Episode:
    """Read one episode file.

    Args:
        path: an `.npz` file.
        camera_key: which array holds the frames.
        action_key: which array holds the actions; None reads plain video.
        state_key: which array holds the states, which must be there; None takes `state` where there is one.
        rewards: whether there must be rewards; else they are taken where there are some.
        action_shift: how many rows late the actions are: row j + shift of the file is what is done at frame j.

    Raises:
        EpisodeError: the file is missing or damaged, claims to hold more than it can, lacks a key, or its arrays are
            malformed. The message begins with the path.
    """
    with opened(Path(path)) as archive:
        return _episode_from(archive, camera_key, action_key, state_key, rewards, action_shift)


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
        rewards: bool = False,
        action_shift: int = 0,
    ) -> None:
        self.folder = look_at(folder, EpisodeError)
        self.camera_key, self.action_key, self.state_key = camera_key, action_key, state_key
        self.rewards, self.action_shift = rewards, action_shift
        if self.folder.is_file():
            raise EpisodeError(f"{self.folder}: this is a file. Give the folder that the episode files (.npz) are in.")
        if not self.folder.is_dir():
            raise EpisodeError(f"{self.folder}: no such folder. Give a folder of episode files (.npz).")
        # Names that begin with a dot are files still being written.
        self._paths = sorted(path for path in self.folder.glob("*.npz") if not path.name.startswith("."))
        below = sorted({path.parent.name for path in self.folder.glob("*/*.npz")})
        if self._paths and below:
            warnings.warn(
                f"{self.folder}: the episodes in its subfolders ({', '.join(below[:5])}) are left out; only those in "
                "the folder itself are read. Move them up, or name the subfolder.",
                stacklevel=2,
            )
        if not self._paths:
            hint = f" There are some in its subfolders ({', '.join(below[:5])}): name one of those." if below else ""
            raise EpisodeError(
                f"{self.folder}: no episode file (*.npz) in it.{hint or ' Record some, or give another folder.'}"
            )

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, index: int) -> Path:
        """Path of episode `index`."""
        return self._paths[index]

    def name(self, index: int) -> str:
        """Name of the file of episode `index`."""
        return self._paths[index].name

    def fingerprint(self, index: int) -> str:
        """Of what is in the file of episode `index`: equal for equal arrays, whatever the file is called."""
        with opened(self._paths[index]) as archive:
            members = archive.zip
            assert members is not None, "the archive is open"
            content = sorted((info.filename, info.file_size, info.CRC) for info in members.infolist())
        return hashlib.sha256(repr(content).encode()).hexdigest()[:16]

    def length(self, index: int) -> int:
        """Frames of episode `index`, by what its file claims to hold."""
        with opened(self._paths[index]) as archive:
            return claimed_shape(archive, self.camera_key, "camera key")[0]

    def read(self, index: int) -> Episode:
        """Read episode `index`; raises EpisodeError as `read_episode` does."""
        keys = self.camera_key, self.action_key, self.state_key
        return read_episode(self._paths[index], *keys, rewards=self.rewards, action_shift=self.action_shift)

    def read_tracks(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """States (T,S) and actions (T,A) or None of episode `index`, without its frames; raises as `read_episode`."""
        with opened(self._paths[index]) as archive:
            states = as_float32("states", read_array(archive, self.state_key or STATE_KEY, "state key"))
            require_track("states", states, rank=2, length=states.shape[0] if states.ndim else 0)
            if self.action_key is None:
                return states, None
            return states, _read_actions(archive, self.action_key, len(states), self.action_shift)

    def read_actions(self, index: int) -> tuple[npt.NDArray[np.float32] | None, dict[str, Any]]:
        """Actions (T,A), or None where no key names any, and metadata of episode `index`, without its frames."""
        with opened(self._paths[index]) as archive:
            metadata = read_metadata(archive)
            if self.action_key is None:
                return None, metadata
            return _read_actions(archive, self.action_key, None, self.action_shift), metadata

    def read_rewards(self, index: int) -> npt.NDArray[np.float32]:
        """Rewards (T,) of episode `index`, without its frames; raises as `read_episode` does."""
        with opened(self._paths[index]) as archive:
            rewards = _read_rewards(archive)
            require_track("rewards", rewards, rank=1, length=len(rewards) if rewards.ndim else 0)
            return rewards


@contextmanager
def opened(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The archive, open for the length of the block, in which every fault is an `EpisodeError` that names the file."""
    path = look_at(path, EpisodeError)
    if path.is_dir():
        raise EpisodeError(f"{path}: this is a folder. Name one of the episode files (.npz) in it.")
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
    archive: np.lib.npyio.NpzFile,
    camera_key: str,
    action_key: str | None,
    state_key: str | None,
    rewards: bool,
    action_shift: int,
) -> Episode:
    states = None
    actions = None if action_key is None else _read_actions(archive, action_key, None, action_shift)
    if state_key is not None:
        states = as_float32("states", read_array(archive, state_key, "state key"))
    frames = as_uint8(read_array(archive, camera_key, "camera key"))
    if state_key is None:
        states = _read_optional(archive, STATE_KEY, rank=2, length=len(frames))
    return Episode(
        frames=frames,
        actions=actions,
        rewards=_read_rewards(archive) if rewards else _read_optional(archive, REWARD_KEY, rank=1, length=len(frames)),
        states=states,
        contacts=_read_optional(archive, CONTACT_KEY, rank=1, length=len(frames)),
        metadata=read_metadata(archive),
    )


def read_array(archive: np.lib.npyio.NpzFile, key: str, kind: str) -> npt.NDArray[Any]:
    """An array, once what it claims to hold was found to be possible; `kind` is what a message calls the key."""
    claimed_shape(archive, key, kind)
    return np.asarray(archive[key])


def claimed_shape(archive: np.lib.npyio.NpzFile, key: str, kind: str) -> tuple[int, ...]:
    """What an array's header says, compared with what there is, without reading the array."""
    if key not in archive.files:
        raise EpisodeError(unknown_name(kind, key, archive.files) + _CURES.get(kind, ""))
    members = archive.zip
    assert members is not None, "the archive is open"
    info = members.getinfo(key if key in members.namelist() else f"{key}.npy")
    with members.open(info) as member:
        read_header = _HEADERS.get(np.lib.format.read_magic(member))
        if read_header is None:
            raise EpisodeError(f"key {key!r} is of an .npy version that numpy does not name. Save it with numpy.savez.")
        shape, _, dtype = read_header(member)
        claimed, left = math.prod(shape) * dtype.itemsize, info.file_size - member.tell()
    if dtype.hasobject:
        raise EpisodeError(f"key {key!r} holds Python objects; pickled data is never opened. {_PLAIN[kind]}")
    deflated = info.compress_type == zipfile.ZIP_DEFLATED and info.file_size > _MOST_DEFLATED * info.compress_size
    free = free_memory(torch.device("cpu"))
    reason = None
    if claimed != left or deflated:
        reason = "it cannot"
    elif free is not None and claimed > free:
        reason = f"{free / 1e9:.3g} GB of memory are free"
    if reason is not None:
        raise EpisodeError(
            f"key {key!r} claims to hold {shape} of {dtype}, {claimed / 1e9:.3g} GB, in {info.compress_size} bytes of "
            f"the file; {reason}. Record it again, or in shorter episodes."
        )
    if kind == "camera key":
        require_channels_last(shape, "images")
    return tuple(shape)


def _read_actions(archive: np.lib.npyio.NpzFile, key: str, length: int | None, shift: int) -> npt.NDArray[np.float32]:
    """Actions (T,A), the one done at frame j in row j; past the end the last is repeated. None: any length."""
    actions = as_float32("actions", read_array(archive, key, "action key"))
    require_track("actions", actions, rank=2, length=length or (actions.shape[0] if actions.ndim else 0))
    if shift >= len(actions) > 0:
        raise EpisodeError(f"action_shift is {shift}, but there are {len(actions)} actions. Shift by fewer rows.")
    return actions[np.minimum(np.arange(len(actions)) + shift, len(actions) - 1)] if shift else actions


def _read_rewards(archive: np.lib.npyio.NpzFile) -> npt.NDArray[np.float32]:
    rewards = as_float32("rewards", read_array(archive, REWARD_KEY, "reward key"))
    return rewards[:, 0] if rewards.ndim == 2 and rewards.shape[1] == 1 else rewards


def _read_optional(archive: np.lib.npyio.NpzFile, key: str, rank: int, length: int) -> npt.NDArray[np.float32] | None:
    """None also where the key means something else than one row of real numbers a frame."""
    if key not in archive.files:
        return None
    try:
        values = _read_rewards(archive) if key == REWARD_KEY else as_float32(key, read_array(archive, key, "key"))
        require_track(key, values, rank, length)
    except EpisodeError:
        return None
    return values


def read_metadata(archive: np.lib.npyio.NpzFile) -> dict[str, Any]:
    """Nothing also where the key means something else than a JSON text of a mapping."""
    if METADATA_KEY not in archive.files:
        return {}
    try:
        metadata = json.loads(str(read_array(archive, METADATA_KEY, "key")))
    except (EpisodeError, json.JSONDecodeError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def as_uint8(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
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


def as_float32(name: str, values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Real numbers of any type as float32; `name` is what a message calls them."""
    if values.dtype.kind not in "iufb":
        raise EpisodeError(f"{name} are {values.dtype}; they must be real numbers.")
    with np.errstate(over="ignore"):  # Episode names the row that overflows
        return values.astype(np.float32)
