"""`ivideogpt data info | stats | verify | show`: what is in a store."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from tyro.conf import Positional

from ivideogpt.cli.console import finish, progress, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import EpisodeError


class Options(BaseOptions):
    """Look at a store: what it holds, whether it is whole, what its actions are, what it looks like.

    info: counts, cameras, source. stats: the actions' mean, deviation, range and quantiles. verify: every episode
    against its checksum; ends with 1 if one differs. show: a contact sheet.
    """

    what: Positional[Literal["info", "stats", "verify", "show"]]
    """info, stats, verify or show."""
    store: Positional[Path]
    """The store."""
    camera_key: str | None = None
    """show: whose frames; the first camera's where left out."""
    episodes: int = Field(8, ge=1)
    """show: how many episodes, evenly spread."""
    out: Path | None = None
    """show: the picture; contact_sheet.png in the store where left out."""
    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Say it."""
    {"info": _info, "stats": _stats, "verify": _verify, "show": _show}[options.what](options)


def _info(options: Options) -> None:
    manifest = _manifest(options.store)
    told = {name: value for name, value in manifest.items() if name not in ("format", "version", "actions")}
    told["broken"] = manifest["broken"] if options.as_json else len(manifest["broken"])
    told["duplicates"] = manifest["duplicates"] if options.as_json else len(manifest["duplicates"])
    told["action_size"] = len(manifest["actions"]["mean"]) if manifest.get("actions") else None
    report(told, options.as_json)


def _stats(options: Options) -> None:
    actions = _manifest(options.store).get("actions")
    if actions is None:
        raise EpisodeError(f"{options.store}: its episodes have no actions, or of different sizes.")
    report({"actions": actions}, options.as_json)


def _verify(options: Options) -> None:
    from ivideogpt.data.store import Store, any_camera

    store = Store(options.store, any_camera(options.store), action_key=None)
    wrong: dict[str, str] = {}
    with progress("verifying", len(store), "episode") as bar:
        for name, why in store.verify():
            if why:
                wrong[name] = why
            bar.advance()
    for name, why in wrong.items():
        tell(f"damaged: {name}: {why}")
    report({"episodes": len(store), "damaged": sorted(wrong) if options.as_json else len(wrong)}, options.as_json)
    if wrong:
        raise SystemExit(1)


def _show(options: Options) -> None:
    import numpy as np

    from ivideogpt.data.store import Store, any_camera
    from ivideogpt.drawing import stacked, strip, write_png

    store = Store(options.store, options.camera_key or any_camera(options.store), action_key=None)
    chosen = np.unique(np.linspace(0, len(store) - 1, min(options.episodes, len(store))).round().astype(int))
    pictures = {}
    for index in map(int, chosen):
        entry = store.entry(index)
        rows = np.unique(np.linspace(0, entry.length - 1, 8).round().astype(np.int64))
        said = f': "{entry.language}"' if entry.language else ""
        pictures[f"{entry.name}, {entry.length} frames{said}"] = strip(
            {store.camera: store.frames(index, rows)}, 1, captions=[f"frame {row}" for row in rows]
        )
    out = options.out or options.store / "contact_sheet.png"
    write_png(out, stacked(pictures))
    report({"episodes": len(store), "shown": len(chosen), "camera": store.camera}, options.as_json)
    finish([("picture", out)], [f"ivideogpt data stats {shlex.quote(str(options.store))}"], options.as_json)


def _manifest(store: Path) -> dict[str, Any]:
    from ivideogpt.data.store import MANIFEST_FILE, read_plan

    read_plan(store)
    try:
        manifest: dict[str, Any] = json.loads((store / MANIFEST_FILE).read_text())
    except (OSError, ValueError) as error:
        raise EpisodeError(
            f"{store}: no readable {MANIFEST_FILE} ({error}). Run the conversion again: it goes on."
        ) from error
    return manifest
