"""What a session is made of: everything that a snapshot has to keep and a fork has to copy.

Shapes: S contexts, R rows (each continues one context), t context frames, M dynamics tokens a frame, side of a frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.cross_attention import KeysValues
from ivideogpt.transformer import BranchedCache, Prefixes, VideoTransformer
from ivideogpt.transformer.branches import regrouped
from ivideogpt.transformer.sampling import RowStreams

_CONTEXTS_READ_AT_ONCE = 32


class Contexts(NamedTuple):
    """What is made once of each context."""

    frames: Tensor
    """(S, t, 3, side, side) in [0,1], as given."""
    features: list[KeysValues]
    """What the decoder attends to, S of each."""
    last_tokens: Tensor
    """(S,) int64: the last token of each context."""

    def with_others(self, kept: Sequence[int], others: Contexts) -> Contexts:
        """Some of these, and others behind them."""
        if not kept:
            return others
        index = torch.tensor(list(kept), device=self.frames.device)

        def join(ours: Tensor, theirs: Tensor) -> Tensor:
            return torch.cat([ours.index_select(0, index), theirs])

        features = [
            (join(keys, more_keys), join(values, more_values))
            for (keys, values), (more_keys, more_values) in zip(self.features, others.features, strict=True)
        ]
        return Contexts(join(self.frames, others.frames), features, join(self.last_tokens, others.last_tokens))

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return self.frames.nbytes + sum(keys.nbytes + values.nbytes for keys, values in self.features)


@dataclasses.dataclass
class State:
    """A session between two steps."""

    contexts: Contexts
    cache: BranchedCache
    streams: RowStreams
    tokens: Tensor
    """(R, horizon, M) int64: ids of the frames imagined from the present contexts."""
    segment: list[int]
    """Frames that each row has imagined from its present context."""
    total: list[int]
    """Frames that each row has imagined since its context was given."""
    unread: Tensor
    """(R,) int64: each row's last token where `lazy`: not in the cache yet, read together with the next slot."""

    @property
    def prefix_of_row(self) -> tuple[int, ...]:
        """For each row the index of its context."""
        return self.cache.groups.prefix_of_row

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return self.contexts.bytes + self.cache.bytes + self.tokens.nbytes

    def select(self, rows: Sequence[int]) -> Self:
        """These rows, each as often as it is named; contexts are shared, what changes is copied."""
        index = torch.tensor(list(rows), device=self.tokens.device)
        return dataclasses.replace(
            self,
            cache=self.cache.select(rows),
            streams=self.streams.select(rows),
            tokens=self.tokens.index_select(0, index),
            segment=[self.segment[row] for row in rows],
            total=[self.total[row] for row in rows],
            unread=self.unread.index_select(0, index),
        )

    def copy(self) -> Self:
        """All rows."""
        return self.select(range(len(self.segment)))

    def restart(self, rows: Sequence[int], contexts: Contexts, prefixes: Prefixes, context_of_row: list[int]) -> None:
        """Let these rows go on from other contexts."""
        kept, _ = regrouped(self.prefix_of_row, rows, context_of_row)
        joined = self.contexts.with_others(kept, contexts)
        self.cache.restart(rows, prefixes, context_of_row)
        self.contexts = joined
        self.unread = self.unread.clone()
        for row, context in zip(rows, context_of_row, strict=True):
            self.segment[row] = 0
            self.unread[row] = contexts.last_tokens[context]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A session's state at one moment; see `Session.snapshot`."""

    state: State
    transformer: VideoTransformer
    tokenizer: CompressiveTokenizer
    horizon: int


def read_contexts(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, frames: Tensor, lazy: bool
) -> tuple[Contexts, Prefixes]:
    """Tokenize, read and decode the features of contexts (S,t,3,side,side), each once.

    Args:
        tokenizer, transformer: the model.
        frames: in the tokenizer's precision, in [0,1].
        lazy: leave each context's last token out of what the transformer reads.
    """
    parts = [_read(tokenizer, transformer, part, lazy) for part in frames.split(_CONTEXTS_READ_AT_ONCE)]
    if len(parts) == 1:
        return parts[0]
    contexts, prefixes = parts[0]
    for more_contexts, more_prefixes in parts[1:]:
        contexts = contexts.with_others(range(len(contexts.frames)), more_contexts)
        prefixes = prefixes.with_others(range(len(prefixes.keys[0])), more_prefixes)
    return contexts, prefixes


def _read(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, frames: Tensor, lazy: bool
) -> tuple[Contexts, Prefixes]:
    layout = transformer.layout
    codes = tokenizer.encode_context(frames).codes
    features = tokenizer.decode_context(codes, pixels=False).keys_values
    tokens = layout.assemble(codes, codes.new_empty(len(codes), 0, layout.dynamics_tokens))
    length = layout.prefix_length - lazy
    cache = transformer.new_cache(len(codes), length)
    transformer.hidden_states(transformer.embed(tokens, None)[:, :length], cache)
    return Contexts(frames, features, tokens[:, -1]), Prefixes.of(cache)


def bytes_needed(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, contexts: int, rows: int, horizon: int
) -> int:
    """Memory that a session holds once it is full, bytes.

    Args:
        tokenizer, transformer: the model.
        contexts: different contexts S, counted before any row went on from one of its own.
        rows: R.
        horizon: frames imagined from one context.
    """
    layout, config, weight = transformer.layout, transformer.config, transformer.embedding.weight
    position = 2 * config.layers * config.hidden * weight.element_size()
    cached = contexts * layout.prefix_length + rows * suffix_length(transformer, horizon)
    pixel = tokenizer.context_in.weight.element_size()
    # The decoder's keys and values of a context are as large as its context positions.
    named = tokenizer.prediction_decoder.named_parameters()
    features = sum(2 * weight.numel() * pixel for name, weight in named if name.endswith("context_position"))
    side = tokenizer.config.resolution
    given = layout.context_frames * 3 * side * side * pixel
    return cached * position + contexts * (features + given) + rows * horizon * layout.dynamics_tokens * 8


def suffix_length(transformer: VideoTransformer, horizon: int) -> int:
    """Positions that `horizon` frames take behind a context, with one for a context token that is read late."""
    return 1 + transformer.layout.frame_length * horizon
