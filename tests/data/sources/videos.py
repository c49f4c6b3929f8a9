"""Videos to read: made in memory, each picture telling its number."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from PIL import Image

from ivideogpt.data.sources.video import Video

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


def numbers(video: Video, *asked: int) -> list[int]:
    return [number_in(frame) for frame in video.frames(*asked)]
