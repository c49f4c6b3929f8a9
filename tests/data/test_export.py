"""What is exported comes back as it was."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.cli.main import main
from ivideogpt.data.episode import Episode
from ivideogpt.data.export import open_any, write_npz
from ivideogpt.data.sources.npz import NpzFolder, write_episode
from ivideogpt.data.store import Store
from ivideogpt.errors import EpisodeError
from tests.data.sources.videos import number_in, picture


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two episodes with everything that an episode may have."""
    rng = np.random.default_rng(0)
    for number in range(2):
        length = 6 + number
        episode = Episode(
            frames=np.stack([picture(j) for j in range(length)]),
            actions=rng.normal(size=(length, 2)).astype(np.float32),
            rewards=np.concatenate([[0], rng.normal(size=length - 1)]).astype(np.float32),
            states=rng.normal(size=(length, 3)).astype(np.float32),
            metadata={"frame_rate": 10, "action_names": ["x", "y"]},
        )
        write_episode(tmp_path / "data" / f"{number}.npz", episode)
    return tmp_path / "data"


def test_episode_files_through_a_store(tmp_path: Path, data: Path) -> None:
    assert main(["convert", str(data), "--out", str(tmp_path / "store"), "--encoding", "png"]) == 0
    assert main(["export", str(tmp_path / "store"), "--format", "npz", "--out", str(tmp_path / "back")]) == 0
    for index in range(2):
        one, other = NpzFolder(data).read(index), NpzFolder(tmp_path / "back").read(index)
        for name in ("frames", "actions", "rewards", "states"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert other.metadata == {"frame_rate": 10.0, "action_names": ["x", "y"]}


def test_lerobot_and_back(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(data), "--format", "lerobot", "--out", str(tmp_path / "lerobot"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"format": "lerobot", "episodes": 2, "fps": 10.0}
    assert main(["convert", str(tmp_path / "lerobot"), "--out", str(tmp_path / "store")]) == 0
    store = Store(tmp_path / "store", camera_key="observation.images.image")
    for index in range(2):
        one, other = NpzFolder(data).read(index), store.read(index)
        assert [number_in(frame) for frame in other.frames] == list(range(one.length))
        for name in ("actions", "rewards", "states"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-6)
        assert other.metadata["action_names"] == ["x", "y"] and other.metadata["frame_rate"] == 10


def test_what_is_refused(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    told = ["export", str(data), "--format", "npz", "--out", str(tmp_path / "full")]
    assert main(told) == 2 and "exists and is not empty" in capsys.readouterr().err
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 8, 8, 3), np.uint8), b=np.zeros((3, 8, 8, 3), np.uint8))
    told = ["export", str(tmp_path), "--format", "npz", "--out", str(tmp_path / "out")]
    assert main(told) == 2 and "has the cameras a, b; an episode file has one" in capsys.readouterr().err
    assert main([*told, "--camera-key", "c"]) == 2 and "unknown camera key 'c'" in capsys.readouterr().err
    told[told.index("npz")] = "lerobot"
    assert main(told) == 2 and "Say it with --fps" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_episodes_of_one_name_are_refused(tmp_path: Path, data: Path) -> None:
    source = open_any(data)
    with pytest.raises(EpisodeError, match=r"two episodes would be 0\.npz"):
        list(write_npz(iter([source.read(0), source.read(0)]), tmp_path / "out"))
    assert not (tmp_path / "out").exists()
