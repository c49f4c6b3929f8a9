"""Frames of models that know states show each its own, whenever and however many at once they are decoded."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import StateConfig
from ivideogpt.errors import ConfigError

Make = Callable[..., Any]
MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

POSE = StateConfig(angles=(1,), mean=(10.0, 0.0, -2.0), std=(2.0, 1.0, 0.5), change=(0.5, 0.2, 0.1))
NEAR = {"atol": 1e-4, "rtol": 1e-4}


def poses(contexts: int) -> Tensor:
    noise = torch.randn(contexts, 2, POSE.size, generator=torch.Generator().manual_seed(0))
    return noise * torch.tensor(POSE.std) + torch.tensor(POSE.mean)


def test_decoding_may_wait(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, context = make_world_model(state=POSE), make_frames(3, 2)
    for rows in (None, [4, 0, 5, 1, 0]):  # in the order of their contexts, and not
        waiting, plain = (model.start(context, branches=2, seed=1, horizon=4) for _ in range(2))
        if rows is not None:
            waiting, plain = waiting.fork(rows), plain.fork(rows)
        frames = [plain.step().frame for _ in range(3)]
        tokens = torch.stack([waiting.step(decode=False).tokens for _ in range(3)], dim=1)
        for count in range(1, 4):
            newest = torch.stack(frames[-count:], dim=1)  # type: ignore[arg-type]
            torch.testing.assert_close(waiting.decode(tokens[:, -count:]), newest, **NEAR)
        torch.testing.assert_close(waiting.frames, torch.stack(frames[-2:], dim=1), **NEAR)  # type: ignore[arg-type]
        assert waiting.decode(tokens[:, :0]).shape[1] == 0


def test_decoding_rows_that_are_out_of_step(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model = make_world_model(state=POSE)
    session = model.start(make_frames(2, 2), seed=1, horizon=4)
    session.step(decode=False)
    session.reset(make_frames(1, 2, seed=3), [1])
    steps = [session.step() for _ in range(2)]
    frames = session.decode(torch.stack([step.tokens for step in steps], dim=1))
    torch.testing.assert_close(frames, torch.stack([step.frame for step in steps], dim=1), **NEAR)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_many_frames_are_decoded_in_parts(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    model = make_world_model(state=POSE)
    session = model.start(make_frames(3, 2), branches=2, seed=1)
    tokens = torch.stack([session.step(decode=False).tokens for _ in range(3)], dim=1)
    whole = session.decode(tokens)
    monkeypatch.setattr("ivideogpt.session.pixels.decoded_at_once", lambda *_: most)
    torch.testing.assert_close(session.decode(tokens), whole, **NEAR)


def test_tokenizer_and_transformer_may_have_measured_states_differently(
    make_tokenizer: Make, make_transformer: Make, make_frames: MakeFrames, device: torch.device
) -> None:
    tokenizer = make_tokenizer(state=POSE)
    other = StateConfig(mean=(0.0, 1.0, 2.0), std=(3.0, 2.0, 1.0), change=(0.5, 0.2, 0.1))  # no angles, even
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, state=other)).to(device)
    session, context = model.start(make_frames(2, 2), seed=1, states=poses(2)), make_frames(2, 2)
    steps = [session.step() for _ in range(2)]
    codes = tokenizer.encode_context(context).codes
    tokens = torch.stack([step.tokens for step in steps], dim=1) - tokenizer.layout.dynamics_ids.start
    shown = torch.cat([poses(2).to(device), *(step.state[:, None] for step in steps)], dim=1)  # type: ignore[index]
    video = tokenizer.detokenize(tokenizer.layout.assemble(codes, tokens), shown)
    torch.testing.assert_close(session.frames, video[:, 2:], **NEAR)


def test_states_of_different_sizes_do_not_go_together(make_tokenizer: Make, make_transformer: Make) -> None:
    tokenizer = make_tokenizer(state=StateConfig(mean=(0.0,), std=(1.0,), change=(1.0,)))
    message = "the tokenizer has learned states of 1 numbers, the transformer of 3. Train the transformer"
    with pytest.raises(ConfigError, match=re.escape(message)):
        WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, state=POSE))


def test_a_transformer_without_states_draws_without_them(
    make_tokenizer: Make, make_transformer: Make, make_frames: MakeFrames, device: torch.device
) -> None:
    tokenizer = make_tokenizer(state=POSE)
    model = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout)).to(device)
    step = model.start(make_frames(1, 2), seed=1).step()
    assert step.state is None
    codes = tokenizer.encode_context(make_frames(1, 2)).codes
    tokens = tokenizer.layout.assemble(codes, step.tokens[:, None] - tokenizer.layout.dynamics_ids.start)
    torch.testing.assert_close(step.frame, tokenizer.detokenize(tokens)[:, -1], **NEAR)
