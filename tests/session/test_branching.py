"""Forks, snapshots, resets and long walks against sessions that do nothing of the kind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ivideogpt import Session, WorldModel
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.session import Snapshot

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 3
SAMPLING = SamplingConfig(temperature=1.2, top_k=20)
DRAW = torch.Generator()


@pytest.fixture(params=[True, False], ids=["reward", "no reward"])
def model(request: pytest.FixtureRequest, make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=request.param, place_embedding=True)


@dataclasses.dataclass
class Life:
    """All that decides a row's future: its context, its seed, and the actions it took."""

    context: int
    seed: int
    actions: list[Tensor]


class Twin:
    """A session under test beside the lives of its rows."""

    def __init__(self, model: WorldModel, contexts: Tensor, session: Session, lives: list[Life]) -> None:
        self.model, self.contexts, self.session, self.lives = model, contexts, session, lives
        self.kept: list[tuple[Snapshot, list[Life]]] = []

    def step(self, rows: list[int] | None = None) -> None:
        moved = range(len(self.lives)) if rows is None else rows
        actions = torch.rand(len(moved), A, generator=DRAW) * 2 - 1
        before = copy.deepcopy(self.lives)
        made = self.session.step(actions, rows)
        for number, row in enumerate(moved):
            self.lives[row].actions.append(actions[number])
            expected = self.alone(self.lives[row])
            assert torch.equal(made.tokens[number], expected.tokens[0]), f"row {row}"
            torch.testing.assert_close(made.frame[number], expected.frame[0], atol=1e-4, rtol=0)  # type: ignore[index]
            torch.testing.assert_close(made.logprob[number], expected.logprob[0], atol=1e-3, rtol=0)
            if expected.reward is not None:
                torch.testing.assert_close(made.reward[number], expected.reward[0], atol=1e-4, rtol=0)  # type: ignore[index]
        self.before = before
        assert self.session.frames_imagined == tuple(len(life.actions) for life in self.lives)

    def step_and_take_back(self, rows: list[int]) -> None:
        self.step(rows)
        self.session.take_back()
        self.lives = self.before

    def alone(self, life: Life) -> Any:
        context = self.contexts[life.context][None]
        session = self.model.start(context, seed=[life.seed], horizon=HORIZON, sampling=SAMPLING)
        for action in life.actions:
            step = session.step(action[None])
        return step

    def fork(self, rows: list[int]) -> Twin:
        lives = [copy.deepcopy(self.lives[row]) for row in rows]
        return Twin(self.model, self.contexts, self.session.fork(rows), lives)

    def reset(self, rows: list[int]) -> None:
        seeds = [int(torch.randint(1000, (), generator=DRAW)) for _ in rows]
        which = [seed % len(self.contexts) for seed in seeds]
        self.session.reset(self.contexts[which], rows, seed=seeds)
        for row, context, seed in zip(rows, which, seeds, strict=True):
            self.lives[row] = Life(context, seed, [])

    def snapshot(self) -> None:
        self.kept.append((self.session.snapshot(), copy.deepcopy(self.lives)))

    def restore(self, number: int) -> None:
        if self.kept:
            moment, lives = self.kept[number % len(self.kept)]
            self.session.restore(moment)
            self.lives = copy.deepcopy(lives)


@given(st.data())
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_lives_its_own_life(model: WorldModel, make_frames: MakeFrames, data: st.DataObject) -> None:
    """Steps of all and of some rows, forks, snapshots, resets and refreshed contexts, in any order and in several
    sessions that share what they can."""
    DRAW.manual_seed(1)
    contexts = make_frames(5, 2)
    given_contexts = data.draw(st.sampled_from([[0, 1, 2], [0, 0, 0], [1, 1, 2]]), label="contexts")
    lives = [Life(context, seed, []) for seed, context in enumerate(given_contexts)]
    session = model.start(contexts[given_contexts], seed=[0, 1, 2], horizon=HORIZON, sampling=SAMPLING)
    twins = [Twin(model, contexts, session, lives)]
    every = ["step", "step", "some", "some", "fork", "reset", "snapshot", "restore", "back"]
    for _ in range(data.draw(st.integers(4, 9), label="operations")):
        twin = data.draw(st.sampled_from(twins), label="session")
        rows, what = st.integers(0, len(twin.lives) - 1), data.draw(st.sampled_from(every), label="operation")
        some = st.lists(rows, min_size=1, unique=True)
        if what == "step":
            twin.step()
        elif what == "snapshot":
            twin.snapshot()
        elif what == "restore":
            twin.restore(data.draw(st.integers(0, 3), label="snapshot"))
        elif what == "fork":
            twins.append(twin.fork(data.draw(st.lists(rows, min_size=1, max_size=4), label="fork")))
        else:
            act = {"some": twin.step, "reset": twin.reset, "back": twin.step_and_take_back}[what]
            act(data.draw(some, label="rows"))
    for twin in twins:
        twin.step()


def walk(session: Session, actions: Tensor) -> list[Tensor]:
    return [session.step(action.expand(session.rows, -1)).tokens for action in actions]


def test_a_fork_leaves_its_session_alone(model: WorldModel, make_frames: MakeFrames) -> None:
    session, undisturbed = (model.start(make_frames(2, 2), 2, seed=4, horizon=HORIZON) for _ in range(2))
    actions = torch.rand(6, A)
    walk(session, actions[:2])
    walk(undisturbed, actions[:2])
    copies, others = session.fork([3, 3, 0]), session.fork([3, 3, 0], seed=9)
    ahead, different = (walk(each, actions[2:]) for each in (copies, others))
    expected = walk(undisturbed, actions[2:])
    assert all(torch.equal(a, b[[3, 3, 0]]) for a, b in zip(ahead, expected, strict=True))
    assert not all(torch.equal(a[0], a[1]) for a in different), "a seed lets copies of a row part"
    assert all(torch.equal(a, b) for a, b in zip(walk(session, actions[2:]), expected, strict=True))


def test_a_forks_seed_is_no_stream_of_a_start(model: WorldModel, make_frames: MakeFrames) -> None:
    session = model.start(make_frames(2, 2), seed=4)
    uniform = [s._open().rows.uniform for s in (session, session.fork([0, 1], seed=4))]
    assert not (uniform[0] == uniform[1]).any()


def test_a_snapshot_can_be_restored_again(model: WorldModel, make_frames: MakeFrames) -> None:
    frames, actions = make_frames(2, 2), torch.rand(6, A)
    session = model.start(frames, seed=1, horizon=HORIZON)
    walk(session, actions[:2])
    moment = session.snapshot()
    futures = []
    for _ in range(3):
        futures.append(walk(session, actions[2:]))
        session.reset(frames.flip(0), [0, 1])
        session.restore(moment)
        assert session.frames_imagined == (2, 2)
    for tokens in zip(*futures, strict=True):
        assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])


def test_a_snapshot_of_another_or_a_closed_session_is_refused(model: WorldModel, make_frames: MakeFrames) -> None:
    session, other = (model.start(make_frames(1, 2), seed=1, horizon=HORIZON) for _ in range(2))
    moment = other.snapshot()
    for _ in range(2):
        with pytest.raises(SessionError, match="of another session"):
            session.restore(moment)
        other.close()
    with pytest.raises(SessionError, match="of another session"):
        session.fork([0]).restore(session.snapshot())
    assert session.step().tokens.shape == (1, 4)


def test_a_step_is_taken_back(model: WorldModel, make_frames: MakeFrames) -> None:
    session, undisturbed = (model.start(make_frames(2, 2), 2, seed=4, horizon=HORIZON) for _ in range(2))
    with pytest.raises(SessionError, match="there is no step to take back"):
        session.take_back()
    for action in torch.rand(2 * HORIZON, 4, A):
        session.step(-action[:2], rows=[3, 1])
        session.take_back()
        with pytest.raises(SessionError, match="there is no step to take back"):
            session.take_back()
        assert torch.equal(session.step(action).tokens, undisturbed.step(action).tokens)


def test_some_rows_move(model: WorldModel, make_frames: MakeFrames) -> None:
    session = model.start(make_frames(2, 2), 2, seed=4, horizon=HORIZON)
    made = session.step(torch.zeros(2, A), rows=[3, 0])
    assert session.frames_imagined == (1, 0, 0, 1)
    assert made.frame is not None and len(made.frame) == len(made.tokens) == len(made.logprob) == 2
    torch.testing.assert_close(session.decode(made.tokens[:, None], rows=[3, 0])[:, 0], made.frame)
    for rows, message in ([0, 0], "can be stepped once"), ([4], "row 4 does not exist"), ([], "rows is empty"):
        with pytest.raises(SessionError, match=message):
            session.step(torch.zeros(len(rows), A), rows=rows)
    with pytest.raises(ShapeError, match="the action of row 3 holds nan"):
        session.step(torch.tensor([[0.0, 0, 0], [0, 0, torch.nan]]), rows=[1, 3])
    assert session.frames_imagined == (1, 0, 0, 1)


@pytest.mark.parametrize(
    ("rows", "message"),
    [([], "rows is empty"), ([0, 4], "row 4 does not exist; this session has rows 0..3"), ([-1], "row -1 does")],
)
def test_rows_that_do_not_exist(model: WorldModel, make_frames: MakeFrames, rows: list[int], message: str) -> None:
    session = model.start(make_frames(2, 2), branches=2)
    with pytest.raises(SessionError, match=message):
        session.fork(rows)
    with pytest.raises(SessionError, match=message):
        session.reset(make_frames(max(1, len(rows)), 2), rows)


def test_resets_that_do_not_fit(model: WorldModel, make_frames: MakeFrames) -> None:
    session, untouched = (model.start(make_frames(2, 2), branches=2, seed=1) for _ in range(2))
    wrong: list[tuple[type[Exception], str, Tensor, list[int], Any]] = [
        (SessionError, r"rows are \[1, 1\]; each row can be reset once", make_frames(2, 2), [1, 1], None),
        (ShapeError, "1 contexts were given for 2 rows", make_frames(1, 2), [0, 1], None),
        (ShapeError, "3 context frames were given", make_frames(1, 3), [0], None),
        (ShapeError, "these lie in", make_frames(1, 2) * 255, [0], None),
        (ShapeError, "2 seeds for 1 contexts", make_frames(1, 2), [0], [1, 2]),
    ]
    for error, message, context, rows, seed in wrong:
        with pytest.raises(error, match=message):
            session.reset(context, rows, seed=seed)
    assert torch.equal(session.step().tokens, untouched.step().tokens)


def test_contexts_of_mixed_size(model: WorldModel, make_frames: MakeFrames) -> None:
    with pytest.raises(
        ShapeError, match=r"frames have shape \(1, 2, 3, 32, 32\); this model takes \(B, T, 3, 16, 16\)"
    ):
        model.start(make_frames(1, 2, 32))
    with pytest.raises(ShapeError, match="branches is 0; it must be a whole number"):
        model.start(make_frames(1, 2), branches=0)
    with pytest.raises(ShapeError, match="0 contexts were given"):
        model.start(make_frames(1, 2)[:0])


# Frames, and beyond the trained length


def test_the_newest_frames(model: WorldModel, make_frames: MakeFrames) -> None:
    context = make_frames(2, 2)
    session = model.start(context, branches=2, seed=1, horizon=HORIZON)
    video = [*context.repeat_interleave(2, dim=0).unbind(1)]
    for _ in range(2 * HORIZON + 1):
        torch.testing.assert_close(session.frames, torch.stack(video[-2:], dim=1), atol=1e-5, rtol=0)
        frame = session.step().frame
        assert frame is not None
        video.append(frame)


def test_newest_frames_become_the_context(model: WorldModel, make_frames: MakeFrames) -> None:
    session = model.start(make_frames(2, 2), branches=2, seed=1, horizon=HORIZON)
    for _ in range(HORIZON):
        session.step()
    frames, held = session.frames, session.bytes
    fresh = model.start(frames, seed=1, horizon=HORIZON)
    fresh._open().rows.restart_streams(session._open().rows.keys)  # the numbers of the same moment
    state = fresh._open().rows
    fresh._open().rows = dataclasses.replace(state.next_segment(torch.full_like(state.first, HORIZON)), segment=[0] * 4)
    for _ in range(2):
        assert torch.equal(session.step().tokens, fresh.step().tokens)
    assert session.bytes <= held + 2 * fresh.bytes, "every row has a context of its own now"


def test_a_goal_stays_the_goal(
    make_tokenizer: Any, make_transformer: Any, make_frames: MakeFrames, device: torch.device
) -> None:
    tokenizer = make_tokenizer(context_frames=3)
    layout = dataclasses.replace(tokenizer.layout, goal=True)
    model = WorldModel(tokenizer, make_transformer(layout=layout)).to(device)
    context = make_frames(2, 3)
    session = model.start(context, seed=1, horizon=HORIZON)
    for _ in range(HORIZON + 1):
        session.step()
    assert torch.equal(session.frames[:, 0], context[:, 0])
    assert session.frames.shape == (2, 3, 3, 16, 16)
    other = make_frames(1, 3, seed=5)
    session.reset(other, [1])
    for _ in range(HORIZON + 1):
        session.step()
    assert torch.equal(session.frames[0, 0], context[0, 0]) and torch.equal(session.frames[1, 0], other[0, 0])


def test_five_hundred_frames_in_bounded_memory(model: WorldModel, make_frames: MakeFrames) -> None:
    session = model.start(make_frames(1, 2), branches=2, seed=1, horizon=7)
    held = []
    for number in range(500):
        step = session.step(decode=number % 50 == 0)
        assert torch.isfinite(step.entropy).all()
        held.append(session.bytes)
    assert session.frames_imagined == (500, 500)
    assert max(held[7:]) == held[-1], "once every row has a context of its own, nothing grows"


def test_rollouts_beyond_the_trained_length(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model = make_world_model(action_dim=A, reward=True, trained_frames=5)
    assert model.trained_horizon == 3
    context, actions = make_frames(2, 2), torch.rand(2, 12, A)
    rollout = model.rollout(context, actions, samples=2, seed=3)
    assert rollout.rewards is not None
    assert (rollout.video.shape, rollout.rewards.shape) == ((2, 2, 12, 3, 16, 16), (2, 2, 10))
    session = model.start(context, 2, seed=3)
    for j in range(10):
        step = session.step(actions[:, 1 + j].repeat_interleave(2, dim=0))
        assert step.frame is not None and step.reward is not None
        torch.testing.assert_close(rollout.video[:, :, 2 + j].flatten(0, 1), step.frame, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(rollout.rewards[:, :, j].flatten(), step.reward, atol=1e-5, rtol=1e-5)
