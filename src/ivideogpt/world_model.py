"""The world model: a tokenizer and a transformer that imagine together, one action and one frame at a time.

Shapes: B contexts, K branches (or samples) of each, rows = B*K ordered context by context, T frames, t context
frames, F future frames, A action size, M dynamics tokens a frame, R resolution.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import SamplingConfig
from ivideogpt.devices import Precision, choose_device, device_name, wants_bf16
from ivideogpt.errors import CheckpointError, ConfigError, ShapeError, unknown_name
from ivideogpt.session import Session
from ivideogpt.session.beginning import Seed
from ivideogpt.session.state import bytes_needed
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.int8 import can_convolve_in_int8
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.int8 import can_multiply_in_int8
from ivideogpt.tuning import fastest

_STEPS_TIMED = 2


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
        ConfigError: the two parts do not have the same token layout, or have learned states of different sizes.
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
        sizes = [part.config.state.size for part in (tokenizer, transformer) if part.config.state is not None]
        if len(set(sizes)) > 1:
            raise ConfigError(
                f"the tokenizer has learned states of {sizes[0]} numbers, the transformer of {sizes[1]}. "
                "Train the transformer on this tokenizer and the same states, or load the one it was trained on."
            )
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.sampling = sampling or SamplingConfig()
        self.precision: Precision | None = None
        """How this copy was prepared for imagining; None for a model that was not."""
        self.choice: str | None = None
        """What `prepared("auto")` measured and chose."""
        self.eval()

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
    ) -> Self:
        """Load a shipped model, a local folder (native or official layout) or a Hub id.

        Args:
            name: for example `"pusht-64"`.
            device: where it runs: cpu, cuda, cuda:n or auto.
            dtype: precision of the weights, but for those that know states; float32 where left out.

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
        exact = [copy.deepcopy(part.states) for part in (tokenizer, transformer)]
        model = cls(tokenizer, transformer, found.sampling).to(device=device, dtype=dtype)
        for part, states in zip((tokenizer, transformer), exact, strict=True):
            if states is not None:  # in float32: a rounded position would be off by a tenth of a pixel
                part.states = states.to(device)
        return model

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
        if self.precision is not None:
            raise CheckpointError("a model prepared for imagining cannot be saved. Save the one it was made from.")
        parts = [dict(self.tokenizer.state_dict()), dict(self.transformer.state_dict())]
        if dtype is not None:
            parts = [hub.as_dtype(part, dtype) for part in parts]
        checkpoint = hub.Checkpoint(
            tokenizer=(self.tokenizer.config, parts[0]),
            transformer=(self.transformer.config, parts[1]),
            sampling=self.sampling,
        )
        return hub.save(folder, checkpoint, layout=layout, overwrite=overwrite)

    def prepared(
        self,
        precision: Precision | Literal["auto"] = "auto",
        *,
        calibration: Tensor | None = None,
        compiled: bool = False,
    ) -> WorldModel:
        """A copy made for imagining, faster or in less memory. It cannot be trained, saved, copied or moved.

        On CPUs a bf16 copy holds the transformer's weights twice, the second time as oneDNN multiplies them.

        Args:
            precision: `"float32"`; `"bf16"`; `"int8"`, where the transformer's layers have 8-bit weights and the rest
                is bf16; `"w8a8"`, on CPUs, where the transformer's layers and most convolutions of the decoder of
                future frames multiply 8-bit weights with 8-bit activations, the rest of the transformer, its cache
                included, is float32, and that of the tokenizer bf16; or `"auto"`, the fastest of those that the
                hardware has, measured when first asked for and then remembered (`choice` says what was measured).
                benchmarks/README.md has what they cost in quality.
            calibration: for w8a8, videos (B,T,3,R,R) of at least t frames, uint8 or float in [0,1], like those that
                will be imagined: the convolutions' 8 bits are laid over the values that they take. Left out, these
                are guessed from random patterns, and `"auto"` leaves w8a8 out. Not used in other precisions.
            compiled: whether steps of one token run through `torch.compile`, on a GPU as CUDA graphs; where that fails
                there is a warning, and they run as they are. `"auto"` tries that too on a GPU.

        Raises:
            ConfigError: another precision, w8a8 where the hardware lacks it, or the model is prepared already.
            ShapeError: calibration videos of another shape, type or range.
        """
        names = (*get_args(Precision), "auto")
        if precision not in names:
            raise ConfigError(unknown_name("precision", precision, names))
        if self.precision is not None:
            raise ConfigError("this model is prepared for imagining already. Prepare the one it was made from.")
        if calibration is not None:
            calibration = self._require_videos(calibration)
        if precision == "auto":
            return self._fastest(calibration, compiled)
        if precision == "w8a8" and "w8a8" not in (available := precisions_on(self.device)):
            raise ConfigError(
                "w8a8 needs a CPU that multiplies 8-bit numbers (AVX512-VNNI) and bf16, and a PyTorch that lets it. "
                f"Available on this {self.device.type}: {', '.join(available)}."
            )
        transformer = self.transformer.prepared(precision, compiled=compiled)
        other = WorldModel(self.tokenizer.prepared(precision, calibration), transformer, self.sampling)
        other.precision = precision
        return other

    def _require_videos(self, videos: Tensor) -> Tensor:
        """Check calibration videos and bring them to the model's device; they are not empty."""
        if not isinstance(videos, Tensor):
            raise ShapeError(f"calibration is a {type(videos).__name__}; give a torch tensor: torch.as_tensor(videos).")
        videos = self.tokenizer.require_frames(videos.to(self.device))
        if len(videos) == 0:
            raise ShapeError("0 calibration videos were given; give at least one, or leave calibration out.")
        return videos

    def _fastest(self, calibration: Tensor | None, compiled: bool) -> WorldModel:
        precisions = [name for name in precisions_on(self.device) if name != "w8a8" or calibration is not None]
        ways = {f"{name}, compiled" if compiled else name: (name, compiled) for name in precisions}
        if self.device.type == "cuda":
            ways |= {f"{name}, compiled": (name, True) for name in precisions}
        config = (self.tokenizer.config.model_dump_json(), self.transformer.config.model_dump_json())
        key = f"{device_name(self.device)}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, {config}"
        timed = {
            name: partial(self._steps_to_time, precision, compile_steps)
            for name, (precision, compile_steps) in ways.items()
        }
        choice = fastest(hashlib.sha256(key.encode()).hexdigest(), timed)
        precision, compile_steps = ways[choice.name]
        other = self.prepared(precision, calibration=calibration, compiled=compile_steps)
        other.choice = str(choice)
        return other

    def _steps_to_time(self, precision: Precision, compiled: bool) -> Callable[[], object]:
        """A few steps of a session of one row."""
        config = self.tokenizer.config
        context = torch.zeros(1, config.context_frames, 3, config.resolution, config.resolution)
        session = self.prepared(precision, compiled=compiled).start(context, seed=0, drafts=False)

        def work() -> None:
            for _ in range(_STEPS_TIMED):
                step = session.step()
            step.entropy.sum().item()  # waits for a GPU

        return work

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        return self.transformer.embedding.weight.device

    @property
    def longest_horizon(self) -> int:
        """Future frames that fit into the transformer's positions."""
        layout = self.transformer.layout
        return (self.transformer.config.max_positions - layout.prefix_length) // layout.frame_length

    @property
    def trained_horizon(self) -> int:
        """Future frames of the segments it was trained on; `longest_horizon` where that is not known."""
        trained = self.transformer.config.trained_frames
        if trained is None:
            return self.longest_horizon
        return max(1, min(trained - self.transformer.layout.context_frames, self.longest_horizon))

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
        """Begin to imagine from context frames. Puts the model into eval mode.

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
        return bytes_needed(self.tokenizer, self.transformer, rows if renewed else contexts, rows, horizon)

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


def precisions_on(device: torch.device) -> list[Precision]:
    """What `WorldModel.prepared` offers on a device.

    That is float32; bf16 and int8 where the hardware multiplies bf16; and w8a8 on CPUs that multiply 8-bit numbers too.
    """
    if not wants_bf16("auto", device):
        return ["float32"]
    if device.type == "cpu" and can_multiply_in_int8() and can_convolve_in_int8():
        return ["float32", "bf16", "int8", "w8a8"]
    return ["float32", "bf16", "int8"]


def _positive_horizon(horizon: int) -> int:
    if horizon < 1:
        raise ShapeError(f"the horizon is {horizon} frames; it must be at least 1.")
    return horizon
