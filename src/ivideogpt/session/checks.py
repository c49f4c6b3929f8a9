"""What is checked and worked out before a session, or some rows of it, begin or move.

Everything is checked where the user gave it, so that nothing waits for a GPU.

Shapes: B contexts as given, t context frames, side of a frame.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.streams import stream_key

Seed = SupportsIndex | Sequence[int] | None


def require_context(tokenizer: CompressiveTokenizer, transformer: VideoTransformer, context: Tensor) -> Tensor:
    """Contexts (B,t,3,side,side), checked and as they are.

    Raises:
        ShapeError: another shape, type or range, no context, or another number of frames.
    """
    if not isinstance(context, Tensor):
        raise ShapeError(f"context is a {type(context).__name__}; give a torch tensor: torch.as_tensor(context).")
    tokenizer.check_frames(context)
    if len(context) == 0:
        raise ShapeError("0 contexts were given; give at least one.")
    if context.shape[1] != transformer.layout.context_frames:
        raise ShapeError(
            f"{context.shape[1]} context frames were given; this model takes exactly "
            f"{transformer.layout.context_frames}. Give the newest ones."
        )
    return context


def distinct(context: Tensor) -> tuple[list[int], list[int]]:
    """Which contexts (B,...) are different: the first of each kind, and for every context the number of its kind."""
    kinds: dict[bytes, int] = {}
    first, which = [], []
    for number, one in enumerate(context.cpu()):
        content = one.contiguous().view(torch.uint8).numpy().tobytes()
        if content not in kinds:
            kinds[content] = len(kinds)
            first.append(number)
        which.append(kinds[content])
    return first, which


def stream_keys(seed: Seed, contexts: int, branches: int, *ending: int) -> Tensor:
    """Keys (B*K, 2) of the random stream of each of K branches of each context; see `WorldModel.start`.

    An ending tells kinds of streams apart.

    Raises:
        ShapeError: another number of seeds than contexts, or a negative one.
    """
    if seed is None:
        seed = secrets.randbits(63)
    if isinstance(seed, SupportsIndex):
        seed = operator.index(seed)
        firsts = [(seed, b) for b in range(contexts)]
    else:
        if len(seed) != contexts:
            raise ShapeError(f"{len(seed)} seeds for {contexts} contexts; give one int, or one int a context.")
        firsts = [(operator.index(s), 0) for s in seed]
    if any(part < 0 for key in firsts for part in key):
        raise ShapeError(f"seed is {seed}; seeds must not be negative.")
    return torch.tensor([stream_key((*first, k, *ending)) for first in firsts for k in range(branches)])


def require_rows(rows: Sequence[int], count: int, *, once: str | None = None) -> list[int]:
    """Check that there are rows of these numbers among `count`; each only once where `once` says what for.

    Raises:
        SessionError: no rows, no whole numbers, or a row that does not exist or is named twice.
    """
    try:
        chosen = [operator.index(row) for row in rows]
    except TypeError as error:
        raise SessionError(f"rows are {rows}; give whole numbers.") from error
    if any(isinstance(row, bool) or getattr(row, "dtype", None) is torch.bool for row in rows):
        raise SessionError("rows are true or false; give numbers of rows: mask.nonzero()[:, 0].tolist().")
    if not chosen:
        raise SessionError("rows is empty; name at least one.")
    for row in chosen:
        if not 0 <= row < count:
            raise SessionError(f"row {row} does not exist; this session has rows 0..{count - 1}.")
    if once and len(set(chosen)) != len(chosen):
        raise SessionError(f"rows are {chosen}; each row can be {once} once at a time. Name each once.")
    return chosen


def require_action(transformer: VideoTransformer, action: Tensor | None, rows: Sequence[int]) -> Tensor | None:
    """Actions (n,A) of n rows with these numbers, checked and then brought to the model's device; None for none.

    Raises:
        ShapeError: no tensor, another shape, any for a model that takes none, or a value that is not finite or out of
            range (names the row and the rule).
    """
    if action is None:
        return None
    if not isinstance(action, Tensor):
        raise ShapeError(f"action is a {type(action).__name__}; give a torch tensor: torch.as_tensor(action).")
    if transformer.action_in is None:
        raise ShapeError("actions were given, but this model takes none. Leave actions out, or use one that does.")
    expected = (len(rows), transformer.config.action_dim)
    if tuple(action.shape) != expected:
        raise ShapeError(f"action has shape {tuple(action.shape)}; this session takes (rows, A) = {expected}.")
    transformer.require_values(action, rows)
    return action.to(transformer.embedding.weight.device)
