"""Static frames: each pass is the same operations on the same memory, so that a GPU can run it as a CUDA graph.

A pass has hundreds of small kernels; a GPU waits for each of them to be launched, but not inside a graph. A frame is
one graph replayed for each of its tokens. All its passes in one graph would be as fast, and take seventeen times longer
to capture, or to compile where that is asked for: minutes for a model of six layers.

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
from ivideogpt.session.decoding import DecodedFrame, decode_token, frame_of
from ivideogpt.transformer import BranchedCache, VideoTransformer
from ivideogpt.transformer.sampling import Sampled
from ivideogpt.transformer.static import StaticCache

COMPILED = 8
"""Most compiled passes of all models together: as many as `torch.compile` makes of one function before it silently
gives up."""

_Pass = Callable[..., tuple[Sampled, Tensor, Tensor]]
_Key = tuple[Any, ...]

_compiled_for: weakref.WeakKeyDictionary[VideoTransformer, set[_Key]] = weakref.WeakKeyDictionary()
_run_before: weakref.WeakKeyDictionary[VideoTransformer, set[tuple[_Pass, _Key]]] = weakref.WeakKeyDictionary()
_captured: weakref.WeakKeyDictionary[BranchedCache, _Frame] = weakref.WeakKeyDictionary()


def decode_static(
    transformer: VideoTransformer,
    cache: BranchedCache,
    slots: Tensor,
    uniform: Tensor,
    index: Tensor,
    sampling: SamplingConfig,
) -> DecodedFrame | None:
    """`decode_frame` as a function whose operations never change; the last token is always read.

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
        The frame, or None where that cannot be or is of no use; then there has been a warning.
    """
    bucket = len(cache.starts)
    inputs = [new.new_zeros(bucket, *new.shape[1:]).index_copy(0, index, new) for new in (slots[:, None], uniform)]
    while (decode := _pass_for(transformer, cache, slots.dtype, sampling)) is not None:
        try:
            return _run(decode, transformer, cache, sampling, inputs).select(index)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            # What has been compiled may still run uncompiled; what could not be captured runs as it is.
            done = "compiled" if transformer.compiled else "captured"
            transformer.static, transformer.compiled = transformer.compiled and cache.keys.is_cuda, False
            reason = str(error).strip().partition("\n")[0]
            _warn_once(f"frames could not be {done}, so they run as they are: {reason}")
    return None


def _pass_for(
    transformer: VideoTransformer, cache: BranchedCache, dtype: torch.dtype, sampling: SamplingConfig
) -> _Pass | None:
    """What each pass of a frame runs through; None where nothing is gained by static frames."""
    plain = _decode_token if transformer.static and cache.keys.is_cuda else None
    if not transformer.compiled:
        return plain
    key, made = _key(cache, dtype, sampling), _compiled_for.setdefault(transformer, set())
    if key not in made and sum(map(len, _compiled_for.values())) >= COMPILED:
        _warn_once(f"{COMPILED} numbers of rows and capacities have been compiled; others run as they are")
        return plain
    made.add(key)
    return _compiled()


def _key(cache: BranchedCache, dtype: torch.dtype, sampling: SamplingConfig) -> _Key:
    return len(cache.starts), cache.capacity, cache.prefix_length, dtype, sampling


def _run(
    decode: _Pass, transformer: VideoTransformer, cache: BranchedCache, sampling: SamplingConfig, inputs: list[Tensor]
) -> DecodedFrame:
    if not cache.keys.is_cuda:
        return _Frame(decode, transformer, cache, sampling, *inputs).decode(*inputs)
    if cache not in _captured:
        frame = _Frame(decode, transformer, cache, sampling, *inputs)
        before = _run_before.setdefault(transformer, set())
        kind = (decode, _key(cache, inputs[0].dtype, sampling))
        if kind not in before:
            frame.one_pass()  # compiles, and loads kernels, which cannot be done while a graph is captured
            before.add(kind)
        frame.capture()
        _captured[cache] = frame
    return _captured[cache].decode(*inputs)


class _Frame:
    """A frame under way, on memory of its own.

    Args:
        decode: what a pass runs through.
        transformer, cache, sampling: as in `decode_static`.
        x, uniform: of the shapes (B,1,H) and (B,M) that will be given.
    """

    def __init__(
        self,
        decode: _Pass,
        transformer: VideoTransformer,
        cache: BranchedCache,
        sampling: SamplingConfig,
        x: Tensor,
        uniform: Tensor,
    ) -> None:
        self._transformer = transformer
        # Not the cache itself, which would then live as long as what was captured for it.
        fixed = (transformer, sampling, tuple(cache.prefixes), (cache.keys, cache.values), cache.starts)
        self._decode = functools.partial(decode, *fixed)
        self._x, self._uniform, self._last = x.clone(), uniform.clone(), x[:, 0].clone()
        self._pass = cache.starts.new_zeros(1)
        none = uniform.new_zeros(len(uniform), uniform.shape[1] + 1)  # behind the last token nothing is needed
        self._sampled = Sampled(none.long(), none, none.clone())
        self._graph: torch.cuda.CUDAGraph | None = None

    def one_pass(self) -> None:
        """Read a token, and sample the next."""
        sampled, following, hidden = self._decode(self._x, self._uniform, self._pass)
        for all_of_them, one in zip(self._sampled, sampled, strict=True):
            all_of_them.index_copy_(1, self._pass, one[:, None])
        self._x.copy_(following)
        self._last.copy_(hidden)
        self._pass.add_(1)

    def capture(self) -> None:
        """From now on a pass is a replay of this one."""
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.one_pass()

    def decode(self, x: Tensor, uniform: Tensor) -> DecodedFrame:
        """The frame behind slots (B,1,H), decided by numbers (B,M); the next one overwrites it."""
        self._x.copy_(x)
        self._uniform.copy_(uniform)
        self._pass.zero_()
        for _ in range(uniform.shape[1] + 1):
            if self._graph is None:
                self.one_pass()
            else:
                self._graph.replay()
        tokens = Sampled(*(part[:, :-1] for part in self._sampled))
        return frame_of(self._transformer, tokens, self._last)


@functools.cache
def _compiled() -> _Pass:
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
