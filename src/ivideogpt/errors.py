"""Named exceptions for mistakes that the caller can mend.

Every message states the value that was given, the rule it breaks and the cure. The command line turns an
`InputError` into one readable message and exit code 2; anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Base of every error that a user can mend."""


class EpisodeError(InputError):
    """An episode or a dataset is missing, truncated or malformed."""


class ConfigError(InputError):
    """A configuration value, preset name or combination of options is not legal."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, of another version, or does not fit the model."""


class OutputError(InputError):
    """An output place cannot be written, or holds something that would be lost."""


class DeviceError(InputError):
    """The requested device is not available on this machine."""


class ShapeError(InputError):
    """A tensor handed to a model has the wrong shape, type or range."""


class SessionError(InputError):
    """A session is asked for what it cannot do: it is closed, a row does not exist, or memory would not suffice."""


def unknown_name(kind: str, name: str, available: Iterable[str]) -> str:
    """Message for a name that is not in a closed list: the nearest name, then all of them."""
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r}.{hint} Available: {', '.join(names) or 'none'}."
