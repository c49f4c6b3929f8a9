"""How the tables of a new transformer start, so that it need not find out by rote what is alike and what is near.

Both write random cosine features (Rahimi and Recht, Random Features for Large-Scale Kernel Machines, 2007), drawn with
torch's global generator: rows of things that are close to each other have a large inner product.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ivideogpt.tokenizer import CompressiveTokenizer
from ivideogpt.transformer import VideoTransformer

_CODE_SCALE = 1.5  # how fast codes become strangers with the distance of their vectors, in standard deviations
_PLACE_SCALE = 8.0  # the same for places, whose coordinates run from 0 to 1 across a frame


@torch.no_grad()
def embed_codes(model: VideoTransformer, tokenizer: CompressiveTokenizer) -> None:
    """Start embedding and head from the tokenizer's code vectors, so that codes that look alike start alike.

    What is learned about one code then holds for its neighbours, and rare codes are not left at noise.
    """
    parts = [
        (tokenizer.context_quantizer, model.layout.context_ids),
        (tokenizer.dynamics_quantizer, model.layout.dynamics_ids),
    ]
    for table in (model.embedding.weight, model.head.weight):
        for quantizer, rows in parts:
            codes = torch.arange(len(rows), device=tokenizer.context_in.weight.device)
            vectors = quantizer.lookup(codes).float().to(table.device)
            vectors = (vectors - vectors.mean(0)) / vectors.std(0).clamp(min=1e-6)
            features = cosine_features(vectors, table.shape[1], _CODE_SCALE / vectors.shape[1] ** 0.5)
            table[rows.start : rows.stop] = features * table.std()


@torch.no_grad()
def embed_places(model: VideoTransformer) -> None:
    """Start the place embedding, where there is one, from where places lie in the frame.

    A row is the sum of features of its own spot and of the spot that comes next, which is what it predicts; spots of
    the context grid and of the coarser grid of future frames share their features.
    """
    if model.places is None:
        return
    layout, table = model.layout, model.places.weight
    grids = [layout.context_places, layout.dynamics_places]
    sizes = [len(places) for places in grids]
    centres = torch.cat([_grid(size) for size in sizes])
    own, following = (cosine_features(centres, table.shape[1], _PLACE_SCALE) * table.std() for _ in range(2))
    for places, spots, next_spots in zip(grids, own.split(sizes), following.split(sizes), strict=True):
        table[places.start : places.stop] = spots
        table[places.start : places.stop - 1] += next_spots[1:]  # a slot, which lies nowhere, follows the last token
    table[layout.future_slot_place] += following[-len(layout.dynamics_places)]


def cosine_features(points: Tensor, width: int, scale: float) -> Tensor:
    """Points (n, d) -> features (n, width) with mean square 1; inner products fall off with scale * distance."""
    directions = torch.randn(points.shape[1], width) * scale
    phases = torch.rand(width) * 2 * math.pi
    return (points @ directions + phases).cos() * 2**0.5


def _grid(count: int) -> Tensor:
    """(count, 2) centres, (row, column) from 0 to 1, of the cells of a square grid in reading order."""
    side = math.ceil(count**0.5)
    cells = torch.arange(count)
    return (torch.stack([cells // side, cells % side], dim=1) + 0.5) / side
