"""Counting which codes are used: usage and perplexity for the log, dead codes for revival."""

from __future__ import annotations

import torch
from torch import Tensor

from ivideogpt.tokenizer.quantizer import usage


class CodeCounter:
    """Counts the codes of one codebook, in one window for the log and in another for dead codes.

    Args:
        codes: size of the codebook.
        device: where the codes are counted.
    """

    def __init__(self, codes: int, device: torch.device) -> None:
        self._logged = torch.zeros(codes, dtype=torch.int64, device=device)
        self._watched = torch.zeros(codes, dtype=torch.int64, device=device)
        self._revived = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, codes: Tensor) -> None:
        """Count a batch of codes of any shape."""
        counts = torch.bincount(codes.flatten(), minlength=len(self._logged))
        self._logged += counts
        self._watched += counts

    def report(self) -> dict[str, float]:
        """Usage in [0,1], perplexity and codes revived since the last report."""
        share, perplexity = usage(self._logged)
        figures = {"usage": float(share), "perplexity": float(perplexity), "revived": float(self._revived)}
        self._logged.zero_()
        self._revived.zero_()
        return figures

    def take_dead(self) -> Tensor:
        """Codes (K',) that were not used since the last call."""
        dead = (self._watched == 0).nonzero()[:, 0]
        self._watched.zero_()
        self._revived += len(dead)
        return dead

    def state(self) -> dict[str, Tensor]:
        """The counts, by name."""
        return {"logged": self._logged, "watched": self._watched, "revived": self._revived}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, own in self.state().items():
            own.copy_(tensors[name])
