"""RLDS data sets, of Open X-Embodiment and others: TFRecord shards written by tensorflow_datasets, an episode a record.

A version's folder (`1.0.0`) holds `features.json`, `dataset_info.json` and the shards
`<name>-<split>.tfrecord-00000-of-00002`. Records lie in the order of a hash, which is the order of their numbers here.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ivideogpt.data.episode import JsonValue
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.data.sources.rlds_features import (
    Feature,
    frames_of,
    instruction_of,
    metadata_of,
    read_json,
    read_layout,
    steps_of,
    track,
)
from ivideogpt.data.sources.tfrecord import Span, index_records, naming_record, read_example
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

_FEATURES, _INFO = "features.json", "dataset_info.json"
_ORDER = "train", "val", "validation", "test"
_VERSION = re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}", re.ASCII)
_SHARD = re.compile(r"(.+)-([^-]+)\.tfrecord-(\d{1,9})-of-(\d{1,9})", re.ASCII)
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_MOST_SHARDS, _MOST_RECORDS = 100_000, 10_000_000  # of a split: what is beyond is a mistake
_RECORD_BYTES = 16  # around a payload


@dataclass(frozen=True)
class _Shard:
    """One file of a split; `declared` is how many records it should hold, if anything says."""

    path: Path
    declared: int | None


@dataclass(frozen=True)
class _Split:
    shards: tuple[_Shard, ...]
    payload_bytes: int | None = None  # of all its records, if anything says


def recognises(path: Path) -> bool:
    """Whether `path` is a version's folder of a tensorflow_datasets data set, or holds such folders."""
    try:
        return (path / _FEATURES).is_file() or bool(_versions(path))
    except OSError:
        return False


class RldsDataset:
    """The episodes of one version: splits in the order train, val, test, others; shards by number; records in order.

    Args:
        path: the folder of a version, or the one above it, of which the newest version is taken.
        split: one split by its name; None takes all.

    Raises:
        EpisodeError: no such folder or split, or its `features.json` or `dataset_info.json` cannot be used.
    """

    def __init__(self, path: Path | str, split: str | None = None) -> None:
        given = look_at(path, EpisodeError)
        try:
            self.path = _version_folder(given)
            self._layout = read_layout(self.path / _FEATURES)
            splits = _splits(self.path)
            if split is not None and split not in splits:
                raise EpisodeError(f"{self.path}: {unknown_name('split', split, splits)}")
            self._number({name: splits[name] for name in splits if split in (None, name)})
        except OSError as error:
            raise EpisodeError(f"{given}: {error.strerror}. Give a folder that you may read.") from error

    def _number(self, splits: dict[str, _Split]) -> None:
        self._spans: dict[Path, list[Span]] = {}
        self._shards: list[tuple[str, int, _Shard]] = []  # split, number of the first record in it, file
        counts: list[int] = []
        for name, split in splits.items():
            sizes = self._counts(split)
            firsts = accumulate(sizes, initial=0)
            self._shards += [(name, first, shard) for first, shard in zip(firsts, split.shards, strict=False)]
            counts += sizes
        self._ends = list(accumulate(counts))
        if not len(self):
            raise EpisodeError(f"{self.path}: no records in {', '.join(splits)}. Copy or download the data set again.")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def name(self, index: int) -> str:
        """Split and number in it: `train/00000`."""
        shard, number = self._place(index)
        split, first, _ = self._shards[shard]
        return f"{split}/{first + number:05d}"

    def read(self, index: int) -> Recording:
        """Episode `index`; row j of actions and rewards belongs to the step of frame j.

        Raises:
            EpisodeError: its record is damaged or missing, or is not what `features.json` says. The message begins
                with the path of the shard.
        """
        at, number = self._place(index)
        split, _, shard = self._shards[at]
        with naming_record(shard.path, number):
            span = self._records(shard)[number]
            example = read_example(shard.path, span)
            layout = self._layout
            length = steps_of(example, layout)
            source = partial(_frames, shard.path, span, number)
            metadata: dict[str, JsonValue] = {"shard": shard.path.name, "record": number}
            rewards = track(example, "rewards", [("reward", layout.rewards)] if layout.rewards else [], length)
            return Recording(
                name=self.name(index),
                cameras={camera: partial(source, feature, length) for camera, feature in layout.cameras},
                length=length,
                actions=track(example, "actions", layout.actions, length),
                action_parts=_parts(layout.actions, "action"),
                rewards=None if rewards is None else rewards[:, 0],
                rewards_follow=True,
                states=track(example, "states", layout.states, length),
                state_parts=_parts(layout.states, "state"),
                language=instruction_of(example, layout, length),
                split=split,
                metadata=metadata | metadata_of(example, layout),
            )

    def _place(self, index: int) -> tuple[int, int]:
        """Which shard holds recording `index`, and its number in there."""
        index = range(len(self))[index]
        at = bisect_right(self._ends, index)
        return at, index - (self._ends[at - 1] if at else 0)

    def _counts(self, split: _Split) -> list[int]:
        """Records of each shard: as declared where the files are as large as they then must be, else as found."""
        declared = [shard.declared for shard in split.shards if shard.declared is not None]
        if len(declared) == len(split.shards) and split.payload_bytes is not None:
            sizes = [shard.path.stat().st_size for shard in split.shards if shard.path.is_file()]
            if len(sizes) == len(declared) and sum(sizes) == split.payload_bytes + _RECORD_BYTES * sum(declared):
                return declared
        return [len(self._records(shard)) for shard in split.shards]

    def _records(self, shard: _Shard) -> list[Span]:
        if shard.path not in self._spans:
            self._spans[shard.path] = _spans(shard)
        return self._spans[shard.path]


def _parts(features: tuple[tuple[str, Feature], ...], whole: str) -> tuple[tuple[str, int], ...]:
    """Names and widths; none where there is one feature of the name that the whole has."""
    if [name for name, _ in features] == [whole]:
        return ()
    return tuple((name, feature.size or 0) for name, feature in features)


def _frames(path: Path, span: Span, number: int, feature: Feature, length: int) -> Iterator[Frame]:
    with naming_record(path, number):
        yield from frames_of(read_example(path, span), feature, length, str(path))


def _spans(shard: _Shard) -> list[Span]:
    """Records of a shard, those that are declared and not in it included."""
    try:
        spans = index_records(shard.path)
    except EpisodeError as error:
        spans = [Span(0, 0, str(error).removeprefix(f"{shard.path}: "))]
    faults = [number for number, span in enumerate(spans) if span.fault is not None]
    missing = (shard.declared or 0) - len(spans)
    if shard.declared == 0 and len(faults) == len(spans):
        return []
    if missing <= 0:
        return spans
    fault = f"missing: {_INFO} says {shard.declared} records. Copy or download the file again."
    lost = [spans[faults[0]] if len(faults) == 1 else Span(0, 0, fault)] * missing
    # Where one stretch is damaged they lay there, so that those behind it keep their numbers.
    at = faults[0] + 1 if len(faults) == 1 else len(spans)
    return spans[:at] + lost + spans[at:]


def _version_folder(path: Path) -> Path:
    if path.is_file():
        raise EpisodeError(f"{path}: this is a file. Give the folder that {_FEATURES} and the shards are in.")
    if not path.is_dir():
        raise EpisodeError(f"{path}: no such folder. Give the folder of an RLDS data set.")
    if (path / _FEATURES).exists():
        return path
    versions = _versions(path)
    if versions:
        return versions[-1]
    below = sorted(folder.name for folder in path.iterdir() if folder.is_dir() and _versions(folder))
    cure = f"There are some in {', '.join(below[:8])}: name one." if below else "Copy it from where the data set is."
    raise EpisodeError(f"{path}: no {_FEATURES} in it, and no folder of a version that has one. {cure}")


def _versions(path: Path) -> list[Path]:
    """Folders of versions, oldest first."""
    if not path.is_dir():
        return []
    folders = [
        folder for folder in path.iterdir() if _VERSION.fullmatch(folder.name) and (folder / _FEATURES).is_file()
    ]
    return sorted(folders, key=lambda folder: [int(number) for number in folder.name.split(".")])


def _splits(folder: Path) -> dict[str, _Split]:
    """Splits in their order, as `dataset_info.json` and the files' names say."""
    found = _splits_by_files(folder)
    declared = _splits_by_info(folder) if (folder / _INFO).exists() else {}
    for name, split in declared.items():
        # Files that were renamed: their own names tell.
        if name not in found or any(shard.path.exists() for shard in split.shards):
            found[name] = split
    if not any(shard.path.exists() for split in found.values() for shard in split.shards):
        raise EpisodeError(f"{folder}: no shard (*.tfrecord-00000-of-00001) in it. Copy or download them.")
    order = sorted(found, key=lambda name: (_ORDER.index(name) if name in _ORDER else len(_ORDER), name))
    return {name: found[name] for name in order}


def _splits_by_files(folder: Path) -> dict[str, _Split]:
    splits: dict[str, dict[int, Path]] = {}
    totals: dict[str, int] = {}
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        if not match:
            continue
        prefix, split, total = match[1], match[2], int(match[4])
        if total > _MOST_SHARDS or totals.setdefault(split, total) != total:
            raise EpisodeError(
                f"{path}: it is one of {total} shards, others of {totals.get(split, _MOST_SHARDS)} at most; a split is "
                "written once. Keep the shards of one version."
            )
        files = splits.setdefault(split, {})
        if not files:
            files.update({n: folder / f"{prefix}-{split}.tfrecord-{n:05d}-of-{total:05d}" for n in range(total)})
        files[int(match[3])] = path
    return {
        split: _Split(tuple(_Shard(path, None) for _, path in sorted(files.items()))) for split, files in splits.items()
    }


def _splits_by_info(folder: Path) -> dict[str, _Split]:
    path = folder / _INFO
    info = read_json(path)
    try:
        form = info.get("fileFormat") or "tfrecord"
        if form != "tfrecord":
            raise EpisodeError(
                f"{path}: the shards are {form!r}; 'tfrecord' is read. Convert them with "
                "`python -m tensorflow_datasets.scripts.convert_format`."
            )
        splits = {str(split["name"]): split for split in info.get("splits") or []}
        return {name: _declared(folder, info, split) for name, split in splits.items() if split.get("shardLengths")}
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(
            f"{path}: not what tensorflow_datasets writes ({type(error).__name__}: {error}). Copy it again, or remove "
            "it: the names of the shards tell enough."
        ) from error


def _declared(folder: Path, info: dict[str, Any], split: dict[str, Any]) -> _Split:
    lengths = [int(length) for length in split["shardLengths"]]
    total = len(lengths)
    size = None if split.get("numBytes") is None else int(split["numBytes"])
    most = _MOST_RECORDS if size is None else min(size, _MOST_RECORDS)
    if total > _MOST_SHARDS or min(lengths) < 0 or sum(lengths) > most:
        raise EpisodeError(
            f"{folder / _INFO}: split {split['name']!r} has {total} shards and {sum(lengths)} records, {min(lengths)} "
            f"in one; there can be {_MOST_SHARDS} and {most}, and never fewer than 0. Copy it again."
        )
    values = {"DATASET": info.get("name"), "SPLIT": split["name"], "FILEFORMAT": "tfrecord"}
    shards = []
    for number, length in enumerate(lengths):
        index = {"SHARD_INDEX": f"{number:05d}", "NUM_SHARDS": f"{total:05d}"}
        name = str(split.get("filepathTemplate") or _TEMPLATE)
        for key, value in (values | index | {"SHARD_X_OF_Y": f"{number:05d}-of-{total:05d}"}).items():
            name = name.replace(f"{{{key}}}", str(value))
        shards.append(_Shard(folder / Path(name).name, length))
    return _Split(tuple(shards), size)
