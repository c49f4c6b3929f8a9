"""Linear layers whose weights are stored in 8 bits; what they multiply stays as it is, or is rounded to 8 bits too."""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.devices import has_vnni

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
        exact, scale = _exact_and_scale(weight)
        self.register_buffer("weight", (exact / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale.to(weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        rows = x.reshape(-1, x.shape[-1])
        aligned = rows.shape[1] % _ALIGNED == 0
        if aligned and len(rows) <= _FEW_ROWS and x.device.type == "cpu" and x.dtype is torch.bfloat16:
            return torch._weight_int8pack_mm(rows, self.weight, self.scale).view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


class DynamicInt8Linear(nn.Module):
    """A linear layer without bias for CPUs, its products and sums in whole numbers; for use without gradients.

    Weights are rounded as in `Int8Linear`, and each input row, when it comes, to 255 steps between its largest size and
    the opposite. A row's result does not depend on the rows that come with it.

    Args:
        weight: (outputs, inputs).
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        exact, scale = _exact_and_scale(weight)
        zeros = torch.zeros(len(scale), dtype=torch.int64)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch means to drop such tensors; see `can_multiply_in_int8`
            rounded = torch.quantize_per_channel(exact, scale.double(), zeros, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(rounded, None)
        self.bytes = weight.numel() + 4 * len(weight)
        """Memory that the weights and their scales take."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs), float32 both."""
        size = x.abs().amax(dim=-1, keepdim=True).clamp_(min=1e-12)
        # The op's name says what it does: round the input (to steps of 1/127, 128 being 0), multiply, give float32.
        multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y: Tensor = multiply(x / size, 1 / _LARGEST, _LARGEST + 1, self._packed)
        return y.mul_(size)


@functools.cache
def can_multiply_in_int8() -> bool:
    """Whether this processor and this build of PyTorch have the products of `DynamicInt8Linear`, and they are right.

    Without the processor's instructions for them they could overflow; another version of PyTorch may lack them.
    """
    x, weight = torch.linspace(-1, 1, 64).view(2, 32), torch.linspace(1, -1, 512).view(16, 32)
    try:
        return has_vnni() and torch.allclose(DynamicInt8Linear(weight)(x), F.linear(x, weight), atol=0.1)
    except (AttributeError, TypeError, RuntimeError):
        return False


def _exact_and_scale(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weights (outputs, inputs) in float32, and (outputs,) the scale of each row's whole numbers."""
    exact = weight.detach().float()
    return exact, exact.abs().amax(dim=1).clamp(min=1e-12) / _LARGEST
