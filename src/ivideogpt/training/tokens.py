"""Batches of tokens for the transformer: tokenized as they come, or once and reused.

Shapes: B segments, T sequence frames, L tokens, A action size, S state size, N cached segments.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ivideogpt import hub
from ivideogpt.data.loader import Batch
from ivideogpt.data.segment import SegmentSpec
from ivideogpt.files import write_atomically
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.training.config import TransformerTrainingConfig
from ivideogpt.training.loop import Batches


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Tokenized segments."""

    tokens: Tensor
    """(B, L) int64."""
    mask: Tensor
    """(B, T) bool, False on padded frames."""
    actions: Tensor | None = None
    """(B, T, A) float32."""
    rewards: Tensor | None = None
    """(B, T) float32."""
    states: Tensor | None = None
    """(B, T, S) float32."""
    frames: Tensor | None = None
    """(B, T, 3, R, R) uint8, what was tokenized; None where nobody will look at it."""

    def to(self, device: torch.device) -> TokenBatch:
        """The same batch on another device."""
        return self.each(lambda part: part.to(device))

    def each(self, change: Callable[[Tensor], Tensor]) -> TokenBatch:
        """The batch with every part changed."""
        parts = (self.actions, self.rewards, self.states, self.frames)
        return TokenBatch(
            change(self.tokens), change(self.mask), *(None if part is None else change(part) for part in parts)
        )


_MADE_OF = "made_of"

_COLUMNS = tuple(field.name for field in dataclasses.fields(TokenBatch))


class TokenizedBatches:
    """Batches of frames, tokenized on the way by a frozen tokenizer; they keep the frames where told to."""

    def __init__(
        self,
        batches: Batches[Batch],
        tokenizer: CompressiveTokenizer,
        device: torch.device,
        bf16: bool,
        keep_frames: bool = False,
    ) -> None:
        self.batches, self.tokenizer, self.device, self.bf16 = batches, tokenizer, device, bf16
        self.keep_frames = keep_frames

    def batch_at(self, step: int) -> TokenBatch:
        """Batch number `step`."""
        return self._tokenized(self.batches.batch_at(step))

    def iterate(self, start_step: int = 0) -> Iterator[TokenBatch]:
        """Batches from number `start_step` on, for ever."""
        return (self._tokenized(batch) for batch in self.batches.iterate(start_step))

    def _tokenized(self, batch: Batch) -> TokenBatch:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            states = None if self.tokenizer.states is None or batch.states is None else batch.states.to(self.device)
            tokens = self.tokenizer.tokenize(batch.frames.to(self.device), states)
        frames = batch.frames if self.keep_frames else None
        return TokenBatch(tokens.cpu(), batch.mask, batch.actions, batch.rewards, batch.states, frames)


class CachedTokens:
    """A fixed set of tokenized segments, shuffled anew each time round.

    Args:
        segments: all N segments in one batch.
        batch_size: segments in a batch.
        seed: decides the order, together with the number of the round.
    """

    def __init__(self, segments: TokenBatch, batch_size: int, seed: int) -> None:
        self.segments, self.batch_size, self.seed = segments, batch_size, seed
        self._order: tuple[int, np.ndarray] | None = None

    def batch_at(self, step: int) -> TokenBatch:
        """Batch number `step`: a pure function of (seed, step)."""
        count = len(self.segments.tokens)
        places = range(step * self.batch_size, (step + 1) * self.batch_size)
        rows = torch.tensor([int(self._shuffled(place // count)[place % count]) for place in places])
        picked = self.segments.each(lambda part: part[rows])
        return dataclasses.replace(picked, tokens=picked.tokens.long())

    def iterate(self, start_step: int = 0) -> Iterator[TokenBatch]:
        """Batches from number `start_step` on, for ever."""
        step = start_step
        while True:
            yield self.batch_at(step)
            step += 1

    def _shuffled(self, round_number: int) -> np.ndarray:
        if self._order is None or self._order[0] != round_number:
            rng = np.random.default_rng((self.seed, round_number))
            self._order = (round_number, rng.permutation(len(self.segments.tokens)))
        return self._order[1]


def fingerprint(tokenizer_checksum: int, episodes: object, spec: SegmentSpec, config: TransformerTrainingConfig) -> str:
    """Of everything that decides which segments a cache holds."""
    read = (config.camera_key, config.actions, config.action_key, config.action_shift, config.states, config.state_key)
    drawn = (spec, config.seed, config.augment, config.cache_tokens, config.batch_size, config.precision)
    parts = (tokenizer_checksum, episodes, read, drawn)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def fill_cache(batches: TokenizedBatches, segments: int, file: Path, made_of: str) -> Iterator[int]:
    """Tokenize the first `segments` segments of a stream and write them to `file`, with the fingerprint `made_of`;
    yields how many are done."""
    made: list[TokenBatch] = []
    done = 0
    for batch in batches.iterate():
        made.append(batch)
        done += len(batch.tokens)
        yield min(done, segments)
        if done >= segments:
            break
    columns: dict[str, Tensor] = {}
    for name in _COLUMNS:
        parts = [part for batch in made if (part := getattr(batch, name)) is not None]
        if parts:
            columns[name] = torch.cat(parts)[:segments].contiguous()
    columns["tokens"] = columns["tokens"].int()
    columns[_MADE_OF] = _as_bytes(made_of)
    write_atomically(file, lambda path: hub.write_tensors(path, columns))


def read_cache(file: Path, made_of: str) -> TokenBatch | None:
    """The segments that `fill_cache` wrote; None where there is no whole file, or it was made of something else."""
    try:
        columns = load_file(file)
    except (OSError, SafetensorError):
        return None
    if not torch.equal(columns.pop(_MADE_OF, torch.empty(0)), _as_bytes(made_of)):
        return None
    return TokenBatch(**columns)


def _as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)
