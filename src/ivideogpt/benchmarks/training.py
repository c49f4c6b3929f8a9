"""Training steps of the nano models through the one training loop, against the plain float32 module.

Both ways run the same loop, losses and optimizer on the same batch; only the model's arithmetic differs.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

import torch

from ivideogpt.benchmarks.reference import PlainTransformerLearner, plain_twin
from ivideogpt.benchmarks.timing import REFERENCE, Comparison, take_turns
from ivideogpt.data.loader import Batch
from ivideogpt.devices import choose_precision
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.config import TokenizerTrainingConfig, TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.loop import Learner, SampleT, StepReport, train
from ivideogpt.training.tokenizer import TokenizerLearner
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner
from ivideogpt.transformer import VideoTransformer

TOKENIZER, TRANSFORMER = "nano-64", "nano"
BATCH, FUTURE_FRAMES, SEGMENT_FRAMES, ACTIONS = 8, 4, 16, 2

_STEPS_A_REPEAT = 4
_NEVER = 2**31  # steps; the clock is stopped long before anything is logged, validated or saved
_TOLERANCE = 1e-3  # of the loss, relative; float32 differs by 1e-6, TF32 convolutions by more


@dataclass(frozen=True)
class _Contest(Generic[SampleT]):
    """One training, in two ways."""

    name: str
    work: str
    batch: SampleT
    config: TrainingConfig
    ours: Callable[[bool], Learner[SampleT]]
    """Makes our learner, in bf16 or in float32."""
    plain: Callable[[], Learner[SampleT]]
    """Makes the straightforward learner, with the same initial weights."""


class _SameBatch(Generic[SampleT]):
    """A stream of one batch, again and again, so that preparing data is not measured."""

    def __init__(self, batch: SampleT) -> None:
        self.batch = batch

    def batch_at(self, step: int) -> SampleT:
        return self.batch

    def iterate(self, start_step: int = 0) -> Iterator[SampleT]:
        while True:
            yield self.batch


def measure_training(repeats: int, device: torch.device) -> Iterator[Comparison]:
    """Time optimizer steps of the tokenizer and of the transformer; yields each when it is measured.

    Args:
        repeats: each way makes four timed steps a repeat.
        device: where the models are trained.
    """
    with tempfile.TemporaryDirectory() as folder:
        yield _measure(_tokenizer_contest(Path(folder) / "tokenizer", device), repeats, device)
        yield _measure(_transformer_contest(Path(folder) / "transformer", device), repeats, device)


def _tokenizer_contest(out: Path, device: torch.device) -> _Contest[Batch]:
    torch.manual_seed(0)
    model = CompressiveTokenizer.from_preset(TOKENIZER).to(device)
    t, size = model.config.context_frames, model.config.resolution
    pixels = torch.randint(0, 256, (BATCH, t + FUTURE_FRAMES, 3, size, size), dtype=torch.uint8)
    config = TokenizerTrainingConfig(**_idle_run(out))

    def learner(model: CompressiveTokenizer, bf16: bool = False) -> TokenizerLearner:
        return TokenizerLearner(model, config, device, bf16)

    return _Contest(
        name="train tokenizer",
        work=f"{BATCH} x ({t} + {FUTURE_FRAMES}) frames",
        batch=Batch(pixels, None, None, torch.ones(pixels.shape[:2], dtype=torch.bool)),
        config=config,
        ours=lambda bf16: learner(copy.deepcopy(model), bf16),
        plain=lambda: learner(plain_twin(copy.deepcopy(model))),
    )


def _transformer_contest(out: Path, device: torch.device) -> _Contest[TokenBatch]:
    torch.manual_seed(0)
    tokenizer = CompressiveTokenizer.from_preset(TOKENIZER)
    model = VideoTransformer.from_preset(TRANSFORMER, layout=tokenizer.layout, action_dim=ACTIONS).to(device)
    layout, t = model.layout, model.layout.context_frames
    context = torch.randint(layout.context_codes, (BATCH, t, layout.context_tokens))
    dynamics = torch.randint(layout.dynamics_codes, (BATCH, SEGMENT_FRAMES - t, layout.dynamics_tokens))
    config = TransformerTrainingConfig(**_idle_run(out))
    return _Contest(
        name="train transformer",
        work=f"{BATCH} x {SEGMENT_FRAMES} frames, actions",
        batch=TokenBatch(
            layout.assemble(context, dynamics),
            mask=torch.ones(BATCH, SEGMENT_FRAMES, dtype=torch.bool),
            actions=torch.rand(BATCH, SEGMENT_FRAMES, ACTIONS) * 2 - 1,
        ),
        config=config,
        ours=lambda bf16: TransformerLearner(copy.deepcopy(model), tokenizer, config, device, bf16),
        plain=lambda: PlainTransformerLearner(plain_twin(copy.deepcopy(model)), tokenizer, config, device, False),
    )


def _idle_run(out: Path) -> dict[str, Any]:
    """Settings of a run that only steps."""
    return {
        "data": out,  # not read: the batches are given
        "out": out,
        "batch_size": BATCH,
        "steps": _NEVER,
        "log_every": _NEVER,
        "validate_every": _NEVER,
        "validation_batches": 1,
        "save_every": _NEVER,
    }


def _measure(contest: _Contest[SampleT], repeats: int, device: torch.device) -> Comparison:
    bf16 = choose_precision("auto", device) == "bf16"
    precision = "bf16" if bf16 else "float32"
    difference = _loss_difference(contest.ours(False), contest.plain(), contest.batch.to(device))
    assert difference < _TOLERANCE, f"the two ways differ by {difference:g} in the loss"
    plain, ours = (_steps(learner, contest, device) for learner in (contest.plain(), contest.ours(bf16)))
    next(plain), next(ours)  # not timed: the optimizer makes its state
    ways = {REFERENCE: lambda: next(plain), precision: lambda: next(ours)}
    timings = take_turns(ways, repeats * _STEPS_A_REPEAT, device)
    return Comparison(
        name=contest.name,
        size="nano",
        work=contest.work,
        unit="steps/s",
        reference=timings.pop(REFERENCE),
        ours=timings,
        differences={precision: {"loss_in_float32": difference}},
    )


def _steps(learner: Learner[SampleT], contest: _Contest[SampleT], device: torch.device) -> Iterator[StepReport]:
    batches = _SameBatch(contest.batch)
    return train(learner, batches, batches, contest.config, device)


@torch.no_grad()
def _loss_difference(one: Learner[SampleT], other: Learner[SampleT], batch: SampleT) -> float:
    """Relative difference of the summed losses of two learners, without dropout, which draws anew at every call."""
    one.model.eval(), other.model.eval()
    first, second = (sum(float(x) for x in way.losses(batch, 0).values()) for way in (one, other))
    return abs(first - second) / max(abs(second), 1e-9)
