"""What a session knows of its rows' states: read from the context or given with it, then foretold step by step.

Shapes: R rows, n contexts, t context frames, S numbers of a state, D its features (`states.py`), A action size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.states import StatePath

_READ_AT_ONCE = 8  # contexts


class KnownStates(NamedTuple):
    """Each row's states."""

    before: Tensor
    """(R, D) features of the state before the present one."""
    present: Tensor
    """(R, D) features of the present state."""
    shown: Tensor
    """(R, horizon, S) states of the frames imagined from the present contexts, as far as there are any."""

    def after(self, path: StatePath, action: Tensor | None, segment: Sequence[int]) -> KnownStates:
        """One step on, by actions (R, A) or none, from rows that have imagined so many frames from their contexts."""
        following = path.next(self.before, self.present, action).to(self.present.dtype)
        shown = self.shown.clone()
        shown[torch.arange(len(shown)), torch.tensor(segment)] = path.decoded(following)
        return KnownStates(self.present, following, shown)

    def select(self, rows: Sequence[int]) -> Self:
        """Those of these rows, each as often as it is named."""
        index = torch.tensor(list(rows), device=self.present.device)
        return type(self)(*(features.index_select(0, index) for features in self))

    def replaced(self, rows: Sequence[int], others: KnownStates) -> Self:
        """With others in the place of those of these rows."""
        index = torch.tensor(list(rows), device=self.present.device)
        return type(self)(*(mine.index_copy(0, index, new) for mine, new in zip(self, others, strict=True)))


def states_of(
    tokenizer: CompressiveTokenizer,
    transformer: VideoTransformer,
    frames: Tensor,
    kinds: tuple[list[int], list[int]],
    given: Tensor | None,
    horizon: int,
) -> KnownStates | None:
    """The states of contexts; None where the model has learned none.

    Args:
        tokenizer, transformer: the model.
        frames: (n,t,3,R,R), checked.
        kinds: which of them are different, as `beginning.distinct` says: equal ones are read once.
        given: (n,t,S) in the states' own units; None reads them from the frames.
        horizon: frames imagined from one context.

    Raises:
        ShapeError: states of another shape or that are not finite, or any for a model without.
        ConfigError: none are given, and the tokenizer cannot read them.
    """
    if given is None and transformer.states is None:
        return None
    path = transformer.require_states()
    if given is None:
        first, which = kinds
        states = torch.cat([tokenizer.read_states(part) for part in frames[first].split(_READ_AT_ONCE)])[which]
    else:
        if not isinstance(given, Tensor):
            raise ShapeError(f"states are a {type(given).__name__}; give a torch tensor: torch.as_tensor(states).")
        expected = (len(frames), transformer.layout.context_frames, path.config.size)
        if tuple(given.shape) != expected:
            raise ShapeError(f"states have shape {tuple(given.shape)}; this model takes (B, t, S) = {expected}.")
        if not bool(torch.isfinite(given).all()):
            raise ShapeError("states must be finite. Mend them, or leave them out: they are then read from the frames.")
        states = given.to(frames.device)
    features = path.features(states)
    older = features[:, -2] if features.shape[1] > 1 + transformer.layout.goal else features[:, -1]
    return KnownStates(older, features[:, -1], features.new_zeros(len(features), horizon, path.config.size))
