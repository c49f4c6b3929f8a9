"""Attention of future-frame feature maps to the maps of the context frames.

Shapes: B contexts, t context frames, F future frames a context, C channels, H and W of a map, D channels a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.errors import ShapeError

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one context, each (B, heads, t*H*W, D): computed once, used for every future frame."""

_CROSS_NORM_EPS = 1e-5
_PLACE_AMPLITUDE = 4.0  # how far places stand out from what is seen there, which has a standard deviation of 1
_PLACE_SHARPNESS = 6.0  # attention logit of one cosine of the place code where query and key are at the same place
_PLACE_WAVES = 4  # most cosines a direction; more tell places apart no better
_AGE_FADING = 0.8  # of the places from one context frame to the one before it, so that the newest is looked at most


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
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random projections, and positions that tell no place from another."""
        for norm in (self.query_norm, self.context_norm):
            norm.reset_parameters()
        for position in (self.query_position, self.context_position):
            nn.init.zeros_(position)
        nn.init.xavier_uniform_(self.projection.weight)
        self.output.reset_parameters()
        for bias in (self.projection.bias, self.output.bias):
            nn.init.zeros_(bias)

    @torch.no_grad()
    def look_near(self) -> None:
        """Start with every place looking at itself in the newest context frame, and adding what it sees there.

        From zero, positions find out very slowly that a place is best predicted by the same place before. Place codes
        are waves in a random subspace (drawn with torch's global generator) that queries and keys read and that values
        do not, so what is added is the normalized context map but for that subspace. Fewer than 32 channels, or heads
        of fewer than 16, find the place roughly; with fewer than 8, or heads of fewer than 4, there are no places, and
        what is added is about the mean of the context.
        """
        channels, per_head = len(self.output.weight), len(self.output.weight) // self.heads
        waves = min(_PLACE_WAVES, per_head // 4, channels // 8)
        code = place_code(self.size, waves)  # (HW, 4 * waves)
        subspace = nn.init.orthogonal_(torch.empty(channels, code.shape[1]))
        places = _PLACE_AMPLITUDE * code @ subspace.T
        frames = len(self.context_position) // len(places)
        self.query_position.copy_(places)
        fading = [_AGE_FADING**age for age in reversed(range(frames))]
        self.context_position.copy_(torch.cat([factor * places for factor in fading]))
        scale = math.sqrt(_PLACE_SHARPNESS * math.sqrt(per_head)) / _PLACE_AMPLITUDE
        for rows in self.projection.weight[: 2 * channels].split(per_head):
            rows[: code.shape[1]] = scale * subspace.T
        self.projection.weight[2 * channels :] = torch.eye(channels) - subspace @ subspace.T
        nn.init.eye_(self.output.weight)

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


def place_code(size: int, waves: int) -> Tensor:
    """Codes (size*size, 4*waves) of the places of a square map, in reading order: waves along its rows and columns.

    The inner product of two codes is largest, 2 * waves, for a place with itself, and falls off in every direction.
    """
    slowest, fastest = math.pi / size, 0.75 * math.pi
    frequencies = torch.logspace(math.log10(slowest), math.log10(fastest), waves)
    angles = torch.arange(size)[:, None] * frequencies
    line = torch.cat([angles.cos(), angles.sin()], dim=1)  # (size, 2 * waves)
    rows, columns = line[:, None].expand(-1, size, -1), line[None].expand(size, -1, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


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
