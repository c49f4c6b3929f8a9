"""Tensors by name: what is wrong with them is found before they become a model, or a file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ivideogpt.errors import CheckpointError

Weights = dict[str, Tensor]
_COUNTED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
AnyModule = TypeVar("AnyModule", bound=nn.Module)


def plain_names(weights: Weights) -> Weights:
    """The tensors under the names that they have in a model that is not wrapped, by `torch.compile` or in parallel.

    Raises:
        CheckpointError: two tensors would have one name.
    """
    plain = {re.sub(r"(^|\.)(?:(?:module|_orig_mod)\.)+", r"\1", name): tensor for name, tensor in weights.items()}
    if len(plain) < len(weights):
        raise CheckpointError(
            "some tensors have one name but for the prefixes `module.` and `_orig_mod.` of wrapped models. Save the "
            "model that is inside the wrapper."
        )
    return plain


def unshared(weights: Weights) -> Weights:
    """The tensors on the CPU, each in memory of its own, as a file holds them; tied ones are written twice."""
    own: Weights = {}
    taken: set[int] = set()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in taken or memory.nbytes() > tensor.nbytes:
            tensor = tensor.clone()
        own[name] = tensor
        taken.add(tensor.untyped_storage().data_ptr())
    return own


def built(make: Callable[[], AnyModule], weights: Weights, where: str) -> AnyModule:
    """A module with these weights; memory is taken for it once they are known to fit.

    Args:
        make: makes the module.
        weights: of it.
        where: for the message: what they are.

    Raises:
        CheckpointError: as `load_weights`.
    """
    with torch.device("meta"):
        _require_fit(make(), weights, where)
    module = make()
    load_weights(module, weights, where)
    return module


def load_weights(module: nn.Module, weights: Weights, where: str) -> None:
    """Copy tensors into a module, all or nothing.

    Raises:
        CheckpointError: names the tensors that are missing, too many, of a wrong shape or kind, or not finite.
    """
    _require_fit(module, weights, where)
    kept = module.state_dict()
    broken = [name for name, tensor in weights.items() if not _all_finite(tensor, kept[name].dtype)]
    if broken:
        raise CheckpointError(
            f"{where}: {len(broken)} tensors hold values that are not finite ({_first_few(broken)}). "
            "Save or download it again, from before they became so."
        )
    module.load_state_dict(weights)


def _all_finite(tensor: Tensor, kept_as: torch.dtype) -> bool:
    """Whether every value is finite, also once it is kept with less precision."""
    if not tensor.is_floating_point():
        return True
    known = tensor if tensor.dtype in _COUNTED else tensor.float()  # few operations exist for the 8-bit types
    return bool(torch.isfinite(known.to(kept_as)).all())


def _require_fit(module: nn.Module, weights: Weights, where: str) -> None:
    expected = module.state_dict()
    both = [name for name in expected if name in weights]
    problems = [
        ("missing", sorted(expected.keys() - weights.keys())),
        ("extra", sorted(weights.keys() - expected.keys())),
        (
            "wrong shape",
            [
                f"{name} is {tuple(weights[name].shape)}, must be {tuple(expected[name].shape)}"
                for name in both
                if weights[name].shape != expected[name].shape
            ],
        ),
        (
            "wrong kind",
            [
                f"{name} is {weights[name].dtype}, must be {'real' if expected[name].is_floating_point() else 'whole'}"
                for name in both
                if weights[name].is_floating_point() != expected[name].is_floating_point()
            ],
        ),
    ]
    found = [f"{len(names)} {what} ({_first_few(names)})" for what, names in problems if names]
    if found:
        raise CheckpointError(
            f"{where} does not fit its configuration: {', '.join(found)}. "
            "The configuration and the weights come from different models, or the file is damaged."
        )


def _first_few(names: list[str]) -> str:
    return f"{'; '.join(names[:3])}{' ...' if len(names) > 3 else ''}"
