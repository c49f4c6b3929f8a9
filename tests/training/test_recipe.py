"""Recipes of the presets, revived codes in the average, and the discriminator's own steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from ivideogpt.config import LossWeights
from ivideogpt.tokenizer.quantizer import VectorQuantizer
from ivideogpt.training.optimizer import WeightAverage, learning_rate
from ivideogpt.training.tokenizer import TokenizerLearner, make_tokenizer
from ivideogpt.training.transformer import make_transformer
from tests.training.test_tokenizer import batch_of, collapsed, learner_of, positions, total

Settings = Callable[..., Any]


@pytest.mark.parametrize(("preset", "recipe"), [("oxe-64", None), ("micro-16", "paper")])
def test_the_papers_presets_train_as_the_paper(tokenizer_settings: Settings, preset: str, recipe: str | None) -> None:
    config = tokenizer_settings(preset=preset, recipe=recipe)
    assert config.loss_weights == LossWeights()
    assert not positions(make_tokenizer(config.model_copy(update={"preset": "micro-16", "recipe": "paper"}))).any()


def test_small_models_train_by_their_own_recipe(tokenizer_settings: Settings) -> None:
    for changes in ({"preset": "nano-64"}, {"preset": "oxe-64", "recipe": "nano"}):
        assert tokenizer_settings(**changes).loss_weights.motion == 6
    assert tokenizer_settings(recipe="paper", motion_weight=2.0).loss_weights == LossWeights(motion=2.0)


def test_codes_that_look_alike_start_alike_in_small_models_alone(
    make_tokenizer: Callable[..., Any], transformer_settings: Settings
) -> None:
    tokenizer = make_tokenizer()
    plain, alike = (
        make_transformer(transformer_settings(preset="micro", recipe=recipe), tokenizer, None)
        for recipe in ("paper", None)
    )
    named = dict(alike.named_parameters())
    differing = {name for name, weight in plain.named_parameters() if not torch.equal(weight, named[name])}
    assert differing == {"embedding.weight", "head.weight"}


def test_the_average_of_a_revived_code_begins_again(tokenizer_settings: Settings) -> None:
    learner = collapsed(tokenizer_settings(revive_every=1))
    average = WeightAverage(learner.model, 0.999)
    learner.losses(batch_of(), 100)
    anew = learner.after_step(100)
    average.update(learner.model, 100)
    average.begin_again(learner.model, anew)
    quantizer = learner.model.context_quantizer
    assert isinstance(quantizer, VectorQuantizer)
    codes, averaged = quantizer.embedding.weight, average.weights["context_quantizer.embedding.weight"]
    assert torch.equal(averaged, codes) and len(anew["context_quantizer.embedding.weight"]) == 31


def gradients(learner: TokenizerLearner) -> list[torch.Tensor]:
    """What the discriminator steps along, taken at its step."""
    assert learner.adversary is not None
    seen: list[torch.Tensor] = []
    step = learner.adversary.optimizer.step
    learner.adversary.optimizer.step = lambda *_: seen.extend(  # type: ignore[method-assign,assignment]
        p.grad.clone() for p in learner.adversary.model.parameters() if p.grad is not None
    )
    learner.after_step(1)
    learner.adversary.optimizer.step = step  # type: ignore[method-assign]
    return seen


def test_the_discriminator_sees_every_micro_batch(tokenizer_settings: Settings, lpips_files: dict[str, Any]) -> None:
    settings = tokenizer_settings(**lpips_files, gan=True, gan_start=0, clip=1e9, warmup=10, steps=100)
    learner = learner_of(settings, resolution=32, dropout=0.0)
    assert learner.adversary is not None
    for norm in learner.adversary.model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.eval()
    batches = [batch_of(32, count=1, frames=3), batch_of(32, count=1, frames=3)]
    batches[1].frames.bitwise_not_()
    alone = []
    for batch in batches:
        total(learner.losses(batch, 1)).backward()
        alone.append(gradients(learner))
    for batch in batches:
        total(learner.losses(batch, 1)).backward()
    for both, one, other in zip(gradients(learner), *alone, strict=True):
        torch.testing.assert_close(both, (one + other) / 2, rtol=1e-3, atol=1e-4)
    assert {group["lr"] for group in learner.adversary.optimizer.param_groups} == {learning_rate(1, settings)}
