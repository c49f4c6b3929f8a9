"""The reference for rollouts: Hugging Face's `generate`, called again for every frame with all that came before.

That is the official pattern. Placeholders stand in for the future frames while a video is tokenized, every candidate is
tokenized by itself, `generate` makes a cache within a frame and throws it away after it, and at the end all frames are
decoded, those of the context included.

Shapes: R rows, T frames, t context frames, F future frames, L tokens, A action size, V vocabulary, H hidden size.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.benchmarks.reference import plain_twin
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import ConfigError
from ivideogpt.official import transformer_to_official
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.symlog import symexp
from ivideogpt.world_model import WorldModel


class ReferenceRollout(NamedTuple):
    """What the reference imagined."""

    tokens: Tensor
    """(R, L) int64."""
    video: Tensor
    """(R, T, 3, side, side) float in [0,1], the context decoded too."""
    rewards: Tensor | None
    """(R, F) reward on arriving at each imagined frame, in reward units; None without a reward head."""


class Reference:
    """A world model that is stepped in the official pattern.

    Args:
        model: float32, without place embedding and states. Its action input and reward head are used as they are.
        dtype: what the tokenizer and the layers of the transformer compute in.

    Raises:
        ConfigError: Hugging Face's transformers is not installed.
        CheckpointError: their `LlamaForCausalLM` cannot express this transformer.
    """

    def __init__(self, model: WorldModel, dtype: torch.dtype = torch.float32) -> None:
        try:
            self._library = importlib.import_module("transformers")
        except ModuleNotFoundError as error:
            raise ConfigError(
                "the reference is Hugging Face's `generate`, and transformers is not installed. "
                "Install it: pip install 'ivideogpt[hf]'"
            ) from error
        self.transformer, self.sampling = model.transformer, model.sampling
        self.tokenizer = plain_twin(model.tokenizer, dtype)
        self.llama = self._as_llama(model.transformer).to(dtype)

    def _as_llama(self, transformer: VideoTransformer) -> Any:
        """Hugging Face's model with these weights, but for the action input and the reward head."""
        config = transformer.config.model_copy(update={"action_dim": None, "reward": False})
        extra = ("action_in.", "reward_head.")
        weights = {name: tensor for name, tensor in transformer.state_dict().items() if not name.startswith(extra)}
        fields, official = transformer_to_official(config, weights)
        llama = self._library.LlamaForCausalLM(self._library.LlamaConfig(**fields))
        llama.load_state_dict(official)
        return llama.to(transformer.embedding.weight.device).eval()

    @torch.no_grad()
    def logits(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Whole segments (R,L), with actions (R,F,A) from the last context frame on -> logits (R,L,V)."""
        return self.llama(inputs_embeds=self._embed(tokens, actions)).logits

    @torch.no_grad()
    def rollout(
        self, context: Tensor, actions: Tensor | None, horizon: int, sampling: SamplingConfig | None = None
    ) -> ReferenceRollout:
        """Imagine one future of each row; draws come from torch's global generator.

        Args:
            context: (R,t,3,side,side) float in [0,1]; for several futures of a context, it is repeated.
            actions: (R,F,A) from the last context frame on, F the horizon; None for none.
            horizon: future frames F.
            sampling: how tokens are drawn; the model's own way where left out.
        """
        placeholders = context[:, -1:].expand(-1, horizon, -1, -1, -1)
        tokens = self.tokenizer.tokenize(torch.cat([context, placeholders], dim=1))
        tokens = tokens[:, : self.transformer.layout.prefix_length]
        for j in range(horizon):
            given = None if actions is None else actions[:, : j + 1]
            tokens = self._with_next_frame(tokens, given, sampling or self.sampling)
        return ReferenceRollout(tokens, self.tokenizer.detokenize(tokens), self._rewards(tokens, actions))

    def _with_next_frame(self, tokens: Tensor, actions: Tensor | None, sampling: SamplingConfig) -> Tensor:
        """Tokens (R,L) of whole frames -> one more future frame behind them."""
        layout, drawn = self.transformer.layout, {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            drawn |= sampling.model_dump()
        config = self._library.GenerationConfig(max_new_tokens=layout.dynamics_tokens, use_cache=True, **drawn)
        tokens = F.pad(tokens, (0, 1), value=layout.future_slot)
        given = {"inputs_embeds": self._embed(tokens, actions), "logits_processor": [self._only_dynamics]}
        frame = self.llama.generate(generation_config=config, **given)
        return torch.cat([tokens, frame], dim=1)

    def _only_dynamics(self, _: Tensor, scores: Tensor) -> Tensor:
        """Scores (R,V) with those of ids that may not stand inside a future frame at minus infinity."""
        ids = self.transformer.layout.dynamics_ids
        return F.pad(scores[:, ids.start : ids.stop], (ids.start, scores.shape[1] - ids.stop), value=-math.inf)

    def _embed(self, tokens: Tensor, actions: Tensor | None) -> Tensor:
        """Tokens (R,L), up to a slot or whole frames, with an action (R,F,A) at each slot -> (R,L,H)."""
        x = self.llama.get_input_embeddings()(tokens)
        if actions is None:
            return x
        layout = self.transformer.layout
        slots = layout.action_positions(layout.context_frames + actions.shape[1]).to(tokens.device)
        return x.index_add(1, slots, self.transformer.embed_actions(actions).to(x.dtype))

    def _rewards(self, tokens: Tensor, actions: Tensor | None) -> Tensor | None:
        """Rewards (R,F) of whole segments (R,L), all read once more."""
        if self.transformer.reward_head is None:
            return None
        hidden = self.llama.model(inputs_embeds=self._embed(tokens, actions), use_cache=False).last_hidden_state
        positions = self.transformer.layout.reward_positions(self.transformer.layout.frames(tokens.shape[1]))
        rewards = self.transformer.rewards(hidden[:, positions.to(tokens.device)].float())
        assert rewards is not None, "there is a reward head"
        return symexp(rewards) if self.transformer.config.reward_symlog else rewards
