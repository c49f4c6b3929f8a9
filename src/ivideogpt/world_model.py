"""The world model: a tokenizer and a transformer that imagine together, one action and one frame at a time.

Shapes: B contexts, K branches (or samples) of each, rows = B*K ordered context by context, T frames, t context
frames, F future frames, A action size, M dynamics tokens a frame, R resolution.
"""

from __future__ import annotations

import dataclasses
import operator
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import SamplingConfig
from ivideogpt.devices import choose_device
from ivideogpt.errors import CheckpointError, ConfigError, ShapeError
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import KeyValueCache, VideoTransformer
from ivideogpt.transformer.sampling import RowStreams, sample

_FRAMES_DECODED_AT_ONCE = 256

Seed = SupportsIndex | Sequence[int] | None


class Step(NamedTuple):
    """One imagined step of every row."""

    frame: Tensor | None
    """(rows, 3, R, R) float in [0,1]; None where decoding was put off."""
    reward: Tensor | None
    """(rows,) reward on arriving at this frame; None without a reward head."""
    entropy: Tensor
    """(rows,) mean entropy of the distributions the frame's tokens were drawn from, in nats."""
    tokens: Tensor
    """(rows, M) int64 token ids of the frame."""


class Rollout(NamedTuple):
    """Imagined videos."""

    video: Tensor
    """(B, K, T, 3, R, R) float in [0,1]: the context frames as given, then the imagined ones."""
    rewards: Tensor | None
    """(B, K, F) reward on arriving at each imagined frame; None without a reward head."""


class WorldModel(nn.Module):
    """A tokenizer and a transformer of the same token layout.

    Args:
        tokenizer: frames to tokens and back.
        transformer: continues the tokens.
        sampling: how tokens are drawn where nothing else is said.

    Raises:
        ConfigError: the two parts do not have the same token layout.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        sampling: SamplingConfig | None = None,
    ) -> None:
        super().__init__()
        theirs = dataclasses.replace(transformer.layout, goal=False)
        if tokenizer.layout != theirs:
            raise ConfigError(
                f"the tokenizer writes {tokenizer.layout}, but the transformer continues {theirs}. "
                "Train the transformer on this tokenizer, or load the one it was trained on."
            )
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.sampling = sampling or SamplingConfig()
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Load a shipped model, a local folder (native or official layout) or a Hub id.

        Args:
            name: for example `"pusht-64"`.
            device: where it runs: cpu, cuda, cuda:n or auto.
            dtype: precision of the weights; float32 where left out.

        Raises:
            DeviceError: CUDA was asked for and is absent, or the name is unknown.
            CheckpointError: nothing there, or it is damaged or does not fit.
        """
        device = choose_device(device) if isinstance(device, str) else device
        found = hub.load(name)
        if found.tokenizer is None or found.transformer is None:
            missing = "tokenizer" if found.tokenizer is None else "transformer"
            raise CheckpointError(f"{name} holds no {missing}; a world model needs both. Train the {missing} first.")
        tokenizer = CompressiveTokenizer(found.tokenizer[0])
        transformer = VideoTransformer(found.transformer[0])
        hub.load_weights(tokenizer, found.tokenizer[1], where=f"tokenizer of {name}")
        hub.load_weights(transformer, found.transformer[1], where=f"transformer of {name}")
        return cls(tokenizer, transformer, found.sampling).to(device=device, dtype=dtype)

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        layout: hub.Layout = "native",
        dtype: torch.dtype | None = None,
        overwrite: bool = False,
    ) -> Path:
        """Write the model so that `from_pretrained` reads it; the folder appears whole or not at all.

        Args:
            folder: must not exist, or be empty, unless `overwrite`.
            layout: `"native"`, or `"official"` for the layout of the published research checkpoints.
            dtype: precision of the written weights; as they are where left out.

        Raises:
            OutputError: the folder holds something, or the disk is full.
            CheckpointError: the official layout cannot express this model.
        """
        parts = [dict(self.tokenizer.state_dict()), dict(self.transformer.state_dict())]
        if dtype is not None:
            parts = [hub.as_dtype(part, dtype) for part in parts]
        checkpoint = hub.Checkpoint(
            tokenizer=(self.tokenizer.config, parts[0]),
            transformer=(self.transformer.config, parts[1]),
            sampling=self.sampling,
        )
        return hub.save(folder, checkpoint, layout=layout, overwrite=overwrite)

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.transformer.embedding.weight.device

    @property
    def longest_horizon(self) -> int:
        """Future frames that fit into the transformer's positions."""
        layout = self.transformer.layout
        return (self.transformer.config.max_positions - layout.prefix_length) // layout.frame_length

    def start(
        self,
        context: Tensor,
        branches: int = 1,
        seed: Seed = None,
        *,
        horizon: int | None = None,
        sampling: SamplingConfig | None = None,
    ) -> Session:
        """Begin to imagine from context frames. Puts the model into eval mode.

        Args:
            context: (B,t,3,R,R), uint8 or float in [0,1]; with a goal the goal frame comes first.
            branches: independent futures of each context, K; they share its tokenization and prefill.
            seed: decides every draw. An int: row k of context b has the stream (seed, b, k). B ints, one a context:
                context b has the streams of (seed[b], 0, k), whatever else is in the batch. None: a fresh one.
            horizon: most frames that will be stepped; `longest_horizon` where left out.
            sampling: how tokens are drawn; the model's own way where left out.

        Raises:
            ShapeError: frames, seeds or horizon that do not fit.
        """
        horizon = self.longest_horizon if horizon is None else _positive_horizon(horizon)
        return Session(self, context, branches, seed, horizon, sampling or self.sampling)

    @torch.no_grad()
    def rollout(
        self,
        context: Tensor,
        actions: Tensor | None = None,
        horizon: int | None = None,
        samples: int = 1,
        seed: Seed = None,
        *,
        sampling: SamplingConfig | None = None,
    ) -> Rollout:
        """Imagine whole videos.

        Args:
            context: (B,t,3,R,R), uint8 or float in [0,1].
            actions: (B,T,A) one action a frame, a_j taken at frame j (those before the last context frame and at the
                last frame are not used); with `horizon` also (B,F,A), the actions from the last context frame on.
                None where the model takes none.
            horizon: future frames F; from the actions where left out.
            samples: futures of each context, K.
            seed, sampling: as in `start`.

        Raises:
            ShapeError: shapes that do not fit each other or the model, or neither actions nor horizon.
        """
        future_actions, horizon = self._future_actions(context, actions, horizon)
        session = self.start(context, samples, seed, horizon=horizon, sampling=sampling)
        steps = []
        for j in range(horizon):
            action = None if future_actions is None else future_actions[:, j].repeat_interleave(samples, dim=0)
            steps.append(session.step(action, decode=False))
        tokens = torch.stack([step.tokens for step in steps], dim=1).unflatten(0, (-1, samples))  # (B, K, F, M)
        imagined = session.decode(tokens)
        given = self.tokenizer.require_frames(context).float().clamp(0, 1).to(self.device)[:, None]
        video = torch.cat([given.expand(-1, samples, -1, -1, -1, -1), imagined], dim=2)
        rewards = None
        if self.transformer.reward_head is not None:
            rewards = torch.stack([step.reward for step in steps if step.reward is not None], dim=1)
            rewards = rewards.unflatten(0, (-1, samples))
        return Rollout(video, rewards)

    def _future_actions(
        self, context: Tensor, actions: Tensor | None, horizon: int | None
    ) -> tuple[Tensor | None, int]:
        t = self.tokenizer.config.context_frames
        if actions is None:
            if horizon is None:
                raise ShapeError("neither actions nor a horizon were given. Say how many frames to imagine: horizon=N.")
            return None, _positive_horizon(horizon)
        if actions.ndim != 3 or len(actions) != len(context):
            raise ShapeError(f"actions have shape {tuple(actions.shape)} for {len(context)} contexts; give (B, T, A).")
        count = actions.shape[1]
        horizon = _positive_horizon(count - t if horizon is None else horizon)
        if count != horizon and count < t - 1 + horizon:
            raise ShapeError(
                f"{count} actions are too few for {t} context frames and horizon {horizon}: give one a frame "
                f"({t + horizon}), or those from the last context frame on ({horizon})."
            )
        used = actions if count == horizon else actions[:, t - 1 : t - 1 + horizon]
        # Before any work is done; a session would find a fault only at its step.
        return self.transformer.require_actions(used, len(context), horizon), horizon


class Session:
    """An imagination under way; made by `WorldModel.start`. The key-value cache lives as long as it does.

    Each context is tokenized, prefilled and its features are decoded once; its branches share them.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: WorldModel,
        context: Tensor,
        branches: int,
        seed: Seed,
        horizon: int,
        sampling: SamplingConfig,
    ) -> None:
        if branches < 1:
            raise ShapeError(f"branches is {branches}; it must be at least 1.")
        if horizon > model.longest_horizon:
            raise ShapeError(
                f"a horizon of {horizon} frames exceeds the {model.longest_horizon} that fit into the model's "
                f"{model.transformer.config.max_positions} positions. Imagine fewer frames."
            )
        tokenizer, layout = model.tokenizer, model.transformer.layout
        frames = tokenizer.require_frames(context.to(model.device))
        if frames.shape[1] != layout.context_frames:
            raise ShapeError(
                f"{frames.shape[1]} context frames were given; this model takes exactly {layout.context_frames}. "
                "Give the newest ones."
            )
        model.eval()
        self.model, self.sampling, self.layout = model, sampling, layout
        self.contexts, self.branches, self.rows = len(frames), branches, len(frames) * branches
        self.horizon, self.frames_imagined = horizon, 0
        self._streams = RowStreams(_stream_keys(seed, self.contexts, branches))
        codes = tokenizer.encode_context(frames).codes
        self._context = tokenizer.decode_context(codes, pixels=False)
        self._cache = self._prefill(codes)
        self._unread: Tensor | None = None  # (rows,) last token sampled, not yet in the cache

    @torch.no_grad()
    def step(self, action: Tensor | None = None, *, decode: bool = True) -> Step:
        """Imagine the next frame of every row.

        Args:
            action: (rows, A) taken at the present frame, on the way to the next; None for none.
            decode: whether to make pixels; `decode` makes them later from the tokens.

        Raises:
            ShapeError: an action of the wrong shape or not finite (names the row), or the horizon is used up.
        """
        if self.frames_imagined == self.horizon:
            raise ShapeError(f"this session's horizon of {self.horizon} frames is used up. Start a new session.")
        transformer = self.model.transformer
        hidden = self._read(self._slot(action))
        uniform = self._streams.draw(self.layout.dynamics_tokens)
        sampled: list[Tensor] = []
        entropies: list[Tensor] = []
        for i in range(self.layout.dynamics_tokens):
            if i > 0:
                hidden = self._read(self._dynamics(sampled[-1], i - 1))
            code, entropy = sample(transformer.dynamics_logits(hidden), uniform[:, i], self.sampling)
            sampled.append(code + self.layout.dynamics_ids.start)
            entropies.append(entropy)
        self._unread = sampled[-1]
        reward = self._reward()
        self.frames_imagined += 1
        tokens = torch.stack(sampled, dim=1)
        frame = None
        if decode:
            frame = self.decode(tokens.view(self.contexts, self.branches, 1, -1)).flatten(0, 2)
        return Step(frame, reward, torch.stack(entropies, dim=1).mean(dim=1), tokens)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (B,K,F,M) of this session's contexts -> frames (B,K,F,3,R,R), float in [0,1]."""
        codes = tokens.flatten(1, 2) - self.layout.dynamics_ids.start  # every branch and frame of a context
        at_once = max(1, _FRAMES_DECODED_AT_ONCE // self.contexts)
        chunks = [self.model.tokenizer.decode_future(part, self._context) for part in codes.split(at_once, dim=1)]
        return torch.cat(chunks, dim=1).float().clamp(0, 1).unflatten(1, tokens.shape[1:3])

    def _prefill(self, codes: Tensor) -> KeyValueCache:
        """Read the context once a context, then lay out a row for each branch."""
        layout, transformer = self.layout, self.model.transformer
        no_future = codes.new_empty(self.contexts, 0, layout.dynamics_tokens)
        prefix = layout.assemble(codes, no_future)
        capacity = layout.prefix_length + layout.frame_length * self.horizon
        shared = transformer.new_cache(self.contexts, capacity if self.branches == 1 else layout.prefix_length)
        transformer.hidden_states(transformer.embed(prefix, None), shared)
        return shared if self.branches == 1 else shared.repeated(self.branches, capacity)

    def _slot(self, action: Tensor | None) -> Tensor:
        """Embedding (rows, 1, H) of the S2 slot with its action."""
        transformer = self.model.transformer
        slots = torch.full((self.rows, 1), self.layout.future_slot, device=self.model.device)
        slot = transformer.embed_tokens(slots, self.layout.future_slot_place)
        if action is None:
            return slot
        expected = (self.rows, transformer.config.action_dim)
        if transformer.action_in is not None and tuple(action.shape) != expected:
            raise ShapeError(f"action has shape {tuple(action.shape)}; this session takes (rows, A) = {expected}.")
        finite = torch.isfinite(action).all(dim=-1)
        if not finite.all():
            raise ShapeError(f"the action of row {int((~finite).nonzero()[0])} is not finite. Mend it and step again.")
        return slot + transformer.embed_actions(action.to(slot.device))[:, None].to(slot.dtype)

    def _dynamics(self, token: Tensor, number: int) -> Tensor:
        """Embedding (rows, 1, H) of token ids (rows,), the `number`-th of their frame."""
        return self.model.transformer.embed_tokens(token, self.layout.dynamics_places[number])[:, None]

    def _read(self, x: Tensor) -> Tensor:
        """Read embeddings (rows, n, H), after a token still unread; hidden state (rows, H) of the last one."""
        if self._unread is not None:
            x = torch.cat([self._dynamics(self._unread, -1), x], dim=1)
            self._unread = None
        return self.model.transformer.hidden_states(x, self._cache)[:, -1]

    def _reward(self) -> Tensor | None:
        """Reward (rows,) from the last token, which is read for it. Without a head it is read with the next slot."""
        transformer = self.model.transformer
        if transformer.reward_head is None or self._unread is None:
            return None
        last = self._dynamics(self._unread, -1)
        self._unread = None
        reward = transformer.rewards(self._read(last))
        assert reward is not None, "there is a reward head"
        return symexp(reward) if transformer.config.reward_symlog else reward


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(|x| + 1)`: squeezes rewards of any scale."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()


def _stream_keys(seed: Seed, contexts: int, branches: int) -> list[tuple[int, ...]]:
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, SupportsIndex):
        seed = operator.index(seed)
        firsts = [(seed, b) for b in range(contexts)]
    else:
        if len(seed) != contexts:
            raise ShapeError(f"{len(seed)} seeds for {contexts} contexts; give one int, or one int a context.")
        firsts = [(int(s), 0) for s in seed]
    if any(part < 0 for key in firsts for part in key):
        raise ShapeError(f"seed is {seed}; seeds must not be negative.")
    return [(*first, k) for first in firsts for k in range(branches)]


def _positive_horizon(horizon: int) -> int:
    if horizon < 1:
        raise ShapeError(f"the horizon is {horizon} frames; it must be at least 1.")
    return horizon
