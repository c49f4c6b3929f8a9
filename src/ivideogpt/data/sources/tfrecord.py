"""TFRecord files and the `tf.train.Example` messages in them, without TensorFlow.

A record is its length (8 bytes, little endian), the masked CRC-32C of the length, the payload, and the masked CRC-32C
of the payload. Positions are found by lengths alone; a payload is read and checked when it is asked for. Where a
length is damaged, the next record is found by the checksum of its length, so that whole records stay readable.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at

_HEADER, _FOOTER = 12, 4  # bytes before and after a payload
_SEARCHED = 1 << 12, 1 << 20  # bytes searched at a time, at first and at most
_MOST_SEARCHES = 10_000  # of one file; each takes a part of a millisecond
_MASK, _ROTATION = 0xA282EAD8, 15
_TIMES_IN_MEMORY = 3  # a payload, the message made of it, what is made of that
_COPY = "Copy or download the file again."


@dataclass(frozen=True)
class Span:
    """Where one record lies in its file.

    Attributes:
        start: first byte of the payload.
        length: bytes of the payload.
        fault: why it cannot be read, where that is known without reading it; a sentence or more.
    """

    start: int
    length: int
    fault: str | None = None


class Example:
    """A `tf.train.Example`: lists of texts, of floats or of whole numbers, by key.

    Raises:
        EpisodeError: `payload` is not such a message.
    """

    def __init__(self, payload: bytes) -> None:
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        message = _example_type()()
        try:
            message.ParseFromString(payload)
        except DecodeError as error:
            raise EpisodeError(f"it is not a tf.train.Example ({error}). Write records of that type.") from error
        self._features: Any = message.features.feature

    def __iter__(self) -> Iterator[str]:
        """All keys, sorted."""
        return iter(sorted(self._features))

    def __contains__(self, key: str) -> bool:
        return key in self._features

    def texts(self, key: str) -> Sequence[bytes]:
        """Byte strings under `key`.

        Raises:
            EpisodeError: no such key, or it holds numbers.
        """
        kind, values = self._values(key)
        if kind not in ("bytes_list", None):
            raise EpisodeError(f"key {key!r} holds {kind}; it must hold bytes_list. Write it as bytes.")
        return values

    def numbers(self, key: str) -> npt.NDArray[np.float32] | npt.NDArray[np.int64]:
        """Numbers (N,) under `key`.

        Raises:
            EpisodeError: no such key, or it holds byte strings.
        """
        kind, values = self._values(key)
        if kind == "bytes_list":
            raise EpisodeError(f"key {key!r} holds bytes_list; it must hold numbers. Write it as floats or int64.")
        if kind == "int64_list":
            return np.fromiter(values, np.int64, len(values))
        return np.fromiter(values, np.float32, len(values))

    def _values(self, key: str) -> tuple[str | None, Sequence[Any]]:
        if key not in self._features:
            raise EpisodeError(unknown_name("key", key, self._features) + " Write every key in every record.")
        feature = self._features[key]
        kind = feature.WhichOneof("kind")
        return kind, () if kind is None else getattr(feature, kind).value


def index_records(path: Path) -> list[Span]:
    """Where the records of a file lie, in its order; payloads are not read.

    A damaged or cut record, or a stretch that cannot be read, is one span with a fault, and so is a file of no bytes.

    Raises:
        EpisodeError: there is no such file, or it cannot be read. The message begins with the path.
    """
    with opened(path) as (file, size):
        if size == 0:
            return [Span(0, 0, f"0 bytes; a file of records has at least one. {_COPY}")]
        spans: list[Span] = []
        position = searches = 0
        while position < size:
            file.seek(position)
            header = file.read(_HEADER)
            span = _span(header, position, size)
            if span.fault is None:
                spans.append(span)
                position = span.start + span.length + _FOOTER
                continue
            # Where bytes are missing, the next record may begin within the one that is thought to lie before it.
            before = span.start if _is_header(header) else spans[-1].start if spans else 1
            searches += 1
            position = _next_record(file, before, size) if searches <= _MOST_SEARCHES else size
            if position >= span.start or not spans:
                spans.append(span)
        return spans


def read_record(path: Path, span: Span) -> bytes:
    """Payload of one record, once its checksum is right.

    Raises:
        EpisodeError: it is damaged, or larger than memory. The message begins with the path.
    """
    if span.fault is not None:
        raise EpisodeError(f"{path}: {span.fault}")
    free = free_memory(torch.device("cpu"))
    if free is not None and _TIMES_IN_MEMORY * span.length > free:
        raise EpisodeError(
            f"{path}: the record at byte {span.start - _HEADER} has {span.length / 1e9:.3g} GB and takes "
            f"{_TIMES_IN_MEMORY} times as much memory; {free / 1e9:.3g} GB are free. Free some, or shorten the episode."
        )
    with opened(path) as (file, _):
        file.seek(span.start)
        payload, footer = file.read(span.length), file.read(_FOOTER)
    if len(payload) < span.length or len(footer) < _FOOTER or _masked_crc(payload) != _u32(footer):
        raise EpisodeError(
            f"{path}: the record at byte {span.start - _HEADER} is damaged: its {span.length} bytes do not have the "
            f"checksum (CRC-32C) that follows them. {_COPY}"
        )
    return payload


def read_example(path: Path, span: Span) -> Example:
    """The message in one record.

    Raises:
        EpisodeError: as `read_record`, or the payload is not such a message. The message begins with the path.
    """
    payload = read_record(path, span)
    try:
        return Example(payload)
    except EpisodeError as error:
        raise EpisodeError(f"{path}: the record at byte {span.start - _HEADER}: {error}") from error


@contextmanager
def naming_record(path: Path, number: int) -> Iterator[None]:
    """Errors of the block begin with the path and say which record of the file they are about."""
    try:
        yield
    except EpisodeError as error:
        raise EpisodeError(f"{path}: record {number}: {str(error).removeprefix(f'{path}: ')}") from error


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A file and its size in bytes; what the system refuses while it is open is an `EpisodeError` that names it."""
    look_at(path, EpisodeError)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise EpisodeError(f"{path}: this is no file; records lie in a file. Copy or download it.")
        with open(path, "rb") as file:
            yield file, status.st_size
    except FileNotFoundError as error:
        raise EpisodeError(f"{path}: no such file. Copy or download it.") from error
    except OSError as error:
        reason = error.strerror or error
        raise EpisodeError(f"{path}: cannot be read ({reason}). Change its permissions, or copy it again.") from error


def _span(header: bytes, position: int, size: int) -> Span:
    start = position + _HEADER
    if position == 0 and header[:2] == b"\x1f\x8b":
        return Span(start, 0, "compressed with gzip; records are read uncompressed. Decompress the file with gunzip.")
    if len(header) < _HEADER:
        cause = f"{len(header)} bytes are left at byte {position}; a record has 16 at least"
        return Span(start, 0, f"truncated: {cause}. {_COPY}")
    if not _is_header(header):
        cause = f"no record begins at byte {position}: the checksum of its length is wrong"
        return Span(start, 0, f"damaged: {cause}. {_COPY}")
    length = int.from_bytes(header[:8], "little")
    left = size - start - _FOOTER
    if length > left:
        claim = f"the record at byte {position} claims {length} bytes and {max(left, 0)} are left"
        return Span(start, 0, f"truncated: {claim} of {size}. {_COPY}")
    return Span(start, length)


def _is_header(header: bytes) -> bool:
    return len(header) == _HEADER and _masked_crc(header[:8]) == _u32(header[8:])


def _next_record(file: BinaryIO, position: int, size: int) -> int:
    """Where the first record begins at or after `position` that lies in the file; `size` if none does."""
    searched, most = _SEARCHED
    while position + _HEADER + _FOOTER <= size:
        file.seek(position)
        chunk = file.read(searched + _HEADER - 1)
        for offset in _header_offsets(chunk):
            length = int.from_bytes(chunk[offset : offset + 8], "little")
            if position + offset + _HEADER + length + _FOOTER <= size:
                return position + offset
        position += searched
        searched = min(2 * searched, most)
    return size


def _header_offsets(chunk: bytes) -> list[int]:
    """Where in `chunk` 8 bytes are a length other than 0 with the checksum behind it; sorted.

    Lengths of 2^40 and more count as chance.
    """
    table = _crc_table()
    found: list[int] = []
    for phase in range(min(8, max(0, len(chunk) - _HEADER + 1))):
        count = (len(chunk) - _HEADER - phase) // 8 + 1
        lengths = np.frombuffer(chunk, "<u8", count, phase)
        offsets = np.flatnonzero((lengths > 0) & (lengths < 1 << 40)) * 8 + phase
        values = np.frombuffer(chunk, np.uint8)
        crc = np.full(len(offsets), 0xFFFFFFFF, np.uint32)
        for byte in range(8):
            crc = table[(crc ^ values[offsets + byte]) & 0xFF] ^ (crc >> 8)
        crc = ~crc
        masked = ((crc >> _ROTATION) | (crc << (32 - _ROTATION))) + np.uint32(_MASK)
        stored = sum((values[offsets + 8 + byte].astype(np.uint32) << 8 * byte for byte in range(4)), np.uint32(0))
        found.extend(offsets[masked == stored].tolist())
    return sorted(found)


@cache
def _crc_table() -> npt.NDArray[np.uint32]:
    table: npt.NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> 1) ^ 0x82F63B78, table >> 1).astype(np.uint32)
    return table


def _masked_crc(data: bytes) -> int:
    import google_crc32c

    crc = google_crc32c.value(data)
    return ((crc >> _ROTATION | crc << (32 - _ROTATION)) + _MASK) & 0xFFFFFFFF


def _u32(data: bytes) -> int:
    return int(struct.unpack("<I", data)[0])


@cache
def _example_type() -> Any:
    """The message class, in a pool of its own: TensorFlow, where it is loaded, registers the same names."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")

    def add(parent: Any, name: str, number: int, kind: int, repeated: bool = False, message: str = "") -> Any:
        label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
        return parent.field.add(name=name, number=number, type=kind, label=label, type_name=message or None)

    kinds = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in kinds.items():
        add(file.message_type.add(name=name), "value", 1, kind, repeated=True)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(kinds, 1):
        key = name.removesuffix("List").lower() + "_list"
        add(feature, key, number, field.TYPE_MESSAGE, message=f".tensorflow.{name}").oneof_index = 0
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, message=".tensorflow.Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, True, ".tensorflow.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    add(example, "features", 1, field.TYPE_MESSAGE, message=".tensorflow.Features")

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))
