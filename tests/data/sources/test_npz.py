from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import NpzFolder, read_episode, write_episode
from ivideogpt.errors import EpisodeError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3))
ACTIONS = np.random.default_rng(1).normal(size=(6, 2))


def save(folder: Path, **changes: Any) -> Path:
    """An episode file as found in the wild; a change of None leaves a key out."""
    arrays = {"image": IMAGES, "action": ACTIONS} | changes
    path = folder / "episode.npz"
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_round_trip(tmp_path: Path) -> None:
    episode = Episode(
        frames=IMAGES.astype(np.uint8),
        actions=ACTIONS.astype(np.float32),
        rewards=np.arange(6, dtype=np.float32),
        states=np.ones((6, 5), np.float32),
        contacts=np.arange(6, dtype=np.float32),
        metadata={"env": "pusht", "seed": 3, "tags": ["a", None, 1.5]},
    )
    write_episode(tmp_path / "new" / "episode.npz", episode)
    back = read_episode(tmp_path / "new" / "episode.npz")
    for name in ("frames", "actions", "rewards", "states", "contacts"):
        np.testing.assert_array_equal(getattr(back, name), getattr(episode, name))
        assert getattr(back, name).dtype == getattr(episode, name).dtype
    assert back.metadata == episode.metadata


def test_round_trip_of_plain_video(tmp_path: Path) -> None:
    write_episode(tmp_path / "video.npz", Episode(IMAGES.astype(np.uint8)))
    back = read_episode(tmp_path / "video.npz", action_key=None)
    assert back.actions is None
    assert back.rewards is None
    assert back.contacts is None
    assert back.metadata == {}


@pytest.mark.parametrize(
    "images", [IMAGES, IMAGES.astype(np.uint8), (IMAGES / 255), (IMAGES / 255).astype(np.float32)], ids=str
)
def test_converts_types(tmp_path: Path, images: np.ndarray) -> None:
    episode = read_episode(save(tmp_path, image=images, reward=np.zeros((6, 1), np.int64)))
    np.testing.assert_array_equal(episode.frames, IMAGES.astype(np.uint8))
    assert episode.actions is not None
    assert episode.actions.dtype == np.float32
    assert episode.rewards is not None
    assert episode.rewards.shape == (6,)


def test_other_keys(tmp_path: Path) -> None:
    path = save(tmp_path, aux1_image=255 - IMAGES, command=ACTIONS + 1)
    episode = read_episode(path, camera_key="aux1_image", action_key="command")
    np.testing.assert_array_equal(episode.frames, (255 - IMAGES).astype(np.uint8))
    np.testing.assert_allclose(episode.actions, ACTIONS + 1, rtol=1e-6)


def test_states_under_another_name(tmp_path: Path) -> None:
    path = save(tmp_path, state=np.zeros((6, 5)), proprio=np.arange(12).reshape(6, 2))
    for episode in (read_episode(path, state_key="proprio"), NpzFolder(tmp_path, state_key="proprio").read(0)):
        assert episode.states is not None and episode.states.dtype == np.float32
        np.testing.assert_array_equal(episode.states, np.arange(12).reshape(6, 2))
    assert NpzFolder(tmp_path).read(0).states.shape == (6, 5)  # type: ignore[union-attr]
    message = r"episode\.npz: unknown state key 'propio'\. Did you mean 'proprio'\?.*--state-key, or leave --states out"
    with pytest.raises(EpisodeError, match=message):
        read_episode(path, state_key="propio")
    assert read_episode(save(tmp_path)).states is None
    with pytest.raises(EpisodeError, match=r"unknown state key 'state'\..*Available: action, image"):
        NpzFolder(tmp_path, state_key="state").read(0)


def test_actions_that_are_recorded_late(tmp_path: Path) -> None:
    path = save(tmp_path, proprio=np.zeros((6, 2)))
    shifted = ACTIONS[[1, 2, 3, 4, 5, 5]]
    source = NpzFolder(tmp_path, state_key="proprio", action_shift=1)
    read = read_episode(path, action_shift=1).actions, source.read(0).actions, source.read_tracks(0)[1]
    for actions in (*read, source.read_actions(0)[0]):
        np.testing.assert_allclose(actions, shifted, rtol=1e-6)  # type: ignore[arg-type]
    with pytest.raises(EpisodeError, match=r"action_shift is 6, but there are 6 actions"):
        read_episode(path, action_shift=6)


def test_tracks_are_read_without_the_frames(tmp_path: Path) -> None:
    path = save(tmp_path, image=IMAGES.astype(float) * 9, proprio=np.arange(12).reshape(6, 2))  # no frames at all
    states, actions = NpzFolder(tmp_path, state_key="proprio").read_tracks(0)
    assert states.dtype == np.float32 and actions is not None and actions.dtype == np.float32
    np.testing.assert_array_equal(states, np.arange(12).reshape(6, 2))
    np.testing.assert_allclose(actions, ACTIONS, rtol=1e-6)
    assert NpzFolder(tmp_path, action_key=None, state_key="proprio").read_tracks(0)[1] is None
    with pytest.raises(EpisodeError, match=r"episode\.npz: unknown state key 'state'.*--state-key"):
        NpzFolder(tmp_path).read_tracks(0)
    with pytest.raises(EpisodeError, match=r"episode\.npz: unknown action key 'push'"):
        NpzFolder(tmp_path, action_key="push", state_key="proprio").read_tracks(0)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(EpisodeError, match=r"episode\.npz: truncated"):
        NpzFolder(tmp_path, state_key="proprio").read_tracks(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.where(np.arange(6)[:, None] == 4, np.nan, ACTIONS)}, "states row 4.*finite"),
        ({"state": np.arange(6)}, r"states have shape \(6,\); they must be \(T, size\)"),
        ({"state": np.float32(1)}, r"states have shape \(\)"),
        ({"state": np.zeros((6, 0))}, "no columns"),
        ({"state": np.full((6, 1), "a")}, "states are <U1"),
        ({"state": ACTIONS[:-1]}, "actions have 6 rows for 5 frames"),
        ({"state": ACTIONS, "action": ACTIONS * np.inf}, "actions row 0.*finite"),
    ],
)
def test_refuses_tracks_as_it_refuses_episodes(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save(tmp_path, **changes)
    with pytest.raises(EpisodeError, match=rf"episode\.npz: .*{message}"):
        NpzFolder(tmp_path).read_tracks(0)


def ragged(*shapes: tuple[int, ...]) -> np.ndarray:
    frames = np.empty(len(shapes), object)
    frames[:] = [np.zeros(shape, np.uint8) for shape in shapes]
    return frames


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": None, "images": IMAGES},
            r"camera key 'image'.*Did you mean 'images'\?.*Available: action, images",
        ),
        ({"action": None}, "action key 'action'.*action_key=None"),
        (
            {"image": ragged((8, 8, 3), (4, 4, 3))},
            "'image' holds Python objects.*all frames.*to one size",
        ),
        ({"action": ragged((2,), (2,))}, r"'action' holds Python objects.*plain array of numbers \(T, A\)"),
        ({"image": IMAGES.transpose(0, 3, 1, 2)}, r"channels first.*transpose\(0, 2, 3, 1\)"),
        ({"image": IMAGES * 2}, r"int64 images range over 0\.\.\d+.*0\.\.255"),
        ({"image": IMAGES.astype(float)}, r"float64 images range over .*the range is 0\.\.1.*uint8"),
        ({"image": IMAGES / 255 - 0.5}, r"float64 images range over .*the range is 0\.\.1"),
        ({"image": np.full(IMAGES.shape, np.nan)}, "range over nan..nan"),
        ({"image": IMAGES > 9}, "images are bool"),
        ({"action": np.where(np.arange(6)[:, None] == 4, np.nan, ACTIONS)}, "actions row 4.*finite"),
        ({"action": ACTIONS * 1e300}, "actions row 0.*finite"),
        ({"action": ACTIONS.astype(complex)}, "actions are complex128.*real"),
        ({"action": ACTIONS[:-1]}, "5 rows for 6 frames"),
    ],
)
def test_refuses_contents_and_names_the_file(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeError, match=rf"episode\.npz: .*{message}"):
        read_episode(save(tmp_path, **changes))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"nowhere\.npz: no such file"):
        read_episode(tmp_path / "nowhere.npz")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_truncated_file(tmp_path: Path, share: float) -> None:
    path = save(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(EpisodeError, match=r"episode\.npz: truncated"):
        read_episode(path)


def test_damaged_in_the_middle(tmp_path: Path) -> None:
    path = save(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(EpisodeError, match="damaged"):
        read_episode(path)


def test_other_kinds_of_file(tmp_path: Path) -> None:
    text, array = tmp_path / "text.npz", tmp_path / "array.npz"
    text.write_text("hello")
    with open(array, "wb") as file:
        np.save(file, ACTIONS)
    for path in (text, array):
        with pytest.raises(EpisodeError, match=r"not an \.npz archive"):
            read_episode(path)


def test_name_of_a_written_file(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"must be called \*\.npz"):
        write_episode(tmp_path / "episode.npy", Episode(IMAGES.astype(np.uint8)))


def test_folder(tmp_path: Path) -> None:
    for number in (2, 0, 1):
        images = np.full((3, 4, 4, 3), number, np.uint8)
        write_episode(tmp_path / f"episode_{number}.npz", Episode(images, np.zeros((3, 1), np.float32)))
    (tmp_path / ".episode_3-abc.npz").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_text("not an episode")
    folder = NpzFolder(tmp_path)
    assert len(folder) == 3
    assert [folder.read(index).frames.max() for index in range(3)] == [0, 1, 2]
    assert folder.path(1) == tmp_path / "episode_1.npz"


def test_folder_without_episodes(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="no such folder"):
        NpzFolder(tmp_path / "nowhere")
    with pytest.raises(EpisodeError, match="no episode file"):
        NpzFolder(tmp_path)


ODD = {
    "reward": [np.full(6, np.nan), np.zeros((6, 3)), np.zeros(5), ragged((1,), (2,)), np.array("none")],
    "state": [np.full((6, 2), np.inf), np.zeros((6, 4, 4)), np.zeros((7, 3)), np.array({"q": 1}, object)],
    "contact": [np.zeros((6, 2)), np.array(["no"] * 6)],
    "metadata": ["my robot, day 3", "[1]", "{", np.array({"robot": 1}, object), np.zeros(3)],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in ODD.items() for value in values])
def test_optional_keys_that_hold_something_else_count_as_absent(tmp_path: Path, key: str, value: Any) -> None:
    episode = read_episode(save(tmp_path, **{key: value}))
    assert episode.rewards is None and episode.states is None and episode.contacts is None and not episode.metadata


def test_what_was_asked_for_is_refused_where_it_is_odd(tmp_path: Path) -> None:
    path = save(tmp_path, reward=np.full(6, np.nan), state=np.full((6, 2), np.inf))
    with pytest.raises(EpisodeError, match="rewards row 0"):
        read_episode(path, rewards=True)
    with pytest.raises(EpisodeError, match="rewards row 0"):
        NpzFolder(tmp_path, rewards=True).read(0)
    with pytest.raises(EpisodeError, match="states row 0"):
        read_episode(path, state_key="state")
    with pytest.raises(EpisodeError, match=r"reward key 'reward'.*Available: action, image"):
        read_episode(save(tmp_path), rewards=True)


def claiming(path: Path, shape: tuple[int, ...], dtype: str, content: bytes) -> Path:
    """An episode file whose image claims to be larger than it is."""
    header, actions = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    np.save(actions, ACTIONS)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", header.getvalue() + content)
        archive.writestr("action.npy", actions.getvalue())
    return path


@pytest.mark.parametrize("shape", [(10**6, 1024, 1024, 3), (6, 8, 8, 3), (6, 8, 7, 3), (10**12, 10**12, 10**12, 3)])
@pytest.mark.parametrize("dtype", ["|u1", "<f8"])
def test_claims_are_checked_before_memory_is_taken(tmp_path: Path, shape: tuple[int, ...], dtype: str) -> None:
    path = claiming(tmp_path / "episode.npz", shape, dtype, bytes(6 * 8 * 8 * 3 - 1))
    with pytest.raises(EpisodeError, match=r"key 'image' claims to hold .* GB, in \d+ bytes of the file; it cannot"):
        read_episode(path)


def test_what_does_not_fit_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ivideogpt.data.sources.npz.free_memory", lambda _: 1000)
    with pytest.raises(EpisodeError, match=r"1e-06 GB of memory are free.*shorter episodes"):
        read_episode(save(tmp_path))


def test_episodes_in_subfolders_are_not_left_out_in_silence(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "second").mkdir()
    save(tmp_path / "second")
    with pytest.warns(UserWarning, match=r"the episodes in its subfolders \(second\) are left out"):
        assert len(NpzFolder(tmp_path)) == 1


def test_folders_and_files_that_are_mixed_up(tmp_path: Path) -> None:
    folder = tmp_path / "all" / "here"
    folder.mkdir(parents=True)
    path = save(folder)
    with pytest.raises(EpisodeError, match="this is a file"):
        NpzFolder(path)
    with pytest.raises(EpisodeError, match="this is a folder"):
        read_episode(folder)
    with pytest.raises(EpisodeError, match=r"There are some in its subfolders \(here\): name one of those"):
        NpzFolder(folder.parent)
