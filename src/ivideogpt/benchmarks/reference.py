"""The reference for training, tokenizing and decoding: plain modules on the weights of our models.

A tokenizer repeats its context for every future frame, projects each repetition, and has the whole matrix of attention
weights in memory; a transformer learns from the logits of every position.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.sequence import IGNORED
from ivideogpt.tokenizer.cross_attention import CrossAttention, KeysValues
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner

ModelT = TypeVar("ModelT", bound=nn.Module)


class PlainCrossAttention(CrossAttention):
    """Cross-attention that repeats the context maps for every future frame."""

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
        weights = (queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])).softmax(-1)
        weights = F.dropout(weights, self.dropout, self.training)
        attended = self.output((weights @ values).transpose(1, 2).flatten(2))
        attended = F.dropout(attended, self.dropout, self.training)
        return F.silu(z + attended.transpose(1, 2).reshape(z.shape))


def plain_twin(model: ModelT, dtype: torch.dtype = torch.float32) -> ModelT:
    """A copy of a float32 model with plain cross-attention; in float32 it shares the weights."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    twin = copy.deepcopy(model, weights if dtype is torch.float32 else None)  # what stands in the memo is not copied
    for module in twin.modules():
        if type(module) is CrossAttention:
            module.__class__ = PlainCrossAttention  # of the same state, and other methods
    return twin.to(dtype)


class PlainTransformerLearner(TransformerLearner):
    """Learns from the logits of every position, most of whose labels are then ignored."""

    def losses(self, batch: TokenBatch, step: int) -> dict[str, Tensor]:
        """The same losses as `TransformerLearner`'s; without a reward head."""
        labels = self.model.layout.labels(batch.tokens, batch.mask)[:, 1:].flatten()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(batch.tokens, batch.actions).logits[:, :-1].flatten(0, 1)
            return {"cross_entropy": F.cross_entropy(logits, labels, ignore_index=IGNORED)}
