"""A store: a folder of shards with a manifest, from which trainings read no more than they use.

`manifest.json` is made of the shards' reports once all are there: counts, statistics of the actions, what was broken,
which episodes are the same. Episodes are numbered in the order of the shards.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ivideogpt.data.convert import PLAN_FILE, Plan, shard_path
from ivideogpt.data.episode import Episode
from ivideogpt.data.segment import Tracks
from ivideogpt.data.shard import TRACKS, EpisodeEntry, Shard, read_report
from ivideogpt.data.sources.recording import Frame, Recording
from ivideogpt.errors import EpisodeError, unknown_name
from ivideogpt.files import look_at, write_text_atomically

MANIFEST_FILE = "manifest.json"
FORMAT, VERSION = "ivideogpt-store", 1

_SEPARATOR = "#"  # between the path of a store and the name of an episode
_QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99)
_MOST_NAMED = 20  # of all episodes, in a message
_MOST_ROWS = 1_000_000  # of actions, evenly spread, from which quantiles are taken


@dataclass(frozen=True)
class _Place:
    shard: int
    index: int
    entry: EpisodeEntry


def is_store(path: Path) -> bool:
    """Whether a store lies there, a whole one or not."""
    return (path / PLAN_FILE).is_file()


class Store:
    """The episodes of a store, as trainings read them.

    Args:
        folder: of the store.
        camera_key: which camera's frames; a store with one camera needs no name.
        action_key: any name reads the actions, None does not.
        state_key: any name asks for states; None takes them where there are some.
        rewards: whether there must be rewards; else they are taken where there are some.
        action_shift: how many rows late the actions are, see `sources.npz.read_episode`.

    Raises:
        EpisodeError: no store, one whose conversion has not ended, one without episodes, or an unknown camera.
    """

    def __init__(
        self,
        folder: Path | str,
        camera_key: str = "image",
        action_key: str | None = "action",
        state_key: str | None = None,
        rewards: bool = False,
        action_shift: int = 0,
    ) -> None:
        self.folder = look_at(folder, EpisodeError)
        self.action_key, self.state_key = action_key, state_key
        self.rewards, self.action_shift = rewards, action_shift
        self._places = _places(self.folder)
        self._shards: dict[int, Shard] = {}
        self.cameras = self.shard(self._places[0].shard).cameras(self._places[0].index)
        if camera_key not in self.cameras and not (camera_key == "image" and len(self.cameras) == 1):
            raise EpisodeError(f"{self.folder}: {unknown_name('camera key', camera_key, self.cameras)}")
        self.camera = camera_key if camera_key in self.cameras else self.cameras[0]

    def __len__(self) -> int:
        return len(self._places)

    def index(self, name: str) -> int:
        """Number of the episode of that name.

        Raises:
            EpisodeError: there is none.
        """
        names = [place.entry.name for place in self._places]
        if name not in names:
            raise EpisodeError(f"{self.folder}: {unknown_name('episode', name, names[:_MOST_NAMED])}")
        return names.index(name)

    def name(self, index: int) -> str:
        """Of the episode in its source."""
        return self._places[index].entry.name

    def fingerprint(self, index: int) -> str:
        """Of what is stored of the episode."""
        return self._places[index].entry.stored[:16]

    def entry(self, index: int) -> EpisodeEntry:
        """What is known of the episode without reading it."""
        return self._places[index].entry

    def length(self, index: int) -> int:
        """Frames of the episode."""
        return self._places[index].entry.length

    def read(self, index: int) -> Episode:
        """The whole episode."""
        entry, tracks = self.entry(index), self.tracks(index)
        _, metadata = self.read_actions(index)
        return Episode(
            frames=self.frames(index, np.arange(entry.length)),
            actions=tracks.actions,
            rewards=tracks.rewards,
            states=tracks.states,
            metadata={**metadata, "name": entry.name},
        )

    def frames(self, index: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """Frames (N,H,W,3) in the order of `rows`; no others are touched."""
        place = self._places[index]
        return self.shard(place.shard).frames(place.index, self.camera, rows)

    def tracks(self, index: int) -> Tracks:
        """What was recorded beside the frames of the whole episode."""
        place = self._places[index]
        rewards, states = (self.shard(place.shard).track(place.index, name) for name in ("rewards", "states"))
        self._require(index, "rewards", rewards, wanted=self.rewards)
        self._require(index, "states", states, wanted=self.state_key is not None)
        return Tracks(self.read_actions(index)[0], rewards, states)

    def read_actions(self, index: int) -> tuple[npt.NDArray[np.float32] | None, Mapping[str, Any]]:
        """Actions (T,A), or None where none are read, and metadata, without frames."""
        place = self._places[index]
        rate = {} if place.entry.frame_rate is None else {"frame_rate": place.entry.frame_rate}
        metadata = {**place.entry.metadata, **rate}
        if self.action_key is None:
            return None, metadata
        actions = self.shard(place.shard).track(place.index, "actions")
        self._require(index, "actions", actions, wanted=True)
        assert actions is not None, "just required"
        late = np.minimum(np.arange(len(actions)) + self.action_shift, len(actions) - 1)
        return actions[late], metadata

    def read_rewards(self, index: int) -> npt.NDArray[np.float32]:
        """Rewards (T,), without frames."""
        place = self._places[index]
        rewards = self.shard(place.shard).track(place.index, "rewards")
        self._require(index, "rewards", rewards, wanted=True)
        assert rewards is not None, "just required"
        return rewards

    def read_tracks(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
        """States (T,S) and actions (T,A) or None, without frames."""
        place = self._places[index]
        states = self.shard(place.shard).track(place.index, "states")
        self._require(index, "states", states, wanted=True)
        assert states is not None, "just required"
        return states, self.read_actions(index)[0]

    def shard(self, number: int) -> Shard:
        """Shard number `number`; the file stays open."""
        if number not in self._shards:
            self._shards[number] = Shard(shard_path(self.folder, number))
        return self._shards[number]

    def verify(self) -> Iterator[tuple[str, str]]:
        """Compare everything with its checksum; yields the name of each episode and what is wrong, or ""."""
        for place in self._places:
            try:
                right = self.shard(place.shard).checksum(place.index) == place.entry.stored
                yield place.entry.name, "" if right else f"{shard_path(self.folder, place.shard)}: its checksum differs"
            except EpisodeError as error:
                yield place.entry.name, str(error)

    def _require(self, index: int, name: str, track: object, *, wanted: bool) -> None:
        if wanted and track is None:
            raise EpisodeError(
                f"{self.folder}: episode {self.name(index)} has no {name}. Leave them out, or the episode."
            )


class StoreSource:
    """A store as a source of recordings, with all its cameras (see `sources.recording.Source`).

    Raises:
        EpisodeError: no store, one whose conversion has not ended, or one without episodes.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = look_at(folder, EpisodeError)
        self._places = _places(self.folder)

    def __len__(self) -> int:
        return len(self._places)

    def name(self, index: int) -> str:
        """Of the episode in the store's own source."""
        return self._places[index].entry.name

    def read(self, index: int) -> Recording:
        """Episode `index`."""
        place = self._places[index]
        entry, shard = place.entry, Shard(shard_path(self.folder, place.shard))
        tracks = {name: shard.track(place.index, name) for name in TRACKS}
        names = entry.metadata.get("action_names", ())
        return Recording(
            name=entry.name,
            cameras={camera: _Camera(shard, place, camera) for camera in shard.cameras(place.index)},
            length=entry.length,
            actions=tracks["actions"],
            action_parts=tuple((name, 1) for name in names),
            rewards=tracks["rewards"],
            states=tracks["states"],
            language=entry.language,
            split=entry.split,
            frame_rate=entry.frame_rate,
            metadata=entry.metadata,
        )


class _Camera:
    """Streams one camera of an episode."""

    def __init__(self, shard: Shard, place: _Place, camera: str) -> None:
        self.shard, self.place, self.camera = shard, place, camera

    def __call__(self) -> Iterator[Frame]:
        for row in range(self.place.entry.length):
            yield self.shard.frames(self.place.index, self.camera, [row])[0]


def stored_name(store: Path, name: str) -> str:
    """How an episode of a store is called on a command line."""
    return f"{store}{_SEPARATOR}{name}"


def as_stored(text: str) -> tuple[Path, str] | None:
    """Store and name of what `stored_name` made; None for anything else, such as the path of a file."""
    folder, separator, name = text.rpartition(_SEPARATOR)
    return (Path(folder).expanduser(), name) if separator and is_store(Path(folder).expanduser()) else None


def read_plan(folder: Path) -> Plan:
    """The plan of a store.

    Raises:
        EpisodeError: there is no store, or its plan is damaged.
    """
    try:
        return Plan(**json.loads((folder / PLAN_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise EpisodeError(f"{folder}: no readable {PLAN_FILE}, so this is no store ({error}). Convert one.") from error


def write_manifest(folder: Path, licence: str | None = None) -> dict[str, Any] | None:
    """Write the manifest once all shards are there; None, and nothing is written, before."""
    plan = read_plan(folder)
    reports = [read_report(shard_path(folder, shard)) for shard in range(plan.shards)]
    if any(report is None for report in reports):
        return None
    whole = [report for report in reports if report is not None]
    entries = [entry for report in whole for entry in report.episodes]
    same: dict[str, list[str]] = defaultdict(list)
    for entry in entries:
        same[entry.content].append(entry.name)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": plan.source,
        "source_format": plan.format,
        "licence": licence,
        "episodes": len(entries),
        "frames": sum(entry.length for entry in entries),
        "bytes": sum(shard_path(folder, shard).stat().st_size for shard in range(plan.shards)),
        "broken": {name: why for report in whole for name, why in report.broken.items()},
        "duplicates": [names for names in same.values() if len(names) > 1],
    }
    if entries:
        store = Store(folder, any_camera(folder))
        manifest |= {"cameras": store.cameras, "actions": _statistics(store)}
    write_text_atomically(folder / MANIFEST_FILE, json.dumps(manifest, indent=1) + "\n")
    return manifest


def any_camera(folder: Path) -> str:
    """Name of the first camera of a store."""
    place = _places(folder)[0]
    return Shard(shard_path(folder, place.shard)).cameras(place.index)[0]


def _places(folder: Path) -> list[_Place]:
    """Where each episode is.

    Raises:
        EpisodeError: a shard is missing, or there is no episode in any.
    """
    plan = read_plan(folder)
    places: list[_Place] = []
    for shard in range(plan.shards):
        report = read_report(shard_path(folder, shard))
        if report is None:
            raise EpisodeError(
                f"{folder}: shard {shard} of {plan.shards} is not there yet. Run the same conversion again: it goes on."
            )
        places += [_Place(shard, index, entry) for index, entry in enumerate(report.episodes)]
    if not places:
        raise EpisodeError(f"{folder}: no episode in it; all {plan.recordings} recordings were broken. See its report.")
    return places


def _statistics(store: Store) -> dict[str, list[float]] | None:
    """Of the actions of all episodes, the last of each, which leads nowhere, left out; None where there are none."""
    tracks: Sequence[npt.NDArray[np.float32]] = [
        track[:-1] if len(track) > 1 else track
        for place in store._places
        if (track := store.shard(place.shard).track(place.index, "actions")) is not None
    ]
    if not tracks or len({track.shape[1] for track in tracks}) > 1:
        return None
    count = sum(len(track) for track in tracks)
    step = max(1, count // _MOST_ROWS)
    rows = np.concatenate([track[::step] for track in tracks]).astype(np.float64)
    quantiles = {f"q{round(100 * q):02d}": np.quantile(rows, q, axis=0).tolist() for q in _QUANTILES}
    means = sum(track.sum(axis=0, dtype=np.float64) for track in tracks) / count
    squares = sum(((track - means) ** 2).sum(axis=0) for track in tracks) / count
    low, high = (np.array([edge(track, axis=0) for track in tracks]) for edge in (np.min, np.max))
    return {
        "mean": np.asarray(means).tolist(),
        "std": np.sqrt(squares).tolist(),
        "min": low.min(axis=0).tolist(),
        "max": high.max(axis=0).tolist(),
        **quantiles,
    }
