"""Pictures of predictions: what was real beside what was imagined beside the error, as strips, GIF and mp4.

Frames are numpy arrays (T, H, W, 3) of uint8; small ones are enlarged by whole numbers, every pixel a square.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from ivideogpt.drawing import BAR, FAINT, GAP, PAPER, Frames, as_frames, enlarged, write_text
from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.prediction import Prediction
from ivideogpt.files import write_atomically

FRAMES_A_SECOND = 5
"""Slow enough to compare."""

# Pixels that a small frame is enlarged to fill, as far as whole numbers go.
_VIDEO_TILE = 256
_FULL_HEAT = 128  # a difference of half the range is drawn white
_HEAT_STOPS = (0, 32, 64, 96, _FULL_HEAT)
_HEAT_COLOURS = ((0, 0, 0), (70, 15, 110), (200, 45, 70), (250, 150, 40), (255, 255, 230))
_LAST_FRAME_SECONDS = 1.0


def error_heat(frames: Frames, reference: Frames) -> Frames:
    """The absolute difference, mean over the channels, as heat: black for none, white for half the range or more."""
    difference = np.abs(frames.astype(np.float32) - reference).mean(axis=-1)
    channels = [np.interp(difference, _HEAT_STOPS, stops) for stops in zip(*_HEAT_COLOURS, strict=True)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def prediction_rows(prediction: Prediction) -> dict[str, Frames]:
    """The three videos that a prediction is shown as, by caption: real, imagined, error."""
    real, imagined = as_frames(prediction.real), as_frames(prediction.imagined)
    return {"real": real, "imagined": imagined, "error": error_heat(imagined, real)}


def side_by_side(columns: Mapping[str, Frames], context_frames: int) -> Frames:
    """Videos of one size beside each other, enlarged, with captions and a frame counter.

    Args:
        columns: videos by caption, from left to right.
        context_frames: how many frames at the front were given to the model; the counter says so.

    Returns:
        (T, height, width, 3), both even, as video codecs need them.
    """
    videos = [enlarged(frames, _VIDEO_TILE) for frames in columns.values()]
    count, height, width, _ = videos[0].shape
    canvas_width = GAP + len(videos) * (width + GAP)
    canvas_height = BAR + height + BAR
    pictures = []
    for index in range(count):
        page = Image.new("RGB", (_even(canvas_width), _even(canvas_height)), PAPER)
        draw = ImageDraw.Draw(page)
        for number, (caption, video) in enumerate(zip(columns, videos, strict=True)):
            left = GAP + number * (width + GAP)
            page.paste(Image.fromarray(video[index]), (left, BAR))
            write_text(draw, (left + width // 2, BAR // 2), caption, anchor="mm")
        part = "context" if index < context_frames else f"future {index - context_frames + 1}"
        write_text(draw, (GAP, BAR + height + BAR // 2), f"frame {index}, {part}", anchor="lm", fill=FAINT)
        pictures.append(np.asarray(page))
    return np.stack(pictures)


def write_gif(path: Path, frames: Frames, rate: float = FRAMES_A_SECOND) -> None:
    """Write an endless GIF of frames (T, H, W, 3), `rate` a second, resting on the last; errors as `write_png`."""
    pictures = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 / rate)] * (len(pictures) - 1) + [round(1000 * _LAST_FRAME_SECONDS)]
    write_atomically(
        path,
        lambda temporary: pictures[0].save(
            temporary, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0
        ),
    )


def write_mp4(path: Path, frames: Frames, rate: int = FRAMES_A_SECOND) -> None:
    """Write frames (T, H, W, 3) of even size as mp4, `rate` a second; errors as `write_png`.

    H.264 where PyAV has the encoder, else MPEG-4 part 2.

    Raises:
        ShapeError: an odd height or width.
    """
    if frames.shape[1] % 2 or frames.shape[2] % 2:
        raise ShapeError(f"frames are {frames.shape[1]} x {frames.shape[2]}; an mp4 needs even sizes. Pad them.")
    write_atomically(path, lambda temporary: _encode_mp4(temporary, frames, rate))


def _encode_mp4(path: Path, frames: Frames, rate: int) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream(_mp4_encoder(), rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if stream.codec_context.name == "libx264":
            stream.options = {"crf": "16"}
        else:
            stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _mp4_encoder() -> str:
    """The best encoder that this build of PyAV has."""
    import av

    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def _even(size: int) -> int:
    return size + size % 2
