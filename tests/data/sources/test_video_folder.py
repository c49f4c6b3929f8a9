from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ivideogpt.data.sources.recording import Recording
from ivideogpt.data.sources.video_folder import VideoFolder, recognises
from ivideogpt.errors import EpisodeError

ACTIONS = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def video(path: Path, count: int = 5) -> Path:
    """A GIF under any name: containers are told by what is in them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [Image.fromarray(np.full((8, 10, 3), 40 * number + 20, np.uint8)) for number in range(count)]
    pages[0].save(path, "GIF", save_all=True, append_images=pages[1:], duration=100)
    return path


def read(path: Path) -> Recording:
    return VideoFolder(path).read(0)


def test_order_names_and_what_is_passed_over(tmp_path: Path) -> None:
    wanted = [
        "a/clip.mp4",
        "clip_2.MP4",
        "clip_2b.gif",
        "clip_10.gif",
        "run_1/x_9.avi",
        "run_1/x_11.mov",
        "run_12/x_1.webm",
    ]
    for name in [*wanted, ".hidden.mp4", ".trash/clip.mp4", "a/.part.mkv"]:
        video(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no video")
    (tmp_path / "clip_2.csv.bak").write_text("1")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "run_1" / "up").symlink_to(tmp_path)
    source = pickle.loads(pickle.dumps(VideoFolder(tmp_path)))
    assert [source.name(index) for index in range(len(source))] == wanted
    recording = source.read(1)
    assert recording.name == "clip_2.MP4" and list(recording.cameras) == ["video"] and recording.length is None
    assert recording.frame_rate == 10 and recording.actions is None and recording.metadata == {}
    for _ in range(2):
        means = [float(frame.mean()) for frame in recording.cameras["video"]()]
        np.testing.assert_allclose(means, [20, 60, 100, 140, 180], atol=4)


def test_one_file(tmp_path: Path) -> None:
    source = VideoFolder(video(tmp_path / "sub" / "clip.gif"))
    assert len(source) == 1 and source.name(0) == "clip.gif"
    assert sum(1 for _ in source.read(0).cameras["video"]()) == 5


def test_recognises(tmp_path: Path) -> None:
    clip = video(tmp_path / "a" / "b" / "clip.gif")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.txt").write_text("")
    assert recognises(clip) and recognises(tmp_path) and recognises(tmp_path / "a")
    assert not any(map(recognises, (tmp_path / "c", tmp_path / "c" / "x.txt", tmp_path / "none", Path("x" * 5000))))


def test_a_broken_video_leaves_the_others(tmp_path: Path) -> None:
    for name in ("a.gif", "b.gif", "c.gif", "d.gif"):
        video(tmp_path / name)
    (tmp_path / "b.gif").write_bytes(b"")
    (tmp_path / "c.gif").write_bytes((tmp_path / "c.gif").read_bytes()[:-60])
    (tmp_path / "d.gif").unlink()
    (tmp_path / "d.gif").symlink_to(tmp_path / "gone.gif")
    source = VideoFolder(tmp_path)
    assert len(source) == 4
    for index, name in ((1, "b.gif"), (2, "c.gif"), (3, "d.gif")):
        assert source.name(index) == name
        with pytest.raises(EpisodeError) as caught:
            list(source.read(index).cameras["video"]())
        assert str(caught.value).startswith(str(tmp_path / name))
    assert sum(1 for _ in source.read(0).cameras["video"]()) == 5


@pytest.mark.parametrize("rows", [5, 4])
@pytest.mark.parametrize("kind", ["npy", "csv", "named.csv", "tabs.csv", "parquet", "lists.parquet", "mixed.parquet"])
def test_actions_beside(tmp_path: Path, kind: str, rows: int) -> None:
    video(tmp_path / "clip.gif")
    values, names = ACTIONS[:rows], ("x", "y", "grip per")
    if kind == "npy":
        np.save(tmp_path / "clip.npy", values.astype(np.float64))
    elif kind.endswith("csv"):
        mark = "\t" if kind == "tabs.csv" else ","
        lines = [mark.join(map(repr, row)) for row in values.astype(float).tolist()]
        head = ["\ufeff" + mark.join(names)] if kind != "csv" else []
        (tmp_path / "clip.csv").write_text("\r\n".join([*head, *lines, "", ""]), encoding="utf-8")
    elif kind == "parquet":
        pq.write_table(
            pa.table({name: values[:, column] for column, name in enumerate(names)}), tmp_path / "clip.parquet"
        )
    else:
        columns = {"time": np.arange(rows), "action": list(values)} if kind[0] == "m" else {"action": list(values)}
        pq.write_table(pa.table(columns), tmp_path / "clip.parquet")
    recording = read(tmp_path)
    assert recording.length == 5 and recording.actions is not None and recording.actions.dtype == np.float32
    right = ACTIONS if rows == 5 else np.concatenate([ACTIONS[:4], ACTIONS[3:4]])
    np.testing.assert_array_equal(recording.actions, right)
    named = kind in ("named.csv", "tabs.csv", "parquet")
    parts = tuple((name, 1) for name in names) if named else () if kind in ("npy", "csv") else (("action", 3),)
    assert recording.action_parts == parts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("clip.csv", b"", "empty"),
        ("clip.csv", b",,\n,,\n", "no number in it"),
        ("clip.csv", b"x,y\n1,2\n", "1 rows for 5 frames"),
        ("clip.csv", b"x,y\n" + b"1,2\n" * 6, "6 rows for 5 frames"),
        ("clip.csv", b"1,2\n1,2\n1\n1,2\n1,2\n", "line 3 has 1 columns, and the first 2"),
        ("clip.csv", b"1,2\n1,2\n1,\n1,2\n1,2\n", "line 3, column 2 is ''; it must be a number"),
        ("clip.csv", b"1,2\n1,nan\n1,2\n1,2\n1,2\n", "actions row 1 is .*finite"),
        ("clip.csv", b",x\n0,1\n1,1\n2,1\n3,1\n4,1\n", "column 1 has no name.*index=False"),
        ("clip.csv", b"x,x\n" + b"1,2\n" * 5, "two columns are called 'x'"),
        ("clip.csv", b"x,2\n" + b"1,2\n" * 5, "all numbers, or all names"),
        ("clip.csv", b"\xff\xfe\x00" * 20, "damaged"),
        ("clip.npy", b"", "damaged"),
        ("clip.npy", b"\x93NUMPY\x01\x00\x08\x00{}", "damaged"),
        ("clip.parquet", b"PAR1PAR1", "damaged"),
    ],
)
def test_refuses_tables(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    video(tmp_path / "clip.gif")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EpisodeError, match=message) as caught:
        read(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / name))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((9, 2)), "9 rows for 5 frames"),
        (np.zeros((5, 2, 2)), r"shape \(5, 2, 2\)"),
        (np.full((5, 2), np.inf), "finite"),
        (np.zeros((5, 0)), "no columns"),
        (np.full((5, 2), "a"), "must be real numbers"),
        (np.full((5, 2), None), "damaged"),
        (np.zeros(()), "shape"),
    ],
)
def test_refuses_arrays(tmp_path: Path, array: np.ndarray, message: str) -> None:
    video(tmp_path / "clip.gif")
    np.save(tmp_path / "clip.npy", array, allow_pickle=True)
    with pytest.raises(EpisodeError, match=rf"clip\.npy: .*{message}"):
        read(tmp_path)


def test_refuses_claims_ragged_lists_and_two_tables(tmp_path: Path) -> None:
    path = video(tmp_path / "clip.gif").with_suffix(".npy")
    with open(path, "wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (5, 10**10)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(EpisodeError, match=r"clip\.npy: damaged"):
        read(tmp_path)
    np.save(path, ACTIONS)
    pq.write_table(pa.table({"action": [[1.0], [1.0, 2.0], [1.0], [1.0], [1.0]]}), path.with_suffix(".parquet"))
    with pytest.raises(EpisodeError, match=r"clip\.npy: clip\.npy and clip\.parquet lie beside clip\.gif; one table"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(EpisodeError, match=r"clip\.parquet: .*without gaps"):
        read(tmp_path)
    for column in (["a"] * 5, [1.0, None, 1.0, 1.0, 1.0]):
        pq.write_table(pa.table({"x": [1.0] * 5, "y": column}), path.with_suffix(".parquet"))
        with pytest.raises(EpisodeError, match=r"clip\.parquet: column 'y'.*without gaps"):
            read(tmp_path)


def test_refuses_places(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("")
    for path, message in [
        (tmp_path, "no video .* in it or below it"),
        (tmp_path / "x.txt", "no video by its name"),
        (tmp_path / "none", "no such file or folder"),
    ]:
        with pytest.raises(EpisodeError, match=message) as caught:
            VideoFolder(path)
        assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("kind", ["npy", "csv", "parquet"])
def test_damaged_tables_are_read_or_refused(tmp_path: Path, kind: str) -> None:
    video(tmp_path / "clip.gif")
    path = tmp_path / f"clip.{kind}"
    if kind == "npy":
        np.save(path, ACTIONS)
    elif kind == "csv":
        path.write_text("x,y,z\n" + "\n".join(",".join(map(str, row)) for row in ACTIONS))
    else:
        pq.write_table(pa.table({"action": list(ACTIONS)}), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(120):
        data = bytearray(whole)
        how, at = rng.integers(3), int(rng.integers(len(data)))
        if how == 0:
            data = data[:at]
        elif how == 1:
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
        path.write_bytes(data)
        try:
            recording = read(tmp_path)
        except EpisodeError as error:
            assert str(error).startswith(str(path))
        else:
            assert recording.actions is not None and len(recording.actions) == 5
            assert np.isfinite(recording.actions).all()
