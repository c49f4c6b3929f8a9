"""What a session knows of its rows' states: read from the context or given with it, then predicted step by step.

Shapes: R rows, n contexts, t context frames, S numbers of a state, D its features (`states.py`), A action size.
"""

from __future__ import annotations

from typing import NamedTuple, Self

import torch
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.states import StatePath


class KnownStates(NamedTuple):
    """Each row's states."""

    before: Tensor
    """(R, D) features of the state before the present one."""
    present: Tensor
    """(R, D) features of the present state."""
    shown: Tensor
    """(R, horizon, S) states of the frames imagined from the present contexts, as far as there are any."""

    def after(self, path: StatePath, action: Tensor | None) -> Tensor:
        """Features (R, D) of the states one step on, by actions (R, A) or none."""
        return path.next(self.before, self.present, action).to(self.present.dtype)

    def select(self, index: Tensor) -> Self:
        """Those of the rows in index (n,), each as often as it is named."""
        return type(self)(*(features.index_select(0, index) for features in self))

    def replaced(self, index: Tensor, others: KnownStates) -> Self:
        """With others in the place of those of the rows in index (n,)."""
        return type(self)(*(mine.index_copy(0, index, new) for mine, new in zip(self, others, strict=True)))

    def moved(self, index: Tensor | None, following: Tensor) -> KnownStates:
        """One step on, to the features (n, D), for the rows in index (n,) or all; what they showed is kept."""
        if index is None:
            return KnownStates(self.present, following, self.shown)
        before = self.before.index_copy(0, index, self.present.index_select(0, index))
        return KnownStates(before, self.present.index_copy(0, index, following), self.shown)


def require_states(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, contexts: int, given: Tensor | None
) -> Tensor | None:
    """The states (n,t,S) given with n contexts, checked; None where they are to be read, or the model has none.

    Raises:
        ShapeError: states of another shape or that are not finite, or any for a model without.
        ConfigError: none are given, and the tokenizer cannot read those that the transformer has learned.
    """
    if given is None:
        if transformer.states is not None:
            tokenizer.require_states()
        return None
    path = transformer.require_states()
    if not isinstance(given, Tensor):
        raise ShapeError(f"states are a {type(given).__name__}; give a torch tensor: torch.as_tensor(states).")
    expected = (contexts, transformer.layout.context_frames, path.config.size)
    if tuple(given.shape) != expected:
        raise ShapeError(f"states have shape {tuple(given.shape)}; this model takes (B, t, S) = {expected}.")
    if not bool(torch.isfinite(given).all()):
        raise ShapeError("states must be finite. Mend them, or leave them out: they are then read from the frames.")
    return given


def known_states(transformer: VideoTransformer, states: Tensor, horizon: int) -> KnownStates:
    """What is known of n rows that begin with these states (n,t,S), and will imagine `horizon` frames from them."""
    path = transformer.require_states()
    features = path.features(states.to(transformer.embedding.weight.device))
    older = features[:, -2] if features.shape[1] > 1 + transformer.layout.goal else features[:, -1]
    return KnownStates(older, features[:, -1], features.new_zeros(len(features), horizon, path.config.size))
