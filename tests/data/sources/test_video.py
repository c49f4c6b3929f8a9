from __future__ import annotations

import io
import pickle
import struct
from itertools import zip_longest
from typing import Any

import av
import numpy as np
import pytest

from ivideogpt.data.sources import video as video_module
from ivideogpt.data.sources.video import Video
from ivideogpt.errors import EpisodeError
from tests.data.sources.videos import X264, H, W, encoded, gif, number_in, numbers, picture


@pytest.fixture(scope="module")
def long_video() -> bytes:
    return encoded(100, **X264)


@pytest.mark.parametrize(
    ("form", "codec", "pixels", "options"),
    [
        ("mp4", "libx264", "yuv420p", X264["options"]),
        ("mov", "libx264", "yuv444p", X264["options"]),
        ("mp4", "mpeg4", "yuv420p", {"g": "5", "bf": "2", "q": "2"}),
        ("webm", "libvpx-vp9", "yuv420p", {"g": "7", "speed": "8", "auto-alt-ref": "1", "lag-in-frames": "5"}),
        ("webm", "libvpx", "yuv420p", {"g": "7", "speed": "8", "auto-alt-ref": "1", "lag-in-frames": "5"}),
        ("matroska", "ffv1", "bgr0", {}),
        ("matroska", "libx264", "yuv420p", X264["options"]),
        ("avi", "mjpeg", "yuvj420p", {"q": "2"}),
        ("avi", "libx264", "yuv420p", X264["options"]),
        ("mpegts", "libx264", "yuv420p", X264["options"]),
    ],
)
def test_every_container_from_every_place(
    form: str, codec: str, pixels: str, options: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(30, form, codec, pixels, options)
    with Video(data, "x") as video:
        frames = list(video.frames())
        assert [number_in(frame) for frame in frames] == list(range(30))
        assert video.count() == 30
        assert video.frame_rate is not None and abs(video.frame_rate - 10) < 0.05
        assert video.stream == (0, 1)
    for frame in frames:
        assert frame.shape == (H, W, 3) and frame.dtype == np.uint8 and frame.flags.c_contiguous
        assert np.abs(frame[10:].astype(int) - picture(0)[10:]).mean() < 4
    assert Video(data, "x").count() == 30
    monkeypatch.setattr(video_module, "_LITTLE", 2)
    rng = np.random.default_rng(0)
    video = Video(data, "x")
    for start in rng.permutation(30).tolist():
        count = min(3, 30 - start)
        for got, right in zip_longest(video.frames(start, count), frames[start : start + count]):
            np.testing.assert_array_equal(got, right)


def test_gif() -> None:
    video = Video(gif(5), "x")
    for number, frame in enumerate(video.frames()):
        assert number_in(frame) == number
        assert np.abs(frame.astype(int) - picture(number)).mean() < 8
    assert video.count() == 5 and numbers(video, 3) == [3, 4]
    with pytest.raises(EpisodeError, match=r"^x: breaks off after .* too early"):
        list(Video(gif(5)[:-400], "x").frames())


def test_a_long_video_is_searched_for_key_frames(long_video: bytes) -> None:
    video = Video(long_video, "x")
    assert numbers(video, 90, 3) == [90, 91, 92]
    assert numbers(video, 70, 2) == [70, 71]
    assert numbers(video, 98) == [98, 99]
    assert numbers(video, 1, 1) == [1]
    one, two = video.frames(80, 4), video.frames(10, 4)
    assert [(number_in(a), number_in(b)) for a, b in zip(one, two, strict=True)] == [
        (80 + step, 10 + step) for step in range(4)
    ]
    copy = pickle.loads(pickle.dumps(video))
    assert numbers(copy, 99, 1) == [99]


def test_seeking_decodes_little(long_video: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    video = Video(long_video, "x")
    assert numbers(video, 85, 1) == [85]
    turned = 0
    real = video_module.Decoder.jump

    def jump(*arguments: Any) -> bool:
        nonlocal turned
        turned += 1
        return real(*arguments)

    monkeypatch.setattr(video_module.Decoder, "jump", jump)
    assert numbers(video, 75, 1) == [75] and turned == 1
    assert numbers(video, 78, 1) == [78] and turned == 1
    monkeypatch.setattr(video_module.Decoder, "jump", lambda *arguments: False)
    assert numbers(video, 70, 1) == [70]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((95, 10), "holds 100 frames; frames 95 to 104 are asked for"),
        ((120, 1), "holds 100 frames; frames 120 to 120"),
        ((101,), "holds 100 frames; frames from 101 on"),
        ((-1, 2), "neither may be negative"),
        ((0, -2), "neither may be negative"),
    ],
)
def test_fewer_frames_than_asked_for(long_video: bytes, asked: tuple[int, ...], message: str) -> None:
    video = Video(long_video, "a.mp4")
    for _ in range(2):
        with pytest.raises(EpisodeError, match=rf"^a\.mp4: .*{message}"):
            list(video.frames(*asked))
    assert numbers(video, 100) == [] and numbers(video, 3, 0) == []


def test_sound_comes_first() -> None:
    video = Video(encoded(8, audio=True), "x")
    assert numbers(video) == list(range(8)) and video.stream == (1, 1)


@pytest.mark.skipif(not hasattr(av.stream, "Disposition"), reason="this PyAV cannot mark a stream")
@pytest.mark.parametrize("default", [None, 0, 1])
def test_the_default_of_two_streams(default: int | None) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams: list[Any] = [container.add_stream("ffv1", rate=10) for _ in range(2)]
        for number, stream in enumerate(streams):
            stream.width, stream.height, stream.pix_fmt = W + 16 * number, H, "bgr0"
            stream.disposition = int(number == default)
        for number, stream in enumerate(streams):
            frame = av.VideoFrame.from_ndarray(picture(number, H, W + 16 * number), "rgb24")
            container.mux(stream.encode(frame.reformat(format="bgr0")) + stream.encode())
    video = Video(file.getvalue(), "x")
    assert numbers(video) == [default or 0] and video.stream == (default or 0, 2)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_and_mirrored(turns: int, mirrored: bool) -> None:
    data = bytearray(encoded(2, **X264))
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes of numbers
    cosine, sine = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]
    a, b, c, d = cosine, sine, -sine, cosine  # clockwise by quarters; a mirrored picture is mirrored first
    if mirrored:
        a, b = -a, -b
    one = 1 << 16
    data[at : at + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    stored = next(Video(encoded(2, **X264), "x").frames())
    frame = next(Video(bytes(data), "x").frames())
    np.testing.assert_array_equal(frame, np.rot90(stored[:, ::-1] if mirrored else stored, -turns))
    assert frame.flags.c_contiguous


def rgb_of(y: float, u: float, v: float, full: bool, red: float, blue: float) -> np.ndarray:
    """By the definition of YCbCr: `red` and `blue` are the weights of the matrix."""
    y, u, v = (y, u - 128, v - 128) if full else (255 / 219 * (y - 16), 255 / 224 * (u - 128), 255 / 224 * (v - 128))
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    return np.array([r, (y - red * r - blue * b) / (1 - red - blue), b])


@pytest.mark.parametrize(
    ("matrix", "span", "size", "full", "red", "blue"),
    [
        (1, 1, 64, False, 0.2126, 0.0722),
        (1, 2, 64, True, 0.2126, 0.0722),
        (5, 2, 64, True, 0.299, 0.114),
        (6, 1, 64, False, 0.299, 0.114),
        (9, 1, 64, False, 0.2627, 0.0593),
        (2, 0, 64, False, 0.299, 0.114),
        (2, 0, 720, False, 0.299, 0.114),
        (2, 2, 64, True, 0.299, 0.114),
    ],
)
def test_colours_as_tagged(matrix: int, span: int, size: int, full: bool, red: float, blue: float) -> None:
    file, colour = io.BytesIO(), (110, 90, 160)
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=10, options={"qp": "0", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
        stream.codec_context.colorspace, stream.codec_context.color_range = matrix, span
        planes = np.concatenate([np.full(size * size, colour[0]), *(np.full(size * size // 4, c) for c in colour[1:])])
        frame = av.VideoFrame.from_ndarray(planes.reshape(size * 3 // 2, size).astype(np.uint8), "yuv420p")
        frame.colorspace, frame.color_range = matrix, span
        container.mux(stream.encode(frame) + stream.encode())
    shown = next(Video(file.getvalue(), "x").frames())
    assert np.abs(shown.astype(float) - rgb_of(*colour, full, red, blue)).max() <= 3  # libswscale's own accuracy


def test_ten_bits_and_grey() -> None:
    deep = next(Video(encoded(1, pixels="yuv444p10le", **X264), "x").frames())
    assert np.abs(deep.astype(int) - picture(0)).max() <= 4
    grey = next(Video(encoded(1, "matroska", "ffv1", "gray"), "x").frames())
    light = picture(0) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey.astype(int) - light[..., None]).max() <= 2


def test_times_that_vary() -> None:
    times = [0, 4, 8, 30, 31, 100, 104, 170]
    video = Video(encoded(8, times=times, **X264), "x")
    assert numbers(video) == list(range(8)) and numbers(video, 5) == [5, 6, 7] and video.count() == 8
