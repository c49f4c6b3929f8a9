"""`ivideogpt export`: a store, or a data set, into a format that others read."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field
from tyro.conf import Positional

from ivideogpt.cli.console import Progress, finish, progress, report
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ivideogpt.data.sources.recording import Recording, Source


class Options(BaseOptions):
    """Export a store, or a data set that `convert` reads, as a LeRobot v3.0 data set or as episode files (.npz).

    What was recorded from a simulator (`ivideogpt record`) is such a data set, too.
    """

    source: Positional[Path]
    """A store, or a data set."""
    format: Literal["lerobot", "npz"]
    """lerobot, v3.0 with videos; or npz, one file an episode."""
    out: Path
    """Folder for what is written."""
    camera_key: str | None = None
    """npz: whose frames; the only camera's where left out."""
    fps: float | None = Field(None, gt=0)
    """lerobot: frames a second; what the data say where left out."""
    robot: str = "unknown"
    """lerobot: the robot's type."""
    overwrite: bool = False
    """Replace what the folder holds."""
    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Export."""
    from ivideogpt.data.export import open_any, write_npz
    from ivideogpt.data.export_lerobot import write_lerobot
    from ivideogpt.files import require_free_output

    require_free_output(options.out, overwrite=options.overwrite)
    source = open_any(options.source)
    rate = None if options.format == "npz" else _rate(options, source)
    with progress(f"exporting {options.format}", len(source), "episode") as bar:
        recordings = _shown(source, bar)
        if rate is None:
            count = sum(1 for _ in write_npz(recordings, options.out, options.camera_key))
        else:
            count = write_lerobot(recordings, options.out, rate, options.robot)
    report({"format": options.format, "episodes": count} | ({} if rate is None else {"fps": rate}), options.as_json)
    back = f"ivideogpt convert {shlex.quote(str(options.out))} --out {shlex.quote(str(options.out) + '-store')}"
    finish([("data set", options.out)], [back], options.as_json)


def _rate(options: Options, source: Source) -> float:
    rate = options.fps or source.read(0).frame_rate
    if rate is None:
        raise ConfigError(f"{options.source} does not say how many frames a second it has. Say it with --fps.")
    return rate


def _shown(source: Source, bar: Progress) -> Iterator[Recording]:
    for index in range(len(source)):
        yield source.read(index)
        bar.advance()
