"""AdamW with the paper's parameter groups, or Muon; learning-rate schedules; the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ivideogpt.training.config import TrainingConfig
from ivideogpt.training.muon import Muon

_OUTERMOST = {"head", "action_in", "reward_head", "state_in", "state_out", "conv_in", "conv_out"} | {
    f"{part}_{side}" for part in ("context", "dynamics") for side in ("in", "out")
}  # layers that read or write codes, pixels, latent maps, actions, rewards and (in the transformer) states


def make_optimizer(model: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW, betas 0.9 and 0.999; weight decay on the weights of linear and convolution layers only.

    With Muon, layers between hidden features take its steps; the outermost layers and everything that is no matrix,
    those of AdamW.
    """
    layers = {
        module.weight: name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module.weight.requires_grad
    }
    muon = config.optimizer == "muon"
    trained = [p for p in model.parameters() if p.requires_grad]
    orthogonal = {p for p in trained if muon and p in layers and layers[p].rpartition(".")[2] not in _OUTERMOST}
    groups = [
        {"params": [p for p in trained if p in orthogonal], "weight_decay": config.weight_decay, "orthogonal": True},
        {"params": [p for p in trained if p in layers and p not in orthogonal], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p not in layers], "weight_decay": 0.0},
    ]
    kept = [{"orthogonal": False, **group} for group in groups if group["params"]]
    return (Muon if muon else torch.optim.AdamW)(kept, lr=config.learning_rate, betas=(0.9, 0.999))


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0: linear warm-up, then constant or a cosine to zero."""
    warmup = config.warmup_steps
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    progress = (step - warmup) / max(1, config.steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class WeightAverage:
    """Exponential moving average of a model's weights.

    The decay starts low and grows to `decay`, so that the first, random weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()} if decay else {}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after optimizer step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in model.named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def begin_again(self, model: nn.Module, rows: dict[str, Tensor]) -> None:
        """Take some rows (N,) int64 of parameters as they are now: what they were before says nothing of them."""
        for name, chosen in rows.items():
            if name in self.weights:
                self.weights[name][chosen] = model.get_parameter(name).detach()[chosen]

    @torch.no_grad()
    def load(self, weights: dict[str, Tensor]) -> None:
        """Continue from another average's `weights`."""
        for name, own in self.weights.items():
            own.copy_(weights[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average in the model's place for the length of the block."""
        if not self.weights:
            yield
            return
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        _copy_into(model, self.weights)
        try:
            yield
        finally:
            _copy_into(model, own)


@torch.no_grad()
def _copy_into(model: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(weights[name])
