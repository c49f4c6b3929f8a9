"""What is checked and worked out before a session, or some rows of it, begin.

Shapes: B contexts as given, t context frames, side of a frame.
"""

from __future__ import annotations

import operator
import secrets
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from ivideogpt.devices import free_memory
from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.session.state import bytes_needed
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer

Seed = SupportsIndex | Sequence[int] | None


def context_frames(tokenizer: CompressiveTokenizer, transformer: VideoTransformer, context: Tensor) -> Tensor:
    """Context frames (B,t,3,side,side), checked, in the tokenizer's precision and on its device.

    Raises:
        ShapeError: another shape, type or range, no context, or another number of frames.
    """
    if not isinstance(context, Tensor):
        raise ShapeError(f"context is a {type(context).__name__}; give a torch tensor: torch.as_tensor(context).")
    frames = tokenizer.require_frames(context.to(transformer.embedding.weight.device))
    if len(frames) == 0:
        raise ShapeError("0 contexts were given; give at least one.")
    if frames.shape[1] != transformer.layout.context_frames:
        raise ShapeError(
            f"{frames.shape[1]} context frames were given; this model takes exactly "
            f"{transformer.layout.context_frames}. Give the newest ones."
        )
    return frames


def distinct(frames: Tensor) -> tuple[list[int], list[int]]:
    """Which contexts (B,...) are different: the first of each kind, and for every context the number of its kind."""
    kinds: dict[bytes, int] = {}
    first, which = [], []
    for number, context in enumerate(frames.float().cpu().numpy()):
        content = context.tobytes()
        if content not in kinds:
            kinds[content] = len(kinds)
            first.append(number)
        which.append(kinds[content])
    return first, which


def stream_keys(seed: Seed, contexts: int, branches: int) -> list[tuple[int, ...]]:
    """A key for the random stream of each branch of each context; see `WorldModel.start`.

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
    return [(*first, k) for first in firsts for k in range(branches)]


def require_rows(rows: Sequence[int], count: int) -> list[int]:
    """Check that there are rows of these numbers among `count`.

    Raises:
        SessionError: no rows, no whole numbers, or a row that does not exist.
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
    return chosen


def require_memory(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, contexts: int, rows: int, horizon: int
) -> None:
    """Refuse a session that would not fit into the memory that is free.

    Raises:
        SessionError: with the numbers.
    """
    needed = bytes_needed(tokenizer, transformer, contexts, rows, horizon)
    device = transformer.embedding.weight.device
    free = free_memory(device)
    if free is not None and needed > free:
        raise SessionError(
            f"{rows} rows of {contexts} new contexts and {horizon} frames need {needed / 1e9:.2f} GB; "
            f"{free / 1e9:.2f} GB are free on {device}. Take fewer rows, or a shorter horizon."
        )
