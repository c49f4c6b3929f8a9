"""LeRobot data sets, v2.0, v2.1 and v3.0: tables in parquet, cameras as videos or as columns of pictures."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.episode import JsonValue
from ivideogpt.data.sources.lerobot_info import INFO, Feature, Info, read_info, read_json
from ivideogpt.data.sources.lerobot_layout import Entry, Layout, Place
from ivideogpt.data.sources.lerobot_tables import Rows, faults_of, read_rows, stream_images
from ivideogpt.data.sources.lerobot_v2 import LayoutV2
from ivideogpt.data.sources.lerobot_v3 import LayoutV3
from ivideogpt.data.sources.recording import Frame, Frames, Recording, as_track
from ivideogpt.data.sources.video import Video
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

_ACTIONS = ("action", "action.", "actions", "actions.")
_STATES = ("observation.state", "observation.state.", "state", "observation.")
_REWARDS = ("next.reward", "reward")
_FOLLOWS = "next."  # what begins so is earned by the action of its row
_MARKS = ("timestamp", "frame_index", "task_index", "next.done", "next.success")
_OPEN = 4  # videos that are kept open, or as many as there are cameras


def recognises(path: Path) -> bool:
    """Whether `path` is a folder with a `meta/info.json` that names a LeRobot version."""
    try:
        return isinstance(read_json(look_at(path, EpisodeError) / INFO).get("codebase_version"), str)
    except (EpisodeError, OSError):
        return False


class LeRobotDataset:
    """A LeRobot data set; recordings are called `episode_000000` and so on by their `episode_index`.

    Actions are the feature `action`, else all that begin with `action.`, else `actions`. States are
    `observation.state`, else all that begin with it, else `state`, else all other numbers of `observation`. Cameras of
    which no file exists, and those of depth, are left out; the metadata name them.

    Raises:
        EpisodeError: no such folder, of another version, no episode is listed, or no camera has a file.
    """

    def __init__(self, path: Path | str) -> None:
        self.root = look_at(path, EpisodeError)
        if not self.root.is_dir():
            raise EpisodeError(f"{self.root}: no such folder. Give the folder of a LeRobot data set.")
        self.info = read_info(self.root)
        self._cameras, self._absent = self._find_cameras()
        videos = [feature.key for feature in self._cameras if feature.dtype == "video"]
        self._layout: Layout = (LayoutV2 if self.info.major == 2 else LayoutV3)(self.info, videos)
        self._videos: OrderedDict[Path, Video] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_videos": OrderedDict()}

    def __len__(self) -> int:
        return len(self._layout.numbers)

    def name(self, index: int) -> str:
        """Name of recording `index`."""
        return f"episode_{self._layout.numbers[index]:06d}"

    def read(self, index: int) -> Recording:
        """Recording `index`; of its table only the rows and columns that are needed are read."""
        info, entry = self.info, self._layout.entry(int(self._layout.numbers[index]))
        actions, states, rewards = (info.columns(*keys) for keys in (_ACTIONS, _STATES, _REWARDS))
        wanted = [feature.key for feature in (*actions, *states, *rewards[:1])]
        rows = read_rows(entry.table, entry.number, entry.length, wanted, _MARKS, whole=entry.whole)
        with faults_of(entry.table):
            _require_order(rows)
            action_track, action_parts = _track("actions", rows, actions)
            state_track, state_parts = _track("states", rows, states)
            reward_track, _ = _track("rewards", rows, rewards[:1])
            if reward_track is not None and reward_track.shape[1] != 1:
                raise EpisodeError(
                    f"column {rewards[0].key!r} has {reward_track.shape[1]} numbers a row; a reward is one. "
                    "Mend the table."
                )
        language, tasks = self._language(entry, rows)
        return Recording(
            name=self.name(index),
            cameras={feature.key: self._frames(feature, entry, rows) for feature in self._cameras},
            length=entry.length,
            actions=action_track,
            action_parts=action_parts,
            rewards=None if reward_track is None else reward_track[:, 0],
            rewards_follow=bool(rewards) and rewards[0].key.startswith(_FOLLOWS),
            states=state_track,
            state_parts=state_parts,
            language=language,
            split=info.split(entry.number, max(len(self), int(self._layout.numbers[-1]) + 1)),
            frame_rate=info.frame_rate,
            metadata=self._facts(entry) | tasks | _marks(rows),
        )

    def _find_cameras(self) -> tuple[list[Feature], list[str]]:
        """Cameras that have a file, or are columns; and keys of those that have none."""
        declared = self.info.cameras()
        if not declared:
            raise EpisodeError(f"{self.info.path}: no feature is a video or image of colour. Give a data set with one.")
        found = [f for f in declared if f.dtype == "image" or any(_matching(self.info, f.key))]
        if not found:
            raise EpisodeError(
                f"{self.root / 'videos'}: no video of {', '.join(f.key for f in declared)}, which meta/info.json "
                "declares. Copy the videos as well."
            )
        return found, [feature.key for feature in declared if feature not in found]

    def _frames(self, feature: Feature, entry: Entry, rows: Rows) -> Frames:
        if feature.dtype == "image":
            return partial(stream_images, entry.table, feature.key, rows.spans, self.root)
        place = entry.videos[feature.key]
        if entry.whole:
            return partial(_whole_video, place.path, entry.length)
        return partial(self._part_of_video, place, entry.length)

    def _part_of_video(self, place: Place, length: int) -> Iterator[Frame]:
        """Frames of one episode in a video of several, whose decoder goes on with the next."""
        yield from self._video(place.path).frames(place.start, length)

    def _video(self, path: Path) -> Video:
        video = self._videos.pop(path, None) or Video(path)
        self._videos[path] = video
        while len(self._videos) > max(_OPEN, len(self._cameras)):
            self._videos.popitem(last=False)[1].close()
        return video

    def _language(self, entry: Entry, rows: Rows) -> tuple[str | None, dict[str, JsonValue]]:
        """The first task, and what else there is to say of tasks."""
        column = rows.columns.get("task_index")
        if column is None:
            first, others = (entry.tasks[:1] or ("",))[0], entry.tasks[1:]
            return first or None, {"listed_tasks": others} if others else {}
        with np.errstate(invalid="ignore"):  # no task has the number that not-a-number becomes
            numbers = column[:, 0].astype(np.int64)
        starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
        tasks = [self._layout.task(int(numbers[row])) for row in starts]
        facts: dict[str, JsonValue] = {}
        if len(tasks) > 1:
            facts |= {"tasks": tasks, "task_starts": starts.tolist()}
        others = tuple(task for task in entry.tasks if task not in tasks)
        return tasks[0] or None, facts | ({"listed_tasks": others} if others else {})

    def _facts(self, entry: Entry) -> dict[str, JsonValue]:
        info = self.info
        facts: dict[str, JsonValue] = {"lerobot": info.version, "episode_index": entry.number}
        if info.robot is not None:
            facts["robot"] = info.robot
        if self._absent:
            facts["cameras_without_files"] = self._absent
        depth = [feature.key for feature in info.features.values() if feature.is_camera and feature.depth]
        return facts | ({"depth_cameras": depth} if depth else {})


def _whole_video(path: Path, length: int) -> Iterator[Frame]:
    """Frames of a video that must hold `length`; raises EpisodeError before the last if it holds more."""
    with Video(path) as video:
        last: Frame | None = None
        number = -1
        for number, frame in enumerate(video.frames()):
            if number == length:
                raise EpisodeError(
                    f"{path}: holds {video.count()} frames for {length} rows of its table; there must be as many. "
                    "Copy both again, or cut the video."
                )
            if last is not None:
                yield last
            last = frame
        if number + 1 < length:
            raise EpisodeError(
                f"{path}: holds {number + 1} frames for {length} rows of its table; there must be as many. "
                "Copy both again, or cut the table."
            )
        assert last is not None, "a video without a frame is a fault"
        yield last


def _matching(info: Info, key: str) -> Iterator[Path]:
    """Files of a camera, in whichever chunk."""
    if info.video_path is None:
        return
    try:
        escaped = re.sub(r"([*?\[])", r"[\1]", key)
        pattern = re.sub(r"\{(\w+)[^}]*\}", lambda m: escaped if m[1] == "video_key" else "*", info.video_path)
        yield from info.root.glob(pattern)
    except (ValueError, NotImplementedError, OSError) as error:
        raise EpisodeError(
            f"{info.path}: video_path is {info.video_path!r}, which cannot be searched for ({error}). Mend it."
        ) from error


def _track(
    name: str, rows: Rows, features: Sequence[Feature]
) -> tuple[npt.NDArray[np.float32] | None, tuple[tuple[str, int], ...]]:
    """Columns side by side (T, size), and the names of what they consist of."""
    if not features:
        return None, ()
    tracks, parts = [], []
    for feature in features:
        values = rows.columns[feature.key]
        if feature.size not in (None, values.shape[1]):
            raise EpisodeError(
                f"column {feature.key!r} has {values.shape[1]} numbers a row, and meta/info.json declares "
                f"{feature.size}; both must be equal. Mend the declaration, or copy the table again."
            )
        tracks.append(as_track(f"{name} ({feature.key!r})", values, rows.length))
        if len(features) == 1:
            parts += [(part, 1) for part in feature.names]
        else:
            parts += [(f"{feature.key}.{part}", 1) for part in feature.names] or [(feature.key, values.shape[1])]
    return np.concatenate(tracks, axis=1), tuple(parts)


def _require_order(rows: Rows) -> None:
    for key, rule in (("frame_index", "grow by 1 a row"), ("timestamp", "never fall")):
        if key not in rows.columns:
            continue
        values = as_track(f"column {key!r}", rows.columns[key], rows.length)[:, 0]
        values = rows.columns[key][:, 0] if key == "frame_index" else values
        steps = np.diff(values)
        wrong = steps != 1 if key == "frame_index" else steps < 0
        if wrong.any():
            row = int(wrong.argmax())
            raise EpisodeError(
                f"{key} is {values[row]} in row {row} of the episode and {values[row + 1]} in the next; it must "
                f"{rule}. Sort the rows, or record the episode again."
            )


def _marks(rows: Rows) -> dict[str, JsonValue]:
    """What columns beside the tracks say: the first and last time, where it is done, whether it succeeds."""
    facts: dict[str, JsonValue] = {}
    times, done, success = (rows.columns.get(key) for key in ("timestamp", "next.done", "next.success"))
    if times is not None:
        facts |= {"first_timestamp": float(times[0, 0]), "last_timestamp": float(times[-1, 0])}
        facts["longest_step"] = float(np.diff(times[:, 0]).max(initial=0))
    if done is not None:
        facts["done_rows"] = np.flatnonzero(done[:, 0]).tolist()
    if success is not None:
        facts["success"] = bool(success.any())
    return facts
