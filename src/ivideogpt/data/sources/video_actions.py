"""Actions that lie beside a video, in a table with the same stem: `.npy`, `.parquet` or `.csv`."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ivideogpt.data.sources.recording import as_track
from ivideogpt.devices import free_memory
from ivideogpt.errors import EpisodeError
from ivideogpt.files import look_at

ACTION_SUFFIXES = (".npy", ".parquet", ".csv")
_ACTION_COLUMNS = ("action", "actions")
_PANDAS_INDEX = "__index_level_"


@dataclass(frozen=True, eq=False)
class Actions:
    """Actions of one video.

    Attributes:
        values: (T, A) float32, a row for each frame.
        parts: names and widths of the columns; empty where the table has none.
    """

    values: npt.NDArray[np.float32]
    parts: tuple[tuple[str, int], ...]


def actions_beside(video: Path) -> Path | None:
    """The table of a video's actions, or None.

    Raises:
        EpisodeError: there are several.
    """
    found = [path for suffix in ACTION_SUFFIXES if (path := look_at(video.with_suffix(suffix), EpisodeError)).is_file()]
    if len(found) > 1:
        raise EpisodeError(
            f"{found[0]}: {' and '.join(path.name for path in found)} lie beside {video.name}; one table of actions is "
            "allowed. Move the others away."
        )
    return found[0] if found else None


def read_actions(path: Path, frames: int) -> Actions:
    """Actions of a video of `frames` frames, T or T - 1 rows; of the latter the last is repeated, which is never used.

    A header of a `.csv` names the columns. Of a `.parquet` the column `action` or `actions` is taken where there is
    one, else all in their order; a column may hold lists of one length.

    Raises:
        EpisodeError: the table is missing, damaged, has another number of rows, or holds something else than finite
            numbers. The message begins with the path.
    """
    readers = {".npy": _read_npy, ".parquet": _read_parquet, ".csv": _read_csv}
    try:
        values, parts = readers[path.suffix](path, frames)
        track = as_track("actions", values, None)
        _require_rows(len(track), frames)
        if not len(track):
            raise EpisodeError("actions have no row. Record them, or move the file away.")
    except EpisodeError as error:
        raise EpisodeError(f"{path}: {error}") from error
    except PermissionError as error:
        raise EpisodeError(f"{path}: no permission to read it. Change its permissions or copy it.") from error
    except Exception as error:  # what readers of three formats raise on damage has no common base
        raise EpisodeError(f"{path}: damaged ({error}). Copy or record it again.") from error
    if len(track) < frames:
        track = np.concatenate([track, track[-1:]])
    return Actions(track, parts)


def _require_rows(rows: int, frames: int) -> None:
    if rows not in (frames, frames - 1):
        raise EpisodeError(
            f"actions have {rows} rows for {frames} frames; there must be one a frame, or one fewer. Cut the table and "
            "the video to the same length."
        )


def _require_memory(needed: int) -> None:
    free = free_memory(torch.device("cpu"))
    if free is not None and needed > free:
        raise EpisodeError(
            f"claims to hold {needed / 1e9:.3g} GB; {free / 1e9:.3g} GB of memory are free. Record it again, or in "
            "shorter episodes."
        )


def _read_npy(path: Path, frames: int) -> tuple[npt.NDArray[Any], tuple[tuple[str, int], ...]]:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)  # a size beyond the file's is refused
    if not isinstance(mapped, np.ndarray):
        raise EpisodeError("this is an archive of arrays. Save one plain array with numpy.save.")
    if mapped.ndim not in (1, 2):
        raise EpisodeError(f"actions have shape {mapped.shape}; they must be (T, A). Reshape them.")
    _require_rows(len(mapped), frames)
    _require_memory(2 * mapped.nbytes)
    return np.array(mapped), ()


def _read_csv(path: Path, frames: int) -> tuple[npt.NDArray[Any], tuple[tuple[str, int], ...]]:
    _require_memory(20 * path.stat().st_size)
    with open(path, encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        if not first.strip():
            raise EpisodeError("empty. Record the actions, or move the file away.")
        delimiter = max(",;\t", key=first.count)
        lines = csv.reader(io.StringIO(first + file.read()), delimiter=delimiter, skipinitialspace=True)
        rows = [(lines.line_num, row) for row in lines if any(cell.strip() for cell in row)]
    if not rows:
        raise EpisodeError("no number in it. Record the actions, or move the file away.")
    names: list[str] = []
    if any(_number(cell) is None for cell in rows[0][1]):
        names = [cell.strip() for cell in rows.pop(0)[1]]
        _require_names(names)
    _require_rows(len(rows), frames)
    width = len(names) if names else len(rows[0][1]) if rows else 0
    values = np.zeros((len(rows), width), np.float64)
    for row, (line, cells) in enumerate(rows):
        if len(cells) != width:
            raise EpisodeError(f"line {line} has {len(cells)} columns, and the first {width}. Fill the table.")
        for column, cell in enumerate(cells):
            number = _number(cell)
            if number is None:
                raise EpisodeError(f"line {line}, column {column + 1} is {cell!r}; it must be a number. Mend it.")
            values[row, column] = number
    return values, tuple((name, 1) for name in names)


def _require_names(names: list[str]) -> None:
    if "" in names:
        raise EpisodeError(
            f"column {names.index('') + 1} has no name in the header; an index must not be among the actions. Save it "
            "without the index (pandas: index=False), or name the column."
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise EpisodeError(f"two columns are called {twice!r}; each must have a name of its own. Rename one.")
    if all(_number(name) is not None for name in names[1:]) and len(names) > 1:
        raise EpisodeError(f"the first line begins with {names[0]!r}; it must be all numbers, or all names. Mend it.")


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _read_parquet(path: Path, frames: int) -> tuple[npt.NDArray[Any], tuple[tuple[str, int], ...]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped, unused-ignore]

    with pq.ParquetFile(path) as file:
        _require_rows(file.metadata.num_rows, frames)
        groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
        _require_memory(2 * sum(max(0, group.total_byte_size) for group in groups))
        names = [name for name in file.schema_arrow.names if not name.startswith(_PANDAS_INDEX)]
        names = [name for name in _ACTION_COLUMNS if name in names][:1] or names
        if not names:
            raise EpisodeError("no column in it. Save the actions as columns of numbers.")
        table = file.read(columns=names)
    table.validate(full=True)
    columns = []
    for name in names:
        try:
            columns.append(as_track(f"column {name!r}", table.column(name).to_pylist(), table.num_rows))
        except (EpisodeError, ValueError) as error:
            raise EpisodeError(f"{error} Only columns of numbers may be in it, without gaps.") from error
    return np.concatenate(columns, axis=1), tuple(
        (name, column.shape[1]) for name, column in zip(names, columns, strict=True)
    )
