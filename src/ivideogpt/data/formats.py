"""The foreign formats there are readers for, and which of them lies at a path."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, cast

from ivideogpt.data.sources.recording import Source
from ivideogpt.errors import ConfigError, EpisodeError, unknown_name
from ivideogpt.files import look_at


class Format(NamedTuple):
    """A reader, named by module and class, so that only the one that is needed is loaded."""

    module: str
    reader: str
    about: str
    splits: bool = True
    """Whether the reader takes a split."""


# In the order in which they are asked whether they recognise a path: the general ones last.
FORMATS = {
    "lerobot": Format("lerobot", "LeRobotDataset", "LeRobot data sets, v2.0, v2.1 and v3.0", False),
    "rlds": Format("rlds", "RldsDataset", "TFRecords of tensorflow_datasets, as Open X-Embodiment has them"),
    "bair": Format("bair", "BairDataset", "BAIR robot pushing, the original TFRecords"),
    "robomimic": Format("robomimic", "RobomimicFile", "HDF5 of robomimic and of VP2"),
    "robonet": Format("robonet", "RoboNetFolder", "HDF5 of RoboNet", False),
    "aloha": Format("aloha", "AlohaFolder", "HDF5 of ALOHA and Mobile ALOHA", False),
    "zarr": Format("zarr_buffer", "ZarrReplayBuffer", "zarr replay buffers of Diffusion Policy", False),
    "ssv2": Format("something", "SomethingSomething", "Something-Something v2: webm and labels"),
    "npz": Format("official_npz", "OfficialNpz", "episode files (.npz), the official ones or ours"),
    "video": Format(
        "video_folder", "VideoFolder", "a folder of videos, actions beside them where there are any", False
    ),
}


def open_source(path: Path | str, format: str | None = None, split: str | None = None) -> tuple[str, Source]:
    """The source at a path, and the name of its format.

    Args:
        path: a file or folder.
        format: one of `FORMATS`; None recognises it.
        split: only this split of the source; None takes all.

    Raises:
        ConfigError: an unknown format, or a split of a format that has none.
        EpisodeError: no reader knows what lies there, or its reader finds it unusable.
    """
    path = look_at(path, EpisodeError)
    if format is not None and format not in FORMATS:
        raise ConfigError(unknown_name("format", format, FORMATS))
    if not path.exists():
        raise EpisodeError(f"{path}: nothing lies there. Give the path of a data set.")
    name = format or next((name for name in FORMATS if _module(name).recognises(path)), None)
    if name is None:
        raise EpisodeError(
            f"{path}: no reader recognises what lies there. If it is one of these, name it with --format: "
            f"{'; '.join(f'{name} ({known.about})' for name, known in FORMATS.items())}."
        )
    if split is not None and not FORMATS[name].splits:
        raise ConfigError(f"split is {split!r}, but format {name} has no splits. Leave it out.")
    reader = cast("Callable[..., Source]", getattr(_module(name), FORMATS[name].reader))
    return name, reader(path, **({"split": split} if split is not None else {}))


def _module(name: str) -> Any:
    return import_module(f"ivideogpt.data.sources.{FORMATS[name].module}")
