"""Sessions: the cached path against full recomputation, one prefill for all branches, actions, horizons."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.session.memory import session_bytes
from ivideogpt.tokenizer.results import DecodedContext
from ivideogpt.tokenizer.states import ShownStates
from ivideogpt.transformer.sampling import sample
from ivideogpt.transformer.streams import stream_key, uniform_numbers

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

A, HORIZON = 3, 4


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, reward=True)


@pytest.fixture
def context(make_frames: MakeFrames) -> Tensor:
    return make_frames(3, 2)


@pytest.fixture
def actions() -> Tensor:
    """(3, T, A) for 2 context and 4 future frames."""
    return torch.rand(3, 2 + HORIZON, A, generator=torch.Generator().manual_seed(5)) * 2 - 1


@torch.no_grad()
def recomputed(
    model: WorldModel, context: Tensor, actions: Tensor | None, key: tuple[int, ...], sampling: SamplingConfig
) -> tuple[Tensor, Tensor | None]:
    """One row without any cache: the whole sequence again for every token. Tokens (L,) and rewards (F,)."""
    layout, transformer = model.transformer.layout, model.transformer
    keys = torch.tensor([stream_key(key)], device=model.device)
    numbers = uniform_numbers(keys, torch.zeros_like(keys[:, 0]), HORIZON, layout.dynamics_tokens)
    row = model.tokenizer.tokenize(context[None])[0].tolist()
    rewards = []
    for j in range(HORIZON):
        row.append(layout.future_slot)
        uniform = numbers[:, j]
        for i in range(layout.dynamics_tokens):
            # A whole frame, whatever is in it: nothing depends on later tokens.
            padded = torch.tensor([row + [layout.future_slot] * (layout.dynamics_tokens - i)], device=model.device)
            taken = None if actions is None else actions[None, : 2 + j + 1]
            logits = transformer(padded, taken).logits[0, len(row) - 1]
            legal = logits[layout.dynamics_ids.start : layout.dynamics_ids.stop]
            row.append(layout.dynamics_ids.start + int(sample(legal[None], uniform[:, i], sampling).code))
        taken = None if actions is None else actions[None, : 2 + j + 1]
        reward = transformer(torch.tensor([row], device=model.device), taken).rewards
        rewards += [] if reward is None else [reward[0, -1]]
    return torch.tensor(row, device=model.device), torch.stack(rewards) if rewards else None


@pytest.mark.parametrize(
    ("reward", "action_dim", "place_embedding"),
    [(False, None, False), (False, A, True), (True, None, True), (True, A, False)],
)
@pytest.mark.parametrize("branches", [1, 2])
def test_cached_imagination_is_full_recomputation(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, actions: Tensor,
    reward: bool, action_dim: int | None, place_embedding: bool, branches: int,
) -> None:  # fmt: skip
    model = make_world_model(reward=reward, action_dim=action_dim, place_embedding=place_embedding)
    context = make_frames(2, 2)
    sampling = SamplingConfig(temperature=1.3, top_k=20)
    session = model.start(context, branches, seed=[7, 8], sampling=sampling)
    steps = []
    for j in range(HORIZON):
        action = None if action_dim is None else actions[:2, 1 + j].repeat_interleave(branches, dim=0)
        steps.append(session.step(action))
    for b in range(2):
        for k in range(branches):
            taken = None if action_dim is None else actions[b]
            row, rewards = recomputed(model, context[b], taken, (7 + b, 0, k), sampling)
            at = b * branches + k
            assert torch.equal(torch.cat([step.tokens[at] for step in steps]), future_of(model, row))
            torch.testing.assert_close(
                torch.stack([step.frame[at] for step in steps]),  # type: ignore[index]
                model.tokenizer.detokenize(row[None])[0, 2:], atol=1e-5, rtol=1e-5,
            )  # fmt: skip
            if rewards is None:
                assert all(step.reward is None for step in steps)
            else:
                imagined = torch.stack([step.reward[at] for step in steps])  # type: ignore[index]
                torch.testing.assert_close(imagined, rewards, atol=1e-5, rtol=1e-5)


def future_of(model: WorldModel, row: Tensor) -> Tensor:
    """The dynamics tokens of a whole sequence (L,), one frame after the other."""
    frames = model.transformer.layout.frames(len(row))
    return row[model.transformer.layout.dynamics_positions(frames).flatten()]


def test_branches_share_one_prefill(model: WorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, plain = [], model.transformer.hidden_states

    def counted(x: Tensor, cache: Any = None) -> Tensor:
        rows.append(tuple(x.shape[:2]))
        return plain(x, cache)

    encoded: list[int] = []
    for network in (model.tokenizer.context_encoder.middle, model.tokenizer.context_decoder.middle):
        network.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    monkeypatch.setattr(model.transformer, "hidden_states", counted)
    session = model.start(context, branches=5)
    assert rows == [(3, model.transformer.layout.prefix_length)]
    session.step()
    session.step()
    assert {count for count, _ in rows[1:]} == {15}
    assert all(length <= 2 for _, length in rows[1:]), "the cache lives across frames"
    assert encoded == [6, 6], "context frames once each way"


def test_a_bad_action_names_the_row_and_may_be_mended(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    session, untouched = (model.start(context, branches=2, seed=1) for _ in range(2))
    action = actions[:, 1].repeat_interleave(2, dim=0)
    for value in (torch.nan, torch.inf):
        bad = action.clone()
        bad[4, 1] = value
        with pytest.raises(ShapeError, match=f"the action of row 4 holds {value}"):
            session.step(bad)
    assert torch.equal(session.step(action).tokens, untouched.step(action).tokens)


def test_no_action_is_allowed(model: WorldModel, context: Tensor) -> None:
    tokens = model.start(context, seed=1).step().tokens
    assert tokens.shape == (3, 4)


@pytest.mark.parametrize("action", [torch.zeros(3, 2), torch.zeros(2, A), torch.zeros(A)])
def test_refuses_an_action_of_another_shape(model: WorldModel, context: Tensor, action: Tensor) -> None:
    complaint = f"action has shape {tuple(action.shape)}; this session takes (rows, A) = (3, 3)"
    with pytest.raises(ShapeError, match=re.escape(complaint)):
        model.start(context).step(action)


def test_refuses_an_action_where_the_model_takes_none(make_world_model: MakeWorldModel, context: Tensor) -> None:
    with pytest.raises(ShapeError, match="this model takes none"):
        make_world_model().start(context).step(torch.zeros(3, A))
    with pytest.raises(ShapeError, match="this model takes none"):
        make_world_model().rollout(context, torch.zeros(3, 4, A))


def test_refuses_a_horizon_that_no_segment_has(model: WorldModel, context: Tensor) -> None:
    for horizon in (0, -1):
        with pytest.raises(ShapeError, match=f"the horizon is {horizon} frames"):
            model.start(context, branches=2, horizon=horizon)
    with pytest.raises(ShapeError, match="a horizon of 199 frames exceeds the 198 that fit"):
        model.start(context, horizon=199)


def test_the_longest_horizon_can_be_walked(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model = make_world_model(reward=True, max_positions=33 + 5 * 3 + 4)
    assert model.longest_horizon == 3
    assert model.rollout(make_frames(1, 2), horizon=3).video.shape[2] == 5


@pytest.mark.parametrize("frames", [1, 3])
def test_refuses_another_number_of_context_frames(model: WorldModel, make_frames: MakeFrames, frames: int) -> None:
    complaint = "fewer than the 2 context frames" if frames < 2 else "3 context frames were given.*exactly 2"
    with pytest.raises(ShapeError, match=complaint):
        model.start(make_frames(1, frames))


def test_decoding_may_wait(model: WorldModel, context: Tensor) -> None:
    waiting, plain = (model.start(context, branches=2, seed=1) for _ in range(2))
    steps = [waiting.step(decode=False) for _ in range(3)]
    assert all(step.frame is None for step in steps)
    tokens = torch.stack([step.tokens for step in steps], dim=1)
    frames = waiting.decode(tokens)
    assert frames.shape == (6, 3, 3, 16, 16)
    for j in range(3):
        torch.testing.assert_close(frames[:, j], plain.step().frame, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(waiting.decode(tokens[:, -1:]), frames[:, -1:], atol=1e-5, rtol=1e-5)
    assert waiting.decode(tokens[:, :0]).shape == (6, 0, 3, 16, 16)


def test_refuses_to_decode_what_it_did_not_imagine(model: WorldModel, context: Tensor) -> None:
    session = model.start(context, branches=2, seed=1)
    tokens = session.step(decode=False).tokens
    with pytest.raises(ShapeError, match=re.escape("(R, F, M) = (6, F, 4)")):
        session.decode(tokens)
    with pytest.raises(ShapeError, match="2 frames are to be decoded, but row 0 has imagined 1 from its present"):
        session.decode(tokens[:, None].expand(-1, 2, -1))
    with pytest.raises(ShapeError, match=r"tokens lie outside 32\.\.63"):
        session.decode(tokens[:, None] - 32)


@pytest.mark.parametrize("most", [1, 2, 7])
@pytest.mark.parametrize("in_order", [True, False])
def test_many_frames_are_decoded_in_parts(
    model: WorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch, most: int, in_order: bool
) -> None:
    session = model.start(context, branches=3, seed=1)
    if not in_order:
        session = session.fork([4, 0, 5, 1, 0])
    tokens = torch.stack([session.step(decode=False).tokens for _ in range(3)], dim=1)
    whole = session.decode(tokens)
    sizes: list[int] = []
    decode = model.tokenizer.decode_future

    def watch(codes: Tensor, decoded: DecodedContext, shown: ShownStates | None) -> Tensor:
        sizes.append(codes.shape[0] * codes.shape[1])
        return decode(codes, decoded, shown)

    monkeypatch.setattr(model.tokenizer, "decode_future", watch)
    monkeypatch.setattr("ivideogpt.session.pixels.decoded_at_once", lambda *_: most)
    torch.testing.assert_close(session.decode(tokens), whole, atol=1e-5, rtol=1e-5)
    assert max(sizes) <= most and sum(sizes) == tokens.shape[0] * tokens.shape[1]


def test_equal_contexts_are_worked_on_once(model: WorldModel, context: Tensor, actions: Tensor) -> None:
    encoded: list[int] = []
    model.tokenizer.context_encoder.middle.register_forward_hook(lambda _, inputs, __: encoded.append(len(inputs[0])))
    many = context[[0, 1, 0, 0, 1]]
    session = model.start(many, seed=[5, 6, 7, 8, 9])
    assert encoded == [4]
    for j in range(2):
        made = session.step(actions[[0, 1, 2, 2, 0], 1 + j])
    alone = model.start(context[:1], seed=[8])
    for j in range(2):
        expected = alone.step(actions[2:3, 1 + j])
    assert torch.equal(made.tokens[3], expected.tokens[0])
    torch.testing.assert_close(made.frame[3], expected.frame[0], atol=1e-5, rtol=1e-5)  # type: ignore[index]


def test_closed(model: WorldModel, context: Tensor) -> None:
    with model.start(context, seed=1) as session:
        session.step()
        copy, moment = session.fork([0]), session.snapshot()
    for use in (session.step, session.snapshot, lambda: session.frames, lambda: session.restore(moment)):
        with pytest.raises(SessionError, match="this session is closed"):
            use()
    assert copy.step().tokens.shape == (1, 4)


def test_memory_is_bounded_and_refused_with_the_numbers(
    model: WorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = model.start(context, branches=3, horizon=4)
    held = session.bytes
    assert held <= session_bytes(model.tokenizer, model.transformer, 3, 9, 4) <= 1.1 * held
    for _ in range(4):
        session.step()
    assert session.bytes == held
    monkeypatch.setattr("ivideogpt.session.memory.free_memory", lambda _: held // 2)
    with pytest.raises(SessionError, match=r"9 rows of 3 new contexts and 4 frames need .* GB; .* GB are free on c"):
        model.start(context, branches=3, horizon=4)
    with pytest.raises(SessionError, match="900 rows of 0 new contexts"):
        session.fork([0] * 900)
    monkeypatch.undo()
    assert session.step().tokens.shape == (9, 4)


def test_a_step_that_fails_changes_nothing(
    model: WorldModel, context: Tensor, actions: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a GPU's memory runs out, at any place of the step."""
    session, undisturbed = (model.start(context, branches=2, seed=1, horizon=2) for _ in range(2))
    plain, calls = model.transformer.hidden_states, 0

    def failing(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("no more")
        return plain(*arguments)

    for j in range(4):
        action = actions[:, 1 + j].repeat_interleave(2, dim=0)
        calls = 0
        with monkeypatch.context() as patch:
            patch.setattr(model.transformer, "hidden_states", failing)
            with pytest.raises(torch.OutOfMemoryError):
                session.step(action)
        with monkeypatch.context() as patch:
            patch.setattr(model.tokenizer, "decode_future", failing_decode)
            with pytest.raises(torch.OutOfMemoryError):
                session.step(action)
        made, expected = session.step(action), undisturbed.step(action)
        assert torch.equal(made.tokens, expected.tokens)
        assert torch.equal(made.frame, expected.frame)  # type: ignore[arg-type]


def failing_decode(*_: Any, **__: Any) -> Tensor:
    raise torch.OutOfMemoryError("no more")


def test_what_is_given_away_may_be_altered(make_world_model: MakeWorldModel, context: Tensor) -> None:
    model = make_world_model()
    session, untouched = (model.start(context, seed=1) for _ in range(2))
    session.step().tokens.zero_()
    untouched.step()
    assert torch.equal(session.step().tokens, untouched.step().tokens)


def test_things_that_are_no_tensors(model: WorldModel, context: Tensor) -> None:
    with pytest.raises(ShapeError, match="context is a ndarray; give a torch tensor"):
        model.start(context.cpu().numpy())  # type: ignore[arg-type]
    session = model.start(context, seed=1)
    with pytest.raises(ShapeError, match="action is a ndarray; give a torch tensor"):
        session.step(torch.zeros(3, A).numpy())  # type: ignore[arg-type]
    with pytest.raises(SessionError, match="give whole numbers"):
        session.fork([0.5])  # type: ignore[list-item]
    with pytest.raises(SessionError, match="rows are true or false"):
        session.fork(torch.tensor([True, False, True]))  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"branches is 2\.5"):
        model.start(context, branches=2.5)  # type: ignore[arg-type]


def test_memory_for_contexts_of_their_own(model: WorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    session = model.start(context[:1], branches=8, seed=1, horizon=2)
    once = session.bytes
    for _ in range(3):
        session.step()
    assert once < session.bytes <= model.session_bytes(1, 8, 2, renewed=True)
    assert session.snapshot().bytes <= session.bytes
    session.step()
    monkeypatch.setattr("ivideogpt.session.memory.free_memory", lambda _: 1000)
    for use in (session.step, lambda: session.reset(context[:1], [3])):
        with pytest.raises(SessionError, match="new contexts and 2 frames need"):
            use()
    monkeypatch.undo()
    assert session.step().tokens.shape == (8, 4)


def test_a_reset_that_fails_changes_nothing(
    model: WorldModel, context: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, untouched = (model.start(context, seed=1) for _ in range(2))
    session.step()
    untouched.step()
    with monkeypatch.context() as patch:
        patch.setattr("ivideogpt.session.start.prefill", failing_decode)
        with pytest.raises(torch.OutOfMemoryError):
            session.reset(context[:1], [1])
    with monkeypatch.context() as patch:
        patch.setattr("ivideogpt.session.slots.Slots._make_writable", failing_decode)
        with pytest.raises(torch.OutOfMemoryError):
            session.reset(context[:1], [1])
    assert torch.equal(session.step().tokens, untouched.step().tokens)
