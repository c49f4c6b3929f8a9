"""What a measurement was made on, and the two rates that bound it: reading memory and multiplying matrices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ivideogpt import __version__
from ivideogpt.benchmarks.timing import synchronize

_READ_BYTES = 2**28  # larger than any cache
_MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
_PROBES = 10


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, memory, GPU and the versions of what ran."""
    return {
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gb": _memory_gb(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "ivideogpt": __version__,
        },
    }


def read_rate(device: torch.device) -> float:
    """Bytes a second at which a sum reads an array far larger than the caches: the best of a few."""
    array = torch.ones(_READ_BYTES // 4, device=device)
    return _READ_BYTES / _fastest(array.sum, device)


def multiply_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in the product of two square matrices: the best of a few."""
    side = _MATRIX_SIDE[device.type]
    matrix = torch.rand(side, side, device=device).to(dtype)
    return 2 * side**3 / _fastest(lambda: matrix @ matrix, device)


def _fastest(work: Callable[[], object], device: torch.device) -> float:
    seconds = []
    for _ in range(_PROBES):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
