"""The kernels that are chosen for speed compute what the plain ones do, and leave no trace."""

from __future__ import annotations

import pytest
import torch

from ivideogpt.transformer.kernels import attend, fast_products

START, HEADS, CHANNELS = 5, 2, 8


def rows(count: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Queries of `count` new positions behind `START`, with the keys and values of all."""
    generator = torch.Generator().manual_seed(0)
    sizes = (count, START + count, START + count)
    return [torch.randn(3, HEADS, size, CHANNELS, generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_new_positions_see_what_was_before_and_themselves(count: int, dtype: torch.dtype) -> None:
    queries, keys, values = rows(count, dtype)
    weights = queries.float() @ keys.float().transpose(-2, -1) / CHANNELS**0.5
    later = torch.arange(START + count) > START + torch.arange(count)[:, None]
    expected = weights.masked_fill(later, -torch.inf).softmax(-1) @ values.float()
    made = attend(queries, keys, values, START, dropout=0.0)
    assert made.dtype is dtype
    tolerance = 1e-5 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("shape", "dtype", "switched"),
    [
        ((1, 1, 64), torch.bfloat16, True),
        ((1, 64), torch.bfloat16, True),
        ((1, 1, 64), torch.float32, False),
        ((1, 2, 64), torch.bfloat16, False),
        ((2, 1, 64), torch.bfloat16, False),
    ],
)
def test_only_a_single_bf16_row_switches_kernels(shape: tuple[int, ...], dtype: torch.dtype, switched: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape).to(dtype), torch.randn(96, 64).to(dtype)
    expected = torch.nn.functional.linear(x.float(), weight.float())
    with fast_products(x):
        assert torch.backends.mkldnn.enabled is not switched
        made = torch.nn.functional.linear(x, weight)
    tolerance = 1e-4 if dtype is torch.float32 else 0.1  # of values around 8, which bf16 rounds to 1/32
    torch.testing.assert_close(made.float(), expected, rtol=0, atol=tolerance)


def test_the_switch_is_put_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), fast_products(torch.zeros(1, 64, dtype=torch.bfloat16)):
        raise RuntimeError("inside")
    assert torch.backends.mkldnn.enabled


def test_the_switch_waits_for_the_last_that_needs_it() -> None:
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    first, second = fast_products(x), fast_products(x)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.mkldnn.enabled
    second.__exit__(None, None, None)
    assert torch.backends.mkldnn.enabled
