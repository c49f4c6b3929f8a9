"""Pictures of what a model in training does with held-out episodes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ivideogpt.drawing import as_frames, stacked, strip


def labelled_rows(videos: Mapping[str, Tensor], context_frames: int) -> Tensor:
    """Videos below each other, each row with its name, an episode under another.

    Args:
        videos: by name, (B, T, 3, H, W) float in [0, 1], the same B segments in each.
        context_frames: t; the last of them is shown, then future frames.

    Returns:
        (3, H', W') float in [0, 1].
    """
    strips = {}
    for i in range(len(next(iter(videos.values())))):
        rows = {name: as_frames(video[i]) for name, video in videos.items()}
        strips[f"held-out segment {i + 1}"] = strip(rows, context_frames)
    return torch.from_numpy(np.asarray(stacked(strips)).copy()).permute(2, 0, 1).float() / 255
