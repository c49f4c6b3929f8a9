"""Frames compiled as one piece: on a GPU one CUDA graph a frame.

Shapes: R rows, n of them, B of the bucket (R filled up to a power of two), H hidden size, M dynamics tokens a frame.
"""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.session.decoding import DecodedFrame, decode_frame
from ivideogpt.transformer import BranchedCache, VideoTransformer
from ivideogpt.transformer.static import StaticCache

GRAPHS = 8
"""Most graphs of all models together: as many as `torch.compile` makes of one function before it silently gives up."""

_made: weakref.WeakKeyDictionary[VideoTransformer, set[tuple[Any, ...]]] = weakref.WeakKeyDictionary()
_captured: weakref.WeakKeyDictionary[BranchedCache, _CudaGraph] = weakref.WeakKeyDictionary()


def decode_compiled(
    transformer: VideoTransformer,
    cache: BranchedCache,
    slots: Tensor,
    uniform: Tensor,
    index: Tensor,
    sampling: SamplingConfig,
) -> DecodedFrame | None:
    """`decode_frame` by a graph that is made once for a bucket of rows and a capacity; the last token is always read.

    It runs for all rows; those that are not named stay where they are, as the cache's lengths do: what is written
    behind them counts once the caller says so.

    Args:
        transformer: gives the distributions.
        cache: one whose rows have a prefix each, with memory for a bucket of rows and one frame more than a row takes.
        slots: embeddings (n,H) of the slots of n rows.
        uniform: (n,M) in [0, 1).
        index: (n,) int64 numbers of these rows.
        sampling: how a token is sampled.

    Returns:
        The frame, or None where it cannot be compiled; then there has been a warning.
    """
    memory = len(cache.starts)
    key = (memory, cache.capacity, cache.prefix_length, slots.dtype, sampling)
    graphs = _made.setdefault(transformer, set())
    if key not in graphs and sum(map(len, _made.values())) >= GRAPHS:
        _warn_once(f"{GRAPHS} numbers of rows and capacities have been compiled; others run as they are")
        return None
    graphs.add(key)
    inputs = [new.new_zeros(memory, *new.shape[1:]).index_copy(0, index, new) for new in (slots[:, None], uniform)]
    try:
        if cache.keys.is_cuda:
            if cache not in _captured:
                _captured[cache] = _CudaGraph(_frame_of(transformer, cache, sampling), *inputs)
            frame = _captured[cache](*inputs)
        else:
            frame = _frame_of(transformer, cache, sampling)(*inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        transformer.compiled = False
        reason = str(error).strip().partition("\n")[0]
        _warn_once(f"frames could not be compiled, so they run as they are: {reason}")
        return None
    return frame.select(index)


class _CudaGraph:
    """A captured frame: the same kernels on the same memory, launched as one."""

    def __init__(self, run: Callable[[Tensor, Tensor], DecodedFrame], x: Tensor, uniform: Tensor) -> None:
        self.x, self.uniform = x.clone(), uniform.clone()
        run(self.x, self.uniform)  # compiles, and takes what memory kernels need
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.frame = run(self.x, self.uniform)

    def __call__(self, x: Tensor, uniform: Tensor) -> DecodedFrame:
        self.x.copy_(x)
        self.uniform.copy_(uniform)
        self.graph.replay()
        return self.frame


def _frame_of(
    transformer: VideoTransformer, cache: BranchedCache, sampling: SamplingConfig
) -> Callable[[Tensor, Tensor], DecodedFrame]:
    """From slots (B,1,H) and numbers (B,M) to the frame."""
    prefixes, suffixes = tuple(cache.prefixes), (cache.keys, cache.values)
    return functools.partial(_compiled(), transformer, sampling, prefixes, suffixes, cache.starts)


@functools.cache
def _compiled() -> Callable[..., DecodedFrame]:
    return torch.compile(_decode_static, fullgraph=True, dynamic=False)


def _decode_static(
    transformer: VideoTransformer,
    sampling: SamplingConfig,
    prefixes: tuple[Tensor, Tensor],
    suffixes: tuple[Tensor, Tensor],
    starts: Tensor,
    x: Tensor,
    uniform: Tensor,
) -> DecodedFrame:
    cache = StaticCache(prefixes, suffixes, starts, transformer.config.max_positions - 1)
    return decode_frame(transformer, cache, x, uniform, sampling, read_last=True)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
