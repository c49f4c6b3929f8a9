"""Writing files so that nothing a user made is ever lost: whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.errors import OutputError


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary_path)`, then move the result over `path` in one step.

    The temporary file keeps the suffix of `path` and lies in the same folder, so the move is atomic. If `write` fails
    (a full disk, a kill) the previous file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        with readable_write_errors(path):
            write(temporary)
            _flush_to_disk(temporary)
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write a text file in UTF-8; whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


@contextmanager
def folder_written_atomically(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; when the block ends well it takes the place of `path`.

    An older folder at `path` is set aside first and removed only after the new one is in place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with readable_write_errors(path):
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            os.chmod(temporary, 0o755)
            _swap_in(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_free_output(folder: Path, *, overwrite: bool, cure: str = "--overwrite") -> None:
    """Refuse an output folder that exists and is not empty, unless `overwrite`.

    Raises:
        OutputError: the folder holds files, or the path is a file.
    """
    if folder.is_file():
        raise OutputError(f"output folder {folder} is a file. Choose another folder.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"output folder {folder} exists and is not empty. Choose another folder, or pass {cure}.")


@contextmanager
def readable_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission while writing `path` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"the disk is full: {path} could not be written, and what was there before is unchanged. "
                "Free some space, then run the same command again."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"no permission to write {path}. Choose a folder that you may write to.") from error
        raise


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _swap_in(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = path.with_name(f".{path.name}-old-{os.getpid()}")
    os.replace(path, aside)
    os.replace(temporary, path)
    shutil.rmtree(aside, ignore_errors=True)
