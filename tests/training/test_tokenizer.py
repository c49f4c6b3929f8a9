"""How the tokenizer learns: where it starts, its losses, dead codes, frozen codebooks, and the discriminator."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import CompressiveTokenizer, hub
from ivideogpt.config import LossWeights, TokenizerConfig
from ivideogpt.data.loader import Batch
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.errors import CheckpointError, ConfigError, OutputError, ShapeError
from ivideogpt.presets import tokenizer_preset
from ivideogpt.tokenizer.quantizer import VectorQuantizer
from ivideogpt.training.pictures import labelled_rows
from ivideogpt.training.run import open_batches, open_episodes, train_tokenizer
from ivideogpt.training.tokenizer import TokenizerLearner, make_tokenizer
from tests.training.states import same, saved

Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]
CPU = torch.device("cpu")


def save_tokenizer(folder: Path, **changes: Any) -> CompressiveTokenizer:
    torch.manual_seed(5)
    tokenizer = CompressiveTokenizer.from_preset("micro-16", **changes)
    hub.save(folder, hub.Checkpoint(tokenizer=(tokenizer.config, dict(tokenizer.state_dict()))))
    return tokenizer


def batch_of(size: int = 16, count: int = 3, frames: int = 4, padded: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, frames, 3, size, size), generator=generator, dtype=torch.uint8)
    mask = torch.ones(count, frames, dtype=torch.bool)
    mask[:, frames - padded :] = False
    return Batch(pixels, None, None, mask)


def learner_of(config: Any, **changes: Any) -> TokenizerLearner:
    torch.manual_seed(0)
    return TokenizerLearner(CompressiveTokenizer.from_preset("micro-16", **changes), config, CPU, bf16=False)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


# Where a training starts


def test_a_preset_with_weights_decided_by_the_seed(tokenizer_settings: Settings) -> None:
    one, again, other = (make_tokenizer(tokenizer_settings(seed=seed)) for seed in (1, 1, 2))
    assert same(dict(one.state_dict()), dict(again.state_dict()))
    assert not same(dict(one.state_dict()), dict(other.state_dict()))
    assert one.config == CompressiveTokenizer.from_preset("micro-16").config


def test_a_preset_with_other_context_frames_and_another_quantizer(tokenizer_settings: Settings) -> None:
    config = make_tokenizer(tokenizer_settings(context_frames=3, quantizer="fsq")).config
    assert (config.context_frames, config.quantizer) == (3, "fsq")
    assert config.context_codes == math.prod(config.context_levels)
    nano = tokenizer_preset("nano-64")
    config = make_tokenizer(tokenizer_settings(preset="nano-64", quantizer="vq")).config
    assert nano.quantizer == "fsq" and config.quantizer == "vq"
    assert (config.context_levels, config.context_codes) == ((), nano.context_codes)
    assert make_tokenizer(tokenizer_settings(quantizer="vq")).config == tokenizer_preset("micro-16")


def test_a_model_to_fine_tune(tmp_path: Path, tokenizer_settings: Settings) -> None:
    start = save_tokenizer(tmp_path / "start")
    config = tokenizer_settings(start_from=str(tmp_path / "start"))
    assert same(dict(make_tokenizer(config).state_dict()), dict(start.state_dict()))
    longer = make_tokenizer(tokenizer_settings(start_from=str(tmp_path / "start"), context_frames=3))
    assert longer.config.context_frames == 3
    with pytest.raises(ConfigError, match=r"quantizer is 'fsq'; the model .* has 'vq'"):
        make_tokenizer(tokenizer_settings(start_from=str(tmp_path / "start"), quantizer="fsq"))


def positions(tokenizer: CompressiveTokenizer) -> Tensor:
    return torch.cat([weight.flatten() for name, weight in tokenizer.named_parameters() if "position" in name])


def test_attention_starts_near_unless_it_was_learned(tmp_path: Path, tokenizer_settings: Settings) -> None:
    assert positions(make_tokenizer(tokenizer_settings(preset="nano-64"))).any()
    assert not positions(make_tokenizer(tokenizer_settings(preset="nano-64", attention_start="zero"))).any()
    start = CompressiveTokenizer.from_preset("nano-64")
    hub.save(tmp_path / "start", hub.Checkpoint(tokenizer=(start.config, dict(start.state_dict()))))
    assert not positions(make_tokenizer(tokenizer_settings(start_from=str(tmp_path / "start")))).any()
    anew = make_tokenizer(tokenizer_settings(start_from=str(tmp_path / "start"), attention_start="near"))
    assert positions(anew).any()
    kept = {name: weight for name, weight in start.state_dict().items() if ".cross." not in name}
    assert same(kept, {name: weight for name, weight in anew.state_dict().items() if name in kept})


def test_what_cannot_be_a_start(tmp_path: Path, tokenizer_settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"preset is 'oxe-64' and start_from is .*Give one of the two"):
        make_tokenizer(tokenizer_settings(preset="oxe-64", start_from=str(tmp_path / "start")))
    with pytest.raises(ConfigError, match=r"unknown tokenizer preset 'nano-46'\. Did you mean 'nano-64'"):
        make_tokenizer(tokenizer_settings(preset="nano-46"))
    with pytest.raises(CheckpointError, match="none at"):
        make_tokenizer(tokenizer_settings(start_from=str(tmp_path / "missing")))


# Losses and figures


PAPERS_LOSSES = {"l1_context", "l1_future", "commitment_context", "commitment_dynamics"}


def test_loss_names(tokenizer_settings: Settings) -> None:
    assert (
        set(learner_of(tokenizer_settings(mse_weight=0.0, static_weight=0.0)).losses(batch_of(), step=0))
        == PAPERS_LOSSES
    )
    losses = learner_of(tokenizer_settings()).losses(batch_of(), step=0)
    assert set(losses) == {*PAPERS_LOSSES, "mse_context", "mse_future", "static"}  # there is no perceptual loss
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses.values())
    total(losses).backward()


def test_weights_that_stand_in_for_the_perceptual_loss(
    tokenizer_settings: Settings, lpips_files: dict[str, Any]
) -> None:
    assert tokenizer_settings().loss_weights == LossWeights(motion=6.0, rarity=8.0, mse=4.0, static=0.1)
    assert tokenizer_settings(**lpips_files).loss_weights == LossWeights()
    asked_for = {"motion_weight": 1.0, "rarity_weight": 2.0, "mse_weight": 3.0, "static_weight": 4.0}
    for files in ({}, lpips_files):
        assert tokenizer_settings(**files, **asked_for).loss_weights == LossWeights(1.0, 2.0, 3.0, 4.0)


def test_the_static_loss_is_weighted(tokenizer_settings: Settings) -> None:
    batch = batch_of()
    batch.frames[:] = batch.frames[:, :1].clone()  # nothing moves
    one, five = (
        learner_of(tokenizer_settings(static_weight=weight)).losses(batch, 0)["static"] for weight in (1.0, 5.0)
    )
    assert one > 0
    torch.testing.assert_close(five, 5 * one)


def test_padded_frames_do_not_count(tokenizer_settings: Settings) -> None:
    learner = learner_of(tokenizer_settings(motion_weight=0.0, rarity_weight=0.0))
    learner.model.eval()
    padded, black = batch_of(padded=1), batch_of(padded=1)
    black.frames[:, -1] = 0
    one, other = (learner.losses(batch, step=0) for batch in (padded, black))
    torch.testing.assert_close(one["l1_future"], other["l1_future"])
    nothing_real = learner.losses(batch_of(padded=2), step=0)
    assert not nothing_real["l1_future"].any()


def test_validation_figures_and_picture(tokenizer_settings: Settings) -> None:
    learner = learner_of(tokenizer_settings())
    learner.model.eval()
    batch = batch_of(count=6)
    with torch.no_grad():
        figures, picture = learner.validate([batch, batch]), learner.picture(batch)
        output = learner.model(batch.frames)
    assert set(figures) == {"psnr_context", "psnr_future", "l1_future"}
    error = (output.future.clamp(0, 1) - batch.frames[:, 2:] / 255).square().mean(dim=(2, 3, 4))
    assert figures["psnr_future"] == pytest.approx(float((-10 * error.log10()).mean()), rel=1e-5)
    made = torch.cat([output.context, output.future], dim=1)
    four = {"real": batch.frames[:4] / 255, "reconstructed": made[:4].clamp(0, 1)}
    assert torch.equal(picture, labelled_rows(four, 2))


def test_code_figures_begin_anew_at_each_entry(tokenizer_settings: Settings) -> None:
    learner = learner_of(tokenizer_settings())
    learner.losses(batch_of(), step=0)
    figures = learner.metrics()
    kinds = ("usage", "perplexity", "revived")
    assert set(figures) == {f"{part}_{kind}" for part in ("context", "dynamics") for kind in kinds}
    assert 1 / 32 <= figures["context_usage"] <= 1 and 1 <= figures["context_perplexity"] <= 32
    assert learner.metrics()["context_usage"] == 0


# Codebooks


def collapsed(config: Any) -> TokenizerLearner:
    """A learner whose codes lie far from all vectors, but for one: that one takes them all."""
    learner = learner_of(config)
    for quantizer in (learner.model.context_quantizer, learner.model.dynamics_quantizer):
        assert isinstance(quantizer, VectorQuantizer)
        with torch.no_grad():
            quantizer.embedding.weight.fill_(100.0)
            quantizer.embedding.weight[3] = 0.0
    return learner


def usage_after(learner: TokenizerLearner, steps: range) -> float:
    learner.metrics()
    for step in steps:
        learner.losses(batch_of(), step)
        learner.after_step(step)
    return learner.metrics()["context_usage"]


def test_dead_codes_are_revived(tokenizer_settings: Settings) -> None:
    learner = collapsed(tokenizer_settings(revive_every=2))
    learner.losses(batch_of(), 0)
    learner.after_step(0)
    assert learner.metrics()["context_usage"] == 1 / 32
    learner.losses(batch_of(), 1)
    learner.after_step(1)
    assert learner.metrics()["context_revived"] == 31
    assert usage_after(learner, range(2, 3)) > 0.4
    quantizer = learner.model.context_quantizer
    assert isinstance(quantizer, VectorQuantizer)
    assert not quantizer.embedding.weight[3].any()  # the code in use stays where it was
    assert quantizer.embedding.weight.abs().max() < 100


@pytest.mark.parametrize("changes", [{"revive_every": 0}, {"revive_every": 2, "freeze_codebooks": True}])
def test_dead_codes_are_left_where_asked_for(tokenizer_settings: Settings, changes: dict[str, Any]) -> None:
    assert usage_after(collapsed(tokenizer_settings(**changes)), range(6)) == 1 / 32


def test_revival_raises_the_usage_of_a_training(tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    used = {}
    for every in (0, 4):
        config = tokenizer_settings(data=make_episodes(), steps=14, revive_every=every, overwrite=True, save_every=14)
        list(train_tokenizer(config))
        used[every] = int((saved(config.out)["learner.context.watched"] > 0).sum())  # since step 12, or since step 0
    assert used[4] > used[0]


def test_frozen_codebooks_stay_and_the_rest_learns(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    start = save_tokenizer(tmp_path / "start")
    start_from = str(tmp_path / "start")
    config = tokenizer_settings(
        data=make_episodes(), start_from=start_from, freeze_codebooks=True, revive_every=1, weight_decay=0.1, ema=0.5
    )
    list(train_tokenizer(config))
    trained = CompressiveTokenizer.from_pretrained(config.out / "model").state_dict()
    for name, weight in start.state_dict().items():
        if "quantizer" in name:
            assert torch.equal(trained[name], weight)
    assert not torch.equal(trained["dynamics_in.weight"], start.state_dict()["dynamics_in.weight"])


# Whole trainings


@pytest.mark.parametrize(
    "changes",
    [
        {"revive_every": 2, "ema": 0.9, "accumulate": 2, "augment": "standard"},
        {"quantizer": "fsq", "goal": True, "context_frames": 1, "optimizer": "muon", "prior_weight": 0.5},
        {"precision": "bf16", "workers": 1},
        {"states": True, "prior_weight": 0.1, "accumulate": 2, "ema": 0.5},
    ],
)
def test_resuming_is_bit_exact(
    tokenizer_settings: Settings, make_episodes: MakeEpisodes, tmp_path: Path, changes: dict[str, Any]
) -> None:
    make_episodes(states=True)
    list(train_tokenizer(tokenizer_settings(out=tmp_path / "whole", **changes)))
    list(islice(train_tokenizer(tokenizer_settings(**changes)), 3))
    rest = list(train_tokenizer(tokenizer_settings(resume=True, **changes)))
    assert [report.step for report in rest] == [4, 5, 6]
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "run"))
    models = [hub.load_tokenizer(tmp_path / name / "model") for name in ("whole", "run")]
    assert same(models[0][1], models[1][1])


def test_held_out_episodes_are_decided_by_a_seed_of_their_own(
    tokenizer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    """So a training that goes on from another, with other batches, keeps the same episodes unseen."""
    make_episodes(count=12)
    spec = SegmentSpec(length=4, context_frames=2)

    def parts(**seeds: int) -> list[list[int]]:
        config = tokenizer_settings(**seeds)
        return [loader.indices for loader in open_batches(config, open_episodes(config, None), spec, 16)]

    assert parts(seed=0) == parts(seed=5)
    assert parts(split_seed=1) != parts(split_seed=2)
    for training, held_out in (parts(seed=0), parts(split_seed=1)):
        assert set(training) | set(held_out) == set(range(12)) and not set(training) & set(held_out)


def test_actions_are_not_needed(tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    data = make_episodes()
    assert len(list(train_tokenizer(tokenizer_settings(data=data, action_key="no such key")))) == 6


def test_two_episodes_are_enough_and_one_is_not(tokenizer_settings: Settings, make_episodes: MakeEpisodes) -> None:
    assert list(train_tokenizer(tokenizer_settings(data=make_episodes("two", count=2))))
    with pytest.raises(ValueError, match="the dataset has 1 episode"):
        train_tokenizer(tokenizer_settings(data=make_episodes("one", count=1), overwrite=True))


def test_nothing_is_touched_before_all_is_checked(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    make_episodes()
    list(train_tokenizer(tokenizer_settings()))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    wrong: list[dict[str, Any]] = [
        {"preset": "oxe"},
        {"horizon": 3},
        {"data": tmp_path / "missing"},
        {"camera_key": "front"},
        {"vgg16_weights": tmp_path / "no", "lpips_heads": tmp_path / "no"},
        {"gan": True},
        {"device": "cuda:99"},
        {"start_from": str(tmp_path / "missing")},
    ]
    for changes in wrong:
        with pytest.raises((ConfigError, ValueError)):
            train_tokenizer(tokenizer_settings(overwrite=True, **changes))
    with pytest.raises(OutputError, match="not empty"):
        train_tokenizer(tokenizer_settings())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


# The perceptual loss and the discriminator


def test_perceptual_losses_are_weighted(tokenizer_settings: Settings, lpips_files: dict[str, Any]) -> None:
    batch = batch_of(count=1, frames=3)
    one, five = (
        learner_of(tokenizer_settings(**lpips_files, perceptual_weight=weight)).losses(batch, 0)
        for weight in (1.0, 5.0)
    )
    extra = {"perceptual_context", "perceptual_future"}
    assert set(one) == PAPERS_LOSSES | extra
    for name in one:
        torch.testing.assert_close(five[name], one[name] * (5 if name in extra else 1))


def test_the_discriminator_waits_then_learns(tokenizer_settings: Settings, lpips_files: dict[str, Any]) -> None:
    learner = learner_of(tokenizer_settings(**lpips_files, gan=True, gan_start=1), resolution=32)
    assert learner.adversary is not None
    weights = [p.detach().clone() for p in learner.adversary.model.parameters()]

    def moved() -> bool:
        assert learner.adversary is not None
        return any(not torch.equal(a, b) for a, b in zip(weights, learner.adversary.model.parameters(), strict=True))

    names = []
    for step in range(2):
        losses = learner.losses(batch_of(32, count=1, frames=3), step)
        total(losses).backward()
        names.append(set(losses))
        assert bool(losses["generator"].any()) == (step == 1)
        learner.after_step(step)
        assert moved() == (step == 1)
    assert names[0] == names[1]


def test_the_discriminators_state_resumes(
    tmp_path: Path, tokenizer_settings: Settings, make_episodes: MakeEpisodes, lpips_files: dict[str, Any]
) -> None:
    make_episodes(size=32)
    torch.manual_seed(0)
    config = TokenizerConfig(**{**dict(CompressiveTokenizer.from_preset("micro-16").config), "resolution": 32})
    start = CompressiveTokenizer(config)
    hub.save(tmp_path / "start", hub.Checkpoint(tokenizer=(config, dict(start.state_dict()))))
    changes = {**lpips_files, "gan": True, "gan_start": 1, "start_from": str(tmp_path / "start"), "steps": 3}
    changes |= {"save_every": 2, "batch_size": 1, "future_frames": 1, "context_frames": 1}
    list(train_tokenizer(tokenizer_settings(out=tmp_path / "whole", **changes)))
    list(islice(train_tokenizer(tokenizer_settings(**changes)), 2))
    list(train_tokenizer(tokenizer_settings(resume=True, **changes)))
    whole = saved(tmp_path / "whole")
    assert same(whole, saved(tmp_path / "run"))
    assert float(whole["learner.discriminator_optimizer.0.step"]) == 2


def test_frames_too_small_for_the_gan_are_refused_at_once(
    tokenizer_settings: Settings, lpips_files: dict[str, Any]
) -> None:
    with pytest.raises(ShapeError, match="sides of at least 17 pixels"):
        learner_of(tokenizer_settings(**lpips_files, gan=True))
    with pytest.raises(ConfigError, match="gan is set, but its adaptive weight"):
        learner_of(tokenizer_settings(gan=True), resolution=32)
