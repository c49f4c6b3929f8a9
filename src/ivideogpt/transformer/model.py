"""LLaMA-style transformer that continues the token sequence, taking an action before each future frame.

Shapes: B rows, L tokens, H hidden size, h heads, D channels a head, V vocabulary, T frames, t context frames,
F = T - t future frames, A action size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import SamplingConfig, TransformerConfig
from ivideogpt.devices import Precision
from ivideogpt.errors import ShapeError
from ivideogpt.presets import transformer_preset
from ivideogpt.sequence import TokenLayout
from ivideogpt.transformer.cache import Cache, KeyValueCache
from ivideogpt.transformer.kernels import attend, multiply
from ivideogpt.transformer.packed import PackedLinear, can_pack
from ivideogpt.transformer.sampling import log_probability
from ivideogpt.transformer.states import StatePath
from ivideogpt.transformer.symlog import symexp
from ivideogpt.weights import built

_INITIAL_STD = 0.02


class TransformerOutput(NamedTuple):
    """What the transformer predicts for a segment."""

    logits: Tensor
    """(B, L, V); position i predicts token i + 1."""
    rewards: Tensor | None
    """(B, F) reward on arriving at each future frame, its symlog where trained so; None without a head."""
    states: Tensor | None = None
    """(B, F, S) state of each future frame, predicted at its slot from the states before; None without states."""


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.dropout = layer, config.heads, config.attention_dropout
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.output = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        """(B,n,H) -> (B,n,H). With a cache the n tokens come after, and attend to, what it holds."""
        heads = multiply(self.qkv, x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, h, n, D)
        (queries, keys), values = rotate(heads[:2], rotary), heads[2]
        if cache is None:
            y = attend(queries, keys, values, 0, self.dropout if self.training else 0.0)
        else:
            y = cache.attend(self.layer, queries, keys, values)
        return multiply(self.output, y.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: `down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden, 2 * config.feed_forward, bias=False)
        self.down = nn.Linear(config.feed_forward, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B,n,H) -> (B,n,H)."""
        gate, up = multiply(self.gate_up, x).chunk(2, dim=-1)
        return multiply(self.down, F.silu(gate) * up)


class Layer(nn.Module):
    """Pre-normalised attention and feed-forward, each with a residual."""

    def __init__(self, config: TransformerConfig, index: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.attention = Attention(config, index)
        self.feed_forward_norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], cache: Cache | None) -> Tensor:
        """(B,n,H) -> (B,n,H)."""
        x = x + self.attention(self.attention_norm(x), rotary, cache)
        return x + self.feed_forward(self.feed_forward_norm(x))


class VideoTransformer(nn.Module):
    """Next-token prediction over the sequence of `TokenLayout` (paper sections 3.1 and 3.3).

    No action input or reward head unless the configuration asks for them. The action input starts at zero, so
    a model that gets one continues exactly as it was.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.layout.vocabulary, config.hidden)
        self.places = nn.Embedding(config.layout.place_count, config.hidden) if config.place_embedding else None
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=config.norm_eps)
        self.head = nn.Linear(config.hidden, config.layout.vocabulary, bias=False)
        self.action_in = None if config.action_dim is None else nn.Linear(config.action_dim, config.hidden)
        self.reward_head = nn.Linear(config.hidden, 1) if config.reward else None
        self.states = None if config.state is None else StatePath(config)
        self._legal_head: nn.Module | None = None  # see `for_inference`
        self.static = self.compiled = False
        """Whether sessions run its frames as always the same operations, and whether these are compiled."""
        self._rotary_tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}
        self._initialise()

    @classmethod
    def from_preset(cls, name: str, *, layout: TokenLayout | None = None, **changes: Any) -> Self:
        """Random weights in the shape of a preset (`presets.TRANSFORMERS`), with fields changed by keyword.

        Raises:
            ConfigError: unknown preset or illegal field.
        """
        return cls(TransformerConfig.checked(**{**dict(transformer_preset(name, layout)), **changes}))

    @classmethod
    def from_pretrained(cls, name: str | Path, *, goal: bool | None = None, trained_frames: int | None = None) -> Self:
        """Load a transformer from a folder (native or official layout), a shipped model or a Hub id.

        Args:
            name: of the model.
            goal, trained_frames: what the official layout does not say, see `hub.load`.

        Raises:
            CheckpointError: nothing there, or it is damaged or does not fit.
            ConfigError: `goal` or `trained_frames` contradict what is known of the model.
        """
        config, weights = hub.load_transformer(name, goal=goal, trained_frames=trained_frames)
        transformer = built(lambda: cls(config), weights, where=f"transformer of {name}")
        return transformer.eval()

    @property
    def layout(self) -> TokenLayout:
        """The layout of the token sequences this transformer continues."""
        return self.config.layout

    def forward(self, tokens: Tensor, actions: Tensor | None = None, states: Tensor | None = None) -> TransformerOutput:
        """Predict every next token and, with the heads for it, every reward and next state of whole segments.

        Args:
            tokens: (B, L) int64.
            actions: (B, T, A), a_j taken at frame j on the way to frame j + 1, the last one unused; or None, which
                stands for no action even where the model takes one.
            states: (B, T, S), the true state of every frame, where the model has learned states; None for none.

        Raises:
            ShapeError: a length that is no whole segment, or actions or states that do not fit the model or the tokens.
        """
        hidden, features = self._read_segments(tokens, actions, states)
        rewards = self.rewards(hidden[:, self.layout.reward_positions(self.layout.frames(tokens.shape[1]))])
        if features is None:
            return TransformerOutput(self.head(hidden), rewards)
        path = self.require_states()
        return TransformerOutput(self.head(hidden), rewards, path.decoded(path.next_of_segment(features, actions)))

    def logprob(
        self, tokens: Tensor, sampling: SamplingConfig, actions: Tensor | None = None, states: Tensor | None = None
    ) -> Tensor:
        """What `Step.logprob` said when a session sampled these tokens, once more and with gradients.

        Args:
            tokens: (B, L) int64 whole segments: context and imagined frames.
            sampling: how the tokens were sampled.
            actions: (B, T, A) as in `forward`.
            states: (B, T, S) of the context and, from then on, `Step.state`, where the model has learned states.

        Returns:
            (B, F) log-probability of each future frame's tokens, in nats; minus infinity for tokens that are never
            sampled so.

        Raises:
            ShapeError: as `forward`.
        """
        hidden, _ = self._read_segments(tokens, actions, states)
        positions = self.layout.dynamics_positions(self.layout.frames(tokens.shape[1])).to(tokens.device)
        index = tokens[:, positions] - self.layout.dynamics_ids.start
        return log_probability(self.dynamics_logits(hidden[:, positions - 1]), index, sampling).sum(dim=-1)

    def _read_segments(
        self, tokens: Tensor, actions: Tensor | None, states: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Hidden states (B,L,H) of whole segments, and the features (B,T,D) of their states where there are any."""
        if states is None:
            return self.hidden_states(self.embed(tokens, actions)), None
        path = self.require_states()
        expected = (len(tokens), self.layout.frames(tokens.shape[1]), path.config.size)
        if tuple(states.shape) != expected:
            raise ShapeError(
                f"states have shape {tuple(states.shape)}; this model takes (B, T, S) = {expected}, one a frame."
            )
        features = path.features(states.to(self.embedding.weight.device))
        return self.hidden_states(self.embed(tokens, actions, features)), features

    def embed(self, tokens: Tensor, actions: Tensor | None, features: Tensor | None = None) -> Tensor:
        """Whole segments (B,L) -> embeddings (B,L,H).

        At each slot the action (B,T,A) that leads to its frame is added, and the state (B,T,D) that the frame shows.
        """
        frames = self.layout.frames(tokens.shape[1])
        positions = self.layout.on_device(frames, tokens.device)
        x, slots = self.embed_tokens(tokens, positions.places), positions.future_slots
        if actions is not None:
            used = self.require_actions(actions, tokens.shape[0], frames)[:, list(self.layout.action_frames(frames))]
            x = x.index_add(1, slots, self.embed_actions(used).to(x.dtype))
        if features is not None:
            shown = self.require_states().embedding(features[:, self.layout.context_frames :])
            x = x.index_add(1, slots, shown.to(x.dtype))
        return x

    def require_states(self) -> StatePath:
        """The part that knows states.

        Raises:
            ShapeError: this model has learned none.
        """
        if self.states is None:
            raise ShapeError("states were given, but this model has learned none. Leave them out, or use one that has.")
        return self.states

    def embed_tokens(self, tokens: Tensor, places: Tensor | int) -> Tensor:
        """Token ids (...) that stand at these places of their frames (`TokenLayout.places`) -> embeddings (..., H)."""
        x = self.embedding(tokens)
        return x if self.places is None else x + self.places.weight[places]

    def rewards(self, hidden: Tensor) -> Tensor | None:
        """Hidden states (..., H) of last tokens -> rewards (...), or their symlog; None without a head."""
        if self.reward_head is None:
            return None
        return self.config.reward_mean + self.config.reward_std * self.reward_head(hidden)[..., 0].float()

    def reward_of(self, hidden: Tensor) -> Tensor | None:
        """Hidden states (..., H) of last tokens -> rewards (...) in reward units; None without a head."""
        rewards = self.rewards(hidden)
        if rewards is None:
            return None
        return symexp(rewards) if self.config.reward_symlog else rewards

    def dynamics_logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (..., H) -> logits (..., Kd) of the ids that are legal inside a future frame, and no others."""
        return multiply(self._legal_head or self._legal_logits, hidden)

    def _legal_logits(self, hidden: Tensor) -> Tensor:
        ids = self.layout.dynamics_ids
        return F.linear(hidden, self.head.weight[ids.start : ids.stop])

    def hidden_states(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Embeddings (B,n,H) -> hidden states (B,n,H) after the final norm; with a cache, continue what it holds.

        Raises:
            ShapeError: more positions than the model or the cache has.
        """
        count = x.shape[1]
        filled = 0 if cache is None else cache.max_length
        if filled + count > self.config.max_positions:
            raise ShapeError(
                f"a sequence of {filled + count} tokens exceeds the model's {self.config.max_positions} positions. "
                "Use a shorter horizon."
            )
        if cache is not None:
            cache.require_room(count)
        rotary = self._rotary(slice(0, count) if cache is None else cache.positions(count), x.dtype)
        for layer in self.layers:
            x = layer(x, rotary, cache)
        if cache is not None:
            cache.advance(count)
        return self.norm(x)

    def embed_actions(self, actions: Tensor) -> Tensor:
        """Actions (..., A) -> what is added to the slot embeddings, (..., H)."""
        if self.action_in is None:
            raise ShapeError("actions were given, but this model takes none. Leave actions out, or use one that does.")
        return self.action_in(actions.to(self.action_in.weight.dtype))

    def require_actions(self, actions: Tensor, rows: int, frames: int) -> Tensor:
        """Check a segment's actions (B,T,A) and bring them to the model's device.

        Raises:
            ShapeError: the model takes none, wrong shape or size, or a value that is not finite or out of range.
        """
        if self.action_in is None:
            raise ShapeError("actions were given, but this model takes none. Leave actions out, or use one that does.")
        expected = (rows, frames, self.config.action_dim)
        if tuple(actions.shape) != expected:
            raise ShapeError(
                f"actions have shape {tuple(actions.shape)}; this model takes (B, T, A) = {expected}, one a frame."
            )
        self.require_values(actions)
        return actions.to(self.embedding.weight.device)

    def require_values(self, actions: Tensor, rows: Sequence[int] | None = None) -> None:
        """Check that actions (B, ..., A), of rows with these numbers, are finite and within the model's range.

        Raises:
            ShapeError: names the first row that is not.
        """
        limit = self.config.action_limit or torch.inf
        wrong = ~(torch.isfinite(actions) & (actions.abs() <= limit))  # True also for NaN
        if wrong.any():
            first = int(wrong.flatten(1).any(1).nonzero()[0])
            value, row = actions[first][wrong[first]][0].item(), first if rows is None else rows[first]
            rule = "must be finite" if limit == torch.inf else f"must be finite and lie in [-{limit:g}, {limit:g}]"
            raise ShapeError(f"the action of row {row} holds {value:g}; each component {rule}. Mend it and try again.")

    def for_inference(self, precision: Precision, *, compiled: bool = False) -> VideoTransformer:
        """A copy for use without gradients.

        Args:
            precision: of all but the states, which stay in float32.
            compiled: whether sessions compile its frames. On a GPU they run as CUDA graphs in any case.
        """
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        other = copy.deepcopy(self).eval().requires_grad_(False).to(dtype)
        if precision == "bf16" and not compiled and other.embedding.weight.device.type == "cpu" and can_pack():
            other._pack_linear()
        if self.states is not None:  # as it is: rounded positions would drift
            other.states = copy.deepcopy(self.states).eval().requires_grad_(False).float()
        other.compiled, other.static = compiled, compiled or other.embedding.weight.is_cuda
        return other

    def _pack_linear(self) -> None:
        """Put packed layers in place of the linear ones of all layers, and in the head of the legal tokens."""
        for part in [part for part in self.layers.modules() if isinstance(part, Attention | FeedForward)]:
            for name, linear in list(part.named_children()):
                assert isinstance(linear, nn.Linear), "these parts are made of linear layers alone"
                setattr(part, name, PackedLinear(linear.weight))
        legal = self.layout.dynamics_ids
        self._legal_head = PackedLinear(self.head.weight[legal.start : legal.stop])

    def new_cache(self, rows: int, capacity: int) -> KeyValueCache:
        """An empty cache for `rows` sequences of up to `capacity` tokens, in the weights' precision."""
        c, weight = self.config, self.embedding.weight
        return KeyValueCache(c.layers, rows, c.heads, capacity, c.hidden // c.heads, weight.device, weight.dtype)

    def _rotary(self, positions: slice | Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (n,D) of positions that all rows share, or (B,1,n,D) of positions (B,n)."""
        device = self.embedding.weight.device
        table = self._rotary_tables.get((device, dtype))
        if table is None:
            table = self._rotary_tables[device, dtype] = self._rotary_table(device, dtype)
        cos, sin = (x[positions] for x in table)
        return (cos, sin) if isinstance(positions, slice) else (cos[:, None], sin[:, None])

    @torch.inference_mode(False)
    def _rotary_table(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        # Made in float32 and no buffer: that would be rounded with the weights of a bf16 model, which turns position
        # 1000 by radians.
        head_dim = self.config.hidden // self.config.heads
        powers = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
        positions = torch.arange(self.config.max_positions, device=device, dtype=torch.float32)
        angles = torch.outer(positions, self.config.rope_base**-powers).repeat(1, 2)  # (max_positions, D)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=_INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        if self.action_in is not None:
            nn.init.zeros_(self.action_in.weight)
        if self.states is not None:
            nn.init.zeros_(self.states.embedding.state_out.weight)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of (..., n, D): channel i is paired with channel i + D/2."""
    cos, sin = rotary
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
