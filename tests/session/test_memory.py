"""What is checked before memory is taken is what is taken."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ivideogpt import WorldModel
from ivideogpt.benchmarks.memory import peak_bytes
from ivideogpt.errors import SessionError
from ivideogpt.session.memory import require_memory

MakeWorldModel = Callable[..., WorldModel]
MakeFrames = Callable[..., Tensor]

HORIZON = 3


class Checked:
    """Stands in for `require_memory`: remembers what was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
        self.needed, self.device = 0, device
        monkeypatch.setattr("ivideogpt.session.session.require_memory", self)

    def __call__(self, transformer: object, needed: int, what: str) -> None:
        self.needed = needed

    def holds(self, work: Callable[[], object]) -> None:
        """The work takes as much as was checked, or less, but for a tenth and what small tensors take."""
        self.needed = 0
        peak = peak_bytes(work, self.device)
        assert self.needed > 0, "nothing was checked"
        small = 4096 if self.device.type == "cpu" else 1 << 16  # a GPU rounds every tensor up
        assert peak <= 1.1 * self.needed + small, f"checked {self.needed}, took {peak}"


@pytest.fixture(params=["micro", "pusht-64"])
def model(request: pytest.FixtureRequest, make_world_model: MakeWorldModel, device: torch.device) -> WorldModel:
    if request.param == "micro":
        return make_world_model(action_dim=3, reward=True)
    return WorldModel.from_pretrained("pusht-64", device=device)


@pytest.mark.parametrize("branches", [1, 4])
def test_peaks_are_within_what_was_checked(
    model: WorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch, branches: int
) -> None:
    checked = Checked(monkeypatch, model.device)
    frames = make_frames(24, 2, model.tokenizer.config.resolution)
    model.start(frames, branches, horizon=HORIZON).step()  # what a GPU's libraries take once, they keep
    checked.holds(lambda: model.start(frames, branches, seed=1, horizon=HORIZON))
    session = model.start(frames, branches, seed=1, horizon=HORIZON)
    for _ in range(2):
        session.step(decode=False)
    checked.holds(lambda: session.fork(range(0, session.rows, 2)))
    checked.holds(lambda: session.fork([5] * 40))
    checked.holds(session.snapshot)
    moment = session.snapshot()
    checked.holds(lambda: session.reset(frames[:1], [3]))
    checked.holds(lambda: session.reset(frames[:9], range(2, 20, 2)))
    checked.holds(lambda: session.restore(moment))
    copy = session.fork(range(session.rows))
    checked.holds(lambda: session.reset(frames[:1], [3]))
    assert copy.rows == session.rows
    for _ in range(HORIZON - 2):
        session.step(rows=range(10, 20), decode=False)
    checked.holds(lambda: session.step(rows=range(10, 20), decode=False))


def test_a_reset_takes_what_one_context_takes(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, frames = make_world_model(), make_frames(256, 2)
    session = model.start(frames, seed=1, horizon=HORIZON)
    alone = peak_bytes(lambda: model.start(frames[:1], seed=1, horizon=HORIZON), model.device)
    held = session.bytes
    assert peak_bytes(lambda: session.reset(frames[:1], [77]), model.device) < 1.5 * alone < held / 20
    assert session.bytes == held


def test_addresses_stay(make_world_model: MakeWorldModel, make_frames: MakeFrames) -> None:
    model, frames = make_world_model(action_dim=3, reward=True), make_frames(4, 2)
    session = model.start(frames, seed=1, horizon=HORIZON)

    def addresses() -> list[int]:
        state = session._open()
        return [tensor.data_ptr() for tensor in (*state.slots.contexts.tensors, state.cache.keys, state.cache.values)]

    before, moment = addresses(), session.snapshot()
    for _ in range(2 * HORIZON):
        session.step()
        session.step(rows=[1, 2])
    session.reset(frames[:2], [3, 0])
    session.restore(moment)
    copy = session.fork([0, 0, 1])
    copy.step()
    copy.close()
    session.reset(frames, range(4))
    assert addresses() == before


def test_a_session_that_would_not_fit_is_refused(
    make_world_model: MakeWorldModel, make_frames: MakeFrames, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, frames = make_world_model(action_dim=3, reward=True), make_frames(4, 2)
    session, undisturbed = (model.start(frames, branches=2, seed=1, horizon=HORIZON) for _ in range(2))
    for each in (session, undisturbed):
        each.step()
    moment = session.snapshot()
    session.step()
    monkeypatch.setattr("ivideogpt.session.memory.free_memory", lambda _: 1000)
    for use in (
        lambda: model.start(frames),
        lambda: session.reset(frames[:1], [3]),
        lambda: session.fork([0] * 9),
        session.snapshot,
        lambda: session.restore(moment),
    ):
        with pytest.raises(SessionError, match=r"need .* GB; .* GB are free on c"):
            use()
    monkeypatch.undo()
    session.restore(moment)
    assert torch.equal(session.step().tokens, undisturbed.step().tokens)


def test_the_message_has_the_numbers(make_world_model: MakeWorldModel) -> None:
    transformer = make_world_model().transformer
    require_memory(transformer, 1, "a row")
    with pytest.raises(SessionError, match=r"a row need 1000000000\.00 GB; .* Take fewer rows, or a shorter horizon"):
        require_memory(transformer, 10**18, "a row")
