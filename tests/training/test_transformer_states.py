"""How the transformer learns states: its losses by hand, whom they teach, and the figures of a validation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from ivideogpt import WorldModel, hub
from ivideogpt.config import StateConfig
from ivideogpt.training.config import TransformerTrainingConfig
from ivideogpt.training.run import train_transformer
from ivideogpt.training.transformer import TransformerLearner, transformer_losses
from ivideogpt.training.transformer import make_transformer as make_started
from ivideogpt.training.transitions import Transitions, next_state_error
from tests.training.states import same, saved
from tests.training.test_transformer import batch_of

Make = Callable[..., Any]
Settings = Callable[..., Any]
CPU = torch.device("cpu")
POSE = StateConfig(angles=(1,), mean=(2.0, 0.0), std=(3.0, 1.0), change=(0.3, 0.2))


def test_figures_with_states(make_transformer: Make, make_tokenizer: Make, transformer_settings: Settings) -> None:
    model = make_transformer(action_dim=2, state=POSE)
    learner = TransformerLearner(model, make_tokenizer(), transformer_settings(states=True), CPU, bf16=False)
    batch = dataclasses.replace(batch_of(model.layout), states=torch.randn(3, 5, 2))
    batch.mask[0, -1] = False
    with torch.no_grad():
        losses, _ = transformer_losses(model, batch)
        figures = learner.validate([batch])
        actions, path, t = batch.actions.roll((1, 2), dims=(0, 1)), model.states, model.layout.context_frames  # type: ignore[union-attr]
        elsewhere = batch.states.clone()  # type: ignore[union-attr]
        elsewhere[:, t:] = path.decoded(path.next_of_segment(path.features(batch.states), actions))
        unlike = transformer_losses(model, dataclasses.replace(batch, actions=actions, states=elsewhere))[0]
        error = next_state_error(model.states, batch.states, batch.actions, batch.mask)
    assert set(figures) == {*losses, "accuracy", "cross_entropy_shuffled_actions", "state_next"}
    assert figures["cross_entropy_shuffled_actions"] == pytest.approx(float(unlike["cross_entropy"]), rel=1e-5)
    assert figures["state_next"] == pytest.approx(float(error), rel=1e-5)
    with torch.no_grad():
        assert "state_next" not in learner.validate([dataclasses.replace(batch, states=None)])


def test_losses_of_states(make_transformer: Make, make_tokenizer: Make, transformer_settings: Settings) -> None:
    """What a state is read from, whom each loss teaches, and that all of them are weighted."""
    transitions = Transitions(torch.randn(50, 3, 2), torch.randn(50, 2))
    losses = {}
    for weight in (1.0, 5.0):
        model = make_transformer(action_dim=2, state=POSE)
        config = transformer_settings(states=True, state_weight=weight, state_transitions=20)
        learner = TransformerLearner(model, make_tokenizer(), config, CPU, False, transitions)
        batch = dataclasses.replace(batch_of(model.layout), states=torch.ones(3, 5, 2))
        batch.mask[2, -2:] = False
        torch.manual_seed(0)
        losses[weight] = learner.losses(batch, 0)
    assert set(losses[1.0]) == {"cross_entropy", "state_seen", "state_dynamics"}
    for name, loss in losses[1.0].items():
        torch.testing.assert_close(losses[5.0][name], loss * (1 if name == "cross_entropy" else 5))
    features, layout = model.states.features(batch.states), model.layout
    hidden = model.hidden_states(model.embed(batch.tokens, batch.actions, features))
    last = [layout.prefix_length - 1, *layout.reward_positions(5).tolist()]  # of the context, and of each future frame
    error = (model.states.head(hidden[:, last]) - features[:, 1:]).abs().mean(dim=-1)
    torch.testing.assert_close(losses[1.0]["state_seen"], error[batch.mask[:, 1:]].mean())
    losses[1.0]["state_dynamics"].backward()
    assert model.embedding.weight.grad is None
    losses[5.0]["state_dynamics"].backward()
    taught = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert taught and all(name.startswith("states.dynamics.") for name in taught)


def test_resuming_with_states_is_bit_exact(
    tmp_path: Path, make_tokenizer: Make, transformer_settings: Settings, make_episodes: Make
) -> None:
    pose = StateConfig(mean=(1.0, 2.0, 0.0), std=(3.0, 4.0, 1.0), change=(1.0, 1.0, 0.5))
    told = make_tokenizer(state=pose)
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(told.config, dict(told.state_dict()))))
    make_episodes(states=True)
    changes = {"states": True, "ema": 0.5, "optimizer": "muon", "state_transitions": 16, "cache_tokens": 5}
    whole = list(train_transformer(transformer_settings(out=tmp_path / "whole", **changes)))
    list(islice(train_transformer(transformer_settings(**changes)), len(whole) - 3))  # the cache's reports come first
    rest = list(train_transformer(transformer_settings(resume=True, **changes)))
    assert [step.losses for step in rest] == [step.losses for step in whole[-3:]]
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "run"))


def test_a_model_with_states_gets_actions(tmp_path: Path, make_transformer: Make, make_tokenizer: Make) -> None:
    """It continues as it was: an action that has only just come changes nothing."""
    tokenizer, model = make_tokenizer(state=POSE), make_transformer(action_dim=None, state=POSE)
    WorldModel(tokenizer, model).save_pretrained(tmp_path / "free")
    config = TransformerTrainingConfig(data=tmp_path, out=tmp_path, start_from=str(tmp_path / "free"), states=True)
    other = make_started(config, tokenizer, 2, POSE)
    before, present = torch.randn(2, 7, POSE.features)
    actions = torch.randn(7, 2)
    with torch.no_grad():
        torch.testing.assert_close(
            other.states.next(before, present, actions), model.states.next(before, present, None)
        )
