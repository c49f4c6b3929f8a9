"""A whole session without data: nothing waits for the device, and next to nothing is sent to it.

On the `meta` device tensors have shapes and no numbers, so that whatever looks at a number fails: as a GPU would make
the host wait there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ivideogpt import WorldModel
from ivideogpt.config import StateConfig
from ivideogpt.session import session as room

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 3


class Transfers(TorchDispatchMode):
    """Counts operations that need a tensor of the host on the device, or the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        self.count += len({tensor.device.type for tensor in tensors if tensor.ndim}) > 1
        return result


def test_the_count_counts() -> None:
    there = torch.empty(3, 3, device="meta")
    with Transfers() as transfers:
        there + there
        assert transfers.count == 0
        torch.ones(3).to("meta")
        there[torch.tensor([1])]
        there.copy_(torch.ones(3, 3))
    assert transfers.count == 3
    with pytest.raises((RuntimeError, NotImplementedError)):
        there.sum().item()


@pytest.mark.parametrize("state", [None, StateConfig(mean=(0,) * 3, std=(1,) * 3, change=(1,) * 3)])
@pytest.mark.parametrize("reward", [True, False])
def test_a_whole_session_on_meta(
    make_world_model: MakeWorldModel,
    make_frames: MakeFrames,
    monkeypatch: pytest.MonkeyPatch,
    reward: bool,
    state: StateConfig | None,
) -> None:
    model = make_world_model(action_dim=A, reward=reward, place_embedding=True, state=state).to("meta")
    inside: list[int] = []
    plain = room.decode_frame

    def watched(*arguments: Any, **named: Any) -> Any:
        with Transfers() as transfers:
            made = plain(*arguments, **named)
        inside.append(transfers.count)
        return made

    monkeypatch.setattr(room, "decode_frame", watched)
    session = model.start(make_frames(4, 2), branches=2, seed=1, horizon=HORIZON)

    def step(rows: list[int] | None, moved: int) -> None:
        with Transfers() as transfers:
            made = session.step(torch.zeros(moved, A), rows)
        assert made.frame is not None and made.frame.shape == (moved, 3, 16, 16)
        assert transfers.count <= (1 if rows is None else 2)

    for _ in range(2 * HORIZON):
        step(None, 8)  # all rows, and new contexts at once
    for _ in range(HORIZON):
        step([6, 1, 2], 3)
        step(None, 8)
    moment = session.snapshot()
    session.reset(make_frames(2, 2), [5, 3])
    for _ in range(HORIZON):
        step(None, 8)
    session.restore(moment)
    copy = session.fork([7, 7, 0])
    assert copy.step(torch.zeros(3, A)).tokens.is_meta
    step([0], 1)
    session.take_back()
    assert session.frames.shape == (8, 2, 3, 16, 16)
    assert inside and not any(inside), "nothing is sent inside a frame"
