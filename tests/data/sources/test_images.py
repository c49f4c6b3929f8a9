from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ivideogpt.data.sources.images import decode_image, picture_format, require_picture_size
from ivideogpt.errors import EpisodeError

H, W = 24, 40


def picture() -> np.ndarray:
    y, x = np.mgrid[0:H, 0:W]
    return np.stack([6 * x, 9 * y, 120 + 0 * x], axis=-1).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    """A PNG by hand, for what Pillow cannot write."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("PNG", {"compress_level": 0}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("WEBP", {"quality": 95}, 16),
        ("JPEG", {"quality": 95, "subsampling": 0}, 8),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}, 8),
    ],
)
def test_colours_and_order(kind: str, options: dict[str, Any], tolerance: int) -> None:
    data = saved(Image.fromarray(picture()), kind, **options)
    assert picture_format(data) == kind
    frame = decode_image(data, "x")
    assert frame.shape == (H, W, 3) and frame.dtype == np.uint8 and frame.flags.writeable and frame.flags.c_contiguous
    assert np.abs(frame.astype(int) - picture()).max() <= tolerance


def test_grey_palette_alpha_and_bits() -> None:
    grey = picture()[..., 0]
    repeated = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(grey), "PNG"), "x"), repeated)
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(decode_image(saved(deep, "PNG"), "x"), repeated)
    rgba = np.dstack([picture(), np.zeros((H, W), np.uint8)])
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(rgba), "PNG"), "x"), picture())
    both = Image.fromarray(grey).convert("LA")
    np.testing.assert_array_equal(decode_image(saved(both, "PNG"), "x"), repeated)
    few = Image.fromarray(picture()).quantize(16)
    np.testing.assert_array_equal(decode_image(saved(few, "PNG"), "x"), np.asarray(few.convert("RGB")))
    bits = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(decode_image(saved(bits, "PNG"), "x")[..., 1], 255 * (grey > 100))
    wide = (picture().astype(">u2") * 257).tobytes()
    rows = b"".join(b"\0" + wide[y * W * 6 : (y + 1) * W * 6] for y in range(H))
    np.testing.assert_array_equal(decode_image(png(W, H, 16, 2, rows), "x"), picture())
    jpeg = decode_image(saved(Image.fromarray(grey), "JPEG", quality=95), "x")
    assert np.abs(jpeg.astype(int) - repeated).max() <= 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "of 0 bytes is empty; it must be PNG, JPEG or WebP"),
        (b"GIF89a123", "begins with 47 49 46 38.*must be PNG"),
        (b"\xff\xd8\xff", "this JPEG of 3 bytes is damaged"),
        (png(30000, 30000, 8, 2, b""), "30000 x 30000; the most is|claims more than 67108864 pixels"),
        (png(9000, 9000, 8, 2, b""), "9000 x 9000; the most is"),
        (png(0, 4, 8, 2, b""), "damaged|0 x 4"),
        (png(64, 64, 8, 2, b"\0" * 50), "damaged"),
    ],
)
def test_refuses(data: bytes, message: str) -> None:
    with pytest.raises(EpisodeError, match=rf"^a/b\.h5 row 3: .*({message})"):
        decode_image(data, "a/b.h5 row 3")


def test_a_flipped_bit_of_a_png_is_found() -> None:
    data = bytearray(saved(Image.fromarray(picture()), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    with pytest.raises(EpisodeError, match=r"checksum of its part b'IDAT'"):
        decode_image(bytes(data), "x")


def test_memory_is_asked_for_first(monkeypatch: pytest.MonkeyPatch) -> None:
    require_picture_size(4096, 4096, "x")
    monkeypatch.setattr("ivideogpt.data.sources.images.free_memory", lambda device: 10**6)
    require_picture_size(1024, 1024, "x")
    with pytest.raises(EpisodeError, match=r"^x: claims pictures of 4096 x 4096, which take .* GB of memory are free"):
        require_picture_size(4096, 4096, "x")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_pictures_are_read_or_refused(kind: str) -> None:
    whole, rng = saved(Image.fromarray(picture()), kind), np.random.default_rng(0)
    for _ in range(150):
        data = bytearray(whole)
        how, at = rng.integers(3), int(rng.integers(len(data)))
        if how == 0:
            data = data[:at]
        elif how == 1:
            data[at] ^= 1 << int(rng.integers(8))
        else:
            data[at : at + 8] = rng.bytes(len(data[at : at + 8]))
        try:
            frame = decode_image(bytes(data), "x")
        except EpisodeError as error:
            assert str(error).startswith("x: ")
        else:
            assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8
