from __future__ import annotations

import numpy as np
import pytest
import torch

from ivideogpt.data.augment import NONE, STANDARD, STRONG, AugmentSpec, _random_crop, augment

NOISE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 3, 24, 32), np.uint8))
GREY = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)


def changed(frames: torch.Tensor, spec: AugmentSpec, seed: int = 0) -> torch.Tensor:
    return augment(frames, spec, 16, np.random.default_rng(seed))


def test_none_only_fits_to_a_square() -> None:
    assert changed(NOISE, NONE).shape == (4, 3, 16, 16)
    assert torch.equal(changed(GREY, NONE), GREY)


@pytest.mark.parametrize("spec", [STANDARD, STRONG])
def test_one_draw_for_the_whole_segment(spec: AugmentSpec) -> None:
    still = NOISE[:1].expand(5, -1, -1, -1)
    for seed in range(5):
        result = changed(still, spec, seed)
        assert result.shape == (5, 3, 16, 16)
        assert result.dtype == torch.uint8
        assert (result == result[:1]).all()
    assert not torch.equal(changed(NOISE, spec, 1), changed(NOISE, spec, 2))
    assert torch.equal(changed(NOISE, spec, 1), changed(NOISE, spec, 1))


def test_brightness_is_a_factor() -> None:
    assert (changed(GREY, AugmentSpec(brightness=(1.2, 1.2))) == 120).all()
    assert (changed(GREY, AugmentSpec(brightness=(3.0, 3.0))) == 255).all()


def test_contrast_is_about_the_mean() -> None:
    frames = GREY.clone()
    frames[..., :8] = 140  # mean 120
    result = changed(frames, AugmentSpec(contrast=(0.5, 0.5)))
    assert sorted(set(result.flatten().tolist())) == [110, 130]


def test_saturation_is_about_grey() -> None:
    red = torch.tensor([200, 50, 50], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    grey = round(0.299 * 200 + 0.587 * 50 + 0.114 * 50)
    assert (changed(red, AugmentSpec(saturation=(0.0, 0.0))).int() - grey).abs().max() <= 1
    assert torch.equal(changed(GREY, AugmentSpec(saturation=(0.5, 0.5))), GREY)


def test_hue_turns_colours_and_leaves_grey_alone() -> None:
    red = torch.tensor([255, 0, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    turned = {tuple(changed(red, AugmentSpec(hue=0.5), seed)[0, :, 0, 0].tolist()) for seed in range(20)}
    assert len(turned) == 20
    assert all(max(colour) == 255 and min(colour) == 0 for colour in turned)
    assert torch.equal(changed(GREY, AugmentSpec(hue=0.5)), GREY)


def test_crop_keeps_the_asked_for_area() -> None:
    """A picture whose columns and rows count pixels shows how large the crop was."""
    ramp = torch.arange(64, dtype=torch.uint8)
    frames = torch.stack([ramp.expand(64, 64), ramp.expand(64, 64).T, ramp.expand(64, 64)])[None]
    spec = AugmentSpec(crop_area=(0.25, 0.25), crop_aspect=(0.5, 2.0))
    shapes = set()
    for seed in range(20):
        result = augment(frames, spec, 64, np.random.default_rng(seed)).float()[0]
        width, height = (float(result[c].max() - result[c].min() + 1) for c in (0, 1))
        assert width * height == pytest.approx(32 * 32, rel=0.12)
        assert 0.4 < width / height < 2.2
        shapes.add((width, height))
    assert len(shapes) > 10


def test_the_logarithm_of_the_aspect_is_uniform() -> None:
    """So that upright and lying crops are equally likely; a uniform aspect would lie twice as often."""
    frames, spec = torch.zeros(1, 3, 400, 400, dtype=torch.uint8), AugmentSpec((0.25, 0.25), (1 / 3, 3))
    sizes = [_random_crop(frames, spec, np.random.default_rng(seed)).shape[-2:] for seed in range(2000)]
    logarithms = np.log([width / height for height, width in sizes])
    assert abs(logarithms.mean()) < 0.06 and logarithms.std() == pytest.approx(2 * np.log(3) / 12**0.5, rel=0.05)
