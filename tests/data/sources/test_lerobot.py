from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from ivideogpt.data.sources.lerobot import LeRobotDataset, recognises
from ivideogpt.data.sources.lerobot_tables import Span, stream_images
from ivideogpt.errors import EpisodeError
from tests.data.sources.lerobots import (
    CAMERAS,
    FRONT,
    LENGTHS,
    TASKS,
    WRIST,
    actions,
    code,
    codes,
    columns,
    info,
    png,
    table,
    write_json,
    write_tasks,
    write_v2,
    write_v3,
)
from tests.data.sources.videos import number_in

KINDS: dict[str, Callable[[Path], Path]] = {
    "v2.0": partial(write_v2, version="v2.0"),
    "v2.1": write_v2,
    "v2.1-images": partial(write_v2, images=True),
    "v3.0": write_v3,
    "v3.0-one-group": partial(write_v3, one_group=True),
    "v3.0-images": partial(write_v3, images=True),
    "v3.0-images-one-group": partial(write_v3, images=True, one_group=True),
}


@pytest.fixture(params=KINDS, scope="module")
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


def test_everything_of_every_episode(root: Path) -> None:
    assert recognises(root) and not recognises(root / "meta") and not recognises(root / "meta/info.json")
    dataset = pickle.loads(pickle.dumps(LeRobotDataset(root)))
    assert len(dataset) == 3 and [dataset.name(i) for i in range(3)][2] == "episode_000002"
    for episode, length in enumerate(LENGTHS):
        recording = dataset.read(episode)
        assert (recording.name, recording.length, recording.frame_rate) == (f"episode_{episode:06d}", length, 10.0)
        np.testing.assert_array_equal(recording.actions, actions(episode, length))
        np.testing.assert_array_equal(recording.states, -actions(episode, length))
        assert recording.action_parts == (("dx", 1), ("dy", 1)) and recording.state_parts == (("x", 1), ("y", 1))
        assert recording.rewards is not None and recording.rewards.shape == (length,) and recording.rewards_follow
        np.testing.assert_allclose(recording.rewards, np.arange(length) / length, rtol=1e-6)
        assert recording.language == TASKS[episode != 2] and recording.split == ("val" if episode == 2 else "train")
        assert recording.metadata["robot"] == "samplebot" and recording.metadata["done_rows"] == [length - 1]
        assert recording.metadata["last_timestamp"] == pytest.approx((length - 1) / 10)
        assert list(recording.cameras) == list(CAMERAS)
        expected = {camera: [code(episode, camera, i) for i in range(length)] for camera in CAMERAS}
        assert codes(dataset, episode) == expected
    assert dataset.read(2).metadata["tasks"] == list(TASKS) and dataset.read(2).metadata["task_starts"] == [0, 4]
    json.dumps(dict(dataset.read(2).metadata), allow_nan=False)


def test_frames_in_any_order_and_many_at_a_time(root: Path) -> None:
    dataset = LeRobotDataset(root)
    last, first = (pickle.loads(pickle.dumps(dataset.read(i))).cameras[WRIST] for i in (2, 0))
    pairs = [(number_in(a), number_in(b)) for a, b in zip(last(), first(), strict=False)]
    assert pairs == [(code(2, WRIST, i), code(0, WRIST, i)) for i in range(5)]
    assert [number_in(frame) for frame in itertools.islice(last(), 2)] == [code(2, WRIST, i) for i in range(2)]
    assert codes(dataset, 1)[FRONT] == [code(1, FRONT, i) for i in range(3)]


def test_a_video_of_several_episodes_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ivideogpt.data.sources import video

    dataset = LeRobotDataset(write_v3(tmp_path))
    opened: list[Any] = []
    real = video.Decoder
    monkeypatch.setattr(video, "Decoder", lambda source, where: (opened.append(source), real(source, where))[1])
    for index in range(3):
        codes(dataset, index)
    assert sorted(path.parts[-3] for path in opened) == [FRONT, FRONT, WRIST]


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """A broken column that nobody asks for, in row groups of other episodes, hurts nobody."""
    root = write_v3(tmp_path, images=True)
    path = root / "data/chunk-000/file-000.parquet"
    data = path.read_bytes()
    at = data.index(b"\x89PNG")  # of episode 0
    path.write_bytes(data[:at] + bytes(2000) + data[at + 2000 :])
    dataset = LeRobotDataset(root)
    assert codes(dataset, 1)[FRONT] == [code(1, FRONT, i) for i in range(3)]
    recording = dataset.read(0)
    with pytest.raises(EpisodeError, match=rf"^{path}: "):
        list(recording.cameras[FRONT]())


def test_a_column_of_pictures_is_not_read_as_a_whole(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    rows = [{"bytes": png(i % 256) + chance.bytes(4000), "path": None} for i in range(6000)]
    table(tmp_path / "a.parquet", [{"x": pa.array(rows)}])
    del rows
    before = pa.total_allocated_bytes()
    frames = stream_images(tmp_path / "a.parquet", "x", [Span(0, 1, 6000)], tmp_path)
    assert number_in(next(frames)) == 1
    assert pa.total_allocated_bytes() - before < 10e6 < (tmp_path / "a.parquet").stat().st_size


@pytest.mark.parametrize("index", ["task", "__index_level_0__", "whatever"])
def test_the_index_of_tasks_may_be_called_anything(tmp_path: Path, index: str) -> None:
    root = write_v3(tmp_path, images=True)
    write_tasks(root, index)
    assert LeRobotDataset(root).read(0).language == TASKS[1]


def test_parts_of_actions_and_states_lie_side_by_side(tmp_path: Path) -> None:
    root = write_v2(tmp_path, images=True)
    path = root / "data/chunk-000/episode_000001.parquet"
    content = info("v2.1", images=True)
    number = {"dtype": "float64", "shape": [1], "names": None}
    parts = {
        "action.arm": {"dtype": "float64", "shape": [2, 2], "names": None},
        "action.grip": number | {"names": ["g"]},
    }
    kept = {k: v for k, v in content["features"].items() if k not in ("action", "observation.state", "next.reward")}
    content["features"] = kept | parts | {"observation.force": number, "note": number | {"dtype": "string"}}
    content["features"] |= {"observation.joint": number | {"dtype": "int64"}, "reward": number}
    write_json(root / "meta/info.json", content)
    part = {k: v for k, v in columns(1, 3, 5).items() if k in kept}
    arm = np.arange(12.0).reshape(3, 2, 2)
    part |= {"action.arm": pa.array(arm.tolist()), "action.grip": pa.array([7.0, 8.0, 9.0])}
    part |= {"observation.force": pa.array([1.5, 2.5, 3.5]), "observation.joint": pa.array([[4], [5], [6]])}
    table(path, [part | {"reward": pa.array([1.0, 2.0, 3.0]), "note": pa.array(["a", "b", "c"])}])
    recording = LeRobotDataset(root).read(1)
    np.testing.assert_array_equal(recording.actions, np.c_[arm.reshape(3, 4), [7, 8, 9]])
    assert recording.action_parts == (("action.arm", 4), ("action.grip.g", 1))
    np.testing.assert_array_equal(recording.states, [[1.5, 4], [2.5, 5], [3.5, 6]])
    assert recording.state_parts == (("observation.force", 1), ("observation.joint", 1))
    assert recording.rewards is not None and recording.rewards.tolist() == [1, 2, 3] and not recording.rewards_follow


def test_a_camera_of_v3_without_files(tmp_path: Path) -> None:
    features = info("v3.0", images=False)["features"]
    root = write_v3(tmp_path, features=features | {"observation.images.gone": features[FRONT]})
    recording = LeRobotDataset(root).read(2)
    assert list(recording.cameras) == list(CAMERAS)
    assert recording.metadata["cameras_without_files"] == ["observation.images.gone"]


def test_what_real_sets_get_wrong(tmp_path: Path) -> None:
    """A camera without files, one of depth, splits beyond the end, times from 1 / fps on, no frame_index."""
    features = info("v2.0", images=False)["features"]
    camera = features[FRONT]
    features |= {
        "observation.images.gone": camera,
        "observation.depth": camera | {"info": {"video.is_depth_map": True}},
    }
    root = write_v2(tmp_path, "v2.0", features=features, splits={"train": "0:100"}, total_chunks=0)
    part = columns(0, 5, 0)
    del part["frame_index"], part["index"]
    part["timestamp"] = pa.array(np.arange(1, 6) / 10)
    table(root / "data/chunk-000/episode_000000.parquet", [part])
    dataset = LeRobotDataset(root)
    recording = dataset.read(0)
    assert list(recording.cameras) == list(CAMERAS) and recording.split is None
    assert recording.metadata["cameras_without_files"] == ["observation.images.gone"]
    assert recording.metadata["depth_cameras"] == ["observation.depth"]
    assert codes(dataset, 0)[FRONT] == [code(0, FRONT, i) for i in range(5)]


def test_without_actions_states_rewards_and_tasks(tmp_path: Path) -> None:
    features = {key: value for key, value in info("v2.1", images=True)["features"].items() if key in CAMERAS}
    root = write_v2(tmp_path, images=True, features=features, robot_type=None, splits=None)
    part = {k: v for k, v in columns(0, 5, 0).items() if k == "index"}
    pictures = [{"bytes": None, "path": f"images/{i}.png"} for i in range(5)]
    table(root / "data/chunk-000/episode_000000.parquet", [part | dict.fromkeys(CAMERAS, pa.array(pictures))])
    (root / "meta/tasks.jsonl").unlink()
    dataset = LeRobotDataset(root)
    recording = dataset.read(0)
    assert recording.actions is recording.states is recording.rewards is recording.split is None
    assert recording.language == TASKS[1] and recording.action_parts == ()
    with pytest.raises(EpisodeError, match=r"episode_000000\.parquet: .*images/0\.png.*no file"):
        codes(dataset, 0)
    (root / "images").mkdir()
    for i in range(5):
        (root / f"images/{i}.png").write_bytes(png(i))
    assert codes(dataset, 0)[FRONT] == [0, 1, 2, 3, 4]
