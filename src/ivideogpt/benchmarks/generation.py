"""Tokenizing, imagining and decoding one video, against the straightforward way on the same random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivideogpt.benchmarks.floor import Rates, arithmetic_floor, count_arithmetic, rollout_work
from ivideogpt.benchmarks.reference import plain_rollout, plain_twin
from ivideogpt.benchmarks.timing import REFERENCE, Comparison, take_turns
from ivideogpt.devices import choose_precision
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.quantizer import VectorQuantizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.world_model import WorldModel


class Size(NamedTuple):
    """Presets of a world model, and its action size."""

    tokenizer: str
    transformer: str
    action_dim: int


SIZES = {"nano": Size("nano-64", "nano", 2), "official": Size("oxe-64", "small", 4)}
HORIZON = 10

_SEED = 0
_TOLERANCE = 0.01  # float32 differs by 1e-5 of a logit or pixel, TF32 on a GPU by more
_SAME_PIXEL = 1e-3


@dataclass(frozen=True)
class _Contest:
    """One video, and the models that work on it."""

    size: str
    frames: Tensor
    """(1, T, 3, R, R) float in [0,1]."""
    actions: Tensor
    """(1, T, A)."""
    plain: WorldModel
    """The straightforward way, float32."""
    ours: Mapping[str, WorldModel]
    """By precision, with the same weights."""

    @property
    def context_frames(self) -> int:
        return self.plain.tokenizer.config.context_frames

    @property
    def context(self) -> Tensor:
        return self.frames[:, : self.context_frames]


class _Work(NamedTuple):
    """One thing that both ways do."""

    name: str
    plain: Callable[[], Tensor]
    ours: Callable[[WorldModel], Tensor]
    differences: Callable[[WorldModel, Tensor, Tensor], dict[str, float]]
    """Between what was made plainly and what one of our models made: (model, plain, ours)."""
    floor: Callable[[WorldModel], float]
    """Least seconds for one of our models."""


def measure_generation(size: str, repeats: int, device: torch.device, rates: Rates) -> Iterator[Comparison]:
    """Time tokenizing, a rollout and detokenizing, batch 1, 10 future frames; yields each when it is measured.

    Args:
        size: a key of `SIZES`.
        repeats: runs of each way.
        device: where the models run.
        rates: this device's, for the floors.
    """
    contest = _make_contest(size, device)
    for work in (_tokenize(contest, rates), _rollout(contest, rates), _detokenize(contest, rates)):
        yield _measure(contest, work, repeats, device)


def precisions(device: torch.device) -> dict[str, torch.dtype]:
    """Precisions that ours is measured in: float32, and bf16 where the hardware has it."""
    bf16 = {"bf16": torch.bfloat16} if choose_precision("auto", device) == "bf16" else {}
    return {"float32": torch.float32, **bf16}


def _make_contest(size: str, device: torch.device) -> _Contest:
    torch.manual_seed(_SEED)
    model = random_model(SIZES[size]).to(device)
    length, resolution = model.tokenizer.config.context_frames + HORIZON, model.tokenizer.config.resolution
    return _Contest(
        size=size,
        frames=torch.rand(1, length, 3, resolution, resolution, device=device),
        actions=torch.rand(1, length, SIZES[size].action_dim, device=device) * 2 - 1,
        plain=plain_twin(model),
        ours={
            name: model if dtype is torch.float32 else copy.deepcopy(model).to(dtype)
            for name, dtype in precisions(device).items()
        },
    )


def random_model(size: Size, **changes: Any) -> WorldModel:
    """A world model with random weights in which every part has an effect; drawn with torch's global generator.

    Args:
        size: presets and action size.
        changes: fields of the transformer's configuration that differ from the preset.
    """
    tokenizer = CompressiveTokenizer.from_preset(size.tokenizer)
    for quantizer in (tokenizer.context_quantizer, tokenizer.dynamics_quantizer):
        if isinstance(quantizer, VectorQuantizer):
            nn.init.normal_(quantizer.embedding.weight)  # apart, as trained codes are: rounding decides nothing
    fields = {"layout": tokenizer.layout, "action_dim": size.action_dim, **changes}
    transformer = VideoTransformer.from_preset(size.transformer, **fields)
    assert transformer.action_in is not None, "it was asked for"
    nn.init.normal_(transformer.action_in.weight)  # starts at zero, where a mistake would not show
    return WorldModel(tokenizer, transformer)


def _tokenize(contest: _Contest, rates: Rates) -> _Work:
    def ours(model: WorldModel) -> Tensor:
        return model.tokenizer.tokenize(contest.frames)

    return _Work(
        name="tokenize",
        plain=lambda: contest.plain.tokenizer.tokenize(contest.frames),
        ours=ours,
        differences=lambda _, plain, made: {"tokens_that_differ": float((plain != made).float().mean())},
        floor=lambda model: arithmetic_floor(lambda: ours(model), _dtype(model), rates),
    )


def _detokenize(contest: _Contest, rates: Rates) -> _Work:
    tokens = contest.ours["float32"].tokenizer.tokenize(contest.frames)

    def ours(model: WorldModel) -> Tensor:
        return model.tokenizer.detokenize(tokens)

    return _Work(
        name="detokenize",
        plain=lambda: contest.plain.tokenizer.detokenize(tokens),
        ours=ours,
        differences=lambda _, plain, made: {"largest_difference": _largest_difference(plain, made)},
        floor=lambda model: arithmetic_floor(lambda: ours(model), _dtype(model), rates),
    )


def _rollout(contest: _Contest, rates: Rates) -> _Work:
    used = contest.actions[:, contest.context_frames - 1 : -1]
    arithmetic = count_arithmetic(contest.ours["float32"])

    def ours(model: WorldModel) -> Tensor:
        return model.rollout(contest.context, contest.actions, seed=_SEED).video[:, 0]

    return _Work(
        name="rollout",
        plain=lambda: plain_rollout(contest.plain, contest.context, used, _SEED).video,
        ours=ours,
        differences=partial(_rollout_differences, contest),
        floor=lambda model: sum(rollout_work(model, arithmetic, 1, 1, HORIZON).floor(rates).values()),
    )


@torch.no_grad()
def _rollout_differences(contest: _Contest, model: WorldModel, plain: Tensor, made: Tensor) -> dict[str, float]:
    """Differences of the logits on one token sequence, and the share of imagined frames that differ.

    Logits that differ by rounding can draw another token, after which that future is another; so frames may differ.
    """
    tokens = contest.ours["float32"].tokenizer.tokenize(contest.frames)
    logits = [way.transformer(tokens, contest.actions).logits for way in (contest.plain, model)]
    apart = (plain - made)[:, contest.context_frames :].abs().amax(dim=(2, 3, 4)) > _SAME_PIXEL
    return {
        "largest_difference": _largest_difference(*logits),
        "frames_that_differ": float(apart.float().mean()),
    }


def _measure(contest: _Contest, work: _Work, repeats: int, device: torch.device) -> Comparison:
    expected = work.plain()  # these first runs are not timed
    differences = {
        precision: work.differences(model, expected, work.ours(model)) for precision, model in contest.ours.items()
    }
    worst = next(iter(differences["float32"].values()))
    assert worst < _TOLERANCE, f"{work.name}: the two ways differ by {worst:g}"
    ours = {precision: partial(work.ours, model) for precision, model in contest.ours.items()}
    timings = take_turns({REFERENCE: work.plain, **ours}, repeats, device)
    return Comparison(
        name=work.name,
        size=contest.size,
        work=f"1 x ({contest.context_frames} + {HORIZON}) frames",
        unit="s",
        reference=timings.pop(REFERENCE),
        ours=timings,
        differences=differences,
        floor={precision: work.floor(model) for precision, model in contest.ours.items()},
    )


def _dtype(model: WorldModel) -> torch.dtype:
    return model.transformer.head.weight.dtype


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max())
