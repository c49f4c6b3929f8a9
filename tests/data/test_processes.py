"""Worker processes that cannot work."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivideogpt.data import processes
from ivideogpt.data.processes import readable_worker_errors, require_shared_memory
from ivideogpt.errors import ConfigError


def test_shared_memory_is_looked_at_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(processes, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64_000_000))
    require_shared_memory(2, 10_000_000)
    with pytest.raises(ConfigError, match=r"workers is 4; .* 120 MB at a time, and 64 MB of .*--workers 0.*--shm-size"):
        require_shared_memory(4, 10_000_000)
    monkeypatch.setattr(processes, "SHARED_MEMORY", tmp_path / "none")
    require_shared_memory(4, 10_000_000)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("AF_UNIX path too long"), "Set TMPDIR to a shorter one"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "ran out of shared memory"),
        (RuntimeError("DataLoader worker (pid 3) is killed by signal: Bus error."), "docker run --shm-size"),
    ],
)
def test_what_keeps_workers_from_working(error: Exception, message: str) -> None:
    with pytest.raises(ConfigError, match=message), readable_worker_errors():
        raise error


@pytest.mark.parametrize("error", [OSError("something else"), RuntimeError("a bug")])
def test_other_errors_stay_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), readable_worker_errors():
        raise error
