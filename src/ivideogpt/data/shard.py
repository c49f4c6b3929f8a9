"""One shard of a store: some episodes in a safetensors file, every frame a picture of its own.

Of episode i the file holds, for each camera, `i/CAMERA` (all pictures behind each other, uint8) and `i/CAMERA/ends`
(T,) int64, where each ends; and `i/actions` (T,A), `i/rewards` (T,), `i/states` (T,S) float32, as far as there are any.
Reading some frames reads their bytes and no others. What is known of the episodes stands in a JSON file beside it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ivideogpt.data.episode import require_channels_last
from ivideogpt.data.segment import fit_to_square
from ivideogpt.data.sources.images import decode_image
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import write_atomically, write_text_atomically

Encoding = Literal["jpeg", "png"]
TRACKS = ("actions", "rewards", "states")

_JPEG = b"\xff\xd8\xff"  # how one begins
_QUALITY = 95  # of a JPEG, without subsampling of colours: 64-pixel frames lose 0.5 grey values in the mean


@dataclass(frozen=True)
class EpisodeEntry:
    """What is known of an episode without reading it."""

    name: str
    """Of the recording in its source."""
    length: int
    """Frames T."""
    content: str
    """SHA-256 of its frames and numbers as they came, whatever it is called."""
    stored: str
    """SHA-256 of what the shard holds of it."""
    split: str | None = None
    """Of the source."""
    language: str | None = None
    """Instruction."""
    frame_rate: float | None = None
    """Frames a second."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """Anything else that the source says."""


@dataclass(frozen=True)
class ShardReport:
    """What became of the recordings of a shard."""

    episodes: tuple[EpisodeEntry, ...]
    """In the order of the shard."""
    broken: Mapping[str, str]
    """Recordings that cannot be read, by name, and why."""


def write_shard(
    path: Path, recordings: Iterator[Recording | tuple[str, str]], encoding: Encoding, side: int | None
) -> ShardReport:
    """Write a shard and its report, whole or not at all; the report last, so that a shard without one is not done.

    Args:
        path: `*.safetensors`.
        recordings: in order; a broken one as its name and the reason. Those that break while their frames are read are
            left out and told, too.
        encoding: of the frames; png keeps every bit, jpeg of quality 95 takes a tenth of the room.
        side: crop frames to their middle square and resize them to (side, side); None keeps them.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    tensors: dict[str, npt.NDArray[Any]] = {}
    entries: list[EpisodeEntry] = []
    broken: dict[str, str] = {}
    for recording in recordings:
        if isinstance(recording, tuple):
            broken[recording[0]] = recording[1]
            continue
        try:
            entry, parts = _packed(recording, encoding, side)
        except EpisodeError as error:
            broken[recording.name] = str(error)
            continue
        tensors |= {f"{len(entries)}/{name}": part for name, part in parts.items()}
        entries.append(entry)
    report = ShardReport(tuple(entries), broken)
    write_atomically(path, lambda temporary: save_file(tensors, temporary))
    write_text_atomically(path.with_suffix(".json"), json.dumps(asdict(report), indent=1) + "\n")
    return report


def read_report(path: Path) -> ShardReport | None:
    """The report of a shard; None where the shard is not done."""
    try:
        told = json.loads(path.with_suffix(".json").read_text())
        return ShardReport(tuple(EpisodeEntry(**entry) for entry in told["episodes"]), told["broken"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class Shard:
    """Reads episodes of one shard; the file is opened when something is read, and stays open.

    Raises:
        EpisodeError: the file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None}

    def cameras(self, index: int) -> list[str]:
        """Names of the cameras of episode `index`."""
        names = [
            key.removeprefix(f"{index}/").removesuffix("/ends") for key in self._keys() if key.startswith(f"{index}/")
        ]
        return sorted({name for name in names if f"{index}/{name}/ends" in self._keys()})

    def frames(self, index: int, camera: str, rows: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Frames (N,H,W,3) of episode `index`, in the order of `rows`; those that are named twice are decoded once."""
        if f"{index}/{camera}/ends" not in self._keys():
            raise EpisodeError(f"{self.path}: {unknown_name('camera', camera, self.cameras(index))}")
        where = f"{self.path}, {camera} of episode {index}"
        pictures = self.pictures(index, camera, sorted({int(row) for row in rows}))
        decoded = {row: decode_frame(picture, f"{where}, frame {row}") for row, picture in pictures.items()}
        return np.stack([decoded[int(row)] for row in rows])

    def pictures(self, index: int, camera: str, rows: Sequence[int]) -> dict[int, bytes]:
        """The bytes of some pictures by their rows, which rise; those that follow each other are read together."""
        ends = [0, *self._read(f"{index}/{camera}/ends").tolist()]
        stored = self._open().get_slice(f"{index}/{camera}")
        together = len(rows) == rows[-1] - rows[0] + 1
        spans = [rows] if together else [[row] for row in rows]
        found: dict[int, bytes] = {}
        for span in spans:
            start = ends[span[0]]
            block = np.asarray(stored[start : ends[span[-1] + 1]]).tobytes()
            found |= {row: block[ends[row] - start : ends[row + 1] - start] for row in span}
        return found

    def track(self, index: int, name: str) -> npt.NDArray[np.float32] | None:
        """`actions`, `rewards` or `states` of episode `index`; None where there are none."""
        key = f"{index}/{name}"
        return np.asarray(self._read(key), np.float32) if key in self._keys() else None

    def checksum(self, index: int) -> str:
        """SHA-256 of what is stored of episode `index`."""
        names = sorted(key for key in self._keys() if key.startswith(f"{index}/"))
        return _checksum({key.removeprefix(f"{index}/"): self._read(key) for key in names})

    def _keys(self) -> set[str]:
        self._open()
        return self._names

    def _read(self, key: str) -> npt.NDArray[Any]:
        try:
            return np.asarray(self._open().get_tensor(key))
        except SafetensorError as error:
            raise EpisodeError(f"{self.path}: damaged ({error}). Convert it again.") from error

    def _open(self) -> Any:
        if self._file is None:
            try:
                self._file = safe_open(self.path, framework="numpy")
            except (OSError, SafetensorError) as error:
                raise EpisodeError(f"{self.path}: missing or damaged ({error}). Convert it again.") from error
            self._names = set(self._file.keys())
        return self._file


def _packed(
    recording: Recording, encoding: Encoding, side: int | None
) -> tuple[EpisodeEntry, dict[str, npt.NDArray[Any]]]:
    """The entry of an episode, and what is stored of it, by name."""
    content = hashlib.sha256()
    parts: dict[str, npt.NDArray[Any]] = {}
    lengths: dict[str, int] = {}
    for camera, frames in recording.cameras.items():
        pictures = [_encoded(_fitted(frame, side), encoding) for frame in _counted_in(frames(), content)]
        lengths[camera] = len(pictures)
        parts[camera] = np.frombuffer(b"".join(pictures), np.uint8)
        parts[f"{camera}/ends"] = np.cumsum([len(picture) for picture in pictures], dtype=np.int64)
    length = _one_length(recording, lengths)
    tracks = {"actions": recording.actions, "rewards": received(recording), "states": recording.states}
    for name, track in tracks.items():
        if track is None:
            continue
        if len(track) != length:
            raise EpisodeError(
                f"{recording.name}: {name} have {len(track)} rows for {length} frames. Record them alike."
            )
        parts[name] = np.ascontiguousarray(track, np.float32)
        content.update(name.encode() + parts[name].tobytes())
    entry = EpisodeEntry(
        name=recording.name,
        length=length,
        content=content.hexdigest(),
        stored=_checksum(parts),
        split=recording.split,
        language=recording.language,
        frame_rate=recording.frame_rate,
        metadata={**recording.metadata, **_named_parts(recording)},
    )
    return entry, parts


def _one_length(recording: Recording, lengths: Mapping[str, int]) -> int:
    length = next(iter(lengths.values()), 0)
    if length == 0:
        raise EpisodeError(f"{recording.name}: no frames in it. Leave it out.")
    if len(set(lengths.values())) > 1:
        raise EpisodeError(
            f"{recording.name}: its cameras have different numbers of frames, {lengths}. Cut them to one."
        )
    return length


def _counted_in(frames: Iterator[Frame], content: _Digest) -> Iterator[Frame]:
    """The frames, once they are found to have one size, each counted into the hash."""
    shape = None
    for frame in frames:
        require_channels_last((1, *frame.shape))
        if shape not in (None, frame.shape):
            raise EpisodeError(
                f"frames have different sizes, {shape[:2]} and {frame.shape[:2]}. Leave the episode out."
            )
        shape = frame.shape
        content.update(np.ascontiguousarray(frame).tobytes())
        yield frame


def _fitted(frame: Frame, side: int | None) -> Frame:
    if side is None:
        return frame
    square = fit_to_square(torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None], side)
    return square[0].permute(1, 2, 0).numpy()


def _encoded(frame: Frame, encoding: Encoding) -> bytes:
    if encoding == "jpeg":
        from simplejpeg import encode_jpeg

        return bytes(
            encode_jpeg(np.ascontiguousarray(frame), quality=_QUALITY, colorspace="RGB", colorsubsampling="444")
        )
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "PNG")
    return file.getvalue()


def decode_frame(picture: bytes, where: str) -> Frame:
    """What `decode_image` gives, for pictures that a shard holds: JPEG in a third of the time.

    Raises:
        EpisodeError: as `decode_image`.
    """
    if not picture.startswith(_JPEG):
        return decode_image(picture, where)
    from simplejpeg import decode_jpeg

    try:
        return np.asarray(decode_jpeg(picture, colorspace="RGB"))
    except ValueError as error:
        raise EpisodeError(f"{where}: this JPEG is damaged ({error}). Convert it again.") from error


def received(recording: Recording) -> npt.NDArray[np.float32] | None:
    """Rewards (T,) as an episode has them: in the row of the frame on which they are received, the first one 0."""
    rewards = recording.rewards
    if rewards is None or not recording.rewards_follow:
        return rewards
    return np.concatenate([np.zeros(1, np.float32), rewards[:-1]])


def _named_parts(recording: Recording) -> dict[str, Any]:
    """Names of the columns of the actions, as `Episode` metadata have them, and the parts they belong to."""
    if not recording.action_parts:
        return {}
    names = [name if width == 1 else f"{name}.{i}" for name, width in recording.action_parts for i in range(width)]
    return {"action_names": names}


def _checksum(parts: Mapping[str, npt.NDArray[Any]]) -> str:
    digest = hashlib.sha256()
    for name, part in sorted(parts.items()):
        digest.update(f"{name} {part.shape} {part.dtype}".encode() + np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()
