"""Transitions of states from all training episodes: how states change is learned from many more than segments hold.

Shapes: N transitions, B segments, T frames, S numbers of a state, A action size, D features of a state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.data.segment import action_blocks
from ivideogpt.errors import EpisodeError
from ivideogpt.transformer.states import StatePath

Floats = npt.NDArray[np.float32]

_FIRST_SHARE = 0.1
_SMALL_ERROR = 0.1  # of the usual change: below it the error counts squared


@dataclass(frozen=True, eq=False)
class Transitions:
    """What was before, is, is done, and comes next."""

    states: Tensor
    """(N, 3, S): of the frame before, the present one and the next. The first frame of an episode is its own before."""
    actions: Tensor | None
    """(N, k*A) taken from the present frame to the next, k frames later."""

    def sample(self, count: int, device: torch.device) -> Transitions:
        """`count` of them, drawn with torch's global generator."""
        rows = torch.randint(len(self.states), (count,))
        return Transitions(
            self.states[rows].to(device), None if self.actions is None else self.actions[rows].to(device)
        )


def transitions_of(episodes: Iterable[tuple[Floats, Floats | None]], step_size: int) -> Transitions:
    """All transitions of some episodes.

    Args:
        episodes: states (T,S) and actions (T,A) or None of each.
        step_size: frames k from the present to the next, and actions that lead there.

    Raises:
        EpisodeError: states or actions of different sizes, or no episode in which one state follows another.
    """
    states, actions = [], []
    for track, taken in episodes:
        present = np.arange(max(0, len(track) - step_size))
        moments = np.stack([np.maximum(present - step_size, present % step_size), present, present + step_size], axis=1)
        states.append(track[moments])
        if taken is not None:
            actions.append(action_blocks(taken, present, step_size))
    for name, parts, each in (("states", states, 1), ("actions", actions, step_size)):
        sizes = sorted({part.shape[-1] // each for part in parts})
        if len(sizes) > 1:
            raise EpisodeError(
                f"{name} have {sizes[0]} columns in one episode and {sizes[1]} in another; one dataset has one kind. "
                "Keep episodes of another kind in another folder."
            )
    if not any(len(part) for part in states):
        raise EpisodeError(
            f"no episode has more than {step_size} frames, so no state follows another {step_size} frames later. "
            "Record longer episodes, or take a smaller step_size."
        )
    return Transitions(
        torch.from_numpy(np.concatenate(states)), torch.from_numpy(np.concatenate(actions)) if actions else None
    )


def transition_loss(path: StatePath, batch: Transitions, noise: float) -> Tensor:
    """Error of the next state in units of the usual change, from states with noise up to `noise` deviations."""
    features = path.features(batch.states)
    before, present, following = features.unbind(dim=1)
    if path.layout.context_frames - path.layout.goal < 2:  # sessions start with no moment before the present
        first = torch.rand(len(features), 1, device=features.device) < _FIRST_SHARE
        before = torch.where(first, present, before)
    scale = noise * torch.rand(len(features), 1, device=features.device)
    before, present = (x + scale * torch.randn_like(x) for x in (before, present))
    predicted = path.next(before, present, batch.actions)
    change = path.dynamics.change
    return F.smooth_l1_loss(predicted / change, following / change, beta=_SMALL_ERROR)


def next_state_error(path: StatePath, states: Tensor, actions: Tensor | None, mask: Tensor) -> Tensor:
    """How far off each future frame's state is, predicted from the true ones before: mean absolute error, in units of
    the usual change.

    Args:
        path: what predicts.
        states: (B,T,S), the true ones.
        actions: (B,T,A), or None.
        mask: (B,T) bool, False on padded frames, which do not count.
    """
    features, future = path.features(states), slice(path.layout.context_frames, None)
    off = (path.next_of_segment(features, actions) - features[:, future]) / path.dynamics.change
    return (off.abs().mean(dim=-1) * mask[:, future]).sum() / mask[:, future].sum().clamp(min=1)
