"""LeRobot v2.0 and v2.1: a table and a video per camera for each episode, listed in JSON lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ivideogpt.data.sources.lerobot_info import LONGEST_TEXT, Info, all_numbers, as_mapping, is_count
from ivideogpt.data.sources.lerobot_layout import Entry, Place
from ivideogpt.errors import EpisodeError


class LayoutV2:
    """Where the episodes of a v2 data set lie, and the frames of the cameras `videos`.

    Raises:
        EpisodeError: `meta/episodes.jsonl` is missing, or no episode is listed.
    """

    def __init__(self, info: Info, videos: Sequence[str]) -> None:
        self._videos = videos
        self._info = info
        self._path = info.root / "meta" / "episodes.jsonl"
        self._lines: dict[int, dict[str, Any]] = {}
        self._faults: dict[int, str] = {}
        self._tasks: dict[int, str] | None = None
        unreadable: list[tuple[int, str]] = []
        for line, content in _json_lines(self._path):
            number = content if isinstance(content, str) else content.get("episode_index")
            if isinstance(content, str) or not is_count(number):
                reason = content if isinstance(content, str) else f"episode_index is {number!r:.60}"
                unreadable.append((line, f"line {line} is broken ({reason}). Mend it, or copy the file again."))
            elif number in self._lines:
                self._faults[number] = f"episode {number} is listed twice, again in line {line}. Keep one line."
            else:
                self._lines[number] = content
        for line, fault in unreadable:
            # Line 1 lists episode 0 wherever nothing was taken out.
            self._faults[line - 1 if line - 1 not in self._lines else self._free()] = fault
        self.numbers = all_numbers(info, np.array(sorted({*self._lines, *self._faults}), np.int64))

    def entry(self, number: int) -> Entry:
        """Where episode `number` lies; raises EpisodeError where the list does not say."""
        info, line = self._info, self._lines.get(number)
        if number in self._faults or line is None:
            fault = self._faults.get(number) or (
                f"no line for episode {number}, and {info.path.name} says total_episodes {info.total}. "
                "Copy the file again, or mend the number."
            )
            raise EpisodeError(f"{self._path}: {fault}")
        length, tasks = line.get("length"), line.get("tasks")
        if not is_count(length) or not length:
            raise EpisodeError(
                f"{self._path}: length of episode {number} is {length!r:.60}; it must be the number of its frames. "
                "Mend it, or copy the file again."
            )
        values = {"episode_chunk": number // info.chunk, "episode_index": number}
        return Entry(
            number=number,
            length=length,
            tasks=tuple(task for task in tasks if isinstance(task, str)) if isinstance(tasks, list) else (),
            table=info.expand(info.data_path, **values),
            whole=True,
            videos={key: Place(info.expand(info.video_path or "", video_key=key, **values), 0) for key in self._videos},
        )

    def task(self, number: int) -> str:
        """Text of a task; raises EpisodeError where the table of tasks is broken or lacks it."""
        path = self._info.root / "meta" / "tasks.jsonl"
        if self._tasks is None:
            tasks: dict[int, str] = {}
            for line, content in _json_lines(path):
                found = None if isinstance(content, str) else (content.get("task_index"), content.get("task"))
                if found is None or not is_count(found[0]) or not isinstance(found[1], str):
                    reason = content if isinstance(content, str) else "task_index or task is missing"
                    raise EpisodeError(f"{path}: line {line} is broken ({reason}). Mend it, or copy the file again.")
                tasks[found[0]] = found[1]
            self._tasks = tasks
        if number not in self._tasks:
            raise EpisodeError(
                f"{path}: no task_index {number}, which a table names; {len(self._tasks)} are there. Copy it again."
            )
        return self._tasks[number]

    def _free(self) -> int:
        return max([*self._lines, *self._faults], default=-1) + 1


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Lines with their numbers from 1 on: mappings, or for a broken one what is wrong with it."""
    if not path.is_file():
        raise EpisodeError(f"{path}: no such file. Copy the data set again.")
    try:
        with open(path, "rb") as file:
            line = 0
            while text := file.readline(LONGEST_TEXT):
                line += 1
                if len(text) == LONGEST_TEXT:
                    raise EpisodeError(f"{path}: line {line} has {LONGEST_TEXT} bytes or more. Copy the file again.")
                if not text.strip():
                    line -= 1
                    continue
                try:
                    yield line, as_mapping(text)
                except (ValueError, RecursionError) as error:
                    yield line, f"no JSON mapping: {str(error)[:100]}"
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except OSError as error:
        raise EpisodeError(f"{path}: cannot be read ({error.strerror}). Copy it again.") from error
