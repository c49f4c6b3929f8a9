"""A session is the same whatever mode of torch its caller is in, and may change between calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import cycle

import pytest
import torch
from torch import Tensor

from ivideogpt import Session, WorldModel
from ivideogpt.config import StateConfig
from ivideogpt.devices import Precision

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]
Mode = Callable[[], AbstractContextManager[object]]

A, HORIZON = 3, 3
POSE = StateConfig(mean=(0.0,) * 3, std=(1.0,) * 3, change=(1.0,) * 3)


def autocast() -> AbstractContextManager[object]:
    return torch.autocast("cpu", torch.bfloat16)


MODES: dict[str, list[Mode]] = {
    "inference": [torch.inference_mode],
    "autocast": [autocast],
    "gradients": [torch.enable_grad],
    "by turns": [torch.inference_mode, nullcontext, autocast, torch.no_grad],
}


def life(model: WorldModel, precision: Precision, frames: Tensor, modes: Iterator[Mode]) -> list[Tensor]:
    """All that a session gives, each call in the next mode."""
    actions = torch.linspace(-1, 1, 4 * A).view(4, A)

    def call(work: Callable[[], object]) -> object:
        with next(modes)():
            return work()

    fast = model.for_inference(precision)
    session = call(lambda: fast.start(frames, branches=2, seed=1, horizon=HORIZON))
    assert isinstance(session, Session)
    made: list[Tensor] = []

    def step(rows: list[int] | None = None) -> None:
        taken = actions if rows is None else actions[: len(rows)]
        made.extend(part for part in call(lambda: session.step(taken, rows)) if part is not None)  # type: ignore[attr-defined]

    for _ in range(HORIZON + 1):
        step()
    moment = call(session.snapshot)
    step([2, 0])
    call(lambda: session.restore(moment))  # type: ignore[arg-type]
    call(lambda: session.reset(frames[:1], [1], seed=4))
    step()
    call(session.take_back)
    step()
    copy = call(lambda: session.fork([3, 1], seed=5))
    made.append(call(lambda: copy.step(actions[:2])).frame)  # type: ignore[attr-defined]
    made.append(call(lambda: session.decode(session.step(actions, decode=False).tokens[:, None])))  # type: ignore[arg-type]
    made.append(call(lambda: session.frames))  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_a_session_is_the_same_in_every_mode(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, mode: str, precision: Precision
) -> None:
    model = make_world_model(action_dim=A, reward=True, state=POSE)
    expected = life(model, precision, make_frames(2, 2), cycle([nullcontext]))
    made = life(model, precision, make_frames(2, 2), cycle(MODES[mode]))
    assert len(made) == len(expected)
    for one, other in zip(made, expected, strict=True):
        assert torch.equal(one, other) and not one.is_inference() and not one.requires_grad


def test_a_rollout_is_too(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, frames = make_world_model(), make_frames(2, 2)
    expected = model.rollout(frames, horizon=2 * HORIZON, seed=1).video
    for mode in (torch.inference_mode, autocast):
        with mode():
            assert torch.equal(model.rollout(frames, horizon=2 * HORIZON, seed=1).video, expected)
