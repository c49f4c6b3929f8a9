"""Vectors to codes and back: the paper's vector quantization, and finite scalar quantization.

Shapes: ... any leading dimensions, D code width, K codebook size.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.devices import no_autocast


class Quantized(NamedTuple):
    """What a quantizer returns."""

    vectors: Tensor
    """(..., D) quantized vectors; gradients pass straight through to the input."""
    codes: Tensor
    """(...) int64 codes in 0..K-1."""
    loss: Tensor
    """Commitment and codebook loss, a scalar; 0 where there is nothing to learn."""


class VectorQuantizer(nn.Module):
    """Nearest of K learned codes by Euclidean distance, straight-through (paper section 3.1, VQ-VAE).

    Loss: `beta * mean((sg(z_q) - z)^2) + mean((z_q - sg(z))^2)`.
    """

    def __init__(self, codes: int, width: int, beta: float = 1.0) -> None:
        super().__init__()
        self.width, self.beta = width, beta
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, vectors: Tensor) -> Quantized:
        """(..., D) -> `Quantized`. Distances are taken in float32 whatever the precision around."""
        with no_autocast(vectors.device):
            z = vectors.float()
            with torch.no_grad():
                distances = torch.cdist(z.reshape(-1, self.width), self.embedding.weight.float())
                codes = distances.argmin(dim=1).view(z.shape[:-1])
            nearest = self.lookup(codes).float()
            loss = self.beta * (nearest.detach() - z).square().mean() + (nearest - z.detach()).square().mean()
            return Quantized(z + (nearest - z).detach(), codes, loss)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes -> (..., D) vectors."""
        return self.embedding(codes)

    @torch.no_grad()
    def revive(self, dead: Tensor, vectors: Tensor) -> None:
        """Move dead codes onto encoder outputs, where they will be chosen again.

        Args:
            dead: (K',) int64 codes to move.
            vectors: (P, D) encoder outputs of the current batch, at least one; drawn with torch's global generator.
        """
        chosen = vectors[torch.randint(len(vectors), (len(dead),), device=vectors.device)]
        self.embedding.weight[dead] = chosen.to(self.embedding.weight.dtype)


class FiniteScalarQuantizer(nn.Module):
    """Each of D channels rounded to a few levels; a code is the mixed-radix number of the levels.

    Nothing is learned and no code can die (Mentzer et al., Finite Scalar Quantization, 2023).
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.width = len(levels)
        self.codes = math.prod(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(basis), persistent=False)

    def forward(self, vectors: Tensor) -> Quantized:
        """(..., D) -> `Quantized`, vectors in [-1, 1]."""
        with no_autocast(vectors.device):
            bounded = self._bound(vectors.float())
            rounded = bounded + (bounded.round() - bounded).detach()
            digits = (rounded.detach() + self.levels // 2).long()
            codes = (digits * self.basis).sum(-1)
            return Quantized(rounded / (self.levels // 2), codes, vectors.new_zeros(()))

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) codes -> (..., D) vectors in [-1, 1]."""
        half = self.levels // 2
        digits = codes[..., None] // self.basis % self.levels
        return (digits - half) / half

    def _bound(self, vectors: Tensor) -> Tensor:
        # An even number of levels has no middle, so the range is shifted by half a level (paper, appendix A).
        half_width = (self.levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        shift = torch.atanh(offset / half_width)
        return torch.tanh(vectors + shift) * half_width - offset


def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Codebook usage from how often each code occurred, (K,).

    Returns:
        The share of the codebook that occurs, in [0, 1], and the perplexity `exp(entropy)`, in [1, K].
    """
    share = counts.float() / counts.sum().clamp(min=1)
    return (counts > 0).float().mean(), torch.special.entr(share).sum().exp()
