"""Which episodes a run learns from and which it holds out, written into the run and compared when it goes on."""

from __future__ import annotations

import json
from pathlib import Path

from ivideogpt.data.sources.npz import NpzFolder
from ivideogpt.data.store import Store
from ivideogpt.errors import ConfigError
from ivideogpt.files import write_text_atomically

EPISODES_FILE = "episodes.json"

Named = dict[str, dict[str, str]]
"""For `training` and `held_out`: the episodes' names, each with a fingerprint of what is in the file."""


def named_episodes(source: NpzFolder | Store, training: list[int], held_out: list[int]) -> Named:
    """Names and fingerprints; a folder that is moved keeps them."""
    parts = {"training": training, "held_out": held_out}
    return {part: {source.name(i): source.fingerprint(i) for i in indices} for part, indices in parts.items()}


def save_episodes(run: Path, episodes: Named) -> None:
    """Write them into the run folder."""
    write_text_atomically(run / EPISODES_FILE, json.dumps(episodes, indent=1) + "\n")


def held_out_episodes(run: Path) -> list[str]:
    """Names of the episode files that a run does not learn from; none where it did not write them down."""
    try:
        named: Named = json.loads((run / EPISODES_FILE).read_text())
    except (OSError, ValueError):
        return []
    return list(named["held_out"])


def require_same_episodes(run: Path, episodes: Named) -> None:
    """Refuse to continue a run on other data; one that did not write down its data is continued.

    Raises:
        ConfigError: says which episodes are others than they were.
    """
    try:
        before: Named = json.loads((run / EPISODES_FILE).read_text())
    except (OSError, ValueError):
        return
    if before == episodes:
        return
    old, new = ({**parts["training"], **parts["held_out"]} for parts in (before, episodes))
    found = [
        f"{len(names)} {what} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for what, names in (
            ("missing", sorted(old.keys() - new.keys())),
            ("new", sorted(new.keys() - old.keys())),
            ("changed", sorted(name for name in old.keys() & new.keys() if old[name] != new[name])),
        )
        if names
    ]
    renamed = len(set(old.values()) & set(new.values()) - {old[name] for name in old.keys() & new.keys()})
    if renamed:
        found.append(f"{renamed} of the missing ones are there under other names, which changes their order")
    raise ConfigError(
        f"the run in {run} was started on other data: {', '.join(found) or 'others are held out'}, of {len(old)} "
        "episodes. Resume with the old episodes, or start a new run in another folder (--start-from takes "
        "the model along)."
    )
