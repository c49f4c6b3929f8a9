"""Configurations of the trainings; every field is an option of a command."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from ivideogpt import hub
from ivideogpt.config import Config, LossWeights
from ivideogpt.errors import ConfigError
from ivideogpt.presets import PAPERS

Recipe: TypeAlias = Literal["paper", "nano"]


class TrainingConfig(Config):
    """What every training has in common (paper appendix A.2 and A.4)."""

    longest_default_warmup: ClassVar[int] = 500
    of_states: ClassVar[tuple[str, ...]] = ("state_key", "state_angles", "state_weight")
    """Fields that mean something only where states are learned."""

    data: Path
    """Folder of recorded episodes (.npz)."""
    out: Path
    """Run folder: checkpoints, logs, pictures, and `model/`, ready to load, renewed with every checkpoint."""
    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(16, ge=1)
    """Segments in one micro-batch."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches whose gradients are averaged for one optimizer step."""
    learning_rate: float = Field(5e-4, gt=0)
    """Highest learning rate."""
    warmup: int | None = Field(None, ge=0)
    """Steps of linear warm-up. Where left out 500, or a tenth of the steps if that is less."""
    schedule: Literal["constant", "cosine"] = "constant"
    """After the warm-up: constant, or a cosine that falls to zero over the other steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay; never on embeddings, norms and biases."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, the paper's, or muon, which learned the small models in fewer steps (benchmarks/README.md). A
    discriminator steps by AdamW either way."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of the moving average of the weights that is saved as the model; 0 saves the weights themselves."""
    augment: Literal["none", "standard", "strong"] = "none"
    """Random crop and colour jitter, one draw for the whole segment (paper appendix A.2)."""
    step_size: int = Field(1, ge=1)
    """Recorded frames from one frame of a segment to the next. The actions in between are kept: with k frames a
    transformer takes k actions in one step, oldest first."""
    camera_key: str = "image"
    """Name of the frames inside an episode file."""
    action_key: str = "action"
    """Name of the actions inside an episode file; row j is taken at frame j, on the way to frame j + 1."""
    action_shift: int = Field(0, ge=0)
    """How many rows late the actions are recorded: row j + N is what is done at frame j. 1 for data whose first row
    belongs to the reset, so that row j led to frame j. Kept with the model, for whatever reads such data later."""
    states: bool = False
    """Learn the episodes' states, too: poses of objects, joint angles, any numbers recorded beside every frame."""
    state_key: str = "state"
    """Name of the states inside an episode file."""
    state_angles: tuple[int, ...] | None = None
    """Columns of the states, counted from 0, that are angles in radians. Left out: what the episodes' metadata say
    under `state_angles`, else none."""
    state_weight: float = Field(1.0, ge=0)
    """Weight of the states' losses."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Decides initial weights, the batches and the dropout."""
    split_seed: int = Field(0, ge=0, lt=2**32)
    """Decides which episodes are held out for validation. Keep it where one training goes on from another."""
    workers: int = Field(0, ge=0)
    """Processes that prepare batches; 0 prepares them in the training process. The batches are the same."""
    cache_mb: int = Field(2048, ge=0)
    """Memory for episodes already read, MB, shared out among the workers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """bf16 runs matrix products and convolutions in bfloat16; auto does so where the hardware has it."""
    log_every: int | None = Field(None, ge=1)
    """Steps between two log entries. Left out: 50, or a twentieth of the steps if that is less."""
    validate_every: int = Field(500, ge=1)
    """Steps between two validations on held-out episodes, with sample pictures."""
    validation_batches: int = Field(4, ge=1)
    """Batches of one validation."""
    save_every: int = Field(500, ge=1)
    """Steps between two checkpoints."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept; older ones are removed."""
    max_minutes: float | None = Field(None, gt=0)
    """Stop after this many minutes, everything read and tokenized before the first step included; what was learned is
    saved, and `resume` goes on. The learning rate still follows `steps`. Left out: no limit."""
    resume: bool = False
    """Continue the run in `out` exactly where its last checkpoint stands."""
    overwrite: bool = False
    """Start afresh in a run folder that is not empty. The old run is removed; other files there are kept."""

    @model_validator(mode="after")
    def _check_resume(self) -> TrainingConfig:
        if self.resume and self.overwrite:
            raise ConfigError("resume and overwrite are both set; the one continues the run, the other removes it.")
        return self

    @model_validator(mode="after")
    def _check_states(self) -> TrainingConfig:
        for name in self.of_states:
            value = getattr(self, name)
            if not self.states and value != type(self).model_fields[name].default:
                raise ConfigError(f"{name} is {value!r}, but states is not set: no states are learned. Set states too.")
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up, the default worked out."""
        return min(self.longest_default_warmup, self.steps // 10) if self.warmup is None else self.warmup


class TokenizerTrainingConfig(TrainingConfig):
    """Training of the compressive tokenizer."""

    of_states = (*TrainingConfig.of_states, "withhold_states", "withhold_tokens", "residual_weight")

    preset: str | None = None
    """Tokenizer preset: nano-64, which is the default, oxe-64, oxe-256. Not together with `start_from`."""
    start_from: str | None = None
    """Fine-tune this model (folder, shipped model or Hub id) instead of starting from random weights."""
    recipe: Recipe | None = None
    """How it starts and what it minimizes. `paper`: attention from zero; L1, commitment and perceptual loss. `nano`,
    for small models: attention that starts near; without a perceptual loss moving and rare pixels weigh more, and
    the squared error and a loss on static patches are added. Left out: `paper` for the paper's presets, else
    `nano`."""
    context_frames: int | None = Field(None, ge=1)
    """Context frames; the preset's, or the fine-tuned model's, where left out."""
    quantizer: Literal["vq", "fsq"] | None = None
    """Quantizer; the preset's where left out."""
    attention_start: Literal["near", "zero"] | None = None
    """How a future frame's attention to the context frames starts: `near` looks at the same place and copies what is
    there; `zero`, the paper's, knows no places and takes very long to learn them. Left out: the recipe's for random
    weights, and as it was learned for a model to fine-tune."""
    future_frames: int = Field(6, ge=1)
    """Future frames in a segment, drawn at random from the rest of the horizon."""
    horizon: int = Field(16, ge=2)
    """Frames from which a segment is drawn."""
    goal: bool = False
    """Draw the context frames at random from the horizon too, as the goal-conditioned model needs."""
    motion_weight: float | None = Field(None, ge=0)
    """Extra weight of pixels that change within the segment, so that small moving things survive: a pixel that goes
    from black to white weighs 1 + this much. Left out: 6 in recipe nano without a perceptual loss, else 0."""
    mse_weight: float | None = Field(None, ge=0)
    """Weight of the squared error, with the same extra weight of moving pixels; L1 alone is slow to find thin shapes.
    Left out: 4 in recipe nano without a perceptual loss, else 0."""
    rarity_weight: float | None = Field(None, ge=0)
    """Extra weight of pixels whose colour is rare in the segment, so that small things survive where they pass over
    others. Left out: 8 in recipe nano without a perceptual loss, else 0."""
    static_weight: float | None = Field(None, ge=0)
    """Weight of the loss that gives patches that look as in the last context frame one code, which makes the tokens
    predictable. Left out: 0.1 in recipe nano without a perceptual loss, else 0."""
    withhold_states: float = Field(0.2, ge=0, le=1)
    """With `states`: share of the videos whose states are withheld from encoder and decoder, so that tokens learn to do
    without."""
    withhold_tokens: float = Field(0.5, ge=0, le=1)
    """With `states`: share of the other videos' frames whose tokens are withheld from the decoder, so that it learns to
    draw from states."""
    residual_weight: float = Field(0.02, ge=0)
    """With `states`: weight of the mean square of what becomes dynamics tokens where the state is known, so that they
    say only what the state does not."""
    prior_weight: float = Field(0.0, ge=0)
    """Weight of the error of a small causal prior that predicts the dynamics tokens from the context, the frame before
    and, with `states`, the state, so that the encoder learns codes that are easy to predict. 0 does without."""
    vgg16_weights: Path | None = None
    """torchvision VGG16 state dict for the perceptual loss (LPIPS); without it the perceptual loss is left out."""
    lpips_heads: Path | None = None
    """LPIPS heads for VGG16, from the lpips project."""
    perceptual_weight: float = Field(1.0, ge=0)
    """Weight of the perceptual loss."""
    revive_every: int = Field(100, ge=0)
    """vq only: codes that were not used in this many steps are moved onto encoder outputs; 0 never does."""
    freeze_codebooks: bool = False
    """vq only: leave both codebooks as they are."""
    gan: bool = False
    """Add the hinge GAN of the 256-pixel model."""
    gan_start: int = Field(250_000, ge=0)
    """First step of the GAN."""
    gan_weight: float = Field(0.8, ge=0)
    """Weight of the generator loss, times the adaptive weight."""

    @model_validator(mode="after")
    def _check_files(self) -> TokenizerTrainingConfig:
        if (self.vgg16_weights is None) != (self.lpips_heads is None):
            raise ConfigError("vgg16_weights and lpips_heads belong together: give both files, or neither.")
        return self

    @property
    def loss_weights(self) -> LossWeights:
        """`motion_weight`, `rarity_weight`, `mse_weight` and `static_weight`, decided where they were left out."""
        plain = recipe_of(self) == "paper" or self.vgg16_weights is not None
        usual = LossWeights() if plain else LossWeights(motion=6, rarity=8, mse=4, static=0.1)
        given = {name: getattr(self, f"{name}_weight") for name in LossWeights._fields}
        return usual._replace(**{name: value for name, value in given.items() if value is not None})


class TransformerTrainingConfig(TrainingConfig):
    """Training of the transformer on the tokens of a frozen tokenizer."""

    longest_default_warmup: ClassVar[int] = 5_000
    of_states = (*TrainingConfig.of_states, "state_noise", "state_transitions")

    tokenizer: str | None = None
    """Tokenizer to use: a training run, a model folder, a shipped model or a Hub id. Left out: that of `start_from`."""
    preset: str | None = None
    """Transformer preset: nano, which is the default, small, medium. Not together with `start_from`."""
    start_from: str | None = None
    """Fine-tune this model's transformer instead of starting from random weights. An action input or reward head that
    it lacks is added."""
    recipe: Recipe | None = None
    """How random weights start: `paper`, plain random ones; `nano`, codes that look alike start alike. Left out:
    `paper` for the paper's presets, else `nano`."""
    segment_frames: int = Field(16, ge=2)
    """Frames of a segment, context included."""
    goal: bool = False
    """Goal-conditioned prediction: the segment's last frame is also put first."""
    actions: bool = True
    """Whether the episodes' actions steer the prediction; --no-actions trains an action-free model."""
    rewards: bool = False
    """Predict rewards, too; the episodes must have them."""
    reward_symlog: bool = False
    """Train the reward head on symlog(reward)."""
    action_limit: float | None = Field(None, gt=0)
    """Largest size of an action's component, kept with the model, which then refuses larger ones. Left out: that of
    the model it starts from, else any."""
    attention_dropout: float | None = Field(None, ge=0, lt=1)
    """Attention dropout; the preset's where left out."""
    learning_rate: float = Field(1e-4, gt=0)
    """Highest learning rate."""
    warmup: int | None = Field(None, ge=0)
    """Steps of linear warm-up. Where left out 5,000, or a tenth of the steps if that is less."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """After the warm-up: constant, or a cosine that falls to zero over the other steps."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay; never on embeddings, norms and biases."""
    state_noise: float = Field(0.02, ge=0)
    """Largest noise on the states from which the next one is learned, standard deviations: what reading states from
    frames, and a long rollout, leave uncertain. Every transition draws its own size up to this."""
    state_transitions: int = Field(1024, ge=1)
    """Transitions of states, from all training episodes, that each step learns from beside its segments."""
    cache_tokens: int = Field(0, ge=0)
    """Tokenize this many training segments once and reuse them, instead of tokenizing every batch; 0 never does.
    Only without augmentation."""
    temperature: float = Field(1.0, ge=0)
    """Sampling temperature written into the saved model."""
    top_k: int = Field(100, ge=0)
    """Sampling top-k written into the saved model; 0 for all."""

    @property
    def tokenizer_name(self) -> str:
        """`tokenizer`, or that of `start_from`.

        Raises:
            ConfigError: neither was given.
        """
        name = self.tokenizer or self.start_from
        if name is None:
            raise ConfigError(
                "no tokenizer is named: a transformer learns the tokens of one. Train one on these episodes first "
                "(ivideogpt train tokenizer) and pass its run with --tokenizer, or take that of a model: "
                f"{', '.join(hub.shipped_models())}."
            )
        return name

    @model_validator(mode="after")
    def _check_transformer(self) -> TransformerTrainingConfig:
        if self.reward_symlog and not self.rewards:
            raise ConfigError("reward_symlog is set, but rewards is not: there is no reward head to train. Set both.")
        if self.cache_tokens and self.augment != "none":
            raise ConfigError(
                f"cache_tokens is {self.cache_tokens} with augmentation {self.augment!r}; cached tokens are those of "
                "one fixed picture. Set augment to none, or cache_tokens to 0."
            )
        return self


def recipe_of(config: TokenizerTrainingConfig | TransformerTrainingConfig) -> Recipe:
    """The recipe asked for, else that of the preset."""
    return config.recipe or ("paper" if config.preset in PAPERS else "nano")
