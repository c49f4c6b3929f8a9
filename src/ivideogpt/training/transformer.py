"""How the transformer learns: next-token cross-entropy on dynamics tokens and slots, and the reward's error.

Shapes: B segments, L tokens, T sequence frames, F future frames, A action size.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import DataFacts, SamplingConfig, StateConfig, TransformerConfig
from ivideogpt.data.facts import RewardScale
from ivideogpt.errors import CheckpointError, ConfigError
from ivideogpt.presets import transformer_preset
from ivideogpt.sequence import IGNORED, TokenLayout
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.config import TransformerTrainingConfig, recipe_of
from ivideogpt.training.embeddings import embed_codes, embed_places
from ivideogpt.training.loop import Rows, require_one_start
from ivideogpt.training.pictures import labelled_rows
from ivideogpt.training.states import kept_state
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transitions import Transitions, next_state_error, transition_loss
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.symlog import symlog
from ivideogpt.weights import load_weights
from ivideogpt.world_model import WorldModel

_DEFAULT_PRESET = "nano"
_PICTURE_ROWS = 4
_ADDED = ("action_in.", "reward_head.", "state")  # beginnings of the names of weights that fine-tuning may add


def make_transformer(
    config: TransformerTrainingConfig,
    tokenizer: CompressiveTokenizer,
    action_dim: int | None,
    state: StateConfig | None = None,
    facts: DataFacts | None = None,
    rewards: RewardScale | None = None,
) -> VideoTransformer:
    """The transformer that a training starts from: a preset with random weights, or a model to fine-tune.

    A model to fine-tune gets the action input, reward head or states that it lacks; a new action input starts at zero.

    Args:
        config: see `TransformerTrainingConfig`.
        tokenizer: whose tokens it continues.
        action_dim: size of what a step takes, an action or a block of them; None for an action-free model.
        state: what the states of the data are; None learns none.
        facts: on the data; a model to fine-tune keeps what they do not say.
        rewards: of the data, for a new reward head; one to fine-tune keeps its own.

    Raises:
        ConfigError, CheckpointError: a preset, model, action or state that does not fit, or a preset and a model.
    """
    require_one_start(config.preset, config.start_from)
    layout = dataclasses.replace(tokenizer.layout, goal=config.goal)
    changes: dict[str, Any] = {"action_dim": action_dim, "trained_frames": config.segment_frames + config.goal}
    changes["data"] = facts or DataFacts()
    if config.action_limit is not None:
        changes["action_limit"] = config.action_limit
    if config.rewards:
        changes |= {"reward": True, "reward_symlog": config.reward_symlog}
        scale = rewards or RewardScale()
        changes |= {"reward_mean": scale.mean, "reward_std": scale.std}
    if config.attention_dropout is not None:
        changes["attention_dropout"] = config.attention_dropout
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.start_from is not None:
            return _fine_tuned(config, layout, changes, state)
        shape = dict(transformer_preset(config.preset or _DEFAULT_PRESET, layout))
        model = VideoTransformer(TransformerConfig.checked(**{**shape, **changes, "state": state}))
        if recipe_of(config) == "nano":
            embed_codes(model, tokenizer)
            embed_places(model)
        return model


class TransformerLearner:
    """The transformer and how it learns (paper equation 3 and section 3.3; see `training.loop.Learner`)."""

    def __init__(
        self,
        model: VideoTransformer,
        tokenizer: CompressiveTokenizer,
        config: TransformerTrainingConfig,
        device: torch.device,
        bf16: bool,
        transitions: Transitions | None = None,
    ) -> None:
        self.model = model.to(device)
        self.transitions = transitions
        self.tokenizer = tokenizer.to(device).eval()
        self.config, self.device, self.bf16 = config, device, bf16
        self.sampling = SamplingConfig(temperature=config.temperature, top_k=config.top_k)
        self._accuracy = torch.zeros(2, device=device)  # tokens predicted right, tokens predicted
        self.tokenizer_checksum = _checksum(self.tokenizer)
        """CRC-32 of the tokenizer's weights."""

    def losses(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        """Named losses of a batch of token segments."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses, right = transformer_losses(self.model, batch)
        self._accuracy += right
        if self.transitions is not None:
            sample = self.transitions.sample(self.config.state_transitions, self.device)
            losses["state_dynamics"] = transition_loss(self.model.require_states(), sample, self.config.state_noise)
        return {k: v * self.config.state_weight if k.startswith("state") else v for k, v in losses.items()}

    def after_step(self, step: int) -> Rows:
        """Nothing more to do."""
        return {}

    def metrics(self) -> dict[str, float]:
        """Share of tokens whose most likely prediction is right, since the last call."""
        right, count = self._accuracy.tolist()
        self._accuracy.zero_()
        return {"accuracy": right / max(1.0, count)}

    def validate(self, batches: list[TokenBatch]) -> dict[str, float]:
        """Losses and accuracy on held-out episodes; with actions, also the loss when they are shuffled; with states,
        how far off the next one is, predicted from the true ones before, in units of the usual change."""
        figures: dict[str, float] = {}
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses, right = transformer_losses(self.model, batch)
                named = {**losses, "accuracy": right[0] / right[1].clamp(min=1)}
                actions = batch.actions if self.model.action_in is not None else None
                if actions is not None and len(actions) > 1:  # one alone can only be given its own
                    # Half-way round in time as well: two segments may be of one episode.
                    other = actions.roll((1, actions.shape[1] // 2), dims=(0, 1))
                    shuffled = self._with_actions(batch, other)
                    named["cross_entropy_shuffled_actions"] = transformer_losses(self.model, shuffled)[0][
                        "cross_entropy"
                    ]
                if self.model.states is not None and batch.states is not None:
                    named["state_next"] = next_state_error(self.model.states, batch.states, actions, batch.mask)
            for name, value in named.items():
                figures[name] = figures.get(name, 0.0) + float(value) / len(batches)
        return figures

    def _with_actions(self, batch: TokenBatch, actions: Tensor) -> TokenBatch:
        """The batch with other actions, and the states that these lead to in one step from the true ones."""
        path, states = self.model.states, batch.states
        if path is not None and states is not None:
            predicted = path.decoded(path.next_of_segment(path.features(states), actions))
            states = torch.cat([states[:, : path.layout.context_frames], predicted], dim=1)
        return dataclasses.replace(batch, actions=actions, states=states)

    def picture(self, batch: TokenBatch) -> Tensor:
        """Real frames above reconstructed and imagined ones, for a few segments: (3,H,W) in [0,1]."""
        shown = batch.each(lambda part: part[:_PICTURE_ROWS])
        told = None if self.tokenizer.states is None else shown.states
        frames = self.tokenizer.detokenize(shown.tokens, told).float()
        world_model = WorldModel(self.tokenizer, self.model, self.sampling)
        t, future = self.model.layout.context_frames, frames.shape[1] - self.model.layout.context_frames
        actions = shown.actions if self.model.action_in is not None else None
        states = shown.states[:, :t] if self.model.states is not None and shown.states is not None else None
        imagined = world_model.rollout(frames[:, :t], actions, future, seed=self.config.seed, states=states)
        real = {} if shown.frames is None else {"real": shown.frames.float() / 255}
        return labelled_rows({**real, "reconstructed": frames, "imagined": imagined.video[:, 0]}, t)

    def state(self) -> dict[str, Tensor]:
        """Counts of the running accuracy, and which tokenizer the tokens come from."""
        return {"accuracy": self._accuracy, "tokenizer": torch.tensor(self.tokenizer_checksum)}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`.

        Raises:
            CheckpointError: the tokenizer is not the one that the run began with.
        """
        if int(tensors["tokenizer"]) != self.tokenizer_checksum:
            raise CheckpointError(
                f"the tokenizer {self.config.tokenizer_name} has changed since this run began; the transformer learnt "
                "the tokens of the old one. Bring that back, or start a new run."
            )
        self._accuracy.copy_(tensors["accuracy"])

    def checkpoint(self) -> hub.Checkpoint:
        """The whole world model, so that the run's `model/` is ready to imagine."""
        return hub.Checkpoint(
            tokenizer=(self.tokenizer.config, dict(self.tokenizer.state_dict())),
            transformer=(self.model.config, dict(self.model.state_dict())),
            sampling=self.sampling,
        )


def transformer_losses(model: VideoTransformer, batch: TokenBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Cross-entropy of the next token (paper equation 3) and, with a reward head, the reward's mean squared error, in
    units of the head, so that rewards of any size weigh as much.

    Actions and rewards are used where both the model and the batch have them. Padded frames don't count.

    Returns:
        The named losses, and (2,): how many labelled tokens were predicted right, and how many there are.
    """
    layout = model.layout
    frames = layout.frames(batch.tokens.shape[1])
    actions = batch.actions if model.action_in is not None else None
    features = None
    if model.states is not None and batch.states is not None:
        features = model.states.features(batch.states)
    hidden = model.hidden_states(model.embed(batch.tokens, actions, features))
    first = layout.prefix_length  # the first S2, which predicts the first labelled token
    labels = layout.labels(batch.tokens, batch.mask)[:, first + 1 :].flatten()
    logits = model.head(hidden[:, first:-1]).flatten(0, 1).float()
    labelled = labels != IGNORED
    entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    losses = {"cross_entropy": entropy / labelled.sum().clamp(min=1)}  # a batch may be all context and padding
    right = torch.stack([(logits.argmax(-1) == labels)[labelled].sum(), labelled.sum()])
    predicted = model.rewards(hidden[:, layout.reward_positions(frames)])
    if predicted is not None and batch.rewards is not None:
        target, counted = batch.rewards[:, layout.context_frames :], batch.mask[:, layout.context_frames :]
        target = symlog(target) if model.config.reward_symlog else target
        error = (predicted - target) / model.config.reward_std
        losses["reward_loss"] = (error.square() * counted).sum() / counted.sum().clamp(min=1)
    if features is not None:
        losses["state_seen"] = _seen_state_loss(model, hidden, features, batch.mask)
    return losses, right.float()


def _seen_state_loss(model: VideoTransformer, hidden: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """Mean absolute error of the states (B,T,D) read from the last token of the context and of each future frame."""
    layout = model.layout
    last = layout.prefix_length - 1
    places = torch.cat([torch.tensor([last]), layout.reward_positions(features.shape[1])])
    frames = slice(layout.context_frames - 1, None)
    error = (model.require_states().head(hidden[:, places]).float() - features[:, frames]).abs().mean(dim=-1)
    counted = mask[:, frames]
    return (error * counted).sum() / counted.sum().clamp(min=1)


def _checksum(module: nn.Module) -> int:
    """CRC-32 of a module's weights."""
    checksum = 0
    for _, tensor in sorted(module.state_dict().items()):
        checksum = zlib.crc32(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy(), checksum)
    return checksum


def _fine_tuned(
    training: TransformerTrainingConfig, layout: TokenLayout, changes: dict[str, Any], state: StateConfig | None
) -> VideoTransformer:
    """The transformer to start from on another layout, with what it lacks of `changes` and `state`."""
    assert training.start_from is not None, "there is a model to fine-tune"
    name = training.start_from
    config, weights = hub.load_transformer(name)
    wanted = changes["action_dim"]
    if config.action_dim is not None and wanted not in (None, config.action_dim):
        block = f" in a step of {training.step_size} frames" if training.step_size > 1 else ""
        if config.data.step_size not in (None, training.step_size):
            block += f" (step_size {training.step_size}; the model has step size {config.data.step_size})"
        raise ConfigError(
            f"the model {name} takes actions of size {config.action_dim}, the data have {wanted}{block}. "
            "Fine-tune a model of that size, or an action-free one."
        )
    if config.reward and config.reward_symlog != changes.get("reward_symlog", config.reward_symlog):
        raise ConfigError(
            f"reward_symlog is {changes['reward_symlog']}; the reward head of {name} was trained with "
            f"{config.reward_symlog}. Keep to it."
        )
    if config.reward:
        changes |= {"reward_mean": config.reward_mean, "reward_std": config.reward_std}
    # Context frames and a goal only move positions; other ids or numbers of tokens would be another language.
    theirs = dataclasses.replace(config.layout, context_frames=layout.context_frames, goal=layout.goal)
    if theirs != layout:
        raise CheckpointError(f"the model {name} continues {config.layout}, but the tokenizer writes {layout}.")
    changes = {**changes, "action_dim": config.action_dim or wanted, "layout": layout}
    changes["data"] = config.data.updated(changes["data"])
    changes["state"] = kept_state(config.state, state, training, name)
    model = VideoTransformer(TransformerConfig.checked(**{**dict(config), **changes}))
    fresh = {k: v for k, v in model.state_dict().items() if k.startswith(_ADDED)}
    if model.states is not None and config.state is not None and config.action_dim is None:
        reads = "states.dynamics.state_in.weight"
        added = model.states.dynamics.state_in.in_features - weights[reads].shape[1]
        weights = {**weights, reads: F.pad(weights[reads], (0, added))}  # a new action changes nothing yet
    load_weights(model, {**fresh, **weights}, where=f"transformer of {name}")
    return model
