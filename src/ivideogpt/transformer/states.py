"""What a transformer does with states: predict the next one from an action, and draw the frame that shows it.

The next state is predicted at a frame's slot, before its tokens are sampled, and what it will be is added to the slot's
embedding: sampling the frame's tokens is then a matter of drawing what is already known.

Shapes: ... any leading dimensions, B segments, T frames, F future frames, S numbers of a state, D its features
(`states.py`), A action size, H hidden size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.config import StateConfig, TransformerConfig
from ivideogpt.devices import no_autocast
from ivideogpt.states import change_scale, decode_states, encode_states, on_circle

_BLOCKS, _LEAST_WIDTH = 2, 32
_WAVES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # radians a feature; the fastest tells a hundredth of a deviation apart


class StatePath(nn.Module):
    """Everything about states in a transformer.

    The rest of it is as without states: `embedding` starts at zero, so a model that gets one continues as it was.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        assert config.state is not None, "made only for a configuration with a state"
        self.config, self.layout = config.state, config.layout
        width = max(_LEAST_WIDTH, 5 * config.hidden // 16)  # a small part of the weights, whatever the size
        self.dynamics = StateDynamics(config.state, config.action_dim, width)
        self.embedding = StateEmbedding(config.state, config.hidden, width)
        self.head = nn.Linear(config.hidden, config.state.features)
        """Reads the state of a frame from the hidden state of its last token."""

    def features(self, states: Tensor) -> Tensor:
        """States (..., S) -> features (..., D)."""
        return encode_states(states, self.config)

    def decoded(self, features: Tensor) -> Tensor:
        """Features (..., D) -> states (..., S)."""
        return decode_states(features, self.config)

    def next_of_segment(self, features: Tensor, actions: Tensor | None) -> Tensor:
        """What the state of each future frame will be, from those before it: (B,T,D) and actions (B,T,A) -> (B,F,D)."""
        present = list(self.layout.action_frames(features.shape[1]))
        first = int(self.layout.goal)  # a goal in front is no moment before
        before = features[:, [max(first, j - 1) for j in present]]
        return self.next(before, features[:, present], None if actions is None else actions[:, present])

    def next(self, before: Tensor, present: Tensor, actions: Tensor | None) -> Tensor:
        """The state before and the present one, features (..., D), and actions (..., A) -> the next one's features."""
        with no_autocast(present.device):
            return self.dynamics(before, present, actions)


class StateDynamics(nn.Module):
    """The next state from the present one, the one before it and the action.

    It learns the change, in units of the usual one, with SwiGLU layers, whose products of features are what geometry
    is made of. It sees states alone, so it learns from thousands of transitions where the transformer sees a segment.
    """

    change: Tensor

    def __init__(self, config: StateConfig, action_dim: int | None, width: int) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("change", change_scale(config), persistent=False)
        self.state_in = nn.Linear(2 * config.features + (action_dim or 0), width)
        self.blocks = nn.ModuleList(_GatedBlock(width) for _ in range(_BLOCKS))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.state_out = nn.Linear(width, config.features)

    def forward(self, before: Tensor, present: Tensor, actions: Tensor | None) -> Tensor:
        """Features (..., D) of the state before and the present one, and actions (..., A) -> those of the next."""
        weight = self.state_in.weight
        before, present = before.to(weight.dtype), present.to(weight.dtype)
        inputs = [present, (present - before) / self.change]
        if self.state_in.in_features > 2 * self.config.features:
            missing = present.new_zeros(*present.shape[:-1], self.state_in.in_features - 2 * self.config.features)
            inputs.append(missing if actions is None else actions.to(weight))
        x = self.state_in(torch.cat(inputs, dim=-1))
        for block in self.blocks:
            x = block(x)
        return on_circle(present + self.state_out(self.norm(x)) * self.change, self.config)


class StateEmbedding(nn.Module):
    """Features of a state as an embedding that tells small differences apart."""

    waves: Tensor

    def __init__(self, config: StateConfig, hidden: int, width: int) -> None:
        super().__init__()
        self.register_buffer("waves", torch.tensor(_WAVES), persistent=False)
        self.state_in = nn.Linear(config.features * (1 + 2 * len(_WAVES)), width)
        self.state_out = nn.Linear(width, hidden)

    def forward(self, features: Tensor) -> Tensor:
        """(..., D) -> (..., H)."""
        angles = (features.float()[..., None] * self.waves).flatten(-2)
        inputs = torch.cat([features.float(), angles.sin(), angles.cos()], dim=-1)
        return self.state_out(F.silu(self.state_in(inputs.to(self.state_in.weight.dtype))))


class _GatedBlock(nn.Module):
    """Normalised SwiGLU with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.gate_up = nn.Linear(width, 6 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., W) -> (..., W)."""
        gate, up = self.gate_up(self.norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)
