"""Making pixels of tokens, as many frames at once as are fastest.

Shapes: C contexts, N of them (some of them, or one several times), F frames of each, M dynamics tokens a frame,
S numbers of a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.session.prefill import frames_at_once
from ivideogpt.session.slots import Contexts
from ivideogpt.states import encode_states
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.results import DecodedContext
from ivideogpt.tokenizer.states import ShownStates

_AT_ONCE = 256  # frames of 64 pixels
_AT_ONCE_ON_CPU = 16  # feature maps of more would not fit into the processor's cache, and wait for memory


def decode_in_parts(
    tokenizer: CompressiveTokenizer, codes: Tensor, shown: Tensor | None, contexts: Contexts, which: Tensor
) -> Tensor:
    """Dynamics codes (N,F,M), F > 0, imagined from contexts -> frames (N,F,3,side,side) float32 in [0,1].

    Args:
        tokenizer: the model's.
        codes: 0..Kd-1.
        shown: (N,F,S) states to show, for a tokenizer that has learned states; None for none.
        contexts: C of them.
        which: (N,) int64, the context of each.
    """
    most = decoded_at_once(tokenizer.config.resolution, codes.device)
    together = max(1, most // codes.shape[1])  # contexts
    told = None
    if shown is not None and tokenizer.config.state is not None:
        told = encode_states(shown, tokenizer.config.state)
    done = []
    for first, (part, index) in enumerate(zip(codes.split(together), which.split(together), strict=True)):
        features = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in contexts.features]
        context = DecodedContext(codes.new_empty(0), features)
        size = max(1, most // len(part))
        rows = slice(first * together, first * together + len(part))
        frames = []
        for start, some in zip(range(0, part.shape[1], size), part.split(size, dim=1), strict=True):
            states = None if told is None else ShownStates(told[rows, start : start + size])
            frames.append(tokenizer.decode_future(some, context, states))
        done.append(torch.cat(frames, dim=1))
    return torch.cat(done).float().clamp(0, 1)


def decoded_at_once(side: int, device: torch.device) -> int:
    """Most frames that are decoded together."""
    return frames_at_once(_AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE, side)
