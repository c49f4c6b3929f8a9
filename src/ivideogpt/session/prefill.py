"""Prefill: what is made once of each context, a few contexts at a time.

Shapes: n contexts, t context frames, side of a frame, S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.session.slots import Contexts
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import Prefixes, VideoTransformer

_AT_ONCE = 32  # contexts of 64 pixels; fewer of larger ones, as their feature maps take more memory
_AT_ONCE_ON_CPU = 8  # feature maps of more would not fit into the processor's cache, and wait for memory


class Prefilled(NamedTuple):
    """n contexts that have been read."""

    contexts: Contexts
    read: Tensor | None
    """(n,t,S) states that their frames show, where they were asked for."""

    @property
    def states(self) -> Tensor:
        """Those states."""
        assert self.read is not None, "asked for where none are given"
        return self.read


def prefill(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, frames: Tensor, *, defer_last: bool, states: bool
) -> Prefilled:
    """Tokenize and read contexts (n,t,3,side,side), and decode their features.

    Args:
        tokenizer, transformer: the model.
        frames: in the tokenizer's precision, in [0,1].
        defer_last: leave each context's last token pending: the transformer reads it together with the first slot.
        states: whether to read the states that they show.
    """
    layout = transformer.layout
    encoded = tokenizer.encode_context(frames, states=states)
    codes, read = encoded.codes, encoded.states
    del encoded  # what an encoder of future frames would attend to
    features = tokenizer.decode_context(codes, pixels=False).keys_values
    tokens = layout.assemble(codes, codes.new_empty(len(codes), 0, layout.dynamics_tokens))
    length = layout.prefix_length - defer_last
    cache = transformer.new_cache(len(codes), length)
    transformer.hidden_states(transformer.embed(tokens, None)[:, :length], cache)
    return Prefilled(Contexts(frames, features, tokens[:, -1], Prefixes.of(cache)), read)


def parts(contexts: int, side: int, device: torch.device) -> Iterator[range]:
    """Parts in which so many contexts are read."""
    size = frames_at_once(_AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE, side)
    for first in range(0, contexts, size):
        yield range(first, min(first + size, contexts))


def frames_at_once(small: int, side: int) -> int:
    """How many frames of this side to work on together, if of 64 pixels it is `small`."""
    return max(1, small * 64**2 // side**2)
