"""How the transformer learns: its losses against the definition, fine-tuning, and whole trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ivideogpt import CompressiveTokenizer, TokenLayout, VideoTransformer, WorldModel, hub
from ivideogpt.config import DataFacts
from ivideogpt.errors import CheckpointError, ConfigError, EpisodeError
from ivideogpt.training.loop import StepReport
from ivideogpt.training.pictures import labelled_rows
from ivideogpt.training.run import train_transformer
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner, transformer_losses
from ivideogpt.training.transformer import make_transformer as transformer_to_train
from tests.training.states import same, saved

Make = Callable[..., Any]
Settings = Callable[..., Any]
MakeEpisodes = Callable[..., Path]
CPU = torch.device("cpu")


def batch_of(layout: TokenLayout, count: int = 3, frames: int = 5, actions: int | None = 2) -> TokenBatch:
    generator = torch.Generator().manual_seed(0)
    t = layout.context_frames
    context = torch.randint(layout.context_codes, (count, t, layout.context_tokens), generator=generator)
    dynamics = torch.randint(layout.dynamics_codes, (count, frames - t, layout.dynamics_tokens), generator=generator)
    return TokenBatch(
        tokens=layout.assemble(context, dynamics),
        mask=torch.ones(count, frames, dtype=torch.bool),
        actions=None if actions is None else torch.rand(count, frames, actions, generator=generator),
        rewards=5 * torch.randn(count, frames, generator=generator),
    )


def save_model(folder: Path, tokenizer: CompressiveTokenizer, transformer: VideoTransformer) -> str:
    WorldModel(tokenizer, transformer).save_pretrained(folder)
    return str(folder)


# Losses


@pytest.mark.parametrize("padded", [0, 2])
@pytest.mark.parametrize("action_dim", [None, 2])
def test_loss_is_the_cross_entropy_of_the_labels(make_transformer: Make, action_dim: int | None, padded: int) -> None:
    model = make_transformer(action_dim=action_dim)
    batch = batch_of(model.layout)
    if padded:
        batch.mask[1, -padded:] = False
    losses, right = transformer_losses(model, batch)
    assert set(losses) == {"cross_entropy"}
    logits = model(batch.tokens, batch.actions if action_dim else None).logits[:, :-1]
    labels = model.layout.labels(batch.tokens, batch.mask)[:, 1:]
    torch.testing.assert_close(losses["cross_entropy"], F.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    assert right[1] == (labels != -100).sum() == (3 * 3 - padded) * model.layout.frame_length - 3
    assert right[0] == (logits.argmax(-1) == labels).sum()


def test_padded_frames_change_nothing(make_transformer: Make) -> None:
    model = make_transformer(reward=True)
    batch = batch_of(model.layout)
    batch.mask[:, -1] = False
    before = transformer_losses(model, batch)[0]
    assert batch.rewards is not None
    batch.tokens[:, -model.layout.dynamics_tokens :] = model.layout.dynamics_ids.start
    batch.rewards[:, -1] = 1e6
    after = transformer_losses(model, batch)[0]
    assert all(torch.equal(before[name], after[name]) for name in ("cross_entropy", "reward_loss"))


def test_a_batch_that_is_all_padding_has_no_loss_and_no_nan(make_transformer: Make) -> None:
    model = make_transformer(reward=True)
    batch = batch_of(model.layout)
    batch.mask[:, model.layout.context_frames :] = False
    losses, right = transformer_losses(model, batch)
    assert not losses["reward_loss"].any() and not losses["cross_entropy"].any() and not right.any()


@pytest.mark.parametrize("symlogged", [False, True])
def test_reward_loss(make_transformer: Make, symlogged: bool) -> None:
    model = make_transformer(reward=True, reward_symlog=symlogged)
    batch = batch_of(model.layout)
    batch.mask[0, -1] = False
    predicted, target, mask = model(batch.tokens).rewards, batch.rewards[:, 2:], batch.mask[:, 2:]
    if symlogged:
        target = torch.sign(target) * torch.log(target.abs() + 1)
    expected = (predicted - target)[mask].square().mean()
    torch.testing.assert_close(transformer_losses(model, batch)[0]["reward_loss"], expected)


def test_a_head_is_left_alone_where_the_batch_has_nothing_for_it(make_transformer: Make) -> None:
    model = make_transformer(action_dim=2, reward=True)
    batch = dataclasses.replace(batch_of(model.layout), actions=None, rewards=None)
    losses, _ = transformer_losses(model, batch)
    assert set(losses) == {"cross_entropy"}
    losses["cross_entropy"].backward()
    assert model.reward_head.weight.grad is None and model.action_in.weight.grad is None


def learner_of(model: VideoTransformer, tokenizer: CompressiveTokenizer, config: Any) -> TransformerLearner:
    return TransformerLearner(model, tokenizer, config, CPU, bf16=False)


def test_figures(make_transformer: Make, tokenizer: CompressiveTokenizer, transformer_settings: Settings) -> None:
    model = make_transformer(action_dim=2)
    learner = learner_of(model, tokenizer, transformer_settings())
    batch = batch_of(model.layout)
    losses, right = transformer_losses(model, batch)
    for _ in range(2):
        learner.losses(batch, 0)
    assert learner.metrics() == {"accuracy": pytest.approx(float(right[0] / right[1]))}
    assert learner.metrics() == {"accuracy": 0.0}
    with torch.no_grad():
        figures = learner.validate([batch, batch])
    shuffled = dataclasses.replace(batch, actions=batch.actions.roll((1, 2), dims=(0, 1)))  # type: ignore[union-attr]
    expected = {"cross_entropy": losses, "cross_entropy_shuffled_actions": transformer_losses(model, shuffled)[0]}
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value["cross_entropy"].item(), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(float(right[0] / right[1]))


def test_picture(make_transformer: Make, tokenizer: CompressiveTokenizer, transformer_settings: Settings) -> None:
    model = make_transformer(action_dim=2)
    learner = learner_of(model, tokenizer, transformer_settings())
    batch = batch_of(model.layout, count=5)
    picture = learner.picture(batch)
    assert torch.equal(picture, learner.picture(batch))  # the seed decides
    made = tokenizer.detokenize(batch.tokens[:4])
    actions = None if batch.actions is None else batch.actions[:4]
    imagined = WorldModel(tokenizer, model, learner.sampling).rollout(made[:, :2], actions, 3, seed=0).video[:, 0]
    assert torch.equal(picture, labelled_rows({"reconstructed": made, "imagined": imagined}, 2))
    frames = (255 * made).byte()
    real = labelled_rows({"real": frames / 255, "reconstructed": made, "imagined": imagined}, 2)
    shown = dataclasses.replace(batch, frames=torch.cat([frames, frames])[:5])
    assert torch.equal(learner.picture(shown), real) and real.shape[1] > picture.shape[1]


# Where a training starts


def test_a_preset_with_what_the_settings_ask_for(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings
) -> None:
    config = transformer_settings(rewards=True, reward_symlog=True, attention_dropout=0.25, goal=True)
    model = transformer_to_train(config, tokenizer, action_dim=3)
    assert (model.config.action_dim, model.config.reward, model.config.reward_symlog) == (3, True, True)
    assert model.config.attention_dropout == 0.25
    assert model.layout == dataclasses.replace(tokenizer.layout, goal=True)
    again, other = (transformer_to_train(config.model_copy(update={"seed": seed}), tokenizer, 3) for seed in (0, 1))
    assert same(dict(model.state_dict()), dict(again.state_dict()))
    assert not same(dict(model.state_dict()), dict(other.state_dict()))


def test_fine_tuning_adds_what_the_model_lacks(
    tmp_path: Path, tokenizer: CompressiveTokenizer, make_transformer: Make, transformer_settings: Settings
) -> None:
    start = make_transformer()
    config = transformer_settings(
        start_from=save_model(tmp_path / "start", tokenizer, start), rewards=True, attention_dropout=0.3
    )
    model = transformer_to_train(config, tokenizer, 2)
    assert model.action_in is not None and not model.action_in.weight.any() and model.reward_head is not None
    assert model.config.attention_dropout == 0.3
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in start.state_dict().items())
    batch = batch_of(model.layout)
    torch.testing.assert_close(model.eval()(batch.tokens, batch.actions).logits, start(batch.tokens).logits)
    again = transformer_to_train(config, tokenizer, 2)
    assert same(dict(weights), dict(again.state_dict()))


def test_fine_tuning_keeps_what_the_model_has(
    tmp_path: Path, tokenizer: CompressiveTokenizer, make_transformer: Make, transformer_settings: Settings
) -> None:
    start = make_transformer(action_dim=2, reward=True, reward_symlog=True)
    config = transformer_settings(start_from=save_model(tmp_path / "start", tokenizer, start))
    for action_dim in (2, None):
        model = transformer_to_train(config, tokenizer, action_dim)
        assert model.config == start.config.model_copy(update={"trained_frames": 5})
        assert same(dict(model.state_dict()), dict(start.state_dict()))
    with pytest.raises(ConfigError, match=r"takes actions of size 2, the data have 7"):
        transformer_to_train(config, tokenizer, 7)
    with pytest.raises(ConfigError, match=r"the data have 4 in a step of 2 frames\."):
        transformer_to_train(config.model_copy(update={"step_size": 2}), tokenizer, 4)
    with pytest.raises(ConfigError, match=r"reward_symlog is False; the reward head .* was trained with True"):
        transformer_to_train(config.model_copy(update={"rewards": True}), tokenizer, 2)


def test_fine_tuning_keeps_facts_that_the_data_do_not_say(
    tmp_path: Path, tokenizer: CompressiveTokenizer, make_transformer: Make, transformer_settings: Settings
) -> None:
    known = DataFacts(step_size=2, action_names=("x",), frame_rate=5, environment="pusht")
    start = save_model(tmp_path / "start", tokenizer, make_transformer(action_dim=2, data=known))
    config = transformer_settings(start_from=start, step_size=2)
    data = DataFacts(step_size=2, action_mean=(0.5,), frame_rate=10)
    model = transformer_to_train(config, tokenizer, 2, facts=data)
    assert model.config.data == DataFacts(step_size=2, action_names=("x",), frame_rate=10, action_mean=(0.5,))
    with pytest.raises(ConfigError, match=r"the data have 1 \(step_size 1; the model has step size 2\)"):
        transformer_to_train(transformer_settings(start_from=start), tokenizer, 1, facts=data)


def test_fine_tuning_to_other_context_frames_and_to_a_goal(
    tmp_path: Path, tokenizer: CompressiveTokenizer, make_transformer: Make, transformer_settings: Settings
) -> None:
    start_from = save_model(tmp_path / "start", tokenizer, make_transformer())
    shorter = transformer_to_train(transformer_settings(start_from=start_from), tokenizer.with_context_frames(1), None)
    assert shorter.layout.context_frames == 1
    goal = transformer_to_train(transformer_settings(start_from=start_from, goal=True), tokenizer, None)
    assert goal.layout == dataclasses.replace(tokenizer.layout, goal=True)


def test_fine_tuning_needs_the_same_tokens(
    tmp_path: Path,
    tokenizer: CompressiveTokenizer,
    make_transformer: Make,
    make_tokenizer: Make,
    transformer_settings: Settings,
) -> None:
    config = transformer_settings(start_from=save_model(tmp_path / "start", tokenizer, make_transformer()))
    with pytest.raises(CheckpointError, match="but the tokenizer writes"):
        transformer_to_train(config, make_tokenizer(dynamics_codes=64), None)


def test_the_tokenizer_that_is_used(transformer_settings: Settings) -> None:
    assert transformer_settings(tokenizer="mine", start_from="theirs").tokenizer_name == "mine"
    assert transformer_settings(tokenizer=None, start_from="theirs").tokenizer_name == "theirs"
    with pytest.raises(ConfigError, match=r"no tokenizer is named: .* or take that of a model: pusht-64"):
        assert transformer_settings(tokenizer=None).tokenizer_name


def test_fine_tuning_a_world_model_needs_no_word_on_its_tokenizer(
    tmp_path: Path,
    tokenizer: CompressiveTokenizer,
    make_transformer: Make,
    transformer_settings: Settings,
    make_episodes: MakeEpisodes,
) -> None:
    start = make_transformer(place_embedding=True)
    folder = save_model(tmp_path / "start", tokenizer, start)
    config = transformer_settings(data=make_episodes(), tokenizer=None, start_from=folder, steps=2)
    list(train_transformer(config))
    trained = WorldModel.from_pretrained(config.out / "model")
    assert same(dict(trained.tokenizer.state_dict()), dict(tokenizer.state_dict()))
    assert trained.transformer.places is not None and start.places is not None
    assert not torch.equal(trained.transformer.places.weight, start.places.weight)


def test_settings_that_contradict_each_other(transformer_settings: Settings) -> None:
    with pytest.raises(ValueError, match="reward_symlog is set, but rewards is not"):
        transformer_settings(reward_symlog=True)
    with pytest.raises(ValueError, match="cache_tokens is 4 with augmentation 'standard'"):
        transformer_settings(cache_tokens=4, augment="standard")


# Whole trainings


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9, "augment": "strong", "accumulate": 2},
        {"cache_tokens": 5, "rewards": True, "reward_symlog": True, "optimizer": "muon"},
        {"precision": "bf16", "workers": 1},
    ],
)
def test_resuming_is_bit_exact(
    tmp_path: Path,
    tokenizer: CompressiveTokenizer,
    transformer_settings: Settings,
    make_episodes: MakeEpisodes,
    changes: dict[str, Any],
) -> None:
    make_episodes(rewards=True)
    whole = list(train_transformer(transformer_settings(out=tmp_path / "whole", **changes)))
    stopped = train_transformer(transformer_settings(**changes))
    list(islice(stopped, 3 + len(whole) - 6))  # the cache's reports come first
    stopped.close()  # type: ignore[attr-defined]
    rest = list(train_transformer(transformer_settings(resume=True, **changes)))
    for one, other in zip(rest, whole[-3:], strict=True):
        assert isinstance(one, StepReport) and isinstance(other, StepReport)
        assert (one.step, one.losses, one.validation) == (other.step, other.losses, other.validation)
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "run"))


def test_the_saved_model_imagines(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes, make_frames: Make
) -> None:
    config = transformer_settings(data=make_episodes(rewards=True), rewards=True, temperature=0.5, top_k=7, steps=2)
    list(train_transformer(config))
    model = WorldModel.from_pretrained(config.out / "model")
    assert (model.sampling.temperature, model.sampling.top_k) == (0.5, 7)
    assert same(dict(model.tokenizer.state_dict()), dict(tokenizer.state_dict()))
    made = model.rollout(make_frames(frames=2), torch.zeros(2, 3, 2), horizon=3, seed=0)
    assert made.video.shape == (2, 1, 5, 3, 16, 16) and made.rewards is not None


def test_goal_segments_of_seventeen_frames(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes, make_frames: Make
) -> None:
    config = transformer_settings(data=make_episodes(length=20), goal=True, segment_frames=16, steps=2)
    reports = list(train_transformer(config))
    assert len(reports) == 2
    model = WorldModel.from_pretrained(config.out / "model")
    assert model.transformer.layout.goal
    made = model.rollout(make_frames(frames=2), torch.zeros(2, 17, 2), seed=0)  # the goal and 16 frames
    assert made.video.shape[2] == 17


def test_plain_video_trains_without_actions(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    make_episodes()
    with pytest.raises(EpisodeError, match="unknown action key 'velocity'"):
        train_transformer(transformer_settings(action_key="velocity"))
    config = transformer_settings(action_key="velocity", actions=False, steps=1)
    list(train_transformer(config))
    assert hub.load_transformer(config.out / "model")[0].action_dim is None


def test_nothing_is_touched_before_all_is_checked(
    tmp_path: Path, tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    make_episodes()
    long = make_episodes("long", length=300)
    list(train_transformer(transformer_settings(steps=1)))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    wrong: dict[str, dict[str, Any]] = {
        "unknown reward key .*leave --rewards out": {"rewards": True},
        r"segment_frames is 300; .* At most \d+ frames fit": {"segment_frames": 300, "data": long},
        "context_frames is 2 in a segment of 2 frames": {"segment_frames": 2},
        "unknown transformer preset": {"preset": "mikro"},
        "unknown model|none at": {"tokenizer": str(tmp_path / "missing")},
        "all training episodes are too short": {"data": make_episodes("short", length=1)},
    }
    for message, changes in wrong.items():
        with pytest.raises(ValueError, match=message):
            train_transformer(transformer_settings(overwrite=True, **changes))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_the_longest_segment_fits(
    tokenizer: CompressiveTokenizer, transformer_settings: Settings, make_episodes: MakeEpisodes
) -> None:
    data = make_episodes(length=999)
    with pytest.raises(ConfigError) as caught:
        train_transformer(transformer_settings(data=data, segment_frames=999, batch_size=1))
    longest = int(str(caught.value).rsplit("At most ", 1)[1].split()[0])
    with pytest.raises(ConfigError, match="At most"):
        train_transformer(transformer_settings(data=data, segment_frames=longest + 1, batch_size=1))
    reports = train_transformer(transformer_settings(data=data, segment_frames=longest, batch_size=1))
    assert next(iter(reports))


def test_resuming_with_another_tokenizer_is_refused(
    tmp_path: Path,
    tokenizer: CompressiveTokenizer,
    make_tokenizer: Make,
    transformer_settings: Settings,
    make_episodes: MakeEpisodes,
) -> None:
    make_episodes()
    list(islice(train_transformer(transformer_settings()), 3))
    other = make_tokenizer(seed=7)
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=(other.config, dict(other.state_dict()))), overwrite=True)
    with pytest.raises(CheckpointError, match="has changed since this run began"):
        list(train_transformer(transformer_settings(resume=True)))
