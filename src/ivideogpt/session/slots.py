"""Where contexts lie: in slots of memory that is allocated once and written in place.

Every row of a session continues the context of one slot. Rows, forks and snapshots share slots as long as nobody
writes. A session that writes does so in memory of its own, where row r has slot r: it has that from the beginning where
every row begins with another context, else it moves there once, and from then on no address changes. What a snapshot
still needs of a slot is copied out of the way before the slot is written.

Shapes: S contexts, t context frames, side of a frame.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Sequence
from typing import NamedTuple

from torch import Tensor

from ivideogpt.tokenizer.cross_attention import KeysValues
from ivideogpt.transformer import BranchedCache, Prefixes


class Contexts(NamedTuple):
    """What is made once of each of S contexts."""

    frames: Tensor
    """(S, t, 3, side, side) in [0,1], as given."""
    features: list[KeysValues]
    """What the decoder attends to, S of each."""
    last_tokens: Tensor
    """(S,) int64: the last token of each context."""
    prefixes: Prefixes
    """What the transformer has read."""

    @property
    def tensors(self) -> list[Tensor]:
        """All of it, the contexts along the first axis."""
        flat = [tensor for pair in self.features for tensor in pair]
        return [self.frames, self.last_tokens, *flat, *(tensor.transpose(0, 1) for tensor in self.prefixes)]

    @property
    def bytes(self) -> int:
        """Memory held, bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def empty(self, places: int) -> Contexts:
        """Empty memory for so many contexts of the same kind."""

        def like(tensor: Tensor, axis: int = 0) -> Tensor:
            return tensor.new_zeros(*tensor.shape[:axis], places, *tensor.shape[axis + 1 :])

        features = [(like(keys), like(values)) for keys, values in self.features]
        prefixes = Prefixes(*(like(tensor, axis=1) for tensor in self.prefixes))
        return Contexts(like(self.frames), features, like(self.last_tokens), prefixes)

    def write(self, place: int, others: Contexts, number: int) -> None:
        """Copy one of the others to a place."""
        for mine, theirs in zip(self.tensors, others.tensors, strict=True):
            mine[place].copy_(theirs[number])


class Memory:
    """Slots for contexts."""

    def __init__(self, contexts: Contexts) -> None:
        self.contexts = contexts
        self.users: weakref.WeakSet[Slots] = weakref.WeakSet()
        """Sessions whose rows use these slots."""
        self._kept: weakref.WeakValueDictionary[int, KeptSlot] = weakref.WeakValueDictionary()

    @property
    def bytes_each(self) -> int:
        """Memory of one slot, bytes."""
        return self.contexts.bytes // len(self.contexts.frames)

    def keep(self, number: int) -> KeptSlot:
        """What a snapshot remembers a slot by."""
        return self._kept.setdefault(number, KeptSlot(self, number))

    def kept(self, numbers: Collection[int]) -> list[KeptSlot]:
        """Those of the slots that snapshots still need."""
        return [slot for number in numbers if (slot := self._kept.get(number)) is not None]

    def clear(self, numbers: Collection[int]) -> None:
        """Copy what snapshots still need of these slots to memory of its own."""
        kept = self.kept(numbers)
        if not kept:
            return
        elsewhere = Memory(self.contexts.empty(len(kept)))
        for new, slot in enumerate(kept):
            elsewhere.contexts.write(new, self.contexts, slot.number)
            del self._kept[slot.number]
            slot.memory, slot.number = elsewhere, new
            elsewhere._kept[new] = slot


class KeptSlot:
    """A slot that snapshots need, wherever it may be moved."""

    def __init__(self, memory: Memory, number: int) -> None:
        self.memory, self.number = memory, number


class Slots:
    """The slots that a session's rows use.

    Args:
        memory: holds them.
        of_row: the number of each row's slot.
        fixed: whether rows never share, as compiled frames need it; then row r has slot r.
    """

    def __init__(self, memory: Memory, of_row: Sequence[int], fixed: bool = False) -> None:
        self.fixed, self.memory = fixed, memory
        self._use(memory, of_row)

    @property
    def contexts(self) -> Contexts:
        """What lies in the memory."""
        return self.memory.contexts

    def select(self, rows: Sequence[int]) -> Slots:
        """Those of these rows, each as often as it is named: the same slots or, where rows never share, copies."""
        of_row = [self.of_row[row] for row in rows]
        if not self.fixed:
            return Slots(self.memory, of_row)
        memory = Memory(self.contexts.empty(bucket(len(rows))))
        for new, number in enumerate(of_row):
            memory.contexts.write(new, self.contexts, number)
        return Slots(memory, range(len(rows)), fixed=True)

    def cache(self, capacity: int) -> BranchedCache:
        """An empty cache for the rows, with so many positions each."""
        return BranchedCache(self.contexts.prefixes, self.of_row, capacity, self._places)

    def keep(self) -> list[KeptSlot]:
        """For a snapshot: the slot of each row."""
        return [self.memory.keep(number) for number in self.of_row]

    def replace(self, rows: Sequence[int], contexts: Contexts, which: Sequence[int]) -> None:
        """Write new contexts, `which` says for each row its number; where memory runs out, nothing has changed."""
        self._make_writable(rows)
        for row, number in zip(rows, which, strict=True):
            self.contexts.write(row, contexts, number)

    def restore(self, kept: Sequence[KeptSlot]) -> None:
        """Let the rows use these slots again, one for each; where memory runs out, nothing has changed."""
        if self._all_together(kept):
            self._use(kept[0].memory, [slot.number for slot in kept])
            return
        away = self._away(kept)
        self._make_writable(away)
        for row in away:
            self.contexts.write(row, kept[row].memory.contexts, kept[row].number)

    def bytes_to_write(self, rows: Collection[int]) -> int:
        """Memory that is taken when these rows get new contexts, bytes."""
        places = len(self.memory.kept(rows)) if self._writable else self._places
        return places * self.memory.bytes_each

    def bytes_to_restore(self, kept: Sequence[KeptSlot]) -> int:
        """Memory that is taken by `restore`, bytes."""
        return 0 if self._all_together(kept) else self.bytes_to_write(self._away(kept))

    def _all_together(self, kept: Sequence[KeptSlot]) -> bool:
        return not self.fixed and all(slot.memory is kept[0].memory for slot in kept)

    def _away(self, kept: Sequence[KeptSlot]) -> list[int]:
        """Rows whose slot has moved."""
        return [row for row, slot in enumerate(kept) if slot.memory is not self.memory or slot.number != row]

    @property
    def _places(self) -> int:
        return bucket(len(self.of_row)) if self.fixed else len(self.of_row)

    @property
    def _writable(self) -> bool:
        return self.of_row == list(range(len(self.of_row))) and len(self.memory.users) == 1

    def _make_writable(self, rows: Collection[int]) -> None:
        """See to memory where these rows can be written; the other rows keep what they have."""
        if self._writable:
            self.memory.clear(rows)
            return
        memory = Memory(self.contexts.empty(self._places))
        for row, number in enumerate(self.of_row):
            if row not in rows:
                memory.contexts.write(row, self.contexts, number)
        self._use(memory, range(len(self.of_row)))

    def _use(self, memory: Memory, of_row: Sequence[int]) -> None:
        self.memory.users.discard(self)
        self.memory, self.of_row = memory, list(of_row)
        memory.users.add(self)


def bucket(rows: int) -> int:
    """The next power of two: compiled frames are made for so many rows."""
    return 1 << (rows - 1).bit_length()
