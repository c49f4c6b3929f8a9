"""The least time that this machine could take: operations at its matrix rate, weights at its memory rate.

Shapes: S contexts, K branches of each, R = S*K rows, F future frames, M dynamics tokens a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ivideogpt.benchmarks.machine import multiply_rate, read_rate
from ivideogpt.transformer.int8 import DynamicInt8Linear
from ivideogpt.world_model import WorldModel


@dataclass(frozen=True)
class Rates:
    """What bounds any program on a machine."""

    read: float
    """Bytes read from memory a second."""
    multiply: dict[torch.dtype, float]
    """Operations of a matrix product a second, by precision; int8 where the device multiplies w8a8."""
    multiply_rows: dict[tuple[torch.dtype, int], float] = field(default_factory=dict)
    """The same in the product of a few rows with a matrix, by precision and number of rows."""

    def product(self, dtype: torch.dtype, rows: int) -> float:
        """Operations a second in a product of so many rows; the highest rate where it was not measured."""
        return self.multiply_rows.get((dtype, rows), self.multiply[dtype])

    def figures(self) -> dict[str, float]:
        """All of them, for JSON: gigabytes and giga-operations a second."""
        named = {_name(dtype): rate for dtype, rate in self.multiply.items()}
        named |= {f"{_name(dtype)}_{rows}_rows": rate for (dtype, rows), rate in self.multiply_rows.items()}
        return {"read_gb_s": self.read / 1e9, **{f"multiply_{name}_gflop_s": r / 1e9 for name, r in named.items()}}


def measure_rates(device: torch.device, dtypes: Iterable[torch.dtype], rows: Iterable[int] = ()) -> Rates:
    """Measure them; takes a second.

    Args:
        device: what reads and multiplies.
        dtypes: precisions.
        rows: numbers of rows, beside the square product. One row is left out: its products wait for memory alone.
    """
    dtypes, rows = list(dtypes), [count for count in rows if count > 1]
    return Rates(
        read=read_rate(device),
        multiply={dtype: multiply_rate(device, dtype) for dtype in dtypes},
        multiply_rows={(dtype, count): multiply_rate(device, dtype, count) for dtype in dtypes for count in rows},
    )


def count_operations(work: Callable[[], object]) -> float:
    """Floating-point operations in the products and convolutions of `work`, which is run once."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def arithmetic_floor(work: Callable[[], object], dtype: torch.dtype, rates: Rates) -> float:
    """Seconds for the products and convolutions of `work`, which is run once, at the rate of matrix products."""
    return count_operations(work) / rates.multiply[dtype]


class Arithmetic(NamedTuple):
    """Operations that grow with the number of contexts and of frames, with whatever numbers they are done."""

    context: float
    """Tokenizing a context, reading its tokens and decoding its features."""
    frame: float
    """Decoding a future frame."""


_NONE = Arithmetic(0.0, 0.0)


def count_arithmetic(model: WorldModel) -> Arithmetic:
    """Count those with floating-point numbers by running both once."""
    config = model.tokenizer.config
    side = config.resolution
    context = torch.rand(1, config.context_frames, 3, side, side, device=model.device)
    with model.start(context, seed=0, horizon=1) as session:
        codes = session.step(decode=False).tokens[:, None]
        return Arithmetic(
            context=count_operations(lambda: model.start(context, seed=0, horizon=1)),
            frame=count_operations(lambda: session.decode(codes)),
        )


def count_in_8_bits(model: WorldModel, arithmetic: Arithmetic) -> Arithmetic:
    """What of a model's arithmetic it does with 8-bit numbers: the counter does not see those.

    Args:
        model: as it is prepared.
        arithmetic: of the same model prepared in float32.
    """
    if not _multiplies_in_8_bits(model):
        return _NONE
    floating = count_arithmetic(model)
    return Arithmetic(arithmetic.context - floating.context, arithmetic.frame - floating.frame)


@dataclass(frozen=True)
class RolloutWork:
    """Work that a rollout cannot do without, in operations and bytes read, and its least time."""

    dtype: torch.dtype
    """Precision of most products outside the steps that are not done with 8-bit numbers."""
    steps_dtype: torch.dtype
    """Precision of most products that sample tokens."""
    rows: int
    """Rows that march in step, R."""
    start_flop: float
    """Reading every context once."""
    steps_flop: float
    """Sampling the tokens of every row, and reading each frame's last token where there is a reward head."""
    steps_bytes: float
    """Read in between: by each pass the weights once and each context's cache once, for all rows, and the rows' own."""
    decode_flop: float
    """Decoding every imagined frame."""
    start_in_8_bits: float
    """Those of `start_flop` that are done with 8-bit numbers."""
    decode_in_8_bits: float
    """Those of `decode_flop`."""

    def floor(self, rates: Rates) -> dict[str, float]:
        """Least seconds of each part."""
        return {
            "start": self._seconds(self.start_flop, self.start_in_8_bits, rates),
            "steps": max(self.steps_bytes / rates.read, self.steps_flop / rates.product(self.steps_dtype, self.rows)),
            "decode": self._seconds(self.decode_flop, self.decode_in_8_bits, rates),
        }

    def _seconds(self, operations: float, in_8_bits: float, rates: Rates) -> float:
        quick = in_8_bits / rates.multiply[torch.int8] if in_8_bits else 0.0
        return (operations - in_8_bits) / rates.multiply[self.dtype] + quick

    def figures(self) -> dict[str, float]:
        """For JSON: giga-operations and gigabytes."""
        flop = {"start": self.start_flop, "steps": self.steps_flop, "decode": self.decode_flop}
        return {**{f"{part}_gflop": count / 1e9 for part, count in flop.items()}, "steps_gb": self.steps_bytes / 1e9}


def rollout_work(
    model: WorldModel,
    arithmetic: Arithmetic,
    contexts: int,
    branches: int,
    horizon: int,
    in_8_bits: Arithmetic = _NONE,
) -> RolloutWork:
    """Count the work of imagining `horizon` frames in `branches` futures of each of `contexts` contexts.

    A token is sampled only after the one before it, so each costs a pass that reads all the weights of the
    transformer's layers, of the head's legal rows and of the keys and values so far (counted at their mean length).

    Args:
        model: as it is prepared.
        arithmetic: of the same model in float32.
        contexts, branches, horizon: what is imagined.
        in_8_bits: see `count_in_8_bits`.
    """
    config, layout = model.transformer.config, model.transformer.layout
    rows, cache_dtype = contexts * branches, model.transformer.embedding.weight.dtype
    quantized = _multiplies_in_8_bits(model)
    passes = horizon * (layout.dynamics_tokens + config.reward)
    heads = horizon * layout.dynamics_tokens  # passes that need logits
    layer_weights = config.layers * config.hidden * (4 * config.hidden + 3 * config.feed_forward)
    suffix = layout.frame_length * horizon / 2
    position = 2 * config.layers * config.hidden  # keys and values
    cached = (contexts * layout.prefix_length + rows * suffix) * position
    products = layer_weights + (layout.prefix_length + suffix) * position
    weights = _bytes(model.transformer.layers) + _bytes(model.transformer.norm)
    head_weight = 1 if quantized else model.transformer.head.weight.element_size()
    head = layout.dynamics_codes * config.hidden * head_weight
    return RolloutWork(
        dtype=model.tokenizer.context_in.weight.dtype,
        steps_dtype=torch.int8 if quantized else cache_dtype,
        rows=rows,
        start_flop=contexts * arithmetic.context,
        steps_flop=2 * rows * (passes * products + heads * layout.dynamics_codes * config.hidden),
        steps_bytes=passes * (weights + cached * cache_dtype.itemsize) + heads * head,
        decode_flop=rows * horizon * arithmetic.frame,
        start_in_8_bits=contexts * in_8_bits.context,
        decode_in_8_bits=rows * horizon * in_8_bits.frame,
    )


def _multiplies_in_8_bits(model: WorldModel) -> bool:
    return any(isinstance(part, DynamicInt8Linear) for part in model.transformer.modules())


def _bytes(module: nn.Module) -> int:
    """What the weights of a module take, buffers included."""
    packed = sum(part.bytes for part in module.modules() if isinstance(part, DynamicInt8Linear))
    return packed + sum(tensor.nbytes for tensor in module.state_dict().values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
