"""Parquet tables of a LeRobot data set: the rows of one episode, and pictures in a column, a few at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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

_ROWS = 1024  # numbers of so many rows are in memory at a time, apart from those of the episode
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
        with pq.ParquetFile(path, buffer_size=_BUFFER, **_LIMITS) as file:
            yield file


def read_rows(
    path: Path, number: int, length: int, required: Sequence[str], optional: Sequence[str], *, whole: bool
) -> Rows:
    """Numbers of one episode; of the file only the row groups are read that hold it, and the columns asked for.

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
    with opened(path) as file:
        present = file.schema_arrow.names
        missing = [name for name in required if name not in present]
        if missing or (not whole and EPISODE not in present):
            raise EpisodeError(
                f"no column {(missing or [EPISODE])[0]!r}; there are {', '.join(present) or 'none'}. "
                "Mend the table, or take the feature out of meta/info.json."
            )
        wanted = [*required, *(name for name in optional if name in present)]
        read = [*wanted, *([EPISODE] if EPISODE in present else [])] or present[:1]
        spans: list[Span] = []
        kept: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in wanted}
        for group in _groups(file, number, whole):
            begin = 0
            for batch in file.iter_batches(_ROWS, row_groups=[group], columns=read, use_threads=False):
                batch.validate(full=True)
                here = _places(batch, number, begin, whole)
                if here is not None:
                    spans.append(Span(group, begin + here.start, begin + here.stop))
                    _require_rows(sum(span.stop - span.start for span in spans), number, length, more=True)
                    for name in wanted:
                        kept[name].append(_numbers(name, batch.column(name)[here.start : here.stop]))
                    _require_memory(kept, length)
                begin += batch.num_rows
        _require_rows(sum(span.stop - span.start for span in spans), number, length)
        return Rows({name: _joined(name, parts) for name, parts in kept.items()}, tuple(spans), length)


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
        for span in _merged(spans):
            for data in _pictures(file, key, span, root):
                frame = decode_image(data, f"row {row} of the episode in column {key!r}")
                size = size or frame.shape
                if frame.shape != size:
                    raise EpisodeError(
                        f"row {row} of the episode in column {key!r} is {frame.shape[1]} x {frame.shape[0]} and the "
                        f"first {size[1]} x {size[0]}; all must have one size. Bring them to one."
                    )
                yield frame
                row += 1


def _groups(file: Any, number: int, whole: bool) -> Iterator[int]:
    """Row groups that may hold rows of an episode, by their statistics."""
    meta = file.metadata
    for group in range(meta.num_row_groups):
        chunks = meta.row_group(group)
        column = next((c for c in range(chunks.num_columns) if chunks.column(c).path_in_schema == EPISODE), None)
        statistics = None if column is None or whole else chunks.column(column).statistics
        if statistics is None or not statistics.has_min_max or statistics.min <= number <= statistics.max:
            yield group


def _places(batch: Any, number: int, begin: int, whole: bool) -> slice | None:
    """Where in a batch the episode lies, in one piece; None if not in it."""
    if EPISODE not in batch.schema.names:
        return slice(0, batch.num_rows) if batch.num_rows else None
    column = batch.column(EPISODE)
    episodes = _numbers(EPISODE, column)[:, 0]
    rows = np.flatnonzero(episodes == number)
    if whole and len(rows) < len(episodes):
        row = int(np.flatnonzero(episodes != number)[0])
        raise EpisodeError(
            f"{EPISODE} of row {begin + row} is {episodes[row]}; the file is that of episode {number}. "
            "Copy the right file to its place."
        )
    if len(rows) and rows[-1] - rows[0] + 1 != len(rows):
        raise EpisodeError(
            f"rows of episode {number} lie apart, from row {begin + rows[0]} on; they must follow each other. "
            f"Sort the table by {EPISODE} and frame_index."
        )
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else None


def _require_rows(rows: int, number: int, length: int, *, more: bool = False) -> None:
    if rows > length or (rows < length and not more):
        found = "more" if more else rows
        raise EpisodeError(
            f"{found} rows of episode {number}, and {length} by meta; there must be as many. Copy the data set again."
        )


def _require_memory(kept: dict[str, list[npt.NDArray[Any]]], length: int) -> None:
    if any(len(parts) > 1 for parts in kept.values()):
        return  # compared with the first part
    needed = 2 * length * sum(parts[0].shape[1] * parts[0].itemsize for parts in kept.values() if parts)
    if needed < 2**26:
        return
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


def _merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Spans of one group that follow each other as one."""
    waiting: Span | None = None
    for span in spans:
        if waiting is not None and waiting.group == span.group and waiting.stop == span.start:
            waiting = Span(span.group, waiting.start, span.stop)
            continue
        if waiting is not None:
            yield waiting
        waiting = span
    if waiting is not None:
        yield waiting


def _pictures(file: Any, key: str, span: Span, root: Path) -> Iterator[bytes]:
    begin = 0
    for batch in file.iter_batches(_PICTURES, row_groups=[span.group], columns=[key], use_threads=False):
        if begin >= span.stop:
            return
        rows = slice(max(0, span.start - begin), min(batch.num_rows, span.stop - begin))
        if rows.start < rows.stop:
            column = batch.column(key)[rows]
            column.validate(full=True)
            yield from (_bytes(value, key, root) for value in column.to_pylist())
        begin += batch.num_rows
    if begin < span.stop:
        raise EpisodeError(f"column {key!r} ends at row {begin}; it must reach to row {span.stop}. Copy it again.")


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
