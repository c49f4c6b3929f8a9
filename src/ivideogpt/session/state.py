"""What a session is made of: everything that a snapshot has to keep and a fork has to copy.

Shapes: R rows (each continues one context), M dynamics tokens a frame.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor

from ivideogpt.session.slots import Contexts, KeptSlot, Slots
from ivideogpt.session.states import KnownStates
from ivideogpt.transformer import BranchedCache
from ivideogpt.transformer.branches import Suffixes
from ivideogpt.transformer.streams import uniform_numbers


@dataclasses.dataclass
class Rows:
    """What is known of each row but for its context and its cache."""

    segment: list[int]
    """Frames that each row has imagined from its present context."""
    total: list[int]
    """Frames that each row has imagined since its context was given."""
    keys: Tensor
    """(R, 2) int64: each row's random stream."""
    first: Tensor
    """(R,) int64: the number, in its stream, of the first frame behind each row's present context."""
    uniform: Tensor
    """(R, horizon, M) float32: the numbers that decide the tokens of the frames behind the present contexts."""
    tokens: Tensor
    """(R, horizon, M) int64: ids of the frames imagined from the present contexts."""
    pending: Tensor
    """(R,) int64: each row's last token, which may not be in the cache yet."""
    known: KnownStates | None
    """The rows' states; None where the model has learned none."""

    @classmethod
    def begin(cls, keys: Tensor, horizon: int, tokens: int, pending: Tensor, known: KnownStates | None) -> Self:
        """Rows with these streams that have imagined nothing yet, frames being of M `tokens`."""
        first = torch.zeros_like(keys[:, 0])
        return cls(
            segment=[0] * len(keys),
            total=[0] * len(keys),
            keys=keys,
            first=first,
            uniform=uniform_numbers(keys, first, horizon, tokens),
            tokens=keys.new_zeros(len(keys), horizon, tokens),
            pending=pending,
            known=known,
        )

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return sum(tensor.nbytes for tensor in (*self._tensors, *(self.known or ())))

    def select(self, rows: Sequence[int], index: Tensor) -> Rows:
        """Copies of these rows, each as often as it is named; `index` (n,) is the same on the device."""
        keys, first, uniform, tokens, pending = (of_row.index_select(0, index) for of_row in self._tensors)
        segment, total = [self.segment[row] for row in rows], [self.total[row] for row in rows]
        known = self.known and self.known.select(index)
        return Rows(segment, total, keys, first, uniform, tokens, pending, known)

    def next_segment(self, imagined: Tensor) -> Rows:
        """These rows, having imagined so many frames (R,) from a context, at another's beginning; streams go on."""
        first = self.first + imagined
        uniform = uniform_numbers(self.keys, first, *self.uniform.shape[1:])
        return dataclasses.replace(self, segment=[0] * len(self.segment), first=first, uniform=uniform)

    def restart_streams(self, keys: Tensor) -> None:
        """Give all rows new streams (R, 2)."""
        self.keys, self.first = keys.to(self.keys.device), torch.zeros_like(self.first)
        self.uniform = uniform_numbers(self.keys, self.first, *self.uniform.shape[1:])

    def restart(self, rows: Sequence[int], index: Tensor, others: Rows) -> None:
        """Put others in the place of some rows."""
        for row, segment, total in zip(rows, others.segment, others.total, strict=True):
            self.segment[row], self.total[row] = segment, total
        for mine, theirs in zip(self._tensors, others._tensors, strict=True):
            mine.index_copy_(0, index, theirs)
        if self.known is not None and others.known is not None:
            self.known = self.known.replaced(index, others.known)

    @property
    def _tensors(self) -> tuple[Tensor, ...]:
        return self.keys, self.first, self.uniform, self.tokens, self.pending


@dataclasses.dataclass(eq=False)
class State:
    """A session between two steps."""

    slots: Slots
    cache: BranchedCache
    rows: Rows
    frame_length: int
    """Tokens of a frame."""

    @property
    def bytes(self) -> int:
        """Memory held, bytes, slots that are shared included."""
        return self.slots.contexts.bytes + self.cache.bytes + self.rows.bytes

    @property
    def all_rows(self) -> tuple[range, Tensor]:
        """The numbers of all rows, here and on the device."""
        count = len(self.rows.segment)
        return range(count), torch.arange(count, device=self.rows.tokens.device)

    def imagined(self, index: Tensor) -> Tensor:
        """Frames (n,) that the rows in index (n,) have imagined from their present contexts, on the device."""
        return self.cache.starts.index_select(0, index) // self.frame_length

    def fork(self, rows: Sequence[int]) -> State:
        """Copies of these rows, each as often as it is named; their slots are shared as far as they can be."""
        index = torch.tensor(list(rows), device=self.rows.tokens.device)
        slots = self.slots.select(rows)
        cache = slots.cache(self.cache.capacity)
        cache.select(rows, index, self.cache)
        return State(slots, cache, self.rows.select(rows, index), self.frame_length)

    @property
    def snapshot_bytes(self) -> int:
        """Memory that a snapshot takes, bytes, slots that it shares not counted."""
        return self.rows.bytes + self.cache.bytes_of(len(self.rows.segment), max(self.cache.lengths))

    def snapshot(self) -> Snapshot:
        """This moment."""
        suffixes = Suffixes(self.cache.prefixes, len(self.rows.segment), max(self.cache.lengths))
        suffixes.select(*self.all_rows, self.cache)
        return Snapshot(weakref.ref(self), self.slots.keep(), suffixes, self.rows.select(*self.all_rows))

    def bytes_to_restore(self, moment: Snapshot) -> int:
        """Memory that it takes to go back, bytes."""
        return self.rows.bytes + self.slots.bytes_to_restore(moment.kept)

    def restore(self, moment: Snapshot) -> None:
        """Go back; where memory runs out, nothing has changed."""
        rows = moment.rows.select(*self.all_rows)
        self.slots.restore(moment.kept)
        self.cache.select(*self.all_rows, moment.suffixes)
        self.follow_slots()
        self.rows = rows

    def moment(self) -> Callable[[], None]:
        """How to undo the next step, by which nothing but this is replaced or overwritten."""
        rows = self.rows
        pending, known, segment, total = rows.pending, rows.known, list(rows.segment), list(rows.total)
        lengths = list(self.cache.lengths)

        def undo() -> None:
            rows.pending, rows.known, rows.segment, rows.total = pending, known, segment, total
            self.cache.rewind(lengths)

        return undo

    def begin(self, rows: Sequence[int], index: Tensor, contexts: Contexts, which: Sequence[int], others: Rows) -> None:
        """Let some rows begin from new contexts, `which` for each, as others say; what fails has changed nothing."""
        last_tokens = contexts.last_tokens
        others.pending = last_tokens if list(which) == list(range(len(last_tokens))) else last_tokens[list(which)]
        self.slots.replace(rows, contexts, which)
        self.rows.restart(rows, index, others)
        self.cache.restart(rows, index)
        self.follow_slots()

    def follow_slots(self) -> None:
        """Let the cache continue the rows' slots, if they have moved."""
        if self.cache.prefixes is not self.slots.contexts.prefixes:
            self.cache.continue_prefixes(self.slots.contexts.prefixes, self.slots.of_row)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A session's state at one moment; see `Session.snapshot`."""

    of: weakref.ReferenceType[State]
    kept: list[KeptSlot]
    """The slot of each row."""
    suffixes: Suffixes
    rows: Rows

    @property
    def bytes(self) -> int:
        """Memory held, bytes, slots that are shared with the session included."""
        slots = {(slot.memory, slot.number): slot.memory.bytes_each for slot in self.kept}
        return sum(slots.values()) + self.suffixes.bytes + self.rows.bytes
