"""Reading states from what the encoders see, before it is quantized, so that codes carry exact geometry.

Shapes: B videos, t context frames, F future frames, C latent channels, h latent size, M dynamics tokens a frame,
W width of a dynamics vector, D features of a state (`states.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.config import TokenizerConfig

_CHANNELS, _HEATMAPS, _WIDTH = 96, 48, 256


class StateHeads(nn.Module):
    """One head for frames seen in full, another for the few numbers that a future frame becomes."""

    def __init__(self, config: TokenizerConfig, dynamics_width: int) -> None:
        super().__init__()
        assert config.state is not None, "made only for a configuration with a state"
        self.frame = FrameHead(config.latent_channels, config.latent_size, config.state.features)
        self.dynamics = DynamicsHead(config.layout.dynamics_tokens * dynamics_width, config.state.features)


class FrameHead(nn.Module):
    """States from a latent map: heatmaps find things, and where they are is what counts (spatial softmax, Levine et
    al., End-to-End Training of Deep Visuomotor Policies, 2016), beside what is seen there."""

    grid: Tensor

    def __init__(self, channels: int, size: int, features: int) -> None:
        super().__init__()
        line = (torch.arange(size) + 0.5) * (2 / size) - 1
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij")), persistent=False)
        self.conv1 = nn.Conv2d(channels + 2, _CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.heatmaps = nn.Conv2d(_CHANNELS, _HEATMAPS, 1)
        self.values = nn.Conv2d(_CHANNELS, _HEATMAPS, 1)
        self.hidden = nn.Linear(3 * _HEATMAPS, _WIDTH)
        self.output = nn.Linear(_WIDTH, features)

    def forward(self, latent: Tensor) -> Tensor:
        """(..., C, h, h) -> (..., D)."""
        x = latent.to(self.output.weight.dtype).flatten(0, -4)
        x = torch.cat([x, self.grid.expand(len(x), -1, -1, -1)], dim=1)
        x = F.silu(self.conv2(F.silu(self.conv1(x))))
        weights = self.heatmaps(x).flatten(2).softmax(dim=-1)  # (n, heatmaps, h*h)
        seen = torch.stack([self.values(x).flatten(2), *self.grid.flatten(1)[:, None, None].expand(-1, *weights.shape)])
        found = (weights * seen).sum(dim=-1).movedim(0, 1).flatten(1)  # (n, 3 * heatmaps)
        return self.output(F.silu(self.hidden(found))).unflatten(0, latent.shape[:-3])


class DynamicsHead(nn.Module):
    """States from what becomes a frame's dynamics tokens, and from the state of the newest context frame: where nothing
    changes the tokens say just that."""

    def __init__(self, inputs: int, features: int) -> None:
        super().__init__()
        self.hidden1 = nn.Linear(inputs + features, _WIDTH)
        self.hidden2 = nn.Linear(_WIDTH, _WIDTH)
        self.output = nn.Linear(_WIDTH, features)

    def forward(self, vectors: Tensor, newest: Tensor) -> Tensor:
        """(B,F,M,W), and features (B,D) of the newest context frame -> (B,F,D)."""
        dtype = self.output.weight.dtype
        given = newest[:, None].expand(-1, vectors.shape[1], -1)
        x = torch.cat([vectors.flatten(-2).to(dtype), given.to(dtype)], dim=-1)
        return self.output(F.silu(self.hidden2(F.silu(self.hidden1(x))))) + given
