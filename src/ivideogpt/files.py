"""Writing files so that nothing a user made is ever lost: whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ivideogpt.errors import InputError, OutputError

# Names that nobody else gives: what is being written, and what was there before and is about to be replaced.
_WRITING, _REPLACED = ".writing-", ".replaced-"
_LOCK = ".lock"  # what is left of a claim (`locks.py`) is nothing that anybody would miss


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary_path)`, then move the result over `path` in one step.

    The temporary file keeps the suffix of `path` and lies in the same folder, so the move is atomic. If `write` fails
    (a full disk, a kill) the previous file is untouched.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f"{_WRITING}{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
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

    An older folder at `path` is set aside first and removed only after the new one is in place. A kill between the
    two moves leaves it aside; the next write of `path`, or `repair_folder`, puts it back.

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    with readable_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f"{_WRITING}{path.name}-", dir=path.parent))
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush_to_disk(file)
            os.chmod(temporary, 0o755)
            _swap_in(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def repair_folder(folder: Path) -> None:
    """Clear away what killed writes left in `folder`: half-written files go, what was set aside comes back.

    Only for a folder that nobody else is writing to at the moment.
    """
    if not folder.is_dir():
        return
    for entry in list(folder.iterdir()):
        if entry.name.startswith(_REPLACED):
            _put_back(folder / entry.name.removeprefix(_REPLACED))
        elif entry.name.startswith(_WRITING):
            remove(entry)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def look_at(path: Path | str, refused: type[InputError]) -> Path:
    """The path, with a `~` in front expanded, once it is known that the system can say what lies there, if anything.

    Raises:
        InputError: of the type `refused`: it cannot (a name too long, no permission, a loop of links, no such user).
    """
    try:
        expanded = Path(path).expanduser()
        expanded.stat()
    except (FileNotFoundError, NotADirectoryError):
        return expanded
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise refused(f"the path {str(path)!r} cannot be looked at: {reason}. Give another one.") from error
    return expanded


def require_free_output(folder: Path, *, overwrite: bool, cure: str = "--overwrite") -> None:
    """Refuse an output folder that exists and is not empty, unless `overwrite`.

    Raises:
        OutputError: the folder holds files, or the path is a file.
    """
    if look_at(folder, OutputError).is_file():
        raise OutputError(f"output folder {folder} is a file. Choose another folder.")
    held = folder.iterdir() if folder.is_dir() else ()
    if not overwrite and any(entry.name != _LOCK for entry in held):
        raise OutputError(f"output folder {folder} exists and is not empty. Choose another folder, or pass {cure}.")


@contextmanager
def readable_write_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a file in the way while writing `path` into an `OutputError`."""
    try:
        yield
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        raise OutputError(f"the path {str(path)!r} has a null byte in it. Choose another place.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OutputError(
                f"the disk is full: {path} could not be written, and what was there before is unchanged. "
                "Free some space, then run the same command again, a training or a recording with --resume."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise OutputError(f"no permission to write {path}. Choose a folder that you may write to.") from error
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise OutputError(f"{path} cannot be written: {error.strerror}. Choose another place.") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise OutputError(
                f"{path} cannot be written: a part of the path is a file where a folder is needed, or the other way "
                "round. Choose another place."
            ) from error
        raise


def _flush_to_disk(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _swap_in(temporary: Path, path: Path) -> None:
    _put_back(path)
    if not path.exists():
        os.replace(temporary, path)
        return
    aside = _aside(path)
    os.replace(path, aside)
    try:
        os.replace(temporary, path)
    finally:
        _put_back(path)


def _put_back(path: Path) -> None:
    """Where an older version of `path` was set aside: put it back if nothing took its place, else remove it."""
    aside = _aside(path)
    if path.exists():
        remove(aside)
    elif aside.exists():
        os.replace(aside, path)


def _aside(path: Path) -> Path:
    return path.with_name(f"{_REPLACED}{path.name}")
