"""Choosing the device that a command runs on."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, NamedTuple, cast, get_args

import torch

from ivideogpt.errors import ConfigError, DeviceError, unknown_name

# A process forked after torch has started its threads would wait for ever for those it did not inherit: that is how
# Gymnasium's AsyncVectorEnv begins.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))

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


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Within the block nothing is rounded, where autocast would; there are devices that have none."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def free_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Memory that could be taken on a device now, bytes; None where the system does not say.

    On a CPU also under the limits of the containers that this runs in. `root` is where the system's files are.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    fields = dict(line.split(":", 1) for line in _lines(root / "proc/meminfo"))
    available = [int(fields["MemAvailable"].split()[0]) * 1024] if "MemAvailable" in fields else []
    return min([*available, *_free_in_containers(root)], default=None)


class _MemoryFiles(NamedTuple):
    """What a control group's files about memory are called."""

    limit: str
    used: str
    reclaimable: str
    """In `memory.stat`: cached files, which count as used and go where memory is needed."""


_VERSION_1 = _MemoryFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = _MemoryFiles("memory.max", "memory.current", "inactive_file")


def _free_in_containers(root: Path) -> Iterator[int]:
    """Memory that is free under each limit of the control groups that this process is in."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        files, mounted = (_VERSION_1, "memory") if controllers else (_VERSION_2, "")
        # Inside a container the path is that of the host, or "/": then its own limit is at the top.
        parts = Path(path.lstrip("/")).parts
        for depth in range(len(parts) + 1):
            free = _free_under(Path(root, "sys/fs/cgroup", mounted, *parts[:depth]), files)
            if free is not None:
                yield free


def _free_under(group: Path, files: _MemoryFiles) -> int | None:
    limit, used = (next(iter(_lines(group / name)), "max") for name in (files.limit, files.used))
    if "max" in (limit, used):
        return None
    stat = dict(line.split() for line in _lines(group / "memory.stat"))
    return max(0, int(limit) - int(used) + int(stat.get(files.reclaimable, 0)))


def cpu_model() -> str:
    """The processor's name."""
    return next(_cpu_fields("model name"), platform.processor() or platform.machine())


def _linux_cpu_flags() -> list[str]:
    return next(_cpu_fields("flags", "features"), "").split()


def _cpu_fields(*names: str) -> Iterator[str]:
    """Values of the lines of /proc/cpuinfo with these names; none where there is no such file."""
    for line in _lines(Path("/proc/cpuinfo")):
        name, _, value = line.partition(":")
        if name.strip().lower() in names:
            yield value.strip()


def _lines(file: Path) -> list[str]:
    """The lines of a file of the system; none where there is no such file."""
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
