"""Convolutions of a decoder with 8-bit weights and 8-bit inputs, for CPUs.

Only those that follow a norm and a SiLU: their inputs have a range of their own in every channel, which is watched
once while the decoder works, and widened. Everything between the convolutions keeps its precision.

Shapes: B frames, C channels, H and W rows and columns of a feature map.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.devices import has_vnni
from ivideogpt.tokenizer.blocks import ResidualBlock

_SILU_LOWEST = 0.2785
_ZERO = 16  # the step, of 0..255, that stands for 0: SiLU goes a little below
_LAST = 255
_SIGN = 128  # the bit that tells 0..255 from -128..127
_LARGEST_WEIGHT = 127
_CONVOLUTIONS = ("conv1", "conv2")


class Int8Conv(nn.Module):
    """A convolution of SiLU's output, products and sums in whole numbers, for use without gradients.

    Each input channel has a step of its own, which is multiplied into the weights; these have a step for each output.

    Args:
        conv: stride 1, without dilation and groups.
        largest: (C,) largest input of each channel.
    """

    inverse_step: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d, largest: Tensor) -> None:
        super().__init__()
        dtype = conv.weight.dtype
        step = torch.maximum(largest.float() / (_LAST - _ZERO), torch.tensor(_SILU_LOWEST / _ZERO))
        inverse_step = (1 / step).to(dtype)
        weight = conv.weight.detach().float() / inverse_step.float()[:, None, None]
        weight_step = weight.abs().amax(dim=(1, 2, 3)).clamp(min=1e-12) / _LARGEST_WEIGHT
        whole = (weight / weight_step[:, None, None, None]).round().to(torch.int8)
        self.register_buffer("inverse_step", inverse_step[:, None, None])
        self.register_buffer("zero", torch.tensor(_ZERO - _SIGN, dtype=dtype))
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach().float())
        self.padding, self._dtype = list(conv.padding), dtype
        # In a tuple, so that nobody takes it for a buffer: it can neither be copied nor saved.
        packed = torch.ops.onednn.qconv_prepack(whole, weight_step, 1.0, _ZERO, [1, 1], self.padding, [1, 1], 1, None)
        self._weight = (packed, weight_step, torch.zeros(len(whole), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """(B,C,H,W) -> (B,C',H,W)."""
        steps = torch.addcmul(self.zero, x, self.inverse_step).round_().clamp_(-_SIGN, _SIGN - 1)
        # By way of int8: PyTorch takes six times as long to uint8.
        steps = steps.to(torch.int8).view(torch.uint8).bitwise_xor_(_SIGN)
        geometry = ([1, 1], self.padding, [1, 1], 1)  # stride, padding, dilation, groups
        # The result's step, zero and type, and nothing done to it afterwards.
        result: tuple[Any, ...] = (1.0, 0, self._dtype, "none", [], "")
        y: Tensor = torch.ops.onednn.qconv2d_pointwise(steps, 1.0, _ZERO, *self._weight, self.bias, *geometry, *result)
        return y


def quantize_convolutions(decoder: nn.Module, decode: Callable[[], object], margin: float) -> None:
    """Put `Int8Conv` in place of the 3x3 convolutions of a decoder's residual blocks.

    Args:
        decoder: changed in place.
        decode: lets it work on what it will be used for, so that its inputs' ranges can be watched.
        margin: how many times as large inputs may be, before they are cut off.
    """
    blocks = [block for block in decoder.modules() if isinstance(block, ResidualBlock)]
    convolutions = [getattr(block, name) for block in blocks for name in _CONVOLUTIONS]
    largest = {conv: torch.zeros(conv.in_channels) for conv in convolutions}

    def watch(conv: nn.Conv2d, inputs: tuple[Tensor]) -> None:
        largest[conv] = torch.maximum(largest[conv], inputs[0].amax(dim=(0, 2, 3)).float())

    watching = [conv.register_forward_pre_hook(watch) for conv in convolutions]
    decode()
    for watcher in watching:
        watcher.remove()
    for block in blocks:
        for name in _CONVOLUTIONS:
            conv = getattr(block, name)
            setattr(block, name, Int8Conv(conv, margin * largest[conv]))


@functools.cache
def can_convolve_in_int8() -> bool:
    """Whether this processor and this build of PyTorch have the products of `Int8Conv`, and they are right.

    Without the processor's instructions for them they could overflow. They are no public interface of PyTorch: another
    version may lack them or take other arguments.
    """
    conv = nn.utils.skip_init(nn.Conv2d, 16, 16, 3, padding=1, bias=False).requires_grad_(False)  # draws no numbers
    conv.weight.copy_(torch.linspace(-0.1, 0.1, conv.weight.numel()).view_as(conv.weight))
    x = F.silu(torch.linspace(-3, 3, 16 * 5 * 5).view(1, 16, 5, 5))
    try:
        return has_vnni() and torch.allclose(Int8Conv(conv, x.amax(dim=(0, 2, 3)))(x), conv(x), atol=0.1)
    except (AttributeError, TypeError, RuntimeError):
        return False
