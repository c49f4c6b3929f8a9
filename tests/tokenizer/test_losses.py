"""The tokenizer's losses by hand: plain, weighted by motion, with padding, and perceptual."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from ivideogpt.config import LossWeights
from ivideogpt.tokenizer import Reconstruction
from ivideogpt.tokenizer.losses import (
    perceptual_losses,
    pixel_motion,
    pixel_rarity,
    reconstruction_losses,
    state_losses,
    static_patch_loss,
)

B, T, CONTEXT, SIZE = 2, 5, 2, 8


@pytest.fixture
def frames() -> Tensor:
    return torch.rand(B, T, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def output() -> Reconstruction:
    made = torch.rand(B, T, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
    nothing = torch.empty(0)
    return Reconstruction(
        context=made[:, :CONTEXT],
        future=made[:, CONTEXT:],
        context_codes=nothing,
        dynamics_codes=nothing,
        context_vectors=nothing,
        dynamics_vectors=nothing,
        commitment_context=torch.tensor(0.25),
        commitment_dynamics=torch.tensor(0.5),
        context_quantized=nothing,
        dynamics_quantized=nothing,
    )


@pytest.fixture
def all_real() -> Tensor:
    return torch.ones(B, T, dtype=torch.bool)


def test_plain_l1(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    losses = reconstruction_losses(output, frames, all_real)
    assert set(losses) == {"l1_context", "l1_future", "commitment_context", "commitment_dynamics"}
    torch.testing.assert_close(losses["l1_context"], (output.context - frames[:, :CONTEXT]).abs().mean())
    torch.testing.assert_close(losses["l1_future"], (output.future - frames[:, CONTEXT:]).abs().mean())
    assert losses["commitment_context"] == 0.25
    assert losses["commitment_dynamics"] == 0.5


def test_motion_weight_zero_is_plain_l1(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    plain = reconstruction_losses(output, frames, all_real)
    weighted = reconstruction_losses(output, frames, all_real, LossWeights(motion=0.0))
    assert plain == weighted


def test_nothing_moves_nothing_weighs_more(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    still = frames[:, :1].expand_as(frames)
    plain = reconstruction_losses(output, still, all_real)
    weighted = reconstruction_losses(output, still, all_real, LossWeights(motion=4.0))
    for name, loss in plain.items():
        torch.testing.assert_close(weighted[name], loss)


def test_motion_weight_pixel_by_pixel(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    losses = reconstruction_losses(output, frames, all_real, LossWeights(motion=4.0))
    for name, made, part in [
        ("l1_context", output.context, slice(None, CONTEXT)),
        ("l1_future", output.future, slice(CONTEXT, None)),
    ]:
        weight = 1 + 4 * (frames.amax(1) - frames.amin(1)).amax(1)  # (B, H, W)
        expected = ((made - frames[:, part]).abs() * weight[:, None, None]).mean()
        torch.testing.assert_close(losses[name], expected)


@pytest.mark.parametrize("motion_weight", [0.0, 4.0])
def test_squared_error_beside_the_l1(
    output: Reconstruction, frames: Tensor, all_real: Tensor, motion_weight: float
) -> None:
    losses = reconstruction_losses(output, frames, all_real, LossWeights(motion=motion_weight, mse=3.0))
    plain = reconstruction_losses(output, frames, all_real, LossWeights(motion=motion_weight))
    assert {name: losses.pop(name) for name in plain} == plain, "the other losses are as without it"
    weight = (1 + motion_weight * (frames.amax(1) - frames.amin(1)).amax(1))[:, None, None]
    assert set(losses) == {"mse_context", "mse_future"}
    for name, made, part in [
        ("mse_context", output.context, slice(None, CONTEXT)),
        ("mse_future", output.future, slice(CONTEXT, None)),
    ]:
        torch.testing.assert_close(losses[name], 3 * ((made - frames[:, part]).square() * weight).mean())


def test_motion_is_where_an_object_was_or_is() -> None:
    frames = torch.zeros(1, 3, 3, 4, 4)
    frames[0, 0, 2, 1, 1] = 1.0  # a blue dot ...
    frames[0, 1, 2, 1, 2] = 0.5  # ... that fades as it moves
    motion = pixel_motion(frames)
    assert motion.shape == (1, 1, 1, 4, 4)
    expected = torch.zeros(4, 4)
    expected[1, 1], expected[1, 2] = 1.0, 0.5
    assert torch.equal(motion[0, 0, 0], expected)


def test_a_rare_colour_weighs_more() -> None:
    frames = torch.ones(1, 2, 3, 8, 8)
    frames[0, 1, :, 2, 3] = torch.tensor([0.0, 0.0, 1.0])  # 1 pixel of 128 is blue
    rarity = pixel_rarity(frames)
    assert rarity.shape == (1, 2, 1, 8, 8)
    blue, white = 1 / (1 + (1 / 128) / 0.005), 1 / (1 + (127 / 128) / 0.005)
    expected = torch.full((1, 2, 1, 8, 8), white)
    expected[0, 1, 0, 2, 3] = blue
    torch.testing.assert_close(rarity, expected)


def test_rarity_weight_pixel_by_pixel(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    losses = reconstruction_losses(output, frames, all_real, LossWeights(motion=4.0, rarity=2.0))
    weight = 1 + 4 * pixel_motion(frames) + 2 * pixel_rarity(frames)
    expected = ((output.future - frames[:, CONTEXT:]).abs() * weight[:, CONTEXT:]).mean()
    torch.testing.assert_close(losses["l1_future"], expected)


def test_only_patches_without_change_come_to_rest(output: Reconstruction, all_real: Tensor) -> None:
    frames = torch.full((B, T, 3, SIZE, SIZE), 0.5)
    frames[:, 0] = 0.0  # what came before the last context frame does not matter
    frames[0, 2, 1, 5, 6] += 0.1  # row 0, first future frame: one pixel of the last patch
    frames[1, 3] += 0.01  # row 1: a trace of noise is no change
    mask = all_real.clone()
    mask[1, 4] = False
    vectors = torch.randn(B, T - CONTEXT, 4, 6, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = static_patch_loss(dataclasses.replace(output, dynamics_vectors=vectors), frames, mask)
    still = torch.ones(B, T - CONTEXT, 4, dtype=torch.bool)
    still[0, 0, 3] = False
    still[1, 2] = False
    torch.testing.assert_close(loss, vectors[still].square().mean())
    assert torch.equal(torch.autograd.grad(loss, vectors)[0].any(-1), still)


def test_nothing_at_rest(output: Reconstruction, all_real: Tensor) -> None:
    frames = torch.zeros(B, T, 3, SIZE, SIZE)
    frames[:, CONTEXT:] = 1.0
    assert (
        static_patch_loss(dataclasses.replace(output, dynamics_vectors=torch.ones(B, 3, 4, 6)), frames, all_real) == 0
    )


@pytest.mark.parametrize("motion_weight", [0.0, 4.0])
def test_padding_does_not_count(output: Reconstruction, frames: Tensor, all_real: Tensor, motion_weight: float) -> None:
    frames[1, 4] = frames[1, 3]  # padding repeats the last frame
    mask = all_real.clone()
    mask[1, 4] = False
    losses = reconstruction_losses(output, frames, mask, LossWeights(motion=motion_weight))
    weight = 1 + motion_weight * (frames.amax(1) - frames.amin(1)).amax(1)
    errors = (output.future - frames[:, CONTEXT:]).abs() * weight[:, None, None]
    real = torch.cat([errors[0].flatten(), errors[1, :2].flatten()])
    torch.testing.assert_close(losses["l1_future"], real.mean())
    made = torch.autograd.grad(losses["l1_future"], output.future)[0]
    assert not made[1, 2].any()
    assert made[1, 1].any()


def test_a_batch_of_padding_alone_is_no_division_by_zero(output: Reconstruction, frames: Tensor) -> None:
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[:, CONTEXT:] = False
    assert reconstruction_losses(output, frames, mask)["l1_future"] == 0


class MeanDifference(nn.Module):
    """Stands in for LPIPS: one number a frame."""

    def forward(self, made: Tensor, target: Tensor) -> Tensor:
        return (made - target).abs().mean(dim=(1, 2, 3))


def test_perceptual_is_the_mean_over_real_frames(output: Reconstruction, frames: Tensor, all_real: Tensor) -> None:
    mask = all_real.clone()
    mask[1, 3:] = False
    losses = perceptual_losses(output, frames, mask, MeanDifference())  # type: ignore[arg-type]
    assert set(losses) == {"perceptual_context", "perceptual_future"}
    distances = (output.future - frames[:, CONTEXT:]).abs().mean((2, 3, 4))
    expected = torch.cat([distances[0], distances[1, :1]]).mean()
    torch.testing.assert_close(losses["perceptual_future"], expected)
    torch.testing.assert_close(losses["perceptual_context"], (output.context - frames[:, :CONTEXT]).abs().mean())


# States


@pytest.fixture
def read(output: Reconstruction) -> Reconstruction:
    """With states of four features."""
    numbers = torch.Generator().manual_seed(2)
    frame, dynamics = torch.randn(B, T, 4, generator=numbers), torch.randn(B, T - CONTEXT, 4, generator=numbers)
    return dataclasses.replace(output, frame_states=frame, dynamics_states=dynamics)


def test_state_losses(read: Reconstruction, all_real: Tensor) -> None:
    features, known = torch.randn(B, T, 4), torch.tensor([True, False])
    vectors = torch.randn(B, T - CONTEXT, 3, 6)
    losses = state_losses(dataclasses.replace(read, dynamics_vectors=vectors), features, all_real, known)
    assert set(losses) == {"state_frame", "state_dynamics", "residual"}
    assert read.frame_states is not None and read.dynamics_states is not None
    torch.testing.assert_close(losses["state_frame"], (read.frame_states - features).abs().mean())
    off = (read.dynamics_states - features[:, CONTEXT:]).abs()
    torch.testing.assert_close(losses["state_dynamics"], off[1].mean())  # who was not told has to say it
    torch.testing.assert_close(losses["residual"], vectors[0].square().mean())  # who was told has nothing to say


def test_states_of_padded_frames_do_not_count(read: Reconstruction, all_real: Tensor) -> None:
    features, mask = torch.randn(B, T, 4), all_real.clone()
    mask[:, -2:] = False
    vectors, known = torch.randn(B, T - CONTEXT, 3, 6), torch.tensor([True, False])
    assert read.frame_states is not None and read.dynamics_states is not None
    read = dataclasses.replace(read, dynamics_vectors=vectors)
    losses = state_losses(read, features, mask, known)
    wild, noise = features.clone(), vectors.clone()
    wild[:, -2:], noise[:, -2:] = 1e6, 1e6
    other = state_losses(dataclasses.replace(read, dynamics_vectors=noise), wild, mask, known)
    assert all(torch.equal(losses[name], other[name]) for name in losses)
    torch.testing.assert_close(losses["state_frame"], (read.frame_states - features)[mask].abs().mean())
    real = slice(0, T - CONTEXT - 2)
    torch.testing.assert_close(losses["residual"], vectors[0, real].square().mean())
    off = (read.dynamics_states - features[:, CONTEXT:]).abs()
    torch.testing.assert_close(losses["state_dynamics"], off[1, real].mean())
    nothing = state_losses(read, features, torch.zeros_like(mask), known)
    assert not any(loss.any() for loss in nothing.values())
