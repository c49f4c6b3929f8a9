"""Transitions of states: which frames follow which, and that how they follow is learned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ivideogpt.config import StateConfig, TransformerConfig
from ivideogpt.errors import EpisodeError
from ivideogpt.presets import transformer_preset
from ivideogpt.states import encode_states, state_statistics
from ivideogpt.training.transitions import Transitions, next_state_error, transition_loss, transitions_of
from ivideogpt.transformer.states import StatePath

Make = Callable[..., Any]
CPU = torch.device("cpu")


def track(length: int, number: int = 0, size: int = 2) -> np.ndarray:
    """States that tell their episode and frame."""
    return np.stack([100 * number + np.arange(length)] * size, axis=1).astype(np.float32)


@pytest.mark.parametrize("step_size", [1, 2, 3])
def test_what_follows_what(step_size: int) -> None:
    lengths = (7, step_size, 1, step_size + 1)  # the second and third are too short for anything to follow
    episodes = [(track(length, number), -track(length, number, 3)) for number, length in enumerate(lengths)]
    made = transitions_of(iter(episodes), step_size)
    expected, taken = [], []
    for number, length in enumerate(lengths):
        for present in range(length - step_size):
            before = present - step_size if present >= step_size else present  # of its own: nothing moved yet
            expected.append([100 * number + frame for frame in (before, present, present + step_size)])
            taken.append([-(100 * number + frame) for frame in range(present, present + step_size)])
    assert made.states[..., 0].tolist() == expected and made.states.shape == (len(expected), 3, 2)
    assert made.actions is not None and made.actions.shape == (len(taken), 3 * step_size)
    assert made.actions.unflatten(1, (step_size, 3)).tolist() == [[[a] * 3 for a in block] for block in taken]


def test_without_actions() -> None:
    made = transitions_of([(track(4), None), (track(3, 1), None)], 1)
    assert made.actions is None and made.sample(5, CPU).actions is None
    assert made.states.shape == (5, 3, 2) and made.states.dtype == torch.float32


def test_what_has_no_transitions() -> None:
    with pytest.raises(EpisodeError, match="no episode has more than 3 frames, so no state follows another"):
        transitions_of([(track(3), None), (track(1), None)], 3)
    with pytest.raises(EpisodeError, match="states have 2 columns in one episode and 3 in another"):
        transitions_of([(track(5), None), (track(5, size=3), None)], 1)
    with pytest.raises(EpisodeError, match="actions have 2 columns in one episode and 4 in another"):
        transitions_of([(track(5), track(5)), (track(5), track(5, size=4))], 2)


def test_samples_follow_torchs_seed_and_keep_states_with_their_actions() -> None:
    whole = transitions_of([(track(50, number), track(50, number)) for number in range(4)], 1)
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(whole.sample(64, CPU))
    assert torch.equal(samples[0].states, samples[1].states) and not torch.equal(samples[0].states, samples[2].states)
    assert samples[0].actions is not None and torch.equal(samples[0].actions[:, 0], samples[0].states[:, 1, 0])
    assert samples[0].states.shape == (64, 3, 2)
    assert len({int(row) // 100 for row in samples[0].states[:, 1, 0]}) == 4, "of all episodes"


# A toy world: a point that the action pushes and that slides on, and a dial that it turns


def toy_world(episodes: int = 40, length: int = 20) -> tuple[StateConfig, Transitions]:
    rng = np.random.default_rng(0)
    tracks = []
    for _ in range(episodes):
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        states, speed = np.zeros((length, 2), np.float32), 0.0
        states[0] = rng.normal(0, 5), rng.uniform(-3, 3)
        for j in range(length - 1):
            speed = 0.5 * speed + actions[j, 0]
            states[j + 1] = states[j, 0] + speed, states[j, 1] + 0.3 * actions[j, 1]
        tracks.append((states, actions))
    return state_statistics([states for states, _ in tracks], angles=(1,)), transitions_of(tracks, 1)


def path_for(state: StateConfig) -> StatePath:
    torch.manual_seed(0)
    shape = dict(transformer_preset("micro", None))
    return StatePath(TransformerConfig(**{**shape, "action_dim": 2, "state": state}))


def test_the_loss_falls_where_there_is_something_to_learn() -> None:
    state, world = toy_world()
    path = path_for(state)
    optimizer = torch.optim.AdamW(path.parameters(), lr=3e-3)
    errors = []
    for _ in range(120):
        loss = transition_loss(path, world.sample(128, CPU), noise=0.0)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        errors.append(float(loss.detach()))
    assert errors[0] > 0.4 and np.mean(errors[-10:]) < 0.2 * errors[0]
    still = world.states[:, [1, 1]].flip(1)
    with torch.no_grad():
        features = encode_states(world.states, state)
        off = (path.next(features[:, 0], features[:, 1], world.actions) - features[:, 2]).abs().mean()
        unmoved = (encode_states(still, state)[:, 1] - features[:, 2]).abs().mean()
    assert off < 0.3 * unmoved, "better than to say that nothing changes"


@torch.no_grad()
def test_the_loss_is_in_units_of_the_usual_change() -> None:
    """So it does not matter in which units the states were recorded, nor how far things lie apart."""
    state, world = toy_world()
    larger = Transitions(world.states * torch.tensor([1000.0, 1.0]) + torch.tensor([7.0, 0.0]), world.actions)
    changes = {"mean": (state.mean[0] * 1000 + 7, 0.0), "std": (state.std[0] * 1000, 1.0)}
    changes["change"] = (state.change[0] * 1000, state.change[1])
    one, other = path_for(state), path_for(state.model_copy(update=changes))
    other.load_state_dict(one.state_dict())
    losses = [float(transition_loss(path, data, 0.0)) for path, data in ((one, world), (other, larger))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for path in (one, other):  # what is left is the change itself
        path.dynamics.state_out.weight.zero_()
        path.dynamics.state_out.bias.zero_()
    far = transition_loss(one, world, 0.0)
    change = (one.features(world.states[:, 2]) - one.features(world.states[:, 1])) / one.dynamics.change
    torch.testing.assert_close(far, torch.nn.functional.smooth_l1_loss(change, torch.zeros_like(change), beta=0.1))


@torch.no_grad()
def test_noise_is_on_what_is_seen_and_follows_torchs_seed() -> None:
    state, world = toy_world()
    path = path_for(state)
    seen: list[tuple[Tensor, Tensor]] = []
    plain = path.next

    def watch(before: Tensor, present: Tensor, actions: Tensor | None) -> Tensor:
        seen.append((before, present))
        return plain(before, present, actions)

    path.next = watch  # type: ignore[method-assign]
    losses = []
    for seed, noise in ((0, 0.03), (0, 0.03), (1, 0.03), (0, 0.0)):
        torch.manual_seed(seed)
        losses.append(float(transition_loss(path, world, noise)))
    assert losses[0] == losses[1] != losses[2]
    features = path.features(world.states)
    assert torch.equal(seen[3][0], features[:, 0]) and torch.equal(seen[3][1], features[:, 1])
    for part in range(2):
        off = (seen[0][part] - features[:, part]).pow(2).mean(dim=1).sqrt()
        assert 0.01 < off.mean() < 0.02 and off.max() < 4 * 0.03 and off.min() < 0.003, "each its own size"


@torch.no_grad()
@pytest.mark.parametrize("goal", [False, True])
def test_the_error_of_what_is_foretold(make_transformer: Make, goal: bool) -> None:
    state, _ = toy_world()
    layout = transformer_preset("micro", None).layout.__class__(2, 16, 4, 32, 32, goal)
    path = make_transformer(layout=layout, action_dim=2, state=state).states
    torch.manual_seed(0)
    states, actions, mask = torch.randn(3, 6, 2), torch.rand(3, 6, 2), torch.ones(3, 6, dtype=torch.bool)
    mask[1, -2:] = False
    features, off = path.features(states), []
    for b in range(3):
        for j in range(2, 6):
            before = max(int(goal), j - 2)
            predicted = path.next(features[b, before], features[b, j - 1], actions[b, j - 1])
            off += [((predicted - features[b, j]) / path.dynamics.change).abs().mean()] if mask[b, j] else []
    assert len(off) == 10
    torch.testing.assert_close(next_state_error(path, states, actions, mask), torch.stack(off).mean())
    assert next_state_error(path, states, None, mask) != next_state_error(path, states, actions, mask)
    assert next_state_error(path, states, actions, torch.zeros_like(mask)) == 0
