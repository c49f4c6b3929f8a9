"""Sessions of models that know states: against full recomputation, and rows' lives against the same lived alone."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import SamplingConfig, StateConfig
from ivideogpt.errors import ConfigError, ShapeError
from ivideogpt.transformer.sampling import sample
from ivideogpt.transformer.states import StatePath
from ivideogpt.transformer.streams import stream_key, uniform_numbers

Make = Callable[..., Any]
MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

POSE = StateConfig(angles=(1,), mean=(10.0, 0.0, -2.0), std=(2.0, 1.0, 0.5), change=(0.5, 0.2, 0.1))
A, HORIZON = 3, 3
SAMPLING = SamplingConfig(temperature=1.2, top_k=20)
NEAR = {"atol": 1e-3, "rtol": 1e-3}


def poses(contexts: int, frames: int = 2, seed: int = 0) -> Tensor:
    noise = torch.randn(contexts, frames, POSE.size, generator=torch.Generator().manual_seed(seed))
    return noise * torch.tensor(POSE.std) + torch.tensor(POSE.mean)


def path_of(model: WorldModel) -> StatePath:
    return model.transformer.require_states()


# Against the plain way


@torch.no_grad()
def recomputed(
    model: WorldModel,
    context: Tensor,
    actions: Tensor | None,
    states: Tensor,
    key: tuple[int, ...],
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """One row without any cache: the whole sequence again for every token. Tokens (L,) and states (F,S).

    Each next state is predicted from all known ones as a training does, a whole segment at a time.
    """
    layout, transformer, path = model.transformer.layout, model.transformer, path_of(model)
    keys = torch.tensor([stream_key(key)])
    numbers = uniform_numbers(keys, torch.zeros(1, dtype=torch.int64), HORIZON, layout.dynamics_tokens)
    row = model.tokenizer.tokenize(context[None])[0].tolist()
    known = path.features(states)[None]  # (1, frames so far, D)
    for j in range(HORIZON):
        frames = known.shape[1] + 1
        taken = None if actions is None else actions[None, :frames]
        unknown = torch.full_like(known[:, :1], torch.nan)  # what comes is not looked at
        known = torch.cat([known, path.next_of_segment(torch.cat([known, unknown], dim=1), taken)[:, -1:]], dim=1)
        row.append(layout.future_slot)
        uniform = numbers[:, j]
        for i in range(layout.dynamics_tokens):
            padded = torch.tensor([row + [layout.future_slot] * (layout.dynamics_tokens - i)])
            hidden = transformer.hidden_states(transformer.embed(padded, taken, known))[0, len(row) - 1]
            legal = transformer.head(hidden)[layout.dynamics_ids.start : layout.dynamics_ids.stop]
            row.append(layout.dynamics_ids.start + int(sample(legal[None], uniform[:, i], sampling).code))
    return torch.tensor(row), path.decoded(known[0, layout.context_frames :])


@pytest.mark.parametrize("sampling", [SamplingConfig(temperature=0), SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize(
    ("t", "goal", "action_dim", "reward"),
    [(2, False, A, False), (1, False, None, True), (3, True, A, True), (2, True, A, False)],
)
def test_cached_imagination_is_full_recomputation(
    make_tokenizer: Make, make_transformer: Make, make_frames: MakeFrames,
    t: int, goal: bool, action_dim: int | None, reward: bool, sampling: SamplingConfig,
) -> None:  # fmt: skip
    tokenizer = make_tokenizer(context_frames=t, state=POSE)
    layout = dataclasses.replace(tokenizer.layout, goal=goal)
    transformer = make_transformer(layout=layout, action_dim=action_dim, reward=reward, state=POSE)
    model, context = WorldModel(tokenizer, transformer), make_frames(2, t)
    actions = None if action_dim is None else torch.rand(2, t + HORIZON, A) * 2 - 1
    for states in (None, poses(2, t)):
        session = model.start(context, 2, seed=[7, 8], sampling=sampling, horizon=HORIZON, states=states)
        steps = []
        for j in range(HORIZON):
            action = None if actions is None else actions[:, t - 1 + j].repeat_interleave(2, dim=0)
            steps.append(session.step(action, decode=j == HORIZON - 1))
        seen = model.tokenizer.read_states(context) if states is None else states
        for at in range(4):
            b, k = divmod(at, 2)
            taken = None if actions is None else actions[b]
            row, predicted = recomputed(model, context[b], taken, seen[b], (7 + b, 0, k), sampling)
            expected = row[layout.dynamics_positions(t + HORIZON).flatten()]
            assert torch.equal(torch.cat([step.tokens[at] for step in steps]), expected)
            made = torch.stack([step.state[at] for step in steps])  # type: ignore[index]
            torch.testing.assert_close(made, predicted, **NEAR)
            video = tokenizer.detokenize(row[None], torch.cat([seen[b], predicted])[None])
            torch.testing.assert_close(steps[-1].frame[at], video[0, -1], **NEAR)  # type: ignore[index]


def test_states_decide_what_is_drawn(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, context = make_world_model(action_dim=A, state=POSE), make_frames(1, 2).expand(2, -1, -1, -1, -1)
    steps = [model.start(context, seed=[1, 1], states=poses(2, seed=seed)).step() for seed in (0, 1)]
    assert not torch.equal(steps[0].tokens[0], steps[0].tokens[1]), "equal contexts, but other states"
    assert not torch.equal(steps[0].tokens, steps[1].tokens)


# What a step says


def test_states_come_in_their_own_units(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, states = make_world_model(action_dim=A, state=POSE), poses(2)
    with torch.no_grad():
        path_of(model).dynamics.state_out.weight.zero_()
        path_of(model).dynamics.state_out.bias.copy_(torch.tensor([1.0, -2.0, 0.0, 0.0]))
    session = model.start(make_frames(2, 2), branches=2, seed=0, states=states)
    for j in range(1, 5):
        step = session.step(torch.rand(4, A))
        assert step.state is not None and step.state.dtype == torch.float32
        newest = states[:, -1].repeat_interleave(2, dim=0)
        expected = newest + j * torch.tensor([0.5, 0.0, -2 * 0.1])
        torch.testing.assert_close(step.state[:, [0, 2]], expected[:, [0, 2]], **NEAR)
        torch.testing.assert_close(step.state[:, 1].cos(), newest[:, 1].cos(), **NEAR)
        assert step.state[:, 1].abs().max() <= torch.pi


def test_states_are_read_from_the_frames_where_none_are_given(
    make_world_model: MakeWorldModel, make_frames: MakeFrames
) -> None:
    model, context = make_world_model(action_dim=A, state=POSE), make_frames(3, 2)
    read = model.tokenizer.read_states(context)
    sessions = [model.start(context, seed=0, states=states) for states in (None, read, read.double())]
    steps = [session.step(torch.ones(3, A)) for session in sessions]
    for step in steps[1:]:
        assert torch.equal(step.tokens, steps[0].tokens)
        torch.testing.assert_close(step.state, steps[0].state)
    rollouts = [model.rollout(context, horizon=2, seed=0, states=states).video for states in (read, None, poses(3))]
    assert torch.equal(rollouts[0], rollouts[1]) and not torch.equal(rollouts[0], rollouts[2])


def test_a_model_without_states_says_nothing_of_them(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    assert make_world_model().start(make_frames(1, 2)).step().state is None


def test_half_precision_throughout(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model = make_world_model(action_dim=A, state=POSE).to(torch.bfloat16)
    session = model.start(make_frames(2, 2), seed=0, horizon=2)
    for j in range(4):
        step = session.step(torch.rand(2, A))
        assert step.state is not None and step.state.dtype == torch.float32 and torch.isfinite(step.state).all()
        session.reset(make_frames(1, 2, seed=j), [1])


# Every row's life


@dataclasses.dataclass
class Life:
    """All that decides a row's future: its context, its seed, the states it was given, and the actions it took."""

    context: int
    seed: int
    states: Tensor | None
    actions: list[Tensor]


class Twins:
    """A session under test beside the lives of its rows."""

    def __init__(self, model: WorldModel, contexts: Tensor, given: bool) -> None:
        self.model, self.contexts = model, contexts
        states = poses(3) if given else None
        self.lives = [Life(i, i, None if states is None else states[i], []) for i in range(3)]
        how: dict[str, Any] = {"horizon": HORIZON, "sampling": SAMPLING}
        self.session = model.start(contexts[:3], seed=[0, 1, 2], states=states, **how)
        self.draw = torch.Generator().manual_seed(1)
        self.kept: tuple[Any, list[Life]] | None = None
        self.next_seed = 3

    def step(self) -> None:
        actions = torch.rand(len(self.lives), A, generator=self.draw) * 2 - 1
        made = self.session.step(actions)
        for row, life in enumerate(self.lives):
            life.actions.append(actions[row])
            expected = self.alone(life)
            assert torch.equal(made.tokens[row], expected.tokens[0]), f"row {row}"
            torch.testing.assert_close(made.state[row], expected.state[0], **NEAR)  # type: ignore[index]
            torch.testing.assert_close(made.frame[row], expected.frame[0], **NEAR)  # type: ignore[index]

    def alone(self, life: Life) -> Any:
        states = None if life.states is None else life.states[None]
        how: dict[str, Any] = {"horizon": HORIZON, "sampling": SAMPLING, "states": states}
        session = self.model.start(self.contexts[life.context][None], seed=[life.seed], **how)
        for number, action in enumerate(life.actions, 1):
            step = session.step(action[None], decode=number == len(life.actions))
        return step

    def fork(self, rows: list[int]) -> None:
        self.session = self.session.fork(rows)
        self.lives = [copy.deepcopy(self.lives[row]) for row in rows]
        self.kept = None  # of another session

    def reset(self, rows: list[int], given: bool) -> None:
        which = [(row + self.next_seed) % len(self.contexts) for row in rows]
        seeds = [self.next_seed + i for i in range(len(rows))]
        states = poses(len(rows), seed=self.next_seed) if given else None
        self.session.reset(self.contexts[which], rows, seed=seeds, states=states)
        for number, row in enumerate(rows):
            said = None if states is None else states[number]
            self.lives[row] = Life(which[number], seeds[number], said, [])
        self.next_seed += len(rows)

    def snapshot(self) -> None:
        self.kept = self.session.snapshot(), copy.deepcopy(self.lives)

    def restore(self) -> None:
        if self.kept is not None:
            self.session.restore(self.kept[0])
            self.lives = copy.deepcopy(self.kept[1])


@pytest.fixture(params=[True, False], ids=["reward", "no reward"])
def model(request: pytest.FixtureRequest, make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=request.param, place_embedding=True, state=POSE)


@given(st.data())
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_lives_its_own_life(model: WorldModel, make_frames: MakeFrames, data: st.DataObject) -> None:
    twins = Twins(model, make_frames(5, 2), data.draw(st.booleans(), label="given"))
    for _ in range(data.draw(st.integers(3, 7), label="operations")):
        rows = st.integers(0, len(twins.lives) - 1)
        what = data.draw(st.sampled_from(["step", "step", "step", "fork", "reset", "snapshot", "restore"]))
        if what == "fork":
            twins.fork(data.draw(st.lists(rows, min_size=1, max_size=4), label="fork"))
        elif what == "reset":
            chosen = data.draw(st.lists(rows, min_size=1, unique=True), label="reset")
            twins.reset(chosen, data.draw(st.booleans(), label="given"))
        else:
            getattr(twins, what)()
    twins.step()


def test_a_life_with_everything_in_it(model: WorldModel, make_frames: MakeFrames) -> None:
    twins = Twins(model, make_frames(5, 2), given=True)
    twins.step()
    twins.snapshot()
    twins.reset([2, 0], given=True)
    twins.step()
    twins.fork([2, 1, 1, 0])
    twins.reset([3], given=False)
    for _ in range(HORIZON + 1):  # beyond the horizon, row by row
        twins.step()
    twins.restore()
    for _ in range(HORIZON + 1):
        twins.step()


def test_a_renewed_context_leaves_states_as_they_were_foretold(model: WorldModel, make_frames: MakeFrames) -> None:
    session, states, actions = model.start(make_frames(2, 2), seed=0, horizon=2), [], torch.rand(6, 2, A)
    with torch.no_grad():
        known = path_of(model).features(model.tokenizer.read_states(make_frames(2, 2)))
        before, present = known[:, 0], known[:, 1]
        for action in actions:
            before, present = present, path_of(model).next(before, present, action)
            states.append(path_of(model).decoded(present))
    for action, expected in zip(actions, states, strict=True):
        torch.testing.assert_close(session.step(action).state, expected, **NEAR)


def test_a_step_that_fails_changes_nothing(
    model: WorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    session, undisturbed = (model.start(make_frames(2, 2), seed=1, horizon=2) for _ in range(2))
    for action in torch.rand(4, 2, A):
        for place in ("transformer.hidden_states", "tokenizer.decode_future"):
            with monkeypatch.context() as patch:
                part, name = place.split(".")
                patch.setattr(getattr(model, part), name, failing)
                with pytest.raises(torch.OutOfMemoryError):
                    session.step(action)
        with pytest.raises(ShapeError, match="the action of row 0 holds nan"):
            session.step(action * torch.nan)
        made, expected = session.step(action), undisturbed.step(action)
        assert torch.equal(made.tokens, expected.tokens)
        assert torch.equal(made.state, expected.state)  # type: ignore[arg-type]
    with monkeypatch.context() as patch:
        patch.setattr("ivideogpt.session.start.prefill", failing)
        with pytest.raises(torch.OutOfMemoryError):
            session.reset(make_frames(1, 2), [0], states=poses(1))
    assert torch.equal(session.step().state, undisturbed.step().state)  # type: ignore[arg-type]


# Refusals


def with_nan(states: Tensor) -> Tensor:
    states[-1, 0, 1] = torch.nan
    return states


WRONG: list[tuple[Any, str]] = [
    (poses(2, frames=3), r"states have shape (2, 3, 3); this model takes (B, t, S) = (2, 2, 3)"),
    (poses(1), r"states have shape (1, 2, 3); this model takes (B, t, S) = (2, 2, 3)"),
    (poses(2)[..., :2], r"states have shape (2, 2, 2)"),
    (poses(2)[:, -1], r"states have shape (2, 3)"),
    (with_nan(poses(2)), "states must be finite. Mend them, or leave them out"),
    (poses(2) * torch.inf, "states must be finite"),
    (poses(2).numpy(), "states are a ndarray; give a torch tensor"),
]


@pytest.mark.parametrize(("states", "message"), WRONG)
def test_refuses_states_that_do_not_fit(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, states: Any, message: str
) -> None:
    model, context = make_world_model(state=POSE), make_frames(2, 2)
    with pytest.raises(ShapeError, match=re.escape(message)):
        model.start(context, states=states)
    with pytest.raises(ShapeError, match=re.escape(message)):
        model.rollout(context, horizon=1, states=states)
    session, untouched = (model.start(context, seed=1) for _ in range(2))
    with pytest.raises(ShapeError, match=re.escape(message)):
        session.reset(context.flip(0), [1, 0], seed=3, states=states)
    made, expected = session.step(), untouched.step()
    assert torch.equal(made.tokens, expected.tokens)
    assert torch.equal(made.state, expected.state)  # type: ignore[arg-type]


def test_refuses_states_for_a_model_without(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, context = make_world_model(), make_frames(2, 2)
    message = "states were given, but this model has learned none. Leave them out, or use one that has"
    with pytest.raises(ShapeError, match=message):
        model.start(context, states=poses(2))
    session, untouched = (model.start(context, seed=1) for _ in range(2))
    with pytest.raises(ShapeError, match=message):
        session.reset(context.flip(0), [0, 1], states=poses(2))
    assert torch.equal(session.step().tokens, untouched.step().tokens)


def test_who_cannot_read_states_must_be_given_them(
    make_tokenizer: Make, make_transformer: Make, make_frames: MakeFrames
) -> None:
    tokenizer = make_tokenizer()
    model, context = WorldModel(tokenizer, make_transformer(layout=tokenizer.layout, state=POSE)), make_frames(2, 2)
    message = "this tokenizer has learned no states. Train one with states, or give them yourself"
    for start in (lambda: model.start(context), lambda: model.rollout(context, horizon=1)):
        with pytest.raises(ConfigError, match=message):
            start()
    session = model.start(context, seed=1, states=poses(2))
    session.step()
    undisturbed = session.fork([0, 1])
    with pytest.raises(ConfigError, match=message):
        session.reset(context.flip(0), [0, 1])
    assert torch.equal(session.step().tokens, undisturbed.step().tokens)
    session.reset(context[:1], [1], states=poses(1))
    assert session.step().state is not None
