"""Where every token, slot, action and reward of a segment sits. The only place that knows; everyone asks it.

Shapes: B batch, T sequence frames, t context frames, F = T - t future frames, N context tokens a frame,
M dynamics tokens a frame, L sequence length.

    [N ctx] S1 [N ctx] S1 ... [N ctx]  S2 [M dyn]  S2 [M dyn] ...        (no S1 before the first context frame)
     ids 0..Kc-1     Kc+Kd             Kc+Kd+1  ids Kc..Kc+Kd-1

The action taken at frame j is added to the S2 slot before frame j + 1; the reward received on arriving at a future
frame is read from that frame's last token. With a goal frame the sequence is [goal, o1, o2, ...].
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.errors import ConfigError, ShapeError

IGNORED = -100


@dataclass(frozen=True)
class TokenLayout:
    """Positions and ids of a token sequence, for any grid, codebook size and number of context frames.

    Args:
        context_frames: t, at least 1. With `goal`, at least 2: the goal counts as one.
        context_tokens: N, tokens of one context frame.
        dynamics_tokens: M, tokens of one future frame.
        context_codes: Kc, size of the context codebook.
        dynamics_codes: Kd, size of the dynamics codebook.
        goal: the first context frame is the goal, the last frame of the video put first.

    Raises:
        ConfigError: a count is not positive, or a goal leaves no observed context frame.
    """

    context_frames: int = 2
    context_tokens: int = 256
    dynamics_tokens: int = 16
    context_codes: int = 8192
    dynamics_codes: int = 8192
    goal: bool = False

    def __post_init__(self) -> None:
        for name in ("context_frames", "context_tokens", "dynamics_tokens", "context_codes", "dynamics_codes"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"{name} is {value}; it must be at least 1.")
        if self.goal and self.context_frames < 2:
            raise ConfigError(
                f"context_frames is {self.context_frames} with a goal; the goal and one observed frame need 2."
            )

    # Token ids

    @property
    def context_slot(self) -> int:
        """Id of S1, before every context frame but the first."""
        return self.context_codes + self.dynamics_codes

    @property
    def future_slot(self) -> int:
        """Id of S2, before every future frame."""
        return self.context_slot + 1

    @property
    def vocabulary(self) -> int:
        """Number of ids: both codebooks and the two slots."""
        return self.context_codes + self.dynamics_codes + 2

    @property
    def context_ids(self) -> range:
        """The ids that are legal inside a context frame."""
        return range(self.context_codes)

    @property
    def dynamics_ids(self) -> range:
        """The ids that are legal inside a future frame."""
        return range(self.context_codes, self.context_codes + self.dynamics_codes)

    # Lengths

    @property
    def prefix_length(self) -> int:
        """Tokens before the first S2: all context frames with the S1 between them."""
        return (self.context_tokens + 1) * self.context_frames - 1

    @property
    def frame_length(self) -> int:
        """Tokens of one future frame with its S2."""
        return self.dynamics_tokens + 1

    def length(self, frames: int) -> int:
        """Sequence length L of `frames` (T) sequence frames."""
        if frames < self.context_frames:
            raise ShapeError(
                f"{frames} frames are fewer than the {self.context_frames} context frames of this model. "
                f"Give at least {self.context_frames}."
            )
        return self.prefix_length + self.frame_length * (frames - self.context_frames)

    def frames(self, length: int) -> int:
        """Sequence frames T of a sequence of `length` tokens: the inverse of `length`."""
        futures, rest = divmod(length - self.prefix_length, self.frame_length)
        if futures < 0 or rest:
            raise ShapeError(
                f"{length} tokens are not a whole segment. With {self.context_frames} context frames a length is "
                f"{self.prefix_length} + {self.frame_length} x (number of future frames)."
            )
        return self.context_frames + futures

    def frame_order(self, frames: int) -> list[int]:
        """Index into a video of `frames` frames for each sequence frame: the goal, if any, is the last one, first."""
        order = list(range(frames))
        return [frames - 1, *order] if self.goal else order

    # Positions

    def context_positions(self) -> Tensor:
        """(t, N) positions of the context tokens."""
        start = torch.arange(self.context_frames)[:, None] * (self.context_tokens + 1)
        return start + torch.arange(self.context_tokens)

    def context_slot_positions(self) -> Tensor:
        """(t - 1,) positions of S1."""
        return torch.arange(1, self.context_frames) * (self.context_tokens + 1) - 1

    def future_slot_positions(self, frames: int) -> Tensor:
        """(F,) positions of S2."""
        return self.prefix_length + torch.arange(frames - self.context_frames) * self.frame_length

    def dynamics_positions(self, frames: int) -> Tensor:
        """(F, M) positions of the dynamics tokens."""
        return self.future_slot_positions(frames)[:, None] + 1 + torch.arange(self.dynamics_tokens)

    def action_positions(self, frames: int) -> Tensor:
        """(F,) positions that receive an action: the S2 before each future frame."""
        return self.future_slot_positions(frames)

    def action_frames(self, frames: int) -> range:
        """Sequence frames whose action is used: t-1 .. T-2, in the order of `action_positions`."""
        return range(self.context_frames - 1, frames - 1)

    def reward_positions(self, frames: int) -> Tensor:
        """(F,) positions whose hidden state predicts a reward: the last token of each future frame."""
        return self.future_slot_positions(frames) + self.dynamics_tokens

    # Places: where a token sits within its own frame, whichever frame that is

    @property
    def place_count(self) -> int:
        """Number of places: N context cells, M dynamics cells, S1 and S2, in this order."""
        return self.context_tokens + self.dynamics_tokens + 2

    @property
    def context_places(self) -> range:
        """Places of the tokens of a context frame."""
        return range(self.context_tokens)

    @property
    def dynamics_places(self) -> range:
        """Places of the tokens of a future frame."""
        return range(self.context_tokens, self.context_tokens + self.dynamics_tokens)

    @property
    def future_slot_place(self) -> int:
        """Place of S2."""
        return self.place_count - 1

    def places(self, frames: int) -> Tensor:
        """(L,) the place of every position."""
        places = torch.empty(self.length(frames), dtype=torch.int64)
        places[self.context_positions()] = torch.arange(self.context_tokens)
        places[self.context_slot_positions()] = self.place_count - 2
        places[self.future_slot_positions(frames)] = self.future_slot_place
        places[self.dynamics_positions(frames)] = torch.tensor(self.dynamics_places)
        return places

    def on_device(self, frames: int, device: torch.device) -> Positions:
        """Positions on a device, sent there once."""
        return _positions(self, frames, device)

    # Sequences

    def assemble(self, context: Tensor, dynamics: Tensor) -> Tensor:
        """Join codes into a token sequence.

        Args:
            context: (B, t, N) int64 codes, 0..Kc-1.
            dynamics: (B, F, M) int64 codes, 0..Kd-1.

        Returns:
            (B, L) int64 token ids.
        """
        batch, futures = dynamics.shape[:2]
        frames = self.context_frames + futures
        tokens = context.new_empty(batch, self.length(frames))
        places = self.on_device(frames, context.device)
        tokens[:, places.context] = context.reshape(batch, -1)
        tokens[:, places.context_slots] = self.context_slot
        tokens[:, places.future_slots] = self.future_slot
        tokens[:, places.dynamics] = dynamics.reshape(batch, -1) + self.context_codes
        return tokens

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse of `assemble`: (B, L) token ids -> codes (B, t, N) and (B, F, M).

        Raises:
            ShapeError: a length that is no whole segment, or an id that is not legal where it stands.
        """
        batch, frames = tokens.shape[0], self.frames(tokens.shape[1])
        _require_slots("S1", tokens[:, self.context_slot_positions()], self.context_slot)
        _require_slots("S2", tokens[:, self.future_slot_positions(frames)], self.future_slot)
        context = tokens[:, self.context_positions()]
        dynamics = tokens[:, self.dynamics_positions(frames).flatten()] - self.context_codes
        dynamics = dynamics.view(batch, frames - self.context_frames, self.dynamics_tokens)
        _require_codes("context", context, self.context_codes)
        _require_codes("dynamics", dynamics, self.dynamics_codes)
        return context, dynamics

    def labels(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Training targets, aligned with `tokens` (the loss shifts by one).

        Args:
            tokens: (B, L) token ids.
            mask: (B, T) bool, False on padded frames, whose tokens and slot are not trained on.

        Returns:
            (B, L) int64: `IGNORED` up to and including the first S2 and on padded frames, the token elsewhere.
        """
        labels = tokens.clone()
        labels[:, : self.prefix_length + 1] = IGNORED
        if mask is not None:
            padded = ~mask[:, self.context_frames :].repeat_interleave(self.frame_length, dim=1)
            labels[:, self.prefix_length :].masked_fill_(padded, IGNORED)
        return labels


class Positions(NamedTuple):
    """Where the tokens of sequences of some length stand."""

    context: Tensor
    """(t*N,)"""
    context_slots: Tensor
    """(t - 1,)"""
    future_slots: Tensor
    """(F,)"""
    dynamics: Tensor
    """(F*M,)"""
    places: Tensor
    """(L,) the place of every position."""


@functools.lru_cache(maxsize=64)
def _positions(layout: TokenLayout, frames: int, device: torch.device) -> Positions:
    # Not inside inference mode, whose tensors no gradient may meet.
    with torch.inference_mode(False):
        tensors = (
            layout.context_positions().flatten(),
            layout.context_slot_positions(),
            layout.future_slot_positions(frames),
            layout.dynamics_positions(frames).flatten(),
            layout.places(frames),
        )
        return Positions(*(tensor.to(device) for tensor in tensors))


def _require_slots(name: str, slots: Tensor, token: int) -> None:
    if not bool((slots == token).all()):
        raise ShapeError(
            f"token {int(slots[slots != token][0])} stands where slot {name}, id {token}, belongs. "
            "Were these tokens made by another model?"
        )


def _require_codes(name: str, codes: Tensor, size: int) -> None:
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < size):
        raise ShapeError(
            f"a {name} token lies outside its codebook: codes {int(codes.min())}..{int(codes.max())}, "
            f"legal 0..{size - 1}. Were these tokens made by another model?"
        )
