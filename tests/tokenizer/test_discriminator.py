"""The patch discriminator against its definition, its losses, and a case that both sides can learn."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivideogpt.errors import ShapeError
from ivideogpt.tokenizer.discriminator import (
    PatchDiscriminator,
    adaptive_weight,
    generator_loss,
    hinge_discriminator_loss,
)


@pytest.fixture
def discriminator() -> PatchDiscriminator:
    torch.manual_seed(0)
    return PatchDiscriminator()


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Conv2d)]


@pytest.mark.parametrize(("height", "width"), [(64, 64), (256, 256), (32, 64), (17, 33)])
def test_one_logit_for_each_patch(discriminator: PatchDiscriminator, height: int, width: int) -> None:
    logits = discriminator(torch.rand(2, 3, height, width))
    assert logits.shape == (2, 1, math.ceil(height / 16), math.ceil(width / 16))


def test_equals_its_definition(discriminator: PatchDiscriminator) -> None:
    frames = torch.rand(2, 3, 64, 64)
    discriminator.eval()
    first, second, third, fourth, last = convolutions(discriminator)
    x = F.leaky_relu(F.conv2d(frames, first.weight, first.bias, stride=2, padding=1), 0.2)
    for layer in (second, third, fourth):
        x = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt()
        x = F.leaky_relu(x, 0.2)
    torch.testing.assert_close(discriminator(frames), F.conv2d(x, last.weight, last.bias))


def test_has_the_official_sizes(discriminator: PatchDiscriminator) -> None:
    layers = convolutions(discriminator)
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1]
    # weights (3x3 and, last, 1x1) and biases
    expected = 9 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 512 + (64 + 128 + 256 + 512 + 1)
    assert sum(weight.numel() for weight in discriminator.parameters()) == expected


def test_spectral_norm_keeps_every_convolution_but_the_last_at_one(discriminator: PatchDiscriminator) -> None:
    for layer in convolutions(discriminator)[:-1]:
        layer.parametrizations.weight.original.data.mul_(7)  # type: ignore[union-attr, index]
    for _ in range(20):
        discriminator(torch.rand(1, 3, 32, 32))
    for layer in convolutions(discriminator)[:-1]:
        largest = torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item()
        assert largest == pytest.approx(1, abs=0.05)


def test_a_saved_state_continues_exactly(discriminator: PatchDiscriminator) -> None:
    frames = torch.rand(2, 3, 32, 32)
    discriminator(frames)
    other = PatchDiscriminator()
    other.load_state_dict(discriminator.state_dict())
    for _ in range(2):  # the power iteration of spectral norm moves at every training step
        assert torch.equal(other(frames), discriminator(frames))


@pytest.mark.parametrize("shape", [(2, 3, 16, 64), (2, 3, 8, 8), (2, 1, 64, 64), (3, 64, 64), (1, 1, 3, 64, 64)])
def test_frames_that_do_not_fit_are_named(discriminator: PatchDiscriminator, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="at least 17 pixels") as raised:
        discriminator(torch.rand(shape))
    assert str(shape) in str(raised.value)


def test_hinge_losses_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 3.0])
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 4) / 3)
    assert hinge_discriminator_loss(torch.full((2,), 1.0), torch.full((2,), -1.0)).item() == 0
    assert generator_loss(fake).item() == pytest.approx(-1 / 3)


def test_gradients_reach_every_weight_and_the_frames(discriminator: PatchDiscriminator) -> None:
    real, fake = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32, requires_grad=True)
    hinge_discriminator_loss(discriminator(real), discriminator(fake.detach())).backward()
    for name, weight in discriminator.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    assert fake.grad is None
    generator_loss(discriminator(fake)).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0


def linear_losses(perceptual_gradient: Tensor, generator_gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight = torch.zeros_like(perceptual_gradient).requires_grad_()
    return (weight * perceptual_gradient).sum(), (weight * generator_gradient).sum(), weight


def test_adaptive_weight_is_the_ratio_of_gradient_norms() -> None:
    perceptual, generator, weight = linear_losses(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.5]))
    ratio = adaptive_weight(perceptual, generator, weight)
    assert ratio.shape == ()
    assert ratio.item() == pytest.approx(10)
    assert not ratio.requires_grad
    assert weight.grad is None


@pytest.mark.parametrize("gradient", [0.0, 1e-12, 1e-5])
def test_adaptive_weight_is_at_most_ten_thousand(gradient: float) -> None:
    perceptual, generator, weight = linear_losses(torch.tensor([1.0]), torch.tensor([gradient]))
    assert adaptive_weight(perceptual, generator, weight).item() == pytest.approx(1e4)


def test_adaptive_weight_balances_the_gradients_and_keeps_the_graph(
    discriminator: PatchDiscriminator,
) -> None:
    last = nn.Conv2d(4, 3, 3, padding=1)
    frames = last(torch.rand(2, 4, 32, 32))
    perceptual, generator = (frames - 0.5).square().mean(), generator_loss(discriminator(frames))
    weighted = adaptive_weight(perceptual, generator, last.weight) * generator
    (pull,) = torch.autograd.grad(perceptual, last.weight, retain_graph=True)
    (push,) = torch.autograd.grad(weighted, last.weight, retain_graph=True)
    torch.testing.assert_close(pull.norm(), push.norm())
    (perceptual + weighted).backward()
    assert last.weight.grad is not None


def stripes(batch: int, vertical: bool) -> Tensor:
    """Frames (B,3,32,32) with noisy stripes of eight pixels."""
    wave = (torch.arange(32) // 8 % 2).float()
    frames = (wave if vertical else wave[:, None]).expand(batch, 3, 32, 32)
    return (0.8 * frames + 0.2 * torch.rand(batch, 3, 32, 32)).clone()


def test_learns_to_tell_stripes_and_teaches_them(discriminator: PatchDiscriminator) -> None:
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for _ in range(60):
        optimizer.zero_grad()
        real, fake = discriminator(stripes(4, vertical=True)), discriminator(stripes(4, vertical=False))
        hinge_discriminator_loss(real, fake).backward()
        optimizer.step()
    discriminator.eval()
    real, fake = discriminator(stripes(8, vertical=True)), discriminator(stripes(8, vertical=False))
    assert hinge_discriminator_loss(real, fake).item() < 0.3
    assert real.mean() - fake.mean() > 1.5

    frames = stripes(2, vertical=False).requires_grad_()
    teacher = torch.optim.Adam([frames], lr=0.02)
    start = generator_loss(discriminator(frames)).item()
    for _ in range(30):
        teacher.zero_grad()
        generator_loss(discriminator(frames)).backward()
        teacher.step()
    assert generator_loss(discriminator(frames)).item() < start - 0.5
