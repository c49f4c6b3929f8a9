"""From a foreign data set to a store: shard by shard, in several processes, on several machines, killed or not.

Which recordings a shard holds follows from the plan alone, and a shard is done when its report is there. A conversion
that was killed goes on with the shards that are missing; broken recordings are tried again, so that a mended source
is converted by the same command.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from ivideogpt.data.formats import open_source
from ivideogpt.data.shard import Encoding, ShardReport, read_report, write_shard
from ivideogpt.data.sources.recording import Frames, Recording, Source
from ivideogpt.errors import ConfigError, EpisodeError, OutputError
from ivideogpt.files import repair_folder, write_text_atomically

PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Plan:
    """What decides every byte of a store.

    Attributes:
        source: absolute path of the data set.
        format: of `formats.FORMATS`.
        recordings: in the source.
        split: only this one of the source.
        encoding: of the frames.
        side: of the square frames, pixels; None keeps them as they are.
        shard_episodes: recordings a shard.
        swap_colours: whether the source has red and blue swapped.
    """

    source: str
    format: str
    recordings: int
    split: str | None = None
    encoding: Encoding = "jpeg"
    side: int | None = None
    shard_episodes: int = 64
    swap_colours: bool = False

    @property
    def shards(self) -> int:
        """Shards of the store."""
        return -(-self.recordings // self.shard_episodes)

    def recordings_of(self, shard: int) -> range:
        """Which recordings shard number `shard` holds."""
        return range(shard * self.shard_episodes, min((shard + 1) * self.shard_episodes, self.recordings))


@dataclass(frozen=True)
class ShardDone:
    """Yielded for each shard, whether it was written now or before."""

    shard: int
    report: ShardReport
    written: bool


def shard_path(store: Path, shard: int) -> Path:
    """Where shard number `shard` of a store lies."""
    return store / "shards" / f"{shard:06d}.safetensors"


def begin(store: Path, plan: Plan, *, alone: bool = True) -> None:
    """Write the plan into a new store, or find it there already.

    Args:
        store: folder of the store.
        plan: what will be written.
        alone: whether nobody else converts into it now, so that what a kill left can be cleared away.

    Raises:
        OutputError: another plan is there, or the folder holds something else.
    """
    file = store / PLAN_FILE
    if file.is_file():
        try:
            found = json.loads(file.read_text())
        except ValueError as error:
            raise OutputError(f"{file} is damaged ({error}). Convert into another folder.") from error
        differing = [
            f"{name} was {found.get(name)!r}, now {value!r}"
            for name, value in asdict(plan).items()
            if found.get(name) != value
        ]
        if differing:
            raise OutputError(
                f"{store} was begun with another plan: {'; '.join(differing)}. Convert into another folder, or with "
                "the old settings."
            )
        for folder in (store, store / "shards") if alone else ():
            repair_folder(folder)
        return
    if store.is_dir() and any(not entry.name.startswith(".") for entry in store.iterdir()):
        raise OutputError(
            f"output folder {store} exists and is not empty, and holds no {PLAN_FILE}. Choose another one."
        )
    write_text_atomically(file, json.dumps(asdict(plan), indent=1) + "\n")


def convert(store: Path, plan: Plan, workers: int = 1, part: tuple[int, int] = (0, 1)) -> Iterator[ShardDone]:
    """Write the shards of a store that are missing or hold broken recordings.

    Args:
        store: folder in which `begin` has been.
        plan: what to write.
        workers: processes; 1 works in this one.
        part: (i, n): every n-th shard from the i-th on, for machine i of n.

    Yields:
        Each shard of the part once, in any order.

    Raises:
        ConfigError: a part or a number of workers that does not exist.
        OutputError: the disk is full, or the place cannot be written.
    """
    if workers < 1 or not 0 <= part[0] < part[1]:
        raise ConfigError(
            f"workers is {workers} and part {part[0]} of {part[1]}; workers are at least 1, parts 0..n-1."
        )
    todo: list[int] = []
    for shard in range(part[0], plan.shards, part[1]):
        report = read_report(shard_path(store, shard))
        if report is not None and not report.broken and shard_path(store, shard).is_file():
            yield ShardDone(shard, report, written=False)
        else:
            todo.append(shard)
    if workers == 1 or len(todo) < 2:
        yield from (_convert_shard(store, plan, shard) for shard in todo)
        return
    with ProcessPoolExecutor(min(workers, len(todo)), multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_convert_shard, store, plan, shard) for shard in todo}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _convert_shard(store: Path, plan: Plan, shard: int) -> ShardDone:
    recordings = _read(_source(plan.source, plan.format, plan.split), plan.recordings_of(shard), plan.swap_colours)
    report = write_shard(shard_path(store, shard), recordings, plan.encoding, plan.side)
    return ShardDone(shard, report, written=True)


@functools.lru_cache(maxsize=1)
def _source(path: str, format: str, split: str | None) -> Source:
    """Opened once in each process: numbering a large data set takes its time."""
    return open_source(path, format, split)[1]


def _read(source: Source, indices: range, swap_colours: bool) -> Iterator[Recording | tuple[str, str]]:
    for index in indices:
        try:
            recording = source.read(index)
            yield _swapped(recording) if swap_colours else recording
        except EpisodeError as error:
            yield source.name(index), str(error)


def _swapped(recording: Recording) -> Recording:
    """The same with red and blue in each other's place."""

    def of(frames: Frames) -> Frames:
        return lambda: (np.ascontiguousarray(frame[..., ::-1]) for frame in frames())

    return replace(recording, cameras={name: of(frames) for name, frames in recording.cameras.items()})
