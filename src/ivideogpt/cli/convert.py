"""`ivideogpt convert`: a foreign data set into a store."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator
from tyro.conf import Positional

from ivideogpt.cli.console import finish, progress, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import ConfigError

if TYPE_CHECKING:
    from ivideogpt.data.convert import Plan

_MOST_TOLD = 10  # broken recordings that are named on the screen


class Options(BaseOptions):
    """Convert a data set into a store, from which trainings read no more than they use.

    Can be killed at any time: the same command goes on with what is missing. Broken recordings are left out, told, and
    tried again by the same command; it ends with 1 as long as there are any. Formats: lerobot, rlds, bair,
    robomimic, robonet, aloha, zarr, ssv2, npz, video.
    """

    source: Positional[Path]
    """The data set: a folder, or a file."""
    out: Path
    """Folder of the store."""
    format: str | None = None
    """lerobot, rlds, bair, robomimic (VP2 too), robonet, aloha, zarr, ssv2, npz or video; recognised where left out."""
    split: str | None = None
    """Only this split of the source; all of them where left out."""
    side: int | None = Field(None, ge=16)
    """Crop frames to their middle square and resize them to this side, pixels; as they are where left out."""
    encoding: Literal["jpeg", "png"] = "jpeg"
    """jpeg of quality 95, or png, which keeps every bit and takes about ten times the room."""
    shard_episodes: int = Field(64, ge=1)
    """Episodes a shard, which is what one process writes at a time and holds in memory."""
    workers: int = Field(1, ge=1)
    """Processes."""
    shard: str = "0/1"
    """Part i of n of the shards, such as 0/4 on the first of four machines that share a disk."""
    swap_colours: bool = False
    """The source has red and blue swapped, as the recorder of Mobile ALOHA writes them: look with `data show`."""
    licence: str | None = None
    """Of the data; written into the manifest."""
    as_json: Json = False
    """Print the figures as JSON."""

    @field_validator("shard")
    @classmethod
    def _check_shard(cls, value: str) -> str:
        found = re.fullmatch(r"(\d+)/(\d+)", value)
        if found is None or not int(found[1]) < int(found[2]):
            raise ConfigError(f"shard is {value!r}; it must be i/n with i from 0 to n-1, such as 0/4.")
        return value


def run(options: Options) -> None:
    """Convert, then write the manifest."""
    from ivideogpt.data.convert import Plan, begin
    from ivideogpt.data.formats import open_source
    from ivideogpt.locks import Claim

    format, source = open_source(options.source, options.format, options.split)
    plan = Plan(
        source=str(options.source.expanduser().resolve()),
        format=format,
        recordings=len(source),
        split=options.split,
        encoding=options.encoding,
        side=options.side,
        shard_episodes=options.shard_episodes,
        swap_colours=options.swap_colours,
    )
    first, parts = map(int, options.shard.split("/"))
    with Claim(options.out, shared=parts > 1):
        begin(options.out, plan, alone=parts == 1)
        broken = _convert(options, plan, (first, parts))
    if broken:
        raise SystemExit(1)


def _convert(options: Options, plan: Plan, part: tuple[int, int]) -> dict[str, str]:
    """Convert and report; returns what is broken."""
    from ivideogpt.data.convert import convert
    from ivideogpt.data.store import write_manifest

    start = time.monotonic()
    episodes, written, broken = 0, 0, dict[str, str]()
    with progress(f"converting {plan.format}", len(range(part[0], plan.shards, part[1])), "shard") as bar:
        for done in convert(options.out, plan, options.workers, part):
            episodes, written = episodes + len(done.report.episodes), written + done.written
            broken |= done.report.broken
            bar.advance(note=f"{episodes} episodes, {len(broken)} broken")
    manifest = write_manifest(options.out, options.licence)
    seconds = round(time.monotonic() - start, 1)
    report(
        {"format": plan.format, **_figures(manifest, plan), "shards_written_now": written, "seconds": seconds},
        options.as_json,
    )
    for name, why in list(broken.items())[:_MOST_TOLD]:
        tell(f"broken: {name}: {why}")
    if len(broken) > _MOST_TOLD:
        tell(f"and {len(broken) - _MOST_TOLD} more; all stand in {options.out / 'manifest.json'}")
    next_steps = [f"ivideogpt data show {shlex.quote(str(options.out))}"]
    if manifest is None:
        next_steps = ["the other parts of the conversion; the last one to end writes the manifest"]
    elif manifest["episodes"]:
        next_steps.append(_training(options.out, manifest["cameras"]))
    finish([("store", options.out)], next_steps, options.as_json)
    return broken


def _figures(manifest: dict[str, Any] | None, plan: Plan) -> dict[str, Any]:
    if manifest is None:
        return {"shards": plan.shards}
    named = {name: manifest.get(name) for name in ("episodes", "frames", "bytes", "cameras")}
    return {**named, "broken": len(manifest["broken"]), "duplicates": len(manifest["duplicates"])}


def _training(store: Path, cameras: list[str]) -> str:
    words = ["ivideogpt", "train", "tokenizer", "--data", str(store), "--out", "runs/tokenizer"]
    return shlex.join(words if len(cameras) == 1 else [*words, "--camera-key", cameras[0]])
