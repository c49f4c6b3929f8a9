"""Imagining in sessions against `generate` called again for every frame, on the same random weights; and the delay of
one step of the shipped model.

Shapes: S contexts, K branches of each, R = S*K rows, t context frames, F future frames, A action size, side of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ivideogpt.benchmarks.floor import Arithmetic, Rates, RolloutWork, count_arithmetic, rollout_work
from ivideogpt.benchmarks.generation import HORIZON, Size, random_model
from ivideogpt.benchmarks.generation import SIZES as GENERATED
from ivideogpt.benchmarks.reference_rollout import ROWS_AT_ONCE, Reference
from ivideogpt.benchmarks.timing import REFERENCE, Comparison, Laps, Timing, take_turns
from ivideogpt.data.segment import fit_to_square
from ivideogpt.devices import Precision, choose_precision
from ivideogpt.envs.record import pusht_episode
from ivideogpt.errors import ConfigError, unknown_name
from ivideogpt.inference import InferenceModel
from ivideogpt.session import Session
from ivideogpt.world_model import WorldModel

SIZES = {**GENERATED, "micro": Size("micro-16", "micro", 2)}


class Row(NamedTuple):
    """A row of the table."""

    contexts: int
    branches: int
    rewards: bool
    """Whether the model has a reward head."""

    @property
    def rows(self) -> int:
        """Videos that are imagined, R."""
        return self.contexts * self.branches


ROWS = {
    "one": Row(1, 1, rewards=False),
    "eight": Row(1, 8, rewards=False),
    "hundred": Row(1, 100, rewards=False),
    "contexts": Row(32, 1, rewards=True),
}
LATENCY = "latency"
"""Name of the measurement of one step, beside those of `ROWS`."""
LATENCY_MODEL = "pusht-64"
LATENCY_STEPS = 100
_LATENCY_EPISODE = 900_000

_REFERENCE_ROWS_ON_CPU = 8
_SEED = 0
_TOLERANCE = 0.01  # of a logit; float32 differs by 1e-5, TF32 on a GPU by more


def ways_on(device: torch.device, names: Sequence[str] | None = None) -> list[Precision]:
    """The ways in which ours is measured on a device: some by name, else all that it has.

    Raises:
        ConfigError: a name that is none of those.
    """
    available: list[Precision] = ["float32", "bf16"] if choose_precision("auto", device) == "bf16" else ["float32"]
    for name in names or ():
        if name not in available:
            raise ConfigError(unknown_name("way", name, available))
    return [way for way in available if names is None or way in names]


@dataclass(frozen=True, kw_only=True)
class RolloutComparison(Comparison):
    """A row of the table, measured."""

    row: Row
    reference_measured_on: int
    """Videos that the straightforward way imagined; its times are scaled to all that ours did."""
    profile: Mapping[str, Mapping[str, float]]
    """Seconds of the parts of each way's last run, for as many videos as it imagined."""
    work_counted: Mapping[str, RolloutWork]
    """What our ways cannot do without."""
    floor_parts: Mapping[str, Mapping[str, float]]
    """Least seconds of each part of our ways."""
    session_bytes: Mapping[str, int]
    """Memory that the session of each way held at its end."""

    def frames_a_second(self, timing: Timing) -> float:
        """Imagined frames of all videos."""
        return self.row.rows * HORIZON / timing.median

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        figures = super().figures()
        figures |= {**self.row._asdict(), "horizon": HORIZON, "reference_measured_on": self.reference_measured_on}
        timings = {REFERENCE: self.reference, **self.ours}
        for way, timing in timings.items():
            own = figures["reference"] if way == REFERENCE else figures["ours"][way]
            own |= {"frames_per_second": self.frames_a_second(timing), "profile_seconds": dict(self.profile[way])}
        for way, work in self.work_counted.items():
            figures["ours"][way] |= {
                "floor_parts_seconds": dict(self.floor_parts[way]),
                "counted": work.figures(),
                "session_bytes": self.session_bytes[way],
            }
        return figures


@dataclass(frozen=True)
class _Contest:
    """Models that imagine the same."""

    size: str
    reference: Reference
    ours: Mapping[str, InferenceModel]
    """By way, with the same weights."""
    differences: Mapping[str, Mapping[str, float]]
    arithmetic: Arithmetic
    device: torch.device


class _Job(NamedTuple):
    """What a session is given."""

    context: Tensor
    """(S, t, 3, side, side) float in [0,1]."""
    branches: int
    actions: Tensor
    """(R, F, A)."""


def measure_rollouts(
    size: str,
    names: Sequence[str],
    repeats: int,
    device: torch.device,
    rates: Rates,
    ways: Sequence[Precision],
    rows_at_once: int = ROWS_AT_ONCE,
) -> Iterator[RolloutComparison]:
    """Time rows of the table; yields each when it is measured.

    Args:
        size: a key of `SIZES`.
        names: keys of `ROWS`.
        repeats: runs of each way.
        device: where the models run.
        rates: this device's, for the floors.
        ways: see `ways_on`.
        rows_at_once: videos that the straightforward way works on together.

    Raises:
        ConfigError: Hugging Face's transformers is not installed.
    """
    in_order = [name for name in ROWS if name in names]
    for rewards, group in groupby(in_order, key=lambda name: ROWS[name].rewards):
        contest = _make_contest(size, rewards, device, ways)
        for name in group:
            yield _measure(contest, name, repeats, rates, rows_at_once)


def row_counts(names: Sequence[str]) -> list[int]:
    """Numbers of videos that march in step in these rows of the table; `Rates` are wanted for them."""
    return sorted({ROWS[name].rows for name in names if name in ROWS})


def _make_contest(size: str, rewards: bool, device: torch.device, ways: Sequence[Precision]) -> _Contest:
    torch.manual_seed(_SEED)
    # Without place embedding, whatever the preset says: Hugging Face's model has none.
    model = random_model(SIZES[size], reward=rewards, place_embedding=False).to(device)
    reference = Reference(model)
    exact = model.for_inference("float32")
    worst = _difference(reference, exact, SIZES[size].action_dim)["largest_difference"]
    assert worst < _TOLERANCE, f"the logits of the two ways differ by {worst:g}"
    ours: dict[str, InferenceModel] = {name: exact if name == "float32" else model.for_inference(name) for name in ways}
    differences = {name: _difference(reference, way, SIZES[size].action_dim) for name, way in ours.items()}
    arithmetic = count_arithmetic(exact)
    return _Contest(size, reference, ours, differences, arithmetic, device)


@torch.no_grad()
def _difference(reference: Reference, model: InferenceModel, action_dim: int) -> dict[str, float]:
    """Largest difference of the logits of legal tokens on one sequence with actions.

    Rollouts are not compared: `generate` draws from another stream of random numbers.
    """
    layout, config = model.transformer.layout, reference.tokenizer.config
    frames = config.context_frames + HORIZON
    video = torch.rand(1, frames, 3, config.resolution, config.resolution, device=model.device)
    actions = torch.rand(1, frames, action_dim, device=model.device) * 2 - 1
    tokens = reference.tokenizer.tokenize(video)
    used = actions[:, list(layout.action_frames(frames))]
    # Every token is predicted from the position before it.
    positions = (layout.dynamics_positions(frames).flatten() - 1).to(tokens.device)
    ids = slice(layout.dynamics_ids.start, layout.dynamics_ids.stop)
    expected = reference.logits(tokens, used)[:, positions, ids]
    transformer = model.transformer
    hidden = transformer.hidden_states(transformer.embed(tokens, actions))[:, positions]
    return {"largest_difference": float((transformer.dynamics_logits(hidden) - expected).abs().max())}


def _measure(contest: _Contest, name: str, repeats: int, rates: Rates, rows_at_once: int) -> RolloutComparison:
    row, device = ROWS[name], contest.device
    job = _make_job(contest.reference, row, device)
    measured_on = min(row.rows, _REFERENCE_ROWS_ON_CPU) if device.type == "cpu" else row.rows
    profile: dict[str, dict[str, float]] = {}
    session_bytes: dict[str, int] = {}

    def plain(horizon: int = HORIZON) -> None:
        laps = Laps(device)
        context = job.context.repeat_interleave(job.branches, dim=0)[:measured_on]
        actions = job.actions[:measured_on, :horizon]
        contest.reference.rollout(context, actions, horizon, rows_at_once=rows_at_once, laps=laps)
        profile[REFERENCE] = laps.seconds

    def imagine(way: str) -> None:
        laps = Laps(device)
        session_bytes[way] = _imagine(contest.ours[way], job, laps)
        profile[way] = laps.seconds

    plain(horizon=1)  # these first runs are not timed
    for way in contest.ours:
        imagine(way)
    timings = take_turns({REFERENCE: plain, **{way: partial(imagine, way) for way in contest.ours}}, repeats, device)
    work = {
        way: rollout_work(model, contest.arithmetic, row.contexts, row.branches, HORIZON)
        for way, model in contest.ours.items()
    }
    floors = {way: counted.floor(rates) for way, counted in work.items()}
    return RolloutComparison(
        name=name,
        size=contest.size,
        work=_describe(row, job.context.shape[1]),
        unit="s",
        reference=timings.pop(REFERENCE).scaled(row.rows / measured_on),
        ours=timings,
        differences=contest.differences,
        floor={way: sum(parts.values()) for way, parts in floors.items()},
        row=row,
        reference_measured_on=measured_on,
        profile=profile,
        work_counted=work,
        floor_parts=floors,
        session_bytes=session_bytes,
    )


def _make_job(reference: Reference, row: Row, device: torch.device) -> _Job:
    config, action_dim = reference.tokenizer.config, reference.transformer.config.action_dim
    assert action_dim is not None, "it was asked for"
    side = config.resolution
    return _Job(
        context=torch.rand(row.contexts, config.context_frames, 3, side, side, device=device),
        branches=row.branches,
        actions=torch.rand(row.rows, HORIZON, action_dim, device=device) * 2 - 1,
    )


def _imagine(model: InferenceModel, job: _Job, laps: Laps) -> int:
    """Imagine a job in a session; the bytes it held."""
    horizon = job.actions.shape[1]
    with model.start(job.context, job.branches, _SEED, horizon=horizon) as session:
        laps.lap("start")
        steps = [session.step(job.actions[:, j], decode=False) for j in range(horizon)]
        laps.lap("steps")
        session.decode(torch.stack([step.tokens for step in steps], dim=1))
        laps.lap("decode")
        return session.bytes


def _describe(row: Row, context_frames: int) -> str:
    rewards = ", rewards" if row.rewards else ""
    return f"{row.contexts} x {row.branches} x ({context_frames} + {HORIZON}) frames{rewards}"


# One step


@dataclass(frozen=True)
class Latency:
    """How long a step of one session takes, its pixels included."""

    model: str
    ours: Mapping[str, Timing]
    """Steps, by way."""
    floor: Mapping[str, float]
    """Least seconds of a step, by way."""
    session_bytes: Mapping[str, int]

    @property
    def best(self) -> str:
        """The way that is fastest."""
        return min(self.ours, key=lambda way: self.ours[way].median)

    def figures(self) -> dict[str, Any]:
        """Everything measured, for JSON."""
        ours = {
            way: {
                "median": timing.median,
                "p90": timing.p90,
                "seconds": list(timing.runs),
                "floor_seconds": self.floor[way],
                "session_bytes": self.session_bytes[way],
            }
            for way, timing in self.ours.items()
        }
        return {"name": LATENCY, "model": self.model, "unit": "s", "ours": ours, "best": self.best}


def measure_latency(device: torch.device, rates: Rates, ways: Sequence[Precision]) -> Latency:
    """Time steps of one session of the shipped model, those that make the newest frames the context included."""
    torch.manual_seed(_SEED)
    model = WorldModel.from_pretrained(LATENCY_MODEL, device=device)
    episode = pusht_episode(_LATENCY_EPISODE, LATENCY_STEPS)
    assert episode.actions is not None, "it was recorded with them"
    config = model.tokenizer.config
    opening = torch.from_numpy(episode.frames[: config.context_frames]).movedim(-1, 1)
    context = fit_to_square(opening, config.resolution)[None]
    actions = torch.from_numpy(episode.actions)[:, None].to(device)
    models = {name: model.for_inference(name) for name in ways}
    arithmetic = count_arithmetic(model.for_inference("float32"))
    sessions = {name: way.start(context, seed=_SEED) for name, way in models.items()}
    steps: dict[str, Callable[[], object]] = {
        way: partial(_next_step, session, cycle(actions)) for way, session in sessions.items()
    }
    take_turns(steps, model.trained_horizon + 1, device)  # not timed; by then the context has changed once
    timings = take_turns(steps, LATENCY_STEPS, device)
    return Latency(
        model=LATENCY_MODEL,
        ours=timings,
        floor={name: _step_floor(way, arithmetic, rates) for name, way in models.items()},
        session_bytes={name: session.bytes for name, session in sessions.items()},
    )


def _next_step(session: Session, actions: Iterator[Tensor]) -> object:
    return session.step(next(actions))


def _step_floor(model: InferenceModel, arithmetic: Arithmetic, rates: Rates) -> float:
    """Least seconds of a step that stays within its context."""
    parts = rollout_work(model, arithmetic, 1, 1, model.trained_horizon).floor(rates)
    return (parts["steps"] + parts["decode"]) / model.trained_horizon
