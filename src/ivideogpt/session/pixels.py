"""Making pixels of tokens, as many frames at once as are fastest.

Shapes: S contexts, N of them (some of them, or one several times), F frames of each, M dynamics tokens a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.session.state import Contexts, frames_at_once
from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.tokenizer.compressive import DecodedContext

_AT_ONCE = 256  # frames of 64 pixels
_AT_ONCE_ON_CPU = 16  # feature maps of more would not fit into the processor's cache, and wait for memory


def decode_in_parts(tokenizer: CompressiveTokenizer, codes: Tensor, contexts: Contexts, which: Tensor) -> Tensor:
    """Dynamics codes (N,F,M), F > 0, imagined from contexts -> frames (N,F,3,side,side) float32 in [0,1].

    Args:
        tokenizer: the model's.
        codes: 0..Kd-1.
        contexts: S of them.
        which: (N,) int64, the context of each.
    """
    most = frames_at_once(_AT_ONCE_ON_CPU if codes.device.type == "cpu" else _AT_ONCE, tokenizer.config.resolution)
    together = max(1, most // codes.shape[1])  # contexts
    done = []
    for part, index in zip(codes.split(together), which.split(together), strict=True):
        features = [(keys.index_select(0, index), values.index_select(0, index)) for keys, values in contexts.features]
        context = DecodedContext(codes.new_empty(0), features)
        frames = [tokenizer.decode_future(some, context) for some in part.split(max(1, most // len(part)), dim=1)]
        done.append(torch.cat(frames, dim=1))
    return torch.cat(done).float().clamp(0, 1)
