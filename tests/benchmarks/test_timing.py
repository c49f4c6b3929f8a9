"""Turns, medians, ratios and what is written down about them."""

from __future__ import annotations

import time

import pytest
import torch

from ivideogpt.benchmarks.machine import describe_machine
from ivideogpt.benchmarks.timing import Case, Measured, Timing, measure

CPU = torch.device("cpu")


def test_variants_take_turns() -> None:
    order: list[str] = []
    variants = {"one": lambda: order.append("one"), "two": lambda: order.append("two")}
    measured = measure(Case("name", "work", variants, turns=2), 3, CPU)
    assert order == ["one", "two"] * 6
    assert all(len(timing.seconds) == 6 and min(timing.seconds) > 0 for timing in measured.timings.values())
    assert measured.ratios == {}


def test_what_the_last_run_reports_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    reports, clock = iter([{"bytes": 1.0}, {"bytes": 2.0}]), iter([0.0, 1.0, 2.0, 5.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    measured = measure(Case("name", "work", {"one": lambda: next(reports)}), 2, CPU)
    assert measured.timings["one"] == Timing((1.0, 3.0), {"bytes": 2.0})


def test_a_part_of_the_work_is_scaled_to_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    measured = measure(Case("name", "work", {"one": lambda: None}, shares={"one": 0.25}), 1, CPU)
    assert measured.timings["one"].seconds == (4.0,)
    assert measured.figures()["variants"]["one"]["share_measured"] == 0.25


def test_medians_and_nine_of_ten() -> None:
    assert Timing((1.0, 9.0, 2.0)).median == 2, "stands a disturbed run"
    assert Timing(tuple(map(float, range(1, 101)))).p90 == 90
    assert Timing((3.0,)).p90 == 3


def test_equal_precisions_are_compared_first() -> None:
    nothing = {"float32": lambda: None, "bf16": lambda: None}
    case = Case.against("rollout", "official", nothing, nothing, 0.5, facts={"frames": 10})  # type: ignore[arg-type]
    assert case.shares == {"reference, float32": 0.5, "reference, bf16": 0.5}
    seconds = {"reference, float32": 8.0, "reference, bf16": 6.0, "ours, float32": 4.0, "ours, bf16": 2.0}
    assert set(case.variants) == set(seconds)
    measured = Measured(case, {name: Timing((second,)) for name, second in seconds.items()})
    expected = {"both in float32": 2.0, "both in bf16": 3.0, "float32 against ours in bf16": 4.0}
    assert list(measured.ratios.items()) == list(expected.items())
    figures = measured.figures()
    assert (figures["name"], figures["work"], figures["frames"]) == ("rollout", "official", 10)
    assert figures["variants"]["ours, bf16"]["median"] == 2 and figures["ratios"] == expected


def test_one_precision_alone_has_no_mixed_ratio() -> None:
    case = Case.against("rollout", "official", {"bf16": lambda: None}, {"bf16": lambda: None})
    assert list(case.ratios) == ["both in bf16"] and not case.shares


def test_the_machine_is_described() -> None:
    described = describe_machine(CPU)
    assert described["hardware"]["cpu"] and described["hardware"]["threads"] >= 1
    assert described["versions"]["torch"] == torch.__version__
