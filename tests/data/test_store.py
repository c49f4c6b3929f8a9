"""Stores: what is converted is what was recorded, killed or not; only what is used is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ivideogpt.data import shard
from ivideogpt.data.convert import Plan, begin, convert, shard_path
from ivideogpt.data.episode import Episode
from ivideogpt.data.loader import SegmentLoader
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.shard import Shard, decode_frame
from ivideogpt.data.sources.images import decode_image
from ivideogpt.data.sources.npz import NpzFolder, write_episode
from ivideogpt.data.store import Store, as_stored, is_store, stored_name, write_manifest
from ivideogpt.errors import ConfigError, EpisodeError, OutputError

LENGTHS = (9, 4, 12, 7, 5)


def recorded(seed: int, length: int) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        frames=rng.integers(0, 256, (length, 16, 24, 3), dtype=np.uint8),
        actions=rng.normal(size=(length, 2)).astype(np.float32),
        rewards=rng.normal(size=length).astype(np.float32),
        states=rng.normal(size=(length, 3)).astype(np.float32),
        metadata={"frame_rate": 10, "action_names": ["x", "y"]},
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five episodes, as files."""
    for seed, length in enumerate(LENGTHS):
        write_episode(tmp_path / "data" / f"{seed}.npz", recorded(seed, length))
    return tmp_path / "data"


def converted(data: Path, store: Path, workers: int = 1, **changes: Any) -> dict[str, Any]:
    """The manifest of a whole store."""
    told = {"encoding": "png", "shard_episodes": 2, "recordings": len(list(data.glob("*.npz"))), **changes}
    plan = Plan(source=str(data), format="npz", **told)
    begin(store, plan)
    assert len(list(convert(store, plan, workers))) == plan.shards
    manifest = write_manifest(store)
    assert manifest is not None
    return manifest


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "shards").iterdir())}


def test_what_is_stored_is_what_was_recorded(data: Path, tmp_path: Path) -> None:
    manifest = converted(data, tmp_path / "store")
    assert (manifest["episodes"], manifest["frames"], manifest["broken"]) == (5, sum(LENGTHS), {})
    store, folder = Store(tmp_path / "store"), NpzFolder(data)
    assert is_store(tmp_path / "store") and len(store) == 5 and store.cameras == ["image"]
    for index, length in enumerate(LENGTHS):
        one, other = store.read(index), folder.read(index)
        assert store.length(index) == length and store.name(index) == str(index)
        for name in ("frames", "actions", "rewards", "states"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.metadata == {**other.metadata, "frame_rate": 10.0, "name": str(index)}
        np.testing.assert_array_equal(store.read_rewards(index), other.rewards)
        np.testing.assert_array_equal(store.read_tracks(index)[0], other.states)


def test_a_jpeg_is_near_and_a_side_is_a_square(data: Path, tmp_path: Path) -> None:
    smooth = np.linspace(0, 255, 40, dtype=np.uint8)[None, :, None, None] * np.ones((3, 1, 40, 3), np.uint8)
    (tmp_path / "smooth").mkdir()
    write_episode(tmp_path / "smooth" / "0.npz", Episode(frames=np.ascontiguousarray(smooth)))
    converted(tmp_path / "smooth", tmp_path / "store", encoding="jpeg")
    frames = Store(tmp_path / "store", action_key=None).read(0).frames
    assert np.abs(frames.astype(int) - smooth).max() <= 3
    converted(data, tmp_path / "small", side=16)
    assert Store(tmp_path / "small").read(2).frames.shape == (12, 16, 16, 3)


def test_pictures_are_decoded_as_by_the_slow_way(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "store", encoding="jpeg")
    one = Shard(shard_path(tmp_path / "store", 0))
    picture = one.pictures(0, "image", [3])[3]
    assert one.pictures(0, "image", [1, 3]) == {row: one.pictures(0, "image", range(5))[row] for row in (1, 3)}
    np.testing.assert_array_equal(decode_frame(picture, "here"), decode_image(picture, "here"))
    with pytest.raises(EpisodeError, match=r"here: this JPEG is damaged \(.*Convert it again"):
        decode_frame(picture[: len(picture) // 2], "here")
    np.testing.assert_array_equal(one.frames(0, "image", [3])[0], decode_frame(picture, "here"))


def test_statistics_of_the_actions(data: Path, tmp_path: Path) -> None:
    actions = converted(data, tmp_path / "store")["actions"]
    rows = np.concatenate([recorded(seed, length).actions[:-1] for seed, length in enumerate(LENGTHS)])  # type: ignore[index]
    for name, expected in {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}.items():
        np.testing.assert_allclose(actions[name], expected, rtol=1e-5)
    np.testing.assert_allclose(actions["q10"], np.quantile(rows, 0.1, axis=0), rtol=1e-5)
    assert set(actions) == {"mean", "std", "min", "max", "q01", "q10", "q50", "q90", "q99"}


@pytest.mark.parametrize("step_size", [1, 2])
def test_segments_are_those_of_the_whole_episodes(data: Path, tmp_path: Path, step_size: int) -> None:
    converted(data, tmp_path / "store")
    spec = SegmentSpec(length=4, context_frames=2, step_size=step_size)
    sources = (Store(tmp_path / "store"), NpzFolder(data))
    loaders = [SegmentLoader(source, [0, 2, 3], spec, 16, 3, seed=0, states=True) for source in sources]
    for step in range(4):
        one, other = (loader.batch_at(step) for loader in loaders)
        for name in ("frames", "actions", "rewards", "mask", "states"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_a_segment_touches_its_own_frames(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    converted(data, tmp_path / "store")
    decoded = []
    decode = shard.decode_frame
    monkeypatch.setattr(shard, "decode_frame", lambda *given: decoded.append(given) or decode(*given))
    SegmentLoader(Store(tmp_path / "store"), [2], SegmentSpec(length=3, context_frames=2), 16, 1, seed=0).batch_at(0)
    assert len(decoded) == 3
    SegmentLoader(Store(tmp_path / "store"), [1], SegmentSpec(length=9, context_frames=2), 16, 1, seed=0).batch_at(0)
    assert len(decoded) == 3 + 4  # what is padded is decoded once


def test_what_was_killed_goes_on(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "whole")
    converted(data, tmp_path / "store")
    first, second, third = (shard_path(tmp_path / "store", number) for number in range(3))
    first.with_suffix(".json").unlink()  # killed before the report
    second.unlink()
    (second.parent / ".writing-000001-x.safetensors").write_bytes(b"half")
    kept = third.stat().st_mtime_ns
    converted(data, tmp_path / "store")
    assert contents(tmp_path / "store") == contents(tmp_path / "whole") and third.stat().st_mtime_ns == kept


def test_processes_and_machines_write_the_same(data: Path, tmp_path: Path) -> None:
    whole = converted(data, tmp_path / "whole")
    assert converted(data, tmp_path / "processes", workers=2) == whole
    plan = Plan(source=str(data), format="npz", recordings=5, encoding="png", shard_episodes=2)
    for part in ((1, 2), (0, 2)):
        begin(tmp_path / "machines", plan)
        assert write_manifest(tmp_path / "machines") is None
        list(convert(tmp_path / "machines", plan, part=part))
    assert write_manifest(tmp_path / "machines") == whole
    assert contents(tmp_path / "whole") == contents(tmp_path / "machines") == contents(tmp_path / "processes")


def test_broken_episodes_are_told_and_tried_again(data: Path, tmp_path: Path) -> None:
    good = (data / "1.npz").read_bytes()
    (data / "1.npz").write_bytes(good[:100])
    manifest = converted(data, tmp_path / "store")
    assert list(manifest["broken"]) == ["1"] and "1.npz: truncated" in manifest["broken"]["1"]
    assert [Store(tmp_path / "store").name(index) for index in range(4)] == ["0", "2", "3", "4"]
    (data / "1.npz").write_bytes(good)
    assert converted(data, tmp_path / "store") == converted(data, tmp_path / "whole")


def test_the_same_episode_twice_is_found(data: Path, tmp_path: Path) -> None:
    write_episode(data / "copy.npz", recorded(2, LENGTHS[2]))
    assert converted(data, tmp_path / "store")["duplicates"] == [["2", "copy"]]


def test_damage_is_found(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "store")
    assert {why for _, why in Store(tmp_path / "store").verify()} == {""}
    path = shard_path(tmp_path / "store", 1)
    damaged = bytearray(path.read_bytes())
    damaged[-50] ^= 1
    path.write_bytes(damaged)
    wrong = {name: why for name, why in Store(tmp_path / "store").verify() if why}
    assert len(wrong) == 1 and "its checksum differs" in next(iter(wrong.values()))
    path.write_bytes(damaged[:200])
    assert len([why for _, why in Store(tmp_path / "store").verify() if "damaged" in why]) == 2


def test_what_is_refused(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "store")
    with pytest.raises(OutputError, match=r"another plan: side was None, now 8; shard_episodes was 2"):
        converted(data, tmp_path / "store", shard_episodes=3, side=8)
    with pytest.raises(OutputError, match=r"is not empty, and holds no plan\.json"):
        begin(data, Plan(source="x", format="npz", recordings=1))
    with pytest.raises(EpisodeError, match=r"no readable plan\.json"):
        Store(data)
    with pytest.raises(EpisodeError, match="Available: image"):
        Store(tmp_path / "store", camera_key="wrist")
    with pytest.raises(ConfigError, match="part 2 of 2"):
        list(convert(tmp_path / "store", Plan("x", "npz", 1), part=(2, 2)))
    shard_path(tmp_path / "store", 1).with_suffix(".json").unlink()
    with pytest.raises(EpisodeError, match=r"shard 1 of 3 is not there yet\. Run the same conversion again"):
        Store(tmp_path / "store")


def test_tracks_that_are_missing_are_told(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for seed in range(2):
        write_episode(tmp_path / "data" / f"{seed}.npz", Episode(frames=recorded(seed, 4).frames))
    converted(tmp_path / "data", tmp_path / "store")
    assert Store(tmp_path / "store", action_key=None).read(0).actions is None
    with pytest.raises(EpisodeError, match="episode 0 has no actions"):
        Store(tmp_path / "store").read(0)
    for wanted, name in (({"rewards": True}, "rewards"), ({"state_key": "state"}, "states")):
        with pytest.raises(EpisodeError, match=f"has no {name}"):
            Store(tmp_path / "store", action_key=None, **wanted).tracks(0)  # type: ignore[arg-type]


def test_late_actions(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "store")
    expected = NpzFolder(data, action_shift=1).read(0).actions
    np.testing.assert_array_equal(Store(tmp_path / "store", action_shift=1).read(0).actions, expected)


def test_names_of_episodes(data: Path, tmp_path: Path) -> None:
    converted(data, tmp_path / "my store")
    named = stored_name(tmp_path / "my store", "2")
    assert as_stored(named) == (tmp_path / "my store", "2") and as_stored(str(data / "2.npz")) is None
    store = Store(tmp_path / "my store")
    assert store.index("2") == 2
    with pytest.raises(EpisodeError, match=r"unknown episode '7'"):
        store.index("7")
    assert json.loads((tmp_path / "my store" / "manifest.json").read_text())["source"] == str(data)
