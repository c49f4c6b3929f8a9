"""What a tokenizer does with states: read them from frames, and let frames be known by them.

The encoder and decoder of future frames are told the state that a frame shows, where it is known, so that its tokens
need say only what the state and the context do not. Where it is withheld the tokens say everything, as without states.

Shapes: B videos, t context frames, F future frames, C latent channels, h latent size, M dynamics tokens a frame,
W width of a dynamics vector, V channels of a map, D features of a state (`states.py`).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.config import TokenizerConfig
from ivideogpt.devices import no_autocast
from ivideogpt.tokenizer.networks import decoder_cross_places

_CHANNELS, _HEATMAPS, _WIDTH = 96, 48, 256
_READER_WIDTH = 32  # of what reads states from dynamics vectors: so little that they have to lie there plainly
_WAVES = (1.0, 2.0, 4.0, 8.0)  # radians a feature of a map


class ShownStates(NamedTuple):
    """The states that future frames show."""

    features: Tensor
    """(B, F, D)."""
    known: Tensor | None = None
    """(B,) bool, False for videos whose states are withheld; None where all are known."""


class StateParts(nn.Module):
    """Reading states from frames and from what becomes dynamics tokens, and telling them to encoder and decoder."""

    def __init__(self, config: TokenizerConfig, dynamics_width: int) -> None:
        super().__init__()
        assert config.state is not None, "made only for a configuration with a state"
        features, size = config.state.features, config.latent_size
        self.frame = FrameHead(config.latent_channels, size, features)
        self.dynamics = DynamicsHead(config.layout.dynamics_tokens * dynamics_width, features)
        self.encoder_map = StateMap(features, size, config.widths[-1])
        self.decoder_maps = nn.ModuleList(StateMap(features, *place) for place in decoder_cross_places(config))

    def for_encoder(self, shown: ShownStates) -> Tensor:
        """(B*F,V,h,h) to add inside the encoder of future frames; 0 where the state is withheld."""
        return _where_known(self.encoder_map, shown)

    def for_decoder(self, shown: ShownStates) -> list[Tensor]:
        """(B*F,V,h,h) to add wherever the decoder of future frames looks at the context; 0 where the state is
        withheld."""
        return [_where_known(part, shown) for part in self.decoder_maps]


class StateMap(nn.Module):
    """A state as a map: spread over a grid that knows its coordinates (spatial broadcast, Watters et al., 2019), so
    that what lies where is worked out for every place alike."""

    grid: Tensor
    waves: Tensor

    def __init__(self, features: int, size: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("grid", _grid(size), persistent=False)
        self.register_buffer("waves", torch.tensor(_WAVES), persistent=False)
        self.mix = nn.Conv2d(features + 2, _HEATMAPS, 1)
        self.conv1 = nn.Conv2d(features + 2 + _HEATMAPS * (1 + 2 * len(_WAVES)), _CHANNELS, 1)
        self.conv2 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.conv3 = nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1)
        self.conv4 = nn.Conv2d(_CHANNELS, channels, 1)
        for parameter in self.conv4.parameters():  # a tokenizer that is told states continues as it was
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> Tensor:
        """(n,D) -> (n,V,h,h)."""
        size = self.grid.shape[-1]
        spread = features.to(self.grid.dtype)[:, :, None, None].expand(-1, -1, size, size)
        x = torch.cat([spread, self.grid.expand(len(spread), -1, -1, -1)], dim=1)
        mixed = self.mix(x)
        angles = (mixed[:, :, None] * self.waves[:, None, None]).flatten(1, 2)
        x = self.conv1(torch.cat([x, mixed, angles.sin(), angles.cos()], dim=1))
        x = x + self.conv2(F.silu(x))
        x = x + self.conv3(F.silu(x))
        return self.conv4(F.silu(x))


class FrameHead(nn.Module):
    """States from a latent map: heatmaps find things, and where they are is what counts (spatial softmax, Levine et
    al., End-to-End Training of Deep Visuomotor Policies, 2016), beside what is seen there."""

    grid: Tensor

    def __init__(self, channels: int, size: int, features: int) -> None:
        super().__init__()
        self.register_buffer("grid", _grid(size), persistent=False)
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
        self.hidden1 = nn.Linear(inputs + features, _READER_WIDTH)
        self.hidden2 = nn.Linear(_READER_WIDTH, _READER_WIDTH)
        self.output = nn.Linear(_READER_WIDTH, features)

    def forward(self, vectors: Tensor, newest: Tensor) -> Tensor:
        """(B,F,M,W), and features (B,D) of the newest context frame -> (B,F,D)."""
        dtype = self.output.weight.dtype
        given = newest[:, None].expand(-1, vectors.shape[1], -1)
        x = torch.cat([vectors.flatten(-2).to(dtype), given.to(dtype)], dim=-1)
        return self.output(F.silu(self.hidden2(F.silu(self.hidden1(x))))) + given


def _where_known(part: nn.Module, shown: ShownStates) -> Tensor:
    with no_autocast(shown.features.device):
        maps = part(shown.features.flatten(0, 1))
    if shown.known is None:
        return maps
    return maps * shown.known.repeat_interleave(shown.features.shape[1])[:, None, None, None]


def _grid(size: int) -> Tensor:
    """(2, size, size) coordinates (row, column) of the cells' centres, from -1 to 1."""
    line = (torch.arange(size) + 0.5) * (2 / size) - 1
    return torch.stack(torch.meshgrid(line, line, indexing="ij"))
