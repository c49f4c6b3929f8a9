from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ivideogpt.errors import ShapeError
from ivideogpt.evaluation.frame_metrics import psnr, ssim


@pytest.fixture
def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 3, 3, 20, 24, generator=generator)
    noise = 0.2 * torch.randn(frames.shape, generator=generator)
    return frames, (frames + noise).clamp(0, 1)


def ssim_by_definition(x: Tensor, y: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N,): window 11, sigma 1.5, valid padding, constants of Wang et al. 2004."""
    x, y = x.double(), y.double()
    bell = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(bell, bell) / bell.sum() ** 2
    kernel = window.expand(3, 1, 11, 11)

    def mean(z: Tensor) -> Tensor:
        return F.conv2d(z, kernel, groups=3)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    ratio = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    return ratio.mean(dim=(1, 2, 3))


def test_psnr_of_a_known_error() -> None:
    frames = torch.full((2, 5, 3, 8, 8), 0.5)
    assert torch.allclose(psnr(frames + 0.1, frames), torch.full((2, 5), 20.0), atol=1e-4)


def test_equal_frames_are_perfect(pair: tuple[Tensor, Tensor]) -> None:
    frames, _ = pair
    assert torch.allclose(psnr(frames, frames), torch.full((2, 3), 100.0))
    assert torch.allclose(ssim(frames, frames), torch.ones(2, 3))


def test_ssim_is_what_its_definition_says(pair: tuple[Tensor, Tensor]) -> None:
    expected = ssim_by_definition(*(x.flatten(0, 1) for x in pair)).view(2, 3)
    assert 0.3 < float(expected.mean()) < 0.95
    assert torch.allclose(ssim(*pair).double(), expected, atol=1e-5)


def test_each_frame_is_scored_alone(pair: tuple[Tensor, Tensor]) -> None:
    for metric in (psnr, ssim):
        assert torch.allclose(metric(*pair)[1, 2], metric(pair[0][1, 2], pair[1][1, 2]), atol=1e-5)


def test_frames_smaller_than_the_window_are_refused() -> None:
    frames = torch.zeros(3, 10, 64)
    with pytest.raises(ShapeError, match=r"10 x 64.*at least 11 x 11"):
        ssim(frames, frames)
    assert psnr(frames, frames) == 100


@pytest.mark.parametrize(
    ("frames", "reference", "message"),
    [
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 12), "must be equal"),
        (torch.zeros(16, 16, 3), torch.zeros(16, 16, 3), r"\(..., 3, H, W\)"),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16, dtype=torch.uint8), "reference are torch.uint8"),
    ],
)
def test_pairs_that_cannot_be_compared_are_refused(frames: Tensor, reference: Tensor, message: str) -> None:
    for metric in (psnr, ssim):
        with pytest.raises(ShapeError, match=message):
            metric(frames, reference)
