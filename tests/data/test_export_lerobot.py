from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ivideogpt.data.export_lerobot import write_lerobot
from ivideogpt.data.sources.lerobot import LeRobotDataset
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.errors import EpisodeError, OutputError

LENGTHS = (5, 1, 9, 4)
SIZES = {"front": (48, 64), "wrist/left": (45, 67)}
KEYS = ["observation.images.front", "observation.images.wrist_left"]


def picture(number: int, height: int, width: int) -> Frame:
    """A slope in each colour, and a row of eight cells that say the number."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([40 + x, 90 + y, 200 - x], axis=-1).astype(np.uint8)
    for bit in range(8):
        frame[:8, 8 * bit : 8 * bit + 8] = 230 if number >> bit & 1 else 20
    return frame


def code(frame: Frame) -> int:
    return sum(int(frame[:8, 8 * bit : 8 * bit + 8].mean() > 125) << bit for bit in range(8))


def number_of(episode: int, camera: str, i: int) -> int:
    return 128 * (camera != "front") + 16 * episode + i


def frames(episode: int, camera: str, length: int) -> Iterator[Frame]:
    return (picture(number_of(episode, camera, i), *SIZES[camera]) for i in range(length))


def recording(episode: int, **changes: Any) -> Recording:
    length = LENGTHS[episode]
    rng = np.random.default_rng(episode)
    made = Recording(
        name=f"demo_{episode}",
        cameras={camera: partial(frames, episode, camera, length) for camera in SIZES},
        length=length,
        actions=rng.normal(size=(length, 3)).astype(np.float32),
        action_parts=(("arm", 2), ("grip", 1)),
        rewards=rng.normal(size=length).astype(np.float32),
        rewards_follow=episode != 0,
        states=rng.normal(size=(length, 1)).astype(np.float32),
        language=None if episode == 1 else f"task {episode // 2}",
        split="train" if episode < 3 else "val",
    )
    return replace(made, **changes)


def all_recordings() -> Iterator[Recording]:
    return (recording(episode) for episode in range(len(LENGTHS)))


def check(dataset: LeRobotDataset, fps: float) -> None:
    assert len(dataset) == len(LENGTHS)
    for episode, length in enumerate(LENGTHS):
        wanted, got = recording(episode), dataset.read(episode)
        assert got.length == length and got.frame_rate == fps and got.split == wanted.split
        np.testing.assert_array_equal(got.actions, wanted.actions)
        np.testing.assert_array_equal(got.states, wanted.states)
        assert got.action_parts == (("arm_0", 1), ("arm_1", 1), ("grip", 1)) and got.state_parts == ()
        assert wanted.rewards is not None and got.rewards_follow
        rewards = wanted.rewards if episode else np.append(wanted.rewards[1:], np.float32(0))
        np.testing.assert_array_equal(got.rewards, rewards)
        assert got.language == wanted.language and list(got.cameras) == KEYS
        for key, camera in zip(KEYS, SIZES, strict=True):
            found = list(got.cameras[key]())
            assert [code(frame) for frame in found] == [number_of(episode, camera, i) for i in range(length)]
            for a, b in zip(found, frames(episode, camera, length), strict=True):
                assert np.abs(a.astype(int) - b).mean() < 4


@pytest.mark.parametrize("fps", [10, 29.97, 12.5])
def test_read_back(tmp_path: Path, fps: float) -> None:
    folder = tmp_path / "set"
    assert write_lerobot(all_recordings(), folder, fps, "arm") == len(LENGTHS)
    check(LeRobotDataset(folder), fps)
    assert LeRobotDataset(folder).info.robot == "arm"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(list(folder.rglob("*.mp4"))) == 2 and len(list(folder.rglob("*.parquet"))) == 3


def test_files_of_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivideogpt.data.export_lerobot._CHUNK", 3)
    monkeypatch.setattr("ivideogpt.data.export_lerobot._LISTED", 1)
    write_lerobot(all_recordings(), tmp_path / "set", 10, table_megabytes=1e-4, video_megabytes=1e-4)
    places = ["chunk-000/file-000", "chunk-000/file-001", "chunk-000/file-002", "chunk-001/file-000"]
    for folder in ("data", "meta/episodes"):
        base = tmp_path / "set" / folder
        assert sorted(path.relative_to(base).as_posix()[:-8] for path in base.rglob("*.parquet")) == places
    assert all(len(list((tmp_path / "set" / f"videos/{key}").rglob("*.mp4"))) > 1 for key in KEYS)
    check(LeRobotDataset(tmp_path / "set"), 10)


def test_what_the_package_lerobot_looks_for(tmp_path: Path) -> None:
    write_lerobot(all_recordings(), tmp_path, 10, "arm")
    info = json.loads((tmp_path / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0" and info["splits"] == {"train": "0:3", "val": "3:4"}
    assert (info["fps"], info["total_episodes"], info["total_frames"], info["total_tasks"]) == (10, 4, 19, 3)
    assert isinstance(info["fps"], int)
    assert info["features"]["action"] == {"dtype": "float32", "shape": [3], "names": ["arm_0", "arm_1", "grip"]}
    assert info["features"]["observation.state"] == {"dtype": "float32", "shape": [1], "names": None}
    assert info["features"][KEYS[1]]["shape"] == [45, 67, 3]
    assert info["features"][KEYS[1]]["info"]["video.codec"] == "h264"
    rows = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet")
    kinds = {field.name: str(field.type) for field in rows.schema}
    assert set(kinds) == set(info["features"]) - set(KEYS)
    assert kinds["action"].startswith("fixed_size_list<") and kinds["observation.state"] == "float"
    assert kinds["timestamp"] == "float" and kinds["task_index"] == "int64"
    assert rows["index"].to_pylist() == list(range(19))
    np.testing.assert_array_equal(rows["timestamp"].to_numpy()[6:15], (np.arange(9) / 10).astype(np.float32))
    listed = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"]) for row in listed] == [
        (0, 5),
        (5, 6),
        (6, 15),
        (15, 19),
    ]
    assert listed[2][f"videos/{KEYS[0]}/from_timestamp"] == pytest.approx(0.6)
    assert [row["tasks"] for row in listed] == [["task 0"], [""], ["task 1"], ["task 1"]]
    described = json.loads(pq.read_schema(tmp_path / "meta/tasks.parquet").metadata[b"pandas"])
    assert described["index_columns"] == ["__index_level_0__"]


def test_statistics(tmp_path: Path) -> None:
    write_lerobot(all_recordings(), tmp_path, 10)
    stats = json.loads((tmp_path / "meta/stats.json").read_text())
    actions = np.concatenate([r.actions for r in all_recordings() if r.actions is not None]).astype(np.float64)
    for name, values in (("mean", actions.mean(0)), ("std", actions.std(0)), ("min", actions.min(0))):
        np.testing.assert_allclose(stats["action"][name], values)
    assert stats["action"]["count"] == [19] and len(stats["action"]["q99"]) == 3
    pictures = np.stack([f for e, n in enumerate(LENGTHS) for f in frames(e, "front", n)]) / 255
    for name, values in (("mean", pictures.mean((0, 1, 2))), ("max", pictures.max((0, 1, 2)))):
        np.testing.assert_allclose(np.array(stats[KEYS[0]][name])[:, 0, 0], values)
    np.testing.assert_allclose(np.array(stats[KEYS[0]]["std"])[:, 0, 0], pictures.std((0, 1, 2)))
    listed = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    one = np.stack(list(frames(2, "front", 9))) / 255
    median = np.median(one.reshape(-1, 3), axis=0)
    np.testing.assert_allclose(np.array(listed[2][f"stats/{KEYS[0]}/q50"])[:, 0, 0], median, atol=1 / 255)
    assert listed[1]["stats/action/std"] == [0, 0, 0] and listed[1]["stats/action/count"] == [1]


def test_plain_video(tmp_path: Path) -> None:
    bare = {"actions": None, "states": None, "rewards": None, "language": None, "split": None}
    assert write_lerobot((recording(e, **bare) for e in range(2)), tmp_path, 10) == 2
    got = LeRobotDataset(tmp_path).read(0)
    assert got.actions is got.states is got.rewards is got.language is None
    assert got.split == "train" and sum(1 for _ in got.cameras[KEYS[0]]()) == 5


def broken() -> Iterator[Frame]:
    yield picture(0, *SIZES["front"])
    raise EpisodeError("/a/b.mp4: breaks off. Copy it again.")


FRONT = {"front": partial(frames, 1, "front", 1)}
SMALL = np.zeros((45, 67), np.uint8)
LEFT = {"wrist/left": partial(frames, 1, "wrist/left", 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cameras": FRONT}, "^demo_1: cameras are front; each must have the same"),
        ({"cameras": {}}, "^demo_1: cameras are none"),
        ({"cameras": FRONT | LEFT | {"wrist_left": LEFT["wrist/left"]}}, "^demo_1: cameras are"),
        (
            {"cameras": FRONT | {"wrist/left": partial(frames, 1, "front", 1)}},
            "^demo_1: a frame is 64 x 48",
        ),
        ({"cameras": FRONT | {"wrist/left": partial(frames, 1, "wrist/left", 2)}}, "^demo_1: frames and rows differ"),
        ({"cameras": FRONT | {"wrist/left": lambda: iter(())}}, "^demo_1: no frame"),
        (
            {"cameras": FRONT | {"wrist/left": lambda: iter([SMALL])}},
            "^demo_1: a frame is uint8",
        ),
        ({"cameras": LEFT | {"front": broken}}, r"^/a/b\.mp4: breaks off"),
        ({"actions": np.zeros((1, 2), np.float32), "action_parts": ()}, "^demo_1: columns are .* and of the first"),
        ({"states": None}, "^demo_1: columns are"),
        ({"actions": np.zeros((4, 3), np.float32)}, "^demo_1: frames and rows differ"),
        ({"split": "val"}, "^demo_2: split is 'train', after others"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_whole_or_not_at_all(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tmp_path / "set"
    write_lerobot(all_recordings(), folder, 10)
    with pytest.raises(EpisodeError, match=message):
        write_lerobot((recording(e, **(changes if e == 1 else {})) for e in range(4)), folder, 10)
    check(LeRobotDataset(folder), 10)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_nothing_to_write(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no recording to write"):
        write_lerobot(iter(()), tmp_path / "set", 10)
    with pytest.raises(EpisodeError, match="0 frames a second"):
        write_lerobot(all_recordings(), tmp_path / "set", 0)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        write_lerobot(all_recordings(), tmp_path / "file" / "set", 10)
    assert not (tmp_path / "set").exists()


def test_one_recording_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[int] = []

    def one_by_one() -> Iterator[Recording]:
        for episode in range(3):
            alive.append(sum(1 for _ in (tmp_path.rglob("*.mp4"))))
            yield recording(episode)

    write_lerobot(one_by_one(), tmp_path / "set", 10)
    assert alive == [0, 2, 2]
