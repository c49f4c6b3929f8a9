"""Attention of future-frame feature maps to the maps of the context frames.

Shapes: B contexts, t context frames, F future frames a context, C channels, H and W of a map, D channels a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.errors import ShapeError

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one context, each (B, heads, t*H*W, D): computed once, used for every future frame."""

_CROSS_NORM_EPS = 1e-5


class CrossAttention(nn.Module):
    """`z <- SiLU(z + MHA(q = GN(z) + pos_q, kv = GN(context) + pos_kv))` (paper appendix A.1)."""

    def __init__(self, channels: int, size: int, context_frames: int, heads: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout, self.size = heads, dropout, size
        self.query_norm = nn.GroupNorm(groups, channels, eps=_CROSS_NORM_EPS)
        self.context_norm = nn.GroupNorm(groups, channels, eps=_CROSS_NORM_EPS)
        self.query_position = nn.Parameter(torch.zeros(size * size, channels))
        self.context_position = nn.Parameter(torch.zeros(context_frames * size * size, channels))
        self.projection = nn.Linear(channels, 3 * channels)  # query, key and value, packed
        self.output = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.projection.weight)
        for bias in (self.projection.bias, self.output.bias):
            nn.init.zeros_(bias)

    def keys_values(self, maps: Tensor) -> KeysValues:
        """Context maps (B,t,C,H,W), oldest frame first -> keys and values (B,heads,t*H*W,D).

        The maps are stacked along the height before the norm, so its statistics span all context frames.
        """
        batch, frames, channels = maps.shape[:3]
        stacked = maps.transpose(1, 2).reshape(batch, channels, frames * self.size, self.size)
        rows = self.context_norm(stacked).flatten(2).transpose(1, 2) + self.context_position
        weight, bias = self.projection.weight[channels:], self.projection.bias[channels:]
        keys, values = F.linear(rows, weight, bias).chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def forward(self, z: Tensor, context: KeysValues) -> Tensor:
        """(B*F,C,H,W) with the keys and values of B contexts -> (B*F,C,H,W).

        All future frames of a context are one long list of queries, so its keys and values are never repeated.
        """
        channels, contexts = z.shape[1], context[0].shape[0]
        rows = self.query_norm(z).flatten(2).transpose(1, 2) + self.query_position  # (B*F, HW, C)
        queries = F.linear(rows, self.projection.weight[:channels], self.projection.bias[:channels])
        queries = self._split_heads(queries.reshape(contexts, -1, channels))
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(queries, *context, dropout_p=dropout)
        attended = self.output(attended.transpose(1, 2).reshape(rows.shape))
        attended = F.dropout(attended, self.dropout, self.training)
        return F.silu(z + attended.transpose(1, 2).reshape(z.shape))

    def _split_heads(self, rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def resize_context_position(position: Tensor, old_frames: int, new_frames: int) -> Tensor:
    """Context positions (old_frames*H*W, C) -> (new_frames*H*W, C).

    Going to fewer frames keeps the last rows, those of the newest frames. Going to more repeats the oldest frame's
    rows in front: the added frames are older still, and the newest frames keep the positions they were trained with.
    """
    if new_frames < 1:
        raise ShapeError(f"context_frames is {new_frames}; it must be at least 1.")
    rows = position.unflatten(0, (old_frames, -1))
    if new_frames <= old_frames:
        return rows[old_frames - new_frames :].flatten(0, 1).clone()
    added = rows[:1].expand(new_frames - old_frames, -1, -1)
    return torch.cat([added, rows]).flatten(0, 1)
