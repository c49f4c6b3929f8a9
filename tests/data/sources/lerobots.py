"""LeRobot data sets to read, small, made from the format's rules: each picture tells its episode, camera and number."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from ivideogpt.data.sources.lerobot import LeRobotDataset
from tests.data.sources.videos import X264, H, W, number_in, picture

LENGTHS = (5, 3, 7)
FPS = 10
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
CAMERAS = (FRONT, WRIST)
TASKS = ("pick it up", "put it down")
# Episodes of each file of the data, and of each camera's videos.
DATA_FILES = ((0, 1), (2,))
VIDEO_FILES = {FRONT: ((0,), (1, 2)), WRIST: ((0, 1, 2),)}


def code(episode: int, camera: str, number: int) -> int:
    return 100 * (camera == WRIST) + 20 * episode + number


def actions(episode: int, length: int) -> np.ndarray:
    return (episode + np.arange(length)[:, None] / 10 + np.arange(2)).astype(np.float32)


def columns(episode: int, length: int, first: int) -> dict[str, Any]:
    """Columns of one episode; the task of the last one changes on the way."""
    rows = np.arange(length)
    return {
        "observation.state": pa.array((-actions(episode, length)).tolist(), pa.list_(pa.float32())),
        "action": pa.array(actions(episode, length).tolist(), pa.list_(pa.float32(), 2)),
        "next.reward": pa.array((rows / length).astype(np.float32)),
        "next.done": pa.array(rows == length - 1),
        "timestamp": pa.array((rows / FPS).astype(np.float32)),
        "frame_index": pa.array(rows),
        "episode_index": pa.array(np.full(length, episode)),
        "index": pa.array(first + rows),
        "task_index": pa.array((rows >= 4).astype(np.int64) if episode == 2 else np.full(length, 1)),
    }


def png(number: int, size: tuple[int, int] = (H, W)) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number, *size)).save(file, "PNG")
    return file.getvalue()


def pictures(episode: int, length: int, camera: str) -> pa.Array:
    rows = [{"bytes": png(code(episode, camera, i)), "path": f"frame-{i:06d}.png"} for i in range(length)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def video(path: Path, numbers: Sequence[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS, options=X264["options"])
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = W, H, "yuv420p", 1
        stream.codec_context.time_base = Fraction(1, FPS)
        for at, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = at, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def table(path: Path, parts: Sequence[dict[str, Any]]) -> None:
    """A parquet file, a row group for each part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first = pa.table(parts[0])
    with pq.ParquetWriter(path, first.schema) as writer:
        for part in parts:
            writer.write_table(pa.table(part).cast(first.schema))


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_lines(path: Path, lines: Sequence[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def info(version: str, images: bool, **changes: Any) -> dict[str, Any]:
    """What `meta/info.json` holds."""
    scalar = {"shape": [1], "names": None}
    camera = {"dtype": "image" if images else "video", "shape": [H, W, 3], "names": ["height", "width", "channels"]}
    features: dict[str, Any] = {
        **dict.fromkeys(CAMERAS, camera),
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["x", "y"]}},
        "action": {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]},
        "next.reward": {"dtype": "float32", **scalar},
        "next.done": {"dtype": "bool", **scalar},
        "timestamp": {"dtype": "float32", **scalar},
    }
    features |= {key: {"dtype": "int64", **scalar} for key in ("frame_index", "episode_index", "index", "task_index")}
    if version.startswith("v2"):
        paths = {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        }
    else:
        paths = {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
    return {
        "codebase_version": version,
        "robot_type": "samplebot",
        "total_episodes": len(LENGTHS),
        "total_frames": sum(LENGTHS),
        "chunks_size": 2,
        "fps": FPS,
        "splits": {"train": "0:2", "val": "2:3"},
        **paths,
        "features": features,
        **changes,
    }


def write_v2(root: Path, version: str = "v2.1", images: bool = False, **changes: Any) -> Path:
    """A data set of v2.x, two episodes a chunk; `changes` are of info.json."""
    write_json(root / "meta/info.json", info(version, images, **changes))
    episodes = []
    for episode, length in enumerate(LENGTHS):
        tasks = list(TASKS) if episode == 2 else [TASKS[1]]
        episodes.append({"episode_index": episode, "tasks": tasks, "length": length})
        part = columns(episode, length, sum(LENGTHS[:episode]))
        if images:
            part |= {camera: pictures(episode, length, camera) for camera in CAMERAS}
        else:
            for camera in CAMERAS:
                path = root / f"videos/chunk-{episode // 2:03d}/{camera}/episode_{episode:06d}.mp4"
                video(path, [code(episode, camera, i) for i in range(length)])
        table(root / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet", [part])
    write_lines(root / "meta/episodes.jsonl", episodes)
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(TASKS)])
    return root


def write_v3(root: Path, images: bool = False, one_group: bool = False, **changes: Any) -> Path:
    """A data set of v3.0 whose rows and frames lie in files with other numbers; `changes` are of info.json."""
    write_json(root / "meta/info.json", info("v3.0", images, **changes))
    listed: list[dict[str, Any]] = []
    for episode, length in enumerate(LENGTHS):
        first = sum(LENGTHS[:episode])
        tasks = list(TASKS) if episode == 2 else [TASKS[1]]
        listed.append({"episode_index": episode, "tasks": tasks, "length": length})
        listed[-1] |= {"dataset_from_index": first, "dataset_to_index": first + length}
    for number, episodes in enumerate(DATA_FILES):
        parts = []
        for episode in episodes:
            listed[episode] |= {"data/chunk_index": number // 2, "data/file_index": number}
            part = columns(episode, LENGTHS[episode], sum(LENGTHS[:episode]))
            parts.append(part | ({key: pictures(episode, LENGTHS[episode], key) for key in CAMERAS} if images else {}))
        if one_group:
            joined = pa.concat_tables([pa.table(part) for part in parts]).combine_chunks()
            parts = [{name: joined.column(name) for name in joined.column_names}]
        table(root / f"data/chunk-{number // 2:03d}/file-{number:03d}.parquet", parts)
    for camera, files in ({} if images else VIDEO_FILES).items():
        for number, held in enumerate(files):
            end = 0.0
            for episode in held:
                begin = end
                for _ in range(LENGTHS[episode]):
                    end += 1 / FPS  # sums of floats, as they are in the wild
                place = {"chunk_index": 0, "file_index": number, "from_timestamp": begin, "to_timestamp": end}
                listed[episode] |= {f"videos/{camera}/{name}": value for name, value in place.items()}
            numbers = [code(episode, camera, i) for episode in held for i in range(LENGTHS[episode])]
            video(root / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", numbers)
    for number, rows in enumerate((listed[:2], listed[2:])):
        part = {name: pa.array([row[name] for row in rows]) for name in rows[0]}
        table(root / f"meta/episodes/chunk-000/file-{number:03d}.parquet", [part])
    write_tasks(root, "__index_level_0__")
    return root


def write_tasks(root: Path, index: str) -> None:
    held = pa.table({"task_index": [0, 1], index: list(TASKS)})
    described = json.dumps({"index_columns": [index]}).encode()
    pq.write_table(held.replace_schema_metadata({b"pandas": described}), root / "meta/tasks.parquet")


def read_all(root: Path) -> Iterator[tuple[str, int]]:
    """Everything there is: names, and numbers of frames."""
    dataset = LeRobotDataset(root)
    for index in range(len(dataset)):
        recording = dataset.read(index)
        for frames in recording.cameras.values():
            yield recording.name, sum(1 for _ in frames())


def codes(dataset: LeRobotDataset, index: int) -> dict[str, list[int]]:
    return {key: [number_in(frame) for frame in frames()] for key, frames in dataset.read(index).cameras.items()}
