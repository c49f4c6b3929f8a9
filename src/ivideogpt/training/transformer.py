"""How the transformer learns: next-token cross-entropy on dynamics tokens and slots, and the reward's error.

Shapes: B segments, L tokens, T sequence frames, F future frames, A action size.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt import hub
from ivideogpt.config import SamplingConfig, TransformerConfig, TransformerTrainingConfig
from ivideogpt.errors import CheckpointError, ConfigError
from ivideogpt.presets import transformer_preset
from ivideogpt.sequence import IGNORED
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.transformer import VideoTransformer
from ivideogpt.world_model import WorldModel, symlog

_PICTURE_ROWS = 4


def make_transformer(
    config: TransformerTrainingConfig, tokenizer: CompressiveTokenizer, action_dim: int | None
) -> VideoTransformer:
    """The transformer that a training starts from: a preset with random weights, or a model to fine-tune.

    A model to fine-tune gets the action input or reward head that it lacks; a new action input starts at zero.

    Args:
        config: see `TransformerTrainingConfig`.
        tokenizer: whose tokens it continues.
        action_dim: action size of the data; None for an action-free model.

    Raises:
        ConfigError, CheckpointError: a preset, model or action size that does not fit.
    """
    layout = dataclasses.replace(tokenizer.layout, goal=config.goal)
    wanted: dict[str, Any] = {"action_dim": action_dim, "reward": config.rewards, "reward_symlog": config.reward_symlog}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.start_from is None:
            shape = dict(transformer_preset(config.preset, layout))
            if config.attention_dropout is not None:
                shape["attention_dropout"] = config.attention_dropout
            return VideoTransformer(TransformerConfig(**{**shape, **wanted}))
        return _fine_tuned(config.start_from, wanted, tokenizer)


class TransformerLearner:
    """The transformer and how it learns (paper equation 3 and section 3.3; see `training.loop.Learner`)."""

    def __init__(
        self,
        model: VideoTransformer,
        tokenizer: CompressiveTokenizer,
        config: TransformerTrainingConfig,
        device: torch.device,
        bf16: bool,
    ) -> None:
        self.model = model.to(device)
        self.tokenizer = tokenizer.to(device).eval()
        self.config, self.device, self.bf16 = config, device, bf16
        self.sampling = SamplingConfig(temperature=config.temperature, top_k=config.top_k)
        self._accuracy = torch.zeros(2, device=device)  # tokens predicted right, tokens predicted

    def losses(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        """Named losses of a batch of token segments."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            losses, right = transformer_losses(self.model, batch)
        self._accuracy += right
        return losses

    def after_step(self, step: int) -> None:
        """Nothing more to do."""

    def metrics(self) -> dict[str, float]:
        """Share of tokens whose most likely prediction is right, since the last call."""
        right, count = self._accuracy.tolist()
        self._accuracy.zero_()
        return {"accuracy": right / max(1.0, count)}

    def validate(self, batches: list[TokenBatch]) -> dict[str, float]:
        """Losses and accuracy on held-out episodes; with actions, also the loss when they are shuffled."""
        figures: dict[str, float] = {}
        for batch in batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                losses, right = transformer_losses(self.model, batch)
                named = {**losses, "accuracy": right[0] / right[1].clamp(min=1)}
                if self.model.action_in is not None and batch.actions is not None:
                    shuffled = TokenBatch(batch.tokens, batch.mask, batch.actions.roll(1, dims=0), batch.rewards)
                    named["cross_entropy_shuffled_actions"] = transformer_losses(self.model, shuffled)[0][
                        "cross_entropy"
                    ]
            for name, value in named.items():
                figures[name] = figures.get(name, 0.0) + float(value) / len(batches)
        return figures

    def picture(self, batch: TokenBatch) -> Tensor:
        """Reconstructed frames above imagined ones, for a few segments: (3,H,W) in [0,1]."""
        tokens = batch.tokens[:_PICTURE_ROWS]
        frames = self.tokenizer.detokenize(tokens).float()
        world_model = WorldModel(self.tokenizer, self.model, self.sampling)
        t = self.model.layout.context_frames
        actions = (
            batch.actions[:_PICTURE_ROWS] if self.model.action_in is not None and batch.actions is not None else None
        )
        imagined = world_model.rollout(frames[:, :t], actions, frames.shape[1] - t, seed=self.config.seed)
        pairs = torch.stack([frames, imagined.video[:, 0]], dim=1).flatten(0, 1)  # (2B, T, 3, H, W)
        return torch.cat([torch.cat(list(row), dim=2) for row in pairs], dim=1)

    def state(self) -> dict[str, Tensor]:
        """Counts of the running accuracy."""
        return {"accuracy": self._accuracy}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        self._accuracy.copy_(tensors["accuracy"])

    def checkpoint(self) -> hub.Checkpoint:
        """The whole world model, so that the run's `model/` is ready to imagine."""
        return hub.Checkpoint(
            tokenizer=(self.tokenizer.config, dict(self.tokenizer.state_dict())),
            transformer=(self.model.config, dict(self.model.state_dict())),
            sampling=self.sampling,
        )


def transformer_losses(model: VideoTransformer, batch: TokenBatch) -> tuple[dict[str, Tensor], Tensor]:
    """Cross-entropy of the next token (paper equation 3) and, with a reward head, the reward's mean squared error.

    Returns:
        The named losses, and (2,): how many labelled tokens were predicted right, and how many there are.
    """
    layout = model.layout
    frames = layout.frames(batch.tokens.shape[1])
    actions = batch.actions if model.action_in is not None else None
    hidden = model.hidden_states(model.embed(batch.tokens, actions))
    first = layout.prefix_length  # the first S2, which predicts the first labelled token
    labels = layout.labels(batch.tokens, batch.mask)[:, first + 1 :].flatten()
    logits = model.head(hidden[:, first:-1]).flatten(0, 1).float()
    losses = {"cross_entropy": F.cross_entropy(logits, labels, ignore_index=IGNORED)}
    labelled = labels != IGNORED
    right = torch.stack([(logits.argmax(-1) == labels)[labelled].sum(), labelled.sum()])
    if model.reward_head is not None:
        if batch.rewards is None:
            raise ConfigError("rewards are to be predicted, but the episodes have none. Set rewards to false.")
        predicted = model.rewards(hidden[:, layout.reward_positions(frames)])
        assert predicted is not None, "there is a reward head"
        losses["reward"] = _reward_error(predicted, batch, layout.context_frames, model.config.reward_symlog)
    return losses, right.float()


def _reward_error(predicted: Tensor, batch: TokenBatch, context_frames: int, symlogged: bool) -> Tensor:
    assert batch.rewards is not None, "checked by the caller"
    target, mask = batch.rewards[:, context_frames:], batch.mask[:, context_frames:]
    target = symlog(target) if symlogged else target
    return ((predicted.float() - target).square() * mask).sum() / mask.sum().clamp(min=1)


def _fine_tuned(name: str, wanted: dict[str, Any], tokenizer: CompressiveTokenizer) -> VideoTransformer:
    config, weights = hub.load_transformer(name)
    if config.action_dim is not None and wanted["action_dim"] not in (None, config.action_dim):
        raise ConfigError(
            f"the model {name} takes actions of size {config.action_dim}, the data have {wanted['action_dim']}. "
            "Fine-tune a model of that size, or an action-free one."
        )
    reward = bool(config.reward or wanted["reward"])
    action_dim = config.action_dim or wanted["action_dim"]
    model = VideoTransformer(
        TransformerConfig(**{**dict(config), **wanted, "action_dim": action_dim, "reward": reward})
    )
    if model.layout != tokenizer.layout and not model.layout.goal:
        raise CheckpointError(f"the model {name} continues {model.layout}, the tokenizer writes {tokenizer.layout}.")
    fresh = {k: v for k, v in model.state_dict().items() if k.startswith(("action_in", "reward_head"))}
    hub.load_weights(model, {**fresh, **weights}, where=f"transformer of {name}")
    return model
