"""Rollouts in the official pattern: Hugging Face's `generate`, called again for every frame with all that came before.

Everything is float32 and on the very weights of our model. Placeholders stand in for the future frames while a video is
tokenized, every candidate is tokenized by itself, `generate` makes a cache within a frame and throws it away after it,
and at the end all frames, those of the context included, are decoded by the tokenizer with plain attention.

Shapes: R rows, T frames, t context frames, F future frames, M dynamics tokens, L tokens, A action size, V vocabulary,
H hidden size, side of a frame.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.benchmarks.reference import plain_twin
from ivideogpt.benchmarks.timing import Laps
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import ConfigError
from ivideogpt.official import transformer_to_official
from ivideogpt.sequence import TokenLayout
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.symlog import symexp
from ivideogpt.world_model import WorldModel

ROWS_AT_ONCE = 128


class ReferenceRollout(NamedTuple):
    """What the straightforward way imagined."""

    tokens: Tensor
    """(R, L) int64."""
    video: Tensor
    """(R, T, 3, side, side) float in [0,1], the context decoded too."""
    rewards: Tensor | None
    """(R, F) reward on arriving at each imagined frame, in reward units; None without a reward head."""


class Reference:
    """A world model that is stepped the official way.

    Args:
        model: float32, without place embedding. The tokenizer's weights are shared, the transformer's copied.

    Raises:
        ConfigError: Hugging Face's transformers is not installed.
        CheckpointError: their `LlamaForCausalLM` cannot express this transformer.
    """

    def __init__(self, model: WorldModel) -> None:
        self.tokenizer = plain_twin(model.tokenizer)
        self.llama = _llama(model.transformer)
        self.transformer = model.transformer
        """For its layout, action input and reward head."""
        self.sampling = model.sampling

    @torch.no_grad()
    def logits(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Whole segments (R,L), with actions (R,F,A) from the last context frame on -> logits (R,L,V)."""
        return self.llama(inputs_embeds=self._embed(tokens, actions)).logits

    @torch.no_grad()
    def rollout(
        self,
        context: Tensor,
        actions: Tensor | None,
        horizon: int,
        *,
        sampling: SamplingConfig | None = None,
        rows_at_once: int = ROWS_AT_ONCE,
        laps: Laps | None = None,
    ) -> ReferenceRollout:
        """Imagine one future of each row; draws come from torch's global generator.

        Args:
            context: (R,t,3,side,side) float in [0,1]; for several futures of a context, it is repeated.
            actions: (R,F,A) from the last context frame on, F the horizon; None for none.
            horizon: future frames F.
            sampling: how tokens are drawn; the model's own way where left out.
            rows_at_once: rows worked on together; fewer take less memory and more time.
            laps: is told when the parts `start`, `steps` and `decode` of each chunk of rows are done.
        """
        sampling = sampling or self.sampling
        parts = []
        for first in range(0, len(context), rows_at_once):
            rows = slice(first, first + rows_at_once)
            own = None if actions is None else actions[rows]
            parts.append(self._rollout(context[rows], own, horizon, sampling, laps))
        tokens, video, rewards = zip(*parts, strict=True)
        return ReferenceRollout(
            torch.cat(tokens), torch.cat(video), None if self.transformer.reward_head is None else torch.cat(rewards)
        )

    def _rollout(
        self, context: Tensor, actions: Tensor | None, horizon: int, sampling: SamplingConfig, laps: Laps | None
    ) -> ReferenceRollout:
        placeholders = context[:, -1:].expand(-1, horizon, -1, -1, -1)
        tokens = self.tokenizer.tokenize(torch.cat([context, placeholders], dim=1))
        tokens = tokens[:, : self.transformer.layout.prefix_length]
        _lap(laps, "start")
        for j in range(horizon):
            tokens = self._with_next_frame(tokens, None if actions is None else actions[:, : j + 1], sampling)
        rewards = self._rewards(tokens, actions)
        _lap(laps, "steps")
        video = self.tokenizer.detokenize(tokens)
        _lap(laps, "decode")
        return ReferenceRollout(tokens, video, rewards)

    def _with_next_frame(self, tokens: Tensor, actions: Tensor | None, sampling: SamplingConfig) -> Tensor:
        """Tokens (R,L) of whole frames -> one more future frame behind them."""
        layout = self.transformer.layout
        tokens = F.pad(tokens, (0, 1), value=layout.future_slot)
        frame = self.llama.generate(
            inputs_embeds=self._embed(tokens, actions),
            generation_config=_generation(layout, sampling),
            logits_processor=[_OnlyDynamics(layout)],
        )
        return torch.cat([tokens, frame], dim=1)

    def _embed(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Tokens (R,L), up to a slot or whole frames, with an action (R,F,A) at each slot -> (R,L,H)."""
        x = self.llama.get_input_embeddings()(tokens)
        if actions is None:
            return x
        layout = self.transformer.layout
        slots = layout.action_positions(layout.context_frames + actions.shape[1]).to(tokens.device)
        return x.index_add(1, slots, self.transformer.embed_actions(actions))

    def _rewards(self, tokens: Tensor, actions: Tensor | None) -> Tensor | None:
        """Rewards (R,F) of whole segments (R,L), all read once more."""
        if self.transformer.reward_head is None:
            return None
        hidden = self.llama.model(inputs_embeds=self._embed(tokens, actions), use_cache=False).last_hidden_state
        positions = self.transformer.layout.reward_positions(self.transformer.layout.frames(tokens.shape[1]))
        rewards = self.transformer.rewards(hidden[:, positions.to(tokens.device)])
        assert rewards is not None, "there is a reward head"
        return symexp(rewards) if self.transformer.config.reward_symlog else rewards


class _OnlyDynamics:
    """Puts the scores of ids that may not stand inside a future frame at minus infinity."""

    def __init__(self, layout: TokenLayout) -> None:
        self.ids = layout.dynamics_ids

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        masked = torch.full_like(scores, -math.inf)
        masked[:, self.ids.start : self.ids.stop] = scores[:, self.ids.start : self.ids.stop]
        return masked


def _generation(layout: TokenLayout, sampling: SamplingConfig) -> Any:
    """One frame's tokens, never fewer: nothing ends a sequence."""
    drawn: dict[str, Any] = {"do_sample": sampling.temperature > 0}
    if sampling.temperature > 0:
        drawn |= {"temperature": sampling.temperature, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return _transformers().GenerationConfig(max_new_tokens=layout.dynamics_tokens, use_cache=True, **drawn)


def _llama(transformer: VideoTransformer) -> Any:
    """Hugging Face's model with these weights."""
    library = _transformers()
    # The action input and the reward head stay ours.
    config = transformer.config.model_copy(update={"action_dim": None, "reward": False})
    extra = ("action_in.", "reward_head.")
    weights = {name: tensor for name, tensor in transformer.state_dict().items() if not name.startswith(extra)}
    fields, official = transformer_to_official(config, weights)
    llama = library.LlamaForCausalLM(library.LlamaConfig(**fields))
    llama.load_state_dict(official)
    return llama.to(transformer.embedding.weight.device).eval()


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the straightforward way is Hugging Face's `generate`, and transformers is not installed. "
            "Install it: pip install 'ivideogpt[hf]'"
        ) from error


def _lap(laps: Laps | None, part: str) -> None:
    if laps is not None:
        laps.lap(part)
