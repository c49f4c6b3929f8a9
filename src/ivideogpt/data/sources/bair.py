"""BAIR robot pushing as its authors published it: TFRecords in `train/` and `test/`, one trajectory a record.

Keys of a record, i from 0: `i/image_main/encoded` and `i/image_aux1/encoded`, 64 * 64 * 3 raw bytes, RGB; `i/action`,
4 floats; `i/endeffector_pos`, 3 floats. The trajectory's number is the first in the file's name plus the record's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.recording import Frame, Recording, as_track
from ivideogpt.data.sources.tfrecord import Example, Span, index_records, naming_record, read_example
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

_FOLDER = "softmotion30_44k"  # what the archive unpacks to
_SPLITS = "train", "val", "test"
_FILE = re.compile(r"traj_(\d{1,9})_to_(\d{1,9})\.tfrecords")
_FRAME = re.compile(r"(\d{1,9})/([^/]+)/encoded")
_SIDE = 64
_STATE = "endeffector_pos"


def recognises(path: Path) -> bool:
    """Whether there are trajectories at `path` in this format: the data set's folder, or one of its splits."""
    try:
        return bool(_splits(path))
    except OSError:
        return False


class BairDataset:
    """The trajectories of one folder: splits in the order train, val, test; files by number; records in file order.

    Args:
        path: the folder with `train/` and `test/`, or one of the two.
        split: `train`, `test` ...; None takes all.

    Raises:
        EpisodeError: no such folder, no such split, or nothing in it.
    """

    def __init__(self, path: Path | str, split: str | None = None) -> None:
        self.path = look_at(path, EpisodeError)
        if not self.path.is_dir():
            raise EpisodeError(f"{self.path}: no such folder. Give the folder that train/ and test/ are in.")
        try:
            splits = _splits(self.path)
        except OSError as error:
            raise EpisodeError(f"{self.path}: {error.strerror}. Give a folder that you may read.") from error
        if not splits:
            raise EpisodeError(f"{self.path}: no traj_*_to_*.tfrecords in train/ or test/. Give the folder {_FOLDER}.")
        if split is not None and split not in splits:
            raise EpisodeError(f"{self.path}: {unknown_name('split', split, splits)}")
        self._records = [
            (name, file, number, span)
            for name, files in splits.items()
            if split in (None, name)
            for file in files
            for number, span in enumerate(_spans(file))
        ]

    def __len__(self) -> int:
        return len(self._records)

    def name(self, index: int) -> str:
        """Split, file and number of the record in it: `train/traj_256_to_511/000`."""
        split, file, number, _ = self._records[index]
        return f"{split}/{file.stem}/{number:03d}"

    def read(self, index: int) -> Recording:
        """Trajectory `index`; cameras `image_main`, `image_aux1`.

        Raises:
            EpisodeError: the record is damaged, or lacks a key. The message begins with the path of its file.
        """
        _, file, number, span = self._records[index]
        with naming_record(file, number):
            return self._recording(read_example(file, span), index)

    def _recording(self, example: Example, index: int) -> Recording:
        split, file, number, span = self._records[index]
        length, cameras = _cameras(example)
        states = _track(example, _STATE, length)
        first = _FILE.fullmatch(file.name)
        assert first is not None, "files are chosen by this pattern"
        return Recording(
            name=self.name(index),
            cameras={camera: partial(_frames, file, span, number, camera, length) for camera in cameras},
            length=length,
            actions=_track(example, "action", length),
            states=states,
            state_parts=() if states is None else ((_STATE, states.shape[1]),),
            split=split,
            metadata={"file": file.name, "record": number, "official_index": int(first[1]) + number},
        )


def _splits(path: Path) -> dict[str, list[Path]]:
    """Splits that have files, and their files by number."""
    for root in (path, path / _FOLDER):
        splits = {split: files for split in _SPLITS if (files := _files(root / split))}
        if splits:
            return splits
    files = _files(path)
    return {path.resolve().name: files} if files else {}


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    matches = [(match, file) for file in folder.iterdir() if (match := _FILE.fullmatch(file.name))]
    return [file for _, file in sorted(matches, key=lambda pair: (int(pair[0][1]), int(pair[0][2]), pair[1]))]


def _spans(file: Path) -> list[Span]:
    """Records of a file; one with a fault where the file cannot be opened."""
    try:
        return index_records(file)
    except EpisodeError as error:
        return [Span(0, 0, str(error).removeprefix(f"{file}: "))]


def _cameras(example: Example) -> tuple[int, list[str]]:
    """Frames, and the names of the cameras, each of which has a picture at every step."""
    steps: dict[str, set[int]] = {}
    for key in example:
        if match := _FRAME.fullmatch(key):
            steps.setdefault(match[2], set()).add(int(match[1]))
    if not steps:
        held = ", ".join(list(example)[:5]) or "none"
        raise EpisodeError(f"no key like '0/image_main/encoded' (keys: {held}). Give the original files of BAIR.")
    length = 1 + max(max(numbers) for numbers in steps.values())
    for camera, numbers in steps.items():
        if len(numbers) < length:
            missing = next(step for step in range(length) if step not in numbers)
            raise EpisodeError(
                f"no key '{missing}/{camera}/encoded', though there are {length} steps; every step needs a picture of "
                "every camera. Copy or download the file again."
            )
    return length, sorted(steps, key=lambda camera: (camera != "image_main", camera))


def _track(example: Example, key: str, length: int) -> npt.NDArray[np.float32] | None:
    """Rows (T, size) of one key; None where no step has it. Where only the last lacks an action, it is repeated."""
    held = [step for step in range(length) if f"{step}/{key}" in example]
    if not held:
        return None
    rows = [example.numbers(f"{step}/{key}") for step in held]
    sizes = sorted({len(row) for row in rows})
    if len(sizes) > 1:
        raise EpisodeError(f"'{key}' has {sizes[0]} numbers at one step and {sizes[-1]} at another. Write one width.")
    if key == "action" and held == list(range(length - 1)):
        rows.append(rows[-1])
    elif len(held) < length:
        missing = next(step for step in range(length) if f"{step}/{key}" not in example)
        raise EpisodeError(f"no key '{missing}/{key}', though there are {length} steps. Write one for every step.")
    return as_track(f"{key}s" if key == "action" else key, np.stack(rows), length)


def _frames(file: Path, span: Span, number: int, camera: str, length: int) -> Iterator[Frame]:
    with naming_record(file, number):
        example = read_example(file, span)
        for step in range(length):
            key = f"{step}/{camera}/encoded"
            pictures = example.texts(key)
            if [len(data) for data in pictures] != [_SIDE * _SIDE * 3]:
                held = " and ".join(f"{len(data)} bytes" for data in pictures[:3]) or "nothing"
                raise EpisodeError(
                    f"key {key!r} holds {held}; it must hold one picture of {_SIDE} * {_SIDE} * 3 raw bytes. Give the "
                    "original files of BAIR."
                )
            yield np.frombuffer(pictures[0], np.uint8).reshape(_SIDE, _SIDE, 3).copy()
