"""One owner for a folder at a time, and none left behind."""

from __future__ import annotations

import errno
import fcntl
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ivideogpt.errors import OutputError
from ivideogpt.locks import LOCK_FILE, Claim

_HOLD = "import sys, time; from pathlib import Path; from ivideogpt.locks import Claim; claim = Claim(Path(sys.argv[1]), shared=bool(int(sys.argv[2]))); print('held', flush=True); time.sleep(60)"  # noqa: E501


def holder(folder: Path, shared: bool = False) -> subprocess.Popen[str]:
    """Another process that has claimed the folder."""
    command = [sys.executable, "-c", _HOLD, str(folder), str(int(shared))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_one_is_refused_until_the_first_has_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    process = holder(folder)
    for shared in (False, True):
        with pytest.raises(OutputError, match=r"another process is writing to .*run now.*choose another folder"):
            Claim(folder, shared=shared)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with Claim(folder), pytest.raises(OutputError):
        Claim(folder)
    assert not list(folder.iterdir()), "the file of the lock went with it"


def test_several_may_share(tmp_path: Path) -> None:
    process = holder(tmp_path, shared=True)
    with Claim(tmp_path, shared=True), pytest.raises(OutputError):
        Claim(tmp_path)
    assert (tmp_path / LOCK_FILE).exists(), "somebody still has it"
    process.kill()
    process.wait()
    Claim(tmp_path).release()
    assert not (tmp_path / LOCK_FILE).exists()


def test_work_keeps_its_claim_to_its_end(tmp_path: Path) -> None:
    def work() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    running = Claim(tmp_path).during(work())
    assert next(running) == 1
    with pytest.raises(OutputError):
        Claim(tmp_path)
    with pytest.raises(ValueError, match="broken"):
        next(running)
    dropped = Claim(tmp_path).during(work())
    del dropped
    Claim(tmp_path).release()


def test_where_there_are_no_locks_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with Claim(tmp_path), Claim(tmp_path):
        pass


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="a part of the path is a file"):
        Claim(tmp_path / "file" / "run")
