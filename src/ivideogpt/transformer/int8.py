"""Linear layers whose weights are stored in 8 bits; what they multiply stays in the precision it has."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear layer without bias, its weights rounded to 255 steps of a scale that each output row has of its own.

    Half the bytes of bf16, for use without gradients. On CPUs with bf16 inputs PyTorch multiplies such weights as they
    are; elsewhere they are widened for each product, which saves memory but no time.
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
        if x.device.type == "cpu" and x.dtype is torch.bfloat16:
            rows = x.reshape(-1, x.shape[-1])
            return torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale
