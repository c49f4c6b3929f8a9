"""The compressive tokenizer: context frames in full, every future frame in a few tokens conditioned on them.

Shapes: B videos, T frames, t context frames, F = T - t future frames, R resolution, h latent size, C latent channels,
N context tokens a frame, M dynamics tokens a frame, L tokens.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import StateConfig, TokenizerConfig
from ivideogpt.devices import Precision, no_autocast
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.presets import tokenizer_preset
from ivideogpt.sequence import TokenLayout
from ivideogpt.states import decode_states, encode_states
from ivideogpt.tokenizer.cross_attention import CrossAttention, KeysValues, resize_context_position
from ivideogpt.tokenizer.networks import FRAME_CHANNELS, Decoder, Encoder, context_keys_values
from ivideogpt.tokenizer.patches import from_patches, to_patches
from ivideogpt.tokenizer.quantizer import FiniteScalarQuantizer, VectorQuantizer
from ivideogpt.tokenizer.results import DecodedContext, EncodedContext, Reconstruction
from ivideogpt.tokenizer.states import ShownStates, StateParts
from ivideogpt.tokenizer.upsample import UpsamplingConv
from ivideogpt.weights import built


class CompressiveTokenizer(nn.Module):
    """Conditional VQGAN with two encoder/decoder pairs (paper section 3.1).

    The context pair is a plain VQGAN; the prediction pair attends to its feature maps and has a tighter bottleneck.
    """

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.config = config
        latent, patch = config.latent_channels, config.patch_size
        self.context_encoder = Encoder(config, cross=False, middle_attention=config.context_mid_attention)
        self.context_decoder = Decoder(config, cross=False, middle_attention=config.context_mid_attention)
        self.prediction_encoder = Encoder(config, cross=True, middle_attention=config.prediction_mid_attention)
        self.prediction_decoder = Decoder(config, cross=True, middle_attention=config.prediction_mid_attention)
        self.context_quantizer = _quantizer(config, config.context_codes, config.context_levels)
        self.dynamics_quantizer = _quantizer(config, config.dynamics_codes, config.dynamics_levels)
        self.context_in = nn.Conv2d(latent, self.context_quantizer.width, 1)
        self.context_out = nn.Conv2d(self.context_quantizer.width, latent, 1)
        self.dynamics_in = nn.Linear(latent * patch**2, self.dynamics_quantizer.width)
        self.dynamics_out = nn.Linear(self.dynamics_quantizer.width, latent * patch**2)
        self.states = None if config.state is None else StateParts(config, self.dynamics_quantizer.width)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> Self:
        """Random weights in the shape of a preset (`presets.TOKENIZERS`), with fields changed by keyword.

        Raises:
            ConfigError: unknown preset or illegal field.
        """
        return cls(TokenizerConfig.checked(**{**dict(tokenizer_preset(name)), **changes}))

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """Load a tokenizer from a folder (native or official layout), a shipped model or a Hub id.

        Raises:
            CheckpointError: nothing there, or it is damaged or does not fit.
        """
        config, weights = hub.load_tokenizer(name)
        tokenizer = built(lambda: cls(config), weights, where=f"tokenizer of {name}")
        return tokenizer.eval()

    @property
    def layout(self) -> TokenLayout:
        """The layout of the token sequences this tokenizer writes."""
        return self.config.layout

    # Pixels to tokens and back

    @torch.no_grad()
    def tokenize(self, frames: Tensor, states: Tensor | None = None) -> Tensor:
        """Frames (B,T,3,R,R), float in [0,1] or uint8 -> tokens (B,L) int64.

        Args:
            frames: the videos.
            states: (B,T,S) of every frame, for a tokenizer that has learned states: the tokens then say what these do
                not, and only `detokenize` with the states of the future frames makes the frames of them again. None:
                the tokens say everything.

        Raises:
            ShapeError: wrong rank, size, type or range, or fewer frames than context.
        """
        frames = self.require_frames(frames)
        t = self.config.context_frames
        context = self.encode_context(frames[:, :t])
        dynamics = self.encode_future(frames[:, t:], context, self._shown(states, frames.shape[1]))
        return self.layout.assemble(context.codes, dynamics)

    @torch.no_grad()
    def detokenize(self, tokens: Tensor, states: Tensor | None = None) -> Tensor:
        """Tokens (B,L) int64 -> frames (B,T,3,R,R), float in [0,1].

        Args:
            tokens: as `tokenize` makes them.
            states: (B,T,S) that the frames show, if the tokens were made with states; those of the context are not
                used.

        Raises:
            ShapeError: a length that is no whole segment, or an id that is not legal where it stands.
        """
        context_codes, dynamics_codes = self.layout.split(tokens)
        context = self.decode_context(context_codes)
        shown = self._shown(states, self.layout.frames(tokens.shape[1]))
        future = self.decode_future(dynamics_codes, context, shown)
        return torch.cat([context.frames, future], dim=1).clamp(0, 1)

    @torch.no_grad()
    def reconstruct(self, frames: Tensor, *, told: bool = True) -> Tensor:
        """Frames (B,T,3,R,R) to tokens and back, where `told` with the states that it reads itself if it has any."""
        states = self.read_states(frames) if told and self.states is not None else None
        return self.detokenize(self.tokenize(frames, states), states)

    @torch.no_grad()
    def read_states(self, frames: Tensor) -> Tensor:
        """States that frames show, each frame read by itself.

        Args:
            frames: (B,T,3,R,R), float in [0,1] or uint8, T of at least t.

        Returns:
            (B,T,S) float32 in the states' own units; angles in radians between -pi and pi.

        Raises:
            ConfigError: this tokenizer has learned no states.
            ShapeError: as `tokenize`.
        """
        self.require_states()
        frames = self.require_frames(frames)
        latent, _ = self.context_encoder(frames.flatten(0, 1))
        return self._states_of(latent).unflatten(0, frames.shape[:2])

    def require_states(self) -> tuple[StateParts, StateConfig]:
        """The part that reads states, and what they are.

        Raises:
            ConfigError: this tokenizer has learned none.
        """
        if self.states is None or self.config.state is None:
            raise ConfigError("this tokenizer has learned no states. Train one with states, or give them yourself.")
        return self.states, self.config.state

    def encode_context(self, frames: Tensor, *, states: bool = False) -> EncodedContext:
        """Context frames (B,t,3,R,R) in [0,1] -> their codes, and what the prediction encoder attends to.

        With `states` also the states that the frames show, as `read_states`.
        """
        latent, maps = self.context_encoder(frames.flatten(0, 1))
        vectors = self._context_vectors(latent, frames.shape[1])
        read = self._states_of(latent).unflatten(0, frames.shape[:2]) if states else None
        return EncodedContext(self.context_quantizer(vectors).codes, self._encoder_keys_values(maps), read)

    def encode_future(self, frames: Tensor, context: EncodedContext, shown: ShownStates | None = None) -> Tensor:
        """Future frames (B,F,3,R,R) in [0,1], any F from 0, and the states they show -> codes (B,F,M)."""
        if frames.shape[1] == 0:
            return context.codes.new_empty(len(frames), 0, self.layout.dynamics_tokens)
        return self.dynamics_quantizer(self._dynamics_vectors(frames, context.keys_values, shown)).codes

    def decode_context(self, codes: Tensor, *, pixels: bool = True) -> DecodedContext:
        """Context codes (B,t,N) -> frames, and what the prediction decoder attends to.

        Without `pixels` the frames are left out, which saves most of the work for who decodes future frames only.
        """
        vectors = self.context_quantizer.lookup(codes)
        if pixels:
            return self._decode_context(vectors)
        size = self.config.resolution
        maps = self.context_decoder.maps(self._context_latent(vectors))
        no_frames = maps[0].new_empty(len(codes), 0, FRAME_CHANNELS, size, size)
        return DecodedContext(no_frames, self._decoder_keys_values(maps))

    def decode_future(self, codes: Tensor, context: DecodedContext, shown: ShownStates | None = None) -> Tensor:
        """Dynamics codes (B,F,M), any F from 0, and the states to show -> frames (B,F,3,R,R), not clamped."""
        if codes.shape[1] == 0:
            return context.frames[:, :0]
        return self._decode_future(self.dynamics_quantizer.lookup(codes), context, shown)

    def forward(
        self, frames: Tensor, shown: ShownStates | None = None, dropped: Tensor | None = None
    ) -> Reconstruction:
        """Frames (B,T,3,R,R), float in [0,1] or uint8, T > t -> their reconstruction, with gradients.

        Args:
            frames: the videos.
            shown: the states of the future frames; None withholds them.
            dropped: (B,F) bool, True for frames whose dynamics tokens are withheld from the decoder.

        Raises:
            ShapeError: as `tokenize`, or no future frame.
        """
        frames = self.require_frames(frames)
        t = self.config.context_frames
        if frames.shape[1] == t:
            raise ShapeError(f"{t} frames are all context; a reconstruction needs at least {t + 1}.")
        latent, maps = self.context_encoder(frames[:, :t].flatten(0, 1))
        context_vectors = self._context_vectors(latent, t)
        dynamics_vectors = self._dynamics_vectors(frames[:, t:], self._encoder_keys_values(maps), shown)
        context = self.context_quantizer(context_vectors)
        dynamics = self.dynamics_quantizer(dynamics_vectors)
        decoded = self._decode_context(context.vectors)
        told = dynamics.vectors if dropped is None else dynamics.vectors * ~dropped[:, :, None, None]
        return Reconstruction(
            context=decoded.frames,
            future=self._decode_future(told, decoded, shown),
            context_codes=context.codes,
            dynamics_codes=dynamics.codes,
            context_vectors=context_vectors,
            dynamics_vectors=dynamics_vectors,
            commitment_context=context.loss,
            commitment_dynamics=dynamics.loss,
            context_quantized=context.vectors,
            dynamics_quantized=dynamics.vectors,
            **self._states(frames, latent.unflatten(0, (-1, t)), dynamics_vectors),
        )

    def with_context_frames(self, context_frames: int) -> CompressiveTokenizer:
        """A copy for another number of context frames, with the same weights.

        Fewer keeps the learned positions of the newest frames; more repeats those of the oldest frame in front.
        """
        other = CompressiveTokenizer(self.config.model_copy(update={"context_frames": context_frames}))
        weights = dict(self.state_dict())
        for name, module in self.named_modules():
            if isinstance(module, CrossAttention):
                key = f"{name}.context_position"
                weights[key] = resize_context_position(weights[key], self.config.context_frames, context_frames)
        other.load_state_dict(weights)
        weight = self.context_in.weight
        return other.to(device=weight.device, dtype=weight.dtype).train(self.training)

    def start_attention(self, *, near: bool) -> None:
        """Start every cross-attention anew: `near`, see `CrossAttention.look_near`, or from zero, as in the paper.

        Draws with torch's global generator. What the rest of the model had learned stays, and has to adapt.
        """
        for module in self.modules():
            if isinstance(module, CrossAttention):
                module.reset_parameters()
                if near:
                    module.look_near()

    def for_inference(self, precision: Precision) -> CompressiveTokenizer:
        """A copy for use without gradients, laid out in memory for fast convolutions; states stay in float32."""
        other = copy.deepcopy(self).eval().requires_grad_(False)
        for module in other.modules():
            if isinstance(module, UpsamplingConv):
                module.split()
        other.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        other.to(torch.bfloat16 if precision == "bf16" else torch.float32)
        if self.states is not None:  # as it is: a rounded position would be off by a tenth of a pixel
            other.states = copy.deepcopy(self.states).eval().requires_grad_(False).float()
        return other

    def require_frames(self, frames: Tensor) -> Tensor:
        """Check frames and bring them to float in [0,1], in the weights' precision.

        Raises:
            ShapeError: as `check_frames`.
        """
        self.check_frames(frames)
        return self.pixels(frames)

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames that have been checked, as float in [0,1] in the weights' precision, on their device."""
        weight = self.context_in.weight
        frames = frames.to(weight.device)
        return frames.to(weight.dtype) / 255 if frames.dtype == torch.uint8 else frames.to(weight.dtype)

    def check_frames(self, frames: Tensor) -> None:
        """Check frames (B,T,3,R,R) where they are.

        Raises:
            ShapeError: names the shape, type or range given, and the rule.
        """
        size, t = self.config.resolution, self.config.context_frames
        if frames.ndim != 5 or tuple(frames.shape[2:]) != (FRAME_CHANNELS, size, size):
            raise ShapeError(
                f"frames have shape {tuple(frames.shape)}; this model takes (B, T, {FRAME_CHANNELS}, {size}, {size}). "
                "Check the channel order and resize the frames."
            )
        if frames.shape[1] < t:
            raise ShapeError(f"{frames.shape[1]} frames are fewer than the {t} context frames of this model.")
        if frames.dtype == torch.uint8:
            return
        if not frames.is_floating_point():
            raise ShapeError(f"frames have type {frames.dtype}; give float in [0, 1] or uint8 in 0..255.")
        low, high = (float(x) for x in frames.aminmax()) if frames.numel() else (0.0, 0.0)
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ShapeError(
                f"float frames must lie in [0, 1] and be finite; these lie in [{low:g}, {high:g}]. "
                "Divide 0..255 frames by 255, or give uint8."
            )

    # Parts of both directions

    def _context_vectors(self, latent: Tensor, context_frames: int) -> Tensor:
        """Latent maps (B*t,C,h,h) -> what is quantized (B,t,N,D)."""
        return self.context_in(latent).flatten(2).transpose(1, 2).unflatten(0, (-1, context_frames))

    def _states_of(self, latent: Tensor) -> Tensor:
        """States (n,S) that frames show, from their latent maps (n,C,h,h)."""
        states, config = self.require_states()
        return decode_states(states.frame(latent), config)

    def _states(self, frames: Tensor, latent: Tensor, dynamics_vectors: Tensor) -> dict[str, Tensor]:
        """States for `Reconstruction`, from frames (B,T,3,R,R), the context's latent maps (B,t,C,h,h) and what becomes
        dynamics tokens (B,F,M,W)."""
        if self.states is None:
            return {}
        t = latent.shape[1]
        future, _ = self.context_encoder(frames[:, t:].flatten(0, 1))  # many more frames to learn reading from
        latent = torch.cat([latent, future.unflatten(0, (len(frames), -1))], dim=1)
        with no_autocast(latent.device):
            read = self.states.frame(latent)
            return {
                "frame_states": read,
                "dynamics_states": self.states.dynamics(dynamics_vectors, read[:, t - 1].detach()),
            }

    def _encoder_keys_values(self, maps: list[Tensor]) -> list[KeysValues]:
        return context_keys_values(self.prediction_encoder.cross, maps, self.config.context_frames)

    def _shown(self, states: Tensor | None, frames: int) -> ShownStates | None:
        """States (B,T,S) of whole videos -> those of the future frames."""
        if states is None:
            return None
        if self.states is None or self.config.state is None:
            raise ShapeError("states were given, but this tokenizer has learned none. Leave them out.")
        if states.ndim != 3 or states.shape[1:] != (frames, self.config.state.size):
            raise ShapeError(
                f"states have shape {tuple(states.shape)}; this tokenizer takes (B, T, S) = "
                f"(B, {frames}, {self.config.state.size}), one a frame."
            )
        features = encode_states(states[:, self.config.context_frames :], self.config.state)
        return ShownStates(features.to(self.context_in.weight.device))

    def _dynamics_vectors(self, frames: Tensor, keys_values: list[KeysValues], shown: ShownStates | None) -> Tensor:
        known = None if self.states is None or shown is None else self.states.for_encoder(shown)
        latent, _ = self.prediction_encoder(frames.flatten(0, 1), keys_values, known)
        return self.dynamics_in(to_patches(latent, self.config.patch_size)).unflatten(0, frames.shape[:2])

    def _decode_context(self, vectors: Tensor) -> DecodedContext:
        frames, maps = self.context_decoder(self._context_latent(vectors))
        return DecodedContext(frames.unflatten(0, vectors.shape[:2]), self._decoder_keys_values(maps))

    def _context_latent(self, vectors: Tensor) -> Tensor:
        side = self.config.latent_size
        latent = vectors.flatten(0, 1).transpose(1, 2).unflatten(2, (side, side))  # (B*t, D, h, h)
        return self.context_out(latent.to(self.context_out.weight.dtype))

    def _decoder_keys_values(self, maps: list[Tensor]) -> list[KeysValues]:
        return context_keys_values(self.prediction_decoder.cross, maps, self.config.context_frames)

    def _decode_future(self, vectors: Tensor, context: DecodedContext, shown: ShownStates | None) -> Tensor:
        patches = self.dynamics_out(vectors.flatten(0, 1).to(self.dynamics_out.weight.dtype))
        known = None if self.states is None or shown is None else self.states.for_decoder(shown)
        frames, _ = self.prediction_decoder(from_patches(patches, self.config.patch_size), context.keys_values, known)
        return frames.unflatten(0, vectors.shape[:2])


def _quantizer(config: TokenizerConfig, codes: int, levels: tuple[int, ...]) -> VectorQuantizer | FiniteScalarQuantizer:
    if config.quantizer == "fsq":
        return FiniteScalarQuantizer(levels)
    return VectorQuantizer(codes, config.latent_channels)
