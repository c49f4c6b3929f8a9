"""A small causal prior that learns with the tokenizer, so that its tokens become easy to predict.

A tokenizer trained for pixels alone gives arbitrary names to arrangements of edges. Here a light transformer predicts
what becomes a frame's dynamics tokens, one place after the other, from the context, the segment's frame before and,
where there are any, the states; its error flows into the encoder (Causally Regularized Tokenization, arXiv 2412.16326;
LARP, arXiv 2410.21264). It is thrown away afterwards.

Shapes: B videos, F future frames, M dynamics tokens a frame, N context tokens, W width of a dynamics vector, D features
of a state, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.config import TokenizerConfig
from ivideogpt.devices import no_autocast
from ivideogpt.tokenizer.patches import to_patches
from ivideogpt.transformer.states import StateEmbedding

_HIDDEN, _HEADS, _LAYERS = 128, 4, 3


class TokenPrior(nn.Module):
    """Foretells dynamics vectors: sequences of context cells, the frame before, and the frame itself, causally."""

    mask: Tensor

    def __init__(self, config: TokenizerConfig, context_width: int, dynamics_width: int) -> None:
        super().__init__()
        self.tokens = config.layout.dynamics_tokens
        self.config = config
        self.context = nn.Linear(config.patch_size**2 * context_width, _HIDDEN)  # cells under one dynamics token
        self.before = nn.Linear(dynamics_width, _HIDDEN)
        self.present = nn.Linear(dynamics_width, _HIDDEN)
        self.places = nn.Parameter(torch.randn(3 * self.tokens, _HIDDEN) * 0.1)
        self.state = None if config.state is None else StateEmbedding(config.state, _HIDDEN, 2 * _HIDDEN)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                _HIDDEN, _HEADS, 3 * _HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(_LAYERS)
        )
        self.norm = nn.LayerNorm(_HIDDEN)
        self.head = nn.Linear(_HIDDEN, dynamics_width)
        blocked = torch.zeros(3 * self.tokens, 3 * self.tokens, dtype=torch.bool)
        blocked[: 2 * self.tokens, 2 * self.tokens :] = True
        square = torch.ones(self.tokens, self.tokens, dtype=torch.bool)
        blocked[2 * self.tokens :, 2 * self.tokens :] = square.triu(1)
        self.register_buffer("mask", blocked, persistent=False)

    def forward(self, context: Tensor, vectors: Tensor, states: Tensor | None) -> Tensor:
        """Predicted vectors (B,F,M,W).

        Args:
            context: (B,N,Wc) quantized vectors of the newest context frame.
            vectors: (B,F,M,W) quantized dynamics vectors; gradients flow through.
            states: (B,F,D) features of the states to be drawn; None without.
        """
        frames = vectors.shape[1]
        before = torch.cat([torch.zeros_like(vectors[:, :1]), vectors[:, :-1]], dim=1)  # nothing has changed yet
        shifted = F.pad(vectors[:, :, :-1], (0, 0, 1, 0))
        cells = context.transpose(1, 2).unflatten(2, (self.config.latent_size, -1))  # (B, Wc, h, h)
        seen = self.context(to_patches(cells, self.config.patch_size))[:, None].expand(-1, frames, -1, -1)
        present = self.present(shifted)
        if self.state is not None and states is not None:
            present = present + self.state(states)[:, :, None]
        x = torch.cat([seen, self.before(before), present], dim=2).flatten(0, 1) + self.places
        for layer in self.layers:
            x = layer(x, src_mask=self.mask)
        return self.head(self.norm(x[:, 2 * self.tokens :])).unflatten(0, (-1, frames))


def prior_loss(prior: TokenPrior, context: Tensor, vectors: Tensor, states: Tensor | None, mask: Tensor) -> Tensor:
    """Mean squared error of the prediction, over real frames; shapes as in `TokenPrior.forward`, mask (B,F) bool."""
    with no_autocast(vectors.device):
        error = (prior(context.float(), vectors.float(), states) - vectors.float()).square().mean(dim=(2, 3))
    return (error * mask).sum() / mask.sum().clamp(min=1)
