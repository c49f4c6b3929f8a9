"""What a tokenizer makes of context frames and of whole videos.

Shapes: B videos, T frames, t context frames, F = T - t future frames, R resolution, N context tokens a frame,
M dynamics tokens a frame, D code width, S features of a state.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ivideogpt.tokenizer.cross_attention import KeysValues


@dataclass(frozen=True)
class EncodedContext:
    """Context frames as the encoder sees them: made once, used for every future frame that is tokenized."""

    codes: Tensor
    """(B, t, N) int64."""
    keys_values: list[KeysValues]
    """One entry a cross-attention of the prediction encoder."""
    states: Tensor | None = None
    """(B, t, S) states that the frames show, where they were asked for."""


@dataclass(frozen=True)
class DecodedContext:
    """Context frames as the decoder sees them: made once, used for every future frame that is decoded."""

    frames: Tensor
    """(B, t, 3, R, R), not clamped; (B, 0, 3, R, R) where they were not asked for."""
    keys_values: list[KeysValues]
    """One entry a cross-attention of the prediction decoder."""


@dataclass(frozen=True)
class Reconstruction:
    """A video through the tokenizer, with gradients."""

    context: Tensor
    """(B, t, 3, R, R), not clamped."""
    future: Tensor
    """(B, F, 3, R, R), not clamped."""
    context_codes: Tensor
    """(B, t, N) int64."""
    dynamics_codes: Tensor
    """(B, F, M) int64."""
    context_vectors: Tensor
    """(B, t, N, D) what was quantized: candidates for dead codes."""
    dynamics_vectors: Tensor
    """(B, F, M, D) what was quantized: candidates for dead codes."""
    commitment_context: Tensor
    """Scalar quantizer loss of the context tokens."""
    commitment_dynamics: Tensor
    """Scalar quantizer loss of the dynamics tokens."""
    context_quantized: Tensor
    """(B, t, N, D) context vectors after quantization."""
    dynamics_quantized: Tensor
    """(B, F, M, D) dynamics vectors after quantization; gradients pass straight through."""
    frame_states: Tensor | None = None
    """(B, T, S) features of the state read from each frame by itself; None without a state."""
    dynamics_states: Tensor | None = None
    """(B, F, S) features of the state read from what becomes dynamics tokens; None without a state."""
