"""Losses of the tokenizer, by name. The training loop sums them once.

Shapes: B videos, T frames, t context frames, H and W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.tokenizer.compressive import Reconstruction
from ivideogpt.tokenizer.perceptual import LPIPS


def reconstruction_losses(
    output: Reconstruction, frames: Tensor, mask: Tensor, motion_weight: float = 0.0, mse_weight: float = 0.0
) -> dict[str, Tensor]:
    """L1 of context and future frames and the quantizers' commitment losses (paper equation 2).

    Args:
        output: the tokenizer's output for `frames`.
        frames: (B,T,3,H,W) in [0,1].
        mask: (B,T) bool, False on padded frames, which do not count.
        motion_weight: extra weight of pixels that change within the segment; 0 is the paper's plain L1.
        mse_weight: weight of the squared error beside the L1; 0, the paper's, leaves it out.
    """
    t = output.context.shape[1]
    weight = mask[:, :, None, None, None].float()
    if motion_weight:
        weight = weight * (1 + motion_weight * pixel_motion(frames))
    parts = {"context": (output.context, slice(None, t)), "future": (output.future, slice(t, None))}
    losses = {}
    for name, (made, part) in parts.items():
        error = made.float() - frames[:, part]
        values = (mask[:, part].sum() * error[0, 0].numel()).clamp(min=1)
        losses[f"l1_{name}"] = (error.abs() * weight[:, part]).sum() / values
        if mse_weight:
            losses[f"mse_{name}"] = mse_weight * (error.square() * weight[:, part]).sum() / values
    losses["commitment_context"] = output.commitment_context
    losses["commitment_dynamics"] = output.commitment_dynamics
    return losses


def perceptual_losses(output: Reconstruction, frames: Tensor, mask: Tensor, lpips: LPIPS) -> dict[str, Tensor]:
    """LPIPS of context and future frames; shapes as in `reconstruction_losses`."""
    t = output.context.shape[1]
    parts = {"context": (output.context, slice(None, t)), "future": (output.future, slice(t, None))}
    losses = {}
    for name, (made, part) in parts.items():
        distances = lpips(made.float().flatten(0, 1), frames[:, part].flatten(0, 1))
        counted = mask[:, part].flatten()
        losses[f"perceptual_{name}"] = (distances * counted).sum() / counted.sum().clamp(min=1)
    return losses


def pixel_motion(frames: Tensor) -> Tensor:
    """How far each pixel moves within the segment, 0..1: (B,T,3,H,W) -> (B,1,1,H,W).

    The range over time of the channel that changes most: high where an object is in any frame of the segment, so both
    a vanished object and a ghost left behind are dear.
    """
    low, high = torch.aminmax(frames, dim=1, keepdim=True)
    return (high - low).amax(dim=2, keepdim=True)
