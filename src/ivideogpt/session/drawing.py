"""Drawing the tokens of one frame: one after the other, or guessed from the frame before and checked together.

Shapes: R rows, n positions, H hidden size, M dynamics tokens a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.transformer import BranchedCache, VideoTransformer
from ivideogpt.transformer.sampling import sample

_WORTHWHILE = 0.5  # passes a token: reading about ten positions takes up to twice the time of reading one
_FRAMES_BETWEEN_TRIALS = 16
_PASSES_TO_JUDGE = 3  # of a frame; if they have settled too little, its other tokens are drawn in turn


def draw_in_turn(
    transformer: VideoTransformer, cache: BranchedCache, lead: Tensor, uniform: Tensor, sampling: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """Draw each token after reading the one before it.

    Args:
        transformer: gives the distributions.
        cache: what has been read; goes on to the frame's last token but one.
        lead: embeddings (R,n,H) of what comes before the first token, the slot last.
        uniform: (R,M), the number that decides each token.
        sampling: how a token is drawn.

    Returns:
        (R,M) int64 token ids, and (R,M) entropies of the distributions they were drawn from.
    """
    layout = transformer.layout
    tokens: list[Tensor] = []
    entropies: list[Tensor] = []
    for i in range(layout.dynamics_tokens):
        x = lead if i == 0 else transformer.embed_tokens(tokens[-1], layout.dynamics_places[i - 1])[:, None]
        hidden = transformer.hidden_states(x, cache)[:, -1]
        code, entropy = sample(transformer.dynamics_logits(hidden), uniform[:, i], sampling)
        tokens.append(code + layout.dynamics_ids.start)
        entropies.append(entropy)
    return torch.stack(tokens, dim=1), torch.stack(entropies, dim=1)


def draw_by_drafts(
    transformer: VideoTransformer,
    cache: BranchedCache,
    lead: Tensor,
    draft: Tensor,
    uniform: Tensor,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor, int]:
    """Draw the same tokens in fewer passes: guess them all, read the guesses together, keep what was right.

    A token is decided by its number and by the tokens before it. So wherever all guesses before a place were right,
    what is drawn there is final; the next pass begins behind the first wrong guess. Each pass settles at least one
    token, and the result is that of `draw_in_turn` up to rounding, whatever the guesses are: this is speculative
    decoding with a draft of certain tokens, accepted with exactly their probability.

    Args:
        transformer, cache, lead, uniform, sampling: as in `draw_in_turn`.
        draft: (R,M) guessed token ids.

    Returns:
        Tokens and entropies as `draw_in_turn`, and how many passes it took.
    """
    layout = transformer.layout
    count, places = layout.dynamics_tokens, torch.tensor(layout.dynamics_places, device=draft.device)
    begin = [length + lead.shape[1] for length in cache.lengths]  # where the first token will stand
    tokens = draft.clone()
    entropies = torch.zeros(draft.shape, device=draft.device)
    x, settled, passes = lead, 0, 0
    while settled < count:
        hopeless = passes >= _PASSES_TO_JUDGE and settled < 2 * passes
        end = settled if hopeless else count - 1  # of the guesses that are read
        guesses = tokens[:, settled:end]
        x = torch.cat([x, transformer.embed_tokens(guesses, places[settled:end])], dim=1)
        hidden = transformer.hidden_states(x, cache)[:, settled - end - 1 :]
        codes, entropy = sample(transformer.dynamics_logits(hidden), uniform[:, settled : end + 1], sampling)
        drawn = codes + layout.dynamics_ids.start
        right = (drawn[:, :-1] == guesses).all(dim=0).long().cumprod(dim=0).sum().item()
        known = slice(settled, settled + int(right) + 1)  # the first wrong guess shows what it should have been
        tokens[:, known], entropies[:, known] = drawn[:, : int(right) + 1], entropy[:, : int(right) + 1]
        settled, passes = known.stop, passes + 1
        cache.rewind([length + settled - 1 for length in begin])
        x = transformer.embed_tokens(tokens[:, settled - 1 : settled], places[settled - 1 : settled])
    return tokens, entropies, passes


class Guessing:
    """Whether to draw by drafts, learnt from how it went.

    It pays where the frame before foretells most tokens and reading many positions costs little more than reading one:
    for a single row, not for many, whose wrong guesses add up.

    Args:
        allowed: False never guesses.
    """

    def __init__(self, allowed: bool = True) -> None:
        self.allowed = allowed
        self._frames_to_wait = 0

    def worthwhile(self, rows: int, frames_before: int) -> bool:
        """Whether to guess the coming frame of `rows` rows that have imagined so many frames from their context."""
        if not self.allowed or rows > 1 or frames_before == 0:
            return False
        self._frames_to_wait = max(0, self._frames_to_wait - 1)
        return self._frames_to_wait == 0

    def learn(self, passes: int, tokens: int) -> None:
        """After a frame of so many tokens took so many passes."""
        if passes > _WORTHWHILE * tokens:
            self._frames_to_wait = _FRAMES_BETWEEN_TRIALS
