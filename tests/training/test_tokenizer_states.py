"""How the tokenizer learns states and, with or without them, a prior: losses, what is withheld, figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import CompressiveTokenizer
from ivideogpt.config import StateConfig
from ivideogpt.data.loader import Batch
from ivideogpt.states import encode_states
from ivideogpt.tokenizer.states import ShownStates
from ivideogpt.training.pictures import labelled_rows
from ivideogpt.training.tokenizer import TokenizerLearner
from tests.conftest import enliven
from tests.training.states import same
from tests.training.test_tokenizer import batch_of, total

Settings = Callable[..., Any]
CPU = torch.device("cpu")
POSE = StateConfig(angles=(1,), mean=(2.0, 0.0), std=(3.0, 1.0), change=(0.3, 0.2))


def with_states(batch: Batch) -> Batch:
    generator = torch.Generator().manual_seed(1)
    return dataclasses.replace(batch, states=torch.randn(*batch.mask.shape, 2, generator=generator))


def learner_of(config: Any, **changes: Any) -> TokenizerLearner:
    """Of a tokenizer that knows states and listens to them."""
    model = enliven(CompressiveTokenizer.from_preset("micro-16", **{"state": POSE, **changes}))
    return TokenizerLearner(model, config, CPU, bf16=False)


def losses_of(learner: TokenizerLearner, batch: Batch, seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return learner.losses(batch, 0)


# Losses


def test_names_and_weights(tokenizer_settings: Settings) -> None:
    batch = with_states(batch_of())
    weights = {"state_weight": 1.0, "residual_weight": 1.0, "prior_weight": 1.0}
    plain = losses_of(learner_of(tokenizer_settings(states=True, **weights)), batch)
    theirs = {"state_frame": "state_weight", "state_dynamics": "state_weight", "residual": "residual_weight"}
    theirs["prior"] = "prior_weight"
    assert set(theirs) < set(plain)
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in plain.values())
    for weight in weights:
        heavy = losses_of(learner_of(tokenizer_settings(states=True, **{**weights, weight: 5.0})), batch)
        for name, loss in plain.items():
            torch.testing.assert_close(heavy[name], loss * (5 if theirs.get(name) == weight else 1))
    assert "prior" not in losses_of(learner_of(tokenizer_settings(states=True)), batch)


def test_a_batch_without_states_teaches_none(tokenizer_settings: Settings) -> None:
    """As where a model that has learned states is trained on without them."""
    knowing, plain = learner_of(tokenizer_settings()), learner_of(tokenizer_settings(), state=None)
    weights = {k: v for k, v in knowing.model.state_dict().items() if not k.startswith("states.")}
    plain.model.load_state_dict(weights)
    one, other = (losses_of(learner, batch_of()) for learner in (knowing, plain))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


# What is withheld


@pytest.mark.parametrize(("states", "tokens"), [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)])
@torch.no_grad()
def test_states_or_tokens_are_withheld(tokenizer_settings: Settings, states: float, tokens: float) -> None:
    settings = tokenizer_settings(states=True, withhold_states=states, withhold_tokens=tokens)
    learner, batch = learner_of(settings, dropout=0.0), with_states(batch_of())
    losses, frames = losses_of(learner, batch), batch.frames / 255
    assert bool(losses["residual"].any()) == (states == 0) and bool(losses["state_dynamics"].any()) == (states == 1)
    assert batch.states is not None
    shown = None if states else ShownStates(encode_states(batch.states[:, 2:], POSE))
    dropped = torch.ones_like(batch.mask[:, 2:]) if tokens and not states else None
    expected = learner.model(frames, shown, dropped)  # never both
    assert learner._last is not None
    torch.testing.assert_close(learner._last.future, expected.future)


def test_what_is_withheld_follows_torchs_seed(tokenizer_settings: Settings) -> None:
    learner = learner_of(tokenizer_settings(states=True, withhold_states=0.5, withhold_tokens=0.5), dropout=0.0)
    batch = with_states(batch_of(count=6))
    with torch.no_grad():
        one, again, other = (losses_of(learner, batch, seed) for seed in (0, 0, 1))
    assert same(one, again) and not same(one, other)
    torch.manual_seed(0)
    features = torch.randn(2000, 3, 3)
    shown, dropped = learner._what_is_told(features)
    assert shown.known is not None
    assert 0.45 < shown.known.float().mean() < 0.55
    assert 0.45 < dropped[shown.known].float().mean() < 0.55 and not dropped[~shown.known].any()


# Figures


@torch.no_grad()
def test_figures_and_picture(tokenizer_settings: Settings) -> None:
    learner, batch = learner_of(tokenizer_settings(states=True)), with_states(batch_of(count=6))
    figures, picture = learner.validate([batch, batch]), learner.picture(batch)
    alone = {"psnr_states_alone", "psnr_tokens_alone"}
    assert set(figures) == {"psnr_context", "psnr_future", "l1_future", "state_frame", *alone}
    assert batch.states is not None
    shown, frames = ShownStates(encode_states(batch.states[:, 2:], POSE)), batch.frames / 255
    told = {
        "psnr_future": learner.model(frames, shown),
        "psnr_states_alone": learner.model(frames, shown, torch.ones_like(batch.mask[:, 2:])),
        "psnr_tokens_alone": learner.model(frames),
    }
    for name, output in told.items():
        error = (output.future.clamp(0, 1) - frames[:, 2:]).square().mean(dim=(2, 3, 4))
        assert figures[name] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-5)
    read = told["psnr_future"].frame_states
    expected = (read - encode_states(batch.states, POSE)).abs().mean()
    assert figures["state_frame"] == pytest.approx(float(expected), rel=1e-5)
    made = torch.cat([told["psnr_future"].context, told["psnr_future"].future], dim=1)
    torch.testing.assert_close(picture, labelled_rows({"real": frames[:4], "reconstructed": made[:4]}, 2))


# The prior


def test_the_prior_learns_beside_the_tokenizer_and_is_no_part_of_it(tokenizer_settings: Settings) -> None:
    learner, batch = learner_of(tokenizer_settings(states=True, prior_weight=0.5)), with_states(batch_of())
    assert learner.prior is not None and learner.prior.model.state is not None
    before = {name: weight.clone() for name, weight in learner.state().items()}
    names = set(learner.model.state_dict())
    assert {name.split(".")[0] for name in before} == {"context", "dynamics", "prior"}
    total(losses_of(learner, batch)).backward()
    weights = {name: weight for name, weight in before.items() if name.startswith("prior.")}
    assert same(weights, {name: learner.state()[name] for name in weights}), "it has not stepped yet"
    learner.after_step(0)
    after = learner.state()
    moved = [name for name in before if name.startswith("prior.") and not torch.equal(before[name], after[name])]
    assert len(moved) > 10 and any(name.startswith("prior_optimizer.") for name in after)
    assert all(weight.grad is None for weight in learner.prior.model.parameters())
    tokenizer = learner.checkpoint().tokenizer
    assert tokenizer is not None and set(tokenizer[1]) == names and not any("prior" in name for name in names)


def test_the_prior_goes_on_from_its_state(tokenizer_settings: Settings) -> None:
    settings, batch = tokenizer_settings(states=True, prior_weight=0.5), with_states(batch_of())
    one, other = learner_of(settings), learner_of(settings)
    for _ in range(2):
        total(losses_of(one, batch)).backward()
        one.after_step(0)
    other.load_state({name: tensor.clone() for name, tensor in one.state().items()})
    for learner in (one, other):
        learner.model.zero_grad()
        total(losses_of(learner, batch)).backward()
        learner.after_step(0)
    assert same(one.state(), other.state())


def test_the_prior_makes_tokens_predictable(tokenizer_settings: Settings) -> None:
    """Its error alone, flowing into the encoder."""
    learner, batch = learner_of(tokenizer_settings(prior_weight=1.0), state=None, dropout=0.0), batch_of()
    optimizer = torch.optim.Adam(learner.model.prediction_encoder.parameters(), lr=3e-3)
    errors = []
    for _ in range(15):
        loss = losses_of(learner, batch)["prior"]
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(float(loss.detach()))
    assert learner.prior is not None and errors[-1] < 0.8 * errors[0]
