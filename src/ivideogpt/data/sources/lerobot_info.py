"""`meta/info.json` of a LeRobot data set: what it declares, checked."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ivideogpt.errors import EpisodeError

INFO = "meta/info.json"
LONGEST_TEXT = 2**26  # bytes of a JSON file, or of a line; the largest in use have a few hundred thousand

_NUMBERS = re.compile(r"(float|int|uint)\d+|bool")
_FIELD = re.compile(r"\{(\w+)(?::0?(\d{0,2})d)?\}")
_DEFAULT_CHUNK = 1000
_SURELY_SENSIBLE = 1_000_000  # episodes that a data set may claim to have without listing them


@dataclass(frozen=True)
class Feature:
    """One feature: a column of the tables, or a camera.

    Attributes:
        key: its name.
        dtype: `video`, `image`, `float32` ...
        size: numbers in a row; None where nothing is said.
        names: of the numbers, one for each; empty where nothing legible is said.
        depth: whether a camera holds depth.
    """

    key: str
    dtype: str
    size: int | None
    names: tuple[str, ...]
    depth: bool

    @property
    def is_camera(self) -> bool:
        """Whether it holds pictures."""
        return self.dtype in ("video", "image")

    @property
    def is_number(self) -> bool:
        """Whether it holds numbers."""
        return _NUMBERS.fullmatch(self.dtype) is not None


@dataclass(frozen=True)
class Info:
    """What `meta/info.json` says.

    Attributes:
        root: folder of the data set.
        version: as written, such as `v2.1`.
        major: 2 or 3.
        frame_rate: frames a second.
        robot: type of the robot, if any.
        features: by key, in their order.
        splits: name to first episode and the one past the last; as written, whether right or not.
        total: episodes it claims; None where it says nothing legible.
        chunk: episodes in a chunk (v2).
        data_path: template of the tables' paths below the root.
        video_path: template of the videos' paths below the root.
    """

    root: Path
    version: str
    major: int
    frame_rate: float
    robot: str | None
    features: Mapping[str, Feature]
    splits: Mapping[str, tuple[int, int]]
    total: int | None
    chunk: int
    data_path: str
    video_path: str | None

    @property
    def path(self) -> Path:
        """Path of the file itself."""
        return self.root / INFO

    def expand(self, template: str, **values: int | str) -> Path:
        """Path that a template stands for; raises EpisodeError for an unknown field, or a way out of the root."""

        def fill(match: re.Match[str]) -> str:
            value = values.get(match[1])
            if value is None:
                raise EpisodeError(
                    f"{self.path}: the path {template!r} has a field {match[1]!r}; the fields are "
                    f"{', '.join(values)}. Mend it."
                )
            return str(value).zfill(int(match[2] or 0))

        relative = Path(_FIELD.sub(fill, template))
        if relative.is_absolute() or ".." in relative.parts:
            raise EpisodeError(
                f"{self.path}: the path {str(relative)!r} leads out of the data set; it must lie in it. Mend it."
            )
        return self.root / relative

    def cameras(self) -> list[Feature]:
        """Cameras of colour, in their order."""
        return [feature for feature in self.features.values() if feature.is_camera and not feature.depth]

    def columns(self, *keys: str) -> list[Feature]:
        """Features of numbers called by the first of `keys` for which there are some; a key that ends in `.` means all
        that begin with it.
        """
        numbers = [feature for feature in self.features.values() if feature.is_number]
        for key in keys:
            found = [f for f in numbers if f.key == key or (key.endswith(".") and f.key.startswith(key))]
            if found:
                return found
        return []

    def split(self, number: int, episodes: int) -> str | None:
        """Split of episode `number` of `episodes`; None unless the splits lie within them and do not overlap."""
        spans = sorted(span for span in self.splits.values() if span[0] < span[1])
        apart = all(before[1] <= after[0] for before, after in pairwise(spans))
        if not apart or any(stop > episodes for _, stop in spans):
            return None
        return next((name for name, (start, stop) in self.splits.items() if start <= number < stop), None)


def read_info(root: Path) -> Info:
    """Read and check `meta/info.json` below `root`.

    Raises:
        EpisodeError: missing, no JSON, of another version, or a field that all else rests on is not legal.
    """
    path = root / INFO
    content = read_json(path)
    version = content.get("codebase_version")
    match = re.fullmatch(r"v?(\d{1,4})\.(\d{1,4})(\.\d{1,4})?", version) if isinstance(version, str) else None
    if match is None or int(match[1]) not in (2, 3):
        raise EpisodeError(
            f"{path}: codebase_version is {version!r}; LeRobot v2.0, v2.1 and v3.0 are read. "
            "Convert the data set with the scripts of the lerobot package."
        )
    major = int(match[1])
    rate = content.get("fps")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise EpisodeError(f"{path}: fps is {rate!r}; it must be a number above 0. Write the frame rate there.")
    features = content.get("features")
    if not isinstance(features, dict) or not features:
        raise EpisodeError(f"{path}: features are {_brief(features)}; they must be a mapping. Copy the file again.")
    data_path, video_path = content.get("data_path"), content.get("video_path")
    if not isinstance(data_path, str) or not isinstance(video_path, str | None):
        raise EpisodeError(
            f"{path}: data_path is {_brief(data_path)} and video_path {_brief(video_path)}; they must be templates of "
            "paths. Copy the file again."
        )
    robot, total, chunk = content.get("robot_type"), content.get("total_episodes"), content.get("chunks_size")
    return Info(
        root=root,
        version=match[0],
        major=major,
        frame_rate=float(rate),
        robot=robot if isinstance(robot, str) and robot else None,
        features={key: _feature(path, key, value) for key, value in features.items()},
        splits=dict(_splits(content.get("splits"))),
        total=total if is_count(total) else None,
        chunk=chunk if is_count(chunk) and chunk else _DEFAULT_CHUNK,
        data_path=data_path,
        video_path=video_path,
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds a mapping; raises EpisodeError for all else."""
    try:
        if not path.is_file():
            raise EpisodeError(f"{path}: no such file. Copy the data set again.")
        if path.stat().st_size > LONGEST_TEXT:
            raise EpisodeError(f"{path}: {path.stat().st_size} bytes; the most is {LONGEST_TEXT}. Copy it again.")
        return as_mapping(path.read_bytes())
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, EpisodeError):
            raise
        raise EpisodeError(f"{path}: no JSON mapping ({error}). Copy the file again.") from error


def as_mapping(text: bytes) -> dict[str, Any]:
    """The JSON mapping that a text holds; raises ValueError or RecursionError."""
    content = json.loads(text)  # UnicodeDecodeError is a ValueError
    if not isinstance(content, dict):
        raise ValueError(f"it holds {_brief(content)}")
    return content


def is_count(value: object) -> TypeGuard[int]:
    """Whether a value of a JSON file is a whole number from 0 on that 64 bits hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def all_numbers(info: Info, listed: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Numbers of all episodes, those that are listed and those that only `total_episodes` claims; sorted.

    Raises:
        EpisodeError: there are none, or it claims more than anybody records.
    """
    total = info.total or 0
    if total > max(_SURELY_SENSIBLE, 10 * len(listed)):
        raise EpisodeError(
            f"{info.path}: total_episodes is {total}, and {len(listed)} are listed. Write the true number there."
        )
    numbers = np.union1d(listed, np.arange(total, dtype=np.int64))
    if not len(numbers):
        raise EpisodeError(f"{info.root}: no episode is listed in meta. Record some, or give another folder.")
    return numbers


def _feature(path: Path, key: str, declared: object) -> Feature:
    if not isinstance(declared, dict) or not isinstance(declared.get("dtype"), str):
        raise EpisodeError(
            f"{path}: the feature {key!r} is {_brief(declared)}; it must be a mapping with dtype and shape. "
            "Copy the file again."
        )
    shape = declared.get("shape")
    shape = [shape] if is_count(shape) else shape
    size = math.prod(shape) if isinstance(shape, list) and all(is_count(side) for side in shape) else None
    facts = [declared.get("info"), declared.get("video_info"), declared]
    depth = any(isinstance(fact, dict) and fact.get("video.is_depth_map") is True for fact in facts)
    depth = depth or any(isinstance(fact, dict) and fact.get("is_depth_map") is True for fact in facts)
    names = tuple(_names(declared.get("names")))
    return Feature(key, declared["dtype"], size, names if len(names) == size else (), depth)


def _names(names: object) -> Iterator[str]:
    """Names of numbers: a list, a mapping of a kind to its list, or of a name to its place."""
    if isinstance(names, str):
        yield names
    elif isinstance(names, list):
        for name in names[:LONGEST_TEXT]:
            yield from _names(name)
    elif isinstance(names, dict):
        if all(is_count(place) for place in names.values()):
            yield from sorted(names, key=lambda name: int(names[name]))
        else:
            for name in names.values():
                yield from _names(name)


def _splits(splits: object) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, span in splits.items() if isinstance(splits, dict) else ():
        match = re.fullmatch(r"(\d{1,18}):(\d{1,18})", span) if isinstance(span, str) else None
        if match is not None:
            yield name, (int(match[1]), int(match[2]))


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
