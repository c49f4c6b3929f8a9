"""Convolutional building blocks of the encoders and decoders.

Shapes: B frames, C channels, H and W rows and columns of a feature map.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.tokenizer.upsample import UpsamplingConv

NORM_EPS = 1e-6


class ResidualBlock(nn.Module):
    """(norm, SiLU, conv 3x3) twice, plus the input (1x1 convolution where the width changes)."""

    def __init__(self, inputs: int, outputs: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=NORM_EPS)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=NORM_EPS)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',H,W)."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return self.shortcut(x) + y


class SelfAttention(nn.Module):
    """Single-head attention over all positions of a feature map, with a residual."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=NORM_EPS)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        z = self.norm(x).flatten(2).transpose(1, 2)[:, None]  # (B, 1 head, HW, C)
        y = F.scaled_dot_product_attention(self.query(z), self.key(z), self.value(z))
        return x + self.output(y)[:, 0].transpose(1, 2).reshape(x.shape)


class MiddleBlock(nn.Module):
    """Residual block, optional self-attention, residual block at the coarsest level."""

    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels, groups)
        self.attention = SelfAttention(channels, groups) if attention else nn.Identity()
        self.second = ResidualBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,H,W)."""
        return self.second(self.attention(self.first(x)))


class DownBlock(nn.Module):
    """Residual blocks of one encoder level, then, except in the last, half the resolution."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * layers
        self.residual = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.resample = nn.Conv2d(outputs, outputs, 3, stride=2) if resample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',H/2,W/2), or (B,C',H,W) in the last level."""
        for block in self.residual:
            x = block(x)
        return x if self.resample is None else self.resample(F.pad(x, (0, 1, 0, 1)))


class UpBlock(nn.Module):
    """Residual blocks of one decoder level, then, except in the last, twice the resolution."""

    def __init__(self, inputs: int, outputs: int, layers: int, groups: int, resample: bool) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * layers
        self.residual = nn.ModuleList(ResidualBlock(a, b, groups) for a, b in pairwise(widths))
        self.resample = UpsamplingConv(outputs) if resample else None

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',2H,2W), or (B,C',H,W) in the last level."""
        for block in self.residual:
            x = block(x)
        return x if self.resample is None else self.resample(x)
