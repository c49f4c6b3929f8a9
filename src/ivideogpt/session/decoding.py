"""Decoding one frame: a pass of the transformer for each of its tokens, or fewer by speculative decoding.

Shapes: R rows, n positions, H hidden size, M dynamics tokens a frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.transformer import BranchedCache, VideoTransformer
from ivideogpt.transformer.cache import Cache
from ivideogpt.transformer.sampling import Sampled, sample

_WORTHWHILE = 0.5  # passes a token: reading about ten positions takes up to twice the time of reading one
_FRAMES_BETWEEN_TRIALS = 16
_PASSES_TO_JUDGE = 3  # of a frame; if they have settled too little, its other tokens are decoded in turn


class DecodedFrame(NamedTuple):
    """The tokens of one frame and what is known of them."""

    tokens: Tensor
    """(R,M) int64 token ids."""
    entropy: Tensor
    """(R,) mean entropy of the distributions that they were sampled from, in nats."""
    logprob: Tensor
    """(R,) log-probability of the frame's tokens in those distributions, in nats."""
    reward: Tensor | None
    """(R,) on arriving at the frame, in reward units; None without a head or where its last token was not read."""

    def select(self, rows: Tensor) -> DecodedFrame:
        """Those of the rows (n,), copied."""
        tokens, entropy, logprob = (part.index_select(0, rows) for part in self[:3])
        reward = None if self.reward is None else self.reward.index_select(0, rows)
        return DecodedFrame(tokens, entropy, logprob, reward)


def decode_token(
    transformer: VideoTransformer,
    cache: Cache,
    x: Tensor,
    uniform: Tensor,
    sampling: SamplingConfig,
    place: int | Tensor,
) -> tuple[Sampled, Tensor, Tensor]:
    """One pass: read positions, and sample the token that comes next.

    Args:
        transformer: gives the distribution.
        cache: what has been read; goes on by n positions.
        x: embeddings (R,n,H) of what is read.
        uniform: (R,) in [0, 1), the number that decides each row's token.
        sampling: how the token is sampled.
        place: where it will stand in its frame, see `TokenLayout.dynamics_places`.

    Returns:
        The token (R,), its embedding (R,1,H), and the hidden state (R,H) that it was sampled from.
    """
    hidden = transformer.hidden_states(x, cache)[:, -1]
    sampled = sample(transformer.dynamics_logits(hidden), uniform, sampling)
    following = transformer.embed_tokens(sampled.code + transformer.layout.dynamics_ids.start, place)
    return sampled, following[:, None], hidden


def decode_frame(
    transformer: VideoTransformer,
    cache: Cache,
    x: Tensor,
    uniform: Tensor,
    sampling: SamplingConfig,
    *,
    read_last: bool,
) -> DecodedFrame:
    """Sample each token after reading the one before it.

    Args:
        transformer: gives the distributions.
        cache: what has been read; goes on to the frame's last token, or the last but one.
        x: embeddings (R,n,H) of what comes before the first token, the slot last.
        uniform: (R,M) in [0, 1), the number that decides each token.
        sampling: how a token is sampled.
        read_last: whether the last token is read too, for the reward. Else it is for the next frame to read.
    """
    sampled = []
    for place, numbers in zip(transformer.layout.dynamics_places, uniform.unbind(1), strict=True):
        token, x, _ = decode_token(transformer, cache, x, numbers, sampling, place)
        sampled.append(token)
    last = transformer.hidden_states(x, cache)[:, -1] if read_last else None
    return frame_of(transformer, stacked(sampled), last)


def decode_frame_from_draft(
    transformer: VideoTransformer,
    cache: BranchedCache,
    x: Tensor,
    uniform: Tensor,
    sampling: SamplingConfig,
    draft: Tensor,
    *,
    read_last: bool,
) -> tuple[DecodedFrame, int]:
    """Sample the same tokens in fewer passes: read guesses together, keep those that were right.

    A token is decided by its number and by the tokens before it. So wherever all guesses before a place were right,
    what is sampled there is final; the next pass begins behind the first wrong guess. Each pass settles at least one
    token, and the result is that of `decode_frame` up to rounding, whatever the guesses are: this is speculative
    decoding with a draft of certain tokens, accepted with exactly their probability.

    Args:
        transformer, cache, x, uniform, sampling, read_last: as in `decode_frame`.
        draft: (R,M) guessed token ids.

    Returns:
        What `decode_frame` returns, and how many passes it took.
    """
    layout = transformer.layout
    count, places = layout.dynamics_tokens, torch.tensor(layout.dynamics_places, device=draft.device)
    begin = [length + x.shape[1] for length in cache.lengths]  # where the first token will stand
    tokens = draft.clone()
    found = Sampled(tokens - layout.dynamics_ids.start, *torch.zeros(2, *draft.shape, device=draft.device))
    settled, passes = 0, 0
    while settled < count:
        hopeless = passes >= _PASSES_TO_JUDGE and settled < 2 * passes
        end = settled if hopeless else count - 1  # of the guesses that are read
        guesses = tokens[:, settled:end]
        x = torch.cat([x, transformer.embed_tokens(guesses, places[settled:end])], dim=1)
        hidden = transformer.hidden_states(x, cache)[:, settled - end - 1 :]
        made = sample(transformer.dynamics_logits(hidden), uniform[:, settled : end + 1], sampling)
        right = (made.code[:, :-1] + layout.dynamics_ids.start == guesses).all(dim=0).long().cumprod(dim=0).sum()
        known = slice(settled, settled + int(right) + 1)  # the first wrong guess shows what it should have been
        for mine, new in zip(found, made, strict=True):
            mine[:, known] = new[:, : int(right) + 1]
        tokens[:, known] = found.code[:, known] + layout.dynamics_ids.start
        settled, passes = known.stop, passes + 1
        cache.rewind([length + settled - 1 for length in begin])
        x = transformer.embed_tokens(tokens[:, settled - 1 : settled], places[settled - 1 : settled])
    last = transformer.hidden_states(x, cache)[:, -1] if read_last else None
    return frame_of(transformer, found, last), passes


def stacked(tokens: Sequence[Sampled]) -> Sampled:
    """M tokens, each (R,), together (R,M)."""
    return Sampled(*(torch.stack(parts, dim=1) for parts in zip(*tokens, strict=True)))


def frame_of(transformer: VideoTransformer, sampled: Sampled, last: Tensor | None) -> DecodedFrame:
    """The frame of tokens (R,M), and of the hidden state (R,H) of the last one, if that has been read."""
    reward = None if last is None else transformer.reward_of(last)
    tokens = sampled.code + transformer.layout.dynamics_ids.start
    return DecodedFrame(tokens, sampled.entropy.mean(dim=1), sampled.logprob.sum(dim=1), reward)


class Drafting:
    """Whether to decode from drafts, learnt from how it went.

    It pays where the frame before predicts most tokens and reading many positions costs little more than reading one:
    for a single row on a CPU, not for many, whose wrong guesses add up, nor on a GPU, which waits for every pass.

    Args:
        allowed: False never drafts.
    """

    def __init__(self, allowed: bool = True) -> None:
        self.allowed = allowed
        self._frames_to_wait = 0

    def worthwhile(self, rows: int, frames_before: int) -> bool:
        """Whether to draft the coming frame of `rows` rows that have imagined so many frames from their context."""
        if not self.allowed or rows > 1 or frames_before == 0:
            return False
        self._frames_to_wait = max(0, self._frames_to_wait - 1)
        return self._frames_to_wait == 0

    def learn(self, passes: int, tokens: int) -> None:
        """After a frame of so many tokens took so many passes."""
        if passes > _WORTHWHILE * tokens:
            self._frames_to_wait = _FRAMES_BETWEEN_TRIALS
