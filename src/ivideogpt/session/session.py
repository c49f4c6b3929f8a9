"""Sessions: step, look, fork, take back, renew.

Shapes: S contexts, R rows, t context frames, A action size, M dynamics tokens a frame, n tokens, H hidden size, side
of a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.errors import SessionError, ShapeError
from ivideogpt.session.beginning import Seed, context_frames, distinct, require_memory, require_rows, stream_keys
from ivideogpt.session.drawing import Guessing, draw_by_drafts, draw_in_turn
from ivideogpt.session.pixels import decode_in_parts
from ivideogpt.session.state import Snapshot, State, read_contexts, suffix_length
from ivideogpt.session.states import states_of
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.sampling import RowStreams
from ivideogpt.transformer.symlog import symexp

_FORKED = 1  # ends the keys of a fork's streams, so that none is a stream of `start`


class Step(NamedTuple):
    """One imagined step of every row."""

    frame: Tensor | None
    """(R, 3, side, side) float in [0,1]; None where decoding was put off."""
    reward: Tensor | None
    """(R,) reward on arriving at this frame, in reward units; None without a reward head."""
    entropy: Tensor
    """(R,) mean entropy of the distributions the frame's tokens were drawn from, in nats."""
    tokens: Tensor
    """(R, M) int64 token ids of the frame."""
    state: Tensor | None = None
    """(R, S) state that this frame shows, foretold before its tokens were sampled, in the states' own units, angles
    between -pi and pi; None where the model has learned no states."""


class Session:
    """An imagination under way; made by `WorldModel.start`. The key-value cache lives as long as it does.

    Each different context is tokenized, read and its features are decoded once; all its rows share that. Once `horizon`
    frames have been imagined from a context, a row's newest frames become its context, so a session never ends. Memory
    grows once, when rows that shared a context get contexts of their own, and then no more. A step that fails can be
    taken again, as if nothing had happened.
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
        self._guessing = Guessing(drafts)
        self.layout, self.horizon = transformer.layout, horizon
        self._lazy = transformer.reward_head is None  # with one, each frame's last token is read for the reward
        self._state: State | None = state

    @classmethod
    @torch.no_grad()
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
        frames = context_frames(tokenizer, transformer, context)
        keys = stream_keys(seed, len(frames), branches)
        first, which = distinct(frames)
        context_of_row = [which[b] for b in range(len(frames)) for _ in range(branches)]
        rows = len(context_of_row)
        require_memory(tokenizer, transformer, len(first), rows, horizon)
        known = states_of(tokenizer, transformer, frames, (first, which), states, horizon)
        contexts, prefixes = read_contexts(tokenizer, transformer, frames[first], transformer.reward_head is None)
        state = State(
            contexts=contexts,
            cache=transformer.branched_cache(prefixes, context_of_row, suffix_length(transformer, horizon)),
            streams=RowStreams(keys),
            tokens=torch.full(
                (rows, horizon, transformer.layout.dynamics_tokens),
                transformer.layout.dynamics_ids.start,
                device=frames.device,
            ),
            segment=[0] * rows,
            total=[0] * rows,
            unread=contexts.last_tokens[context_of_row],
            known=known and known.select([b for b in range(len(frames)) for _ in range(branches)]),
        )
        return cls(tokenizer, transformer, sampling, horizon, state, drafts)

    # What it is

    @property
    def rows(self) -> int:
        """Rows R: branches of all contexts."""
        return len(self._open().segment)

    @property
    def frames_imagined(self) -> tuple[int, ...]:
        """For each row the frames imagined since its context was given."""
        return tuple(self._open().total)

    @property
    def bytes(self) -> int:
        """Memory held, bytes, what is shared with forks and snapshots included."""
        return self._open().bytes

    @property
    @torch.no_grad()
    def frames(self) -> Tensor:
        """(R, t, 3, side, side) float in [0,1]: what each row would take as a context now, its newest frames.

        Frames of the given context as long as fewer have been imagined; with a goal, the goal first.
        """
        return self._newest(range(self.rows))

    # Going on

    @torch.no_grad()
    def step(self, action: Tensor | None = None, *, decode: bool = True) -> Step:
        """Imagine the next frame of every row.

        Args:
            action: (R, A) taken at the present frame, on the way to the next; None for none.
            decode: whether to make pixels; `decode` makes them later from the tokens.

        Raises:
            ShapeError: an action of the wrong shape, not finite or out of range (names the row and the rule).
            SessionError: the session is closed, or too little memory is free for new contexts.
        """
        state = self._open()
        slot = self._slot(action)
        self._renew([row for row, frames in enumerate(state.segment) if frames == self.horizon])
        path, known, foretold = self.transformer.states, None, None
        if state.known is not None and path is not None:
            known = state.known.after(path, action, state.segment)
            foretold = path.decoded(known.present)
            slot = slot + path.embedding(known.present).to(slot.dtype)
        lengths, unread = list(state.cache.lengths), state.unread
        try:
            tokens, entropy = self._frame(state, slot)
            state.unread = tokens[:, -1].clone()  # the step that is given away may be altered
            reward = None if self._lazy else self._reward(state)
            shown = None if foretold is None else foretold[:, None]
            frame = self._decoded(tokens[:, None], shown, range(len(tokens)))[:, 0] if decode else None
        except BaseException:
            state.cache.rewind(lengths)
            state.unread = unread
            raise
        state.tokens[torch.arange(len(tokens)), torch.tensor(state.segment)] = tokens
        state.segment = [number + 1 for number in state.segment]
        state.total = [number + 1 for number in state.total]
        state.streams.advance()
        state.known = known
        return Step(frame, reward, entropy, tokens, foretold)

    @torch.no_grad()
    def decode(self, tokens: Tensor) -> Tensor:
        """Tokens (R,F,M) that the rows imagined from their present contexts -> frames (R,F,3,side,side) in [0,1].

        Where the model has learned states, these must be the tokens of each row's newest frames, which show its newest
        states.

        Raises:
            ShapeError: tokens of another shape, more frames than a row has imagined from its present context, or ids
                that are not legal inside a future frame.
        """
        expected = (self.rows, self.layout.dynamics_tokens)
        if tokens.ndim != 3 or (tokens.shape[0], tokens.shape[2]) != expected:
            raise ShapeError(
                f"tokens have shape {tuple(tokens.shape)}; this session decodes (R, F, M) = "
                f"({expected[0]}, F, {expected[1]})."
            )
        for row, imagined in enumerate(self._open().segment):
            if tokens.shape[1] > imagined:
                raise ShapeError(
                    f"{tokens.shape[1]} frames are to be decoded, but row {row} has imagined {imagined} from its "
                    "present context. Decode before the step that makes the newest frames the context."
                )
        legal = self.layout.dynamics_ids
        if tokens.numel() and not (int(tokens.min()) >= legal.start and int(tokens.max()) < legal.stop):
            raise ShapeError(
                f"tokens lie outside {legal.start}..{legal.stop - 1}, the ids legal inside a future frame."
            )
        state, device = self._open(), self._open().tokens.device
        shown = None
        if state.known is not None:
            newest = torch.tensor(state.segment)[:, None] + torch.arange(-tokens.shape[1], 0)
            shown = state.known.shown[torch.arange(self.rows)[:, None], newest]
        return self._decoded(tokens.to(device), shown, range(self.rows))

    # Branching, going back, starting anew

    @torch.no_grad()
    def fork(self, rows: Sequence[int], seed: SupportsIndex | None = None) -> Session:
        """A new session of copies of these rows, each as often as it is named; this one goes on undisturbed.

        Args:
            rows: indices of rows.
            seed: decides the draws of the copies, each its own. None: a copy goes on with the stream of its row, so
                under the same actions it imagines the same.

        Raises:
            SessionError: no rows, a row that does not exist, or too little memory.
        """
        chosen = require_rows(rows, self.rows)
        require_memory(self.tokenizer, self.transformer, 0, len(chosen), self.horizon)
        state = self._open().select(chosen)
        if seed is not None:
            keys = [(*key, _FORKED) for key in stream_keys(seed, len(chosen), 1)]
            state.streams.restart(range(len(chosen)), keys)
        drafts = self._guessing.allowed
        return Session(self.tokenizer, self.transformer, self.sampling, self.horizon, state, drafts)

    @torch.no_grad()
    def snapshot(self) -> Snapshot:
        """The present moment, to `restore` as often as wanted, also in another session of the same model."""
        return Snapshot(self._open().copy(), self.transformer, self.tokenizer, self.horizon)

    @torch.no_grad()
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot: rows, frames and random streams are as they were then.

        Raises:
            SessionError: a snapshot of another model or horizon, or the session is closed.
        """
        self._open()
        if snapshot.transformer is not self.transformer or snapshot.tokenizer is not self.tokenizer:
            raise SessionError("this snapshot is of another model. Restore it in a session of the model it came from.")
        if snapshot.horizon != self.horizon:
            raise SessionError(
                f"this snapshot is of a session with a horizon of {snapshot.horizon} frames, this one has "
                f"{self.horizon}. Start the session with the same horizon."
            )
        self._state = snapshot.state.copy()

    @torch.no_grad()
    def reset(self, context: Tensor, rows: Sequence[int], seed: Seed = None, *, states: Tensor | None = None) -> None:
        """Let some rows begin anew, each from a context of its own; the others go on undisturbed.

        Args:
            context: (n, t, 3, side, side), one for each of the n rows, as in `WorldModel.start`.
            rows: indices of the n rows, each once.
            seed: as in `WorldModel.start`, a context having one branch. None: each row goes on with its stream.
            states: (n, t, S) of the contexts, as in `WorldModel.start`.

        Raises:
            ShapeError: contexts or seeds that do not fit the rows or the model.
            SessionError: no rows, a row that does not exist or is named twice, too little memory, or the session is
                closed.
        """
        chosen = require_rows(rows, self.rows)
        if len(set(chosen)) != len(chosen):
            raise SessionError(f"rows are {chosen}; each row can be reset once at a time. Name each once.")
        frames = context_frames(self.tokenizer, self.transformer, context)
        if len(frames) != len(chosen):
            raise ShapeError(f"{len(frames)} contexts were given for {len(chosen)} rows; give one a row.")
        keys = None if seed is None else stream_keys(seed, len(chosen), 1)
        known = states_of(self.tokenizer, self.transformer, frames, distinct(frames), states, self.horizon)
        self._begin_from(chosen, frames)
        state = self._open()
        if known is not None and state.known is not None:
            state.known = state.known.replaced(chosen, known)
        for row in chosen:
            state.total[row] = 0
        if keys is not None:
            state.streams.restart(chosen, keys)

    def close(self) -> None:
        """Free the memory; the session cannot be used any more. Forks and snapshots can."""
        self._state = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # One frame

    def _frame(self, state: State, slot: Tensor) -> tuple[Tensor, Tensor]:
        """From the slot's embedding (R,H): the frame's tokens (R,M) and the mean entropy of their draws (R,)."""
        uniform = state.streams.uniform(self.layout.dynamics_tokens).to(state.tokens.device)
        lead = slot[:, None]
        if self._lazy:
            lead = torch.cat([self._unread(state), lead], dim=1)
        drawing = (self.transformer, state.cache, lead)
        if self._guessing.worthwhile(len(slot), min(state.segment)):
            before = state.tokens[torch.arange(len(slot)), torch.tensor(state.segment) - 1]
            tokens, entropies, passes = draw_by_drafts(*drawing, before, uniform, self.sampling)
            self._guessing.learn(passes, self.layout.dynamics_tokens)
        else:
            tokens, entropies = draw_in_turn(*drawing, uniform, self.sampling)
        return tokens, entropies.mean(dim=1)

    def _slot(self, action: Tensor | None) -> Tensor:
        """Embedding (R, H) of the S2 slot with its action."""
        transformer, rows = self.transformer, self.rows
        if action is not None and not isinstance(action, Tensor):
            raise ShapeError(f"action is a {type(action).__name__}; give a torch tensor: torch.as_tensor(action).")
        slots = torch.full((rows,), self.layout.future_slot, device=transformer.embedding.weight.device)
        slot = transformer.embed_tokens(slots, self.layout.future_slot_place)
        if action is None:
            return slot
        expected = (rows, transformer.config.action_dim)
        if transformer.action_in is not None and tuple(action.shape) != expected:
            raise ShapeError(f"action has shape {tuple(action.shape)}; this session takes (rows, A) = {expected}.")
        transformer.require_values(action)
        return slot + transformer.embed_actions(action.to(slot.device)).to(slot.dtype)

    def _unread(self, state: State) -> Tensor:
        """Embedding (R,1,H) of each row's last token: of a context, or of a future frame."""
        context, future = self.layout.context_places[-1], self.layout.dynamics_places[-1]
        places = [future if frames else context for frames in state.segment]
        return self.transformer.embed_tokens(state.unread, torch.tensor(places, device=state.unread.device))[:, None]

    def _reward(self, state: State) -> Tensor:
        """Reward (R,) from the last token, which is read for it. Without a head it is read with the next slot."""
        last = self.transformer.embed_tokens(state.unread, self.layout.dynamics_places[-1])[:, None]
        reward = self.transformer.rewards(self.transformer.hidden_states(last, state.cache)[:, -1])
        assert reward is not None, "there is a reward head"
        reward = reward.float()
        return symexp(reward) if self.transformer.config.reward_symlog else reward

    # Frames and contexts

    def _decoded(self, tokens: Tensor, shown: Tensor | None, rows: Sequence[int]) -> Tensor:
        """Tokens (R,F,M) of these rows, and the states (R,F,S) that they show or None -> frames (R,F,3,side,side)."""
        state = self._open()
        if tokens.shape[1] == 0:
            return state.contexts.frames.new_empty(len(rows), 0, *state.contexts.frames.shape[2:], dtype=torch.float32)
        codes = tokens - self.layout.dynamics_ids.start
        groups = state.cache.groups
        if groups.regular and len(rows) == self.rows:  # all frames of a context's rows together
            together = (groups.prefixes, groups.largest)
            codes = codes.unflatten(0, together).flatten(1, 2)  # (S, K*F, M)
            shown = None if shown is None else shown.unflatten(0, together).flatten(1, 2)
            which = torch.arange(groups.prefixes, device=codes.device)
        else:
            which = torch.tensor([groups.prefix_of_row[row] for row in rows], device=codes.device)
        frames = decode_in_parts(self.tokenizer, codes, shown, state.contexts, which)
        return frames.view(*tokens.shape[:2], *frames.shape[2:])

    def _newest(self, rows: Sequence[int]) -> Tensor:
        """(len(rows), t, 3, side, side): see `frames`."""
        state, goal = self._open(), int(self.layout.goal)
        wanted, t = self.layout.context_frames - goal, self.layout.context_frames
        device = state.tokens.device
        chosen = torch.tensor(list(rows), device=device)
        imagined = torch.tensor([state.segment[row] for row in rows], device=device)
        numbers = imagined[:, None] + torch.arange(-wanted, 0, device=device)  # below 0: of the context
        given = state.contexts.frames[torch.tensor(state.prefix_of_row, device=device)[chosen]].float()
        old = given[torch.arange(len(rows), device=device)[:, None], (t + numbers).clamp(max=t - 1)]
        if int(imagined.max()) > 0:
            tokens = state.tokens[chosen[:, None], numbers.clamp(min=0)]
            is_old = (numbers < 0)[:, :, None, None, None]
            shown = None if state.known is None else state.known.shown[chosen[:, None], numbers.clamp(min=0)]
            old = torch.where(is_old, old, self._decoded(tokens, shown, rows))
        return torch.cat([given[:, :goal], old], dim=1)

    def _renew(self, rows: list[int]) -> None:
        """Make the newest frames of these rows, whose segment is used up, their context."""
        if rows:
            self._begin_from(rows, self._newest(rows).to(self.tokenizer.context_in.weight.dtype))

    def _begin_from(self, rows: list[int], frames: Tensor) -> None:
        """Let rows go on from contexts of their own (len(rows),t,3,side,side)."""
        first, which = distinct(frames)
        require_memory(self.tokenizer, self.transformer, len(first), 0, self.horizon)
        contexts, prefixes = read_contexts(self.tokenizer, self.transformer, frames[first], self._lazy)
        self._open().restart(rows, contexts, prefixes, which)

    # Checks

    def _open(self) -> State:
        if self._state is None:
            raise SessionError("this session is closed. Start a new one.")
        return self._state
