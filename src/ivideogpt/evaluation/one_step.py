"""One step from the truth: each future frame imagined from the true frames before it, so that errors cannot add up.

Shapes: B episodes, T = t + F sequence frames, t context frames, F future frames, A action size, M dynamics tokens a
frame, H hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ivideogpt.config import SamplingConfig
from ivideogpt.inference import Imagines
from ivideogpt.session.checks import stream_keys
from ivideogpt.transformer import VideoTransformer
from ivideogpt.transformer.sampling import sample
from ivideogpt.transformer.streams import uniform_numbers


@torch.no_grad()
def from_fresh_contexts(
    world_model: Imagines,
    frames: Tensor,
    actions: Tensor | None,
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Imagine each future frame from the t true frames before it as a context of its own.

    Args:
        world_model: the model.
        frames: true videos (B,T,3,R,R) uint8, in the order of `TokenLayout.frame_order`.
        actions: (B,T,A); None where the model takes none.
        seed: decides every draw; each frame has a stream of its own.
        sampling: how tokens are drawn; the model's own way where left out.
        batch_size: episodes imagined together, times the frames of one.

    Returns:
        (B,F,3,R,R) float in [0,1], on the CPU.
    """
    layout = world_model.transformer.layout
    count, t, goal = frames.shape[1], layout.context_frames, int(layout.goal)
    given = torch.tensor([[*range(goal), *range(j - t + goal, j)] for j in range(t, count)])  # (F,t)
    imagined = []
    for first, videos, taken in _batches(frames, actions, batch_size):
        contexts = videos[:, given].flatten(0, 1)  # (B*F,t,3,R,R)
        if taken is not None:
            taken = taken[:, t - 1 : -1].flatten(0, 1)[:, None]
        seeds = [seed + first * len(given) + number for number in range(len(contexts))]
        rollout = world_model.rollout(contexts, taken, horizon=1, seed=seeds, sampling=sampling)
        imagined.append(rollout.video[:, 0, -1].unflatten(0, (len(videos), len(given))).float().cpu())
    return torch.cat(imagined)


@torch.no_grad()
def with_history(
    world_model: Imagines,
    frames: Tensor,
    actions: Tensor | None,
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch_size: int = 8,
) -> Tensor:
    """Imagine each future frame from all true frames before it, read as the context and the tokens of future frames.

    Where the model has learned states, each frame's is predicted from those read from the true frames before it.

    Arguments and result as in `from_fresh_contexts`; episode i draws from the stream of seed + i, so that its first
    frame is that of a rollout with this seed.

    Raises:
        ShapeError: more frames than fit into the model's positions.
    """
    layout, transformer = world_model.transformer.layout, world_model.transformer
    world_model.eval()
    imagined = []
    for first, videos, taken in _batches(frames, actions, batch_size):
        read, predicted = _states(world_model, videos, taken)
        tokens = world_model.tokenizer.tokenize(videos.to(world_model.device), read)
        true = None if read is None else transformer.require_states().features(read)
        embedded = transformer.embed(tokens, taken, true)
        slots = layout.future_slot_positions(videos.shape[1]).tolist()
        ahead = embedded if predicted is None else transformer.embed(tokens, taken, predicted)
        keys = stream_keys([seed + first + row for row in range(len(videos))], len(videos), 1)
        uniform = uniform_numbers(keys, torch.zeros_like(keys[:, 0]), len(slots), layout.dynamics_tokens)
        codes = _next_frames(transformer, embedded, ahead[:, slots], slots, uniform, sampling or world_model.sampling)
        context, _ = layout.split(tokens)
        shown = None if read is None or predicted is None else transformer.require_states().decoded(predicted)
        video = world_model.tokenizer.detokenize(layout.assemble(context, codes), shown)
        imagined.append(video[:, layout.context_frames :].float().cpu())
    return torch.cat(imagined)


def _states(world_model: Imagines, videos: Tensor, actions: Tensor | None) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """States (B,T,S) read from true frames, and features (B,T,D) of those predicted one step from them."""
    path = world_model.transformer.states
    if path is None:
        return None, None
    read = world_model.tokenizer.read_states(videos.to(world_model.device))
    features = path.features(read)
    predicted = path.next_of_segment(features, actions)
    return read, torch.cat([features[:, : path.layout.context_frames], predicted], dim=1)


def _next_frames(
    transformer: VideoTransformer,
    true: Tensor,
    ahead: Tensor,
    slots: Sequence[int],
    uniform: Tensor,
    sampling: SamplingConfig,
) -> Tensor:
    """From the embeddings (B,L,H) of true segments, and (B,F,H) of slots with what they predict: codes (B,F,M) drawn
    at each slot, by the numbers (B,F,M), after what truly came before."""
    layout = transformer.layout
    cache = transformer.new_cache(len(true), true.shape[1])
    frames, read = [], 0
    for number, slot in enumerate(slots):
        cache.length = read  # forgets what was predicted and drawn, and goes on with the truth
        x = torch.cat([true[:, read:slot], ahead[:, number : number + 1]], dim=1)
        codes: list[Tensor] = []
        for i, place in enumerate(layout.dynamics_places):
            hidden = transformer.hidden_states(x, cache)[:, -1]
            codes.append(sample(transformer.dynamics_logits(hidden), uniform[:, number, i], sampling).code)
            x = transformer.embed_tokens(codes[-1] + layout.dynamics_ids.start, place)[:, None]
        frames.append(torch.stack(codes, dim=1))
        read = slot
    return torch.stack(frames, dim=1)


def _batches(frames: Tensor, actions: Tensor | None, size: int) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """The number of the first episode of each part, with its frames and actions."""
    for first in range(0, len(frames), size):
        rows = slice(first, first + size)
        yield first, frames[rows], None if actions is None else actions[rows]
