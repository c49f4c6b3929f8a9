"""States in a transformer: predicted from the frames before, drawn at the slot, and nothing else changed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import TokenLayout, VideoTransformer
from ivideogpt.config import StateConfig
from ivideogpt.errors import ShapeError
from ivideogpt.states import encode_states
from ivideogpt.transformer.states import StatePath

MakeTransformer = Callable[..., VideoTransformer]

LAYOUT = TokenLayout(context_frames=2, context_tokens=6, dynamics_tokens=3, context_codes=20, dynamics_codes=12)
POSE = StateConfig(angles=(1,), mean=(10.0, 0.0, -2.0), std=(2.0, 1.0, 0.5), change=(0.2, 0.1, 0.02))
FRAMES, A = 5, 3


def random_tokens(layout: TokenLayout = LAYOUT, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    t = layout.context_frames
    context = torch.randint(layout.context_codes, (batch, t, layout.context_tokens), generator=generator)
    dynamics = torch.randint(layout.dynamics_codes, (batch, FRAMES - t, layout.dynamics_tokens), generator=generator)
    return layout.assemble(context, dynamics)


def random_states(batch: int = 2) -> Tensor:
    noise = torch.randn(batch, FRAMES, POSE.size, generator=torch.Generator().manual_seed(2))
    return noise * torch.tensor(POSE.std) + torch.tensor(POSE.mean)


def random_actions(batch: int = 2) -> Tensor:
    return torch.rand(batch, FRAMES, A, generator=torch.Generator().manual_seed(1)) * 2 - 1


def path_of(model: VideoTransformer) -> StatePath:
    assert model.states is not None
    return model.states


# What is added, and what stays


@torch.no_grad()
def test_new_states_change_nothing() -> None:
    torch.manual_seed(0)
    plain = VideoTransformer.from_preset("micro", layout=LAYOUT, action_dim=A).eval()
    knowing = VideoTransformer.from_preset("micro", layout=LAYOUT, action_dim=A, state=POSE).eval()
    missing = knowing.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing and all(name.startswith("states.") for name in missing)
    tokens, actions = random_tokens(), random_actions()
    assert torch.equal(knowing(tokens, actions, random_states()).logits, plain(tokens, actions).logits)
    assert torch.equal(knowing(tokens, actions).logits, plain(tokens, actions).logits)


def test_a_model_without_states_has_no_part_of_them(make_transformer: MakeTransformer) -> None:
    model = make_transformer(layout=LAYOUT)
    assert model.states is None and not any("state" in name for name in model.state_dict())
    assert model(random_tokens()).states is None


# Where states are seen and predicted


@torch.no_grad()
def test_the_state_that_a_frame_shows_is_added_to_its_slot(make_transformer: MakeTransformer) -> None:
    model, tokens, actions = (
        make_transformer(layout=LAYOUT, action_dim=A, state=POSE),
        random_tokens(),
        random_actions(),
    )
    features = encode_states(random_states(), POSE)
    added = model.embed(tokens, actions, features) - model.embed(tokens, actions)
    for j in range(2, FRAMES):
        slot = LAYOUT.prefix_length + LAYOUT.frame_length * (j - 2)
        expected = path_of(model).embedding(features[:, j])
        torch.testing.assert_close(added[:, slot], expected, atol=1e-5, rtol=1e-5)
        added[:, slot] = 0
    assert not added.any()


@torch.no_grad()
def test_a_state_changes_its_frame_and_later_ones_alone(make_transformer: MakeTransformer) -> None:
    model, tokens, states = make_transformer(layout=LAYOUT, state=POSE), random_tokens(), random_states()
    logits = model(tokens, None, states).logits
    for j in range(FRAMES):
        other = states.clone()
        other[:, j] += torch.tensor(POSE.change)
        changed = (model(tokens, None, other).logits != logits).any(dim=2).any(dim=0)
        if j < 2:
            assert not changed.any(), "a context is seen, not drawn"
        else:
            slot = LAYOUT.prefix_length + LAYOUT.frame_length * (j - 2)
            assert not changed[:slot].any() and changed[slot:].all()


@torch.no_grad()
def test_small_differences_are_told_apart(make_transformer: MakeTransformer) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE))
    features = torch.linspace(-2, 2, 401)[:, None].expand(-1, POSE.features)  # hundredths of a deviation
    embedded = path.embedding(features)
    apart = torch.cdist(embedded, embedded) + torch.eye(401) * 1e9
    assert apart.min() > 0.1


@pytest.mark.parametrize(("t", "goal"), [(1, False), (2, False), (3, False), (2, True), (3, True)])
@pytest.mark.parametrize("action_dim", [None, A])
@torch.no_grad()
def test_each_state_is_foretold_from_the_two_before_and_the_action_between(
    make_transformer: MakeTransformer, t: int, goal: bool, action_dim: int | None
) -> None:
    layout = dataclasses.replace(LAYOUT, context_frames=t, goal=goal)
    path = path_of(make_transformer(layout=layout, state=POSE, action_dim=action_dim))
    features = encode_states(random_states(), POSE)
    actions = None if action_dim is None else random_actions()
    predicted = path.next_of_segment(features, actions)
    assert predicted.shape == (2, FRAMES - t, POSE.features)
    for j in range(t, FRAMES):
        before = j - 2 if j - 2 >= int(goal) else j - 1  # the first frame is its own before; a goal is no moment
        taken = None if actions is None else actions[:, j - 1]
        alone = path.next(features[:, before], features[:, j - 1], taken)
        torch.testing.assert_close(predicted[:, j - t], alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_forward_foretells(make_transformer: MakeTransformer) -> None:
    model = make_transformer(layout=LAYOUT, action_dim=A, state=POSE, reward=True)
    tokens, actions, states = random_tokens(), random_actions(), random_states()
    output, blind = model(tokens, actions, states), model(tokens, actions)
    assert blind.states is None and blind.rewards is not None
    path = path_of(model)
    expected = path.decoded(path.next_of_segment(encode_states(states, POSE), actions))
    assert output.states is not None and output.states.shape == (2, FRAMES - 2, POSE.size)
    assert torch.equal(output.states, expected)
    hidden = model.hidden_states(model.embed(tokens, actions, encode_states(states, POSE)))
    assert torch.equal(output.logits, model.head(hidden))
    last = LAYOUT.reward_positions(FRAMES)
    assert output.rewards is not None and torch.equal(output.rewards, model.rewards(hidden[:, last]))


# The dynamics


def test_nothing_said_is_no_change_and_what_is_said_is_in_units_of_the_usual_one(
    make_transformer: MakeTransformer,
) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE, action_dim=A))
    states, actions = random_states(), random_actions()
    features = encode_states(states, POSE)
    with torch.no_grad():
        path.dynamics.state_out.weight.zero_()
        path.dynamics.state_out.bias.zero_()
        still = path.next(features.roll(1, dims=1), features, actions)
        torch.testing.assert_close(still, features)
        path.dynamics.state_out.bias[:2] = torch.tensor([1.0, -2.0])  # x and y
        moved = path.decoded(path.next(features, features, actions))
    torch.testing.assert_close(moved[..., 0], states[..., 0] + 0.2, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[..., 2], states[..., 2] - 2 * 0.02, atol=1e-4, rtol=0)
    turned = (moved[..., 1] - states[..., 1] + math.pi) % (2 * math.pi) - math.pi
    assert turned.abs().max() < 1e-4


@torch.no_grad()
def test_what_is_foretold_is_a_state(make_transformer: MakeTransformer) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE, action_dim=A))
    features = encode_states(random_states(), POSE)
    following = path.next(features, features, random_actions())
    torch.testing.assert_close(following[..., 2:].norm(dim=-1), torch.ones(2, FRAMES))
    torch.testing.assert_close(encode_states(path.decoded(following), POSE), following, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_all_that_goes_before_matters(make_transformer: MakeTransformer) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE, action_dim=A))
    features, actions = encode_states(random_states(), POSE), random_actions()
    before, present, action = features[:, 0], features[:, 1], actions[:, 1]
    plain = path.next(before, present, action)
    assert not torch.allclose(path.next(present, present, action), plain)
    assert not torch.allclose(path.next(before, present, -action), plain)
    assert not torch.allclose(path.next(before, before, action) - before, plain - present)


@torch.no_grad()
def test_no_action_is_an_action_of_zeros(make_transformer: MakeTransformer) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE, action_dim=A))
    features = encode_states(random_states(), POSE)
    zeros = torch.zeros(2, FRAMES, A)
    assert torch.equal(path.next(features, features, None), path.next(features, features, zeros))
    assert torch.equal(path.next_of_segment(features, None), path.next_of_segment(features, zeros))
    free = path_of(make_transformer(layout=LAYOUT, state=POSE))
    assert free.next(features, features, None).shape == features.shape


@torch.no_grad()
def test_low_precision_of_the_rest_does_not_round_states(make_transformer: MakeTransformer) -> None:
    path = path_of(make_transformer(layout=LAYOUT, state=POSE, action_dim=A))
    features, actions = encode_states(random_states(), POSE), random_actions()
    exact = path.next(features, features, actions)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(path.next(features, features, actions), exact)


def test_gradients_reach_every_part(make_transformer: MakeTransformer) -> None:
    model = make_transformer(layout=LAYOUT, action_dim=A, state=POSE)
    tokens, states = random_tokens(), random_states()
    output = model(tokens, random_actions(), states)
    last = model.hidden_states(model.embed(tokens, None))[:, -1]
    (output.logits.square().mean() + output.states.square().mean() + path_of(model).head(last).mean()).backward()
    missing = [name for name, weight in path_of(model).named_parameters() if weight.grad is None]
    assert not missing


# Refusals


@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 3), (1, 5, 3), (2, 5), (5, 3)])
def test_refuses_states_that_do_not_fit(make_transformer: MakeTransformer, shape: tuple[int, ...]) -> None:
    complaint = f"states have shape {shape}; this model takes (B, T, S) = (2, 5, 3), one a frame"
    with pytest.raises(ShapeError, match=re.escape(complaint)):
        make_transformer(layout=LAYOUT, state=POSE)(random_tokens(), None, torch.zeros(shape))


@pytest.mark.parametrize("use", ["forward", "embed"])
def test_refuses_states_where_the_model_has_learned_none(make_transformer: MakeTransformer, use: str) -> None:
    called: Any = getattr(make_transformer(layout=LAYOUT), use)
    with pytest.raises(ShapeError, match="states were given, but this model has learned none"):
        called(random_tokens(), None, random_states())
