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

FIELDS = ("frames", "actions", "rewards", "states")


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
    assert np.abs(episode.actions).max() <= 1
    assert episode.rewards[0] == 0
    assert episode.metadata["seed"] == 900_000
    env = PushT()
    frame, info = env.reset(seed=900_000)
    for j in range(30):
        np.testing.assert_array_equal(frame, episode.frames[j])
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


def test_both_policies_occur() -> None:
    kinds = [pusht_episode(seed, 2, "pusht-fast").metadata["behaviour"] for seed in range(60)]
    assert 0.5 < kinds.count("fast") / len(kinds) < 0.9
    assert set(kinds) == {"fast", "random"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": "push"}, "unknown environment 'push'. Did you mean 'pusht'"),
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
