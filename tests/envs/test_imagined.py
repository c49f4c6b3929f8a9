"""Imagined environments: Gymnasium's contract, agreement with Gymnasium's own vector environment, refusals."""

from __future__ import annotations

import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from ivideogpt import WorldModel
from ivideogpt.envs import IMAGINED_ID
from ivideogpt.envs.imagined import ImaginedVectorEnv, ResetNeeded
from ivideogpt.envs.imagined_single import ImaginedEnv
from ivideogpt.errors import ConfigError, SessionError, ShapeError

MakeWorldModel = Callable[..., WorldModel]

A, LIMIT, STEPS, N = 2, 1.0, 3, 3
CONTEXTS = np.random.default_rng(0).integers(0, 256, (6, 2, 16, 16, 3), np.uint8)


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=A, action_limit=LIMIT, reward=True, trained_frames=2 + STEPS)


@pytest.fixture
def envs(model: WorldModel) -> ImaginedVectorEnv:
    return ImaginedVectorEnv(N, model=model, contexts=CONTEXTS)


def some_actions(steps: int, envs: int = N, seed: int = 0) -> np.ndarray:
    """(steps, envs, A) float32 in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, (steps, envs, A)).astype(np.float32)


def check_vector_env(envs: ImaginedVectorEnv, steps: int) -> None:
    """What Gymnasium promises of a vector environment: spaces, types, masks, time limit, nothing shared, seeds."""
    n, kept = envs.num_envs, []
    for _ in range(2):
        frames, info = envs.reset(seed=7)
        envs.action_space.seed(7)
        assert info["_origin"].all()
        kept.append([frames])
        for _ in range(steps):
            frames, rewards, terminated, truncated, info = envs.step(envs.action_space.sample())
            assert frames in envs.observation_space
            assert all(frame in envs.single_observation_space for frame in frames)
            assert (frames.dtype, frames.shape) == (np.uint8, (n, *envs.single_observation_space.shape))
            assert (rewards.dtype, rewards.shape) == (np.float64, (n,))
            for flags in (terminated, truncated):
                assert (flags.dtype, flags.shape) == (np.bool_, (n,))
            assert not terminated.any()
            for key in ("tokens", "entropy", "origin"):
                assert len(info[key]) == n
                assert (info[f"_{key}"].dtype, info[f"_{key}"].shape) == (np.bool_, (n,))
            assert not any(np.shares_memory(frames, old) for old in kept[-1])
            kept[-1].append(frames)
    assert all(np.array_equal(one, other) for one, other in zip(*kept, strict=True))
    assert isinstance(envs.metadata["autoreset_mode"], AutoresetMode)


def test_the_single_environment_passes_gymnasiums_check(model: WorldModel) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_env(ImaginedEnv(model=model, contexts=CONTEXTS, render_mode="rgb_array"), skip_render_check=True)
        # Made by its name it also has what the check of rendering and closing needs.
        check_env(gymnasium.make(IMAGINED_ID, model=model, contexts=CONTEXTS).unwrapped)


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_the_vector_environment_keeps_the_contract(model: WorldModel, mode: str) -> None:
    check_vector_env(ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, autoreset_mode=mode), 2 * STEPS + 3)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_equals_gymnasiums_vector_of_single_environments(model: WorldModel, mode: AutoresetMode) -> None:
    ours = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, autoreset_mode=mode)
    theirs = SyncVectorEnv([lambda: ImaginedEnv(model=model, contexts=CONTEXTS)] * N, autoreset_mode=mode)
    assert ours.action_space == theirs.action_space
    assert ours.observation_space == theirs.observation_space
    assert_same(ours.reset(seed=3), theirs.reset(seed=3))
    for number, actions in enumerate(some_actions(3 * STEPS)):
        if number == 1:  # from here on the environments end at different steps
            mask = np.array([False, True, False])
            ours.reset(seed=[0, 11, 0], options={"reset_mask": mask})
            theirs.reset(seed=[0, 11, 0], options={"reset_mask": mask})
        assert_same(ours.step(actions), theirs.step(actions))


def assert_same(ours: Any, theirs: Any) -> None:
    """Equal but for rounding; a key of info that nobody has may be left out."""
    if isinstance(ours, dict):
        for key in ours.keys() | theirs.keys():
            if key.startswith("_"):
                nobody = np.zeros(N, bool)
                np.testing.assert_array_equal(ours.get(key, nobody), theirs.get(key, nobody))
            elif ours[f"_{key}"].any():
                assert_same(ours[key], theirs[key])
    elif isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    elif ours.dtype == np.uint8:
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    elif ours.dtype == object:
        for one, other in zip(ours, theirs, strict=True):
            if isinstance(one, np.ndarray):
                assert_same(one, other)
            else:
                assert one == other
    else:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_steps_are_those_of_a_session(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(1, model=model, contexts=CONTEXTS[:1])
    frames, info = envs.reset(seed=5)
    np.testing.assert_array_equal(frames, CONTEXTS[:1, -1])
    assert info["origin"].tolist() == ["contexts[0]"]
    seed = int(gymnasium.utils.seeding.np_random(5)[0].integers(2**63))
    session = model.start(torch.from_numpy(CONTEXTS[:1]).permute(0, 1, 4, 2, 3), seed=[seed])
    for actions in some_actions(STEPS, envs=1):
        frames, rewards, _, _, info = envs.step(actions)
        step = session.step(torch.from_numpy(actions))
        assert step.frame is not None
        assert step.reward is not None
        np.testing.assert_array_equal(info["tokens"], step.tokens)
        np.testing.assert_array_equal(frames[0], (step.frame[0] * 255).round().permute(1, 2, 0))
        np.testing.assert_allclose(info["entropy"], step.entropy)
        np.testing.assert_allclose(rewards, step.reward)


def test_an_environment_does_not_depend_on_how_many_there_are(model: WorldModel) -> None:
    few, many = (ImaginedVectorEnv(n, model=model, contexts=CONTEXTS) for n in (2, 4))
    few.reset(seed=[8, 9])
    many.reset(seed=6)  # 6, 7, 8, 9
    for actions in some_actions(2 * STEPS, envs=4):
        told, all_told = few.step(actions[2:])[4], many.step(actions)[4]
        np.testing.assert_array_equal(told["tokens"], all_told["tokens"][2:])
        np.testing.assert_array_equal(told["origin"], all_told["origin"][2:])


def test_other_seeds_give_other_episodes_and_none_goes_on(envs: ImaginedVectorEnv) -> None:
    def tokens(seed: int | None) -> list[Any]:
        envs.reset(seed=seed)
        return [envs.step(actions)[4]["tokens"].tolist() for actions in some_actions(STEPS)]

    first, second, again, second_again = tokens(1), tokens(None), tokens(1), tokens(None)
    assert first == again
    assert second == second_again
    assert first != second
    assert first != tokens(2)
    assert len(envs.np_random) == N
    assert envs.np_random_seed == (2, 3, 4)


def test_time_limit_and_next_step_autoreset(envs: ImaginedVectorEnv) -> None:
    envs.reset(seed=0)
    truncations = [envs.step(actions)[3].all() for actions in some_actions(STEPS)]
    assert truncations == [False] * (STEPS - 1) + [True]
    nonsense = np.full((N, A), np.nan)  # not looked at
    frames, rewards, _, truncated, info = envs.step(nonsense)
    assert not truncated.any()
    assert not rewards.any()
    assert not info["_tokens"].any()
    for frame, origin in zip(frames, info["origin"], strict=True):
        np.testing.assert_array_equal(frame, CONTEXTS[int(origin[len("contexts[") : -1]), -1])


def test_same_step_autoreset_keeps_the_last_frame(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, autoreset_mode="SameStep", max_episode_steps=1)
    envs.reset(seed=0)
    frames, rewards, _, truncated, info = envs.step(some_actions(1)[0])
    assert truncated.all()
    assert rewards.all()
    assert info["_final_obs"].all()
    assert info["final_info"]["_tokens"].all()
    assert info["final_info"]["tokens"].shape == (N, 4)
    assert not any(np.array_equal(frame, final) for frame, final in zip(frames, info["final_obs"], strict=True))
    assert not info["_tokens"].any()


def test_an_episode_can_be_longer_than_the_model_was_trained_for(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, max_episode_steps=4 * STEPS)
    envs.reset(seed=0)
    truncations = [envs.step(actions)[3].all() for actions in some_actions(4 * STEPS)]
    assert truncations.index(True) == 4 * STEPS - 1


def test_rows_that_reset_do_not_disturb_the_others(model: WorldModel) -> None:
    disturbed, alone = (ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, max_episode_steps=99) for _ in range(2))
    before, _ = disturbed.reset(seed=0)
    alone.reset(seed=0)
    others = np.array([True, False, True])
    for number, actions in enumerate(some_actions(4)):
        if number == 2:
            frames, info = disturbed.reset(options={"reset_mask": ~others})
            np.testing.assert_array_equal(frames[others], before[others])
            assert info["_origin"].tolist() == (~others).tolist()
            assert info["origin"][0] is None
        before, *_, told = disturbed.step(actions)
        np.testing.assert_array_equal(told["tokens"][others], alone.step(actions)[4]["tokens"][others])


class Breakable:
    """A source of contexts that fails on demand."""

    broken = False

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str]:
        if self.broken:
            raise OSError("the disk is gone")
        return CONTEXTS[0], "intact"


def test_nothing_moves_where_a_source_fails(model: WorldModel) -> None:
    source = Breakable()
    envs, intact = (ImaginedVectorEnv(N, model=model, contexts=source) for _ in range(2))
    first, *actions = some_actions(STEPS + 2)
    for one in (envs, intact):
        one.reset(seed=0)
        one.step(first)
        one.reset(options={"reset_mask": np.array([False, True, False])})
        for number in range(STEPS - 1):
            one.step(actions[number])
    source.broken = True  # environments 0 and 2 begin anew now, 1 goes on
    with pytest.raises(OSError, match="disk"):
        envs.step(actions[-1])
    source.broken = False
    ours, theirs = envs.step(actions[-1]), intact.step(actions[-1])
    assert ours[4]["_tokens"].tolist() == [False, True, False]
    np.testing.assert_array_equal(ours[4]["tokens"], theirs[4]["tokens"])


def test_a_disabled_autoreset_asks_for_a_reset(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(
        N, model=model, contexts=CONTEXTS, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=1
    )
    actions = some_actions(1)[0]
    envs.reset(seed=0)
    envs.step(actions)
    envs.reset(options={"reset_mask": np.array([True, False, True])})
    with pytest.raises(ResetNeeded, match=re.escape("environments [1] are over")):
        envs.step(actions)
    envs.reset(options={"reset_mask": np.array([False, True, False])})
    assert envs.step(actions)[3].all()


@pytest.mark.parametrize(
    ("row", "value", "message"),
    [
        (1, 1.5, "component 1 of the action of env 1 is 1.5; it must be finite and lie in [-1, 1]"),
        (2, np.nan, "component 1 of the action of env 2 is nan"),
        (0, -np.inf, "component 1 of the action of env 0 is -inf"),
    ],
)
def test_a_wrong_action_is_refused_and_nothing_moves(
    envs: ImaginedVectorEnv, row: int, value: float, message: str
) -> None:
    good = some_actions(2)
    wrong = good[1].copy()
    wrong[row, 1] = value
    results = []
    for mistaken in (False, True):
        envs.reset(seed=0)
        envs.step(good[0])
        if mistaken:
            with pytest.raises(ShapeError, match=re.escape(message)):
                envs.step(wrong)
        results.append(envs.step(good[1]))
    assert_same(*results)


@pytest.mark.parametrize("actions", [np.zeros((N, A + 1)), np.zeros(A), np.zeros((N + 1, A)), 0.5])
def test_actions_of_another_shape_are_refused(envs: ImaginedVectorEnv, actions: Any) -> None:
    envs.reset(seed=0)
    with pytest.raises(ShapeError, match=re.escape("(n, A) = (3, 2)")):
        envs.step(actions)
    with pytest.raises(ShapeError, match="no array of numbers"):
        envs.step([["left", "right"]] * N)  # type: ignore[list-item]
    assert envs.step(some_actions(1)[0])[0].shape == (N, 16, 16, 3)


def test_order_of_calls(envs: ImaginedVectorEnv) -> None:
    with pytest.raises(ResetNeeded, match="Call reset"):
        envs.step(some_actions(1)[0])
    with pytest.raises(ResetNeeded, match="without a mask"):
        envs.reset(options={"reset_mask": np.array([True, False, True])})
    envs.reset()
    envs.close()
    envs.close()
    with pytest.raises(SessionError, match="closed"):
        envs.step(some_actions(1)[0])
    with pytest.raises(SessionError, match="closed"):
        envs.reset()


def test_rendering(model: WorldModel) -> None:
    envs = ImaginedVectorEnv(N, model=model, contexts=CONTEXTS, render_mode="rgb_array")
    with pytest.raises(ResetNeeded):
        envs.render()
    envs.reset(seed=0)
    frames, *_ = envs.step(some_actions(1)[0])
    pictures = envs.render()
    assert pictures is not None
    np.testing.assert_array_equal(np.stack(pictures), frames)
    env = ImaginedEnv(model=model, contexts=CONTEXTS, render_mode="rgb_array")
    frame, _ = env.reset(seed=0)
    np.testing.assert_array_equal(env.render(), frame)
    assert ImaginedEnv(model=model, contexts=CONTEXTS).render() is None


def test_made_by_name(model: WorldModel) -> None:
    env = gymnasium.make(IMAGINED_ID, model=model, contexts=CONTEXTS, device="cpu", max_episode_steps=2)
    env.reset(seed=0)
    assert [env.step(actions[0])[3] for actions in some_actions(2)] == [False, True]
    assert isinstance(env.unwrapped, ImaginedEnv)
    for mode in ("vector_entry_point", None):
        envs = gymnasium.make_vec(
            IMAGINED_ID, num_envs=N, vectorization_mode=mode, model=model, contexts=CONTEXTS, max_episode_steps=7
        )
        assert isinstance(envs, ImaginedVectorEnv)
        assert (envs.num_envs, envs.max_episode_steps) == (N, 7)
    by_module = gymnasium.make_vec(f"ivideogpt.envs:{IMAGINED_ID}", model=model, contexts=CONTEXTS)
    assert isinstance(by_module, ImaginedVectorEnv)


def test_the_shipped_model_needs_no_arguments(model: WorldModel) -> None:
    env = gymnasium.make(IMAGINED_ID)
    assert env.reset(seed=0)[1]["origin"].startswith("pusht:")
    assert env.step(env.action_space.sample())[0].shape == (64, 64, 3)
    envs = gymnasium.make_vec(IMAGINED_ID, num_envs=2, vectorization_mode="vector_entry_point")
    assert isinstance(envs, ImaginedVectorEnv) and envs.action_names == ("target x", "target y")
    with pytest.raises(ConfigError, match="contexts is left out, and this model is not known to be one of Push-T"):
        ImaginedEnv(model=model)


def test_gymnasiums_own_wrapper_counts_episodes(envs: ImaginedVectorEnv) -> None:
    counted = RecordEpisodeStatistics(envs)
    counted.reset(seed=0)
    for actions in some_actions(STEPS):
        info = counted.step(actions)[4]
    assert info["episode"]["l"].tolist() == [STEPS] * N


def test_the_package_is_light() -> None:
    program = (
        f"import ivideogpt.envs, gymnasium, sys; assert {IMAGINED_ID!r} in gymnasium.registry; "
        "assert not {'torch', 'pygame', 'gym_pusht'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
