"""Measured once, remembered, and measured again where what is remembered does not answer the question."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ivideogpt.tuning import fastest


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ivideogpt" / "fastest.json"


def ways(calls: list[str]) -> dict[str, object]:
    return {
        "slow": lambda: lambda: (calls.append("slow"), time.sleep(0.01)),
        "quick": lambda: lambda: calls.append("q"),
    }


def test_the_fastest_is_measured_once(cache: Path) -> None:
    calls: list[str] = []
    first = fastest("question", ways(calls))  # type: ignore[arg-type]
    assert (first.name, first.remembered, len(calls)) == ("quick", False, 8)
    assert str(first).startswith("quick is fastest here (slow ")
    again = fastest("question", ways(calls))  # type: ignore[arg-type]
    assert (again.name, again.remembered, len(calls)) == ("quick", True, 8)
    fastest("another question", ways(calls))  # type: ignore[arg-type]
    assert len(calls) == 16
    fewer = fastest("question", {"slow": ways(calls)["slow"]})  # type: ignore[arg-type]
    assert (fewer.name, list(fewer.seconds), fewer.remembered, len(calls)) == ("slow", ["slow"], True, 16)
    fastest("question", {"quick": lambda: lambda: None, "new": lambda: lambda: None})
    assert "slow" not in cache.read_text().split("another")[0]


@pytest.mark.parametrize("content", ["", "[]", '{"question": 3}', '{"question": {"slow": "x"}}'])
def test_a_damaged_memory_is_no_trouble(cache: Path, content: str) -> None:
    cache.parent.mkdir()
    cache.write_text(content)
    assert not fastest("question", ways([])).remembered  # type: ignore[arg-type]


def test_a_place_that_cannot_be_written_is_no_trouble(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert fastest("question", ways([])).name == "quick"  # type: ignore[arg-type]
