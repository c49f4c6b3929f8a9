"""Augmentation of a segment: one draw for all its frames, so that motion stays what it is (paper appendix A.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ivideogpt.data.segment import fit_to_square, resize, to_uint8

Range = tuple[float, float]


@dataclass(frozen=True)
class AugmentSpec:
    """Ranges from which one crop and one colour change are drawn, each uniformly.

    Attributes:
        crop_area: area of the crop as a share of the square of the shorter side.
        crop_aspect: width / height of the crop, uniform in its logarithm.
        brightness: factor on all values.
        contrast: factor on the distance to a frame's mean grey.
        saturation: factor on the distance to a pixel's own grey.
        hue: largest shift either way, as a share of the colour circle.
    """

    crop_area: Range = (1.0, 1.0)
    crop_aspect: Range = (1.0, 1.0)
    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue: float = 0.0


NONE = AugmentSpec()
STANDARD = AugmentSpec((0.8, 1.0), (0.9, 1.1), (0.9, 1.1), (0.9, 1.1), (0.9, 1.1), 0.05)
STRONG = AugmentSpec((0.6, 1.0), (0.75, 1.33), (0.6, 1.4), (0.6, 1.4), (0.6, 1.4), 0.5)


def augment(frames: Tensor, spec: AugmentSpec, resolution: int, rng: np.random.Generator) -> Tensor:
    """Random resized crop and colour jitter, the same for all frames.

    Args:
        frames: (T, 3, H, W) uint8.
        spec: ranges; with `NONE` the frames are only fitted to a square.
        resolution: side R of the result.
        rng: decides everything.

    Returns:
        (T, 3, R, R) uint8.
    """
    if spec == NONE:
        return fit_to_square(frames, resolution)
    cropped = _random_crop(frames, spec, rng)
    changed = resize(cropped.float(), resolution).clamp(0, 255) / 255
    operations = _colour_operations(spec, rng)
    for place in rng.permutation(len(operations)):
        changed = operations[place](changed)
    return to_uint8(changed * 255)


def _random_crop(frames: Tensor, spec: AugmentSpec, rng: np.random.Generator) -> Tensor:
    frame_height, frame_width = frames.shape[-2:]
    area = rng.uniform(*spec.crop_area) * min(frame_height, frame_width) ** 2
    aspect = math.exp(rng.uniform(math.log(spec.crop_aspect[0]), math.log(spec.crop_aspect[1])))
    height = min(frame_height, max(1, round(math.sqrt(area / aspect))))
    width = min(frame_width, max(1, round(math.sqrt(area * aspect))))
    top = int(rng.integers(frame_height - height + 1))
    left = int(rng.integers(frame_width - width + 1))
    return frames[..., top : top + height, left : left + width]


def _colour_operations(spec: AugmentSpec, rng: np.random.Generator) -> list[Callable[[Tensor], Tensor]]:
    """The four colour changes with their strengths drawn, for frames in [0, 1]."""
    from kornia import enhance  # takes seconds to import

    brightness, contrast, saturation = (
        float(rng.uniform(*factors)) for factors in (spec.brightness, spec.contrast, spec.saturation)
    )
    angle = 2 * math.pi * float(rng.uniform(-spec.hue, spec.hue))
    return [
        lambda frames: enhance.adjust_brightness_accumulative(frames, brightness),
        lambda frames: enhance.adjust_contrast_with_mean_subtraction(frames, contrast),
        lambda frames: enhance.adjust_saturation_with_gray_subtraction(frames, saturation),
        lambda frames: enhance.adjust_hue(frames, angle),
    ]
