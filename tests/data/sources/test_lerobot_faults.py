from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ivideogpt.data.sources.lerobot import LeRobotDataset, recognises
from ivideogpt.errors import EpisodeError
from tests.data.sources.lerobots import (
    CAMERAS,
    FRONT,
    LENGTHS,
    WRIST,
    codes,
    columns,
    info,
    pictures,
    png,
    read_all,
    table,
    video,
    write_json,
    write_v2,
    write_v3,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return {
        "v2": write_v2(folder / "v2"),
        "v2-images": write_v2(folder / "v2-images", images=True),
        "v3": write_v3(folder / "v3"),
        "v3-images": write_v3(folder / "v3-images", images=True),
    }


@pytest.fixture
def fresh(whole: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda kind: shutil.copytree(whole[kind], tmp_path / kind)


def fault_of(root: Path, index: int) -> str:
    with pytest.raises(EpisodeError) as caught:
        codes(LeRobotDataset(root), index)
    return str(caught.value)


def changed_info(root: Path, **changes: Any) -> Path:
    path = root / "meta/info.json"
    write_json(path, json.loads(path.read_text()) | changes)
    return path


def changed_table(path: Path, **changes: Any) -> Path:
    """A table with other columns; None takes one out."""
    held = pq.read_table(path)
    kept = {name: held.column(name) for name in held.column_names if name not in changes}
    table(path, [kept | {name: values for name, values in changes.items() if values is not None}])
    return path


FIRST = "data/chunk-000/episode_000000.parquet"


def only_text(value: object) -> str:
    """Part of a test's name; arrays would put their address into it."""
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": None}, "no column 'action'; there are"),
        ({"action": pa.array([[1.0, 2.0]] * 4 + [[1.0]])}, "2 numbers in one row and 1 in another"),
        ({"action": pa.array([[1.0, 2.0, 3.0]] * 5)}, "3 numbers a row, and meta/info.json declares 2"),
        ({"action": pa.array([[1.0, 2.0]] * 4 + [None])}, "column 'action' has gaps"),
        ({"action": pa.array([[1.0, 2.0]] * 4 + [[None, 1.0]])}, "column 'action' has gaps"),
        ({"action": pa.array([[1.0, np.nan]] * 5)}, "must be finite"),
        ({"action": pa.array([[1.0, 1e300]] * 5)}, "must be finite"),
        ({"action": pa.array(["left"] * 5)}, "holds string; it must hold real numbers"),
        ({"next.reward": pa.array([[1.0, 2.0]] * 5)}, "'next.reward' has 2 numbers a row"),
        ({"frame_index": pa.array([0, 1, 3, 2, 4])}, "frame_index is 1 in row 1 .* and 3 in the next"),
        ({"timestamp": pa.array([0.0, 0.1, 0.3, 0.2, 0.4])}, "timestamp is 0.3.* in row 2"),
        ({"timestamp": pa.array([0.0, 0.1, np.nan, 0.3, 0.4])}, "must be finite"),
        ({"episode_index": pa.array([0, 0, 7, 0, 0])}, "holds rows of episode 7; it is the file of episode 0"),
        ({"task_index": pa.array([np.nan] * 5)}, r"tasks\.jsonl: no task_index -"),
        ({"task_index": pa.array([[]] * 5, pa.list_(pa.int64()))}, "'task_index' has no number in a row"),
        ({"task_index": pa.array([9] * 5)}, r"tasks\.jsonl: no task_index 9"),
    ],
    ids=only_text,
)
def test_broken_columns(fresh: Callable[[str], Path], changes: dict[str, Any], message: str) -> None:
    root = fresh("v2-images")
    path = changed_table(root / FIRST, **changes)
    with pytest.raises(EpisodeError, match=message) as caught:
        LeRobotDataset(root).read(0)
    assert str(caught.value).startswith(str(root / "meta/tasks.jsonl" if "tasks" in message else path))
    assert codes(LeRobotDataset(root), 1)[FRONT] == [20, 21, 22]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([None] * 5, "row without a picture"),
        ([{"bytes": b"", "path": None}] * 5, "is empty; it must be PNG"),
        ([{"bytes": png(0)[:-30], "path": None}] * 5, "PNG of .* is damaged"),
        ([{"bytes": png(0), "path": None}] * 4 + [{"bytes": png(0, (40, 64)), "path": None}], "64 x 40 and the first"),
        ([{"bytes": None, "path": "../secret.png"}] * 5, "no file of the data set"),
        ([3] * 5, "row without a picture"),
    ],
    ids=range(6),
)
def test_broken_pictures(fresh: Callable[[str], Path], values: list[Any], message: str) -> None:
    root = fresh("v2-images")
    path = changed_table(root / FIRST, **{WRIST: pa.array(values)})
    cameras = LeRobotDataset(root).read(0).cameras
    assert sum(1 for _ in cameras[FRONT]()) == 5
    with pytest.raises(EpisodeError, match=message) as caught:
        list(cameras[WRIST]())
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v1.6"}, "'v1.6'; LeRobot v2.0, v2.1 and v3.0 are read"),
        ({"codebase_version": None}, "codebase_version is None"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": "10"}, "fps is '10'"),
        ({"features": []}, r"features are \[\]"),
        ({"features": {"action": 3}}, "'action' is 3"),
        ({"features": {"action": {"dtype": "float32", "shape": [2]}}}, "no feature is a video or image"),
        ({"total_episodes": 10**12}, "total_episodes is 1000000000000, and 3 are listed"),
        ({"data_path": None}, "data_path is None"),
        ({"video_path": "videos/**nothing"}, "video_path is 'videos/[*][*]nothing'|no video of"),
        ({"video_path": "/x/{video_key}"}, "cannot be searched"),
        ({"video_path": None}, "no video of observation.images.front"),
    ],
    ids=only_text,
)
@pytest.mark.parametrize("kind", ["v2", "v3"])
def test_broken_info(fresh: Callable[[str], Path], kind: str, changes: dict[str, Any], message: str) -> None:
    root = fresh(kind)
    changed_info(root, **changes)
    with pytest.raises(EpisodeError, match=message) as caught:
        LeRobotDataset(root)
    assert str(caught.value).startswith(str(root))


@pytest.mark.parametrize("content", ["", "[1]", '{"a": ', "[" * 100_000, "\udcff", '{"fps": ' + "9" * 5000 + "}"])
def test_info_that_is_no_json(fresh: Callable[[str], Path], content: str) -> None:
    root = fresh("v2")
    (root / "meta/info.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert not recognises(root)
    with pytest.raises(EpisodeError, match=r"info\.json: no JSON mapping|codebase_version"):
        LeRobotDataset(root)


@pytest.mark.parametrize(
    "template",
    ["../{episode_index}.parquet", "/tmp/{episode_index}", "{episode_index.real}", "{x}", "{episode_index:999999999d}"],
)
def test_paths_that_lead_nowhere(fresh: Callable[[str], Path], template: str) -> None:
    root = fresh("v2")
    changed_info(root, data_path=template)
    assert fault_of(root, 0).startswith(str(root))


def test_missing_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(EpisodeError, match="no such f"):
            LeRobotDataset(path)
    write_json(tmp_path / "meta/info.json", info("v2.1", images=True))
    with pytest.raises(EpisodeError, match=r"episodes\.jsonl: no such file"):
        LeRobotDataset(tmp_path)
    write_json(tmp_path / "meta/info.json", info("v3.0", images=True))
    with pytest.raises(EpisodeError, match=r"meta/episodes: no list of episodes"):
        LeRobotDataset(tmp_path)


@pytest.mark.parametrize("length", [4, 6])
def test_videos_shorter_and_longer_than_their_rows(fresh: Callable[[str], Path], length: int) -> None:
    root = fresh("v2")
    path = root / f"videos/chunk-000/{WRIST}/episode_000000.mp4"
    video(path, range(length))
    cameras = LeRobotDataset(root).read(0).cameras
    assert sum(1 for _ in cameras[FRONT]()) == 5
    given = []
    with pytest.raises(EpisodeError, match=rf"^{path}: holds {length} frames for 5 rows"):
        given.extend(cameras[WRIST]())
    assert len(given) == (4 if length == 6 else 3)
    assert codes(LeRobotDataset(root), 1)[FRONT] == [20, 21, 22]


def test_lines_that_are_broken_cost_one_episode(fresh: Callable[[str], Path]) -> None:
    root = fresh("v2-images")
    path = root / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    dataset = LeRobotDataset(root)
    assert [dataset.name(i) for i in range(len(dataset))][1] == "episode_000001"
    assert fault_of(root, 1).startswith(f"{path}: line 2 is broken (no JSON mapping")
    assert codes(dataset, 0)[FRONT] and codes(dataset, 2)[FRONT]
    path.write_text("\n".join([lines[0], lines[2]]))
    assert len(LeRobotDataset(root)) == 3
    assert fault_of(root, 1).startswith(f"{path}: no line for episode 1, and info.json says total_episodes 3")
    path.write_text("\n".join([*lines, lines[1]]))
    assert "episode 1 is listed twice" in fault_of(root, 1)
    path.write_text("\n".join([lines[0].replace('"length": 5', '"length": 4'), *lines[1:]]))
    assert fault_of(root, 0) == (
        f"{root / FIRST}: 5 rows of episode 0, and 4 by meta; there must be as many. Copy the data set again."
    )
    path.write_text("\n".join([lines[0].replace('"length": 5', '"length": 99999999999'), *lines[1:]]))
    assert fault_of(root, 0).startswith(f"{root / FIRST}: ")
    path.write_text("\n".join([lines[0].replace('"length": 5', '"length": -1'), *lines[1:]]))
    assert "length of episode 0 is -1" in fault_of(root, 0)


def listed(root: Path, **changes: Any) -> Path:
    return changed_table(root / "meta/episodes/chunk-000/file-000.parquet", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length": pa.array([5, 4])}, "4 frames|3 frames .* and length 4; both must be equal"),
        ({"length": pa.array([5, None])}, "length of episode 1 is missing"),
        ({"length": pa.array([5, 0])}, "length of episode 1 is 0"),
        ({"data/file_index": pa.array([0, -7])}, "data/file_index of episode 1 is -7"),
        ({f"videos/{FRONT}/from_timestamp": pa.array([0.0, None])}, "from_timestamp .* is nan"),
        ({f"videos/{FRONT}/from_timestamp": pa.array([0.0, -0.5])}, "from_timestamp .* is -0.5"),
        ({f"videos/{FRONT}/from_timestamp": pa.array([0.0, 1e300])}, "from_timestamp .* is 1e"),
        ({f"videos/{FRONT}/from_timestamp": pa.array([0.0, 0.05])}, "must be the time of a frame"),
        ({f"videos/{FRONT}/to_timestamp": pa.array([0.5, 0.4])}, "4 frames in videos/.* and length 3"),
        ({f"videos/{FRONT}/chunk_index": pa.array([0, None])}, "chunk_index of episode 1 is missing"),
        ({"episode_index": pa.array([0, 0])}, "episode 1 is not listed"),
    ],
    ids=only_text,
)
def test_broken_lists(fresh: Callable[[str], Path], changes: dict[str, Any], message: str) -> None:
    root = fresh("v3")
    listed(root, **changes)
    with pytest.raises(EpisodeError, match=message) as caught:
        codes(LeRobotDataset(root), 1)
    assert str(caught.value).startswith(str(root / "meta/episodes"))
    assert codes(LeRobotDataset(root), 2)[FRONT][0] == 40
    if "episode_index" in changes:
        assert "episode 0 is listed 2 times" in fault_of(root, 0)


def test_a_list_that_is_lost_costs_its_episodes(fresh: Callable[[str], Path]) -> None:
    root = fresh("v3")
    path = root / "meta/episodes/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:100])
    dataset = LeRobotDataset(root)
    assert len(dataset) == 3 and codes(dataset, 1)[WRIST] == [120, 121, 122]
    assert fault_of(root, 2).startswith(f"{path}: damaged (")
    changed_info(root, total_episodes=None)
    with pytest.raises(EpisodeError, match=rf"^{path}: damaged"):
        LeRobotDataset(root)
    changed_info(root, total_episodes=3)
    path.unlink()
    assert fault_of(root, 2).startswith(f"{path.parent.parent}: episode 2 is not listed")


def test_columns_of_a_camera_that_are_missing_in_a_list(fresh: Callable[[str], Path]) -> None:
    root = fresh("v3")
    names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    path = listed(root, **{f"videos/{FRONT}/{name}": None for name in names})
    assert fault_of(root, 0).startswith(f"{path}: videos/{FRONT}/chunk_index of episode 0 is missing")


def test_rows_of_v3_that_are_missing_or_lie_apart(fresh: Callable[[str], Path]) -> None:
    root = fresh("v3-images")
    path = root / "data/chunk-000/file-000.parquet"
    kept = columns(0, 5, 0) | {camera: pictures(0, 5, camera) for camera in CAMERAS}
    table(path, [kept])
    assert fault_of(root, 1) == (
        f"{path}: 0 rows of episode 1, and 3 by meta; there must be as many. Copy the data set again."
    )
    assert codes(LeRobotDataset(root), 0)[FRONT] == [0, 1, 2, 3, 4]
    table(path, [kept | {"episode_index": pa.array([0, 0, 1, 0, 0])}])
    assert fault_of(root, 0).startswith(f"{path}: rows of episode 0 lie apart")
    table(path, [{name: values for name, values in kept.items() if name != "episode_index"}])
    assert fault_of(root, 0).startswith(f"{path}: no column 'episode_index'")


def test_a_video_of_v3_that_is_missing_or_ends_early(fresh: Callable[[str], Path]) -> None:
    root = fresh("v3")
    path = root / f"videos/{FRONT}/chunk-000/file-001.mp4"
    video(path, range(8))
    assert fault_of(root, 2).startswith(f"{path}: holds 8 frames; frames 3 to 9 are asked for")
    path.unlink()
    for index in (1, 2):
        assert fault_of(root, index).startswith(f"{path}: no such file")
    assert codes(LeRobotDataset(root), 0)[FRONT] == [0, 1, 2, 3, 4]


def mutated(data: bytes, chance: random.Random) -> bytes:
    kind, at = chance.randrange(5), chance.randrange(max(1, len(data)))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return b""
    changed = bytearray(data)
    if kind == 2:
        changed[at : at + 64] = chance.randbytes(min(64, len(data) - at))
    for _ in range(chance.randrange(1, 6)):
        place = chance.randrange(max(0, len(data) - 4000), len(data)) if kind == 3 else chance.randrange(len(data))
        changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


@pytest.mark.parametrize("kind", ["v2", "v2-images", "v3", "v3-images"])
def test_whatever_is_broken_is_an_episode_error(fresh: Callable[[str], Path], kind: str) -> None:
    root, chance = fresh(kind), random.Random(kind)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    told = 0
    for _ in range(60):
        path = chance.choice(paths)
        data = path.read_bytes()
        path.write_bytes(mutated(data, chance))
        recognises(root)
        try:
            found = list(read_all(root))
            assert len(found) <= 2 * len(LENGTHS)
        except EpisodeError as error:
            told += 1
            assert str(error).startswith(str(root)), error
        path.write_bytes(data)
    assert told > 20
    assert len(list(read_all(root))) == 6
