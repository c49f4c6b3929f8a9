"""One owner for a folder at a time: whoever writes into it claims it first.

The system forgets a claim with the process that made it, however that ended.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from ivideogpt.errors import OutputError
from ivideogpt.files import readable_write_errors

LOCK_FILE = ".lock"

T = TypeVar("T")

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # a file system that knows none: nothing can be claimed there


class Claim:
    """A folder, made if need be, that nobody else can claim as long as this lives and is not released.

    Args:
        folder: what is claimed.
        shared: whether others may share it, as several recorders do that write different files.

    Raises:
        OutputError: somebody else has it, or it cannot be written.
    """

    def __init__(self, folder: Path, *, shared: bool = False) -> None:
        self._path, self._file = folder / LOCK_FILE, -1
        with readable_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            while not self._is_there():  # whoever had it before may have removed the file meanwhile
                self.release()
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
                if not self._locked(fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                    self._close()
                    raise OutputError(
                        f"another process is writing to {folder} now, so this one leaves it alone. Wait until it has "
                        "ended, stop it, or choose another folder."
                    )

    def release(self) -> None:
        """Let others have it; the last one takes the file of the lock away."""
        if self._file != -1 and self._is_there() and self._locked(fcntl.LOCK_EX):
            with suppress(OSError):
                self._path.unlink()
        self._close()

    def _is_there(self) -> bool:
        """Whether the file that is open is the one that lies there."""
        try:
            return self._file != -1 and os.path.samestat(os.fstat(self._file), self._path.stat())
        except OSError:
            return False

    def _locked(self, kind: int) -> bool:
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in _NO_LOCKS
        return True

    def _close(self) -> None:
        if self._file != -1:
            os.close(self._file)
            self._file = -1

    def during(self, work: Iterator[T]) -> Iterator[T]:
        """The work, during which the folder stays claimed."""
        with self:
            yield from work

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()
