from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ivideogpt import drawing
from ivideogpt.data.episode import Episode
from ivideogpt.drawing import Frames
from ivideogpt.errors import ShapeError
from ivideogpt.evaluation import pictures


@pytest.fixture(scope="module")
def rows(episodes: list[Episode]) -> dict[str, Frames]:
    real, imagined = episodes[0].frames, episodes[1].frames
    return {"real": real, "imagined": imagined, "error": pictures.error_heat(imagined, real)}


def test_videos_become_frames() -> None:
    video = torch.rand(2, 3, 4, 5)
    frames = drawing.as_frames(video)
    assert frames.shape == (2, 4, 5, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, drawing.as_frames((video * 255).round().to(torch.uint8)))
    with pytest.raises(ShapeError, match=r"\(T, 3, H, W\)"):
        drawing.as_frames(video.movedim(1, -1))


def test_heat_rises_with_the_error() -> None:
    black = np.zeros((1, 1, 5, 3), np.uint8)
    other = np.array([0, 32, 64, 96, 255], np.uint8)[None, None, :, None].repeat(3, axis=-1)
    heat = pictures.error_heat(other, black)[0, 0].astype(int).sum(axis=-1)
    assert heat[0] == 0
    assert (np.diff(heat) > 0).all()
    assert np.array_equal(pictures.error_heat(other, black), pictures.error_heat(black, other))


def test_side_by_side_shows_every_pixel(rows: dict[str, Frames]) -> None:
    film = pictures.side_by_side(rows, context_frames=2)
    assert film.shape[0] == 12
    assert film.shape[1] % 2 == film.shape[2] % 2 == 0
    assert film.shape[2] > 3 * 256
    enlarged = drawing.enlarged(rows["imagined"], 256)
    assert enlarged.shape == (12, 256, 256, 3)
    left, top = 6 + 256 + 6, 26
    assert np.array_equal(film[:, top : top + 256, left : left + 256], enlarged)


@pytest.mark.parametrize(("size", "expected"), [(16, 256), (64, 256), (96, 192), (256, 256), (300, 300)])
def test_frames_are_enlarged_by_whole_numbers(size: int, expected: int) -> None:
    frames = np.zeros((1, size, size, 3), np.uint8)
    assert drawing.enlarged(frames, 256).shape == (1, expected, expected, 3)


def test_strip_shows_the_last_context_frame_and_the_last_frame(rows: dict[str, Frames]) -> None:
    picture = np.asarray(drawing.strip(rows, context_frames=2, columns=4))
    assert picture.shape[1] == 100 + 4 * 134
    real = drawing.enlarged(rows["real"], 128)
    assert np.array_equal(picture[26 : 26 + 128, 100 : 100 + 128], real[1])
    assert np.array_equal(picture[26 : 26 + 128, 100 + 3 * 134 : 100 + 3 * 134 + 128], real[-1])
    short = {name: frames[:3] for name, frames in rows.items()}
    assert drawing.strip(short, context_frames=2).width == 100 + 2 * 134


def test_pictures_stack(rows: dict[str, Frames]) -> None:
    one = drawing.strip(rows, context_frames=2)
    page = drawing.stacked({"best": one, "worst": one})
    assert page.width > one.width
    assert page.height > 2 * one.height


def test_png_and_gif_keep_what_is_seen(rows: dict[str, Frames], tmp_path: Path) -> None:
    film = pictures.side_by_side(rows, context_frames=2)
    drawing.write_png(tmp_path / "a.png", Image.fromarray(film[0]))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), film[0])
    pictures.write_gif(tmp_path / "a.gif", film, rate=5)
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.info["loop"] == 0
        assert gif.info["duration"] == 200
        gif.seek(7)
        shown = np.asarray(gif.convert("RGB")).astype(int)
    assert np.abs(shown - film[7]).mean() < 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.png"]


@pytest.mark.parametrize("encoder", ["libx264", "mpeg4"])
def test_mp4_plays(encoder: str, rows: dict[str, Frames], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if encoder not in av.codecs_available:
        pytest.skip(f"this build of PyAV has no {encoder}")
    monkeypatch.setattr(pictures, "_mp4_encoder", lambda: encoder)
    film = pictures.side_by_side(rows, context_frames=2)
    pictures.write_mp4(tmp_path / "a.mp4", film, rate=5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 5
        assert stream.codec_context.pix_fmt == "yuv420p"
        decoded = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(decoded) == len(film)
    assert np.abs(decoded[7] - film[7]).mean() < 4
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


def test_an_older_encoder_is_used_where_h264_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    assert pictures._mp4_encoder() == "mpeg4"


def test_mp4_refuses_odd_sizes(tmp_path: Path) -> None:
    with pytest.raises(ShapeError, match="even"):
        pictures.write_mp4(tmp_path / "a.mp4", np.zeros((2, 15, 16, 3), np.uint8))
    assert not list(tmp_path.iterdir())
