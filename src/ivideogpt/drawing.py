"""Drawing frames: enlarged, captioned, in rows.

Frames are numpy arrays (T, H, W, 3) of uint8; small ones are enlarged by whole numbers, every pixel a square.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.files import write_atomically

Frames: TypeAlias = npt.NDArray[np.uint8]

GAP, BAR = 6, 26
"""Pixels between pictures, and the height of a caption."""
PAPER, INK, FAINT = (255, 255, 255), (30, 30, 30), (130, 130, 130)

_STRIP_TILE = 128  # pixels that a small frame is enlarged to fill, as far as whole numbers go
_FONT_SIZE = 14
_LABEL_WIDTH = 100


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


def strip(
    rows: Mapping[str, Frames], context_frames: int, columns: int = 8, captions: Sequence[str] | None = None
) -> Image.Image:
    """Some frames of videos of one size, enlarged: a row a video, time to the right.

    Args:
        rows: videos by caption, from top to bottom.
        context_frames: the last of them is shown first, then future frames, evenly spread up to the last.
        columns: most frames to show.
        captions: of the frames; `context` and how many frames later where left out.
    """
    videos = [enlarged(frames, _STRIP_TILE) for frames in rows.values()]
    count, height, width, _ = videos[0].shape
    first = context_frames - 1
    shown = np.unique(np.linspace(first, count - 1, min(columns, count - first)).round().astype(int))
    size = (_LABEL_WIDTH + len(shown) * (width + GAP), BAR + len(videos) * (height + GAP))
    page = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(page)
    for column, index in enumerate(shown):
        left = _LABEL_WIDTH + column * (width + GAP)
        caption = "context" if index < context_frames else f"+{index - first}"
        caption = caption if captions is None else captions[index]
        write_text(draw, (left + width // 2, BAR // 2), caption, anchor="mm", fill=FAINT)
        for row, video in enumerate(videos):
            page.paste(Image.fromarray(video[index]), (left, BAR + row * (height + GAP)))
    for row, caption in enumerate(rows):
        middle = BAR + row * (height + GAP) + height // 2
        write_text(draw, (_LABEL_WIDTH - GAP, middle), caption, anchor="rm")
    return page


def stacked(pictures: Mapping[str, Image.Image]) -> Image.Image:
    """Pictures below each other, each under its title."""
    width = max(picture.width for picture in pictures.values()) + 2 * GAP
    height = sum(picture.height + BAR + 2 * GAP for picture in pictures.values())
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    top = 0
    for title, picture in pictures.items():
        write_text(draw, (GAP, top + BAR // 2 + GAP), title, anchor="lm")
        page.paste(picture, (GAP, top + BAR + GAP))
        top += picture.height + BAR + 2 * GAP
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


def write_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    anchor: str,
    fill: tuple[int, int, int] = INK,
) -> None:
    """Write a caption; `anchor` as Pillow has it, such as `mm` for its middle at `place`."""
    draw.text(place, text, fill=fill, font=font(), anchor=anchor)


@functools.cache
def font(size: int = _FONT_SIZE) -> Any:
    """The font of all captions; it comes with Pillow."""
    return ImageFont.load_default(size)
