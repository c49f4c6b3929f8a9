"""What keeping many worlds costs: resets, forks, worlds out of phase, some rows, and the most memory taken."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ivideogpt.benchmarks.memory import peak_bytes
from ivideogpt.benchmarks.timing import Case
from ivideogpt.devices import Precision
from ivideogpt.inference import InferenceModel
from ivideogpt.session import Session
from ivideogpt.session.memory import prefill_bytes, session_bytes
from ivideogpt.world_model import WorldModel

WORLDS, SOME = 256, 16

_SEED = 0


def session_cases(model: str, device: torch.device, precisions: Sequence[Precision]) -> Iterator[Case]:
    """The table's rows, in each precision, with random contexts."""
    loaded = WorldModel.from_pretrained(model, device=device)
    for precision in precisions:
        fast = loaded.for_inference(precision)
        contexts = _contexts(fast, WORLDS)
        yield _resets(fast, contexts, f"{model}, {precision}")
        yield _forks(fast, contexts, f"{model}, {precision}")
        yield _phases(fast, contexts[:SOME], f"{model}, {precision}")
        yield _some_rows(fast, contexts[:SOME], f"{model}, {precision}")


def _contexts(model: InferenceModel, count: int) -> Tensor:
    side = model.tokenizer.config.resolution
    numbers = torch.Generator().manual_seed(_SEED)
    return torch.rand(count, model.layout.context_frames, 3, side, side, generator=numbers)


def _start(model: InferenceModel, contexts: Tensor) -> Session:
    return model.start(contexts, seed=_SEED)


def _resets(model: InferenceModel, contexts: Tensor, work: str) -> Case:
    """One row of many against reading its context alone, and the most memory taken beside what was checked."""
    session = _start(model, contexts)
    parts = (model.tokenizer, model.transformer)

    def memory(work: Callable[[], object], checked: int) -> Mapping[str, float]:
        return {"peak bytes": peak_bytes(work, model.device), "checked bytes": checked}

    checked = session_bytes(*parts, len(contexts), len(contexts), session.horizon) + prefill_bytes(
        *parts, len(contexts)
    )
    reset = partial(session.reset, contexts[:1], [len(contexts) // 2])
    variants: dict[str, Callable[[], object]] = {
        f"reset 1 of {len(contexts)} rows": reset,
        "read one context alone": partial(_start, model, contexts[:1]),
        f"start {len(contexts)} worlds": partial(memory, partial(_start, model, contexts), checked),
        "reset, its memory": partial(memory, reset, prefill_bytes(*parts, 1)),
    }
    _once(variants)
    names = list(variants)
    return Case("reset", work, variants, {"of reading one context": (names[0], names[1])}, turns=3)


def _forks(model: InferenceModel, contexts: Tensor, work: str) -> Case:
    session = _start(model, contexts)
    session.step(decode=False)
    variants: dict[str, Callable[[], object]] = {
        "fork 100 rows of one": partial(session.fork, [0] * 100),
        f"fork all {len(contexts)} rows": partial(session.fork, range(len(contexts))),
        "snapshot": session.snapshot,
        "restore": partial(session.restore, session.snapshot()),
    }
    _once(variants)
    return Case("fork", work, variants, turns=3)


def _phases(model: InferenceModel, contexts: Tensor, work: str) -> Case:
    """A horizon of steps with pixels; each world's context is refreshed once in it."""
    together, apart = (_start(model, contexts) for _ in range(2))
    horizon, count = together.horizon, len(contexts)
    for number in range(1, horizon):
        apart.step(rows=[row for row in range(count) if row % horizon >= number] or [0], decode=False)

    def walk(session: Session) -> None:
        for _ in range(horizon):
            session.step()

    variants = {
        f"{count} worlds in phase": partial(walk, together),
        f"{count} worlds out of phase": partial(walk, apart),
    }
    _once(variants)
    inside, outside = variants
    return Case("phases", work, variants, {"of in phase": (outside, inside)}, facts={"frames": horizon * count})


def _some_rows(model: InferenceModel, contexts: Tensor, work: str) -> Case:
    half = len(contexts) // 2
    many, few = _start(model, contexts), _start(model, contexts[:half])
    variants: dict[str, Callable[[], object]] = {
        f"step {half} of {len(contexts)} rows": partial(many.step, rows=range(0, len(contexts), 2)),
        f"step all of {half} rows": few.step,
    }
    _once(variants)
    some, every = variants
    return Case(
        "some rows", work, variants, {"of a session of as many": (some, every)}, turns=5, facts={"frames": half}
    )


def _once(variants: Mapping[str, Callable[[], object]]) -> None:
    for run in variants.values():
        run()
