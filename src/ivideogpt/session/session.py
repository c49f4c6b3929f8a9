"""Sessions: step, look, fork, take back, renew.

Shapes: S contexts, R rows, n of them, t context frames, A action size, M dynamics tokens a frame, H hidden size, side
of a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.session.checks import Seed, require_action, require_rows, stream_keys
from ivideogpt.session.decoding import DecodedFrame, Drafting, decode_frame, decode_frame_from_draft
from ivideogpt.session.memory import defers_last_token, prefill_bytes, refresh_bytes, require_memory, session_bytes
from ivideogpt.session.modes import in_own_mode, own_mode
from ivideogpt.session.pixels import decode_rows, newest_frames
from ivideogpt.session.prefill import parts, prefill
from ivideogpt.session.start import begin, new_contexts, read
from ivideogpt.session.state import Snapshot, State
from ivideogpt.session.states import known_states
from ivideogpt.session.static import decode_static
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer

_FORKED = 1  # ends the keys of a fork's streams, so that none is a stream of `start`


class Step(NamedTuple):
    """One imagined frame of n rows."""

    frame: Tensor | None
    """(n, 3, side, side) float in [0,1]; None where decoding was put off."""
    reward: Tensor | None
    """(n,) reward on arriving at this frame, in reward units; None without a reward head."""
    entropy: Tensor
    """(n,) mean entropy of the distributions the frame's tokens were sampled from, in nats."""
    logprob: Tensor
    """(n,) log-probability of the tokens in them, in nats; `VideoTransformer.logprob` has it with gradients."""
    tokens: Tensor
    """(n, M) int64 token ids of the frame."""
    state: Tensor | None = None
    """(n, S) state that this frame shows, predicted before its tokens were sampled, in the states' own units, angles
    between -pi and pi; None where the model has learned no states."""


class Session:
    """An imagination under way; made by `WorldModel.start`. The key-value cache lives as long as it does.

    Each different context is tokenized, read and its features are decoded once; all its rows share that. Once `horizon`
    frames have been imagined from a context, a row's newest frames become its context, so a session never ends. Memory
    grows once, when rows that shared a context get contexts of their own, and then no more. What fails can be tried
    again, as if nothing had happened.
    """

    def __init__(
        self,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        sampling: SamplingConfig,
        horizon: int,
        state: State,
        drafts: bool = True,
    ) -> None:
        self.tokenizer, self.transformer, self.sampling = tokenizer, transformer, sampling
        self.layout, self.horizon = transformer.layout, horizon
        self._device = transformer.embedding.weight.device
        self._drafting = Drafting(drafts and self._device.type == "cpu" and not transformer.static)
        self._defers_last = defers_last_token(transformer)
        self._state: State | None = state
        self._undo: Callable[[], None] | None = None  # the last step

    @classmethod
    def begin(
        cls,
        tokenizer: CompressiveTokenizer,
        transformer: VideoTransformer,
        context: Tensor,
        branches: int,
        seed: Seed,
        horizon: int,
        sampling: SamplingConfig,
        drafts: bool,
        states: Tensor | None = None,
    ) -> Self:
        """See `WorldModel.start`."""
        if not isinstance(branches, int) or branches < 1:
            raise ShapeError(f"branches is {branches}; it must be a whole number of at least 1.")
        with own_mode(transformer.embedding.weight.device):
            given = new_contexts(tokenizer, transformer, context, states)
            keys = stream_keys(seed, len(given.which), branches)
            needed = session_bytes(tokenizer, transformer, len(given.first), len(keys), horizon)
            needed += prefill_bytes(tokenizer, transformer, len(given.first))
            what = f"{len(keys)} rows of {len(given.first)} new contexts and {horizon} frames"
            require_memory(transformer, needed, what)
            state = begin(tokenizer, transformer, given, keys, horizon)
        return cls(tokenizer, transformer, sampling, horizon, state, drafts)

    @property
    def rows(self) -> int:
        """Rows R: branches of all contexts."""
        return len(self._open().rows.segment)

    @property
    def frames_imagined(self) -> tuple[int, ...]:
        """For each row the frames imagined since its context was given."""
        return tuple(self._open().rows.total)

    @property
    def bytes(self) -> int:
        """Memory held, bytes, what is shared with forks and snapshots included."""
        return self._open().bytes

    @property
    @in_own_mode
    def frames(self) -> Tensor:
        """(R, t, 3, side, side) float in [0,1]: what each row would take as a context now, its newest frames.

        Frames of the given context as long as fewer have been imagined; with a goal, the goal first.
        """
        return newest_frames(self.tokenizer, self.layout, self._open(), *self._open().all_rows)

    # Going on

    @in_own_mode
    def step(self, action: Tensor | None = None, rows: Sequence[int] | None = None, *, decode: bool = True) -> Step:
        """Imagine the next frame of every row, or of some; the others stay where they are.

        Args:
            action: (n, A) taken at the present frame, on the way to the next; None for none.
            rows: numbers of the n rows that move, each once; all where left out.
            decode: whether to make pixels; `decode` makes them later from the tokens.

        Raises:
            ShapeError: an action of the wrong shape, not finite or out of range (names the row and the rule).
            SessionError: no rows, one that does not exist or is named twice, the session is closed, or too little
                memory is free for new contexts.
        """
        state = self._open()
        chosen, index = state.all_rows if rows is None else self._chosen(rows, "stepped")
        action = require_action(self.transformer, action, chosen)
        self._renew([row for row in chosen if state.rows.segment[row] == self.horizon])
        undo = state.moment()
        try:
            step = self._step(state, action, chosen, index, decode)
        except BaseException:
            undo()
            raise
        self._undo = undo
        return step

    @in_own_mode
    def take_back(self) -> None:
        """Undo the last step: the rows that moved are where they were, and take the same step again if asked to.

        Raises:
            SessionError: there is none to undo: there was no step yet, or something else since.
        """
        self._open()
        if self._undo is None:
            raise SessionError("there is no step to take back: only the last thing that was done can be undone.")
        self._undo()
        self._undo = None

    @in_own_mode
    def decode(self, tokens: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Tokens (n,F,M) that rows imagined from their present contexts -> frames (n,F,3,side,side) in [0,1].

        Where the model has learned states, these must be the tokens of each row's newest frames, which show its newest
        states.

        Args:
            tokens: the rows' token ids.
            rows: numbers of the n rows, each once; all where left out.

        Raises:
            ShapeError: tokens of another shape, more frames than a row has imagined from its present context, or ids
                that are not legal inside a future frame.
            SessionError: as in `step`.
        """
        state = self._open()
        chosen, index = state.all_rows if rows is None else self._chosen(rows, "decoded")
        expected = (len(chosen), self.layout.dynamics_tokens)
        if tokens.ndim != 3 or (tokens.shape[0], tokens.shape[2]) != expected:
            raise ShapeError(
                f"tokens have shape {tuple(tokens.shape)}; this session decodes (R, F, M) = "
                f"({expected[0]}, F, {expected[1]})."
            )
        for row in chosen:
            if tokens.shape[1] > (imagined := state.rows.segment[row]):
                raise ShapeError(
                    f"{tokens.shape[1]} frames are to be decoded, but row {row} has imagined {imagined} from its "
                    "present context. Decode before the step that makes the newest frames the context."
                )
        legal = self.layout.dynamics_ids
        if tokens.numel() and not (int(tokens.min()) >= legal.start and int(tokens.max()) < legal.stop):
            raise ShapeError(
                f"tokens lie outside {legal.start}..{legal.stop - 1}, the ids legal inside a future frame."
            )
        numbers = state.imagined(index)[:, None] + torch.arange(-tokens.shape[1], 0, device=index.device)
        codes = tokens.to(index.device) - legal.start
        return decode_rows(self.tokenizer, state, codes, numbers, chosen, index)

    # Branching, going back, starting anew

    @in_own_mode
    def fork(self, rows: Sequence[int], seed: SupportsIndex | None = None) -> Session:
        """A new session of copies of these rows, each as often as it is named; this one goes on undisturbed.

        Args:
            rows: numbers of rows.
            seed: decides the samples of the copies, each its own. None: a copy goes on with the stream of its row, so
                under the same actions it imagines the same.

        Raises:
            SessionError: no rows, a row that does not exist, or too little memory.
        """
        state = self._open()
        chosen = require_rows(rows, self.rows)
        needed = session_bytes(self.tokenizer, self.transformer, 0, len(chosen), self.horizon)
        require_memory(self.transformer, needed, self._what(0, len(chosen)))
        copies = state.fork(chosen)
        if seed is not None:
            copies.rows.restart_streams(stream_keys(seed, len(chosen), 1, _FORKED))
        return Session(self.tokenizer, self.transformer, self.sampling, self.horizon, copies, self._drafting.allowed)

    @in_own_mode
    def snapshot(self) -> Snapshot:
        """The present moment, to `restore` in this session as often as wanted.

        Raises:
            SessionError: too little memory, or the session is closed.
        """
        state = self._open()
        require_memory(self.transformer, state.snapshot_bytes, "a snapshot")
        return state.snapshot()

    @in_own_mode
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot: rows, frames and random streams are as they were then.

        Raises:
            SessionError: a snapshot of another session, too little memory, or the session is closed.
        """
        state = self._open()
        if snapshot.of() is not state:
            raise SessionError("this snapshot is of another session. Restore it in the one that it came from.")
        require_memory(self.transformer, state.bytes_to_restore(snapshot), "a snapshot's rows")
        state.restore(snapshot)
        self._undo = None

    @in_own_mode
    def reset(self, context: Tensor, rows: Sequence[int], seed: Seed = None, *, states: Tensor | None = None) -> None:
        """Let some rows begin anew, each from a context of its own; the others go on undisturbed.

        Where it fails half-way each row is as it was or has begun anew; then reset them again.

        Args:
            context: (n, t, 3, side, side), one for each of the n rows, as in `WorldModel.start`.
            rows: numbers of the n rows, each once.
            seed: as in `WorldModel.start`, a context having one branch. None: each row goes on with its stream.
            states: (n, t, S) of the contexts, as in `WorldModel.start`.

        Raises:
            ShapeError: contexts or seeds that do not fit the rows or the model.
            SessionError: no rows, a row that does not exist or is named twice, too little memory, or the session is
                closed.
        """
        state = self._open()
        chosen, index = self._chosen(rows, "reset")
        given = new_contexts(self.tokenizer, self.transformer, context, states)
        if len(given.which) != len(chosen):
            raise ShapeError(f"{len(given.which)} contexts were given for {len(chosen)} rows; give one a row.")
        keys = None if seed is None else stream_keys(seed, len(chosen), 1).to(index.device)
        needed = prefill_bytes(self.tokenizer, self.transformer, len(given.first))
        require_memory(self.transformer, needed + state.slots.bytes_to_write(chosen), self._what(len(given.first), 0))
        self._undo = None
        for kinds, made in read(self.tokenizer, self.transformer, given):
            part = [number for number, kind in enumerate(given.which) if kind in kinds]
            some = [chosen[number] for number in part]
            following = state.rows.select(some, index[part]).next_segment(state.imagined(index[part]))
            if keys is not None:
                following.restart_streams(keys[part])
            following.total = [0] * len(part)
            which = [given.which[number] - kinds.start for number in part]
            if self.transformer.states is not None:
                known = given.states[part] if given.states is not None else made.states[which]
                following.known = known_states(self.transformer, known, self.horizon)
            state.begin(some, index[part], made.contexts, which, following)
            del made  # before the next are read

    def close(self) -> None:
        """Free the memory; the session cannot be used any more, nor can its snapshots. Forks can."""
        self._state = self._undo = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One frame

    def _step(self, state: State, action: Tensor | None, chosen: Sequence[int], index: Tensor, decode: bool) -> Step:
        """Imagine a frame of the chosen rows (n), index (n,) on the device, with actions (n,A) or none."""
        at, rows = state.imagined(index), state.rows
        slot, following, shown = self._slot(action, len(chosen)), None, None
        if rows.known is not None:
            path = self.transformer.require_states()
            following = rows.known.select(index).after(path, action)
            slot = slot + path.embedding(following).to(slot.dtype)
            shown = rows.known.shown[index, at] = path.decoded(following)
        frame = self._frame(state, slot, chosen, index, at)
        rows.tokens[index, at] = frame.tokens
        pixels = None
        if decode:
            codes = frame.tokens[:, None] - self.layout.dynamics_ids.start
            pixels = decode_rows(self.tokenizer, state, codes, at[:, None], chosen, index)[:, 0]
        rows.pending = rows.pending.index_copy(0, index, frame.tokens[:, -1])
        if rows.known is not None and following is not None:
            rows.known = rows.known.moved(index, following)
        for row in chosen:
            rows.segment[row] += 1
            rows.total[row] += 1
        return Step(pixels, frame.reward, frame.entropy, frame.logprob, frame.tokens, shown)

    def _frame(self, state: State, slot: Tensor, chosen: Sequence[int], index: Tensor, at: Tensor) -> DecodedFrame:
        """From the slots' embeddings (n,H) of the chosen rows, of which each is at (n,) of its frames: their tokens."""
        uniform, all_rows = state.rows.uniform[index, at], list(chosen) == list(range(self.rows))
        if self.transformer.static:
            frame = decode_static(self.transformer, state.cache, slot, uniform, index, self.sampling)
            if frame is not None:
                state.cache.move(chosen, index, self.layout.frame_length)
                return frame
        cache = state.cache if all_rows else state.cache.copy(chosen, index, self.layout.frame_length)
        x = slot[:, None]
        if self._defers_last:
            x = torch.cat([self._pending(state, index, at), x], dim=1)
        arguments = (self.transformer, cache, x, uniform, self.sampling)
        if self._drafting.worthwhile(len(chosen), state.rows.segment[chosen[0]]):
            draft = state.rows.tokens[index, at - 1]
            frame, passes = decode_frame_from_draft(*arguments, draft, read_last=not self._defers_last)
            self._drafting.learn(passes, self.layout.dynamics_tokens)
        else:
            frame = decode_frame(*arguments, read_last=not self._defers_last)
        if not all_rows:
            state.cache.take(chosen, index, cache, self.layout.frame_length)
        return frame

    def _slot(self, action: Tensor | None, rows: int) -> Tensor:
        """Embedding (n, H) of the S2 slot with its action (n, A)."""
        slots = torch.full((rows,), self.layout.future_slot, device=self._device)
        slot = self.transformer.embed_tokens(slots, self.layout.future_slot_place)
        return slot if action is None else slot + self.transformer.embed_actions(action).to(slot.dtype)

    def _pending(self, state: State, index: Tensor, at: Tensor) -> Tensor:
        """Embedding (n,1,H) of each row's last token: of a context, or of a future frame."""
        context, future = self.layout.context_places[-1], self.layout.dynamics_places[-1]
        places = torch.where(at > 0, future, context)
        return self.transformer.embed_tokens(state.rows.pending.index_select(0, index), places)[:, None]

    # Contexts and checks

    def _renew(self, rows: list[int]) -> None:
        """Make the newest frames of these rows, whose segment is used up, their context."""
        if not rows:
            return
        state = self._open()
        needed = refresh_bytes(self.tokenizer, self.transformer, len(rows))
        require_memory(self.transformer, needed + state.slots.bytes_to_write(rows), self._what(len(rows), 0))
        self._undo = None
        for part in parts(len(rows), self.tokenizer.config.resolution, self._device):
            chosen, index = self._chosen([rows[number] for number in part], "renewed")
            frames = newest_frames(self.tokenizer, self.layout, state, chosen, index).to(
                self.tokenizer.context_in.weight.dtype
            )
            made = prefill(self.tokenizer, self.transformer, frames, defer_last=self._defers_last, states=False)
            following = state.rows.select(chosen, index).next_segment(state.imagined(index))
            state.begin(chosen, index, made.contexts, range(len(chosen)), following)
            del made  # before the next are read

    def _open(self) -> State:
        if self._state is None:
            raise SessionError("this session is closed. Start a new one.")
        return self._state

    def _chosen(self, rows: Sequence[int], done: str) -> tuple[Sequence[int], Tensor]:
        """Numbers of rows, checked, each once, and the same (n,) on the device."""
        chosen = require_rows(rows, self.rows, once=done)
        all_rows, index = self._open().all_rows
        return chosen, index if chosen == list(all_rows) else torch.tensor(chosen, device=self._device)

    def _what(self, contexts: int, rows: int) -> str:
        return f"{rows} rows of {contexts} new contexts and {self.horizon} frames"
