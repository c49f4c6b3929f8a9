"""Muon: hidden weights step along their orthogonalized momentum, all others as in AdamW.

Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; the size of a step is that of AdamW (Liu
et al., Muon is Scalable for LLM Training, 2025), so learning rates have the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MOMENTUM = 0.95
_ITERATIONS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic that lifts small singular values fastest
_RMS = 0.2  # usual root mean square of an AdamW step, in learning rates


class Muon(torch.optim.AdamW):
    """AdamW whose groups with `orthogonal` true step by Muon instead; their weights have at least two dimensions.

    `torch.optim.Muon` (from PyTorch 2.9 on) computes the same for matrices; convolutions are taken here too, as
    matrices of one row for each output channel.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; afterwards the gradients of orthogonal groups are gone, which makes AdamW pass over them."""
        assert closure is None, "the loop computes its gradients itself"
        for group in self.param_groups:
            for weight in group["params"] if group["orthogonal"] else ():
                if weight.grad is not None:
                    self._orthogonal_step(weight, group["lr"], group["weight_decay"])
                    weight.grad = None
        super().step()

    def _orthogonal_step(self, weight: Tensor, learning_rate: float, weight_decay: float) -> None:
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None, "weights without a gradient are passed over"
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW wants to find one in every state it loads
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        direction = orthogonalized(gradient.lerp(momentum, _MOMENTUM).flatten(1))  # Nesterov
        length = _RMS * math.sqrt(max(direction.shape))
        weight.mul_(1 - learning_rate * weight_decay)
        weight.add_(direction.view_as(weight), alpha=-learning_rate * length)


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix (n, m) with its singular values brought to about 1, by Newton-Schulz in bf16.

    Those above a five-hundredth of the matrix's norm come to 0.7 to 1.2; smaller ones stay smaller.
    """
    a, b, c = _COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide.bfloat16()
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrix else x.T).to(matrix.dtype)
