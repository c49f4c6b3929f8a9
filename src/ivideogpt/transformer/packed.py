"""Linear layers for bf16 on CPUs, whose weights are also kept the way oneDNN multiplies them.

`torch.nn.functional.linear` lets oneDNN rearrange the weights at every call, which for a few rows takes longer than the
product. `torch.compile` avoids it in the same way when it freezes weights.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer without bias for bf16 on CPUs, for use without gradients; it holds its weights twice.

    Args:
        weight: (outputs, inputs) bf16.
    """

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().contiguous())
        # In a tuple, so that nobody takes it for a buffer: it can neither be copied nor saved.
        self._packed = (torch.ops.mkldnn._reorder_linear_weight(self.weight, None),)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        if x.shape[:-1].numel() == 1:
            return F.linear(x, self.weight)  # which `fast_products` makes the faster one
        made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed[0], None, "none", [], "")
        return made


@functools.cache
def can_pack() -> bool:
    """Whether this build of PyTorch has these products, and they are right.

    They are no public interface: another version may lack them, take other arguments or be built without oneDNN. Then
    the ordinary product is used, which is right too, and slower.
    """
    weight, x = torch.ones(16, 16, dtype=torch.bfloat16), torch.ones(2, 16, dtype=torch.bfloat16)
    try:
        return bool((PackedLinear(weight)(x) == 16).all())
    except (AttributeError, TypeError, RuntimeError):
        return False
