"""Pictures of predictions: what was real beside what was imagined beside the error, as strips, GIF and mp4.

Frames are numpy arrays (T, H, W, 3) of uint8; small ones are enlarged by whole numbers, every pixel a square.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.prediction import Prediction
from ivideogpt.files import write_atomically

Frames = npt.NDArray[np.uint8]

FRAMES_A_SECOND = 5
"""Slow enough to compare."""

# Pixels that a small frame is enlarged to fill, as far as whole numbers go.
_VIDEO_TILE, _STRIP_TILE = 256, 128
_GAP = 6
_BAR = 26  # height of a caption
_FONT_SIZE = 14
_LABEL_WIDTH = 84
_PAPER, _INK, _FAINT = (255, 255, 255), (30, 30, 30), (130, 130, 130)
_FULL_HEAT = 128  # a difference of half the range is drawn white
_HEAT_STOPS = (0, 32, 64, 96, _FULL_HEAT)
_HEAT_COLOURS = ((0, 0, 0), (70, 15, 110), (200, 45, 70), (250, 150, 40), (255, 255, 230))
_LAST_FRAME_SECONDS = 1.0


def as_frames(video: Tensor) -> Frames:
    """A video (T, 3, H, W), uint8 or float in [0, 1], as frames (T, H, W, 3).

    Raises:
        ShapeError: another shape.
    """
    if video.ndim != 4 or video.shape[1] != 3:
        raise ShapeError(f"the video has shape {tuple(video.shape)}; it must be (T, 3, H, W).")
    if video.is_floating_point():
        video = (video.clamp(0, 1) * 255).round().to(torch.uint8)
    return video.movedim(1, -1).cpu().numpy()


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
    canvas_width = _GAP + len(videos) * (width + _GAP)
    canvas_height = _BAR + height + _BAR
    pictures = []
    for index in range(count):
        page = Image.new("RGB", (_even(canvas_width), _even(canvas_height)), _PAPER)
        draw = ImageDraw.Draw(page)
        for number, (caption, video) in enumerate(zip(columns, videos, strict=True)):
            left = _GAP + number * (width + _GAP)
            page.paste(Image.fromarray(video[index]), (left, _BAR))
            _write(draw, (left + width // 2, _BAR // 2), caption, anchor="mm")
        part = "context" if index < context_frames else f"future {index - context_frames + 1}"
        _write(draw, (_GAP, _BAR + height + _BAR // 2), f"frame {index}, {part}", anchor="lm", fill=_FAINT)
        pictures.append(np.asarray(page))
    return np.stack(pictures)


def strip(rows: Mapping[str, Frames], context_frames: int, columns: int = 8) -> Image.Image:
    """Some frames of videos of one size, enlarged: a row a video, time to the right.

    Args:
        rows: videos by caption, from top to bottom.
        context_frames: the last of them is shown first, then future frames, evenly spread up to the last.
        columns: most frames to show.
    """
    videos = [enlarged(frames, _STRIP_TILE) for frames in rows.values()]
    count, height, width, _ = videos[0].shape
    first = context_frames - 1
    shown = np.unique(np.linspace(first, count - 1, min(columns, count - first)).round().astype(int))
    size = (_LABEL_WIDTH + len(shown) * (width + _GAP), _BAR + len(videos) * (height + _GAP))
    page = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(page)
    for column, index in enumerate(shown):
        left = _LABEL_WIDTH + column * (width + _GAP)
        caption = "context" if index < context_frames else f"+{index - first}"
        _write(draw, (left + width // 2, _BAR // 2), caption, anchor="mm", fill=_FAINT)
        for row, video in enumerate(videos):
            page.paste(Image.fromarray(video[index]), (left, _BAR + row * (height + _GAP)))
    for row, caption in enumerate(rows):
        middle = _BAR + row * (height + _GAP) + height // 2
        _write(draw, (_LABEL_WIDTH - _GAP, middle), caption, anchor="rm")
    return page


def stacked(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures below each other, each under its title."""
    width = max(picture.width for picture in pictures.values()) + 2 * _GAP
    height = sum(picture.height + _BAR + 2 * _GAP for picture in pictures.values())
    page = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(page)
    top = 0
    for title, picture in pictures.items():
        _write(draw, (_GAP, top + _BAR // 2 + _GAP), title, anchor="lm")
        page.paste(picture, (_GAP, top + _BAR + _GAP))
        top += picture.height + _BAR + 2 * _GAP
    return page


def enlarged(frames: Frames, tile: int) -> Frames:
    """Frames (T, H, W, 3), every pixel repeated as often as fits into `tile` pixels; large ones stay as they are."""
    factor = max(1, tile // max(frames.shape[1:3]))
    return frames.repeat(factor, axis=1).repeat(factor, axis=2)


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture; whole or not at all.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG", optimize=True))


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


def _write(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    anchor: str,
    fill: tuple[int, int, int] = _INK,
) -> None:
    draw.text(place, text, fill=fill, font=font(), anchor=anchor)


@functools.cache
def font(size: int = _FONT_SIZE) -> Any:
    """The font of all captions; it comes with Pillow."""
    return ImageFont.load_default(size)
