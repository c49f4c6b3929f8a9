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
from ivideogpt.inference import Imagines


@dataclass(frozen=True)
class Rates:
    """What bounds any program on a machine."""

    read: float
    """Bytes read from memory a second."""
    multiply: dict[torch.dtype, float]
    """Operations of a matrix product a second, by precision."""
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
    """Operations that grow with the number of contexts and of frames."""

    context: float
    """Tokenizing a context, reading its tokens and decoding its features."""
    frame: float
    """Decoding a future frame."""


def count_arithmetic(model: Imagines) -> Arithmetic:
    """Count those by running both once."""
    config = model.tokenizer.config
    side = config.resolution
    context = torch.rand(1, config.context_frames, 3, side, side, device=model.device)
    with model.start(context, seed=0, horizon=1) as session:
        codes = session.step(decode=False).tokens[:, None]
        return Arithmetic(
            context=count_operations(lambda: model.start(context, seed=0, horizon=1)),
            frame=count_operations(lambda: session.decode(codes)),
        )


@dataclass(frozen=True)
class RolloutWork:
    """Work that a rollout cannot do without, in operations and bytes read, and its least time."""

    dtype: torch.dtype
    """Precision of most products."""
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

    def floor(self, rates: Rates) -> dict[str, float]:
        """Least seconds of each part."""
        return {
            "start": self.start_flop / rates.multiply[self.dtype],
            "steps": max(self.steps_bytes / rates.read, self.steps_flop / rates.product(self.dtype, self.rows)),
            "decode": self.decode_flop / rates.multiply[self.dtype],
        }

    def figures(self) -> dict[str, float]:
        """For JSON: giga-operations and gigabytes."""
        flop = {"start": self.start_flop, "steps": self.steps_flop, "decode": self.decode_flop}
        return {**{f"{part}_gflop": count / 1e9 for part, count in flop.items()}, "steps_gb": self.steps_bytes / 1e9}


def rollout_work(model: Imagines, arithmetic: Arithmetic, contexts: int, branches: int, horizon: int) -> RolloutWork:
    """Count the work of imagining `horizon` frames in `branches` futures of each of `contexts` contexts.

    A token is sampled only after the one before it, so each costs a pass that reads all the weights of the
    transformer's layers, of the head's legal rows and of the keys and values so far (counted at their mean length).

    Args:
        model: in the precision of interest.
        arithmetic: of the same model.
        contexts, branches, horizon: what is imagined.
    """
    config, layout = model.transformer.config, model.transformer.layout
    rows, cache_dtype = contexts * branches, model.transformer.embedding.weight.dtype
    passes = horizon * (layout.dynamics_tokens + config.reward)
    heads = horizon * layout.dynamics_tokens  # passes that need logits
    layer_weights = config.layers * config.hidden * (4 * config.hidden + 3 * config.feed_forward)
    suffix = layout.frame_length * horizon / 2
    position = 2 * config.layers * config.hidden  # keys and values
    cached = (contexts * layout.prefix_length + rows * suffix) * position
    products = layer_weights + (layout.prefix_length + suffix) * position
    weights = _bytes(model.transformer.layers) + _bytes(model.transformer.norm)
    head = layout.dynamics_codes * config.hidden * cache_dtype.itemsize
    return RolloutWork(
        dtype=cache_dtype,
        rows=rows,
        start_flop=contexts * arithmetic.context,
        steps_flop=2 * rows * (passes * products + heads * layout.dynamics_codes * config.hidden),
        steps_bytes=passes * (weights + cached * cache_dtype.itemsize) + heads * head,
        decode_flop=rows * horizon * arithmetic.frame,
    )


def _bytes(module: nn.Module) -> int:
    """What the weights of a module take, buffers included."""
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
