"""LeRobot v3.0: tables and videos of many episodes each, listed in `meta/episodes/**.parquet`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.sources.lerobot_info import Info, all_numbers
from ivideogpt.data.sources.lerobot_layout import Entry, Place
from ivideogpt.data.sources.lerobot_tables import EPISODE, faults_of, opened
from ivideogpt.errors import EpisodeError

_BETWEEN = 0.25  # of a frame: an episode that begins further from one has no first frame
_MOST_ROWS = 10_000_000  # of a list of episodes or tasks
_COUNTS = (EPISODE, "length", "data/chunk_index", "data/file_index")
_INDICES = ("chunk_index", "file_index")
_TIMES = ("from_timestamp", "to_timestamp")


class LayoutV3:
    """Where the episodes of a v3 data set lie, and the frames of the cameras `videos`.

    Only the columns that say so are read of the lists.

    Raises:
        EpisodeError: no list can be read, or one cannot and nothing says which episodes are lost.
    """

    def __init__(self, info: Info, videos: Sequence[str]) -> None:
        self._info = info
        self._folder = info.root / "meta" / "episodes"
        self._videos = videos
        self._tasks: dict[int, str] | None = None
        self._faults: list[str] = []
        parts: list[dict[str, npt.NDArray[Any]]] = []
        lists: list[Any] = []
        self._files: list[Path] = []
        for path in sorted(self._folder.glob("*/*.parquet")):
            try:
                part, tasks = _read_list(path, self._videos)
            except EpisodeError as error:
                self._faults.append(str(error))
                continue
            parts.append(part | {"file": np.full(len(tasks), len(parts))})
            lists.append(tasks)
            self._files.append(path)
        if not parts:
            fault = f"{self._folder}: no list of episodes (*/*.parquet) in it. Copy the data set again."
            raise EpisodeError((self._faults or [fault])[0])
        self._columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        self._first_rows = np.cumsum([0, *(len(tasks) for tasks in lists)])
        self._task_lists = lists
        self._order = np.argsort(self._columns[EPISODE], kind="stable")
        self._sorted = self._columns[EPISODE][self._order]
        self.numbers = all_numbers(info, np.unique(self._sorted))
        if self._faults and len(self.numbers) == len(np.unique(self._sorted)):
            raise EpisodeError(self._faults[0])  # which episodes are lost, nobody can tell

    def entry(self, number: int) -> Entry:
        """Where episode `number` lies; raises EpisodeError where the list does not say."""
        info, row = self._info, self._row(number)
        with faults_of(self._files[int(self._columns["file"][row])]):
            length = self._count("length", number, row)
            if not length:
                raise EpisodeError(f"length of episode {number} is 0; it must have a frame. Copy the file again.")
            chunk, file = (self._count(f"data/{name}", number, row) for name in _INDICES)
            places = {key: self._place(key, number, row, length) for key in self._videos}
            held = int(self._columns["file"][row])
            tasks = self._task_lists[held][row - int(self._first_rows[held])].as_py()
        return Entry(
            number=number,
            length=length,
            tasks=tuple(task for task in tasks or () if isinstance(task, str)),
            table=info.expand(info.data_path, chunk_index=chunk, file_index=file),
            whole=False,
            videos={
                key: Place(info.expand(info.video_path or "", video_key=key, **indices), start)
                for key, (indices, start) in places.items()
            },
        )

    def task(self, number: int) -> str:
        """Text of a task; raises EpisodeError where the table of tasks is broken or lacks it."""
        path = self._info.root / "meta" / "tasks.parquet"
        if self._tasks is None:
            self._tasks = _read_tasks(path)
        if number not in self._tasks:
            raise EpisodeError(
                f"{path}: no task_index {number}, which a table names; {len(self._tasks)} are there. Copy it again."
            )
        return self._tasks[number]

    def _row(self, number: int) -> int:
        first, stop = np.searchsorted(self._sorted, [number, number + 1])
        if first == stop and self._faults:
            raise EpisodeError(self._faults[0])
        if first == stop:
            raise EpisodeError(
                f"{self._folder}: episode {number} is not listed, and {self._info.path.name} says total_episodes "
                f"{self._info.total}. Copy the data set again, or mend the number."
            )
        row = int(self._order[first])
        if stop - first > 1:
            raise EpisodeError(
                f"{self._files[int(self._columns['file'][self._order[stop - 1]])]}: episode {number} is listed "
                f"{stop - first} times; once is right. Copy the data set again."
            )
        return row

    def _count(self, name: str, number: int, row: int) -> int:
        value = int(self._columns[name][row])
        if value < 0:
            raise EpisodeError(
                f"{name} of episode {number} is {'missing' if value == -1 else value}; it must be a whole number from "
                "0 on. Copy the file again."
            )
        return value

    def _place(self, key: str, number: int, row: int, length: int) -> tuple[dict[str, int], int]:
        """Chunk and file of a camera's video, and the number of the first frame in it."""
        info = self._info
        indices = {name: self._count(f"videos/{key}/{name}", number, row) for name in _INDICES}
        begin, end = (float(self._columns[f"videos/{key}/{name}"][row]) for name in _TIMES)
        start = begin * info.frame_rate
        if not 0 <= start < 2**53 or abs(start - round(start)) > _BETWEEN:
            raise EpisodeError(
                f"from_timestamp of episode {number} in videos/{key} is {begin}, frame {start:.6g} at "
                f"{info.frame_rate:g} frames a second; it must be the time of a frame. Mend it, or fps in info.json."
            )
        frames = (end - begin) * info.frame_rate
        if np.isfinite(frames) and round(frames) != length:
            raise EpisodeError(
                f"episode {number} has {round(frames)} frames in videos/{key} by its timestamps {begin} to {end}, and "
                f"length {length}; both must be equal. Mend the list, or fps in info.json."
            )
        return indices, round(start)


def _read_list(path: Path, videos: Sequence[str]) -> tuple[dict[str, npt.NDArray[Any]], Any]:
    """Columns of numbers, -1 or not-a-number for what is missing, and the lists of tasks."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    counts = [*_COUNTS, *(f"videos/{key}/{name}" for key in videos for name in _INDICES)]
    times = [f"videos/{key}/{name}" for key in videos for name in _TIMES]
    with opened(path) as file:
        present = set(file.schema_arrow.names)
        missing = [name for name in _COUNTS if name not in present]
        if missing:
            raise EpisodeError(f"no column {missing[0]!r}; each episode must have it. Copy the data set again.")
        _require_sensible(file)
        table = file.read(columns=[name for name in (*counts, *times, "tasks") if name in present], use_threads=False)
        table.validate(full=True)
        rows, columns = table.num_rows, {}
        for names, kind, absent in ((counts, pa.int64(), -1), (times, pa.float64(), np.nan)):
            for name in names:
                if name in present:
                    values = table.column(name).cast(kind).fill_null(absent)
                    columns[name] = np.asarray(values.to_numpy())
                else:
                    columns[name] = np.full(rows, absent)
        if (columns[EPISODE] < 0).any():
            raise EpisodeError(f"{EPISODE} is missing in a row, or below 0. Copy the data set again.")
        tasks = table.column("tasks").combine_chunks() if "tasks" in present else pa.nulls(rows)
        return columns, tasks


def _require_sensible(file: Any) -> None:
    if file.metadata.num_rows > _MOST_ROWS:
        raise EpisodeError(
            f"claims {file.metadata.num_rows} rows; {_MOST_ROWS} are the most that a list has. Copy it again, or "
            "split it."
        )


def _read_tasks(path: Path) -> dict[int, str]:
    """Texts by their number. The text is the table's index, whatever that is called."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    with opened(path) as file:
        schema = file.schema_arrow
        texts = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        described = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))
        indices = described.get("index_columns", []) if isinstance(described, dict) else []
        first = [name for name in indices if isinstance(name, str)] if isinstance(indices, list) else []
        names = [name for name in (*first, "task", "__index_level_0__", *texts) if name in texts]
        if not names or "task_index" not in schema.names:
            raise EpisodeError(
                f"its columns are {', '.join(schema.names) or 'none'}; they must be task_index and the task as index. "
                "Copy the file again."
            )
        _require_sensible(file)
        table = file.read(columns=["task_index", names[0]], use_threads=False)
        table.validate(full=True)
        numbers, tasks = table.column("task_index").to_pylist(), table.column(names[0]).to_pylist()
        if not all(isinstance(number, int) for number in numbers) or None in tasks:
            raise EpisodeError("a task or its task_index is missing. Copy the file again.")
        return dict(zip(numbers, tasks, strict=True))
