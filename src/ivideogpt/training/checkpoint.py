"""Training checkpoints: everything a run needs to continue exactly, in safetensors, whole or not at all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ivideogpt import hub
from ivideogpt.errors import CheckpointError, ConfigError, OutputError
from ivideogpt.files import folder_written_atomically, remove, repair_folder, write_text_atomically
from ivideogpt.training.config import TrainingConfig

CONFIG_FILE = "training.json"
_STATE_FILE = "state.safetensors"
_STEP_FILE = "step.json"

# Everything else that a training writes into its run folder.
_FOLDERS = ("checkpoints", "model", "tensorboard", "pictures", "tokens")
_WRITTEN = (
    "checkpoints/step_*", "model", "tensorboard/events.out.tfevents.*", "pictures/step_*.png",
    "tokens/segments.safetensors",
)  # fmt: skip

# What may differ between a run and its continuation: nothing that changes a weight.
_FREE_TO_CHANGE = {
    "out", "data", "workers", "cache_mb", "device", "log_every", "validate_every", "validation_batches", "save_every",
    "keep", "max_minutes", "resume", "overwrite",
    "tokenizer",  # that it is the same one shows in the checkpoint, wherever it lies
}  # fmt: skip
_OF_FILES = ("data", "out", "tokenizer", "start_from", "vgg16_weights", "lpips_heads")


def save_config(run: Path, config: TrainingConfig) -> None:
    """Write the run's configuration beside its checkpoints."""
    told = _settled(json.loads(config.model_dump_json()))
    write_text_atomically(run / CONFIG_FILE, json.dumps(told, indent=2) + "\n")


def require_same_config(run: Path, config: TrainingConfig) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        CheckpointError: there is no run in the folder.
        ConfigError: a setting that changes the training differs; names each with both values.
    """
    try:
        old = dict(json.loads((run / CONFIG_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"nothing to resume in {run}: no readable {CONFIG_FILE}. Drop --resume.") from error
    defaults = type(config)(data=config.data, out=config.out)  # for settings that the run's library did not have yet
    old = _settled({**json.loads(defaults.model_dump_json()), **old})
    new = _settled(json.loads(config.model_dump_json()))
    differing = [
        f"{name} was {old[name]!r}, now {value!r}"
        for name, value in new.items()
        if name not in _FREE_TO_CHANGE and old[name] != value
    ]
    longer = new["steps"] > old["steps"] and new["schedule"] == "constant"
    if longer:
        differing = [text for text in differing if not text.startswith("steps was ")]
        if config.warmup_steps > old["steps"]:  # it follows the steps where nothing is said of it
            differing.append(f"warm-up would last {config.warmup_steps} steps, more than there were: say --warmup")
    if differing:
        why = " A cosine has come to zero by its last step." if new["schedule"] != "constant" else ""
        raise ConfigError(
            f"the run in {run} was started with other settings: {'; '.join(differing)}. Resume with the old ones, or "
            f"start a new run in another folder (--start-from {run} takes the model along)."
            + (why if old["steps"] != new["steps"] else "")
        )


def _settled(told: dict[str, Any]) -> dict[str, Any]:
    """Settings with every path as it is called from anywhere; the name of a shipped or published model stays."""
    found = {name: Path(told[name]).expanduser() for name in _OF_FILES if told.get(name) is not None}
    return {**told, **{name: str(path.resolve()) for name, path in found.items() if path.exists() or name == "out"}}


def save_steps(run: Path, steps: int) -> None:
    """Let a run that goes on have so many steps; what else it was told stays written as it is."""
    told = json.loads((run / CONFIG_FILE).read_text())
    if told["steps"] != steps:
        write_text_atomically(run / CONFIG_FILE, json.dumps({**told, "steps": steps}, indent=2) + "\n")


def repair_run(run: Path) -> None:
    """Clear away what a kill in the middle of a write left in a run folder."""
    for folder in (run, *(run / name for name in _FOLDERS)):
        repair_folder(folder)


def clear_run(run: Path) -> None:
    """Remove what a training wrote into a run folder, and nothing else.

    Raises:
        OutputError: the folder is no run's, but what is in it would be in the way of one.
    """
    if not (run / CONFIG_FILE).is_file():
        strange = [name for name in _FOLDERS if (run / name).exists()]
        if strange:
            raise OutputError(
                f"output folder {run} holds {', '.join(strange)} but no {CONFIG_FILE}, so no training wrote them, and "
                "--overwrite replaces nothing but a training. Choose another folder."
            )
        return
    repair_run(run)
    for pattern in _WRITTEN:
        for path in run.glob(pattern):
            remove(path)
    for name in _FOLDERS:
        folder = run / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def save_state(run: Path, step: int, tensors: dict[str, Tensor], keep: int) -> Path:
    """Write checkpoint `step` of a run, then remove all but the newest `keep`.

    Raises:
        OutputError: the disk is full; the older checkpoints are untouched.
    """
    folder = run / "checkpoints" / f"step_{step:08d}"
    with folder_written_atomically(folder) as temporary:
        hub.write_tensors(temporary / _STATE_FILE, tensors)
        (temporary / _STEP_FILE).write_text(json.dumps({"step": step}) + "\n")
    for old in _checkpoints(run)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def load_state(run: Path) -> tuple[int, dict[str, Tensor]] | None:
    """Step and tensors, on the CPU, of a run's newest checkpoint; None if it has none yet.

    Raises:
        CheckpointError: the newest checkpoint is damaged.
    """
    folders = _checkpoints(run)
    if not folders:
        return None
    try:
        step = int(json.loads((folders[-1] / _STEP_FILE).read_text())["step"])
        return step, load_file(folders[-1] / _STATE_FILE)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
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
    found = {int(path.name[5:]): path for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit()}
    return [found[step] for step in sorted(found)]
