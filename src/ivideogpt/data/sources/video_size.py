"""How long a video file must be by its own parts: a container that was cut is told without decoding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"pnot"}


def sizes(source: Path | bytes) -> tuple[int, int]:
    """Length of a file in bytes, and how many are missing: its last part reaches as far past the end.

    The latter is 0 where the file is whole or does not say. Knows MP4 and MOV, Matroska and WebM, AVI, and GIF. A file
    that cannot be read has no bytes and lacks none.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            return size, max(0, _claimed_end(file, size) - size)
    except OSError:
        return 0, 0


def _claimed_end(file: BinaryIO, size: int) -> int:
    file.seek(0)
    begin = file.read(12)
    if begin[4:8] in _BOXES:
        return _end_of_boxes(file, size)
    if begin[:4] == _EBML:
        return _end_of_segment(file, size)
    if begin[:4] == b"RIFF" and begin[8:12] == b"AVI ":
        return _end_of_riff(file, size)
    return _end_of_gif(file, size) if begin[:6] in (b"GIF87a", b"GIF89a") else size


def _end_of_boxes(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 0:
            return size  # reaches to the end, wherever that is
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:
            return size  # what follows is no box
        at += length
    return at


def _end_of_segment(file: BinaryIO, size: int) -> int:
    at = 0
    while at < size:
        file.seek(at)
        name = file.read(4)
        first = file.read(1)
        if not first or first == b"\0":
            return size
        width = 9 - first[0].bit_length()
        rest = first + file.read(width - 1)
        length = int.from_bytes(rest, "big") & ((1 << 7 * width) - 1)
        if length == (1 << 7 * width) - 1:
            return size  # written while it went on, so of unknown length
        at += 4 + width + length
        if name == _SEGMENT:
            return at
        if name != _EBML:
            return size
    return at


def _end_of_riff(file: BinaryIO, size: int) -> int:
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[4:], "little")
        if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
            return size
        end = at + 8 + length
        at = end + (length & 1)
        if at == size + 1:
            return size  # the last byte only pads
    return at


def _end_of_gif(file: BinaryIO, size: int) -> int:
    """Of a GIF only whether it ends with its trailer is known."""
    file.seek(10)
    flags = file.read(3)
    at = 13 + _palette(flags)
    while at < size:
        file.seek(at)
        kind = file.read(1)
        if kind == b";":
            return size
        if kind == b"!":
            at += 2
        elif kind == b",":
            at += 10 + _palette(file.read(9)[8:]) + 1
        else:
            return size  # not the rules; decoding will tell
        length = 1
        while length and at < size:
            file.seek(at)
            length = (file.read(1) or b"\0")[0]
            at += 1 + length
    return max(at, size + 1)


def _palette(flags: bytes) -> int:
    return 3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0
