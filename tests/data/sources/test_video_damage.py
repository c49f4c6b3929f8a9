from __future__ import annotations

import io
import struct
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.sources.video import Video
from ivideogpt.data.sources.video_parts import size_and_fault
from ivideogpt.errors import EpisodeError
from tests.data.sources.videos import X264, H, W, encoded, gif, number_in, numbers, picture, with_index_in_front


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
