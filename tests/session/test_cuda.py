"""What only a GPU can show; `make test-gpu` runs it there, and the other tests of sessions too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import Session, WorldModel
from ivideogpt.session import session as room
from ivideogpt.transformer.streams import uniform_numbers
from tests.session.test_static import compare_lives

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 3

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(params=[True, False], ids=["reward", "no reward"])
def model(request: pytest.FixtureRequest, make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=request.param, place_embedding=True).to("cuda")


def assert_same(ours: Any, theirs: Any) -> None:
    assert torch.equal(ours.tokens.cpu(), theirs.tokens.cpu())
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one.cpu(), other.cpu(), atol=1e-3, rtol=1e-3)


def test_a_gpu_imagines_what_a_cpu_does(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    frames, actions = make_frames(3, 2), torch.rand(2 * HORIZON, 6, A) * 2 - 1
    models = [make_world_model(action_dim=A, reward=True).to(name) for name in ("cpu", "cuda")]
    sessions = [each.start(frames, branches=2, seed=1, horizon=HORIZON) for each in models]
    for number in range(2 * HORIZON):
        assert_same(*(session.step(actions[number]) for session in sessions))
        assert_same(*(session.step(actions[number, :2], rows=[4, 1]) for session in sessions))


def test_streams_are_the_same_everywhere() -> None:
    keys, first = torch.randint(2**32, (5, 2)), torch.arange(5)
    there = uniform_numbers(keys.cuda(), first.cuda(), 4, 16)
    assert torch.equal(there.cpu(), uniform_numbers(keys, first, 4, 16))


@pytest.mark.parametrize("compile_it", [False, True])
def test_captured_frames_are_the_same(model: WorldModel, make_frames: MakeFrames, compile_it: bool) -> None:
    fast = model.for_inference("float32", compiled=compile_it)
    compare_lives([model, fast], make_frames(3, 2), assert_same)
    assert fast.transformer.static, "it could not be captured"
    assert fast.transformer.compiled == compile_it


@pytest.mark.parametrize("static_frames", [False, True])
def test_nothing_waits_inside_a_frame(
    model: WorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch, static_frames: bool
) -> None:
    name = "decode_static" if static_frames else "decode_frame"
    plain, watched = getattr(room, name), []

    def watch(*arguments: Any, **named: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            watched.append(plain(*arguments, **named))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return watched[-1]

    fast = model.for_inference("float32")
    fast.transformer.static = static_frames
    session = fast.start(make_frames(4, 2), branches=2, seed=1, horizon=HORIZON)

    def steps() -> Session:
        for _ in range(HORIZON):
            session.step(torch.zeros(8, A))
            session.step(torch.zeros(3, A), rows=[6, 1, 2])
        return session

    steps()  # captures
    monkeypatch.setattr(room, name, watch)
    steps()
    assert len(watched) == 2 * HORIZON


def test_out_of_memory_leaves_the_session_restorable(model: WorldModel, make_frames: MakeFrames) -> None:
    session, undisturbed = (model.start(make_frames(4, 2), seed=1, horizon=HORIZON) for _ in range(2))
    for each in (session, undisturbed):
        each.step()
    moment, expected = session.snapshot(), undisturbed.step()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    # Free memory is there, as far as the device knows; but no more than this process has already.
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + (1 << 20)) / total)
    try:
        with pytest.raises(torch.OutOfMemoryError):
            session.fork([0] * 20_000)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    for _ in range(2):
        session.restore(moment)
        assert_same(session.step(), expected)
