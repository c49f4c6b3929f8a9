"""What a video file's own parts say of its length: a container that was cut or broken is told without decoding."""

from __future__ import annotations

import io
from pathlib import Path
from typing import BinaryIO

_EBML = 0x1A45DFA3
# Elements of Matroska with parts to look at, and those that are passed over: all that may lie in a segment or cluster.
_ENTERED = {0x18538067, 0x1F43B675}
_PASSED = {_EBML, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
_PASSED |= {0xE7, 0x5854, 0xA7, 0xAB, 0xA3, 0xA0, 0xAF}
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"sidx", b"pnot"}


def size_and_fault(source: Path | bytes) -> tuple[int, str]:
    """Length of a file in bytes, and what is wrong with it: that it was cut, or where its parts do not follow.

    The latter is empty where the file is whole or does not say. Knows MP4 and MOV, Matroska and WebM, AVI, and GIF. A
    file that cannot be read has no bytes and no fault.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            end = _claimed_end(file, size)
    except OSError:
        return 0, ""
    if end < 0:
        return size, f"no part of it begins at byte {-end}, where one must"
    return size, f"the file ends at byte {size}, at least {end - size} too early" if end > size else ""


def _claimed_end(file: BinaryIO, size: int) -> int:
    """Where the last part ends; the place as a negative number where something is that is no part."""
    file.seek(0)
    begin = file.read(12)
    if begin[4:8] in _BOXES:
        return _end_of_boxes(file, size)
    if int.from_bytes(begin[:4], "big") == _EBML:
        return _end_of_elements(file, size)
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


def _end_of_elements(file: BinaryIO, size: int) -> int:
    at = end = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        name_width = 9 - head[0].bit_length()
        first = head[name_width] if name_width < len(head) else 0
        width = 9 - first.bit_length()
        name = int.from_bytes(head[:name_width], "big")
        if name not in _ENTERED | _PASSED or width > 8:
            return -at if len(head) == 12 else max(end, size)
        claimed = int.from_bytes(head[name_width : name_width + width], "big") & (1 << 7 * width) - 1
        content, endless = at + name_width + width, claimed == (1 << 7 * width) - 1
        if not endless:
            end = max(end, content + claimed)
        at = content if name in _ENTERED or endless else content + claimed
    return end


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
