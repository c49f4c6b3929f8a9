"""Symmetric logarithm: squeezes rewards of any scale."""

from __future__ import annotations

from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """`sign(x) ln(|x| + 1)`."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """The inverse of `symlog`."""
    return x.sign() * x.abs().expm1()
