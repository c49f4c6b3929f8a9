"""Choosing the device that a command runs on."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast, get_args

import torch

from ivideogpt.errors import ConfigError, DeviceError, unknown_name

Precision = Literal["float32", "bf16"]
"""What is computed in, the states of a model that knows them apart."""


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`: auto (CUDA where there is one, else cpu), cpu, cuda, or cuda:n.

    Raises:
        DeviceError: another name, CUDA without a CUDA device, or a device number that does not exist here.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if count else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if match is None:
        raise DeviceError(unknown_name("device", name, ["auto", "cpu", "cuda", "cuda:0"]))
    index = int(match[1] or 0)
    if count == 0:
        raise DeviceError(
            f"device {name!r} was asked for, but PyTorch {torch.__version__} sees no CUDA device here. "
            "Use auto or cpu, or install a CUDA build of PyTorch and its driver."
        )
    if index >= count:
        available = ", ".join(f"cuda:{number}" for number in range(count))
        raise DeviceError(f"device {name!r} does not exist on this machine. Available: cpu, {available}.")
    return torch.device("cuda", index)


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision called `name`: float32, bf16, or auto, which is bf16 where the hardware multiplies it.

    Raises:
        ConfigError: another name.
    """
    if name not in ("auto", *get_args(Precision)):
        raise ConfigError(unknown_name("precision", name, ("auto", *get_args(Precision))))
    if name == "auto":
        return "bf16" if _multiplies_bf16(device) else "float32"
    return cast(Precision, name)


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(_linux_cpu_flags())


def free_memory(device: torch.device) -> int | None:
    """Memory that could be taken on a device now, bytes; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else int(kilobytes) * 1024


def cpu_model() -> str:
    """The processor's name."""
    return next(_cpu_fields("model name"), platform.processor() or platform.machine())


def _linux_cpu_flags() -> list[str]:
    return next(_cpu_fields("flags", "features"), "").split()


def _cpu_fields(*names: str) -> Iterator[str]:
    """Values of the lines of /proc/cpuinfo with these names; none where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() in names:
            yield value.strip()
