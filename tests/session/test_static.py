"""Compiled frames against plain ones, how many graphs that takes, and what is said where it does not work."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import Session, WorldModel
from ivideogpt.session import static

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 3


@pytest.fixture(params=[True, False], ids=["reward", "no reward"])
def model(request: pytest.FixtureRequest, make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=request.param, place_embedding=True)


class Graphs:
    """Stands in for the compiler: counts graphs, and runs them as they are."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.count += 1
        return graph.forward


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    counted = Graphs()
    make = functools.partial(torch.compile, static._decode_token, fullgraph=True, dynamic=False, backend=counted)
    monkeypatch.setattr(static, "_compiled", functools.cache(make))
    static._compiled_for.clear()
    static._warn_once.cache_clear()
    torch.compiler.reset()
    yield counted
    torch.compiler.reset()


def assert_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.tokens, theirs.tokens)
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def compare_lives(models: Sequence[Any], frames: Tensor, compare: Callable[[Any, Any], None]) -> None:
    """Take two models through everything that a session can do, and compare each step."""
    actions = torch.rand(40, 6, A) * 2 - 1
    pair = [each.start(frames, branches=2, seed=1, horizon=HORIZON) for each in models]
    for number in range(HORIZON + 1):
        compare(*(session.step(actions[number]) for session in pair))
    for session in pair:
        session.reset(frames[:2], [1, 4], seed=3)
    moments = [session.snapshot() for session in pair]
    for number in range(HORIZON + 1):
        compare(*(session.step(actions[number, :2], rows=[4, 0]) for session in pair))
        compare(*(session.step(actions[number]) for session in pair))
    forks = [session.fork([5, 4, 4, 0, 1, 2]) for session in pair]
    for session, moment in zip(pair, moments, strict=True):
        session.restore(moment)
    for number in range(HORIZON + 1):
        compare(*(session.step(actions[number]) for session in pair))
        compare(*(session.step(actions[number]) for session in forks))
        for session in pair:
            session.step(-actions[number])
            session.take_back()


def test_compiled_frames_are_the_same(model: WorldModel, make_frames: MakeFrames, graphs: Graphs) -> None:
    """With one graph: rows fill a bucket of eight."""
    compare_lives([model, model.for_inference("float32", compiled=True)], make_frames(3, 2), assert_same)
    assert graphs.count == 1


def test_there_is_a_graph_for_each_bucket_and_capacity(
    model: WorldModel, make_frames: MakeFrames, graphs: Graphs
) -> None:
    fast = model.for_inference("float32", compiled=True)

    def step(session: Session) -> int:
        session.step(torch.zeros(session.rows, A))
        return graphs.count

    assert [step(fast.start(make_frames(rows, 2), horizon=HORIZON)) for rows in (3, 4, 3, 1, 2, 5)] == [
        1,
        1,
        1,
        2,
        3,
        4,
    ]
    assert step(fast.start(make_frames(4, 2), horizon=HORIZON + 1)) == 5
    assert step(fast.start(make_frames(2, 2), branches=2, horizon=HORIZON + 1)) == 5


def test_beyond_the_bound_there_is_one_warning(
    model: WorldModel, make_frames: MakeFrames, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "COMPILED", 2)
    fast = model.for_inference("float32", compiled=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for rows in (1, 2, 3, 5, 9, 1):
            sessions = [each.start(make_frames(rows, 2), seed=1, horizon=HORIZON) for each in (model, fast)]
            for _ in range(2):
                assert_same(*(session.step(torch.ones(rows, A) / 2) for session in sessions))
    assert [str(warning.message) for warning in said] == [
        "2 numbers of rows and capacities have been compiled; others run as they are"
    ]
    assert graphs.count == 2


def test_what_cannot_be_compiled_runs_as_it_is(
    model: WorldModel, make_frames: MakeFrames, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("no compiler here\nand a long story")

    monkeypatch.setattr(static, "_compiled", lambda: failing)
    fast = model.for_inference("float32", compiled=True)
    sessions = [each.start(make_frames(3, 2), seed=1, horizon=HORIZON) for each in (model, fast)]
    with pytest.warns(UserWarning, match="could not be compiled, so they run as they are: no compiler here") as said:
        for _ in range(HORIZON + 2):
            assert_same(*(session.step(torch.ones(3, A) / 2) for session in sessions))
    assert len(said) == 1
    assert_same(*(session.step(torch.ones(2, A) / 2, rows=[2, 1]) for session in sessions))


def test_out_of_memory_is_passed_on_and_can_be_tried_again(
    model: WorldModel, make_frames: MakeFrames, graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise torch.OutOfMemoryError("no more")

    fast = model.for_inference("float32", compiled=True)
    sessions = [each.start(make_frames(3, 2), seed=1, horizon=HORIZON) for each in (model, fast)]
    moment = sessions[1].snapshot()
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(static, "_compiled", lambda: failing)
        sessions[1].step()
    sessions[1].restore(moment)
    assert_same(*(session.step() for session in sessions))
