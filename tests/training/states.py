"""Looking at the saved state of a run."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ivideogpt.training import checkpoint


def saved(run: Path) -> dict[str, Tensor]:
    """Tensors of the run's newest checkpoint."""
    found = checkpoint.load_state(run)
    assert found is not None
    return found[1]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two states are equal bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
