"""Typed, validated configurations. They are frozen, refuse unknown fields, and say value, rule and cure."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ivideogpt.errors import ConfigError, unknown_name
from ivideogpt.sequence import TokenLayout


class Config(BaseModel):
    """Base of all configurations: frozen, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def checked(cls, **fields: Any) -> Self:
        """The configuration with these fields; its refusal is a `ConfigError`, where pydantic's is not an `InputError`.

        Raises:
            ConfigError: names the first field refused, the value given and the rule.
        """
        try:
            return cls(**fields)
        except ValidationError as refusal:
            first = refusal.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise ConfigError(unknown_name("field", field, cls.model_fields)) from refusal
            if first["type"] == "value_error":
                raise ConfigError(str(first["ctx"]["error"])) from refusal
            raise ConfigError(f"{field} is {first['input']!r}: {first['msg']}.") from refusal


class StateConfig(Config):
    """What the columns of a state mean, and how they become features of about unit size (`states.py`).

    A state is any row of S numbers about a frame: poses, joint angles, contacts.
    """

    names: tuple[str, ...] = ()
    """Name of each column; empty where the columns have none."""
    angles: tuple[int, ...] = ()
    """Columns that are angles in radians, rising; such a column becomes its cosine and its sine."""
    mean: tuple[float, ...] = Field(min_length=1)
    """Mean of each column; not used for an angle."""
    std: tuple[float, ...]
    """Standard deviation of each column; not used for an angle."""
    change: tuple[float, ...]
    """Root mean square of what each column changes in one step, radians for an angle."""

    @model_validator(mode="after")
    def _check(self) -> StateConfig:
        counts = (len(self.std), len(self.change))
        if counts != (self.size, self.size) or len(self.names) not in (0, self.size):
            raise ConfigError(
                f"a state has {self.size} means, {counts[0]} standard deviations, {counts[1]} changes and "
                f"{len(self.names)} names; give one of each for every column, or no names at all."
            )
        if not all(math.isfinite(value) for value in self.mean):
            raise ConfigError(f"mean is {self.mean}; the means of a state must be finite.")
        for name in ("std", "change"):
            if not all(math.isfinite(value) and value > 0 for value in getattr(self, name)):
                raise ConfigError(f"{name} is {getattr(self, name)}; the values must be finite and above 0.")
        if len(set(self.names)) < len(self.names):
            raise ConfigError(f"names is {self.names}; no two columns of a state may have one name.")
        if list(self.angles) != sorted({column for column in self.angles if 0 <= column < self.size}):
            raise ConfigError(
                f"angles is {self.angles}; they must be columns of the state, 0..{self.size - 1}, rising, each once."
            )
        return self

    @property
    def size(self) -> int:
        """Columns S of a state."""
        return len(self.mean)

    @property
    def features(self) -> int:
        """Features D that a state becomes: a column each, but two for an angle."""
        return self.size + len(self.angles)


class TokenizerConfig(Config):
    """Shape of the compressive tokenizer (paper section 3.1 and appendix A.1)."""

    resolution: int = Field(64, ge=8)
    """Height and width of a frame, pixels."""
    stem_stride: int = Field(1, ge=1)
    """Pixels folded into channels before the first convolution, along each axis. 1 is the paper's stem; 2 does away
    with the convolutions at full resolution, which are most of the cost of a small model."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field((128, 256, 512), min_length=1)
    """Channels of each level, finest first."""
    layers: int = Field(2, ge=1, le=1000)
    """Residual blocks a level in the encoder; the decoder has one more."""
    latent_channels: int = Field(64, ge=1)
    """Channels of the latent map, and width of the paper's codebooks."""
    attention_resolution: int = Field(16, ge=1)
    """Feature maps of this size and smaller attend to the context frames."""
    attention_heads: int = Field(4, ge=1)
    """Heads of the cross-attention."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the cross-attention, on weights and output."""
    patch_size: int = Field(4, ge=1)
    """Side of the latent patch that becomes one dynamics token."""
    context_frames: int = Field(2, ge=1)
    """Context frames, t."""
    norm_groups: int = Field(32, ge=1)
    """Groups of every group normalisation."""
    context_mid_attention: bool = False
    """Self-attention in the middle of the context pair."""
    prediction_mid_attention: bool = True
    """Self-attention in the middle of the prediction pair."""
    quantizer: Literal["vq", "fsq"] = "vq"
    """vq: the paper's learned codebooks. fsq: finite scalar quantization, whose codes cannot die."""
    context_codes: int = Field(8192, ge=2)
    """Size of the context codebook, Kc. With fsq it is the product of `context_levels`."""
    dynamics_codes: int = Field(8192, ge=2)
    """Size of the dynamics codebook, Kd. With fsq it is the product of `dynamics_levels`."""
    context_levels: tuple[int, ...] = ()
    """fsq only: levels of each latent dimension of a context token."""
    dynamics_levels: tuple[int, ...] = ()
    """fsq only: levels of each latent dimension of a dynamics token."""
    state: StateConfig | None = None
    """The state that is read off a frame's codes; None: no state."""

    @model_validator(mode="after")
    def _check(self) -> TokenizerConfig:
        fold = self.stem_stride * 2 ** (len(self.widths) - 1)
        if self.resolution % (fold * self.patch_size):
            raise ConfigError(
                f"resolution is {self.resolution}; it must be a multiple of {fold * self.patch_size} "
                f"(stem_stride {self.stem_stride} x 2^(levels - 1) x patch_size {self.patch_size})."
            )
        for width in self.widths:
            if width % self.norm_groups or width % self.attention_heads:
                raise ConfigError(
                    f"width {width} must be a multiple of norm_groups ({self.norm_groups}) "
                    f"and of attention_heads ({self.attention_heads})."
                )
        if self.latent_size > self.attention_resolution:
            raise ConfigError(
                f"attention_resolution is {self.attention_resolution}; it must be at least the latent map's side, "
                f"{self.latent_size}, or no layer would see the context."
            )
        self._check_levels("context", self.context_levels, self.context_codes)
        self._check_levels("dynamics", self.dynamics_levels, self.dynamics_codes)
        return self

    def _check_levels(self, name: str, levels: tuple[int, ...], codes: int) -> None:
        if self.quantizer == "vq":
            if levels:
                raise ConfigError(f"{name}_levels is {levels}; levels belong to quantizer 'fsq', not 'vq'.")
            return
        if not levels or min(levels) < 2:
            raise ConfigError(f"{name}_levels is {levels}; fsq needs at least one level of 2 or more, e.g. 8,5,5,5.")
        if math.prod(levels) != codes:
            raise ConfigError(
                f"{name}_codes is {codes}; with {name}_levels {levels} it must be their product, {math.prod(levels)}."
            )

    @property
    def latent_size(self) -> int:
        """Side of the latent map."""
        return self.resolution // (self.stem_stride * 2 ** (len(self.widths) - 1))

    @property
    def layout(self) -> TokenLayout:
        """The token layout that this tokenizer writes."""
        return TokenLayout(
            context_frames=self.context_frames,
            context_tokens=self.latent_size**2,
            dynamics_tokens=(self.latent_size // self.patch_size) ** 2,
            context_codes=self.context_codes,
            dynamics_codes=self.dynamics_codes,
        )


class DataFacts(Config):
    """What the data were that a model was trained on; what is not known is None or empty.

    What is said of actions is said of single recorded actions, also where a step takes a block of k.
    """

    environment: str | None = None
    """Simulator that recorded the episodes, as their metadata name it."""
    step_size: int | None = Field(None, ge=1)
    """Recorded frames k from one frame of the model to the next; a step takes k actions. None counts as 1."""
    frame_rate: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Recorded frames a second."""
    camera_key: str | None = None
    """Key of the frames in an episode file."""
    action_key: str | None = None
    """Key of the actions in an episode file."""
    action_shift: int | None = Field(None, ge=0)
    """How many rows late the actions are in an episode file; None counts as 0."""
    state_key: str | None = None
    """Key of the states in an episode file."""
    action_names: tuple[str, ...] = ()
    """Name of each of the A components."""
    action_low: tuple[float, ...] = ()
    """Least value that each component may have."""
    action_high: tuple[float, ...] = ()
    """Largest value that each component may have."""
    action_mean: tuple[float, ...] = ()
    """Mean of each component in the training episodes."""
    action_std: tuple[float, ...] = ()
    """Standard deviation of each component in the training episodes."""
    action_min: tuple[float, ...] = ()
    """Least value of each component in the training episodes."""
    action_max: tuple[float, ...] = ()
    """Largest value of each component in the training episodes."""

    @model_validator(mode="after")
    def _check(self) -> DataFacts:
        sizes = {name: len(getattr(self, name)) for name in _OF_ACTIONS if getattr(self, name)}
        if len(set(sizes.values())) > 1:
            raise ConfigError(f"facts on actions have different lengths, {sizes}; give one value a component.")
        for low, high in (("action_low", "action_high"), ("action_min", "action_max")):
            lows, highs = getattr(self, low), getattr(self, high)
            if bool(lows) != bool(highs):
                raise ConfigError(f"{low} is {lows} and {high} is {highs}; give both or neither.")
            if not all(math.isfinite(a) and math.isfinite(b) and a <= b for a, b in zip(lows, highs, strict=True)):
                raise ConfigError(f"{low} is {lows} and {high} is {highs}; they must be finite, and rise.")
        if not all(math.isfinite(value) for value in (*self.action_mean, *self.action_std)):
            raise ConfigError(f"action_mean is {self.action_mean} and action_std {self.action_std}; give finite ones.")
        return self

    @property
    def action_size(self) -> int | None:
        """Components A of a single recorded action; None where not known."""
        return next((len(getattr(self, name)) for name in _OF_ACTIONS if getattr(self, name)), None)

    def steps_of(self, given: int | None) -> int:
        """The step size to use: the model's own, which a given one may only confirm or, where unknown, supply.

        Raises:
            ConfigError: both are known and differ, or the one given is below 1.
        """
        if given is not None and given < 1:
            raise ConfigError(f"step_size is {given}; it must be at least 1.")
        if None not in (given, self.step_size) and given != self.step_size:
            raise ConfigError(
                f"step_size is {given}, but this model was trained with step size {self.step_size}. Leave it out, or "
                "take a model of that step size."
            )
        return given or self.step_size or 1

    def updated(self, newer: DataFacts) -> DataFacts:
        """These facts after training on other data: what is known of those replaces what was known before."""
        kept = self.model_dump(exclude={"environment"})
        if newer.action_size not in (None, self.action_size):
            kept = {name: value for name, value in kept.items() if name not in _OF_ACTIONS}
        return DataFacts.checked(**kept | {name: value for name, value in newer if value not in (None, ())})


_OF_ACTIONS = ("action_names", "action_low", "action_high", "action_mean", "action_std", "action_min", "action_max")


class TransformerConfig(Config):
    """Shape of the LLaMA-style transformer (paper section 3.1; facts of the published checkpoints)."""

    layers: int = Field(12, ge=1, le=1000)
    """Decoder layers."""
    heads: int = Field(12, ge=1)
    """Attention heads."""
    hidden: int = Field(768, ge=2)
    """Hidden size."""
    feed_forward: int = Field(3072, ge=1)
    """Inner size of the SwiGLU feed-forward."""
    layout: TokenLayout = TokenLayout()
    """The token layout that this transformer continues."""
    max_positions: int = Field(1024, ge=1)
    """Longest sequence, tokens."""
    rope_base: float = Field(10_000.0, gt=0)
    """Base of the rotary position embedding."""
    norm_eps: float = Field(1e-6, gt=0)
    """Epsilon of the RMS normalisation."""
    trained_frames: int | None = Field(None, ge=2)
    """Frames T of the sequences it was trained on, context included: further than that a session does not imagine from
    one context. None: as far as the positions reach."""
    action_limit: float | None = Field(None, gt=0)
    """Largest size of an action's component; larger ones are refused. None: any."""
    place_embedding: bool = False
    """Whether every token also gets a learned embedding of its place within its frame. The paper's model has none: it
    must work out from rotary positions, which tell distances in the sequence, which tokens lie at the same spot of
    context and future grids, and a small model has little to do that with."""
    attention_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on attention weights in training."""
    action_dim: int | None = Field(None, ge=1)
    """Action size A, of a whole block where a step takes several actions; None: no action input."""
    reward: bool = False
    """Whether a reward is predicted on arriving at each future frame."""
    reward_symlog: bool = False
    """Whether the reward head was trained on symlog(reward); predictions are then given back in reward units."""
    reward_mean: float = Field(0.0, allow_inf_nan=False)
    """The reward that an output of 0 of the reward head stands for, on the symlog scale where that is used."""
    reward_std: float = Field(1.0, gt=0, allow_inf_nan=False)
    """How much an output of 1 of the reward head adds to `reward_mean`."""
    state: StateConfig | None = None
    """The state that is predicted for each future frame; None: no state."""
    data: DataFacts = DataFacts()
    """What it was trained on."""

    @model_validator(mode="after")
    def _check(self) -> TransformerConfig:
        size, steps = self.data.action_size, self.data.step_size or 1
        if self.action_dim is not None and size is not None and self.action_dim != steps * size:
            raise ConfigError(
                f"action_dim is {self.action_dim}, but the facts on the data say {size} components with step size "
                f"{steps}, which makes {steps * size}. Give the facts of the data that the model was trained on."
            )
        if self.hidden % self.heads or (self.hidden // self.heads) % 2:
            raise ConfigError(
                f"hidden is {self.hidden} with {self.heads} heads; each head needs an equal, even number of channels."
            )
        if self.layout.length(self.layout.context_frames + 1) > self.max_positions:
            raise ConfigError(
                f"max_positions is {self.max_positions}; the context and one future frame already take "
                f"{self.layout.length(self.layout.context_frames + 1)}."
            )
        return self


class SamplingConfig(Config):
    """How the next token is drawn."""

    temperature: float = Field(1.0, ge=0)
    """Divides the logits; 0 takes the most likely token."""
    top_k: int = Field(100, ge=0)
    """Only the k most likely tokens are drawn; 0 for all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Only the most likely tokens that make up this share of the probability are drawn, after top-k; 1 for all."""


class LossWeights(NamedTuple):
    """What is added to the paper's plain L1: by default only where there is no perceptual loss."""

    motion: float = 0.0
    """Extra weight of pixels that change within the segment."""
    rarity: float = 0.0
    """Extra weight of pixels whose colour is rare in the segment."""
    mse: float = 0.0
    """Weight of the squared error beside the L1."""
    static: float = 0.0
    """Weight of the loss that gives unchanged patches one code."""
