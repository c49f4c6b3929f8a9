"""The least time that this machine could take: operations at its matrix rate, weights at its memory rate."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ivideogpt.benchmarks.machine import multiply_rate, read_rate
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class Rates:
    """What bounds any program on a machine."""

    read: float
    """Bytes read from memory a second."""
    multiply: dict[torch.dtype, float]
    """Floating-point operations of a matrix product a second, by precision."""

    def figures(self) -> dict[str, float]:
        """Both, for JSON: gigabytes and giga-operations a second."""
        multiply = {f"multiply_{str(t).removeprefix('torch.')}_gflop_s": r / 1e9 for t, r in self.multiply.items()}
        return {"read_gb_s": self.read / 1e9, **multiply}


def measure_rates(device: torch.device, dtypes: Iterable[torch.dtype]) -> Rates:
    """Measure both; takes a second."""
    return Rates(read_rate(device), {dtype: multiply_rate(device, dtype) for dtype in dtypes})


def arithmetic_floor(work: Callable[[], object], dtype: torch.dtype, rates: Rates) -> float:
    """Seconds for the products and convolutions of `work`, which is run once, at the rate of matrix products."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops()) / rates.multiply[dtype]


def rollout_floor(model: WorldModel, context: Tensor, horizon: int, rates: Rates) -> float:
    """Seconds for one future of each context: reading the context, sampling every token, decoding the frames.

    A token is sampled only after the one before it, so each costs a read of all the weights of the transformer's
    layers, of the head's legal rows and of the keys and values so far; its arithmetic is nothing beside that.
    """
    dtype, layout = model.transformer.head.weight.dtype, model.transformer.layout
    session = model.start(context, seed=0, horizon=horizon)
    codes = torch.full((len(context), horizon, layout.dynamics_tokens), layout.dynamics_ids.start)
    seconds = arithmetic_floor(lambda: model.start(context, seed=0, horizon=horizon), dtype, rates)
    seconds += arithmetic_floor(lambda: session.decode(codes.to(model.device)), dtype, rates)
    tokens = horizon * layout.dynamics_tokens
    return seconds + tokens * _bytes_a_token(model, len(context), horizon) / rates.read


def _bytes_a_token(model: WorldModel, rows: int, horizon: int) -> float:
    """Bytes that one pass of the transformer reads, with the cache at its mean length."""
    transformer, layout = model.transformer, model.transformer.layout
    read = [*transformer.layers.parameters(), *transformer.norm.parameters()]
    size = transformer.head.weight.element_size()
    head = layout.dynamics_codes * transformer.config.hidden * size
    length = layout.prefix_length + layout.frame_length * horizon / 2
    cached = rows * length * 2 * transformer.config.layers * transformer.config.hidden * size
    return sum(weight.nbytes for weight in read) + head + cached
