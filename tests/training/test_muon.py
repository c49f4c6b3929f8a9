"""Orthogonalized steps against PyTorch's own, against singular values, and beside AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ivideogpt.training.muon import Muon, orthogonalized


def muon_of(*weights: nn.Parameter, orthogonal: bool = True, decay: float = 0.1) -> Muon:
    return Muon([{"params": list(weights), "orthogonal": orthogonal, "weight_decay": decay}], lr=1e-2)


def steps(optimizer: torch.optim.Optimizer, weight: nn.Parameter, gradients: Tensor) -> Tensor:
    for gradient in gradients:
        weight.grad = gradient.view_as(weight).clone()
        optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_singular_values_become_about_one(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(3, *shape)))
    assert values.min() > 0.4 and values.max() < 1.4


def test_directions_are_kept() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(20, 30)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.T @ orthogonalized(matrix[None])[0] @ v.T
    assert (turned - torch.diag(turned.diagonal())).abs().max() < 0.05


def test_a_zero_matrix_stays_zero() -> None:
    assert not orthogonalized(torch.zeros(2, 4, 8)).any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon of its own to compare with")
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)])
def test_equals_pytorchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    gradients = torch.randn(5, *shape)
    reference = torch.optim.Muon([theirs], lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    torch.testing.assert_close(steps(muon_of(ours), ours, gradients), steps(reference, theirs, gradients))


def test_a_convolution_is_a_matrix_of_a_row_an_output() -> None:
    torch.manual_seed(0)
    convolution, matrix = nn.Parameter(torch.ones(16, 8, 3, 3)), nn.Parameter(torch.ones(16, 72))
    gradients = torch.randn(3, 16, 72)
    moved = steps(muon_of(convolution), convolution, gradients)
    assert torch.equal(moved.flatten(1), steps(muon_of(matrix), matrix, gradients))


def test_weights_that_step_together_step_as_each_alone() -> None:
    torch.manual_seed(0)
    shapes = [(24, 40), (24, 8, 5), (40, 24), (24, 40), (24, 41)]
    together, alone = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    optimizer, gradients = muon_of(*together), [torch.randn(3, *shape) for shape in shapes]
    for number in range(3):
        for weight, gradient in zip(together, gradients, strict=True):
            weight.grad = gradient[number].clone()
        together[0].grad = gradients[0][number] if number else None  # one has none at first
        optimizer.step()
    for weight, other, gradient in zip(together, alone, gradients, strict=True):
        expected = steps(muon_of(other), other, gradient[1:] if weight is together[0] else gradient)
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-5)


def test_other_groups_step_as_in_adamw() -> None:
    torch.manual_seed(0)
    hidden, ours, theirs = (nn.Parameter(torch.ones(16, 16)) for _ in range(3))
    optimizer = muon_of(hidden)
    optimizer.add_param_group({"params": [ours], "orthogonal": False, "weight_decay": 0.1})
    gradients = torch.randn(4, 16, 16)
    hidden.grad = torch.randn(16, 16)
    expected = steps(torch.optim.AdamW([theirs], lr=1e-2, weight_decay=0.1), theirs, gradients)
    assert torch.equal(steps(optimizer, ours, gradients), expected)
    assert "momentum" in optimizer.state[hidden] and "momentum" not in optimizer.state[ours]
