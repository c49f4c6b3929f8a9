"""HDF5 of robomimic and VP2, ALOHA, RoboNet: right values, and every fault told."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.formats import open_source
from ivideogpt.data.sources.aloha import AlohaFolder
from ivideogpt.data.sources.recording import Recording, Source
from ivideogpt.data.sources.robomimic import RobomimicFile
from ivideogpt.data.sources.robonet import RoboNetFolder
from ivideogpt.errors import EpisodeError
from tests.data.sources.videos import encoded, number_in, picture


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def read_all(source: Source) -> list[Recording]:
    recordings = [source.read(index) for index in range(len(source))]
    for recording in recordings:
        for camera in recording.cameras.values():
            assert len(list(camera())) == recording.length
    return recordings


def write_demo(group: Any, name: str, count: int, *, actions: int | None = None, **more: np.ndarray) -> None:
    demo = group.create_group(f"data/{name}")
    demo["actions"] = numbers(count if actions is None else actions, 3, seed=count)
    demo["rewards"] = np.arange(count, dtype=np.float64)
    demo["states"] = numbers(count, 9)
    demo.create_dataset("obs/front_image", data=frames(count, count), chunks=(2, 8, 12, 3), compression="gzip")
    demo["obs/front_depth"] = np.zeros((count, 8, 12, 1), np.float32)
    demo["next_obs/front_image"] = frames(count)
    for key, values in more.items():
        demo[f"obs/{key}"] = values


@pytest.fixture
def demos(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "demos.hdf5", "w") as file:
        for number in (10, 2, 0):
            write_demo(file, f"demo_{number}", number + 3, eef=numbers(number + 3, 2), grip=numbers(number + 3))
        file["data"].attrs["env_args"] = '{"env_name": "Lift"}'
        file["mask/train"] = np.array([b"demo_0", b"demo_10"])
        file["mask/valid"] = np.array([b"demo_2"])
    return tmp_path / "demos.hdf5"


def test_robomimic(demos: Path) -> None:
    name, source = open_source(demos)
    assert name == "robomimic" and [source.name(i) for i in range(3)] == ["demo_0", "demo_2", "demo_10"]
    recording = pickle.loads(pickle.dumps(source)).read(2)
    assert (recording.length, list(recording.cameras), recording.split) == (13, ["front_image"], "train")
    np.testing.assert_array_equal(np.stack(list(recording.cameras["front_image"]())), frames(13, 13))
    np.testing.assert_allclose(recording.actions, numbers(13, 3, seed=13), rtol=1e-6)
    assert recording.rewards_follow and recording.rewards is not None and recording.rewards[-1] == 12
    assert recording.state_parts == (("eef", 2), ("grip", 1)) and recording.metadata["env"] == "Lift"
    assert [RobomimicFile(demos, split="valid").name(0)] == ["demo_2"]
    with pytest.raises(EpisodeError, match="no demonstration of mask 'test'"):
        RobomimicFile(demos, split="test")


def test_vp2_has_states_where_nothing_else_is_observed(tmp_path: Path) -> None:
    for number in (1, 2):
        with h5py.File(tmp_path / f"noise_{number}.hdf5", "w") as file:
            write_demo(file, "demo_1", 4)
    (tmp_path / "noise_3.hdf5").write_bytes(b"broken")
    name, source = open_source(tmp_path)
    assert name == "robomimic" and [source.name(i) for i in range(3)] == ["noise_1/demo_1", "noise_2/demo_1", "noise_3"]
    assert source.read(0).state_parts == (("states", 9),)
    with pytest.raises(EpisodeError, match=r"noise_3\.hdf5: damaged, or no HDF5 file"):
        source.read(2)


def test_channels_that_come_first_and_floats(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        write_demo(file, "demo_0", 5, planes=frames(5).transpose(0, 3, 1, 2) / 255)
    recording = RobomimicFile(tmp_path / "a.hdf5").read(0)
    np.testing.assert_array_equal(np.stack(list(recording.cameras["planes"]())), frames(5))


def replaced(key: str, values: Any) -> Callable[[Any], None]:
    """Puts other values in the place of an array."""

    def change(demo: Any) -> None:
        del demo[key]
        demo[key] = values

    return change


def enormous(demo: Any) -> None:
    del demo["actions"]
    demo.create_dataset("actions", (10**9, 700), "f8", chunks=(1, 700))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda demo: demo.pop("obs"), "has no camera"),
        (lambda demo: demo.__setitem__("obs/wrist_image", frames(2)), "'wrist_image': 2"),
        (replaced("actions", numbers(7, 3)), "and 7 actions"),
        (replaced("actions", np.full((4, 3), np.nan)), "must be finite"),
        (replaced("actions", np.array([b"a"] * 4)), "must be plain numbers"),
        (replaced("rewards", h5py.ExternalLink("x.hdf5", "/a")), "lies in another file|damaged"),
        (enormous, "GB, in 0 bytes"),
    ],
)
def test_faults_of_a_demonstration(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    path = tmp_path / "demos.hdf5"
    with h5py.File(path, "w") as file:
        write_demo(file, "demo_0", 4)
        write_demo(file, "demo_1", 4)
        change(file["data/demo_0"])
    source = RobomimicFile(path)
    with pytest.raises(EpisodeError, match=rf"^{path}: .*({message})"):
        source.read(0)
    assert source.read(1).length == 4


def jpeg(frame: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def write_aloha(path: Path, count: int, *, compressed: bool) -> None:
    pictures = [picture(number) for number in range(count)]
    with h5py.File(path, "w") as file:
        file.attrs["sim"] = False
        file["action"], file["observations/qpos"] = numbers(count, 14), numbers(count, 14, seed=1)
        file["observations/qvel"] = numbers(count, 14)
        if not compressed:
            file["observations/images/top"] = np.stack(pictures)
            return
        data = [np.frombuffer(jpeg(frame), np.uint8) for frame in pictures]
        longest = max(map(len, data)) + 20
        file["observations/images/top"] = np.stack([np.pad(row, (0, longest - len(row))) for row in data])
        file["compress_len"] = np.array([[len(row) for row in data]], np.float32)


@pytest.mark.parametrize("compressed", [False, True])
def test_aloha(tmp_path: Path, compressed: bool) -> None:
    for number in (10, 2):
        write_aloha(tmp_path / f"episode_{number}.hdf5", number, compressed=compressed)
    name, source = open_source(tmp_path)
    assert name == "aloha" and [source.name(i) for i in range(2)] == ["episode_2", "episode_10"]
    recording = source.read(1)
    assert recording.actions is not None and recording.states is not None and recording.states.shape == (10, 14)
    np.testing.assert_allclose(recording.actions, numbers(10, 14), rtol=1e-6)
    shown = list(recording.cameras["top"]())
    assert [number_in(frame) for frame in shown] == list(range(10))
    assert np.abs(shown[3].astype(int) - picture(3)).max() <= (12 if compressed else 0)


def test_faults_of_aloha(tmp_path: Path) -> None:
    write_aloha(tmp_path / "episode_0.hdf5", 4, compressed=True)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["observations/images/top"][2] = 7
    source = AlohaFolder(tmp_path)
    with pytest.raises(EpisodeError, match=r"episode_0\.hdf5: top, frame 2"):
        list(source.read(0).cameras["top"]())
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        del file["action"]
        file["action"] = numbers(3, 14)
    with pytest.raises(EpisodeError, match=r"frames {'top': 4} and 3 actions"):
        source.read(0)


def write_robonet(path: Path, count: int, columns: int, *, mp4: bool, autograsp: bool = False, states: int = 0) -> None:
    with h5py.File(path, "w") as file:
        file["policy/actions"] = numbers(count - 1, columns).astype(np.float32)
        state = numbers(states or count, 5).astype(np.float32)
        state[:, -1] = np.where(np.arange(len(state)) % 3 == 0, 1, -1)
        file["env/state"], file["env/low_bound"], file["env/high_bound"] = (
            state,
            -np.ones((count, 5)),
            np.ones((count, 5)),
        )
        if mp4:
            film = file.create_dataset("env/cam0_video/frames", data=np.frombuffer(encoded(count), np.uint8))
            film.attrs["T"] = count
        else:
            for number in range(count):
                file[f"env/cam0_video/frame{number}"] = np.frombuffer(jpeg(picture(number)), np.uint8)
        file.create_group("metadata").attrs.update(robot="sawyer", primitives="autograsp" if autograsp else "general")


@pytest.mark.parametrize("mp4", [False, True])
def test_robonet(tmp_path: Path, mp4: bool) -> None:
    write_robonet(tmp_path / "sawyer_traj10.hdf5", 12, 4, mp4=mp4, autograsp=True)
    write_robonet(tmp_path / "sawyer_traj9.hdf5", 12, 3, mp4=mp4, states=10)
    name, source = open_source(tmp_path)
    assert name == "robonet" and [source.name(i) for i in range(2)] == ["sawyer_traj9", "sawyer_traj10"]
    short, grasp = source.read(0), source.read(1)
    assert short.actions is not None and grasp.actions is not None and grasp.states is not None
    assert short.length == 10 and short.actions.shape == (10, 5) and not short.actions[:, 3:].any()
    assert [number_in(frame) for frame in short.cameras["cam0"]()] == list(range(10))
    np.testing.assert_array_equal(grasp.actions[:-1, 4], grasp.states[1:, -1])
    np.testing.assert_array_equal(grasp.actions[-1], grasp.actions[-2])
    assert grasp.metadata["robot"] == "sawyer" and grasp.action_parts[4] == ("grasp", 1)


def test_a_film_that_is_cut(tmp_path: Path) -> None:
    write_robonet(tmp_path / "a.hdf5", 6, 5, mp4=True)
    with h5py.File(tmp_path / "a.hdf5", "a") as file:
        film = np.asarray(file["env/cam0_video/frames"])
        del file["env/cam0_video/frames"]
        file.create_dataset("env/cam0_video/frames", data=film[: len(film) // 2]).attrs["T"] = 6
    with pytest.raises(EpisodeError, match=r"a\.hdf5: cam0_video"):
        list(RoboNetFolder(tmp_path).read(0).cameras["cam0"]())


@pytest.mark.parametrize("format", ["robomimic", "aloha", "robonet"])
def test_mutations(tmp_path: Path, demos: Path, format: str) -> None:
    path = tmp_path / "mutated" / "a.hdf5"
    path.parent.mkdir()
    if format == "robomimic":
        path.write_bytes(demos.read_bytes())
    else:
        write: Any = write_aloha if format == "aloha" else write_robonet
        write(path, 5, **({"compressed": True} if format == "aloha" else {"columns": 4, "mp4": False}))
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for number in range(120):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 30)):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged[: rng.integers(len(whole))] if number % 4 == 0 else damaged)
        try:
            read_all(open_source(path.parent, format)[1])
        except EpisodeError as error:
            assert str(path) in str(error)
