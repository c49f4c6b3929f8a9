"""Muon: hidden weights step along their orthogonalized momentum, all others as in AdamW.

Jordan et al., Muon: An optimizer for hidden layers in neural networks, 2024; the size of a step is that of AdamW (Liu
et al., Muon is Scalable for LLM Training, 2025), so learning rates have the same scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
            weights = [weight for weight in group["params"] if weight.grad is not None] if group["orthogonal"] else []
            for alike in _by_shape(weights):
                self._orthogonal_step(alike, group["lr"], group["weight_decay"])
            for weight in weights:
                weight.grad = None
        super().step()

    def _orthogonal_step(self, weights: Sequence[Tensor], learning_rate: float, weight_decay: float) -> None:
        """A step of weights of one shape, together: a GPU waits for each operation to be launched."""
        directions = orthogonalized(torch.stack([self._direction(weight) for weight in weights]))
        length = _RMS * math.sqrt(max(directions.shape[1:]))
        for weight, direction in zip(weights, directions, strict=True):
            weight.mul_(1 - learning_rate * weight_decay)
            weight.add_(direction.view_as(weight), alpha=-learning_rate * length)

    def _direction(self, weight: Tensor) -> Tensor:
        """Where momentum, by Nesterov, and gradient point, as a matrix."""
        gradient, state = weight.grad, self.state[weight]
        assert gradient is not None, "weights without a gradient are passed over"
        if not state:
            state["step"] = torch.tensor(0.0)  # AdamW wants to find one in every state it loads
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        momentum = state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(momentum, _MOMENTUM).flatten(1)


def _by_shape(weights: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The weights, those whose matrices have the same shape together."""
    alike: dict[torch.Size, list[Tensor]] = {}
    for weight in weights:
        alike.setdefault(weight.flatten(1).shape, []).append(weight)
    return alike.values()


def orthogonalized(matrices: Tensor) -> Tensor:
    """Matrices (k, n, m) with their singular values brought to about 1, by Newton-Schulz in bf16.

    Those above a five-hundredth of the matrix's norm come to 0.7 to 1.2; smaller ones stay smaller.
    """
    a, b, c = _COEFFICIENTS
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide is matrices else x.mT).to(matrices.dtype)
