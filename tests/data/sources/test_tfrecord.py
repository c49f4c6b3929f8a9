from __future__ import annotations

import random
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from ivideogpt.data.sources.tfrecord import Example, index_records, read_example, read_record
from ivideogpt.errors import EpisodeError

Values = Sequence[bytes] | Sequence[float] | Sequence[int]


def remainder(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


REMAINDERS = [remainder(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    """The checksum byte by byte, masked as in TFRecord files."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ REMAINDERS[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def record(payload: bytes) -> bytes:
    """A payload between its length and its checksum."""
    length = struct.pack("<Q", len(payload))
    return length + struct.pack("<I", crc32c(length)) + payload + struct.pack("<I", crc32c(payload))


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, data: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(data)) + data


def example(features: Mapping[str, Values], packed: bool = True) -> bytes:
    """A tf.train.Example, by the wire format: texts in field 1, floats in field 2, whole numbers in field 3."""
    entries = b""
    for key, values in features.items():
        if not len(values):
            feature = b""
        elif isinstance(values[0], bytes):
            feature = field(1, b"".join(field(1, value) for value in values if isinstance(value, bytes)))
        elif isinstance(values[0], float):
            one = [struct.pack("<f", value) for value in values]
            feature = field(2, field(1, b"".join(one)) if packed else b"".join(b"\x0d" + value for value in one))
        else:
            one = [varint(int(value)) for value in values]
            feature = field(3, field(1, b"".join(one)) if packed else b"".join(b"\x08" + value for value in one))
        entries += field(1, field(1, key.encode()) + field(2, feature))
    return field(1, entries)


def mutants(data: bytes, count: int, seed: int = 0) -> list[bytes]:
    """Damaged copies: truncated, bits flipped, emptied, ranges overwritten or taken out."""
    chance = random.Random(seed)
    made = [b""]
    while len(made) < count:
        copy = bytearray(data)
        at, length = chance.randrange(len(data)), chance.randrange(1, 64)
        kind = chance.randrange(5)
        if kind == 0:
            del copy[at:]
        elif kind == 1:
            copy[at] ^= 1 << chance.randrange(8)
        elif kind == 2:
            copy[at : at + length] = chance.randbytes(length)
        elif kind == 3:
            copy[at : at + length] = bytes(length)
        else:
            del copy[at : at + length]
        made.append(bytes(copy))
    return made


PAYLOADS = [example({"a": [float(n), 2.5], "b": [n, -1], "c": [b"x" * n, b""], "none": []}) for n in range(1, 5)]
RECORDS = [record(payload) for payload in PAYLOADS]


def save(folder: Path, data: bytes) -> Path:
    path = folder / "some.tfrecord"
    path.write_bytes(data)
    return path


def whole(path: Path) -> list[bytes]:
    """The records that can be read."""
    read = []
    for span in index_records(path):
        try:
            read.append(read_record(path, span))
        except EpisodeError as error:
            assert str(error).startswith(f"{path}: ")
    return read


def test_checksum_of_the_standard() -> None:
    assert crc32c(b"123456789") == ((0xE3069283 >> 15 | 0xE3069283 << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize("packed", [True, False])
def test_lists_of_each_type(packed: bool) -> None:
    features: dict[str, Values] = {"f": [1.5, -0.25], "i": [1, -3, 2**40], "t": [b"\xff\x00", b""], "none": []}
    message = Example(example(features, packed))
    assert list(message) == ["f", "i", "none", "t"]
    np.testing.assert_array_equal(message.numbers("f"), np.array([1.5, -0.25], np.float32))
    np.testing.assert_array_equal(message.numbers("i"), [1, -3, 2**40])
    assert list(message.texts("t")) == [b"\xff\x00", b""]
    assert len(message.numbers("none")) == len(message.texts("none")) == 0
    assert message.numbers("f").dtype == np.float32
    assert message.numbers("i").dtype == np.int64


def test_wrong_keys_and_types() -> None:
    message = Example(example({"state": [1.0], "text": [b"x"]}))
    with pytest.raises(EpisodeError, match=r"unknown key 'sate'. Did you mean 'state'\?"):
        message.numbers("sate")
    with pytest.raises(EpisodeError, match="'text' holds bytes_list; it must hold numbers"):
        message.numbers("text")
    with pytest.raises(EpisodeError, match="'state' holds float_list; it must hold bytes_list"):
        message.texts("state")


def test_records_in_order(tmp_path: Path) -> None:
    path = save(tmp_path, b"".join(RECORDS))
    assert whole(path) == PAYLOADS
    numbers = [read_example(path, span).numbers("a")[0] for span in index_records(path)]
    assert numbers == [1, 2, 3, 4]


def test_index_reads_no_payload(tmp_path: Path) -> None:
    header = record(bytes(1 << 10))[:12]
    length = struct.pack("<Q", 3 << 30)
    path = tmp_path / "large.tfrecord"
    with open(path, "wb") as file:  # a hole of 3 GB
        file.write(length + struct.pack("<I", crc32c(length)))
        file.seek(12 + (3 << 30) + 4)
        file.write(header + bytes((1 << 10) + 4))
    started = time.monotonic()
    assert [span.length for span in index_records(path)] == [3 << 30, 1 << 10]
    assert time.monotonic() - started < 1


def test_truncated(tmp_path: Path) -> None:
    path = save(tmp_path, b"".join(RECORDS)[:-7])
    *good, cut = index_records(path)
    assert [read_record(path, span) for span in good] == PAYLOADS[:3]
    with pytest.raises(EpisodeError, match=rf"truncated: the record at byte \d+ claims {len(PAYLOADS[3])} bytes"):
        read_record(path, cut)


def test_claim_beyond_the_file(tmp_path: Path) -> None:
    length = struct.pack("<Q", 1 << 62)
    path = save(tmp_path, RECORDS[0] + length + struct.pack("<I", crc32c(length)) + b"x" * 50)
    assert whole(path) == PAYLOADS[:1]
    assert len(index_records(path)) == 2


def test_flipped_bit_in_a_payload(tmp_path: Path) -> None:
    data = bytearray(b"".join(RECORDS))
    data[len(RECORDS[0]) + 20] ^= 4
    path = save(tmp_path, bytes(data))
    assert whole(path) == [PAYLOADS[0], *PAYLOADS[2:]]
    with pytest.raises(EpisodeError, match=r"damaged: its \d+ bytes do not have the checksum"):
        read_record(path, index_records(path)[1])


@pytest.mark.parametrize("byte", range(12))
def test_records_behind_a_damaged_length_are_found(tmp_path: Path, byte: int) -> None:
    data = bytearray(b"".join(RECORDS))
    data[len(RECORDS[0]) + byte] ^= 1
    path = save(tmp_path, bytes(data))
    assert whole(path) == [PAYLOADS[0], *PAYLOADS[2:]]
    assert len(index_records(path)) == 4


def test_records_behind_missing_bytes_are_found(tmp_path: Path) -> None:
    first, *others = RECORDS
    path = save(tmp_path, first[:20] + first[30:] + b"".join(others))
    assert whole(path) == PAYLOADS[1:]
    assert len(index_records(path)) == 4


def test_zeros_are_no_records(tmp_path: Path) -> None:
    path = save(tmp_path, RECORDS[0] + bytes(3 << 20) + RECORDS[1])
    assert whole(path) == PAYLOADS[:2]
    assert len(index_records(path)) == 3


def test_other_faults(tmp_path: Path) -> None:
    assert [span.fault for span in index_records(save(tmp_path, b""))] == [
        "0 bytes; a file of records has at least one. Copy or download the file again."
    ]
    (fault,) = [span.fault for span in index_records(save(tmp_path, b"\x1f\x8b\x08" + bytes(40)))]
    assert fault is not None
    assert "gunzip" in fault
    path = save(tmp_path, record(b"\x0a\xff\xff"))
    with pytest.raises(EpisodeError, match="the record at byte 0: it is not a"):
        read_example(path, index_records(path)[0])
    with pytest.raises(EpisodeError, match=r"nothing: no such file\. Copy or download it\."):
        index_records(tmp_path / "nothing")
    with pytest.raises(EpisodeError, match="this is no file"):
        index_records(tmp_path)


def test_larger_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, RECORDS[0])
    monkeypatch.setattr("ivideogpt.data.sources.tfrecord.free_memory", lambda device: 10)
    with pytest.raises(EpisodeError, match="3 times as much memory"):
        read_record(path, index_records(path)[0])


def test_fuzz(tmp_path: Path) -> None:
    data = b"".join(RECORDS)
    for mutant in mutants(data, 300):
        path = save(tmp_path, mutant)
        read = whole(path)
        assert set(read) <= set(PAYLOADS)
        # Whatever is whole in the bytes is read.
        assert [payload for payload, framed in zip(PAYLOADS, RECORDS, strict=True) if framed in mutant] == read
