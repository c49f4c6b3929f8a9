"""Imagined environments: what fails can be tried again, and no context is read for nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ivideogpt import WorldModel
from ivideogpt.envs.imagined import ImaginedVectorEnv
from ivideogpt.envs.imagined_contexts import GivenContexts
from ivideogpt.session.prefill import prefill

MakeWorldModel = Callable[..., WorldModel]

A, LIMIT, STEPS, N = 2, 1.0, 3, 3
CONTEXTS = np.random.default_rng(0).integers(0, 256, (6, 2, 16, 16, 3), np.uint8)


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, action_limit=LIMIT, reward=True, trained_frames=2 + STEPS)


def some_actions(steps: int) -> np.ndarray:
    """(steps, N, A) float32 in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (steps, N, A)).astype(np.float32)


def assert_same(ours: Any, theirs: Any) -> None:
    """The same five of `step` or two of `reset`; the tokens decide everything else."""
    for one, other in zip(ours[:-1], theirs[:-1], strict=True):
        np.testing.assert_allclose(one, other, atol=1.01)
    for key in ("tokens", "origin"):
        if key in theirs[-1]:
            assert (ours[-1][key] == theirs[-1][key]).all()
            assert (ours[-1][f"_{key}"] == theirs[-1][f"_{key}"]).all()


class Failing:
    """A reward function, or a source of contexts, that fails when told to."""

    def __init__(self) -> None:
        self.fails, self.source = False, GivenContexts(CONTEXTS)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        self.fail()
        return frames.mean(axis=(1, 2, 3))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        self.fail()
        return self.source.draw(rng)

    def fail(self) -> None:
        if self.fails:
            raise RuntimeError("not now")


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("what", ["reward", "draw", "read"])
def test_what_fails_can_be_tried_again(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch, mode: str, what: str
) -> None:
    failing, fine = Failing(), Failing()
    envs, undisturbed = (
        ImaginedVectorEnv(N, model=model, contexts=one, reward=one, autoreset_mode=mode) for one in (failing, fine)
    )
    assert_same(envs.reset(seed=3), undisturbed.reset(seed=3))
    for number, actions in enumerate(some_actions(3 * STEPS)):
        if number == 1:
            for each in (envs, undisturbed):
                each.reset(seed=[0, 11, 0], options={"reset_mask": np.array([False, True, False])})
        with monkeypatch.context() as patch:
            if what == "read":
                patch.setattr("ivideogpt.session.start.prefill", lambda *_, **__: failing.fail() or prefill(*_, **__))
            failing.fails = True
            if what == "reward":
                failing.draw = failing.source.draw  # type: ignore[method-assign]
            elif what == "draw":
                envs.reward = fine
            else:
                envs.reward, failing.draw = fine, failing.source.draw  # type: ignore[method-assign]
            for _ in range(2):
                try:
                    made = envs.step(actions)
                    break
                except RuntimeError:
                    elapsed = [int(frames) for frames in envs._elapsed]
                    assert elapsed == list(envs._require_started().frames_imagined)
            else:
                failing.fails = False
                made = envs.step(actions)
            failing.fails = False
        assert_same(made, undisturbed.step(actions))


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_new_context_is_read_once(model: WorldModel, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    read: list[int] = []
    model.tokenizer.context_encoder.middle.register_forward_hook(lambda _, inputs, __: read.append(len(inputs[0]) // 2))
    envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, autoreset_mode=mode)
    envs.reset(seed=3)
    for number, actions in enumerate(some_actions(20)):
        if number in (1, 2):  # out of phase
            envs.reset(options={"reset_mask": np.arange(N) == number})
        read.clear()
        before = envs._elapsed.copy()
        envs.step(actions)
        begun = int(((envs._elapsed == 0) & (before > 0)).sum())
        assert sum(read) == begun, "read at each autoreset, and never for a renewal that is then thrown away"
