"""Optimizer steps of the nano models through the one training loop, against plain modules.

Both run the same loop, losses and optimizer on the same batch; only the model's arithmetic differs.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch

from ivideogpt.benchmarks.reference import PlainTransformerLearner, plain_twin
from ivideogpt.benchmarks.timing import Case
from ivideogpt.data.loader import Batch
from ivideogpt.devices import Precision
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.config import TokenizerTrainingConfig, TrainingConfig, TransformerTrainingConfig
from ivideogpt.training.loop import Learner, SampleT, train
from ivideogpt.training.tokenizer import TokenizerLearner
from ivideogpt.training.tokens import TokenBatch
from ivideogpt.training.transformer import TransformerLearner
from ivideogpt.transformer import VideoTransformer

TOKENIZER, TRANSFORMER = "nano-64", "nano"
BATCH, FUTURE_FRAMES, SEGMENT_FRAMES, ACTIONS = 8, 4, 16, 2

_TURNS = 4
_NEVER = 2**31  # steps; the clock is stopped long before anything is logged, validated or saved


@dataclass(frozen=True)
class _SameBatch(Generic[SampleT]):
    """A stream of one batch, again and again, so that preparing data is not measured."""

    batch: SampleT

    def batch_at(self, step: int) -> SampleT:
        return self.batch

    def iterate(self, start_step: int = 0) -> Iterator[SampleT]:
        while True:
            yield self.batch


def training_cases(device: torch.device, precisions: Sequence[Precision]) -> Iterator[Case]:
    """Steps of the tokenizer, and of the transformer; a case is to be measured before the next is asked for."""
    with tempfile.TemporaryDirectory() as folder:
        yield _tokenizer_case(Path(folder) / "tokenizer", device, precisions)
        yield _transformer_case(Path(folder) / "transformer", device, precisions)


def _tokenizer_case(out: Path, device: torch.device, precisions: Sequence[Precision]) -> Case:
    torch.manual_seed(0)
    model, config = CompressiveTokenizer.from_preset(TOKENIZER).to(device), TokenizerTrainingConfig(**_idle_run(out))
    t, size = model.config.context_frames, model.config.resolution
    pixels = torch.randint(0, 256, (BATCH, t + FUTURE_FRAMES, 3, size, size), dtype=torch.uint8)
    batch = Batch(pixels, None, None, torch.ones(pixels.shape[:2], dtype=torch.bool))

    def learner(plain: bool, bf16: bool) -> TokenizerLearner:
        own = copy.deepcopy(model)
        return TokenizerLearner(plain_twin(own) if plain else own, config, device, bf16)

    work = f"{TOKENIZER}, {BATCH} x ({t} + {FUTURE_FRAMES}) frames"
    return _case("train tokenizer", work, learner, batch, config, device, precisions)


def _transformer_case(out: Path, device: torch.device, precisions: Sequence[Precision]) -> Case:
    torch.manual_seed(0)
    tokenizer, config = CompressiveTokenizer.from_preset(TOKENIZER), TransformerTrainingConfig(**_idle_run(out))
    model = VideoTransformer.from_preset(TRANSFORMER, layout=tokenizer.layout, action_dim=ACTIONS).to(device)
    layout, t = model.layout, model.layout.context_frames
    context = torch.randint(layout.context_codes, (BATCH, t, layout.context_tokens))
    dynamics = torch.randint(layout.dynamics_codes, (BATCH, SEGMENT_FRAMES - t, layout.dynamics_tokens))
    batch = TokenBatch(
        layout.assemble(context, dynamics),
        mask=torch.ones(BATCH, SEGMENT_FRAMES, dtype=torch.bool),
        actions=torch.rand(BATCH, SEGMENT_FRAMES, ACTIONS) * 2 - 1,
    )

    def learner(plain: bool, bf16: bool) -> TransformerLearner:
        own, kind = copy.deepcopy(model), PlainTransformerLearner if plain else TransformerLearner
        return kind(plain_twin(own) if plain else own, tokenizer, config, device, bf16)

    work = f"{TRANSFORMER}, {BATCH} x {SEGMENT_FRAMES} frames, actions"
    return _case("train transformer", work, learner, batch, config, device, precisions)


def _idle_run(out: Path) -> dict[str, Any]:
    """Settings of a run that only steps; no data are read, since the batches are given."""
    never = dict.fromkeys(("steps", "log_every", "validate_every", "save_every"), _NEVER)
    return {"data": out, "out": out, "batch_size": BATCH, "validation_batches": 1, **never}


def _case(
    name: str,
    work: str,
    learner: Callable[[bool, bool], Learner[SampleT]],
    batch: SampleT,
    config: TrainingConfig,
    device: torch.device,
    precisions: Sequence[Precision],
) -> Case:
    """Steps of learners that `learner(plain, bf16)` makes, always with the same weights."""
    batches = _SameBatch(batch)
    plain, ours = (
        {p: partial(next, train(learner(is_plain, p == "bf16"), batches, batches, config, device)) for p in precisions}
        for is_plain in (True, False)
    )
    for step in (*plain.values(), *ours.values()):
        step()  # not timed: the optimizer makes its state
    return Case.against(name, work, plain, ours, turns=_TURNS)
