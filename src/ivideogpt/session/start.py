"""How rows begin: contexts are read, a few at a time, and written into slots.

Shapes: n contexts, t context frames, side of a frame, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.session.checks import distinct, require_context
from ivideogpt.session.memory import defers_last_token, suffix_length
from ivideogpt.session.prefill import Prefilled, parts, prefill
from ivideogpt.session.slots import Memory, Slots, bucket
from ivideogpt.session.state import Rows, State
from ivideogpt.session.states import known_states, require_states
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer


class NewContexts(NamedTuple):
    """Contexts that a user gave, checked, where they are."""

    frames: Tensor
    """(n,t,3,side,side) as given."""
    states: Tensor | None
    """(n,t,S) as given; None where they are to be read, or the model has learned none."""
    first: list[int]
    """The first of each kind: equal ones are read once."""
    which: list[int]
    """For each context the number of its kind."""


def new_contexts(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, context: Tensor, states: Tensor | None
) -> NewContexts:
    """Check contexts and their states, and find equal ones.

    Raises:
        ShapeError, ConfigError: see `require_context` and `require_states`.
    """
    context = require_context(tokenizer, transformer, context)
    states = require_states(tokenizer, transformer, len(context), states)
    return NewContexts(context, states, *distinct(context))


def read(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, given: NewContexts
) -> Iterator[tuple[range, Prefilled]]:
    """Read the contexts, some kinds at a time: their numbers, and what was made of them."""
    reads = transformer.states is not None and given.states is None
    for part in parts(len(given.first), tokenizer.config.resolution, transformer.embedding.weight.device):
        frames = tokenizer.pixels(given.frames[[given.first[kind] for kind in part]])
        yield part, prefill(tokenizer, transformer, frames, defer_last=defers_last_token(transformer), states=reads)


def begin(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, given: NewContexts, keys: Tensor, horizon: int
) -> State:
    """The state of a session that begins with these contexts, each continued by equally many rows.

    Args:
        tokenizer, transformer: the model.
        given: n contexts.
        keys: (rows, 2) the rows' random streams, context by context.
        horizon: frames imagined from one context.
    """
    branches, fixed = len(keys) // len(given.which), transformer.static
    kind_of_row = [kind for kind in given.which for _ in range(branches)]
    memory, read_states = None, []
    for kinds, made in read(tokenizer, transformer, given):
        if memory is None:
            memory = Memory(made.contexts.empty(bucket(len(keys)) if fixed else len(given.first)))
        for slot, kind in enumerate(kind_of_row if fixed else range(len(given.first))):
            if kind in kinds:
                memory.contexts.write(slot, made.contexts, kind - kinds.start)
        if transformer.states is not None and given.states is None:
            read_states.append(made.states)
        del made  # before the next are read
    assert memory is not None, "there is a context"
    of_row = list(range(len(keys))) if fixed else kind_of_row
    slots = Slots(memory, of_row, fixed)
    last_tokens = memory.contexts.last_tokens
    known = None
    if transformer.states is not None:
        states = given.states if given.states is not None else torch.cat(read_states)[given.which]
        known = known_states(transformer, states.repeat_interleave(branches, dim=0), horizon)
    index = torch.tensor(of_row, device=last_tokens.device)
    rows = Rows.begin(
        keys.to(index.device), horizon, transformer.layout.dynamics_tokens, last_tokens.index_select(0, index), known
    )
    cache = slots.cache(suffix_length(transformer, horizon))
    return State(slots, cache, rows, transformer.layout.frame_length)
