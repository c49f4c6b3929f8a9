from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import NpzFolder, read_episode
from ivideogpt.envs.pusht import PushT
from ivideogpt.envs.record import pusht_episode, record_episodes
from ivideogpt.errors import InputError, OutputError

FIELDS = ("frames", "actions", "rewards", "states", "contacts")


def assert_equal(one: Episode, other: Episode) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.metadata == other.metadata


def digest(episode: Episode) -> str:
    return hashlib.sha256(b"".join(getattr(episode, name).tobytes() for name in FIELDS)).hexdigest()


def test_files_hold_the_episodes_of_their_seeds(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    paths = record_episodes("pusht", 3, tmp_path / "new", seed=5, length=12, progress=lambda *done: steps.append(done))
    assert [path.name for path in paths] == ["episode_000005.npz", "episode_000006.npz", "episode_000007.npz"]
    assert steps == [(1, 3), (2, 3), (3, 3)]
    folder = NpzFolder(tmp_path / "new")
    assert len(folder) == 3
    for index in range(3):
        assert folder.path(index) == paths[index]
        assert_equal(folder.read(index), pusht_episode(5 + index, 12))


def test_an_episode_replays_in_the_simulator() -> None:
    episode = pusht_episode(900_000, 30)
    assert episode.frames.shape == (30, 64, 64, 3)
    assert episode.actions is not None
    assert episode.rewards is not None
    assert episode.states is not None
    assert episode.contacts is not None
    assert np.abs(episode.actions).max() <= 1
    assert episode.rewards[0] == 0
    assert episode.metadata["seed"] == 900_000
    env = PushT()
    frame, info = env.reset(seed=900_000)
    for j in range(30):
        np.testing.assert_array_equal(frame, episode.frames[j])
        assert info["contacts"] == episode.contacts[j]
        np.testing.assert_array_equal(info["state"].astype(np.float32), episode.states[j])
        frame, reward, _, _, info = env.step(episode.actions[j])
        if j < 29:
            assert np.float32(reward) == episode.rewards[j + 1]


def test_another_process_records_the_same() -> None:
    code = (
        "import hashlib; from ivideogpt.envs.record import pusht_episode; e = pusht_episode(3, 40); "
        "print(hashlib.sha256(b''.join(getattr(e, n).tobytes() "
        f"for n in {FIELDS})).hexdigest())"
    )
    pusht_episode(4, 10)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == digest(pusht_episode(3, 40))


@pytest.mark.parametrize(
    ("seed", "length", "behaviour", "frames", "actions"),
    [
        (3, 40, "fast", "daedc0a74633cd72", "318354b00b3babca"),
        (4, 40, "random", "aa525f6e73a28cf3", "74983d7687395c97"),
        (900_000, 30, "fast", "11140fd7178695a6", "d40f66a2280417a6"),
    ],
)
def test_fast_episodes_are_those_of_old(seed: int, length: int, behaviour: str, frames: str, actions: str) -> None:
    episode = pusht_episode(seed, length, "pusht-fast")
    assert episode.actions is not None
    assert episode.metadata["behaviour"] == behaviour
    assert hashlib.sha256(episode.frames.tobytes()).hexdigest()[:16] == frames
    assert hashlib.sha256(episode.actions.tobytes()).hexdigest()[:16] == actions


def test_metadata_names_what_the_columns_are() -> None:
    episode = pusht_episode(0, 2, mixture={"random": 2, "slow": 6})
    assert episode.states is not None
    assert episode.metadata["state_names"] == ["agent x", "agent y", "block x", "block y", "block angle"]
    assert episode.metadata["state_angles"] == [4]
    assert episode.metadata["action_names"] == ["target x", "target y"]
    assert episode.metadata["behaviours"] == {"slow": 0.75, "random": 0.25}
    assert episode.metadata["env"] == "pusht"


def test_contacts_are_there_when_the_block_moves() -> None:
    touched, moved = [], []
    for seed in range(6):
        episode = pusht_episode(seed, 60)
        assert episode.states is not None
        assert episode.contacts is not None
        assert episode.contacts[0] == 0
        moved.append(np.abs(np.diff(episode.states[3:, 2:4], axis=0)).max(axis=1))  # walls push at the start
        touched.append(episode.contacts[4:])
    motion, contacts = np.concatenate(moved), np.concatenate(touched)
    assert (contacts[motion > 1] > 0).all()  # the last contact of a frame still moves the block a little in the next
    assert (motion[contacts == 0] < 0.01).mean() > 0.9
    assert 0.1 < (contacts > 0).mean() < 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "push"}, "unknown environment 'push'. Did you mean 'pusht'.*Available: pusht, pusht-fast"),
        ({"mixture": {"slow": 1, "quick": 1}}, "unknown behaviour 'quick'.*Available: fast, medium, random, slow"),
        ({"episodes": 0}, "episodes is 0"),
        ({"length": 1}, "length is 1 frames"),
        ({"seed": -1}, r"seeds -1\.\.0"),
        ({"seed": 99_999}, r"seeds 99999\.\.100000: training episodes use seeds 0\.\.99999"),
        ({"seed": 500_000}, r"evaluation episodes 900000\.\."),
        ({"seed": 899_999}, r"seeds 899999\.\.900000"),
    ],
)
def test_refuses_values(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        record_episodes(**({"environment": "pusht", "episodes": 2, "out": tmp_path / "new"} | changes))
    assert not (tmp_path / "new").exists()


def test_refuses_a_folder_that_is_not_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="--overwrite or --resume"):
        record_episodes("pusht", 1, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwrite_replaces_the_episodes_and_nothing_else(tmp_path: Path) -> None:
    record_episodes("pusht", 3, tmp_path, length=4)
    (tmp_path / "notes.txt").write_text("mine")
    record_episodes("pusht", 1, tmp_path, seed=8, length=5, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode_000008.npz", "notes.txt"]


def test_resume_keeps_whole_episodes_and_records_the_rest(tmp_path: Path) -> None:
    kept, damaged, _, other = record_episodes("pusht", 4, tmp_path, length=4)
    damaged.write_bytes(damaged.read_bytes()[:500])
    record_episodes("pusht", 1, tmp_path / "other", seed=3, length=9)
    (tmp_path / "other" / "episode_000003.npz").replace(other)
    before = kept.stat().st_mtime_ns
    paths = record_episodes("pusht", 5, tmp_path, length=4, resume=True)
    assert kept.stat().st_mtime_ns == before
    for seed, path in enumerate(paths):
        assert_equal(read_episode(path), pusht_episode(seed, 4))


def test_resume_replaces_episodes_of_another_mixture(tmp_path: Path) -> None:
    (path,) = record_episodes("pusht", 1, tmp_path, length=4)
    for environment, mixture in (("pusht", {"fast": 1.0}), ("pusht-fast", None), ("pusht", None)):
        record_episodes(environment, 1, tmp_path, length=4, mixture=mixture, resume=True)
        before = path.stat().st_mtime_ns
        assert_equal(read_episode(path), pusht_episode(0, 4, environment, mixture))
        record_episodes(environment, 1, tmp_path, length=4, mixture=mixture, resume=True)
        assert path.stat().st_mtime_ns == before
