"""Linear layers whose weights are stored in 8 bits; what they multiply stays in the precision it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 127
_ALIGNED = 32  # PyTorch's kernel reads past the end of rows of other lengths
_FEW_ROWS = 24  # with more it is quicker to widen the weights and multiply once


class Int8Linear(nn.Module):
    """A linear layer without bias, its weights rounded to 255 steps of a scale that each output row has of its own.

    Half the bytes of bf16, for use without gradients. On CPUs PyTorch multiplies such weights with a few bf16 rows as
    they are; elsewhere they are widened for each product, which saves memory but no time.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        exact = weight.detach().float()  # (outputs, inputs)
        scale = exact.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST
        self.register_buffer("weight", (exact / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        aligned = rows.shape[1] % _ALIGNED == 0
        if aligned and len(rows) <= _FEW_ROWS and x.device.type == "cpu" and x.dtype is torch.bfloat16:
            return torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale
