"""What a new transformer's tables know from the start: which codes look alike, which places are near."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivideogpt import CompressiveTokenizer, TokenLayout, VideoTransformer
from ivideogpt.training.embeddings import embed_codes, embed_places

LAYOUT = TokenLayout(context_tokens=64, dynamics_tokens=16, context_codes=8, dynamics_codes=8)


def test_codes_that_look_alike_start_alike() -> None:
    tokenizer = CompressiveTokenizer.from_preset(
        "micro-16",
        quantizer="fsq",
        context_codes=64,
        dynamics_codes=64,
        context_levels=(4, 4, 4),
        dynamics_levels=(4, 4, 4),
    )
    model = VideoTransformer.from_preset("micro", layout=tokenizer.layout, hidden=256, heads=2)
    slots, scale = (
        model.embedding.weight[model.layout.context_slot :].clone(),
        float(model.embedding.weight.detach().std()),
    )
    embed_codes(model, tokenizer)
    ids = model.layout.dynamics_ids
    assert torch.equal(model.embedding.weight[model.layout.context_slot :], slots)
    for table in (model.embedding.weight, model.head.weight):
        codes = table[ids.start : ids.stop].detach()
        assert float(codes.std()) == pytest.approx(scale, rel=0.1)
        likeness = F.normalize(codes) @ F.normalize(codes).T
        assert likeness[0, 1] > 0.5 > abs(likeness[0, 63])  # one level apart; opposite corners


def test_places_that_are_near_start_alike() -> None:
    model = VideoTransformer.from_preset("micro", layout=LAYOUT, hidden=512, heads=2, place_embedding=True)
    slot = model.places.weight[LAYOUT.place_count - 2].clone()  # type: ignore[union-attr]
    embed_places(model)
    assert model.places is not None
    table = model.places.weight.detach()
    assert torch.equal(table[LAYOUT.place_count - 2], slot), "S1 lies nowhere"
    likeness = F.normalize(table) @ F.normalize(table).T
    top_left, beside, bottom_right = 9, 10, 54  # context cells (1, 1), (1, 2) and (6, 6)
    assert likeness[top_left, beside] > 0.4 > 0.2 > abs(likeness[top_left, bottom_right])
    first, last = LAYOUT.dynamics_places.start, LAYOUT.dynamics_places.stop - 1
    assert likeness[top_left, first] > 0.2 > abs(likeness[top_left, last]), "the two grids cover the same frame"
    assert abs(likeness[63, first]) < 0.2, "no token of a frame follows the last of the frame before"


def test_a_model_without_places_is_left_alone() -> None:
    model = VideoTransformer.from_preset("micro", layout=LAYOUT)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    embed_places(model)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_grids_that_are_no_squares(count: int) -> None:
    layout = TokenLayout(context_tokens=count + 1, dynamics_tokens=count, context_codes=8, dynamics_codes=8)
    model = VideoTransformer.from_preset("micro", layout=layout, place_embedding=True)
    embed_places(model)
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())
