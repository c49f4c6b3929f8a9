"""The log-probability of a session's steps is what the transformer says of their tokens, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import SamplingConfig, StateConfig

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 3
POSE = StateConfig(mean=(0.0, 1.0, 0.0), std=(1.0, 2.0, 1.0), change=(0.1, 0.1, 0.1), angles=(2,))


@pytest.mark.parametrize("state", [None, POSE], ids=["no state", "state"])
@pytest.mark.parametrize("reward", [True, False], ids=["reward", "no reward"])
@pytest.mark.parametrize(
    "sampling",
    [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=7), SamplingConfig(temperature=1.3, top_p=0.8)],
    ids=["plain", "top-k", "top-p"],
)
def test_both_agree(
    make_world_model: MakeWorldModel,
    make_frames: MakeFrames,
    sampling: SamplingConfig,
    reward: bool,
    state: StateConfig | None,
) -> None:
    model = make_world_model(action_dim=A, reward=reward, place_embedding=True, state=state)
    context, actions = make_frames(2, 2), torch.rand(4, 2 + HORIZON, A) * 2 - 1
    session = model.start(context, branches=2, seed=1, sampling=sampling, horizon=HORIZON)
    steps = [session.step(actions[:, 1 + j]) for j in range(HORIZON)]
    layout, rows = model.transformer.layout, context.repeat_interleave(2, dim=0)
    before, _ = layout.split(model.tokenizer.tokenize(rows))
    codes = torch.stack([step.tokens for step in steps], dim=1) - layout.dynamics_ids.start
    states = None
    if state is not None:
        shown = [step.state[:, None] for step in steps if step.state is not None]
        states = torch.cat([model.tokenizer.read_states(rows), *shown], dim=1)
    made = model.transformer.logprob(layout.assemble(before, codes), sampling, actions, states)
    assert made.shape == (4, HORIZON)
    torch.testing.assert_close(made, torch.stack([step.logprob for step in steps], dim=1), atol=1e-3, rtol=1e-3)
    made.sum().backward()
    gradient = model.transformer.layers[0].attention.qkv.weight.grad  # type: ignore[union-attr, union-attr]
    assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0  # type: ignore[operator]


def test_the_likeliest_tokens_are_certain(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, sampling = make_world_model(), SamplingConfig(temperature=0)
    session = model.start(make_frames(2, 2), sampling=sampling)
    tokens = session.step().tokens
    layout = model.transformer.layout
    before, _ = layout.split(model.tokenizer.tokenize(make_frames(2, 2)))
    whole = layout.assemble(before, tokens[:, None] - layout.dynamics_ids.start)
    assert (model.transformer.logprob(whole, sampling) == 0).all()
    whole[:, -1] = layout.dynamics_ids.start + (whole[:, -1] - layout.dynamics_ids.start + 1) % layout.dynamics_codes
    assert (model.transformer.logprob(whole, sampling) == -torch.inf).all(), "never sampled"
