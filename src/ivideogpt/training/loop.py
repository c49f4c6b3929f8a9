"""The one training loop: every model that learns is a `Learner`, and the loop knows nothing else about it.

The loop is a generator that yields after each optimizer step, so a caller shows progress, stops or goes on as it
likes. What happens at a step depends only on the configuration and the step's number: batches and dropout are drawn
from (seed, step), so a run that continues from a checkpoint repeats the uninterrupted run bit for bit (on CPU).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, Self, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.errors import ConfigError, InputError
from ivideogpt.files import require_free_output
from ivideogpt.locks import Claim
from ivideogpt.training import checkpoint
from ivideogpt.training.config import TrainingConfig
from ivideogpt.training.episodes import Named, require_same_episodes, save_episodes
from ivideogpt.training.log import RunLog
from ivideogpt.training.optimizer import WeightAverage, learning_rate, make_optimizer
from ivideogpt.weights import load_weights

Rows: TypeAlias = dict[str, Tensor]
"""By a parameter's name: (N,) int64, some of its rows."""


class Sample(Protocol):
    """A batch of any kind."""

    def to(self, device: torch.device) -> Self:
        """The same batch on another device."""
        ...


SampleT = TypeVar("SampleT", bound=Sample)
SampleOut = TypeVar("SampleOut", bound=Sample, covariant=True)


class Learner(Protocol[SampleT]):
    """A model together with how it learns."""

    @property
    def model(self) -> nn.Module:
        """What is optimized and saved."""
        ...

    def losses(self, batch: SampleT, step: int) -> dict[str, Tensor]:
        """Named scalar losses of a batch, with gradients; the loop sums them. Always the same names."""
        ...

    def after_step(self, step: int) -> Rows:
        """Whatever else a step does: a discriminator's own step, dead codes. Returns what it set anew, whose average
        begins again."""
        ...

    def metrics(self) -> dict[str, float]:
        """Figures about the steps since the last call."""
        ...

    def validate(self, batches: list[SampleT]) -> dict[str, float]:
        """Figures on held-out batches."""
        ...

    def picture(self, batch: SampleT) -> Tensor:
        """One picture (3,H,W) in [0,1] of what the model does with a held-out batch."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Tensors beyond the model's own that the next step depends on."""
        ...

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        ...

    def checkpoint(self) -> hub.Checkpoint:
        """What is saved for use, with the model's present weights."""
        ...


def never() -> bool:
    """Do not stop before the end."""
    return False


def stop_in_time(config: TrainingConfig, stop: Callable[[], bool]) -> Callable[[], bool]:
    """Whether `stop` says so or `max_minutes`, counted from now, have passed."""
    if config.max_minutes is None:
        return stop
    end = time.monotonic() + 60 * config.max_minutes
    return lambda: stop() or time.monotonic() >= end


class Batches(Protocol[SampleOut]):
    """A stream of batches that is a pure function of its seed."""

    def batch_at(self, step: int) -> SampleOut:
        """Batch number `step`."""
        ...

    def iterate(self, start_step: int = 0) -> Iterator[SampleOut]:
        """Batches from number `start_step` on, for ever."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What the loop yields after each optimizer step."""

    step: int
    """Steps done, 1 .. config.steps."""
    losses: dict[str, float]
    """Named losses of this step, and `loss`, their sum."""
    validation: dict[str, float] = field(default_factory=dict)
    """Figures on held-out episodes, at the steps that validate."""
    saved: Path | None = None
    """Checkpoint written after this step."""
    metrics: dict[str, float] = field(default_factory=dict)
    """The learner's own figures since the last log entry, at the steps that log."""


def prepare_run(config: TrainingConfig, episodes: Named | None = None) -> Claim:
    """Claim the run folder: refuse one that holds something, clear it if asked to, or check it can be continued.

    Args:
        config: see `TrainingConfig`.
        episodes: what it learns from; None compares and writes nothing of it.

    Returns:
        The claim, to be kept until the training ends.

    Raises:
        OutputError, CheckpointError, ConfigError: as the message says; another process may be training there.
    """
    if config.resume:
        checkpoint.require_same_config(config.out, config)
        claim = Claim(config.out)
        checkpoint.require_same_config(config.out, config)  # which somebody else may have prolonged meanwhile
        if episodes is not None:
            require_same_episodes(config.out, episodes)
        checkpoint.repair_run(config.out)
        checkpoint.save_steps(config.out, config.steps)
        return claim
    require_free_output(config.out, overwrite=config.overwrite, cure="--overwrite or --resume")
    if config.overwrite:
        _require_not_inside(config)
    claim = Claim(config.out)
    require_free_output(config.out, overwrite=config.overwrite, cure="--overwrite or --resume")  # somebody else's, now
    if config.overwrite:
        checkpoint.clear_run(config.out)
    if episodes is not None:
        save_episodes(config.out, episodes)
    checkpoint.save_config(config.out, config)
    return claim


def train(
    learner: Learner[SampleT],
    batches: Batches[SampleT],
    validation: Batches[SampleT],
    config: TrainingConfig,
    device: torch.device,
    stop: Callable[[], bool] = never,
) -> Iterator[StepReport]:
    """Train until `config.steps`, from the run's newest checkpoint where there is one.

    Args:
        learner: the model and how it learns, already on `device`.
        batches, validation: training and held-out batches.
        config: see `TrainingConfig`; the run folder must have been claimed with `prepare_run`.
        device: where the model is.
        stop: asked after each step; True saves and ends, and a resumed run goes on as if nothing had happened.

    Yields:
        A report after each optimizer step.

    Raises:
        InputError: the loss or its gradient became NaN or infinite; the last good checkpoint is kept.
        OutputError: the disk is full; the older checkpoints are untouched.
    """
    optimizer = make_optimizer(learner.model, config)
    average = WeightAverage(learner.model, config.ema)
    start = _restore(learner, optimizer, average, config.out)
    if start == config.steps:
        return
    stream = batches.iterate(start * config.accumulate)
    held_out = [validation.batch_at(i).to(device) for i in range(config.validation_batches)]
    with closing(RunLog(config.out, start, config.model_dump_json(indent=2))) as log:
        for step in range(start, config.steps):
            losses, norm, anew = _optimizer_step(learner, optimizer, stream, step, config, device)
            average.update(learner.model, step)
            average.begin_again(learner.model, anew)
            done = step + 1
            log.add({**losses, "gradient_norm": norm})
            metrics: dict[str, float] = {}
            if _due(done, config.log_every or max(1, min(50, config.steps // 20)), config.steps):
                metrics = learner.metrics()
                log.write(done, {**metrics, "learning_rate": learning_rate(step, config)})
            figures: dict[str, float] = {}
            if _due(done, config.validate_every, config.steps):
                with average.applied(learner.model):
                    figures, picture = _validate(learner, held_out)
                log.write_validation(done, figures, picture)
            saved, stopping = None, done < config.steps and stop()
            if stopping or _due(done, config.save_every, config.steps):
                saved = _save(learner, optimizer, average, config, done)
            yield StepReport(done, losses, figures, saved, metrics)
            if stopping:
                return


def _optimizer_step(
    learner: Learner[SampleT],
    optimizer: torch.optim.Optimizer,
    stream: Iterator[SampleT],
    step: int,
    config: TrainingConfig,
    device: torch.device,
) -> tuple[dict[str, float], float, Rows]:
    """Named losses, the norm of the gradient before it was clipped, and what the learner set anew."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    optimizer.zero_grad(set_to_none=True)
    learner.model.train()
    total: dict[str, float] = {}
    micro_batches = [next(stream) for _ in range(config.accumulate)]  # worker processes draw from torch's generator
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed * 1_000_000_007 + step)
        for batch in micro_batches:
            losses = learner.losses(batch.to(device), step)
            loss = torch.stack(list(losses.values())).sum() / config.accumulate
            loss.backward()
            for name, value in {**losses, "loss": loss.detach() * config.accumulate}.items():
                total[name] = total.get(name, 0.0) + float(value.detach()) / config.accumulate
        norm = float(nn.utils.clip_grad_norm_(learner.model.parameters(), config.clip))
        _require_finite({"loss": total["loss"], "gradient": norm}, step + 1, config)
        optimizer.step()
        anew = learner.after_step(step)
    return total, norm, anew


def _require_finite(figures: Mapping[str, float], step: int, config: TrainingConfig) -> None:
    for name, value in figures.items():
        if not math.isfinite(value):
            raise InputError(
                f"the {name} became {value} at step {step}; what was saved before is kept. Start a new run, from the "
                f"saved model if there is one (--start-from), with a learning rate below {config.learning_rate:g} or "
                "with --precision float32, and check the data for broken frames."
            )


@torch.no_grad()
def _validate(learner: Learner[SampleT], batches: list[SampleT]) -> tuple[dict[str, float], Tensor]:
    learner.model.eval()
    return learner.validate(batches), learner.picture(batches[0])


def _save(
    learner: Learner[SampleT],
    optimizer: torch.optim.Optimizer,
    average: WeightAverage,
    config: TrainingConfig,
    step: int,
) -> Path:
    # The model first: once the checkpoint stands, nothing of this step is left to be written after a kill.
    with average.applied(learner.model):
        hub.save(config.out / "model", learner.checkpoint(), overwrite=True)
    parts = {
        "model": dict(learner.model.state_dict()),
        "optimizer": checkpoint.optimizer_tensors(optimizer),
        "average": average.weights,
        "learner": learner.state(),
    }
    tensors = {f"{part}.{name}": tensor for part, named in parts.items() for name, tensor in named.items()}
    return checkpoint.save_state(config.out, step, tensors, config.keep)


def _restore(learner: Learner[SampleT], optimizer: torch.optim.Optimizer, average: WeightAverage, run: Path) -> int:
    found = checkpoint.load_state(run)
    if found is None:
        return 0
    step, tensors = found
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "learner": {}}
    for key, tensor in tensors.items():
        part, name = key.split(".", 1)
        parts[part][name] = tensor
    load_weights(learner.model, parts["model"], where=f"training checkpoint of {run}")
    checkpoint.load_optimizer_tensors(optimizer, parts["optimizer"])
    average.load(parts["average"])
    learner.load_state(parts["learner"])
    return step


def require_one_start(preset: str | None, start_from: str | None) -> None:
    """Refuse a preset for a training that fine-tunes a model.

    Raises:
        ConfigError: both are given.
    """
    if preset is not None and start_from is not None:
        raise ConfigError(
            f"preset is {preset!r} and start_from is {start_from}; a training starts from random weights in the shape "
            "of a preset, or from a model that has its shape. Give one of the two."
        )


def _require_not_inside(config: TrainingConfig) -> None:
    """Refuse to clear a run that holds a model this training begins with."""
    for name in ("start_from", "tokenizer"):
        model = getattr(config, name, None)
        if model is not None and Path(model).resolve().is_relative_to(config.out.resolve()):
            raise ConfigError(
                f"{name} is {model}, inside the run folder {config.out} that --overwrite would clear. "
                "Choose another run folder."
            )


def _due(step: int, every: int, last: int) -> bool:
    return step % every == 0 or step == last
