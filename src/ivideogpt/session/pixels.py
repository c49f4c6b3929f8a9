"""Making pixels of tokens, as many frames at once as are fastest.

Shapes: C contexts, N of them (some of them, or one several times), F frames of each, M dynamics tokens a frame,
S numbers of a state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ivideogpt.sequence import TokenLayout
from ivideogpt.session.prefill import frames_at_once
from ivideogpt.session.slots import Contexts
from ivideogpt.session.state import State
from ivideogpt.states import encode_states
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.results import DecodedContext
from ivideogpt.tokenizer.states import ShownStates

_AT_ONCE = 256  # frames of 64 pixels
_AT_ONCE_ON_CPU = 16  # feature maps of more would not fit into the processor's cache, and wait for memory


def decode_rows(
    tokenizer: CompressiveTokenizer, state: State, codes: Tensor, numbers: Tensor, chosen: Sequence[int], index: Tensor
) -> Tensor:
    """Frames (n,F,3,side,side) float32 in [0,1] of some rows of a session.

    Args:
        tokenizer: the model's.
        state: of the session.
        codes: (n,F,M) 0..Kd-1, imagined from the rows' present contexts.
        numbers: (n,F) which frames behind those contexts they are.
        chosen: n numbers of rows.
        index: (n,) the same on the device.
    """
    contexts, regular = state.slots.contexts, state.cache.groups.regular
    if codes.shape[1] == 0:
        return contexts.frames.new_empty(len(codes), 0, *contexts.frames.shape[2:], dtype=torch.float32)
    shown = None if state.rows.known is None else state.rows.known.shown[index[:, None], numbers]
    which, parts = state.cache.prefix_index.index_select(0, index), codes
    if regular is not None and list(chosen) == list(state.all_rows[0]):  # all frames of a context's rows together
        together = (regular.stop - regular.start, -1)
        parts = codes.unflatten(0, together).flatten(1, 2)  # (S, K*F, M)
        shown = None if shown is None else shown.unflatten(0, together).flatten(1, 2)
        which = torch.arange(regular.start, regular.stop, device=index.device)
    frames = decode_in_parts(tokenizer, parts, shown, contexts, which)
    return frames.view(*codes.shape[:2], *frames.shape[2:])


def newest_frames(
    tokenizer: CompressiveTokenizer, layout: TokenLayout, state: State, chosen: Sequence[int], index: Tensor
) -> Tensor:
    """What some rows would take as a context now (n,t,3,side,side) float in [0,1]: see `Session.frames`."""
    goal, t = int(layout.goal), layout.context_frames
    numbers = state.imagined(index)[:, None] + torch.arange(goal - t, 0, device=index.device)
    given = state.slots.contexts.frames[state.cache.prefix_index.index_select(0, index)].float()
    newest = given[torch.arange(len(chosen), device=index.device)[:, None], (t + numbers).clamp(max=t - 1)]
    if any(state.rows.segment[row] for row in chosen):
        of_row = numbers.clamp(min=0)
        codes = state.rows.tokens[index[:, None], of_row] - layout.dynamics_ids.start
        made = decode_rows(tokenizer, state, codes.clamp(min=0), of_row, chosen, index)
        newest = torch.where((numbers < 0)[:, :, None, None, None], newest, made)  # those are of the context
    return torch.cat([given[:, :goal], newest], dim=1)


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
