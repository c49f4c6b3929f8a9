"""What a measurement was made on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import torch

from ivideogpt import __version__
from ivideogpt.devices import cpu_model


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Processor, cores, GPU and the versions of what ran."""
    return {
        "hardware": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": _installed("transformers"),
            "ivideogpt": __version__,
        },
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
