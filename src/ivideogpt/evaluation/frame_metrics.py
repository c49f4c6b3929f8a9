"""PSNR and SSIM of single frames, as the field reports them."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.errors import ShapeError

_SSIM_WINDOW = 11  # pixels; Gaussian, sigma 1.5
_SMALLEST_ERROR = 1e-10  # mean squared error: identical frames get 100 dB instead of infinity


def psnr(frames: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame.

    Args:
        frames: (..., 3, H, W) float in [0, 1].
        reference: same shape and range.

    Returns:
        (...) float32, dB; higher is better, 100 for identical frames.

    Raises:
        ShapeError: shapes that differ, no colour frames, or not float.
    """
    _check_pair(frames, reference)
    error = (frames.float() - reference.float()).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp(min=_SMALLEST_ERROR).log10()


@torch.no_grad()
def ssim(frames: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each frame: Gaussian window of 11 pixels, sigma 1.5, on RGB, valid padding.

    Args:
        frames: (..., 3, H, W) float in [0, 1], H and W at least 11.
        reference: same shape and range.

    Returns:
        (...) float32, at most 1; higher is better.

    Raises:
        ShapeError: as `psnr`, or frames smaller than the window.
    """
    _check_pair(frames, reference)
    height, width = frames.shape[-2:]
    if min(height, width) < _SSIM_WINDOW:
        raise ShapeError(
            f"frames are {height} x {width}; SSIM's window needs at least {_SSIM_WINDOW} x {_SSIM_WINDOW} pixels. "
            "Compare larger frames, or use PSNR."
        )
    from kornia.metrics import ssim as ssim_map  # here, because its import takes a second

    leading = frames.shape[:-3]
    pair = (x.float().reshape(-1, *x.shape[-3:]) for x in (frames, reference))
    return ssim_map(*pair, window_size=_SSIM_WINDOW, padding="valid").mean(dim=(1, 2, 3)).reshape(leading)


def _check_pair(frames: Tensor, reference: Tensor) -> None:
    if frames.shape != reference.shape:
        raise ShapeError(
            f"frames have shape {tuple(frames.shape)} and the reference {tuple(reference.shape)}; "
            "they must be equal. Compare the same frames at the same size."
        )
    if frames.ndim < 3 or frames.shape[-3] != 3:
        raise ShapeError(f"frames have shape {tuple(frames.shape)}; they must be (..., 3, H, W).")
    for name, x in (("frames", frames), ("reference", reference)):
        if not x.is_floating_point():
            raise ShapeError(f"{name} are {x.dtype}; give float in [0, 1]. Divide uint8 by 255.")
