"""Which reader takes what lies at a path."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.formats import FORMATS, open_source
from ivideogpt.data.sources.official_npz import OfficialNpz
from ivideogpt.errors import ConfigError, EpisodeError
from tests.data.sources.videos import encoded


def test_what_lies_there_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    np.savez(tmp_path / "files" / "0.npz", image=np.zeros((3, 8, 8, 3), np.uint8))
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(encoded(3))
    assert open_source(tmp_path / "files")[0] == "npz"
    name, source = open_source(tmp_path / "films")
    assert name == "video" and len(source) == 1 and len(list(source.read(0).cameras["video"]())) == 3


def test_what_nobody_knows(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    with pytest.raises(EpisodeError, match=r"no reader recognises .*--format: lerobot \(.*; rlds"):
        open_source(tmp_path)
    with pytest.raises(EpisodeError, match="nothing lies there"):
        open_source(tmp_path / "missing")
    with pytest.raises(ConfigError, match=r"unknown format 'rlsd'\. Did you mean 'rlds'"):
        open_source(tmp_path, "rlsd")
    with pytest.raises(ConfigError, match="format video has no splits"):
        open_source(tmp_path, "video", split="train")


@pytest.mark.parametrize("name", FORMATS)
def test_no_reader_takes_an_empty_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(EpisodeError, match=str(tmp_path)):
        open_source(tmp_path, name)


def test_official_files(tmp_path: Path) -> None:
    """Whole numbers of 64 bits, actions in double precision that are one short, another camera, numbers in order."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 8, 12, 3))
    for number in (10, 2):
        actions = rng.normal(size=(4, 3)) + number
        tracks = {"aux1_image": images, "image": images[:, ::-1], "action": actions, "reward": np.arange(5)[:, None]}
        (tmp_path / "train").mkdir(exist_ok=True)
        np.savez(tmp_path / "train" / f"traj_{number:05d}.npz", **tracks)
    source = OfficialNpz(tmp_path)
    assert [source.name(index) for index in range(2)] == ["train/traj_00002", "train/traj_00010"]
    recording = source.read(1)
    assert recording.actions is not None and recording.rewards is not None and recording.split == "train"
    assert recording.actions.shape == (5, 3) and recording.actions.dtype == np.float32
    np.testing.assert_array_equal(recording.actions[3], recording.actions[4])
    np.testing.assert_array_equal(recording.rewards, np.arange(5))
    np.testing.assert_array_equal(np.stack(list(recording.cameras["aux1_image"]())), images)
    assert set(recording.cameras) == {"aux1_image", "image"} and recording.length == 5
    with pytest.raises(EpisodeError, match="of split 'test' in it"):
        OfficialNpz(tmp_path, split="test")


def test_official_files_that_are_broken(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", action=np.zeros((4, 2)))
    np.savez(tmp_path / "b.npz", image=np.zeros((4, 8, 8, 3), np.uint8), wrist=np.zeros((3, 8, 8, 3), np.uint8))
    np.savez(tmp_path / "c.npz", image=np.zeros((4, 8, 8, 3), np.uint8), action=np.full((4, 2), np.nan))
    (tmp_path / "d.npz").write_bytes(b"PK")
    source = OfficialNpz(tmp_path)
    for index, message in enumerate(("no camera", "different lengths", "must be finite", "truncated")):
        with pytest.raises(EpisodeError, match=rf"{source.name(index)}\.npz: .*{message}"):
            source.read(index)


def test_mutations_of_official_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "0.npz"
    np.savez_compressed(path, image=rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8), action=rng.normal(size=(4, 2)))
    whole = path.read_bytes()
    for _ in range(150):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 9)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(len(whole) // 2, len(whole) + 1)])
        try:
            recording = OfficialNpz(tmp_path).read(0)
            assert all(frame.shape == (8, 8, 3) for frames in recording.cameras.values() for frame in frames())
        except EpisodeError as error:
            assert str(path) in str(error)
