"""Turns, medians, ratios and what is written down about them."""

from __future__ import annotations

import pytest
import torch

from ivideogpt.benchmarks.floor import Rates, arithmetic_floor, measure_rates, rollout_floor
from ivideogpt.benchmarks.machine import describe_machine
from ivideogpt.benchmarks.timing import Comparison, Timing, take_turns
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.world_model import WorldModel

CPU = torch.device("cpu")


def test_ways_take_turns() -> None:
    order: list[str] = []
    timings = take_turns({"one": lambda: order.append("one"), "two": lambda: order.append("two")}, 3, CPU)
    assert order == ["one", "two"] * 3
    assert all(len(timing.runs) == 3 and min(timing.runs) > 0 for timing in timings.values())


def test_the_median_stands_a_disturbed_run() -> None:
    assert Timing((1.0, 9.0, 2.0)).median == 2


def test_a_comparison_quotes_the_fastest_precision() -> None:
    comparison = Comparison(
        name="rollout",
        size="nano",
        work="",
        unit="s",
        reference=Timing((8.0,)),
        ours={"float32": Timing((4.0,)), "bf16": Timing((2.0,))},
        differences={"float32": {"largest_difference": 0.0}, "bf16": {"largest_difference": 0.1}},
        floor={"bf16": 1.0},
    )
    figures = comparison.figures()
    assert (figures["best"], figures["ratio"]) == ("bf16", 4)
    assert figures["ours"]["float32"]["ratio"] == 2 and figures["ours"]["float32"]["floor_seconds"] is None
    assert figures["reference"]["median"] == 8


def test_training_is_quoted_in_steps_a_second() -> None:
    comparison = Comparison("train", "nano", "", "steps/s", Timing((0.5,)), {"bf16": Timing((0.25,))}, {"bf16": {}})
    assert comparison.figures()["reference"]["median"] == 2
    assert comparison.figures()["ours"]["bf16"]["median"] == 4
    assert comparison.figures()["ratio"] == 2


def test_the_machine_is_described() -> None:
    described = describe_machine(CPU)
    assert described["hardware"]["cpu"] and described["hardware"]["threads"] >= 1
    assert described["versions"]["torch"] == torch.__version__


def test_a_product_takes_its_operations_at_the_matrix_rate() -> None:
    rates = Rates(read=1.0, multiply={torch.float32: 1000.0})
    matrix = torch.ones(10, 10)
    assert arithmetic_floor(lambda: matrix @ matrix, torch.float32, rates) == pytest.approx(2)
    assert set(measure_rates(CPU, [torch.float32]).multiply) == {torch.float32}


def test_a_token_takes_a_read_of_the_weights() -> None:
    model = WorldModel(CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro"))
    transformer, layout = model.transformer, model.transformer.layout
    rates = Rates(read=1.0, multiply={torch.float32: float("inf")})
    weights = sum(p.numel() for p in (*transformer.layers.parameters(), *transformer.norm.parameters()))
    weights += layout.dynamics_codes * transformer.config.hidden
    cached = 2 * transformer.config.layers * transformer.config.hidden * (layout.prefix_length + layout.frame_length)
    expected = 4 * (weights + cached) * 2 * layout.dynamics_tokens
    assert rollout_floor(model, torch.rand(1, 2, 3, 16, 16), 2, rates) == expected
