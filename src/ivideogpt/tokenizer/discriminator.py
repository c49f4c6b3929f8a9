"""The adversarial loss of the 256-pixel tokenizer: patch discriminator, hinge losses, adaptive weight.

Shapes: B frames, H and W rows and columns, h and w rows and columns of patches.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ivideogpt.errors import ShapeError

_WIDTHS = (64, 128, 256, 512)
_SMALLEST_SIDE = 2 ** len(_WIDTHS) + 1
_LARGEST_WEIGHT = 1e4
_SMALLEST_NORM = 1e-8


class PatchDiscriminator(nn.Module):
    """Scores each patch of a frame, real high and reconstructed low (PatchGAN, Isola et al., 2017).

    Four spectrally normalised 3x3 convolutions of stride 2, instance normalisation after all but the first,
    and a 1x1 convolution to the logits.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [_halving(3, _WIDTHS[0]), nn.LeakyReLU(0.2)]
        for inputs, outputs in pairwise(_WIDTHS):
            layers += [_halving(inputs, outputs), nn.InstanceNorm2d(outputs), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(_WIDTHS[-1], 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """Frames (B,3,H,W), float in [0,1] -> logits (B,1,h,w), h = ceil(H / 16), w = ceil(W / 16).

        Raises:
            ShapeError: not frames, or a side of less than 17 pixels: a single patch cannot be normalised.
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or min(frames.shape[2:]) < _SMALLEST_SIDE:
            raise ShapeError(
                f"the discriminator was given {tuple(frames.shape)}; it takes frames (B,3,H,W) with sides of "
                f"at least {_SMALLEST_SIDE} pixels. Flatten videos to (B*T,3,H,W); train on smaller frames "
                "without an adversarial loss."
            )
        logits: Tensor = self.layers(frames)
        return logits


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logits of any shape -> scalar `mean(relu(1 - real)) + mean(relu(1 + fake))`, for the discriminator."""
    return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Logits of any shape -> scalar `-mean(fake)`, for the tokenizer whose frames are to pass for real."""
    return -fake_logits.mean()


def adaptive_weight(perceptual_loss: Tensor, generator_loss: Tensor, last_layer_weight: Tensor) -> Tensor:
    """Weight with which the generator loss pulls as hard as the perceptual loss (VQGAN, Esser et al., 2021).

    Args:
        perceptual_loss: scalar; its graph is kept, as is that of `generator_loss`.
        generator_loss: scalar.
        last_layer_weight: weight of the decoder's last convolution, a leaf of both graphs.

    Returns:
        Scalar ratio of the two gradients' norms at that weight, at most 1e4, detached.
    """
    perceptual, generator = (
        torch.autograd.grad(loss, last_layer_weight, retain_graph=True)[0].norm()
        for loss in (perceptual_loss, generator_loss)
    )
    ratio: Tensor = perceptual / generator.clamp(min=_SMALLEST_NORM)
    return ratio.clamp(max=_LARGEST_WEIGHT).detach()


def _halving(inputs: int, outputs: int) -> nn.Module:
    convolution: nn.Module = spectral_norm(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1))
    return convolution
