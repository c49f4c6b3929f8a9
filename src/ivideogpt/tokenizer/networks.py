"""Encoder and decoder of a frame, plain (context pair) or attending to the context (prediction pair).

Shapes: B contexts, t context frames, F future frames, C latent channels, R frame resolution, h latent size.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.config import TokenizerConfig
from ivideogpt.tokenizer.blocks import NORM_EPS, DownBlock, MiddleBlock, UpBlock
from ivideogpt.tokenizer.cross_attention import CrossAttention, KeysValues

FRAME_CHANNELS = 3


class Encoder(nn.Module):
    """Frame -> latent map, with cross-attention after each down block whose output is small enough."""

    def __init__(self, config: TokenizerConfig, *, cross: bool, middle_attention: bool) -> None:
        super().__init__()
        widths, groups, last = config.widths, config.norm_groups, len(config.widths) - 1
        self.stem_stride = config.stem_stride
        self.conv_in = nn.Conv2d(FRAME_CHANNELS * config.stem_stride**2, widths[0], 3, padding=1)
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(
            DownBlock(inputs[i], widths[i], config.layers, groups, resample=i < last) for i in range(len(widths))
        )
        self.middle = MiddleBlock(widths[-1], groups, middle_attention)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)
        sizes = [config.resolution // config.stem_stride // 2 ** min(i + 1, last) for i in range(len(widths))]
        self.first_cross = sum(size > config.attention_resolution for size in sizes)
        self.cross = nn.ModuleList()
        for i in range(self.first_cross, len(widths) if cross else 0):
            self.cross.append(_cross_attention(config, widths[i], sizes[i]))

    def forward(
        self, frames: Tensor, context: list[KeysValues] | None = None, known: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """(B,3,R,R) in [0,1] -> latent map (B,C,h,h) and the maps that a cross-attending encoder may look at.

        `known` (B,W,h,h), what is known of the frames beside the context, is added before the middle.
        """
        x = self.conv_in(F.pixel_unshuffle(frames, self.stem_stride))
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i >= self.first_cross:
                maps.append(x)
                if context is not None:
                    x = self.cross[i - self.first_cross](x, context[i - self.first_cross])
        x = self.middle(x if known is None else x + known.to(x.dtype))
        return self.conv_out(F.silu(self.norm_out(x))), maps


class Decoder(nn.Module):
    """Latent map -> frame, with cross-attention after the middle and after each small enough up block."""

    def __init__(self, config: TokenizerConfig, *, cross: bool, middle_attention: bool) -> None:
        super().__init__()
        widths, groups, last = config.widths[::-1], config.norm_groups, len(config.widths) - 1
        self.stem_stride = config.stem_stride
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = MiddleBlock(widths[0], groups, middle_attention)
        inputs = (widths[0], *widths[:-1])
        self.blocks = nn.ModuleList(
            UpBlock(inputs[i], widths[i], config.layers + 1, groups, resample=i < last) for i in range(len(widths))
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], FRAME_CHANNELS * config.stem_stride**2, 3, padding=1)
        places = decoder_cross_places(config)
        self.cross_blocks = len(places) - 1
        self.cross = nn.ModuleList()
        for size, channels in places if cross else ():
            self.cross.append(_cross_attention(config, channels, size))

    def forward(
        self, latent: Tensor, context: list[KeysValues] | None = None, known: list[Tensor] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Latent map (B,C,h,h) -> frames (B,3,R,R), not clamped, and the maps a cross-attending decoder may look at.

        `known`, maps of what is known of the frames beside the context, are added before the middle and before each
        later cross-attention.
        """
        x = self.middle(_added(self.conv_in(latent), known, 0))
        maps = [x]
        if context is not None:
            x = self.cross[0](x, context[0])
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < self.cross_blocks:
                maps.append(x)
                if context is not None:
                    x = self.cross[i + 1](_added(x, known, i + 1), context[i + 1])
        x = self.conv_out(F.silu(self.norm_out(x)))
        return F.pixel_shuffle(x, self.stem_stride), maps

    def maps(self, latent: Tensor) -> list[Tensor]:
        """Latent map (B,C,h,h) -> the maps alone that a cross-attending decoder may look at; no pixels are made."""
        maps = [self.middle(self.conv_in(latent))]
        for i in range(self.cross_blocks):
            maps.append(self.blocks[i](maps[-1]))
        return maps


def decoder_cross_places(config: TokenizerConfig) -> list[tuple[int, int]]:
    """Size and channels of the maps at which a cross-attending decoder looks at the context: that of the middle, and
    those of the up blocks that are small enough."""
    widths = config.widths[::-1]
    sizes = [config.latent_size * 2 ** min(i + 1, len(widths) - 1) for i in range(len(widths))]
    small = [place for place in zip(sizes, widths, strict=True) if place[0] <= config.attention_resolution]
    return [(config.latent_size, widths[0]), *small]


def _added(x: Tensor, known: list[Tensor] | None, place: int) -> Tensor:
    return x if known is None else x + known[place].to(x.dtype)


def context_keys_values(cross: nn.ModuleList, maps: list[Tensor], context_frames: int) -> list[KeysValues]:
    """Keys and values for each cross-attention of a network, from the context network's maps (B*t,C,H,W)."""
    pairs = zip(cross, maps, strict=True)
    return [block.keys_values(x.unflatten(0, (-1, context_frames))) for block, x in pairs]  # type: ignore[operator]


def _cross_attention(config: TokenizerConfig, channels: int, size: int) -> CrossAttention:
    return CrossAttention(
        channels, size, config.context_frames, config.attention_heads, config.norm_groups, config.dropout
    )
