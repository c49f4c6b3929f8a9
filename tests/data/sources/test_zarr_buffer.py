"""Zarr replay buffers: right values in both formats, folders and archives, and every fault told."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from ivideogpt.data.formats import open_source
from ivideogpt.data.sources.zarr_buffer import ZarrReplayBuffer
from ivideogpt.errors import EpisodeError

ENDS = np.array([4, 5, 12])


def tracks(**changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 8, 10, 3), dtype=np.uint8)
    made = {
        "img": images,
        "action": rng.normal(size=(12, 2)),
        "state": rng.normal(size=(12, 5)),
        "n_contacts": np.ones((12, 1)),
    }
    return {key: values for key, values in {**made, **changes}.items() if values is not None}


def write(store: Any, ends: Any = ENDS, version: int = 2, **changes: Any) -> None:
    root = zarr.open_group(store, mode="w", zarr_format=version)  # type: ignore[arg-type]
    for key, values in tracks(**changes).items():
        root.create_array(f"data/{key}", data=values, chunks=(3, *values.shape[1:]))
    root.create_array("meta/episode_ends", data=np.asarray(ends))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("archive", [False, True])
def test_episodes(tmp_path: Path, version: int, archive: bool) -> None:
    path = tmp_path / ("a.zarr.zip" if archive else "a.zarr")
    if archive:
        with ZipStore(path, mode="w") as store:
            write(store, version=version)
    else:
        write(path, version=version)
    name, source = open_source(path)
    assert name == "zarr" and [source.read(index).length for index in range(len(source))] == [4, 1, 7]
    recording, made = source.read(2), tracks()
    np.testing.assert_array_equal(np.stack(list(recording.cameras["img"]())), made["img"][5:])
    np.testing.assert_allclose(recording.actions, made["action"][5:], rtol=1e-6)
    np.testing.assert_allclose(recording.states, made["state"][5:], rtol=1e-6)
    assert recording.state_parts == (("state", 5),) and source.name(2) == "episode_000002"


@pytest.mark.parametrize("scale", [1, 255])
def test_pixels_that_are_floats(tmp_path: Path, scale: int) -> None:
    write(tmp_path / "a.zarr", img=(tracks()["img"] / scale).astype(np.float32))
    frames = list(ZarrReplayBuffer(tmp_path / "a.zarr").read(0).cameras["img"]())
    np.testing.assert_array_equal(np.stack(frames), tracks()["img"][:4])


def test_other_tracks_are_the_state_where_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "a.zarr", state=None, agent_pos=np.ones((12, 2)))
    recording = ZarrReplayBuffer(tmp_path / "a.zarr").read(0)
    assert recording.state_parts == (("agent_pos", 2), ("n_contacts", 1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": [4, 3, 12]}, r"episode_ends are \[4, 3, 12\]; they must be whole numbers that rise"),
        ({"ends": [4, 13]}, "episodes end at 13, but data have"),
        ({"ends": [4.5, 12]}, "whole numbers"),
        ({"ends": np.zeros(0, np.int64)}, "whole numbers"),
        ({"img": None}, "data hold no camera"),
        ({"action": np.zeros((9, 2))}, "data have {'action': 9} rows"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.zarr", **changes)
    with pytest.raises(EpisodeError, match=rf"^{tmp_path / 'a.zarr'}: .*{message}"):
        ZarrReplayBuffer(tmp_path / "a.zarr")


def test_what_is_no_buffer(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(b"PK")
    wrong = {"missing": "nothing lies there", "a.zip": "no zip archive", "": "no zarr"}
    for name, message in wrong.items():
        path = tmp_path / name
        with pytest.raises(EpisodeError, match=rf"^{path}: .*{message}"):
            ZarrReplayBuffer(path)


def test_actions_that_are_not_finite_break_one_episode(tmp_path: Path) -> None:
    actions = tracks()["action"]
    actions[4] = np.nan
    write(tmp_path / "a.zarr", action=actions)
    source = ZarrReplayBuffer(tmp_path / "a.zarr")
    with pytest.raises(EpisodeError, match="must be finite"):
        source.read(1)
    assert source.read(2).length == 7


def test_mutations(tmp_path: Path) -> None:
    whole, rng = tmp_path / "whole.zarr", np.random.default_rng(0)
    write(whole)
    for number in range(120):
        path = tmp_path / "a.zarr"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(whole, path)
        files = sorted(file for file in path.rglob("*") if file.is_file())
        file = files[rng.integers(len(files))]
        damaged = bytearray(file.read_bytes())
        for place in rng.integers(len(damaged), size=3):
            damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged[: rng.integers(len(damaged))] if number % 4 == 0 else damaged)
        try:
            source = ZarrReplayBuffer(path)
            for index in range(len(source)):
                list(source.read(index).cameras["img"]())
        except EpisodeError as error:
            assert str(path) in str(error)
