"""Parquet tables of a LeRobot data set: the rows of one episode, and pictures in a column, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.data.sources.images import decode_image
from ivideogpt.data.sources.recording import Frame
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError

EPISODE = "episode_index"

_NOBODY = -1  # of rows that name no episode
_NARROW = 2**16  # rows of one column that are in memory at a time
_ROWS = 1024  # rows of all columns, apart from those of the episode
_PICTURES = 4
_BUFFER = 2**18  # bytes that are read ahead, so that a column of pictures is not read as a whole
_LIMITS = {"thrift_string_size_limit": 2**26, "thrift_container_size_limit": 2**22}


@dataclass(frozen=True)
class Span:
    """Rows `start` to `stop` of a row group, of one episode."""

    group: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of one episode: columns of numbers (T, size), and where in the file they lie."""

    columns: dict[str, npt.NDArray[Any]]
    spans: tuple[Span, ...]
    length: int


@dataclass(frozen=True)
class _Index:
    """Spans by episode, those whose rows lie apart, and whether a column names the episodes at all."""

    spans: dict[int, tuple[Span, ...]]
    apart: frozenset[int]
    named: bool


@contextmanager
def faults_of(path: Path) -> Iterator[None]:
    """A block in which every fault is an `EpisodeError` that begins with the path."""
    try:
        yield
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except Exception as error:  # what pyarrow raises on damage has no common base
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise EpisodeError(f"{path}: damaged ({reason}). Copy or record it again.") from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A parquet file, open for the length of the block, in which faults are those of the file."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    with faults_of(path):
        if not path.is_file():
            raise EpisodeError("no such file. Copy the data set again.")
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, **_LIMITS) as file:
            yield file


def read_rows(
    path: Path, number: int, length: int, required: Sequence[str], optional: Sequence[str], *, whole: bool
) -> Rows:
    """Numbers of one episode; of the file only the row groups that hold it are read, and the columns asked for.

    Args:
        path: a table.
        number: of the episode.
        length: rows it must have.
        required: columns that must be there.
        optional: columns that are left out where they are missing.
        whole: whether the table must hold no other episode.

    Raises:
        EpisodeError: the table is missing or damaged, lacks a column, or holds another number of rows.
    """
    spans = _spans(path, number, whole)
    _require_rows(sum(span.stop - span.start for span in spans), number, length, path)
    with opened(path) as file:
        present = file.schema_arrow.names
        missing = [name for name in required if name not in present]
        if missing:
            raise EpisodeError(
                f"no column {missing[0]!r}; there are {', '.join(present)}. Mend the table, or take the feature out of "
                "meta/info.json."
            )
        wanted = [*required, *(name for name in optional if name in present)]
        kept: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in wanted}
        for span in spans if wanted else ():
            for batch in _batches(file, span, wanted, _ROWS):
                for name in wanted:
                    kept[name].append(_numbers(name, batch.column(name)))
                _require_memory(kept, length)
        return Rows({name: _joined(name, parts) for name, parts in kept.items()}, spans, length)


def stream_images(path: Path, key: str, spans: Sequence[Span], root: Path) -> Iterator[Frame]:
    """Pictures of one episode in column `key`, a few in memory at a time.

    Each is `{bytes, path}`, or bytes alone; without bytes, the path is one below `root`.

    Raises:
        EpisodeError: on the way, where the table or a picture is missing or damaged, or sizes differ.
    """
    size: tuple[int, ...] | None = None
    row = 0
    with opened(path) as file:
        if key not in file.schema_arrow.names:
            raise EpisodeError(f"no column {key!r}; meta/info.json declares it. Copy the table again.")
        for span in spans:
            for batch in _batches(file, span, [key], _PICTURES):
                for value in batch.column(key).to_pylist():
                    frame = decode_image(_bytes(value, key, root), f"row {row} of the episode in column {key!r}")
                    size = size or frame.shape
                    if frame.shape != size:
                        raise EpisodeError(
                            f"row {row} of the episode in column {key!r} is {frame.shape[1]} x {frame.shape[0]} and "
                            f"the first {size[1]} x {size[0]}; all must have one size. Bring them to one."
                        )
                    yield frame
                    row += 1


def _spans(path: Path, number: int, whole: bool) -> tuple[Span, ...]:
    """Where in a table an episode lies."""
    with faults_of(path):
        if not path.is_file():
            raise EpisodeError("no such file. Copy the data set again.")
        status = path.stat()
    index = _index(path, status.st_size, status.st_mtime_ns)
    if not index.named:
        if whole:
            return index.spans.get(_NOBODY, ())
        raise EpisodeError(f"{path}: no column {EPISODE!r}, which tells episodes apart. Copy the table again.")
    others = sorted(other for other in index.spans if other != number)
    if whole and others:
        raise EpisodeError(
            f"{path}: holds rows of episode {others[0]}; it is the file of episode {number}. Copy the right file to "
            "its place."
        )
    if number in index.apart:
        raise EpisodeError(
            f"{path}: rows of episode {number} lie apart; they must follow each other. Sort the table by {EPISODE} and "
            "frame_index."
        )
    return index.spans.get(number, ())


@lru_cache(maxsize=16)
def _index(path: Path, size: int, changed: int) -> _Index:
    """Which rows belong to which episode, as long as the file does not change.

    It is told by the column and not by statistics, for which pyarrow ends the process where they are damaged.
    """
    spans: dict[int, list[Span]] = {}
    apart: set[int] = set()
    with opened(path) as file:
        schema = file.schema_arrow
        named = EPISODE in schema.names
        plain = [field.name for field in schema if field.type.num_fields == 0]
        column = EPISODE if named else (plain or schema.names or [EPISODE])[0]
        last: int | None = None
        for group in range(file.metadata.num_row_groups):
            begin = 0
            for batch in file.iter_batches(_NARROW, row_groups=[group], columns=[column], use_threads=False):
                batch.validate(full=True)
                episodes = _numbers(EPISODE, batch.column(EPISODE))[:, 0] if named else np.full(len(batch), _NOBODY)
                cuts = [0, *(np.flatnonzero(np.diff(episodes)) + 1).tolist(), len(episodes)]
                for start, stop in pairwise(cuts) if len(episodes) else ():
                    number = int(episodes[start])
                    held = spans.setdefault(number, [])
                    if held and last != number:
                        apart.add(number)
                    elif held and held[-1].group == group:
                        held[-1] = Span(group, held[-1].start, begin + stop)
                    else:
                        held.append(Span(group, begin + start, begin + stop))
                    last = number
                begin += len(batch)
    return _Index({number: tuple(held) for number, held in spans.items()}, frozenset(apart), named)


def _batches(file: Any, span: Span, columns: list[str], rows: int) -> Iterator[Any]:
    """Rows of a span, so many at a time."""
    begin = 0
    for batch in file.iter_batches(rows, row_groups=[span.group], columns=columns, use_threads=False):
        start, stop = max(0, span.start - begin), min(len(batch), span.stop - begin)
        if start < stop:
            part = batch.slice(start, stop - start)
            part.validate(full=True)
            yield part
        begin += len(batch)
        if begin >= span.stop:
            return
    raise EpisodeError(
        f"column {columns[0]!r} ends at row {begin} of row group {span.group}; it must reach to row {span.stop}. "
        "Copy the table again."
    )


def _require_rows(rows: int, number: int, length: int, path: Path) -> None:
    if rows != length:
        raise EpisodeError(
            f"{path}: {rows} rows of episode {number}, and {length} by meta; there must be as many. "
            "Copy the data set again."
        )


def _require_memory(kept: dict[str, list[npt.NDArray[Any]]], length: int) -> None:
    if any(len(parts) > 1 for parts in kept.values()):
        return  # compared with the first part
    needed = 2 * length * sum(parts[0].shape[1] * parts[0].itemsize for parts in kept.values() if parts)
    if needed < 2**26:
        return  # asking takes a moment
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise EpisodeError(
            f"the episode claims {length} rows, which take {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB of memory are "
            "free. Record shorter episodes."
        )


def _numbers(name: str, column: Any) -> npt.NDArray[Any]:
    """A column of numbers, or of lists of lists of them, as (rows, size)."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]

    rows, size = len(column), 1
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif isinstance(column, pa.DictionaryArray):
            column = column.dictionary_decode()
        if column.null_count:
            raise EpisodeError(f"column {name!r} has gaps; there must be a number in every row. Fill or cut them.")
        kind = column.type
        if pa.types.is_fixed_size_list(kind):
            size *= kind.list_size
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = np.diff(column.offsets.to_numpy(zero_copy_only=False))
            if len(lengths) and (lengths != lengths[0]).any():
                row = int(np.flatnonzero(lengths != lengths[0])[0])
                raise EpisodeError(
                    f"column {name!r} has {lengths[0]} numbers in one row and {lengths[row]} in another; all rows "
                    "must have as many. Record it again."
                )
            size *= int(lengths[0]) if len(lengths) else 1
        else:
            break
        column = column.flatten()
    if size == 0:
        raise EpisodeError(f"column {name!r} has no number in a row; it must have one at least. Take it out.")
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise EpisodeError(f"column {name!r} holds {kind}; it must hold real numbers. Save it as float32.")
    return np.asarray(column.to_numpy(zero_copy_only=False)).reshape(rows, size)


def _joined(name: str, parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    sizes = sorted({part.shape[1] for part in parts})
    if len(sizes) > 1:
        raise EpisodeError(
            f"column {name!r} has {sizes[0]} numbers in one row and {sizes[-1]} in another; all rows must have as "
            "many. Record it again."
        )
    return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)


def _bytes(value: object, key: str, root: Path) -> bytes:
    data = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(data, bytes):
        return data
    name = value.get("path") if isinstance(value, dict) else None
    if not isinstance(name, str) or not name:
        raise EpisodeError(
            f"column {key!r} has a row without a picture; each must be {{bytes, path}}. Record it again."
        )
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or not (root / relative).is_file():
        raise EpisodeError(
            f"column {key!r} names the picture {name!r}, which is no file of the data set. Copy its images, or save "
            "the data set with the pictures in the table."
        )
    return (root / relative).read_bytes()
