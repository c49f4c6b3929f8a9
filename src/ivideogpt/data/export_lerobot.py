"""Recordings as a LeRobot v3.0 data set, which the package `lerobot` opens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.export_lerobot_files import Tables, Unfit, Videos
from ivideogpt.data.export_lerobot_stats import Statistics, Total, of_track
from ivideogpt.data.sources.recording import Recording
from ivideogpt.errors import EpisodeError
from ivideogpt.files import folder_written_atomically, write_text_atomically

_CHUNK = 1000  # files in a folder
_TABLE_MEGABYTES, _VIDEO_MEGABYTES = 100, 200  # as the package lerobot has it
_LISTED = 64  # episodes that are written to the list at a time
_PLACES = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_COUNTERS = {"frame_index": "int64", "episode_index": "int64", "index": "int64", "task_index": "int64"}


def write_lerobot(
    recordings: Iterator[Recording],
    folder: Path,
    fps: float,
    robot: str = "unknown",
    *,
    table_megabytes: float = _TABLE_MEGABYTES,
    video_megabytes: float = _VIDEO_MEGABYTES,
) -> int:
    """Write recordings as a LeRobot v3.0 data set, one in memory at a time; whole or not at all.

    A camera called other than `observation...` becomes `observation.images.<its name>`. Rewards become `next.reward`:
    row j is earned by action j. The first recording says which cameras, actions, states and rewards there are.

    Args:
        recordings: in the order that they shall have; those of one split follow each other.
        folder: takes the place of an older one.
        fps: frames a second of all.
        robot: its type.
        table_megabytes: size from which on another file of rows begins.
        video_megabytes: size from which on another video of a camera begins.

    Returns:
        How many there are.

    Raises:
        EpisodeError: there are none; one has other cameras, sizes or columns than the first, or frames and rows that
            differ; or what reading one raises.
        OutputError: the disk is full, or the folder cannot be written.
    """
    if not 0 < fps < 1e6:
        raise EpisodeError(f"{folder}: {fps} frames a second; it must be a number above 0. Give the frame rate.")
    with folder_written_atomically(folder) as temporary:
        writer = _Writer(temporary, fps, table_megabytes, video_megabytes)
        try:
            for recording in recordings:
                writer.add(recording)
            writer.finish(robot)
        except BaseException:
            with suppress(Exception):  # what cannot be closed either is not what went wrong first
                writer.close()
            raise
        if not writer.episodes:
            raise EpisodeError(f"{folder}: no recording to write. Give at least one.")
        return writer.episodes


@dataclass(frozen=True, eq=False)
class _Column:
    """Numbers with one row a frame, (T, size), and names of them, if any."""

    values: npt.NDArray[Any]
    names: list[str] | None = None

    @property
    def feature(self) -> dict[str, Any]:
        """What `info.json` says of it."""
        return {"dtype": str(self.values.dtype), "shape": [self.values.shape[1]], "names": self.names}


@dataclass
class _Writer:
    """A data set as far as it is written."""

    folder: Path
    fps: float
    table_megabytes: float
    video_megabytes: float
    episodes: int = 0
    frames: int = 0
    tasks: dict[str, int] = field(default_factory=dict)
    splits: dict[str, tuple[int, int]] = field(default_factory=dict)
    features: dict[str, dict[str, Any]] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = Tables(self.folder / "data", self.table_megabytes, _CHUNK)
        self.lists = Tables(self.folder / "meta" / "episodes", self.table_megabytes, _CHUNK)
        self.videos: dict[str, Videos] = {}
        self.total = Total()

    def add(self, recording: Recording) -> None:
        """Write one more."""
        try:
            self._add_split(recording.split)
            cameras = {_camera_key(name): frames for name, frames in recording.cameras.items()}
            if not self.episodes:
                for key in cameras:
                    self.videos[key] = Videos(self.folder / "videos" / key, self.fps, self.video_megabytes, _CHUNK)
            if set(cameras) != set(self.videos) or len(cameras) < len(recording.cameras) or not cameras:
                raise Unfit(
                    f"cameras are {_list(recording.cameras)}; each must have the same, {_list(self.videos)}. "
                    "Leave out what not all have, and give each another name."
                )
            placed = {key: self.videos[key].add(frames()) for key, frames in cameras.items()}
            lengths = {key: part.length for key, part in placed.items()} | _rows_of(recording)
            if len(set(lengths.values())) > 1:
                raise Unfit(f"frames and rows differ: {lengths}; there must be a row a frame. Cut them.")
            length = next(iter(lengths.values()))
            columns = self._columns(recording, length)
            self._add_features(columns)
        except Unfit as error:
            raise EpisodeError(f"{recording.name}: {error}") from error
        task = recording.language or ""
        statistics = {key: part.statistics for key, part in placed.items()}
        statistics |= {name: of_track(column.values) for name, column in columns.items()}
        chunk, file = self.rows.write(_table(columns))
        places = {f"videos/{key}/{name}": value for key, part in placed.items() for name, value in part.place.items()}
        self._list(length, task, {"data/chunk_index": chunk, "data/file_index": file}, places, statistics)

    def finish(self, robot: str) -> None:
        """Close all files, and write what says what they are."""
        self._write_listed()
        self.close()
        if not self.episodes:
            return
        info = {
            "codebase_version": "v3.0",
            "robot_type": robot,
            "total_episodes": self.episodes,
            "total_frames": self.frames,
            "total_tasks": len(self.tasks),
            "chunks_size": _CHUNK,
            "data_files_size_in_mb": max(1, math.ceil(self.table_megabytes)),
            "video_files_size_in_mb": max(1, math.ceil(self.video_megabytes)),
            "fps": _whole(self.fps),
            "splits": {name: f"{start}:{stop}" for name, (start, stop) in self.splits.items()}
            or {"train": f"0:{self.episodes}"},
            "data_path": f"data/{_PLACES}.parquet",
            "video_path": f"videos/{{video_key}}/{_PLACES}.mp4",
            "features": {key: videos.feature for key, videos in self.videos.items()} | self.features,
        }
        meta = self.folder / "meta"
        write_text_atomically(meta / "info.json", json.dumps(info, indent=4, ensure_ascii=False))
        write_text_atomically(meta / "stats.json", json.dumps(self.total.as_lists(), indent=4))
        _write_tasks(meta / "tasks.parquet", self.tasks)

    def close(self) -> None:
        """Close all files; those that are not finished are of no use."""
        for tables in (self.rows, self.lists):
            tables.close()
        for videos in self.videos.values():
            videos.close()

    def _add_split(self, split: str | None) -> None:
        if split is None:
            return
        start, stop = self.splits.get(split, (self.episodes, self.episodes))
        if stop != self.episodes:
            raise Unfit(
                f"split is {split!r}, after others that are not; the splits of LeRobot are ranges. Sort the "
                "recordings by split."
            )
        self.splits[split] = start, self.episodes + 1

    def _columns(self, recording: Recording, length: int) -> dict[str, _Column]:
        """All columns of a recording, in their order."""
        columns: dict[str, _Column] = {}
        if recording.states is not None:
            columns["observation.state"] = _Column(recording.states, _names(recording.state_parts))
        if recording.actions is not None:
            columns["action"] = _Column(recording.actions, _names(recording.action_parts))
        if recording.rewards is not None:
            rewards = recording.rewards
            if not recording.rewards_follow:
                rewards = np.append(rewards[1:], np.float32(0))
            columns["next.reward"] = _Column(rewards[:, None])
        rows = np.arange(length)
        task = self.tasks.setdefault(recording.language or "", len(self.tasks))
        counters = rows, np.full(length, self.episodes), self.frames + rows, np.full(length, task)
        columns["timestamp"] = _Column((rows / self.fps).astype(np.float32)[:, None])
        for (name, dtype), values in zip(_COUNTERS.items(), counters, strict=True):
            columns[name] = _Column(values.astype(dtype)[:, None])
        return columns

    def _add_features(self, columns: Mapping[str, _Column]) -> None:
        features = {name: column.feature for name, column in columns.items()}
        self.features = self.features or features
        shapes, first = (
            {name: feature["shape"][0] for name, feature in held.items() if name not in _COUNTERS}
            for held in (features, self.features)
        )
        if shapes != first:
            raise Unfit(
                f"columns are {shapes}, and of the first recording {first}; all must have the same, as wide. "
                "Leave out what not all have."
            )

    def _list(
        self,
        length: int,
        task: str,
        rows: Mapping[str, int],
        places: Mapping[str, int | float],
        statistics: Mapping[str, Statistics],
    ) -> None:
        """Note where an episode lies; the list is written a few episodes at a time."""
        self.total.add(statistics)
        self.listed.append(
            {
                "episode_index": self.episodes,
                "tasks": [task],
                "length": length,
                **rows,
                "dataset_from_index": self.frames,
                "dataset_to_index": self.frames + length,
                **places,
                **{
                    f"stats/{key}/{name}": values
                    for key, held in statistics.items()
                    for name, values in held.as_lists().items()
                },
            }
        )
        self.episodes += 1
        self.frames += length
        if len(self.listed) == _LISTED:
            self._write_listed()

    def _write_listed(self) -> None:
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

        if self.listed:
            chunk, file = self.lists.next()
            own = {"meta/episodes/chunk_index": chunk, "meta/episodes/file_index": file}
            self.lists.write(pa.Table.from_pylist([row | own for row in self.listed]))
            self.listed = []


def _camera_key(name: str) -> str:
    """A camera's name as LeRobot has it: a slash is a separator there."""
    name = name.replace("/", "_")
    return name if name.startswith("observation.") else f"observation.images.{name}"


def _rows_of(recording: Recording) -> dict[str, int]:
    tracks = {"actions": recording.actions, "states": recording.states, "rewards": recording.rewards}
    return {name: len(track) for name, track in tracks.items() if track is not None}


def _names(parts: tuple[tuple[str, int], ...]) -> list[str] | None:
    """A name for each number; None where the source says nothing."""
    names = [name if width == 1 else f"{name}_{place}" for name, width in parts for place in range(width)]
    return names or None


def _table(columns: Mapping[str, _Column]) -> Any:
    """Lists of fixed size for columns of several numbers; one number is plain, as LeRobot wants it."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    arrays = {}
    for name, column in columns.items():
        flat, size = pa.array(column.values.reshape(-1)), column.values.shape[1]
        arrays[name] = flat if size == 1 else pa.FixedSizeListArray.from_arrays(flat, size)
    return pa.table(arrays)


def _write_tasks(path: Path, tasks: Mapping[str, int]) -> None:
    """The table of tasks; the text is its index, as pandas writes an index without a name."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    index = "__index_level_0__"
    kinds = {"task_index": ("int64", "int64"), index: ("unicode", "object")}
    columns = [
        {
            "name": None if name == index else name,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": numpy,
            "metadata": None,
        }
        for name, (kind, numpy) in kinds.items()
    ]
    described = {"index_columns": [index], "column_indexes": [], "columns": columns, "pandas_version": "2.2.0"}
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), index: pa.array(tasks, pa.string())})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), path)


def _whole(value: float) -> int | float:
    return int(value) if float(value).is_integer() else float(value)


def _list(names: Mapping[str, Any]) -> str:
    return ", ".join(names) or "none"
