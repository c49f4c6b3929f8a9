"""Something-Something v2: short videos of hands that do something, one `<id>.webm` each, with labels in JSON files.

Layout: `20bn-something-something-v2/<id>.webm` and `labels/{train,validation,test,labels}.json`. A class is a
template without its brackets; `labels.json` numbers the classes. The test split has ids only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ivideogpt.data.episode import JsonValue
from ivideogpt.data.sources.recording import Recording
from ivideogpt.data.sources.video import Video
from ivideogpt.data.sources.video_folder import CAMERA, stream_video
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

SPLITS = ("train", "validation", "test")

PAPER_CLASSES = frozenset(
    number
    for first, last in (
        *((1, 1), (5, 6), (13, 21), (27, 31), (33, 40), (42, 43), (45, 58), (85, 120), (122, 123)),
        *((139, 141), (143, 148), (156, 160), (164, 164), (173, 173)),
    )
    for number in range(first, last + 1)
)
"""Numbers of the 95 of 174 classes that the paper trains on (A.2): hands move things, and the camera stays."""

_VIDEO_FOLDERS = ("20bn-something-something-v2", "videos", ".")
_JSON_TO_MEMORY = 10  # how much larger than its file a JSON text may get in memory


@dataclass(frozen=True)
class _Entry:
    """One line of a split: what it says of a video, or what is wrong with it."""

    name: str
    split: str
    label: str | None = None
    template: str | None = None
    placeholders: tuple[str, ...] = ()
    fault: str = ""


def recognises(path: Path) -> bool:
    """Whether labels of this data set are in the folder, and videos beside them."""
    try:
        path = look_at(path, EpisodeError)
        labelled = any(_labels(path, split) is not None for split in SPLITS)
        return labelled and (
            (path / _VIDEO_FOLDERS[0]).is_dir() or next(_videos(path).glob("*.webm"), None) is not None
        )
    except (EpisodeError, OSError):
        return False


class SomethingSomething:
    """The videos of Something-Something v2 in the order of their label files: train, validation, test.

    Args:
        path: the folder that `labels/` and `20bn-something-something-v2/` are in.
        split: `train`, `validation` or `test`; None takes all that have a label file.
        classes: numbers of the classes to keep, such as `PAPER_CLASSES`; None keeps all, also videos without a class.

    Raises:
        EpisodeError: the folder or a label file is missing or damaged, or nothing is left of it.
    """

    def __init__(self, path: Path | str, split: str | None = None, classes: Collection[int] | None = None) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.is_dir():
            raise EpisodeError(f"{self.root}: no such folder. Give the one that labels/ is in.")
        if split is not None and split not in SPLITS:
            raise EpisodeError(f"{self.root}: {unknown_name('split', split, SPLITS)}")
        files = {name: file for name in SPLITS if split in (None, name) and (file := _labels(self.root, name))}
        if not files:
            wanted = split or "train"
            raise EpisodeError(f"{self.root}: no labels/{wanted}.json in it. Copy the label files there.")
        self._videos = _videos(self.root)
        self._numbers_path = _labels(self.root, "labels")
        self._numbers = {} if self._numbers_path is None else _read_numbers(self._numbers_path)
        if classes is not None and not self._numbers:
            raise EpisodeError(f"{self.root / 'labels' / 'labels.json'}: needed to choose classes. Copy it there.")
        self._entries = self._read_splits(files, classes)
        if not self._entries:
            of_classes = "" if classes is None else f" of the {len(classes)} classes asked for"
            raise EpisodeError(f"{next(iter(files.values()))}: no video{of_classes} in it. Ask for others.")

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, index: int) -> str:
        """Id of video `index`."""
        return self._entries[index].name

    def read(self, index: int) -> Recording:
        """Video `index`. Metadata hold its id, template, placeholders, class and the class's number, where known."""
        entry = self._entries[index]
        if entry.fault:
            raise EpisodeError(entry.fault)
        path = self._videos / f"{entry.name}.webm"
        with Video(path) as video:
            rate = video.frame_rate
        metadata: dict[str, JsonValue] = {"id": entry.name}
        if entry.template is not None:
            key = _class_of(entry.template)
            number = self._numbers.get(key)
            if number is None and self._numbers_path is not None:
                raise EpisodeError(
                    f"{self._numbers_path}: no class {key!r}, which video {entry.name} of {entry.split} is of. "
                    "Copy the whole file again, or remove it to go without numbers of classes."
                )
            metadata |= {"template": entry.template, "placeholders": list(entry.placeholders)}
            metadata |= {"class": key, "class_index": number}
        return Recording(
            name=entry.name,
            cameras={CAMERA: partial(stream_video, path)},
            length=None,
            language=entry.label,
            split=entry.split,
            frame_rate=rate,
            metadata=metadata,
        )

    def _read_splits(self, files: dict[str, Path], classes: Collection[int] | None) -> list[_Entry]:
        entries: list[_Entry] = []
        taken: set[str] = set()
        for split, file in files.items():
            lines = _read_json(file)
            if not isinstance(lines, list):
                raise EpisodeError(f"{file}: holds {_kind(lines)}; it must be a list of videos. Copy it again.")
            for number, line in enumerate(lines):
                entry = _entry(line, split, file, number, taken)
                taken.add(entry.name)
                key = None if entry.template is None else _class_of(entry.template)
                if classes is None or (key is not None and self._numbers.get(key) in classes):
                    entries.append(entry)
        return entries


def _entry(line: Any, split: str, file: Path, number: int, taken: set[str]) -> _Entry:
    """Entry `number` of a label file; one that cannot be used keeps its place and says why."""
    where = f"{file}: entry {number}"
    spare = f"{split}-entry-{number}"
    if not isinstance(line, dict):
        return _Entry(spare, split, fault=f"{where} is {_kind(line)}; it must be an object with an id. Copy it again.")
    name = str(line["id"]) if isinstance(line.get("id"), str | int) else ""
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        fault = f"{where} has id {line.get('id')!r:.50}; it must be a number as text. Copy it again."
        return _Entry(spare, split, fault=fault)
    if name in taken:
        return _Entry(spare, split, fault=f"{where} has id {name}, as an earlier one has. Remove one of them.")
    label, template, placeholders = line.get("label"), line.get("template"), line.get("placeholders", [])
    texts = [value for value in (label, template) if value is not None]
    texts += placeholders if isinstance(placeholders, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        fault = f"{where}, video {name}: label, template and placeholders must be texts. Copy it again."
        return _Entry(name, split, fault=fault)
    if split != "test" and template is None:
        return _Entry(name, split, fault=f"{where}, video {name}: no template, which tells its class. Copy it again.")
    return _Entry(name, split, label, template, tuple(placeholders))


def _class_of(template: str) -> str:
    return template.replace("[", "").replace("]", "")


def _labels(root: Path, split: str) -> Path | None:
    """Path of a label file: as published today, or under its older name."""
    older = f"something-something-v2-{split}.json"
    names = (f"labels/{split}.json", f"labels/{older}", older)
    return next((root / name for name in names if (root / name).is_file()), None)


def _videos(root: Path) -> Path:
    return next(root / name for name in _VIDEO_FOLDERS if (root / name).is_dir())


def _read_numbers(path: Path) -> dict[str, int]:
    numbers = _read_json(path)
    if not isinstance(numbers, dict):
        raise EpisodeError(f"{path}: holds {_kind(numbers)}; it must map classes to numbers. Copy it again.")
    read: dict[str, int] = {}
    for key, number in numbers.items():
        if not re.fullmatch(r"[0-9]{1,9}", str(number)):
            raise EpisodeError(f"{path}: class {key!r} has number {number!r:.50}; it must be whole. Copy it again.")
        read[key] = int(number)
    return read


def _read_json(path: Path) -> Any:
    try:
        size, free = path.stat().st_size, free_memory(torch.device("cpu"))
        if free is not None and size * _JSON_TO_MEMORY > free:
            raise EpisodeError(
                f"{path}: {size / 1e9:.3g} GB of labels; {free / 1e9:.3g} GB of memory are free. Copy it again."
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise EpisodeError(f"{path}: no readable JSON ({error}). Copy it again.") from error


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "nothing"}.get(type(value), "a number")
