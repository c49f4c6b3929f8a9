"""Turns, medians, ratios and what is written down about them."""

from __future__ import annotations

import time

import pytest
import torch

from ivideogpt.benchmarks.floor import (
    Arithmetic,
    Rates,
    arithmetic_floor,
    count_arithmetic,
    count_operations,
    measure_rates,
    rollout_work,
)
from ivideogpt.benchmarks.machine import describe_machine
from ivideogpt.benchmarks.timing import Comparison, Laps, Timing, take_turns
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


def test_products_of_few_rows_have_a_rate_of_their_own() -> None:
    rates = measure_rates(CPU, [torch.float32], rows=[1, 8])
    assert set(rates.multiply_rows) == {(torch.float32, 8)}
    assert rates.product(torch.float32, 8) == rates.multiply_rows[torch.float32, 8]
    assert rates.product(torch.float32, 1) == rates.multiply[torch.float32]
    assert set(rates.figures()) == {"read_gb_s", "multiply_float32_gflop_s", "multiply_float32_8_rows_gflop_s"}


def micro_model(reward: bool = False) -> WorldModel:
    return WorldModel(
        CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro", reward=reward)
    )


@pytest.mark.parametrize(("contexts", "branches", "reward"), [(1, 1, False), (1, 8, False), (4, 2, True)])
def test_a_pass_reads_weights_once_and_every_row_multiplies(contexts: int, branches: int, reward: bool) -> None:
    model = micro_model(reward)
    transformer, layout, rows = model.transformer, model.transformer.layout, contexts * branches
    layers = sum(p.numel() for p in transformer.layers.parameters())
    norms = sum(p.numel() for name, p in transformer.layers.named_parameters() if "norm" in name)
    head = layout.dynamics_codes * transformer.config.hidden
    passes, drawn = 2 * (layout.dynamics_tokens + reward), 2 * layout.dynamics_tokens
    position = 2 * transformer.config.layers * transformer.config.hidden
    suffix = layout.frame_length  # half of two frames
    work = rollout_work(model, Arithmetic(context=10.0, frame=100.0), contexts, branches, horizon=2)
    cached = position * (contexts * layout.prefix_length + rows * suffix)
    read = passes * (layers + transformer.norm.weight.numel() + cached) + drawn * head
    assert work.steps_bytes == pytest.approx(4 * read)
    products = passes * (layers - norms + position * (layout.prefix_length + suffix)) + drawn * head
    assert work.steps_flop == pytest.approx(2 * rows * products)
    assert (work.start_flop, work.decode_flop) == (10 * contexts, 200 * rows)


def test_the_floor_of_steps_is_what_takes_longer() -> None:
    work = rollout_work(micro_model(), Arithmetic(10.0, 100.0), contexts=1, branches=8, horizon=2)
    fast = Rates(read=1.0, multiply={torch.float32: float("inf")})
    assert work.floor(fast) == {"start": 0, "steps": work.steps_bytes, "decode": 0}
    slow = Rates(float("inf"), {torch.float32: 2.0}, {(torch.float32, 8): 1.0})
    assert work.floor(slow) == {"start": 5, "steps": work.steps_flop, "decode": 800}


def test_contexts_and_frames_are_counted() -> None:
    model = micro_model()
    arithmetic = count_arithmetic(model)
    context = torch.rand(3, 2, 3, 16, 16)
    with model.start(context, seed=0, horizon=2) as session:
        tokens = torch.stack([session.step(decode=False).tokens for _ in range(2)], dim=1)
        assert count_operations(lambda: model.start(context, seed=0)) == 3 * arithmetic.context
        assert count_operations(lambda: session.decode(tokens)) == 6 * arithmetic.frame


def test_laps_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.0, 13.0, 17.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    laps = Laps(CPU)
    for part in ("start", "steps", "start"):
        laps.lap(part)
    assert laps.seconds == {"start": 5, "steps": 2}


def test_nine_of_ten_runs_are_no_longer() -> None:
    assert Timing(tuple(map(float, range(1, 101)))).p90 == 90
    assert Timing((3.0,)).p90 == 3
    assert Timing((1.0, 2.0)).scaled(4).runs == (4, 8)
