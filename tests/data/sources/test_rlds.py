from __future__ import annotations

import io
import json
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.sources.rlds import RldsDataset, recognises
from ivideogpt.errors import EpisodeError
from tests.data.sources.test_tfrecord import Values, example, record

STEPS = 3


def tensor(dtype: str, *shape: int, encoding: str | None = "none") -> dict[str, Any]:
    """A tensor of features.json; protobuf writes whole numbers as text, and leaves out what is the default."""
    made: dict[str, Any] = {"dtype": dtype, "shape": {"dimensions": [str(size) for size in shape]} if shape else {}}
    return {"tensor": made | ({} if encoding is None else {"encoding": encoding}), "pythonClassName": "Tensor"}


def image(*shape: int, dtype: str = "uint8") -> dict[str, Any]:
    return {"image": {"dtype": dtype, "encodingFormat": "png", "shape": {"dimensions": [str(size) for size in shape]}}}


def mapping(**features: Any) -> dict[str, Any]:
    return {"featuresDict": {"features": features}}


TEXT: dict[str, Any] = {"text": {}}


def png(number: int, height: int = 4, width: int = 6) -> bytes:
    """A picture whose red tells its number."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = number
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


FEATURES: dict[str, Any] = {
    "action": tensor("float32", 2),
    "reward": tensor("float32"),
    "is_last": tensor("bool"),
    "is_terminal": tensor("bool"),
    "language_instruction": TEXT,
    "observation": mapping(
        wrist_image=image(-1, -1, 3),
        state=tensor("float32", 2, 2),
        depth=image(4, 6, 1, dtype="uint16"),
        image=image(4, 6, 3),
    ),
}


def episode(number: int, **changes: Values | None) -> dict[str, Values]:
    made: dict[str, Values | None] = {
        "steps/action": [float(value) for value in range(2 * STEPS)],
        "steps/reward": [0.0, 0.5, float(number)],
        "steps/is_last": [0, 0, 1],
        "steps/is_terminal": [0, 0, 0],
        "steps/language_instruction": [b"", "öffne".encode(), b"x"],
        "steps/observation/image": [png(10 * number + step) for step in range(STEPS)],
        "steps/observation/wrist_image": [png(100 + 10 * number + step, 3, 3) for step in range(STEPS)],
        "steps/observation/depth": [b"not read"] * STEPS,
        "steps/observation/state": [float(value) for value in range(4 * STEPS)],
        "episode_metadata/file_path": [f"/data/{number}".encode()],
        "episode_metadata/success": [1],
        "episode_metadata/score": [float("nan")],
    }
    renamed = {key.replace("__", "/"): values for key, values in changes.items()}
    return {key: values for key, values in (made | renamed).items() if values is not None}


def save(
    folder: Path,
    splits: Mapping[str, list[list[dict[str, Values]]]],
    features: Mapping[str, Any] = FEATURES,
    info: Any = None,
) -> Path:
    """A version's folder; `splits` are lists of shards, which are lists of records."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = mapping(file_path=TEXT, success=tensor("bool"), score=tensor("float32"), vector=tensor("float32", 9))
    steps = {"sequence": {"feature": mapping(**features), "length": "-1"}}
    (folder / "features.json").write_text(json.dumps(mapping(steps=steps, episode_metadata=metadata)))
    entries = []
    for split, shards in splits.items():
        payloads = [[example(one) for one in shard] for shard in shards]
        for number, shard in enumerate(payloads):
            path = folder / f"some-{split}.tfrecord-{number:05d}-of-{len(shards):05d}"
            path.write_bytes(b"".join(record(payload) for payload in shard))
        size = sum(len(payload) for shard in payloads for payload in shard)
        entries.append({"name": split, "numBytes": str(size), "shardLengths": [str(len(shard)) for shard in shards]})
    made = {"name": "some", "version": "1.0.0", "fileFormat": "tfrecord", "splits": entries} | (info or {})
    (folder / "dataset_info.json").write_text(json.dumps(made))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train = [[episode(1), episode(2)], [episode(3), episode(4)]]
    return save(tmp_path / "some" / "1.0.0", {"val": [[episode(5)]], "train": train})


def one(tmp_path: Path, features: Mapping[str, Any] = FEATURES, **changes: Values | None) -> RldsDataset:
    return RldsDataset(save(tmp_path / "one", {"train": [[episode(1, **changes)]]}, features))


def test_numbering(folder: Path) -> None:
    source = pickle.loads(pickle.dumps(RldsDataset(folder)))
    names = ["train/00000", "train/00001", "train/00002", "train/00003", "val/00000"]
    assert [source.name(index) for index in range(len(source))] == names
    recordings = [source.read(index) for index in range(len(source))]
    assert [recording.name for recording in recordings] == names
    assert [recording.metadata["file_path"] for recording in recordings] == [
        f"/data/{number}" for number in range(1, 6)
    ]
    assert [recording.split for recording in recordings] == ["train"] * 4 + ["val"]
    assert [RldsDataset(folder, "val").name(0), len(RldsDataset(folder, "val"))] == ["val/00000", 1]
    with pytest.raises(IndexError):
        source.read(5)


def test_values(folder: Path) -> None:
    recording = RldsDataset(folder).read(1)
    assert recording.length == STEPS
    assert list(recording.cameras) == ["image", "wrist_image"]
    for _ in range(2):  # each call begins anew
        frames = list(recording.cameras["image"]())
        assert [frame.shape for frame in frames] == [(4, 6, 3)] * STEPS
        assert [frame[0, 0, 0] for frame in frames] == [20, 21, 22]
    assert [frame[0, 0, 0] for frame in recording.cameras["wrist_image"]()] == [120, 121, 122]
    np.testing.assert_array_equal(recording.actions, np.arange(2 * STEPS).reshape(STEPS, 2))
    np.testing.assert_array_equal(recording.states, np.arange(4 * STEPS).reshape(STEPS, 4))
    np.testing.assert_array_equal(recording.rewards, [0, 0.5, 2])
    assert recording.rewards_follow
    assert recording.action_parts == recording.state_parts == ()
    assert recording.language == "öffne"
    assert recording.metadata == {
        "shard": "some-train.tfrecord-00000-of-00002",
        "record": 1,
        "file_path": "/data/2",
        "success": True,
        "score": None,
        "is_last": True,
        "is_terminal": False,
    }


def test_versions(folder: Path, tmp_path: Path) -> None:
    save(folder.parent / "0.9.10", {"train": [[episode(1)]]})
    save(folder.parent / "10.0.0", {"train": [[episode(7)]]})
    (folder.parent / "11.0.0").mkdir()
    assert RldsDataset(folder.parent).path.name == "10.0.0"
    assert recognises(folder)
    assert recognises(folder.parent)
    assert not recognises(tmp_path)
    assert not recognises(tmp_path / "nothing")
    with pytest.raises(EpisodeError, match="There are some in some: name one"):
        RldsDataset(tmp_path)
    with pytest.raises(EpisodeError, match=r"unknown split 'test'\. Available: train"):
        RldsDataset(folder.parent, "test")
    with pytest.raises(EpisodeError, match="no such folder"):
        RldsDataset(tmp_path / "nothing")
    with pytest.raises(EpisodeError, match="this is a file"):
        RldsDataset(folder / "features.json")


def test_parts_of_actions_in_the_order_of_the_features(tmp_path: Path) -> None:
    action = mapping(
        world_vector=tensor("float32", 3),
        note=TEXT,
        grip=tensor("bool"),
        future=mapping(residual=tensor("int32", 1, 2)),
        name=tensor("string"),
    )
    recording = one(
        tmp_path,
        FEATURES | {"action": action},
        steps__action=None,
        steps__action__world_vector=[float(value) for value in range(9)],
        steps__action__note=[b"a"] * 3,
        steps__action__grip=[0, 1, 1],
        steps__action__future__residual=[1, 2, 3, 4, 5, -6],
    ).read(0)
    assert recording.action_parts == (("world_vector", 3), ("grip", 1), ("future/residual", 2))
    np.testing.assert_array_equal(recording.actions, [[0, 1, 2, 0, 1, 2], [3, 4, 5, 1, 3, 4], [6, 7, 8, 1, 5, -6]])


def test_states_are_proprioception_where_there_is_no_state(tmp_path: Path) -> None:
    observation = mapping(
        image=image(4, 6, 3),
        effector=mapping(pose=tensor("float32", 2)),
        natural_language_embedding=tensor("float32", 2),
        gripper=tensor("float64"),
        count=tensor("int32"),
        depth=tensor("float32", 4, 6),
    )
    recording = one(
        tmp_path,
        FEATURES | {"observation": observation},
        steps__observation__effector__pose=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        steps__observation__gripper=[7.0, 8.0, 9.0],
    ).read(0)
    assert recording.state_parts == (("effector/pose", 2), ("gripper", 1))
    np.testing.assert_array_equal(recording.states, [[1, 2, 7], [3, 4, 8], [5, 6, 9]])


def test_plain_video(tmp_path: Path) -> None:
    recording = one(tmp_path, {"observation": mapping(image=image(4, 6, 3))}).read(0)
    assert recording.actions is recording.rewards is recording.states is recording.language is None


@pytest.mark.parametrize("encoding", ["bytes", "zlib"])
def test_encoded_tensors(tmp_path: Path, encoding: str) -> None:
    actions = np.arange(6, dtype=np.float64).reshape(3, 2)
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), np.uint8)
    pack = zlib.compress if encoding == "zlib" else bytes
    observation = mapping(image=tensor("uint8", 4, 5, 3, encoding=encoding))
    source = one(
        tmp_path,
        FEATURES | {"action": tensor("float64", 2, encoding=encoding), "observation": observation},
        steps__action=[pack(row.tobytes()) for row in actions],
        steps__observation__image=[pack(frame.tobytes()) for frame in frames],
    )
    np.testing.assert_array_equal(source.read(0).actions, actions)
    np.testing.assert_array_equal(list(source.read(0).cameras["image"]()), frames)


def test_frames_as_plain_tensors(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3))
    features = FEATURES | {"observation": mapping(image=tensor("uint8", 4, 5, 3, encoding=None))}
    recording = one(tmp_path, features, steps__observation__image=frames.ravel().tolist()).read(0)
    assert recording.length == 3
    np.testing.assert_array_equal(list(recording.cameras["image"]()), frames)


@pytest.mark.parametrize(
    ("key", "feature", "values", "said"),
    [
        ("steps/observation/natural_language_instruction", TEXT, [b"lift"] * 3, "lift"),
        ("steps/observation/instruction", tensor("int32", 512), [*b"lift \xc3\xb6", *[0] * 505] * 3, "lift ö"),
        ("steps/observation/instruction", tensor("int32", 512), [0] * 512 * 3, None),
        ("steps/observation/instruction", tensor("float32", 2), [1.0] * 6, None),
        ("steps/language_instruction", tensor("string"), [b"lift"] * 3, "lift"),
        ("steps/language_instruction", TEXT, [b""] * 3, None),
        ("steps/language_instruction", TEXT, [b"\xff"] * 3, "\ufffd"),
    ],
)
def test_instructions(tmp_path: Path, key: str, feature: Any, values: Values, said: str | None) -> None:
    name = key.rpartition("/")[2]
    features = {key: value for key, value in FEATURES.items() if key != "language_instruction"}
    if "observation" in key:
        features["observation"] = mapping(image=image(4, 6, 3), **{name: feature})
    else:
        features[name] = feature
    source = one(tmp_path, features, **{key.replace("/", "__"): values})
    assert source.read(0).language == said
