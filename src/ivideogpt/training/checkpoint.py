"""Training checkpoints: everything a run needs to continue exactly, in safetensors, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivideogpt.config import TrainingConfig
from ivideogpt.errors import CheckpointError, ConfigError
from ivideogpt.files import folder_written_atomically, write_text_atomically

CONFIG_FILE = "training.json"
_STATE_FILE = "state.safetensors"
_STEP_FILE = "step.json"

# What may differ between a run and its continuation: nothing that changes a weight.
_FREE_TO_CHANGE = {
    "out", "workers", "cache_mb", "device", "log_every", "validate_every", "validation_batches", "save_every", "keep",
    "resume", "overwrite",
}  # fmt: skip


def save_config(run: Path, config: TrainingConfig) -> None:
    """Write the run's configuration beside its checkpoints."""
    write_text_atomically(run / CONFIG_FILE, config.model_dump_json(indent=2) + "\n")


def require_same_config(run: Path, config: TrainingConfig) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        CheckpointError: there is no run in the folder.
        ConfigError: a setting that changes the training differs; names each with both values.
    """
    try:
        old = json.loads((run / CONFIG_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"nothing to resume in {run}: no readable {CONFIG_FILE}. Drop --resume.") from error
    new = json.loads(config.model_dump_json())
    differing = [
        f"{name} was {old.get(name)!r}, now {value!r}"
        for name, value in new.items()
        if name not in _FREE_TO_CHANGE and old.get(name) != value
    ]
    if differing:
        raise ConfigError(
            f"the run in {run} was started with other settings: {'; '.join(differing)}. "
            "Resume with the old ones, or start a new run in another folder."
        )


def save_state(run: Path, step: int, tensors: dict[str, Tensor], keep: int) -> Path:
    """Write checkpoint `step` of a run, then remove all but the newest `keep`.

    Raises:
        OutputError: the disk is full; the older checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"
    with folder_written_atomically(folder) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary / _STATE_FILE)
        (temporary / _STEP_FILE).write_text(json.dumps({"step": step}) + "\n")
    for old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_state(run: Path, device: torch.device) -> tuple[int, dict[str, Tensor]] | None:
    """Step and tensors of a run's newest checkpoint; None if it has none yet.

    Raises:
        CheckpointError: the newest checkpoint is damaged.
    """
    folders = _checkpoints(run)
    if not folders:
        return None
    try:
        step = int(json.loads((folders[-1] / _STEP_FILE).read_text())["step"])
        return step, load_file(folders[-1] / _STATE_FILE, device=str(device))
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"checkpoint {folders[-1]} is damaged ({error}). Remove that folder to continue from the one before it."
        ) from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, `{parameter index}.{name}`."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, s in state.items() for name, value in s.items()}


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def _checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*"))
