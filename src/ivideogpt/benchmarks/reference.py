"""The straightforward way, to measure against: float32, attention weights materialised, nothing kept for later.

It runs on the very weights of our models and gives the same results; only the way of computing them differs. Within a
frame it keeps keys and values, as everybody's `generate` does, and where it has a choice (packed projections, a cache
allocated once, logits of the last position only) it takes the faster one, so ours is not flattered.

Shapes: B contexts, T frames, t context frames, F future frames, M dynamics tokens, A action size, R resolution.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.sequence import IGNORED
from ivideogpt.tokenizer.blocks import SelfAttention
from ivideogpt.tokenizer.cross_attention import CrossAttention, KeysValues
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner
from ivideogpt.transformer import KeyValueCache, VideoTransformer
from ivideogpt.transformer.cache import Cache
from ivideogpt.transformer.model import Attention, rotate
from ivideogpt.transformer.sampling import sample
from ivideogpt.transformer.streams import stream_key, uniform_numbers
from ivideogpt.world_model import WorldModel

ModelT = TypeVar("ModelT", bound=nn.Module)


class PlainAttention(Attention):
    """Causal self-attention with the whole matrix of weights in memory."""

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        """As `Attention`."""
        heads = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (queries, keys), values = rotate(heads[:2], rotary), heads[2]
        start = 0
        if cache is not None:
            assert isinstance(cache, KeyValueCache), "made by `new_cache`"
            start = cache.length
            keys, values = cache.append(self.layer, keys, values)
        future = torch.ones(x.shape[1], keys.shape[2], dtype=torch.bool, device=x.device).triu(start + 1)
        weights = _scores(queries, keys).masked_fill(future, -math.inf).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        return self.output((weights @ values).transpose(1, 2).flatten(2))


class PlainSelfAttention(SelfAttention):
    """Attention over a feature map with the whole matrix of weights in memory."""

    def forward(self, x: Tensor) -> Tensor:
        """As `SelfAttention`."""
        z = self.norm(x).flatten(2).transpose(1, 2)
        weights = _scores(self.query(z), self.key(z)).softmax(-1)
        y = self.output(weights @ self.value(z))
        return x + y.transpose(1, 2).reshape(x.shape)


class PlainCrossAttention(CrossAttention):
    """Cross-attention that repeats the context maps for every future frame, and projects each repetition."""

    def keys_values(self, maps: Tensor) -> KeysValues:
        """The context maps (B,t,C,H,W) themselves, twice: their projection is put off to each future frame."""
        return maps, maps

    def forward(self, z: Tensor, context: KeysValues) -> Tensor:
        """As `CrossAttention`, with what `keys_values` gave."""
        maps = context[0].repeat_interleave(len(z) // len(context[0]), dim=0)  # (B*F, t, C, H, W)
        keys, values = super().keys_values(maps)
        rows = self.query_norm(z).flatten(2).transpose(1, 2) + self.query_position
        channels = z.shape[1]
        queries = F.linear(rows, self.projection.weight[:channels], self.projection.bias[:channels])
        queries = queries.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = F.dropout(_scores(queries, keys).softmax(-1), self.dropout, self.training)
        attended = self.output((weights @ values).transpose(1, 2).flatten(2))
        attended = F.dropout(attended, self.dropout, self.training)
        return F.silu(z + attended.transpose(1, 2).reshape(z.shape))


_PLAIN: dict[type[nn.Module], type[nn.Module]] = {
    Attention: PlainAttention,
    SelfAttention: PlainSelfAttention,
    CrossAttention: PlainCrossAttention,
}


def plain_twin(model: ModelT) -> ModelT:
    """A copy of a model that shares its weights and computes attention the plain way."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights)  # what stands in the memo is not copied
    for module in twin.modules():
        # The plain classes have the same state and other methods, so a module becomes one by changing its class.
        module.__class__ = _PLAIN.get(type(module), type(module))
    return twin


class PlainTransformerLearner(TransformerLearner):
    """Learns from the logits of every position, most of whose labels are then ignored."""

    def losses(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        """The same losses as `TransformerLearner`'s; without a reward head."""
        logits = self.model(batch.tokens, batch.actions).logits
        labels = self.model.layout.labels(batch.tokens, batch.mask)
        wanted, predicted = labels[:, 1:].flatten(), logits[:, :-1].flatten(0, 1)
        return {"cross_entropy": F.cross_entropy(predicted, wanted, ignore_index=IGNORED)}


class PlainRollout(NamedTuple):
    """What the straightforward way imagined."""

    tokens: Tensor
    """(B, L) int64."""
    video: Tensor
    """(B, T, 3, R, R) float in [0,1]."""


@torch.no_grad()
def plain_rollout(model: WorldModel, context: Tensor, actions: Tensor, seed: int) -> PlainRollout:
    """Imagine one future of each context, reading everything again for every frame.

    Future frames that are not known yet are tokenized as copies of the last context frame, and their tokens are
    replaced one frame after the other. Row b draws from the stream (seed, b, 0), as in `WorldModel.start`.

    Args:
        model: a `plain_twin`, in float32.
        context: (B,t,3,R,R) float in [0,1].
        actions: (B,F,A) from the last context frame on.
        seed: decides every draw.
    """
    futures = actions.shape[1]
    placeholders = context[:, -1:].expand(-1, futures, -1, -1, -1)
    tokens = model.tokenizer.tokenize(torch.cat([context, placeholders], dim=1))
    tokens = tokens[:, : model.transformer.layout.prefix_length]
    keys = torch.tensor([stream_key((seed, b, 0)) for b in range(len(context))], device=tokens.device)
    uniform = uniform_numbers(keys, torch.zeros_like(keys[:, 0]), futures, model.transformer.layout.dynamics_tokens)
    for j in range(futures):
        tokens = _with_next_frame(model, tokens, actions[:, : j + 1], uniform[:, j])
    return PlainRollout(tokens, model.tokenizer.detokenize(tokens))


def _with_next_frame(model: WorldModel, tokens: Tensor, actions: Tensor, uniform: Tensor) -> Tensor:
    """Tokens (B,L) of whole frames -> one more future frame behind them, with a cache that is then thrown away."""
    transformer, layout = model.transformer, model.transformer.layout
    tokens = F.pad(tokens, (0, 1), value=layout.future_slot)
    frames = layout.context_frames + actions.shape[1]
    slots = layout.action_positions(frames).to(tokens.device)
    places = layout.places(frames).to(tokens.device)
    x = transformer.embed_tokens(tokens, places[: tokens.shape[1]]).index_add(
        1, slots, transformer.embed_actions(actions)
    )
    cache = transformer.new_cache(len(tokens), tokens.shape[1] + layout.dynamics_tokens)
    for i in range(layout.dynamics_tokens):
        logits = _legal(transformer.head(transformer.hidden_states(x, cache)[:, -1]), transformer)
        chosen = sample(logits, uniform[:, i], model.sampling).code
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        x = transformer.embed_tokens(chosen, layout.dynamics_places[i])[:, None]
    return tokens


def _legal(logits: Tensor, transformer: VideoTransformer) -> Tensor:
    """Logits (B,V) with those of tokens that may not stand inside a future frame at minus infinity."""
    ids = transformer.layout.dynamics_ids
    legal = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    legal[ids.start : ids.stop] = True
    return logits.masked_fill(~legal, -math.inf)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
