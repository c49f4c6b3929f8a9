"""What a session is made of: everything that a snapshot has to keep and a fork has to copy.

Shapes: S contexts, R rows (each continues one context), t context frames, M dynamics tokens a frame, side of a frame.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ivideogpt.session.states import KnownStates
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.cross_attention import KeysValues
from ivideogpt.transformer import BranchedCache, Prefixes, VideoTransformer
from ivideogpt.transformer.groups import regrouped, used_by
from ivideogpt.transformer.sampling import RowStreams

_CONTEXTS_READ_AT_ONCE = 32  # of 64 pixels; fewer of larger ones, as their feature maps take more memory
_CONTEXTS_READ_AT_ONCE_ON_CPU = 8  # feature maps of more would not fit into the processor's cache, and wait for memory


class Contexts(NamedTuple):
    """What is made once of each context."""

    frames: Tensor
    """(S, t, 3, side, side) in [0,1], as given."""
    features: list[KeysValues]
    """What the decoder attends to, S of each."""
    last_tokens: Tensor
    """(S,) int64: the last token of each context."""

    def part(self, numbers: Sequence[int]) -> Contexts:
        """Some of these, copied."""
        index = torch.tensor(list(numbers), device=self.frames.device)
        features = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in self.features]
        return Contexts(self.frames.index_select(0, index), features, self.last_tokens.index_select(0, index))

    def with_others(self, *others: Contexts) -> Contexts:
        """These, and others behind them."""
        every = [self, *others]
        pairs = zip(*(contexts.features for contexts in every), strict=True)
        return Contexts(
            torch.cat([contexts.frames for contexts in every]),
            [(torch.cat([k for k, _ in pair]), torch.cat([v for _, v in pair])) for pair in pairs],
            torch.cat([contexts.last_tokens for contexts in every]),
        )

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
    known: KnownStates | None = None
    """The rows' states; None where the model has learned none."""

    @property
    def prefix_of_row(self) -> tuple[int, ...]:
        """For each row the index of its context."""
        return self.cache.groups.prefix_of_row

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return self.contexts.bytes + self.cache.bytes + self.tokens.nbytes

    def select(self, rows: Sequence[int]) -> Self:
        """These rows, each as often as it is named, with their contexts.

        What changes is copied; the contexts are shared where all of them are needed.
        """
        index = torch.tensor(list(rows), device=self.tokens.device)
        used, _ = used_by(self.prefix_of_row, rows)
        return dataclasses.replace(
            self,
            contexts=self.contexts if len(used) == self.cache.groups.prefixes else self.contexts.part(used),
            cache=self.cache.select(rows),
            streams=self.streams.select(rows),
            tokens=self.tokens.index_select(0, index),
            segment=[self.segment[row] for row in rows],
            total=[self.total[row] for row in rows],
            unread=self.unread.index_select(0, index),
            known=self.known and self.known.select(rows),
        )

    def copy(self) -> Self:
        """All rows."""
        return self.select(range(len(self.segment)))

    def restart(self, rows: Sequence[int], contexts: Contexts, prefixes: Prefixes, context_of_row: list[int]) -> None:
        """Let these rows go on from other contexts."""
        kept, _ = regrouped(self.prefix_of_row, rows, context_of_row)
        joined = self.contexts.part(kept).with_others(contexts) if kept else contexts
        index = torch.tensor(list(rows), device=self.unread.device)
        unread = self.unread.index_copy(0, index, contexts.last_tokens[context_of_row])
        self.cache.restart(rows, prefixes, context_of_row)
        self.contexts, self.unread = joined, unread  # now that nothing can fail any more
        for row in rows:
            self.segment[row] = 0


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A session's state at one moment; see `Session.snapshot`."""

    state: State
    transformer: VideoTransformer
    tokenizer: CompressiveTokenizer
    horizon: int

    @property
    def bytes(self) -> int:
        """Memory held, bytes, what is shared with the session included."""
        return self.state.bytes


def read_contexts(
    tokenizer: CompressiveTokenizer, transformer: VideoTransformer, frames: Tensor, lazy: bool
) -> tuple[Contexts, Prefixes]:
    """Tokenize, read and decode the features of contexts (S,t,3,side,side), each once.

    Args:
        tokenizer, transformer: the model.
        frames: in the tokenizer's precision, in [0,1].
        lazy: leave each context's last token out of what the transformer reads.
    """
    at_once = _CONTEXTS_READ_AT_ONCE_ON_CPU if frames.device.type == "cpu" else _CONTEXTS_READ_AT_ONCE
    at_once = frames_at_once(at_once, frames.shape[-1])
    parts = [_read(tokenizer, transformer, part, lazy) for part in frames.split(at_once)]
    if len(parts) == 1:
        return parts[0]
    contexts, prefixes = zip(*parts, strict=True)
    keys, values = (torch.cat(tensors, dim=1) for tensors in zip(*prefixes, strict=True))
    return contexts[0].with_others(*contexts[1:]), Prefixes(keys, values)


def frames_at_once(small: int, side: int) -> int:
    """How many frames of this side to work on together, if of 64 pixels it is `small`."""
    return max(1, small * 64**2 // side**2)


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
