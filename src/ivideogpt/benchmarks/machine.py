"""What a measurement was made on, and the two rates that bound it: reading memory and multiplying matrices."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ivideogpt import __version__
from ivideogpt.benchmarks.timing import synchronize
from ivideogpt.devices import cpu_model
from ivideogpt.transformer.kernels import fast_products

_READ_BYTES = 2**28  # larger than any cache
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
_PROBES = 10
_CALLS = {"cpu": 1, "cuda": 10}  # a probe; several, where waiting for the device takes as long as the work


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory, GPU and the versions of what ran."""
    return {
        "hardware": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": _memory_gb(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": _installed("transformers"),
            "ivideogpt": __version__,
        },
    }


def read_rate(device: torch.device) -> float:
    """Bytes a second at which a sum reads an array far larger than the caches: the best of a few."""
    array = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / _fastest(array.sum, device)


def multiply_rate(device: torch.device, dtype: torch.dtype, rows: int | None = None) -> float:
    """Operations a second in the product of a few rows with a square matrix: the best of a few.

    Args:
        device, dtype: what multiplies.
        rows: as many as the matrix has where left out, which is the highest rate.
    """
    matrix = torch.rand(_MATRIX_SIDE[device.type], _MATRIX_SIDE[device.type], device=device).to(dtype)
    x = matrix[:rows]

    def multiply() -> None:
        with fast_products(x):
            F.linear(x, matrix)

    return 2 * len(x) * matrix.numel() / _fastest(multiply, device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    calls, seconds = _CALLS[device.type], []
    for _ in range(_PROBES):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            work()
        synchronize(device)
        seconds.append((time.perf_counter() - start) / calls)
    return min(seconds)


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
