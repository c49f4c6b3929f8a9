"""Single pictures as bytes: PNG, JPEG and WebP, told by what they begin with."""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING

import numpy as np
import torch

from ivideogpt.data.sources.recording import Frame
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError

if TYPE_CHECKING:
    from PIL import Image

MOST_PIXELS = 2**26  # 8192 x 8192, and twice what 8K video has
_LARGE = 2**22  # from here on a picture is compared with free memory, which takes a moment to ask for
_BYTES_A_PIXEL = 16  # what decoders hold at once: a copy of 64 bits, one of RGB, and some more

_PNG, _JPEG, _RIFF, _WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF", b"WEBP"


def picture_format(data: bytes) -> str | None:
    """`PNG`, `JPEG` or `WEBP` by the first bytes; None where they are none of these."""
    if data[:8] == _PNG:
        return "PNG"
    if data[:3] == _JPEG:
        return "JPEG"
    return "WEBP" if data[:4] == _RIFF and data[8:12] == _WEBP else None


def decode_image(data: bytes, where: str) -> Frame:
    """One picture, (H, W, 3) uint8 RGB.

    Grey is repeated, palettes are looked up, alpha is dropped, and of 16 bits the upper 8 are kept. Of an animation
    the first picture is taken.

    Args:
        data: a whole PNG, JPEG or WebP file.
        where: what a message begins with: the path of the file, and what in it.

    Raises:
        EpisodeError: none of these formats, damaged, or claims a size that nobody records.
    """
    kind = picture_format(data)
    if kind is None:
        begin = f"begins with {data[:8].hex(' ')}" if data else "is empty"
        raise EpisodeError(
            f"{where}: this picture of {len(data)} bytes {begin}; it must be PNG, JPEG or WebP. "
            "Save it again in one of these."
        )
    from PIL import Image

    try:
        if kind == "PNG":
            _require_checksums(data)
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            require_picture_size(*picture.size, where)
            return _as_rgb(picture)
    except EpisodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise EpisodeError(
            f"{where}: this {kind} claims more than {MOST_PIXELS} pixels, the most that is read. "
            "It is damaged, or must be made smaller."
        ) from error
    except Exception as error:  # the decoders name no common base: SyntaxError, struct.error, OSError, IndexError ...
        raise EpisodeError(
            f"{where}: this {kind} of {len(data)} bytes is damaged ({_in_words(error)}). Copy or record it again."
        ) from error


def require_picture_size(width: int, height: int, where: str) -> None:
    """Compare the size that a header claims with what is sensible and what memory there is.

    Raises:
        EpisodeError: no pixel, more than `MOST_PIXELS`, or more than fits.
    """
    if width <= 0 or height <= 0:
        raise EpisodeError(
            f"{where}: claims pictures of {width} x {height}; there must be at least one pixel. Record it again."
        )
    if width * height > MOST_PIXELS:
        raise EpisodeError(
            f"{where}: claims pictures of {width} x {height}; the most is {MOST_PIXELS} pixels. It is damaged, or "
            "must be made smaller."
        )
    if width * height >= _LARGE:
        needed, free = width * height * _BYTES_A_PIXEL, free_memory(torch.device("cpu"))
        if free is not None and needed > free:
            raise EpisodeError(
                f"{where}: claims pictures of {width} x {height}, which take {needed / 1e9:.3g} GB to decode; "
                f"{free / 1e9:.3g} GB of memory are free. Make them smaller, or free some memory."
            )


def _as_rgb(picture: Image.Image) -> Frame:
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow clips to 255 where it converts them
        grey = (np.asarray(picture).astype(np.uint32) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    frame = np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))
    return np.array(frame, dtype=np.uint8)  # a copy that may be written to


def _require_checksums(data: bytes) -> None:
    """Compare every chunk of a PNG with its checksum, which Pillow does not do for the pixels."""
    at = len(_PNG)
    while at + 12 <= len(data):
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(memoryview(data)[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise ValueError(f"the checksum of its part {name!r} at byte {at} is wrong")
        if name == b"IEND":
            return
        at = end + 4
    raise ValueError("it ends early")


def _in_words(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
