"""Choosing a device, on machines with and without CUDA."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.devices import choose_device, choose_precision, free_memory
from ivideogpt.errors import ConfigError, DeviceError


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_cpu_is_always_there() -> None:
    assert choose_device("cpu") == torch.device("cpu")


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 0)
    assert choose_device("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match=r"'cuda:1' was asked for.*Use auto or cpu"):
        choose_device("cuda:1")


def test_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 2)
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda", 0)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match="Available: cpu, cuda:0, cuda:1"):
        choose_device("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "mps", ""])
def test_other_names(name: str) -> None:
    with pytest.raises(DeviceError, match=r"Available: auto, cpu, cuda"):
        choose_device(name)


def test_a_model_is_loaded_where_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 0)
    assert WorldModel.from_pretrained("pusht-64", device="auto").device == torch.device("cpu")
    with pytest.raises(DeviceError, match="'cuda' was asked for"):
        WorldModel.from_pretrained("pusht-64", device="cuda")


def test_bf16_where_the_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 0)
    assert (choose_precision("bf16", cpu), choose_precision("float32", cuda)) == ("bf16", "float32")
    for able in (True, False):
        chosen = "bf16" if able else "float32"
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda able=able, **_: able)
        monkeypatch.setattr("ivideogpt.devices._linux_cpu_flags", lambda able=able: ["avx512_bf16"] * able)
        assert (choose_precision("auto", cuda), choose_precision("auto", cpu)) == (chosen, chosen)


def test_other_precisions() -> None:
    with pytest.raises(ConfigError, match=r"unknown precision 'int4'.*Available: auto, bf16, float32"):
        choose_precision("int4", torch.device("cpu"))


# Memory in containers

MIB = 1 << 20


def machine(root: Path, groups: str, **files: str) -> Path:
    """A file system of a machine with 1000 MiB available, whose process is in these control groups."""
    written = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {1000 * 1024} kB\n", "proc/self/cgroup": groups}
    for name, content in (written | {name.replace("__", "/"): text for name, text in files.items()}).items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def limits(group: str, version: int, limit: int | str, used: int, cached: int) -> dict[str, str]:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    inactive = "inactive_file" if version == 2 else "total_inactive_file"
    folder = "sys/fs/cgroup" + ("" if version == 2 else "/memory") + group
    return {
        f"{folder}/{names[0]}": str(limit),
        f"{folder}/{names[1]}": str(used),
        f"{folder}/memory.stat": f"active_file 7\n{inactive} {cached}\n",
    }


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seen_from", ["outside", "inside"])
def test_free_memory_is_that_under_the_containers_limit(tmp_path: Path, version: int, seen_from: str) -> None:
    group = "/docker/abc" if seen_from == "outside" else ""
    groups = f"0::{group or '/'}\n" if version == 2 else f"3:cpu:/x\n7:memory,hugetlb:{group or '/docker/unseen'}\n"
    root = machine(tmp_path, groups, **limits(group, version, 300 * MIB, 120 * MIB, 20 * MIB))
    assert free_memory(torch.device("cpu"), root) == 200 * MIB
    machine(tmp_path, groups, **limits(group, version, 300 * MIB, 400 * MIB, 20 * MIB))
    assert free_memory(torch.device("cpu"), root) == 0, "over the limit, as it may be for a moment"


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    root = machine(
        tmp_path, "0::/a/b\n", **limits("/a", 2, 500 * MIB, 100 * MIB, 0), **limits("/a/b", 2, "max", 90 * MIB, 0)
    )
    assert free_memory(torch.device("cpu"), root) == 400 * MIB
    root = machine(tmp_path, "0::/a/b\n", **limits("/a/b", 2, 2**62, 90 * MIB, 0), **limits("/a", 2, "max", 1, 0))
    assert free_memory(torch.device("cpu"), root) == 1000 * MIB, "what the machine has"


def test_systems_that_do_not_say(tmp_path: Path) -> None:
    assert free_memory(torch.device("cpu"), tmp_path) is None


_FORKS = """
import os, sys
import torch
from ivideogpt import devices

def work():
    return float((torch.ones(700, 700) @ torch.ones(700, 700)).sum())

work()  # starts threads
child = os.fork()
if child == 0:
    os._exit(0 if torch.get_num_threads() == 1 and abs(work() - 700.0**3) < 1e5 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_goes_on_with_one_thread() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", _FORKS], env=environment, timeout=60, check=True)
