"""Parameter groups, schedules and the moving average, against the recipes written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ivideogpt import CompressiveTokenizer, VideoTransformer
from ivideogpt.training.config import TokenizerTrainingConfig, TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.optimizer import WeightAverage, learning_rate, make_optimizer

CODE_LAYERS = ("context_in", "context_out", "dynamics_in", "dynamics_out")
PLACES: dict[str, Any] = {"data": Path("data"), "out": Path("out")}


def config(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**{**PLACES, **changes})


def test_weight_decay_spares_embeddings_norms_and_biases() -> None:
    model = VideoTransformer.from_preset("micro", action_dim=3, reward=True)
    optimizer = make_optimizer(model, config(weight_decay=0.01, learning_rate=2e-4))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        spared = name.endswith("bias") or "norm" in name or name == "embedding.weight"
        assert decay[id(parameter)] == (0.0 if spared else 0.01), name
    for group in optimizer.param_groups:
        assert group["betas"] == (0.9, 0.999) and group["lr"] == 2e-4


def test_weight_decay_spares_codebooks_and_positions() -> None:
    model = CompressiveTokenizer.from_preset("micro-16")
    optimizer = make_optimizer(model, config(weight_decay=0.5))
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        if "position" in name or "embedding" in name:
            assert id(parameter) not in decayed, name
    assert id(model.dynamics_in.weight) in decayed and id(model.context_in.weight) in decayed


@pytest.mark.parametrize("action_dim", [2, 16])
def test_muon_takes_the_layers_between_hidden_features(action_dim: int) -> None:
    model = VideoTransformer.from_preset("nano", action_dim=action_dim, reward=True)
    groups = make_optimizer(model, config(optimizer="muon", weight_decay=0.01)).param_groups
    orthogonal = {id(p): group["orthogonal"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(orthogonal) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        hidden = name.startswith("layers.") and "norm" not in name
        assert orthogonal[id(parameter)] == hidden, name
        layer = hidden or name in {"head.weight", "action_in.weight", "reward_head.weight"}
        assert decay[id(parameter)] == (0.01 if layer else 0.0), name


@pytest.mark.parametrize("changes", [{}, {"quantizer": "vq", "context_levels": (), "dynamics_levels": ()}])
def test_muon_leaves_pixels_codes_and_positions_to_adamw(changes: dict[str, Any]) -> None:
    model = CompressiveTokenizer.from_preset("nano-64", **changes)
    groups = make_optimizer(model, config(optimizer="muon")).param_groups
    orthogonal = {id(p) for group in groups if group["orthogonal"] for p in group["params"]}
    taken = {name for name, p in model.named_parameters() if id(p) in orthogonal}
    for name in ("context_encoder.conv_in", "prediction_decoder.conv_out", *CODE_LAYERS):
        assert f"{name}.weight" not in taken, name
    assert not any("position" in name or "norm" in name or name.endswith("bias") for name in taken)
    assert sum(p.numel() for p in model.parameters() if id(p) in orthogonal) > 0.8 * sum(
        p.numel() for p in model.parameters()
    )


def test_frozen_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    groups = make_optimizer(model, config()).param_groups
    assert [p for group in groups for p in group["params"]] == list(model[1].parameters())


def test_the_recipes_defaults() -> None:
    tokenizer, transformer = TokenizerTrainingConfig(**PLACES), TransformerTrainingConfig(**PLACES)
    assert (tokenizer.learning_rate, tokenizer.schedule, tokenizer.weight_decay) == (5e-4, "constant", 0.0)
    assert (transformer.learning_rate, transformer.schedule, transformer.weight_decay) == (1e-4, "cosine", 0.01)
    assert tokenizer.clip == transformer.clip == 1.0
    for kind, warmup in ((TokenizerTrainingConfig, 500), (TransformerTrainingConfig, 5_000)):
        assert kind(**PLACES, steps=1_000_000).warmup_steps == warmup
        assert kind(**PLACES, steps=200).warmup_steps == 20  # a short run still reaches its learning rate
        assert kind(**PLACES, steps=200, warmup=150).warmup_steps == 150


def test_constant_after_a_linear_warm_up() -> None:
    settings = config(learning_rate=5e-4, warmup=500, steps=1_000_000)
    rates = [learning_rate(step, settings) for step in (0, 1, 249, 499, 500, 999_999)]
    assert rates == pytest.approx([1e-6, 2e-6, 2.5e-4, 5e-4, 5e-4, 5e-4], rel=1e-12)
    assert learning_rate(0, config(learning_rate=1.0, warmup=0)) == 1.0


def test_cosine_after_a_linear_warm_up() -> None:
    settings = config(learning_rate=1e-4, warmup=5_000, steps=1_000_000, schedule="cosine")
    assert learning_rate(2_499, settings) == pytest.approx(5e-5)
    for step in (5_000, 100_000, 502_500, 999_999, 1_000_000):
        expected = 1e-4 * (1 + math.cos(math.pi * (step - 5_000) / 995_000)) / 2
        assert learning_rate(step, settings) == pytest.approx(expected, abs=1e-15)
    assert learning_rate(999_999, settings) < 1e-12
    assert learning_rate(7, config(warmup=5, steps=5, schedule="cosine")) >= 0


@pytest.fixture
def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def test_average_follows_the_weights(model: nn.Linear) -> None:
    average = WeightAverage(model, decay=0.9)
    expected = model.weight.detach().clone()
    for step in range(200):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(model, step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.weight.detach()
    torch.testing.assert_close(average.weights["weight"], expected)


def test_average_takes_the_models_place_for_a_while(model: nn.Linear) -> None:
    average = WeightAverage(model, decay=0.5)
    start = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.add_(1)
    own = model.weight.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), average.applied(model):
        assert torch.equal(model.weight, start)
        raise RuntimeError("inside")
    assert torch.equal(model.weight, own)


def test_average_continues_from_another(model: nn.Linear) -> None:
    average, other = WeightAverage(model, decay=0.5), WeightAverage(model, decay=0.5)
    with torch.no_grad():
        model.weight.add_(1)
    average.update(model, 5)
    other.load({name: weight.clone() for name, weight in average.weights.items()})
    for each in (average, other):
        each.update(model, 6)
    assert all(torch.equal(other.weights[name], average.weights[name]) for name in average.weights)


def test_no_average_costs_nothing(model: nn.Linear) -> None:
    average = WeightAverage(model, decay=0.0)
    average.update(model, 0)
    assert average.weights == {}
    with average.applied(model):
        pass


@pytest.mark.parametrize("field", [{"warmup": -1}, {"seed": 2**32}, {"ema": 1.0}, {"clip": 0.0}, {"steps": 0}])
def test_settings_out_of_range_are_refused(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(field))):
        config(**field)
