"""The transformer: sizes, agreement with Hugging Face, actions, rewards, dropout, refusals."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt import TokenLayout, VideoTransformer
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.official import transformer_to_official
from ivideogpt.presets import TRANSFORMERS

MakeTransformer = Callable[..., VideoTransformer]

LAYOUT = TokenLayout(context_frames=2, context_tokens=6, dynamics_tokens=3, context_codes=20, dynamics_codes=12)
FRAMES = 5


def random_tokens(layout: TokenLayout = LAYOUT, batch: int = 2, frames: int = FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    t = layout.context_frames
    context = torch.randint(layout.context_codes, (batch, t, layout.context_tokens), generator=generator)
    dynamics_shape = (batch, frames - t, layout.dynamics_tokens)
    return layout.assemble(context, torch.randint(layout.dynamics_codes, dynamics_shape, generator=generator))


def random_actions(size: int, batch: int = 2, frames: int = FRAMES) -> Tensor:
    return torch.rand(batch, frames, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(("preset", "count"), [("small", 138_434_304), ("medium", 436_261_888)])
def test_official_parameter_counts(preset: str, count: int) -> None:
    with torch.device("meta"):
        transformer = VideoTransformer.from_preset(preset)
    assert sum(weight.numel() for weight in transformer.parameters()) == count


@pytest.mark.parametrize("preset", sorted(TRANSFORMERS))
def test_action_input_and_reward_head_only_on_request(preset: str) -> None:
    with torch.device("meta"):
        plain = VideoTransformer.from_preset(preset)
        full = VideoTransformer.from_preset(preset, action_dim=4, reward=True)
    hidden = plain.config.hidden
    added = sum(w.numel() for w in full.parameters()) - sum(w.numel() for w in plain.parameters())
    assert added == (4 * hidden + hidden) + (hidden + 1)


@pytest.mark.parametrize("heads", [2, 4])
@torch.no_grad()
def test_logits_are_those_of_hugging_face(make_transformer: MakeTransformer, heads: int) -> None:
    transformers = pytest.importorskip("transformers")
    model = make_transformer(layout=LAYOUT, heads=heads, layers=3, hidden=32, feed_forward=48, rope_base=500.0)
    config, weights = transformer_to_official(model.config, dict(model.state_dict()))
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
    theirs.load_state_dict(weights)
    tokens = random_tokens()
    torch.testing.assert_close(model(tokens).logits, theirs(tokens).logits, atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id is None, "no ordinary token may end a sequence"


def test_shapes(make_transformer: MakeTransformer) -> None:
    tokens = random_tokens()
    plain = make_transformer(layout=LAYOUT)(tokens)
    assert plain.logits.shape == (*tokens.shape, LAYOUT.vocabulary)
    assert plain.rewards is None
    full = make_transformer(layout=LAYOUT, action_dim=4, reward=True)(tokens, random_actions(4))
    assert full.logits.shape == plain.logits.shape
    assert full.rewards is not None
    assert full.rewards.shape == (2, FRAMES - 2)


@torch.no_grad()
def test_nothing_depends_on_later_tokens(make_transformer: MakeTransformer) -> None:
    model, tokens = make_transformer(layout=LAYOUT), random_tokens()
    logits = model(tokens).logits
    for position in (1, LAYOUT.prefix_length, tokens.shape[1] - 1):
        other = tokens.clone()
        other[:, position] = (other[:, position] + 1) % LAYOUT.vocabulary
        changed = (model(other).logits != logits).any(dim=2).any(dim=0)
        assert not changed[:position].any()
        assert changed[position:].all()


# Actions


@torch.no_grad()
def test_a_new_action_input_changes_nothing() -> None:
    torch.manual_seed(0)
    free = VideoTransformer.from_preset("micro", layout=LAYOUT).eval()
    conditioned = VideoTransformer.from_preset("micro", layout=LAYOUT, action_dim=4).eval()
    missing = conditioned.load_state_dict(free.state_dict(), strict=False).missing_keys
    assert sorted(missing) == ["action_in.bias", "action_in.weight"]
    tokens = random_tokens()
    assert torch.equal(conditioned(tokens, random_actions(4)).logits, free(tokens).logits)
    assert torch.equal(conditioned(tokens).logits, free(tokens).logits)


@pytest.mark.parametrize("t", [1, 2, 3])
def test_the_actions_used_are_those_on_the_way_to_a_future_frame(make_transformer: MakeTransformer, t: int) -> None:
    layout = dataclasses.replace(LAYOUT, context_frames=t)
    model = make_transformer(layout=layout, action_dim=3)
    actions = random_actions(3).requires_grad_()
    model(random_tokens(layout), actions).logits.square().sum().backward()
    assert actions.grad is not None
    used = (actions.grad != 0).all(dim=2).all(dim=0)
    assert used.tolist() == [t - 1 <= j <= FRAMES - 2 for j in range(FRAMES)]


@torch.no_grad()
def test_an_action_is_added_to_the_slot_of_the_next_frame(make_transformer: MakeTransformer) -> None:
    model, tokens, actions = make_transformer(layout=LAYOUT, action_dim=3), random_tokens(), random_actions(3)
    added = model.embed(tokens, actions) - model.embed(tokens, None)
    for j in range(1, FRAMES - 1):  # t - 1 .. T - 2
        slot = LAYOUT.prefix_length + LAYOUT.frame_length * (j - 1)
        torch.testing.assert_close(added[:, slot], model.embed_actions(actions[:, j]), atol=1e-5, rtol=1e-5)
        added[:, slot] = 0
    assert not added.any()


# Rewards


@torch.no_grad()
def test_rewards_are_read_from_the_last_token_of_each_frame(make_transformer: MakeTransformer) -> None:
    model, tokens, actions = (
        make_transformer(layout=LAYOUT, action_dim=3, reward=True),
        random_tokens(),
        random_actions(3),
    )
    hidden = model.hidden_states(model.embed(tokens, actions))
    last = [LAYOUT.prefix_length + LAYOUT.frame_length * (k + 1) - 1 for k in range(FRAMES - 2)]
    assert last[-1] == tokens.shape[1] - 1
    assert model.reward_head is not None
    expected = torch.stack([model.reward_head(hidden[:, i])[:, 0] for i in last], dim=1)
    torch.testing.assert_close(model(tokens, actions).rewards, expected)


# Training


def test_dropout_on_attention_only_in_training(make_transformer: MakeTransformer) -> None:
    model, tokens = make_transformer(layout=LAYOUT, attention_dropout=0.5), random_tokens()
    quiet = model(tokens).logits
    assert torch.equal(model(tokens).logits, quiet)
    model.train()
    first, second = model(tokens).logits, model(tokens).logits
    assert not torch.equal(first, second)
    # The first token attends to itself alone: dropping that or doubling it are the only two outcomes.
    assert not torch.equal(first, quiet)
    without = make_transformer(layout=LAYOUT, attention_dropout=0.0).train()
    assert torch.equal(without(tokens).logits, quiet)


def test_gradients_reach_every_parameter(make_transformer: MakeTransformer) -> None:
    model, tokens = make_transformer(layout=LAYOUT, action_dim=3, reward=True), random_tokens()
    output = model(tokens, random_actions(3))
    labels = LAYOUT.labels(tokens)
    loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    assert output.rewards is not None
    (loss + output.rewards.square().mean()).backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not missing


@torch.no_grad()
def test_positions_survive_half_precision(make_transformer: MakeTransformer) -> None:
    """Rotary frequencies that were rounded along with the weights would be wrong by radians far into a sequence."""
    layout = TokenLayout(1, 900, 3, 20, 12)
    model = make_transformer(layout=layout, hidden=64)
    tokens = random_tokens(layout, frames=3)
    for weight in model.parameters():
        weight.copy_(weight.bfloat16())
    exact = model(tokens).logits
    assert torch.equal(model.to(torch.bfloat16).to(torch.float32)(tokens).logits, exact)
    cosines, sines = model.to(torch.bfloat16)._rotary(slice(999, 1000), torch.float32)
    angles = 999 / 10_000 ** (torch.arange(0, 32, 2) / 32).double()
    torch.testing.assert_close(cosines[0, :16].double(), angles.cos(), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(sines[0, 16:].double(), angles.sin(), atol=1e-3, rtol=0.0)


def test_dynamics_logits_are_those_of_the_legal_ids(make_transformer: MakeTransformer) -> None:
    model = make_transformer(layout=LAYOUT)
    hidden = torch.randn(3, model.config.hidden)
    legal = model.head(hidden)[:, LAYOUT.dynamics_ids.start : LAYOUT.dynamics_ids.stop]
    torch.testing.assert_close(model.dynamics_logits(hidden), legal)


# Refusals


@pytest.mark.parametrize(
    ("actions", "complaint"),
    [
        (torch.zeros(2, 5, 4), "actions have shape (2, 5, 4); this model takes (B, T, A) = (2, 5, 3)"),
        (torch.zeros(2, 4, 3), "actions have shape (2, 4, 3)"),
        (torch.zeros(1, 5, 3), "actions have shape (1, 5, 3)"),
        (torch.zeros(2, 5), "actions have shape (2, 5)"),
    ],
)
def test_refuses_actions_that_do_not_fit(make_transformer: MakeTransformer, actions: Tensor, complaint: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(complaint)):
        make_transformer(layout=LAYOUT, action_dim=3)(random_tokens(), actions)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_actions_that_are_not_finite(make_transformer: MakeTransformer, value: float) -> None:
    actions = random_actions(3)
    actions[1, 2, 0] = value
    with pytest.raises(ShapeError, match=r"the action of row 1 holds (nan|inf|-inf); each component must be finite"):
        make_transformer(layout=LAYOUT, action_dim=3)(random_tokens(), actions)


def test_refuses_actions_out_of_range(make_transformer: MakeTransformer) -> None:
    model, actions = make_transformer(layout=LAYOUT, action_dim=3, action_limit=2.0), random_actions(3).clamp(-2, 2)
    model(random_tokens(), actions)
    actions[1, 0, 1] = -2.5
    with pytest.raises(ShapeError, match=r"the action of row 1 holds -2\.5; .* must be finite and lie in \[-2, 2\]"):
        model(random_tokens(), actions)


def test_refuses_actions_where_the_model_takes_none(make_transformer: MakeTransformer) -> None:
    with pytest.raises(ShapeError, match="this model takes none"):
        make_transformer(layout=LAYOUT)(random_tokens(), random_actions(3))


def test_refuses_part_of_a_frame_and_too_many(make_transformer: MakeTransformer) -> None:
    with pytest.raises(ShapeError, match="24 tokens are not a whole segment"):
        make_transformer(layout=LAYOUT)(random_tokens()[:, :-1])
    with pytest.raises(ShapeError, match="25 tokens exceeds the model's 24 positions"):
        make_transformer(layout=LAYOUT, max_positions=24)(random_tokens())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"hidden": 18, "heads": 4}, "hidden is 18 with 4 heads"),
        ({"hidden": 12, "heads": 4}, "each head needs an equal, even number"),
        ({"max_positions": 30}, "max_positions is 30; the context and one future frame already take 38"),
        ({"action_dim": 0}, "action_dim is 0: Input should be greater than or equal to 1"),
        ({"depth": 3}, "unknown field 'depth'"),
    ],
)
def test_refuses_an_illegal_configuration(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        VideoTransformer.from_preset("micro", **changes)


def test_refuses_a_layout_that_is_too_long() -> None:
    with pytest.raises(ConfigError, match="already take 4018"):
        VideoTransformer.from_preset("micro", layout=TokenLayout(context_tokens=2000))


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="unknown transformer preset 'smal'"):
        VideoTransformer.from_preset("smal")
