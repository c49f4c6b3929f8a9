"""Which of PyTorch's kernels compute attention and products, where the obvious one is slow.

Shapes: B rows, h heads, n new positions, D channels a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(queries: Tensor, keys: Tensor, values: Tensor, start: int, dropout: float) -> Tensor:
    """Attention of n queries (B,h,n,D) to the `start` positions before them and, causally, to their own."""
    count = queries.shape[2]
    if start == 0:
        return F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout)
    if count > 1:
        mask = torch.ones(count, start + count, dtype=torch.bool, device=queries.device).tril(start)
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout)
    if _bf16_on_cpu(queries):
        # A single bf16 query is slow there: float32 takes a third of the time, conversion included.
        rows = (queries.float(), keys.float(), values.float())
        return F.scaled_dot_product_attention(*rows, dropout_p=dropout).to(queries.dtype)
    return F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout)


@contextmanager
def fast_products(x: Tensor) -> Iterator[None]:
    """Within the block, products with x (..., channels) use the kernel that reads the weights fastest.

    For a single bf16 row on a CPU that is PyTorch's own, at twice the rate of oneDNN's, which rearranges the weights
    each time. The switch is global: what another thread multiplies meanwhile is right too, but may be slower.
    """
    if x.shape[:-1].numel() != 1 or not _bf16_on_cpu(x):
        yield
        return
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _bf16_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.device.type == "cpu"
