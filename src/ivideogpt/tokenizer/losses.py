"""Losses of the tokenizer, by name. The training loop sums them once.

Shapes: B videos, T frames, t context frames, F = T - t future frames, M dynamics tokens a frame, D code width,
H and W rows and columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.config import LossWeights
from ivideogpt.tokenizer.perceptual import LPIPS
from ivideogpt.tokenizer.results import Reconstruction

PLAIN = LossWeights()
"""The paper's: every pixel counts the same."""

_STILL = 0.03  # a patch whose pixels all differ by less from the last context frame shows no change
_COLOUR_LEVELS = 8  # levels of each channel that tell colours apart
_COMMON_SHARE = 0.005  # a colour that fills this share of a segment is half rare


def reconstruction_losses(
    output: Reconstruction, frames: Tensor, mask: Tensor, weights: LossWeights = PLAIN
) -> dict[str, Tensor]:
    """L1 of context and future frames and the quantizers' commitment losses (paper equation 2).

    Args:
        output: the tokenizer's output for `frames`.
        frames: (B,T,3,H,W) in [0,1].
        mask: (B,T) bool, False on padded frames, which do not count.
        weights: all 0 is the paper's loss.
    """
    t = output.context.shape[1]
    weight = mask[:, :, None, None, None].float()
    if weights.motion or weights.rarity:
        weight = weight * (1 + weights.motion * pixel_motion(frames) + weights.rarity * pixel_rarity(frames))
    parts = {"context": (output.context, slice(None, t)), "future": (output.future, slice(t, None))}
    losses = {}
    for name, (made, part) in parts.items():
        error = made.float() - frames[:, part]
        values = (mask[:, part].sum() * error[0, 0].numel()).clamp(min=1)
        losses[f"l1_{name}"] = (error.abs() * weight[:, part]).sum() / values
        if weights.mse:
            losses[f"mse_{name}"] = weights.mse * (error.square() * weight[:, part]).sum() / values
    losses["commitment_context"] = output.commitment_context
    losses["commitment_dynamics"] = output.commitment_dynamics
    return losses


def static_patch_loss(output: Reconstruction, frames: Tensor, mask: Tensor) -> Tensor:
    """Pull what is quantized towards zero wherever a patch looks as it did in the last context frame.

    Otherwise such a token is free to carry traces of what happens elsewhere, and flickers from frame to frame: bits
    that the decoder hardly needs and the transformer cannot foresee. With it "nothing changed here" is one code, as
    video codecs skip a block, and the tokens of a frame say where something moves.

    Args:
        output, frames, mask: as in `reconstruction_losses`.

    Returns:
        Scalar: the mean square of `output.dynamics_vectors` over unchanged patches of real frames.
    """
    t, tokens = output.context.shape[1], output.dynamics_vectors.shape[2]
    change = (frames[:, t:] - frames[:, t - 1 : t]).abs().amax(dim=2)  # (B, F, H, W)
    still = (_patch_maximum(change, tokens) < _STILL) & mask[:, t:, None]
    return (output.dynamics_vectors.float().square().mean(-1) * still).sum() / still.sum().clamp(min=1)


def state_losses(output: Reconstruction, features: Tensor, mask: Tensor, known: Tensor) -> dict[str, Tensor]:
    """Mean absolute error of the states read from frames, and from what becomes dynamics tokens where these have to say
    everything; and the mean square of what becomes dynamics tokens where the state is known, so that "as the state
    says" is one code.

    Args:
        output: the tokenizer's, with states.
        features: (B,T,D) of the true states.
        mask: (B,T) bool, False on padded frames, which do not count.
        known: (B,) bool, False for videos whose states were withheld.
    """
    assert output.frame_states is not None and output.dynamics_states is not None, "the tokenizer has a state"
    t = output.context.shape[1]
    told, untold = mask[:, t:] & known[:, None], mask[:, t:] & ~known[:, None]
    return {
        "state_frame": _masked_mean((output.frame_states - features).abs().mean(dim=-1), mask),
        "state_dynamics": _masked_mean((output.dynamics_states - features[:, t:]).abs().mean(dim=-1), untold),
        "residual": _masked_mean(output.dynamics_vectors.float().square().mean(dim=(2, 3)), told),
    }


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


def pixel_rarity(frames: Tensor) -> Tensor:
    """How rare each pixel's colour is in its segment, 0..1: (B,T,3,H,W) -> (B,T,1,H,W).

    Small things have a colour of their own or an edge, and would otherwise drown in the background: 1 / (1 + s / 0.5 %)
    for a colour, told apart to 3 bits a channel, that fills the share s of the segment.
    """
    digits = (frames * _COLOUR_LEVELS).long().clamp(0, _COLOUR_LEVELS - 1)
    scale = digits.new_tensor([_COLOUR_LEVELS**2, _COLOUR_LEVELS, 1])[:, None, None]
    colours = (digits * scale).sum(dim=2, keepdim=True)  # (B, T, 1, H, W)
    flat = colours.flatten(1)
    counts = frames.new_zeros(len(frames), _COLOUR_LEVELS**3).scatter_add_(
        1, flat, torch.ones_like(flat, dtype=frames.dtype)
    )
    share = (counts / flat.shape[1]).gather(1, flat).view(colours.shape)
    return 1 / (1 + share / _COMMON_SHARE)


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / mask.sum().clamp(min=1)


def _patch_maximum(values: Tensor, patches: int) -> Tensor:
    """(B,F,H,W) -> (B,F,M): the largest value in each of a square number of equal patches."""
    side = round(patches**0.5)
    rows, columns = values.shape[2] // side, values.shape[3] // side
    return values.unflatten(2, (side, rows)).unflatten(4, (side, columns)).amax(dim=(3, 5)).flatten(2)
