from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.sources import video as video_module
from ivideogpt.data.sources.video import Video
from ivideogpt.data.sources.video_parts import size_and_fault
from ivideogpt.errors import EpisodeError

H, W = 48, 64
X264 = {"codec": "libx264", "options": {"qp": "0", "g": "12", "bf": "3", "preset": "ultrafast", "tune": "animation"}}


def picture(number: int, height: int = H, width: int = W) -> np.ndarray:
    """Colours that differ between channels and corners, and eight cells that say the number."""
    y, x = np.mgrid[0:height, 0:width]
    frame = np.stack([40 + x, 90 + y, 60 + 0 * x], axis=-1).astype(np.uint8)
    for bit in range(8):
        frame[:8, 8 * bit : 8 * bit + 8] = 230 if number >> bit & 1 else 20
    return frame


def number_in(frame: np.ndarray) -> int:
    return sum(int(frame[:8, 8 * bit : 8 * bit + 8].mean() > 125) << bit for bit in range(8))


def encoded(
    count: int,
    form: str = "mp4",
    codec: str = "libx264",
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    shift: int = 0,
    audio: bool = False,
) -> bytes:
    """A video of `count` pictures, ten a second; `times` in hundredths of a second, `shift` in frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=form, options=muxer or {}) as container:
        sound = container.add_stream("aac", rate=16000, layout="mono") if audio else None
        stream: Any = container.add_stream(codec, rate=10, options=options or {})
        stream.width, stream.height, stream.pix_fmt, stream.thread_count = W, H, pixels, 1
        base = Fraction(1, 10) if times is None else Fraction(1, 100)
        stream.time_base = stream.codec_context.time_base = base
        if sound is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 16000, 0, Fraction(1, 16000)
            container.mux(sound.encode(silence))
        packets = []
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture(number), "rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = number if times is None else times[number], base
            packets += stream.encode(frame)
        for packet in packets + stream.encode():
            if packet.pts is not None and shift:
                by = int(shift / 10 / packet.time_base)
                packet.pts, packet.dts = packet.pts - by, packet.dts - by
            container.mux(packet)
        if sound is not None:
            container.mux(sound.encode())
    return file.getvalue()


def with_index_in_front(data: bytes) -> bytes:
    """An MP4 of ftyp, free, mdat and moov, with moov before mdat and its chunk offsets moved."""
    middle, index = data.index(b"mdat") - 4, data.index(b"moov") - 4
    moov = bytearray(data[index:])
    at = moov.index(b"stco") + 8
    (chunks,) = struct.unpack(">I", moov[at : at + 4])
    for chunk in range(at + 4, at + 4 + 4 * chunks, 4):
        moov[chunk : chunk + 4] = struct.pack(">I", struct.unpack(">I", moov[chunk : chunk + 4])[0] + len(moov))
    return data[:middle] + bytes(moov) + data[middle:index]


def gif(count: int) -> bytes:
    pages = [Image.fromarray(picture(number)) for number in range(count)]
    file = io.BytesIO()
    pages[0].save(file, "GIF", save_all=True, append_images=pages[1:], duration=100, loop=0)
    return file.getvalue()


@pytest.fixture(scope="module")
def long_video() -> bytes:
    return encoded(100, **X264)


def numbers(video: Video, *asked: int) -> list[int]:
    return [number_in(frame) for frame in video.frames(*asked)]


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


def test_lengths_in_headers_are_not_believed() -> None:
    cut = Video(encoded(30, shift=8, muxer={"avoid_negative_ts": "disabled"}, **X264), "x")  # an edit list skips eight
    assert numbers(cut) == list(range(8, 30)) and cut.count() == 22 and numbers(cut, 20) == [28, 29]
    pieces = encoded(20, muxer={"movflags": "frag_keyframe+empty_moov"}, **X264)
    assert numbers(Video(pieces, "x")) == list(range(20)) and Video(pieces, "x").count() == 20
    data = bytearray(encoded(20, "avi", "mjpeg", "yuvj420p"))
    for name, offset in ((b"avih", 24), (b"strh", 40)):
        at = data.index(name) + offset
        data[at : at + 4] = struct.pack("<I", 7)
    assert numbers(Video(bytes(data), "x")) == list(range(20)) and Video(bytes(data), "x").count() == 20


@pytest.mark.parametrize("form", ["mp4", "matroska", "avi", "pieces"])
def test_a_cut_file_gives_what_it_has_and_says_so(form: str) -> None:
    if form == "pieces":
        data = encoded(40, muxer={"movflags": "frag_keyframe+empty_moov"}, **X264)
    else:
        data = with_index_in_front(encoded(40, **X264)) if form == "mp4" else encoded(40, form, **X264)
    video = Video(data[: len(data) * 6 // 10], "a.mp4")
    for _ in range(2):
        given: list[int] = []
        with pytest.raises(EpisodeError, match=r"^a\.mp4: breaks off after \d+ frames .*too early"):
            given.extend(number_in(frame) for frame in video.frames())
    got = []
    try:
        for frame in video.frames():
            got.append(number_in(frame))
    except EpisodeError as error:
        assert f"after {len(got)} frames" in str(error)
    assert 8 < len(got) < 40 and got == list(range(len(got)))
    assert numbers(video, 2, 3) == [2, 3, 4]
    with pytest.raises(EpisodeError):
        video.count()
    with pytest.raises(EpisodeError):
        list(video.frames(5, 35))


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("lost", [6, 19])
def test_a_lost_frame_is_missed(form: str, lost: int) -> None:
    data = encoded(20, form, options={"g": "5", "bf": "0"})
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = data.index(packets[lost])
    broken = data[:at] + b"\xff" * len(packets[lost]) + data[at + len(packets[lost]) :]
    with pytest.raises(EpisodeError, match=rf"^x: (breaks off after|damaged at frame) {lost}"):
        list(Video(broken, "x").frames())


def test_refuses(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream: Any = container.add_stream("aac", rate=16000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 16000
        container.mux(stream.encode(silence) + stream.encode())
    whole = encoded(9, **X264)
    (tmp_path / "tail.mp4").write_bytes(whole[: whole.index(b"moov")])
    for name, message in [
        ("none.mp4", "no such file"),
        (".", "this is a folder"),
        ("empty.mp4", "these 0 bytes cannot be opened as a video"),
        ("text.mp4", "cannot be opened as a video"),
        ("sound.mp4", "no video in this file"),
        ("tail.mp4", "cannot be opened as a video.*cut before the index"),
    ]:
        path = tmp_path / name
        for use in (lambda v: list(v.frames()), lambda v: v.frame_rate, lambda v: v.count()):
            with pytest.raises(EpisodeError, match=message) as caught:
                use(Video(path))
            assert str(caught.value).startswith(str(path))


def test_enormous_pictures_are_refused() -> None:
    data = bytearray(gif(3))
    data[6:10] = struct.pack("<HH", 30000, 30000)
    with pytest.raises(EpisodeError, match=r"^x: .*(30000 x 30000|cannot be opened|breaks off|no frame)"):
        list(Video(bytes(data), "x").frames())
    lossless = encoded(3, "matroska", "ffv1", "bgr0")
    wide = lossless.replace(b"\xb0\x81\x40\xba\x81\x30", b"\xb0\x82\x75\x30\xec\x80")  # PixelWidth 30000
    assert wide != lossless
    with pytest.raises(EpisodeError, match=r"^x: "):
        list(Video(wide, "x").frames())
    jpegs = bytearray(encoded(3, "avi", "mjpeg", "yuvj420p"))
    at = jpegs.index(b"strf") + 12
    jpegs[at : at + 8] = struct.pack("<ii", 30000, 30000)
    at = -1
    while (at := jpegs.find(b"\xff\xc0\x00\x11\x08", at + 1)) >= 0:
        jpegs[at + 5 : at + 9] = struct.pack(">HH", 30000, 30000)
    with pytest.raises(EpisodeError, match=r"^x: "):
        list(Video(bytes(jpegs), "x").frames())


def test_one_size_from_begin_to_end() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="avi") as container:
        stream: Any = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = W, H, "yuvj420p"
        for number in range(6):
            page = io.BytesIO()
            Image.fromarray(picture(number)[: 24 if number == 4 else H]).save(page, "JPEG")
            packet = av.Packet(page.getvalue())
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 10)
            container.mux(packet)
    with pytest.raises(EpisodeError, match=r"^x: frame 4 is 64 x 24 and the first 64 x 48; all must have one size"):
        list(Video(file.getvalue(), "x").frames())


@pytest.mark.parametrize("form", ["mp4", "pieces", "webm", "mjpeg", "gif"])
def test_damaged_files_are_read_or_refused(form: str) -> None:
    whole = {
        "mp4": lambda: encoded(12, audio=True, **X264),
        "pieces": lambda: encoded(12, muxer={"movflags": "frag_keyframe+empty_moov"}, **X264),
        "webm": lambda: encoded(12, "webm", "libvpx-vp9", options={"speed": "8"}),
        "mjpeg": lambda: encoded(8, "avi", "mjpeg", "yuvj420p"),
        "gif": lambda: gif(6),
    }[form]()
    rng = np.random.default_rng(0)
    for _ in range(120):
        data = bytearray(whole)
        how, at = rng.integers(4), int(rng.integers(len(data)))
        if how == 0:
            data = data[:at]
        elif how == 1:
            data[at] ^= 1 << int(rng.integers(8))
        elif how == 2:
            data[at : at + 16] = rng.bytes(len(data[at : at + 16]))
        else:  # where headers are
            at = int(rng.integers(min(len(data), 600)))
            data[at] = int(rng.integers(256))
        video = Video(bytes(data), "x")
        for use in (lambda v: sum(1 for _ in v.frames()), lambda v: v.count(), lambda v: v.frame_rate):
            try:
                use(video)
            except EpisodeError as error:
                assert str(error).startswith("x: ")
        video.close()


def test_a_matroska_whose_parts_do_not_follow_is_told() -> None:
    data = encoded(12, "webm", "libvpx-vp9", options={"speed": "8", "g": "4"})
    assert size_and_fault(data) == (len(data), "")
    with av.open(io.BytesIO(data)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at = data.index(packets[5]) - 6  # of a SimpleBlock: its name, its size in two bytes, stream, time, flags
    at = data.rindex(b"\xa3", 0, at + 2)
    broken = data[: at + 1] + b"\x85" + data[at + 2 :]
    with pytest.raises(EpisodeError, match=r"^x: breaks off after \d+ frames \((no part of it begins|.*too early)"):
        list(Video(broken, "x").frames())
