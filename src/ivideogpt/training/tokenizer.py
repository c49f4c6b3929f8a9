"""How the tokenizer learns: reconstruction, commitment, perceptual loss, an optional GAN, and dead codes.

Shapes: B videos, T frames, t context frames, F future frames.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt import hub
from ivideogpt.config import StateConfig, TokenizerConfig
from ivideogpt.data.loader import Batch
from ivideogpt.errors import ConfigError
from ivideogpt.presets import tokenizer_preset
from ivideogpt.states import encode_states
from ivideogpt.tokenizer import CompressiveTokenizer, Reconstruction
from ivideogpt.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)
from ivideogpt.tokenizer.losses import perceptual_losses, reconstruction_losses, state_losses, static_patch_loss
from ivideogpt.tokenizer.perceptual import LPIPS
from ivideogpt.tokenizer.quantizer import VectorQuantizer
from ivideogpt.tokenizer.states import ShownStates
from ivideogpt.training import checkpoint
from ivideogpt.training.codes import CodeCounter
from ivideogpt.training.config import TokenizerTrainingConfig, recipe_of
from ivideogpt.training.loop import Rows, require_one_start
from ivideogpt.training.optimizer import learning_rate
from ivideogpt.training.pictures import labelled_rows
from ivideogpt.training.prior import TokenPrior, prior_loss
from ivideogpt.training.states import kept_state
from ivideogpt.weights import load_weights

_DEFAULT_PRESET = "nano-64"
_PICTURE_ROWS = 4


def make_tokenizer(config: TokenizerTrainingConfig, state: StateConfig | None = None) -> CompressiveTokenizer:
    """The tokenizer that a training starts from: a preset with random weights, or a model to fine-tune.

    Args:
        config: see `TokenizerTrainingConfig`.
        state: what the states of the data are; None learns none. A model to fine-tune keeps those it has learned.

    Raises:
        ConfigError: unknown preset, a preset and a model to fine-tune, or another quantizer or state than the model's.
        CheckpointError: the model to fine-tune cannot be loaded.
    """
    require_one_start(config.preset, config.start_from)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        make = _random_tokenizer if config.start_from is None else _learned_tokenizer
        tokenizer = make(config, state)
        usual = "near" if recipe_of(config) == "nano" else "zero"
        start = config.attention_start or (usual if config.start_from is None else None)
        if start is not None:
            tokenizer.start_attention(near=start == "near")
    return tokenizer


def _learned_tokenizer(config: TokenizerTrainingConfig, state: StateConfig | None) -> CompressiveTokenizer:
    assert config.start_from is not None, "there is a model to fine-tune"
    tokenizer = CompressiveTokenizer.from_pretrained(config.start_from)
    if config.quantizer not in (None, tokenizer.config.quantizer):
        raise ConfigError(
            f"quantizer is {config.quantizer!r}; the model {config.start_from} has {tokenizer.config.quantizer!r}, "
            "and fine-tuning keeps it. Leave quantizer out, or start from random weights."
        )
    tokenizer = _with_state(tokenizer, kept_state(tokenizer.config.state, state, config, config.start_from))
    wanted = config.context_frames or tokenizer.config.context_frames
    return tokenizer if wanted == tokenizer.config.context_frames else tokenizer.with_context_frames(wanted)


def _with_state(tokenizer: CompressiveTokenizer, state: StateConfig | None) -> CompressiveTokenizer:
    """The same tokenizer, with random weights for what it lacks to tell the state."""
    if state == tokenizer.config.state:
        return tokenizer
    other = CompressiveTokenizer(TokenizerConfig.checked(**{**dict(tokenizer.config), "state": state}))
    load_weights(other, {**other.state_dict(), **tokenizer.state_dict()}, where="a tokenizer without states")
    return other.train(tokenizer.training)


def _random_tokenizer(config: TokenizerTrainingConfig, state: StateConfig | None) -> CompressiveTokenizer:
    preset, changes = config.preset or _DEFAULT_PRESET, dict[str, object](state=state)
    if config.context_frames is not None:
        changes["context_frames"] = config.context_frames
    if config.quantizer is not None and config.quantizer != tokenizer_preset(preset).quantizer:
        changes |= _QUANTIZERS[config.quantizer]
    return CompressiveTokenizer.from_preset(preset, **changes)


_QUANTIZERS: dict[str, dict[str, object]] = {
    "vq": {"quantizer": "vq", "context_levels": (), "dynamics_levels": ()},
    "fsq": {
        "quantizer": "fsq",
        "context_codes": 1024,
        "dynamics_codes": 4096,
        "context_levels": (4,) * 5,
        "dynamics_levels": (4,) * 6,
    },
}


class Adversary(NamedTuple):
    """The discriminator and its own optimizer."""

    model: PatchDiscriminator
    optimizer: torch.optim.AdamW


class Prior(NamedTuple):
    """The prior that makes tokens predictable, and its own optimizer."""

    model: TokenPrior
    optimizer: torch.optim.AdamW


class TokenizerLearner:
    """The tokenizer and how it learns (paper equation 2; see `training.loop.Learner`)."""

    def __init__(
        self, model: CompressiveTokenizer, config: TokenizerTrainingConfig, device: torch.device, bf16: bool
    ) -> None:
        self.model = model.to(device)
        self.config, self.device, self.bf16 = config, device, bf16
        self.lpips = None
        if config.vgg16_weights is not None and config.lpips_heads is not None:
            self.lpips = LPIPS.from_files(config.vgg16_weights, config.lpips_heads).to(device)
        self.adversary = _make_adversary(config, device) if config.gan else None
        if config.gan and self.lpips is None:
            raise ConfigError(
                "gan is set, but its adaptive weight is measured against the perceptual loss, which has no weights. "
                "Give vgg16_weights and lpips_heads."
            )
        self._require_large_enough_frames()
        self.prior = _make_prior(model, config, device) if config.prior_weight else None
        self.counters = {
            "context": CodeCounter(model.config.context_codes, device),
            "dynamics": CodeCounter(model.config.dynamics_codes, device),
        }
        if config.freeze_codebooks:
            self._freeze_codebooks()
        self._made: list[tuple[Tensor, Tensor]] = []  # of each micro-batch: frames made, and the real ones
        self._last: Reconstruction | None = None

    def losses(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Named losses of a batch of videos."""
        frames = batch.frames.float() / 255
        features = self._features(batch)
        shown, dropped = None, None
        if features is not None:
            shown, dropped = self._what_is_told(features[:, self.model.config.context_frames :])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output = self.model(frames, shown, dropped)
        losses = reconstruction_losses(output, frames, batch.mask, self.config.loss_weights)
        if self.config.loss_weights.static:
            losses["static"] = self.config.loss_weights.static * static_patch_loss(output, frames, batch.mask)
        t = output.context.shape[1]
        if features is not None and shown is not None and shown.known is not None:
            states = state_losses(output, features, batch.mask, shown.known)
            weights = {"residual": self.config.residual_weight}
            losses |= {name: weights.get(name, self.config.state_weight) * loss for name, loss in states.items()}
        if self.prior is not None:
            future = None if features is None else features[:, t:]
            context, vectors = output.context_quantized[:, -1], output.dynamics_quantized
            loss = prior_loss(self.prior.model, context, vectors, future, batch.mask[:, t:])
            losses["prior"] = self.config.prior_weight * loss
        if self.lpips is not None:
            perceptual = perceptual_losses(output, frames, batch.mask, self.lpips)
            if self.adversary is not None:
                losses["generator"] = self._generator_loss(self.adversary, output, perceptual, step)
            losses |= {name: self.config.perceptual_weight * loss for name, loss in perceptual.items()}
        self.counters["context"].add(output.context_codes)
        self.counters["dynamics"].add(output.dynamics_codes)
        if self.adversary is not None and step >= self.config.gan_start:
            self._made.append((_all_frames(output).detach(), frames.flatten(0, 1)))
        self._last = output
        return losses

    def after_step(self, step: int) -> Rows:
        """Train the discriminator, and move dead codes; returns which codes were moved."""
        assert self._last is not None, "after_step follows losses"
        output, self._last = self._last, None
        if self.prior is not None:
            self._own_step(self.prior, step)
        if self.adversary is not None and self._made:
            self._discriminator_step(self.adversary, step)
        every = self.config.revive_every
        if every and not self.config.freeze_codebooks and (step + 1) % every == 0:
            return self._revive_dead_codes(output)
        return {}

    def metrics(self) -> dict[str, float]:
        """Share of each codebook in use since the last call, its perplexity, and codes revived."""
        return {f"{name}_{k}": v for name, counter in self.counters.items() for k, v in counter.report().items()}

    def validate(self, batches: list[Batch]) -> dict[str, float]:
        """PSNR of context and future frames, L1 of future frames, on held-out episodes.

        With states these are told; beside it the error of reading states from frames, and the PSNR where only states
        or only tokens are told.
        """
        figures: dict[str, float] = {}
        for batch in batches:
            for name, value in self._scores(batch).items():
                figures[name] = figures.get(name, 0.0) + value / len(batches)
        return figures

    def _scores(self, batch: Batch) -> dict[str, float]:
        frames, features = batch.frames.float() / 255, self._features(batch)
        t = self.model.config.context_frames
        shown = None if features is None else ShownStates(features[:, t:])
        output = self.model(frames, shown)
        future, real = output.future.float().clamp(0, 1), batch.mask[:, t:]
        scores = {
            "psnr_context": _psnr(output.context.float().clamp(0, 1), frames[:, :t], batch.mask[:, :t]),
            "psnr_future": _psnr(future, frames[:, t:], real),
            "l1_future": _mean_of_real((future - frames[:, t:]).abs().mean(dim=(2, 3, 4)), real),
        }
        if features is None:
            return scores
        all_dropped = torch.ones_like(batch.mask[:, t:])
        for name, told in {"states_alone": (shown, all_dropped), "tokens_alone": (None, None)}.items():
            made = self.model(frames, *told).future.float().clamp(0, 1)
            scores[f"psnr_{name}"] = _psnr(made, frames[:, t:], real)
        known = torch.ones(len(frames), dtype=torch.bool, device=frames.device)
        scores["state_frame"] = float(state_losses(output, features, batch.mask, known)["state_frame"])
        return scores

    def picture(self, batch: Batch) -> Tensor:
        """Real frames above reconstructed ones, for a few videos: (3,H,W) in [0,1]."""
        frames, features = batch.frames[:_PICTURE_ROWS].float() / 255, self._features(batch)
        t = self.model.config.context_frames
        output = self.model(frames, None if features is None else ShownStates(features[:_PICTURE_ROWS, t:]))
        made = torch.cat([output.context, output.future], dim=1).float().clamp(0, 1)
        return labelled_rows({"real": frames, "reconstructed": made}, t)

    def state(self) -> dict[str, Tensor]:
        """Code counts, and the helpers (discriminator, prior) with their optimizers."""
        tensors = {f"{name}.{k}": t for name, counter in self.counters.items() for k, t in counter.state().items()}
        for name, helper in self._helpers():
            tensors |= {f"{name}.{k}": t for k, t in helper.model.state_dict().items()}
            optimizer = checkpoint.optimizer_tensors(helper.optimizer)
            tensors |= {f"{name}_optimizer.{k}": t for k, t in optimizer.items()}
        return tensors

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, counter in self.counters.items():
            counter.load_state(_with_prefix(tensors, f"{name}."))
        for name, helper in self._helpers():
            weights = _with_prefix(tensors, f"{name}.")
            load_weights(helper.model, weights, where=f"{name} of the training checkpoint")
            optimizer = _with_prefix(tensors, f"{name}_optimizer.")
            checkpoint.load_optimizer_tensors(helper.optimizer, optimizer)

    def checkpoint(self) -> hub.Checkpoint:
        """The tokenizer alone."""
        return hub.Checkpoint(tokenizer=(self.model.config, dict(self.model.state_dict())))

    def _features(self, batch: Batch) -> Tensor | None:
        """(B,T,D) features of the batch's states; None where the model has no state or the batch has none."""
        state = self.model.config.state
        return None if state is None or batch.states is None else encode_states(batch.states, state)

    def _what_is_told(self, features: Tensor) -> tuple[ShownStates, Tensor]:
        """Features (B,F,D) with the states of some videos withheld; and (B,F) bool, True for frames of other videos
        whose tokens are withheld instead, so that the decoder learns to draw from states alone."""
        known = torch.rand(len(features), device=features.device) >= self.config.withhold_states
        dropped = torch.rand(features.shape[:2], device=features.device) < self.config.withhold_tokens
        return ShownStates(features, known), dropped & known[:, None]

    def _helpers(self) -> list[tuple[str, Adversary | Prior]]:
        """Networks that train the tokenizer and are thrown away afterwards, by name."""
        helpers: list[tuple[str, Adversary | Prior | None]] = [("discriminator", self.adversary), ("prior", self.prior)]
        return [(name, helper) for name, helper in helpers if helper is not None]

    def _generator_loss(
        self, adversary: Adversary, output: Reconstruction, perceptual: dict[str, Tensor], step: int
    ) -> Tensor:
        if step < self.config.gan_start:
            return output.future.new_zeros(())
        fooled = generator_loss(adversary.model(_all_frames(output)))
        last_layer = self.model.prediction_decoder.conv_out.weight
        weight = adaptive_weight(perceptual["perceptual_future"], fooled, last_layer)
        return self.config.gan_weight * weight * fooled

    def _discriminator_step(self, adversary: Adversary, step: int) -> None:
        adversary.optimizer.zero_grad(set_to_none=True)  # what the generator loss left there
        for made, frames in self._made:
            loss = hinge_discriminator_loss(adversary.model(frames), adversary.model(made))
            (loss / len(self._made)).backward()
        self._made = []
        self._own_step(adversary, step)

    def _own_step(self, helper: Adversary | Prior, step: int) -> None:
        """Step a helper along the gradients it has, at the model's learning rate, and clear them."""
        for group in helper.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.config)
        torch.nn.utils.clip_grad_norm_(helper.model.parameters(), self.config.clip)
        helper.optimizer.step()
        helper.optimizer.zero_grad(set_to_none=True)

    def _revive_dead_codes(self, output: Reconstruction) -> Rows:
        parts = [
            ("context", self.model.context_quantizer, output.context_vectors),
            ("dynamics", self.model.dynamics_quantizer, output.dynamics_vectors),
        ]
        moved: Rows = {}
        for name, quantizer, vectors in parts:
            if isinstance(quantizer, VectorQuantizer):
                dead = self.counters[name].take_dead()
                quantizer.revive(dead, vectors.detach().flatten(0, -2))
                moved |= {f"{name}_quantizer.{table}": dead for table, _ in quantizer.named_parameters()}
        return moved

    def _require_large_enough_frames(self) -> None:
        """Show the networks that judge a blank frame: they refuse one too small now, not at the GAN's first step."""
        size = self.model.config.resolution
        blank = torch.zeros(1, 3, size, size, device=self.device)
        with torch.no_grad():
            if self.lpips is not None:
                self.lpips(blank, blank)
            if self.adversary is not None:
                self.adversary.model.eval()(blank)
                self.adversary.model.train()

    def _freeze_codebooks(self) -> None:
        for quantizer in (self.model.context_quantizer, self.model.dynamics_quantizer):
            for parameter in quantizer.parameters():
                parameter.requires_grad_(False)


def _make_adversary(config: TokenizerTrainingConfig, device: torch.device) -> Adversary:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 1)
        model = PatchDiscriminator().to(device)
    return Adversary(model, torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0))


def _make_prior(model: CompressiveTokenizer, config: TokenizerTrainingConfig, device: torch.device) -> Prior:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed + 2)
        prior = TokenPrior(model.config, model.context_quantizer.width, model.dynamics_quantizer.width).to(device)
    return Prior(prior, torch.optim.AdamW(prior.parameters(), lr=config.learning_rate, weight_decay=0.0))


def _all_frames(output: Reconstruction) -> Tensor:
    return torch.cat([output.context, output.future], dim=1).float().flatten(0, 1)


def _psnr(made: Tensor, real: Tensor, mask: Tensor) -> float:
    """Mean PSNR of (B,N,3,H,W) frames in [0,1], dB; of those that are padded (mask (B,N) False) nothing counts."""
    error = (made - real).square().mean(dim=(2, 3, 4)).clamp(min=1e-10)
    return _mean_of_real(-10 * error.log10(), mask)


def _mean_of_real(figure: Tensor, mask: Tensor) -> float:
    return float((figure * mask).sum() / mask.sum().clamp(min=1))


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
