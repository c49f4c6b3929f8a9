"""Compiled frames: every pass of a frame is one and the same graph, and on a GPU the frame is one CUDA graph.

A frame's passes in one unrolled graph take twenty times longer to compile: minutes, for a model of six layers.

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
from ivideogpt.session.decoding import DecodedFrame, decode_token, frame_of, stacked
from ivideogpt.transformer import BranchedCache, VideoTransformer
from ivideogpt.transformer.sampling import Sampled
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
                run = functools.partial(_frame_of, transformer, weakref.proxy(cache), sampling)
                _captured[cache] = _CudaGraph(run, *inputs)
            frame = _captured[cache](*inputs)
        else:
            frame = _frame_of(transformer, cache, sampling, *inputs)
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
    transformer: VideoTransformer, cache: BranchedCache, sampling: SamplingConfig, x: Tensor, uniform: Tensor
) -> DecodedFrame:
    """The frame behind slots (B,1,H), decided by numbers (B,M)."""
    sampled, last = [], x
    for i in torch.arange(uniform.shape[1] + 1, device=x.device).split(1):
        token, x, last = _compiled()(
            transformer, sampling, tuple(cache.prefixes), (cache.keys, cache.values), cache.starts, x, uniform, i
        )
        sampled.append(token)
    return frame_of(transformer, stacked(sampled[:-1]), last)


@functools.cache
def _compiled() -> Callable[..., tuple[Sampled, Tensor, Tensor]]:
    return torch.compile(_decode_token, fullgraph=True, dynamic=False)


def _decode_token(
    transformer: VideoTransformer,
    sampling: SamplingConfig,
    prefixes: tuple[Tensor, Tensor],
    suffixes: tuple[Tensor, Tensor],
    starts: Tensor,
    x: Tensor,
    uniform: Tensor,
    i: Tensor,
) -> tuple[Sampled, Tensor, Tensor]:
    """Pass number i (1,) of a frame that begins behind `starts` (B,); behind the last token nothing is needed."""
    cache = StaticCache(prefixes, suffixes, starts + i, transformer.config.max_positions - 1)
    numbers = uniform.index_select(1, i.clamp(max=uniform.shape[1] - 1))[:, 0]
    place = i.clamp(max=uniform.shape[1] - 1) + transformer.layout.dynamics_places.start
    return decode_token(transformer, cache, x, numbers, sampling, place)


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
