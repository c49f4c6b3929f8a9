"""Twice the resolution, then a 3x3 convolution: straightforwardly, or in four parts with less than half the work.

Shapes: B frames, C channels, H and W rows and columns of the smaller map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UpsamplingConv(nn.Conv2d):
    """Nearest-neighbour upsampling by two, and a 3x3 convolution of the result."""

    phases: Tensor | None

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)
        self.register_buffer("phases", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C,2H,2W)."""
        if self.phases is None:
            return super().forward(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        batch, channels, rows, columns = x.shape
        padded = F.pad(x, (1, 1, 1, 1))
        # The parts are written where they belong, channels last: interleaving them later takes half as long again.
        y = x.new_empty(batch, 2 * rows, 2 * columns, channels).permute(0, 3, 1, 2)
        for i in (0, 1):
            for j in (0, 1):
                part = padded[:, :, i : i + rows + 1, j : j + columns + 1]
                y[:, :, i::2, j::2] = F.conv2d(part, self.phases[i, j], self.bias)
        return y

    @torch.no_grad()
    def split(self) -> None:
        """From now on compute even and odd rows and columns apart; for weights that no longer change.

        Three neighbours in the upsampled map are two in the smaller one, two of them the same. Adding up the kernel's
        weights for those leaves 2 x 2 products a pixel of 3 x 3.
        """
        weight = self.weight.float()
        first, second, third = weight.unbind(dim=2)
        by_row = torch.stack([torch.stack([first, second + third]), torch.stack([first + second, third])])
        first, second, third = by_row.unbind(dim=-1)  # (2 phases, 2 rows, C, C)
        kernels = torch.stack([torch.stack([first, second + third]), torch.stack([first + second, third])])
        # (column phase, column, row phase, row, C, C) -> (row phase, column phase, C, C, row, column), channels last
        kernels = kernels.permute(2, 0, 4, 3, 1, 5).contiguous().permute(0, 1, 2, 5, 3, 4)
        self.phases = kernels.to(self.weight.dtype)
