from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.sources.something import PAPER_CLASSES, SomethingSomething, recognises
from ivideogpt.errors import EpisodeError

CLASSES = {"Closing something": "5", "Moving something up": "45", "Unfolding something": "172"}
TRAIN = [
    {"id": "78", "label": "moving a box up", "template": "Moving [something] up", "placeholders": ["a box"]},
    {"id": "9", "label": "unfolding a map", "template": "Unfolding [something]", "placeholders": ["a map"]},
    {"id": "404", "label": "closing it", "template": "Closing [something]", "placeholders": ["it"]},
]
VALIDATION = [{"id": "1", "label": "closing a box", "template": "[Closing something]", "placeholders": []}]


def made(root: Path, **labels: Any) -> Path:
    """A data set; a label file of None is left out. Its videos are GIFs under another name, told by their bytes."""
    (root / "20bn-something-something-v2").mkdir(parents=True, exist_ok=True)
    (root / "labels").mkdir(exist_ok=True)
    files = {"train": TRAIN, "validation": VALIDATION, "test": [{"id": "20"}], "labels": CLASSES} | labels
    for name, content in files.items():
        if content is not None:
            (root / "labels" / f"{name}.json").write_text(json.dumps(content))
    for name in ("78", "9", "1", "20"):
        pages = [Image.fromarray(np.full((6, 8, 3), 40 * number + int(name), np.uint8)) for number in range(3)]
        path = root / "20bn-something-something-v2" / f"{name}.webm"
        pages[0].save(path, "GIF", save_all=True, append_images=pages[1:], duration=100)
    return root


def names(source: SomethingSomething) -> list[str]:
    return [source.name(index) for index in range(len(source))]


def test_what_a_recording_holds(tmp_path: Path) -> None:
    source = pickle.loads(pickle.dumps(SomethingSomething(made(tmp_path))))
    assert names(source) == ["78", "9", "404", "1", "20"]
    recording = source.read(0)
    assert recording.name == "78" and recording.split == "train" and recording.language == "moving a box up"
    assert recording.length is None and recording.frame_rate == 10 and recording.actions is None
    assert recording.metadata == {
        "id": "78",
        "template": "Moving [something] up",
        "placeholders": ["a box"],
        "class": "Moving something up",
        "class_index": 45,
    }
    means = [float(frame.mean()) for frame in recording.cameras["video"]()]
    np.testing.assert_allclose(means, [78, 118, 158], atol=4)
    assert source.read(3).metadata["class"] == "Closing something" and source.read(3).split == "validation"
    last = source.read(4)
    assert last.language is None and last.split == "test" and last.metadata == {"id": "20"}
    with pytest.raises(EpisodeError, match=r"404\.webm: no such file") as caught:
        source.read(2)
    assert str(caught.value).startswith(str(tmp_path / "20bn-something-something-v2" / "404.webm"))


def test_splits_and_classes(tmp_path: Path) -> None:
    made(tmp_path)
    for split, wanted in (("train", ["78", "9", "404"]), ("validation", ["1"]), ("test", ["20"])):
        assert names(SomethingSomething(tmp_path, split)) == wanted
    assert names(SomethingSomething(tmp_path, classes=PAPER_CLASSES)) == ["78", "404", "1"]
    assert names(SomethingSomething(tmp_path, "train", classes=[172])) == ["9"]
    assert len(PAPER_CLASSES) == 95 and {5, 45, 114} <= PAPER_CLASSES and not PAPER_CLASSES & {2, 166, 172}
    with pytest.raises(EpisodeError, match=r"train\.json: no video of the 1 classes"):
        SomethingSomething(tmp_path, "train", classes=[3])
    with pytest.raises(EpisodeError, match=r"unknown split 'val'.*Available: test, train, validation"):
        SomethingSomething(tmp_path, "val")


def test_other_layouts(tmp_path: Path) -> None:
    root = made(tmp_path / "a", test=None, labels=None)
    assert names(SomethingSomething(root)) == ["78", "9", "404", "1"]
    assert SomethingSomething(root).read(0).metadata["class_index"] is None
    with pytest.raises(EpisodeError, match=r"labels\.json: needed to choose classes"):
        SomethingSomething(root, classes=PAPER_CLASSES)
    with pytest.raises(EpisodeError, match=r"no labels/test\.json"):
        SomethingSomething(root, "test")
    for split in ("train", "validation"):
        (root / "labels" / f"{split}.json").rename(root / f"something-something-v2-{split}.json")
    (root / "20bn-something-something-v2").rename(root / "videos")
    assert recognises(root) and sum(1 for _ in SomethingSomething(root).read(0).cameras["video"]()) == 3


def test_recognises(tmp_path: Path) -> None:
    assert recognises(made(tmp_path / "a"))
    assert not recognises(tmp_path / "a" / "labels") and not recognises(tmp_path / "none")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "train.json").write_text("[]")
    assert not recognises(tmp_path) and not recognises(Path("x" * 5000))


@pytest.mark.parametrize(
    ("line", "name", "message"),
    [
        (7, "train-entry-1", "entry 1 is a number; it must be an object"),
        ({}, "train-entry-1", "entry 1 has id None"),
        ({"id": "../9", "template": "x"}, "train-entry-1", "entry 1 has id '../9'"),
        ({"id": "78", "template": "x"}, "train-entry-1", "id 78, as an earlier one has"),
        ({"id": "9"}, "9", "video 9: no template"),
        ({"id": "9", "template": 5}, "9", "video 9: .*must be texts"),
        ({"id": "9", "template": "x", "placeholders": "y"}, "9", "video 9: .*must be texts"),
        (
            {"id": "9", "template": "Eating [something]"},
            "9",
            r"labels\.json: no class 'Eating something', which video 9",
        ),
    ],
)
def test_a_broken_entry_leaves_the_others(tmp_path: Path, line: Any, name: str, message: str) -> None:
    source = SomethingSomething(made(tmp_path, train=[TRAIN[0], line, TRAIN[1] | {"id": "20"}], test=None))
    assert names(source) == ["78", name, "20", "1"]
    with pytest.raises(EpisodeError, match=message) as caught:
        source.read(1)
    assert str(caught.value).startswith(str(tmp_path))
    assert source.read(0).name == "78" and source.read(2).name == "20"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"train": {}}, r"train\.json: holds an object; it must be a list"),
        ({"train": None, "validation": None, "test": None}, r"no labels/train\.json"),
        ({"train": [], "validation": [], "test": []}, "no video in it"),
        ({"labels": []}, r"labels\.json: holds a list; it must map"),
        ({"labels": {"x": "y"}}, r"labels\.json: class 'x' has number 'y'"),
    ],
)
def test_refuses_label_files(tmp_path: Path, labels: dict[str, Any], message: str) -> None:
    made(tmp_path, **labels)
    with pytest.raises(EpisodeError, match=message) as caught:
        SomethingSomething(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("name", ["labels/train.json", "labels/labels.json", "20bn-something-something-v2/78.webm"])
def test_damaged_files_are_read_or_refused(tmp_path: Path, name: str) -> None:
    path = made(tmp_path) / name
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole)
        how, at = rng.integers(3), int(rng.integers(len(data)))
        if how == 0:
            data = data[:at]
        elif how == 1:
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at : at + 4] = rng.bytes(len(data[at : at + 4]))
        path.write_bytes(data)
        try:
            source = SomethingSomething(tmp_path)
        except EpisodeError as error:
            assert str(error).startswith(str(tmp_path))
            continue
        for index in range(len(source)):
            assert source.name(index)
            try:
                list(source.read(index).cameras["video"]())
            except EpisodeError as error:
                assert str(error).startswith(str(tmp_path))
