"""Which of PyTorch's kernels compute attention and products, where the obvious one is slow.

Shapes: B rows, h heads, n new positions, D channels a head.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
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
    each time. The switch is global: what another thread multiplies meanwhile is right too, but may be slower. The
    first thread that needs it turns it, the last one turns it back.
    """
    if x.shape[:-1].numel() != 1 or not _bf16_on_cpu(x):
        yield
        return
    _onednn_off.enter()
    try:
        yield
    finally:
        _onednn_off.leave()


def multiply(linear: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A linear layer's product, by the kernel that reads its weights fastest. Attention is better off without that."""
    if torch.compiler.is_compiling():
        return linear(x)
    with fast_products(x):
        return linear(x)


class _OneDnnOff:
    """PyTorch's switch for oneDNN, off as long as any thread is inside."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def enter(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = bool(torch.backends.mkldnn.enabled)
                torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            self._inside += 1

    def leave(self) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                torch.backends.mkldnn.enabled = self._before  # type: ignore[assignment]


_onednn_off = _OneDnnOff()


def _bf16_on_cpu(x: Tensor) -> bool:
    return x.dtype is torch.bfloat16 and x.device.type == "cpu"
