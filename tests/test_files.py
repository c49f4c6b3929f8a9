"""Writing whole or not at all: failures and kills at every point."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ivideogpt import files
from ivideogpt.errors import OutputError
from ivideogpt.files import (
    folder_written_atomically,
    look_at,
    readable_write_errors,
    repair_folder,
    require_free_output,
    write_atomically,
    write_text_atomically,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(path: Path, text: str) -> None:
    with folder_written_atomically(path) as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "file.txt").write_text(text)


def content(path: Path) -> str:
    return (path / "inner" / "file.txt").read_text()


def test_a_file_is_written_with_its_parents_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    write_text_atomically(path, "one")
    write_text_atomically(path, "zwölf")
    assert path.read_text(encoding="utf-8") == "zwölf"
    assert names(path.parent) == ["file.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_the_writer_sees_the_suffix(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_bytes(b"x")

    write_atomically(tmp_path / "picture.png", write)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("ours")])
def test_a_failed_write_changes_nothing(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file.txt"
    write_text_atomically(path, "old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        raise error

    with pytest.raises(OutputError if isinstance(error, OSError) else type(error)):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_folder_is_written_and_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "model"
    with folder_written_atomically(path) as temporary:
        (temporary / "stale").touch()
        assert not path.exists()
    write_folder(path, "new")
    assert names(path) == ["inner"] and content(path) == "new"
    assert names(path.parent) == ["model"]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_failed_folder_changes_nothing(tmp_path: Path) -> None:
    write_folder(tmp_path / "model", "old")
    full = pytest.raises(OutputError, match=r"the disk is full: .*model could not be written")
    with full, folder_written_atomically(tmp_path / "model") as temporary:
        (temporary / "half").touch()
        raise OSError(errno.ENOSPC, "full")
    assert content(tmp_path / "model") == "old"
    assert names(tmp_path) == ["model"]


def test_a_move_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path / "model", "old")
    replace = os.replace

    def fail_on_the_new(source: Path, target: Path) -> None:
        if source.name.startswith(".writing-"):
            raise OSError(errno.ENOSPC, "full")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", fail_on_the_new)
    with pytest.raises(OutputError, match="full"):
        write_folder(tmp_path / "model", "new")
    assert content(tmp_path / "model") == "old"
    assert names(tmp_path) == ["model"]


def killed_while_writing(path: Path, moves: int) -> None:
    """Write a folder in another process that is killed after that many moves of folders."""
    program = f"""
import os, signal
from pathlib import Path
from ivideogpt.files import folder_written_atomically
moved, replace = 0, os.replace
def move(source, target):
    global moved
    if moved == {moves}:
        os.kill(os.getpid(), signal.SIGKILL)
    moved += 1
    replace(source, target)
os.replace = move
with folder_written_atomically(Path({str(path)!r})) as folder:
    (folder / "inner").mkdir()
    (folder / "inner" / "file.txt").write_text("new")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("moves", [0, 1])
@pytest.mark.parametrize("mended_by", ["repair_folder", "the next write"])
def test_a_kill_never_loses_the_old_folder(tmp_path: Path, moves: int, mended_by: str) -> None:
    path = tmp_path / "model"
    write_folder(path, "old")
    killed_while_writing(path, moves)
    assert path.exists() == (moves == 0)
    if mended_by == "repair_folder":
        repair_folder(tmp_path)
        assert content(path) == "old"
        assert names(tmp_path) == ["model"]
    else:
        write_folder(path, "newer")
        assert content(path) == "newer"
        assert not [name for name in names(tmp_path) if name.startswith(".replaced-")]


def test_mending_removes_only_what_a_write_left(tmp_path: Path) -> None:
    for name in (".writing-model-a1b2c3d4", ".replaced-model", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    for name in (".writing-training-a1b2c3d4.json", ".hidden", "notes.txt"):
        (tmp_path / name).touch()
    repair_folder(tmp_path)
    assert names(tmp_path) == [".hidden", "model", "notes.txt"]
    repair_folder(tmp_path / "missing")


def test_the_disk_is_full_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    monkeypatch.setattr(files.tempfile, "mkdtemp", full)
    with pytest.raises(OutputError, match="full"):
        write_text_atomically(tmp_path / "file.txt", "x")
    with pytest.raises(OutputError, match="full"), folder_written_atomically(tmp_path / "model"):
        pass


def test_a_file_where_a_folder_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "out.txt", tmp_path / "file" / "deep" / "out.txt"):
        with pytest.raises(OutputError, match="part of the path is a file"):
            write_text_atomically(place, "x")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EFBIG, "disk is full"),
        (errno.EACCES, "no permission to write"),
    ],
)
def test_errors_name_the_cause_and_the_place(tmp_path: Path, number: int, message: str) -> None:
    with pytest.raises(OutputError, match=message) as caught, readable_write_errors(tmp_path / "file"):
        raise OSError(number, os.strerror(number))
    assert str(tmp_path / "file") in str(caught.value)
    with pytest.raises(TimeoutError), readable_write_errors(tmp_path / "file"):
        raise TimeoutError(errno.ETIMEDOUT, "another trouble")


def test_an_output_folder_must_be_free(tmp_path: Path) -> None:
    require_free_output(tmp_path / "missing", overwrite=False)
    (tmp_path / "empty").mkdir()
    require_free_output(tmp_path / "empty", overwrite=False)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"not empty\. Choose another folder, or pass --force\."):
        require_free_output(tmp_path, overwrite=False, cure="--force")
    require_free_output(tmp_path, overwrite=True)
    with pytest.raises(OutputError, match="is a file"):
        require_free_output(tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("path", ["a" * 300, "~nosuchuser/model", "a\0b", "loop/x"])
def test_paths_that_the_system_cannot_look_at(tmp_path: Path, path: str) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    name = str(tmp_path / path) if not path.startswith("~") else path
    with pytest.raises(OutputError, match=r"the path '.*' cannot be looked at: .*Give another one"):
        look_at(name, OutputError)
    if "~" not in path and "\0" not in path:
        with pytest.raises(OutputError, match=r"cannot be (looked at|written)"):
            write_text_atomically(Path(name) / "file", "text")


def test_paths_that_it_can_look_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file", tmp_path / "nothing", tmp_path / "file" / "below"):
        assert look_at(path, OutputError) == path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert look_at("~/file", OutputError) == tmp_path / "file"


def test_a_null_byte_in_a_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="has a null byte in it"):
        write_text_atomically(tmp_path / "a\0b" / "c.txt", "text")
    assert not list(tmp_path.iterdir())
