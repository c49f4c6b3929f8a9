"""Worker processes that cannot work, in words that name the cure."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.errors import ConfigError

SHARED_MEMORY = Path("/dev/shm")

_PREFETCHED = 2  # batches that a worker of PyTorch prepares ahead, each in shared memory
_NO_ROOM = ("No space left on device", "unable to allocate shared memory", "Bus error", "insufficient shared memory")


def require_shared_memory(workers: int, batch_bytes: int) -> None:
    """Refuse workers whose batches would not fit into the shared memory of this machine or container.

    Args:
        workers: how many there will be.
        batch_bytes: of the frames of a batch.

    Raises:
        ConfigError: there is too little of it: a worker that runs out of it dies or waits for ever.
    """
    if not SHARED_MEMORY.is_dir():
        return
    needed, free = workers * (_PREFETCHED + 1) * batch_bytes, shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ConfigError(
            f"workers is {workers}; they pass batches on in shared memory, {needed / 1e6:.3g} MB at a time, and "
            f"{free / 1e6:.3g} MB of {SHARED_MEMORY} are free. {_CURE}"
        )


@contextmanager
def readable_worker_errors() -> Iterator[None]:
    """Turn what keeps worker processes from working, while they begin or later, into a `ConfigError`."""
    try:
        yield
    except OSError as error:
        if "AF_UNIX path too long" not in str(error):
            raise
        raise ConfigError(
            f"worker processes cannot be reached: the folder for temporary files, {tempfile.gettempdir()}, has a name "
            "that is too long for a socket. Set TMPDIR to a shorter one, such as /tmp, or take --workers 0."
        ) from error
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _NO_ROOM):
            raise
        raise ConfigError(f"a worker process ran out of shared memory ({SHARED_MEMORY}). {_CURE}") from error


_CURE = "Take fewer workers, a smaller batch, --workers 0, or more shared memory (docker run --shm-size 1g)."
