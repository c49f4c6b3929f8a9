from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivideogpt.data.sources.rlds import RldsDataset
from ivideogpt.errors import EpisodeError
from tests.data.sources.test_rlds import FEATURES, episode, image, mapping, one, png, save, tensor
from tests.data.sources.test_tfrecord import example, mutants, record


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = [[episode(1), episode(2)], [episode(3), episode(4)]]
    return save(tmp_path / "some" / "1.0.0", {"val": [[episode(5)]], "train": train})


def read_all(path: Path) -> tuple[list[str], dict[str, str]]:
    """Names of the records that can be read with all frames, and what is said of the others."""
    source = RldsDataset(path)
    good, said = [], {}
    for index in range(len(source)):
        name = source.name(index)
        try:
            for frames in source.read(index).cameras.values():
                for frame in frames():
                    assert frame.dtype == np.uint8
                    assert frame.ndim == 3
            good.append(name)
        except EpisodeError as error:
            assert str(error).startswith(str(path))
            said[name] = str(error)
    assert len({*good, *said}) == len(source)
    return good, said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps__action": None}, "unknown key 'steps/action'"),
        (
            {"steps__action": [1.0] * 5},
            "'steps/action' holds 5 numbers for 3 steps; features.json says (2,) a step, 6 in",
        ),
        ({"steps__action": [b"x"]}, "holds bytes_list; it must hold numbers"),
        ({"steps__action": [float("inf")] * 6}, "must be finite"),
        ({"steps__reward": [1.0] * 2}, "'steps/reward' holds 2 numbers"),
        ({"steps__observation__state": [1.0] * 24}, "holds 24 numbers for 3 steps"),
        ({"steps__observation__image": [png(1)] * 2}, "{'image': 2, 'wrist_image': 3} frames"),
        ({"steps__observation__image": [png(1), b"", png(1)]}, "step 1 of 'steps/observation/image'"),
        (
            {"steps__observation__image": [png(1), png(1), png(1, 5, 5)]},
            "step 2 of 'steps/observation/image' is (5, 5, 3)",
        ),
        ({"steps__observation__image": [png(1)[:-20]] * 3}, "damaged"),
    ],
    ids=str,
)
def test_faults_of_one_record(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = save(tmp_path / "one", {"train": [[episode(1, **changes), episode(2)]]})
    good, told = read_all(path)
    assert good == ["train/00001"]
    assert told["train/00000"].startswith(f"{path}/some-train.tfrecord-00000-of-00001: record 0: ")
    assert said in told["train/00000"]


def test_no_steps(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="record 0: no steps"):
        one(tmp_path, steps__observation__image=[], steps__observation__wrist_image=[]).read(0)


def test_truncated_shard(folder: Path) -> None:
    path = folder / "some-train.tfrecord-00000-of-00002"
    path.write_bytes(path.read_bytes()[:-30])
    good, said = read_all(folder)
    assert good == ["train/00000", "train/00002", "train/00003", "val/00000"]
    assert said["train/00001"].startswith(f"{path}: record 1: truncated: ")


@pytest.mark.parametrize("left", [0, 40])
def test_lost_records_are_counted_and_the_others_keep_their_names(folder: Path, left: int) -> None:
    path = folder / "some-train.tfrecord-00000-of-00002"
    path.write_bytes(path.read_bytes()[:left])
    good, said = read_all(folder)
    assert good == ["train/00002", "train/00003", "val/00000"]
    assert sorted(said) == ["train/00000", "train/00001"]


def test_shard_that_ends_between_records(folder: Path) -> None:
    path = folder / "some-train.tfrecord-00000-of-00002"
    path.write_bytes(record(example(episode(1))))
    good, said = read_all(folder)
    assert good == ["train/00000", "train/00002", "train/00003", "val/00000"]
    assert "record 1: missing: dataset_info.json says 2 records" in said["train/00001"]


@pytest.mark.parametrize("info", [True, False])
def test_missing_shard(folder: Path, info: bool) -> None:
    (folder / "some-train.tfrecord-00000-of-00002").unlink()
    if not info:
        (folder / "dataset_info.json").unlink()
    good, said = read_all(folder)
    assert len(good) == 3
    assert len(said) == (2 if info else 1)
    assert "some-train.tfrecord-00000-of-00002: record 0: no such file" in said["train/00000"]


def test_damaged_length_amid_a_shard(folder: Path) -> None:
    path = folder / "some-train.tfrecord-00001-of-00002"
    data = bytearray(path.read_bytes())
    data[1] ^= 16
    path.write_bytes(data)
    good, said = read_all(folder)
    assert good == ["train/00000", "train/00001", "train/00003", "val/00000"]
    assert "checksum of its length" in said["train/00002"]


def test_without_dataset_info(folder: Path) -> None:
    (folder / "dataset_info.json").unlink()
    assert read_all(folder) == (["train/00000", "train/00001", "train/00002", "train/00003", "val/00000"], {})


def test_renamed_data_set(folder: Path) -> None:
    for path in folder.glob("some-*"):
        path.rename(path.with_name(path.name.replace("some-", "other-")))
    assert len(read_all(folder)[0]) == 5


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"fileFormat": "array_record"}, "the shards are 'array_record'"),
        ({"splits": [{"name": "train", "shardLengths": ["999999999"]}]}, "999999999 records"),
        ({"splits": [{"name": "train", "shardLengths": ["-1"]}]}, "never fewer than 0"),
        ({"splits": [{"name": "train", "shardLengths": ["1e3"]}]}, "not what tensorflow_datasets writes"),
        ({"splits": [{"name": "train", "shardLengths": [float("inf")]}]}, "not what tensorflow_datasets writes"),
        ({"splits": 3}, "not what tensorflow_datasets writes"),
    ],
)
def test_wrong_dataset_info(tmp_path: Path, info: dict[str, Any], said: str) -> None:
    path = save(tmp_path / "one", {"train": [[episode(1)]]}, info=info)
    with pytest.raises(EpisodeError) as raised:
        RldsDataset(path)
    assert str(raised.value).startswith(f"{path}/dataset_info.json: ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"action": tensor("float32", 2), "observation": mapping(state=tensor("float32", 2))}, "no camera"),
        ({"observation": mapping(depth=image(4, 6, 1))}, "no camera"),
        (FEATURES | {"action": tensor("float32", -1)}, "action 'action' is number (None,)"),
        (FEATURES | {"action": {"sequence": {"feature": tensor("float32")}}}, "action 'action' is sequence"),
        (FEATURES | {"action": tensor("float32", 10**15)}, "features.json says (1000000000000000,) a step"),
        (FEATURES | {"action": tensor("float32", 10**15, encoding="zlib")}, "it must hold bytes_list"),
    ],
)
def test_wrong_features(tmp_path: Path, features: dict[str, Any], said: str) -> None:
    path = save(tmp_path / "one", {"train": [[episode(1)]]}, features)
    with pytest.raises(EpisodeError) as raised:
        RldsDataset(path).read(0)
    assert str(raised.value).startswith(str(path))
    assert said in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 5000, '{"featuresDict": 1}', '{"image": {}}', "\xff"])
def test_files_that_are_no_features(folder: Path, text: str) -> None:
    (folder / "features.json").write_bytes(text.encode("latin1"))
    with pytest.raises(EpisodeError) as raised:
        RldsDataset(folder)
    assert str(raised.value).startswith(f"{folder}/features.json: ")


def test_zlib_bomb(tmp_path: Path) -> None:
    features = FEATURES | {"action": tensor("uint8", 2, encoding="zlib")}
    with pytest.raises(EpisodeError, match=r"holds 3 bytes a step; features.json says \(2,\)"):
        one(tmp_path, features, steps__action=[zlib.compress(bytes(1 << 24))] * 3).read(0)


def test_no_shards(folder: Path) -> None:
    for path in folder.glob("some-*"):
        path.unlink()
    with pytest.raises(EpisodeError, match="no shard"):
        RldsDataset(folder)


def test_mixed_versions_of_a_split(folder: Path) -> None:
    (folder / "dataset_info.json").unlink()
    (folder / "some-train.tfrecord-00000-of-00003").write_bytes(b"")
    with pytest.raises(EpisodeError, match="a split is written once"):
        RldsDataset(folder)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "some-train.tfrecord-00000-of-00002"])
def test_fuzz(folder: Path, name: str) -> None:
    path = folder / name
    for mutant in mutants(path.read_bytes(), 120):
        path.write_bytes(mutant)
        try:
            read_all(folder)
        except EpisodeError as error:
            assert str(error).startswith(str(folder))


def test_fuzz_behind_right_checksums(tmp_path: Path) -> None:
    path = save(tmp_path / "one", {"train": [[episode(1)]]})
    (path / "dataset_info.json").unlink()
    for mutant in mutants(example(episode(1)), 150):
        (path / "some-train.tfrecord-00000-of-00001").write_bytes(record(mutant))
        read_all(path)
