"""What imagines: a session, a whole video, the memory that takes. Trained models do, and copies made for inference.

Shapes: B contexts, K branches (or samples) of each, rows = B*K ordered context by context, T frames, t context
frames, F future frames, A action size, R resolution.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ivideogpt.config import DataFacts, SamplingConfig
from ivideogpt.devices import Precision
from ivideogpt.errors import ShapeError
from ivideogpt.sequence import TokenLayout
from ivideogpt.session import Session
from ivideogpt.session.checks import Seed
from ivideogpt.session.memory import session_bytes
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer


class Rollout(NamedTuple):
    """Imagined videos."""

    video: Tensor
    """(B, K, T, 3, R, R) float in [0,1]: the context frames as given, then the imagined ones."""
    rewards: Tensor | None
    """(B, K, F) reward on arriving at each imagined frame; None without a reward head."""


class Imagines:
    """Begins sessions and imagines videos with a tokenizer and a transformer: `WorldModel` and `InferenceModel`."""

    tokenizer: CompressiveTokenizer
    """Frames to tokens and back."""
    transformer: VideoTransformer
    """Continues the tokens."""
    sampling: SamplingConfig
    """How tokens are drawn where nothing else is said."""

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.transformer.embedding.weight.device

    @property
    def layout(self) -> TokenLayout:
        """The layout of its token sequences."""
        return self.transformer.layout

    @property
    def facts(self) -> DataFacts:
        """What is known of the data it was trained on: step size, keys, what actions are."""
        return self.transformer.config.data

    def described(self) -> str:
        """The model in one line."""
        tokenizer, layout, config = self.tokenizer.config, self.layout, self.transformer.config
        count = sum(weight.numel() for part in (self.tokenizer, self.transformer) for weight in part.parameters())
        frames = f"{layout.context_frames} context frame{'s' if layout.context_frames > 1 else ''}"
        goal = ", the goal first" if layout.goal else ""
        takes = "no actions" if config.action_dim is None else f"actions of {config.action_dim}"
        steps = f" in steps of {self.facts.step_size} recorded frames" if (self.facts.step_size or 1) > 1 else ""
        return (
            f"{tokenizer.resolution} px, {frames}{goal}, {takes}{steps}, "
            f"{self.trained_horizon} future frames, {count / 1e6:.1f} M parameters, "
            f"{str(self.transformer.embedding.weight.dtype).removeprefix('torch.')} on {self.device}"
        )

    @property
    def longest_horizon(self) -> int:
        """Future frames that fit into the transformer's positions."""
        return (self.transformer.config.max_positions - self.layout.prefix_length) // self.layout.frame_length

    @property
    def trained_horizon(self) -> int:
        """Future frames of the segments it was trained on; `longest_horizon` where that is not known."""
        trained = self.transformer.config.trained_frames
        if trained is None:
            return self.longest_horizon
        return max(1, min(trained - self.layout.context_frames, self.longest_horizon))

    def eval(self) -> Self:
        """Into eval mode, in which everything that only imagines is."""
        return self

    def start(
        self,
        context: Tensor,
        branches: int = 1,
        seed: Seed = None,
        *,
        horizon: int | None = None,
        sampling: SamplingConfig | None = None,
        drafts: bool = True,
        states: Tensor | None = None,
    ) -> Session:
        """Begin to imagine from context frames. Puts a model that can learn into eval mode.

        Args:
            context: (B,t,3,R,R), uint8 or float in [0,1]; with a goal the goal frame comes first. Equal contexts are
                found and worked on once.
            branches: independent futures of each context, K; they share its tokenization, prefill and features.
            seed: decides every draw. An int: row k of context b has the stream (seed, b, k). B ints, one a context:
                context b has the streams of (seed[b], 0, k), whatever else is in the batch. None: a fresh one.
            horizon: frames imagined from one context, after which a row's newest t frames become its context;
                `trained_horizon` where left out. Memory is taken for as many.
            sampling: how tokens are drawn; the model's own way where left out.
            drafts: whether a single row may guess a frame's tokens from the frame before, where that turns out to be
                faster; but for rounding the tokens are the same.
            states: (B,t,S) states of the context frames, where the model has learned states; left out, they are read
                from the frames.

        Raises:
            ShapeError: frames, branches, seeds, states or horizon that do not fit.
            ConfigError: no states were given, and the tokenizer cannot read those that the model has learned.
            SessionError: more memory would be needed than is free.
        """
        horizon = self.trained_horizon if horizon is None else _positive_horizon(horizon)
        if horizon > self.longest_horizon:
            raise ShapeError(
                f"a horizon of {horizon} frames exceeds the {self.longest_horizon} that fit into the model's "
                f"{self.transformer.config.max_positions} positions. Leave it out: a session goes on beyond it."
            )
        self.eval()
        sampling = sampling or self.sampling
        parts = (self.tokenizer, self.transformer)
        return Session.begin(*parts, context, branches, seed, horizon, sampling, drafts, states)

    def session_bytes(
        self, contexts: int = 1, branches: int = 1, horizon: int | None = None, *, renewed: bool = False
    ) -> int:
        """Memory that a session holds, bytes.

        Args:
            contexts: different contexts.
            branches: futures of each.
            horizon: frames imagined from one context; `trained_horizon` where left out.
            renewed: whether every row has gone on from a context of its own, which is the most it will ever hold.
        """
        rows = contexts * branches
        horizon = self.trained_horizon if horizon is None else horizon
        return session_bytes(self.tokenizer, self.transformer, rows if renewed else contexts, rows, horizon)

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
        states: Tensor | None = None,
    ) -> Rollout:
        """Imagine whole videos.

        Args:
            context: (B,t,3,R,R), uint8 or float in [0,1].
            actions: (B,T,A) one action a frame, a_j taken at frame j (those before the last context frame and at the
                last frame are not used); with `horizon` also (B,F,A), the actions from the last context frame on.
                None where the model takes none.
            horizon: future frames F; from the actions where left out.
            samples: futures of each context, K.
            seed, sampling, states: as in `start`.

        Raises:
            ShapeError: shapes that do not fit each other or the model, or neither actions nor horizon.
        """
        future_actions, horizon = self._future_actions(context, actions, horizon)
        longest = min(horizon, self.trained_horizon)
        session = self.start(context, samples, seed, horizon=longest, sampling=sampling, states=states)
        given = (context.float() / 255 if context.dtype == torch.uint8 else context.float()).to(self.device)
        video = [given.repeat_interleave(samples, dim=0)]  # (B*K, T, 3, R, R)
        rewards = []
        for first in range(0, horizon, session.horizon):
            steps = []
            for j in range(first, min(first + session.horizon, horizon)):
                action = None if future_actions is None else future_actions[:, j].repeat_interleave(samples, dim=0)
                steps.append(session.step(action, decode=False))
            # Before the next step makes the newest frames the context.
            video.append(session.decode(torch.stack([step.tokens for step in steps], dim=1)))
            rewards += [step.reward for step in steps if step.reward is not None]
        together = torch.stack(rewards, dim=1).unflatten(0, (-1, samples)) if rewards else None
        return Rollout(torch.cat(video, dim=1).unflatten(0, (-1, samples)), together)

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


class InferenceModel(Imagines):
    """A world model that only imagines, faster: made by `WorldModel.for_inference`, from which it is apart.

    It is no module: there is nothing to train, save or move. Its parts are the model's, copied and rearranged.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        sampling: SamplingConfig,
        precision: Precision,
    ) -> None:
        self.tokenizer, self.transformer, self.sampling = tokenizer, transformer, sampling
        self.precision = precision
        """What it computes in."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.described()})"


def _positive_horizon(horizon: int) -> int:
    if horizon < 1:
        raise ShapeError(f"the horizon is {horizon} frames; it must be at least 1.")
    return horizon
