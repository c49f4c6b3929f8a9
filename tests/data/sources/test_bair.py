from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.sources.bair import BairDataset, recognises
from ivideogpt.errors import EpisodeError
from tests.data.sources.test_tfrecord import Values, example, mutants, record


def picture(trajectory: int, camera: int, step: int) -> np.ndarray:
    return np.random.default_rng([trajectory, camera, step]).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def features(trajectory: int, steps: int = 12) -> dict[str, Values]:
    """A trajectory whose actions tell its number and their step."""
    made: dict[str, Values] = {}
    for step in range(steps):
        for camera, name in enumerate(["image_main", "image_aux1"]):
            made[f"{step}/{name}/encoded"] = [picture(trajectory, camera, step).tobytes()]
        made[f"{step}/action"] = [float(trajectory), step + 0.5, 0.0, -1.0]
        made[f"{step}/endeffector_pos"] = [float(step), 2.0, float(trajectory)]
    return made


def save(root: Path, name: str, *trajectories: dict[str, Values]) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(record(example(trajectory)) for trajectory in trajectories))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save(tmp_path, "train/traj_1024_to_1279.tfrecords", features(3, 2), features(4, 2))
    save(tmp_path, "train/traj_256_to_511.tfrecords", features(2))
    save(tmp_path, "test/traj_0_to_255.tfrecords", features(1, 2))
    return tmp_path


def read_all(path: Path) -> tuple[int, list[str]]:
    """How many records can be read with all frames, and what is said of the others."""
    source = BairDataset(path)
    said = []
    for index in range(len(source)):
        assert source.name(index)
        try:
            recording = source.read(index)
            for frames in recording.cameras.values():
                for frame in frames():
                    assert frame.shape == (64, 64, 3)
        except EpisodeError as error:
            assert str(error).startswith(str(path))
            said.append(str(error))
    return len(source) - len(said), said


def test_files_by_number_and_splits_in_order(root: Path) -> None:
    source = pickle.loads(pickle.dumps(BairDataset(root)))
    assert [source.name(index) for index in range(len(source))] == [
        "train/traj_256_to_511/000",
        "train/traj_1024_to_1279/000",
        "train/traj_1024_to_1279/001",
        "test/traj_0_to_255/000",
    ]
    recordings = [source.read(index) for index in range(len(source))]
    assert [recording.actions[0, 0] for recording in recordings if recording.actions is not None] == [2, 3, 4, 1]
    assert [recording.split for recording in recordings] == ["train", "train", "train", "test"]
    assert [recording.metadata["official_index"] for recording in recordings] == [256, 1024, 1025, 0]
    assert len(BairDataset(root, "test")) == len(BairDataset(root / "test")) == 1


def test_values_of_each_step_in_order(root: Path) -> None:
    recording = BairDataset(root).read(0)
    assert recording.length == 12
    assert list(recording.cameras) == ["image_main", "image_aux1"]
    for camera, frames in enumerate(recording.cameras.values()):
        for _ in range(2):  # each call begins anew
            np.testing.assert_array_equal(list(frames()), [picture(2, camera, step) for step in range(12)])
    assert recording.actions is not None
    assert recording.states is not None
    np.testing.assert_array_equal(recording.actions[:, 1], np.arange(12) + 0.5)
    np.testing.assert_array_equal(recording.states[:, 0], np.arange(12))
    assert recording.state_parts == (("endeffector_pos", 3),)


def test_recognises(root: Path, tmp_path: Path) -> None:
    assert recognises(root)
    assert recognises(root / "train")
    (tmp_path / "empty").mkdir()
    assert not recognises(tmp_path / "empty")
    assert not recognises(tmp_path / "nothing")
    assert not recognises(next((root / "test").iterdir()))


def test_folder_above(root: Path, tmp_path: Path) -> None:
    above = tmp_path / "above"
    save(above, "softmotion30_44k/train/traj_0_to_255.tfrecords", features(1, 2))
    assert recognises(above)
    assert BairDataset(above).name(0) == "train/traj_0_to_255/000"


def test_last_step_without_action_and_none_at_all(tmp_path: Path) -> None:
    fewer = features(1, 3)
    del fewer["2/action"]
    video = {key: value for key, value in features(2, 3).items() if "encoded" in key}
    save(tmp_path, "train/traj_0_to_255.tfrecords", fewer, video)
    source = BairDataset(tmp_path)
    actions = source.read(0).actions
    assert actions is not None
    np.testing.assert_array_equal(actions[:, 1], [0.5, 1.5, 1.5])
    assert source.read(1).actions is source.read(1).states is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"1/image_main/encoded": None}, "no key '1/image_main/encoded', though there are 3 steps"),
        ({"1/action": None}, "no key '1/action', though there are 3 steps"),
        ({"1/action": [1.0]}, "'action' has 1 numbers at one step and 4 at another"),
        ({"1/action": [b"1.0"]}, "'1/action' holds bytes_list; it must hold numbers"),
        ({"1/endeffector_pos": [1.0, float("nan"), 2.0]}, "must be finite"),
        ({"1/image_aux1/encoded": [b"short"]}, "'1/image_aux1/encoded' holds 5 bytes; it must hold one picture of 64"),
        ({"1/image_aux1/encoded": []}, "holds nothing"),
        ({"999999999/image_main/encoded": [b""]}, "/encoded', though there are 1000000000 steps"),
    ],
    ids=str,
)
def test_faults_of_one_record(tmp_path: Path, changes: dict[str, Values | None], said: str) -> None:
    wrong = features(1, 3) | changes
    path = save(
        tmp_path, "train/traj_0_to_255.tfrecords", {key: value for key, value in wrong.items() if value is not None}
    )
    save(tmp_path, "train/traj_256_to_511.tfrecords", features(2, 3))
    good, (message,) = read_all(tmp_path)
    assert good == 1
    assert message.startswith(f"{path}: record 0: ")
    assert said in message


def test_record_without_frames(tmp_path: Path) -> None:
    save(tmp_path, "train/traj_0_to_255.tfrecords", {"other": [1]})
    assert "(keys: other)" in read_all(tmp_path)[1][0]


def test_truncated_and_empty_files(root: Path) -> None:
    path = root / "train/traj_1024_to_1279.tfrecords"
    path.write_bytes(path.read_bytes()[:-100])
    (root / "test/traj_0_to_255.tfrecords").write_bytes(b"")
    good, (first, second) = read_all(root)
    assert good == 2
    assert first.startswith(f"{path}: record 1: truncated")
    assert "traj_0_to_255.tfrecords: record 0: 0 bytes" in second


def test_wrong_folders(root: Path, tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="unknown split 'val'"):
        BairDataset(root, "val")
    with pytest.raises(EpisodeError, match="no such folder"):
        BairDataset(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="empty: no traj_"):
        BairDataset(tmp_path / "empty")


def test_fuzz(tmp_path: Path) -> None:
    path = save(tmp_path, "train/traj_0_to_255.tfrecords", features(1, 2), features(2, 2))
    for mutant in mutants(path.read_bytes(), 120):
        path.write_bytes(mutant)
        good, said = read_all(tmp_path)
        assert good + len(said) >= 1
    # What the checksums agree to, but is no such message.
    payload = example({key: value for key, value in features(1, 2).items() if "image" not in key})
    frames = example({key: value for key, value in features(1, 2).items() if "image" in key})
    for mutant in mutants(payload, 120):
        path.write_bytes(record(frames + mutant))
        read_all(tmp_path)
