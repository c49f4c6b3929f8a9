"""Choosing a device, on machines with and without CUDA."""

from __future__ import annotations

import pytest
import torch

from ivideogpt import WorldModel
from ivideogpt.devices import choose_device, choose_precision
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
