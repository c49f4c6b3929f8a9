"""Whole trainings, put together: data, model, learner and loop from one configuration.

Nothing is written, and a run folder is not touched, before the data and the models have been found good.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ivideogpt.config import DataFacts
from ivideogpt.data.augment import NONE, STANDARD, STRONG
from ivideogpt.data.facts import RewardScale, facts_of, reward_scale
from ivideogpt.data.loader import Batch, SegmentLoader, split_episodes
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.data.sources.npz import NpzFolder
from ivideogpt.data.store import Store, is_store
from ivideogpt.devices import choose_device, choose_precision
from ivideogpt.errors import ConfigError
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.config import TokenizerTrainingConfig, TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.episodes import named_episodes
from ivideogpt.training.lengths import long_enough
from ivideogpt.training.loop import Batches, StepReport, never, prepare_run, stop_in_time, train
from ivideogpt.training.states import require_same_states, state_config
from ivideogpt.training.tokenizer import TokenizerLearner, make_tokenizer
from ivideogpt.training.tokens import CachedTokens, TokenBatch, TokenizedBatches, fill_cache, fingerprint, read_cache
from ivideogpt.training.transformer import TransformerLearner, make_transformer
from ivideogpt.training.transitions import transitions_of
from ivideogpt.transformer import VideoTransformer

_VALIDATION_CACHE_MB = 64
_LARGE_REWARD = 10.0
_AUGMENTATIONS = {"none": NONE, "standard": STANDARD, "strong": STRONG}


@dataclass(frozen=True)
class CacheReport:
    """Yielded while the token cache is filled."""

    segments: int
    """Segments tokenized so far."""


class Episodes(NamedTuple):
    """Recorded episodes, and which of them are for what."""

    source: NpzFolder | Store
    training: list[int]
    held_out: list[int]


def train_tokenizer(config: TokenizerTrainingConfig, stop: Callable[[], bool] = never) -> Iterator[StepReport]:
    """Train a tokenizer; yields after each optimizer step. Actions in the episodes are not even read.

    Args:
        config: see `TokenizerTrainingConfig`.
        stop: asked after each step; True saves and ends.

    Errors as `training.loop.prepare_run` and `train`, and those of the data and of the model to start from.
    """
    stop = stop_in_time(config, stop)
    device = choose_device(config.device)
    episodes = open_episodes(config, action_key=None)
    model = make_tokenizer(config, state_config(config, episodes.source, episodes.training))
    t = model.config.context_frames
    spec = SegmentSpec(
        length=t + config.future_frames,
        context_frames=t,
        step_size=config.step_size,
        horizon=config.horizon,
        selection="shuffled" if config.goal else "random_future",
    )
    episodes = _long_enough(episodes, spec, shrink=True)
    training, validation = open_batches(config, episodes, spec, model.config.resolution)
    learner = TokenizerLearner(model, config, device, choose_precision(config.precision, device) == "bf16")
    claim = prepare_run(config, named_episodes(*episodes))
    return claim.during(train(learner, training, validation, config, device, stop))


def train_transformer(
    config: TransformerTrainingConfig, stop: Callable[[], bool] = never
) -> Iterator[StepReport | CacheReport]:
    """Train a transformer on a frozen tokenizer's tokens; yields after each step. Errors as `train_tokenizer`.

    Args:
        config: see `TransformerTrainingConfig`.
        stop: asked after each step; True saves and ends. While tokens are cached there is nothing to save yet.
    """
    stop = stop_in_time(config, stop)
    device = choose_device(config.device)
    bf16 = choose_precision(config.precision, device) == "bf16"
    tokenizer = CompressiveTokenizer.from_pretrained(config.tokenizer_name).to(device)
    spec = SegmentSpec(
        length=config.segment_frames + config.goal,
        context_frames=tokenizer.config.context_frames,
        step_size=config.step_size,
        goal=config.goal,
    )
    episodes = open_episodes(config, config.action_key if config.actions else None)
    episodes = _long_enough(episodes, spec, shrink=not config.actions)
    training, validation = open_batches(config, episodes, spec, tokenizer.config.resolution)
    first = training.batch_at(0)
    if config.rewards and first.rewards is None:
        raise ConfigError("rewards is set, but the episodes have no rewards. Leave it out, or record them.")
    state = state_config(config, episodes.source, episodes.training, known=tokenizer.config.state)
    require_same_states(config, tokenizer.config.state, state)
    action_dim = _action_size(first) if config.actions else None
    facts = _facts(config, episodes)
    _say_what_actions_are(facts)
    model = make_transformer(config, tokenizer, action_dim, state, facts, _reward_scale(config, episodes))
    _require_room(model, spec.length)
    transitions = None
    if state is not None:
        tracks = (episodes.source.read_tracks(index) for index in episodes.training)
        transitions = transitions_of(tracks, config.step_size)
    learner = TransformerLearner(model, tokenizer, config, device, bf16, transitions)
    named = named_episodes(*episodes)
    claim = prepare_run(config, named)
    made_of = fingerprint(learner.tokenizer_checksum, named, spec, config)
    return claim.during(_train_on_tokens(learner, training, validation, config, device, bf16, made_of, stop))


def open_episodes(config: TrainingConfig, action_key: str | None) -> Episodes:
    """The recorded episodes, divided.

    Args:
        config: see `TrainingConfig`.
        action_key: name of the actions inside an episode file; None reads none.

    Raises:
        EpisodeError: the folder cannot be used, or holds fewer than 2 episodes.
    """
    state_key = config.state_key if config.states else None
    rewards = isinstance(config, TransformerTrainingConfig) and config.rewards
    reader = Store if is_store(config.data) else NpzFolder
    source = reader(config.data, config.camera_key, action_key, state_key, rewards, config.action_shift)
    return Episodes(source, *split_episodes(len(source), seed=config.split_seed))


def _long_enough(episodes: Episodes, spec: SegmentSpec, *, shrink: bool) -> Episodes:
    source, training, held_out = episodes
    return Episodes(source, *long_enough(source, training, held_out, spec, shrink=shrink))


def open_batches(
    config: TrainingConfig, episodes: Episodes, spec: SegmentSpec, resolution: int
) -> tuple[SegmentLoader, SegmentLoader]:
    """Batches for training, and batches of the held-out episodes, without augmentation.

    Args:
        config: see `TrainingConfig`.
        episodes: what they are drawn from.
        spec: what a segment consists of.
        resolution: side of the frames, pixels.

    Raises:
        EpisodeError: one of the first episodes cannot be used.
    """
    batches = SegmentLoader(
        episodes.source,
        episodes.training,
        spec,
        resolution,
        config.batch_size,
        config.seed,
        _AUGMENTATIONS[config.augment],
        config.workers,
        config.cache_mb,
        config.states,
    )
    validation = SegmentLoader(
        episodes.source,
        episodes.held_out,
        spec,
        resolution,
        config.batch_size,
        config.seed + 1,
        cache_mb=min(config.cache_mb, _VALIDATION_CACHE_MB),  # held-out batches are read once
        states=config.states,
    )
    batches.batch_at(0)
    validation.batch_at(0)
    return batches, validation


def _train_on_tokens(
    learner: TransformerLearner,
    training: SegmentLoader,
    validation: SegmentLoader,
    config: TransformerTrainingConfig,
    device: torch.device,
    bf16: bool,
    made_of: str,
    stop: Callable[[], bool],
) -> Iterator[StepReport | CacheReport]:
    tokenized = TokenizedBatches(training, learner.tokenizer, device, bf16)
    held_out = TokenizedBatches(validation, learner.tokenizer, device, bf16, keep_frames=True)
    batches: Batches[TokenBatch] = tokenized
    if config.cache_tokens:
        file = config.out / "tokens" / "segments.safetensors"
        cached = read_cache(file, made_of)
        if cached is None:
            for segments in fill_cache(tokenized, config.cache_tokens, file, made_of):
                yield CacheReport(segments)
                if segments < config.cache_tokens and stop():
                    return
            cached = read_cache(file, made_of)
        assert cached is not None, "the cache was just filled"
        batches = CachedTokens(cached, config.batch_size, config.seed)
    yield from train(learner, batches, held_out, config, device, stop)


def _facts(config: TransformerTrainingConfig, episodes: Episodes) -> DataFacts:
    """What is known of the data, to be kept with the model."""
    return DataFacts.checked(
        step_size=config.step_size,
        camera_key=config.camera_key,
        action_key=config.action_key if config.actions else None,
        action_shift=config.action_shift if config.actions else None,
        state_key=config.state_key if config.states else None,
        **facts_of(episodes.source, episodes.training),
    )


def _reward_scale(config: TransformerTrainingConfig, episodes: Episodes) -> RewardScale:
    """That of the training episodes' rewards, with a hint where symlog would squeeze them better."""
    if not config.rewards:
        return RewardScale()
    scale = reward_scale(episodes.source, episodes.training, symlog=config.reward_symlog)
    if not config.reward_symlog and scale.largest > _LARGE_REWARD:
        warnings.warn(
            f"rewards reach {scale.largest:.3g}; they are learned in units of their deviation, {scale.std:.3g}. "
            "Where a few are much larger than the rest, --reward-symlog learns the small ones better.",
            stacklevel=2,
        )
    return scale


def _say_what_actions_are(facts: DataFacts) -> None:
    """Warn where actions leave the range that they are expected in."""
    beyond = [
        f"number {i} from {low:.3g} to {high:.3g}, mean {mean:.3g}"
        for i, (low, high, mean) in enumerate(zip(facts.action_min, facts.action_max, facts.action_mean, strict=True))
        if low < -1 or high > 1
    ]
    if beyond:
        warnings.warn(
            f"actions leave [-1, 1]: {'; '.join(beyond)}. A model learns best from actions of about that size: scale "
            "them where you record them.",
            stacklevel=2,
        )


def _require_room(model: VideoTransformer, frames: int) -> None:
    layout, most = model.layout, model.config.max_positions
    if layout.length(frames) > most:
        fit = layout.context_frames + (most - layout.prefix_length) // layout.frame_length - layout.goal
        raise ConfigError(
            f"segment_frames is {frames - layout.goal}; such a segment takes {layout.length(frames)} tokens, and this "
            f"transformer has {most} positions. At most {fit} frames fit."
        )


def _action_size(batch: Batch) -> int:
    if batch.actions is None:
        raise ConfigError("the episodes have no actions. Set actions to false to train an action-free model.")
    return batch.actions.shape[-1]
