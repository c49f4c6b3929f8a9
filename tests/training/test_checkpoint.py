"""Checkpoints of a run: whole or not at all, the newest few, and only for the settings they were made with."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.errors import CheckpointError, ConfigError, OutputError
from ivideogpt.training import checkpoint
from ivideogpt.training.config import TokenizerTrainingConfig, TransformerTrainingConfig


def tensors(value: float = 1.0) -> dict[str, Tensor]:
    return {
        "model.weight": torch.full((3, 4), value),
        "learner.count": torch.tensor(7),
        "optimizer.0.step": torch.ones(()),
    }


def config(run: Path, **changes: Any) -> TokenizerTrainingConfig:
    return TokenizerTrainingConfig(**{"data": run / "data", "out": run, **changes})


def steps_of(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def test_reads_back_what_was_saved(tmp_path: Path) -> None:
    assert checkpoint.load_state(tmp_path) is None
    view = torch.arange(12.0).view(3, 4).t()  # not contiguous
    checkpoint.save_state(tmp_path, 5, {**tensors(), "learner.view": view}, keep=1)
    found = checkpoint.load_state(tmp_path)
    assert found is not None
    step, loaded = found
    assert step == 5
    assert torch.equal(loaded.pop("learner.view"), view)
    for name, tensor in tensors().items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype


def test_keeps_the_newest(tmp_path: Path) -> None:
    for step in (2, 4, 100, 99_999_999, 100_000_000):
        checkpoint.save_state(tmp_path, step, tensors(step), keep=2)
    assert steps_of(tmp_path) == ["step_100000000", "step_99999999"]
    found = checkpoint.load_state(tmp_path)
    assert found is not None and found[0] == 100_000_000


def test_strange_things_among_the_checkpoints_are_ignored(tmp_path: Path) -> None:
    checkpoint.save_state(tmp_path, 2, tensors(), keep=1)
    for name in ("step_00000009-copy", "step_best", ".writing-step_00000004-a1b2c3d4"):
        (tmp_path / "checkpoints" / name).mkdir()
    checkpoint.save_state(tmp_path, 3, tensors(3), keep=1)
    found = checkpoint.load_state(tmp_path)
    assert found is not None and found[0] == 3
    assert {"step_00000009-copy", "step_best", "step_00000003"} <= set(steps_of(tmp_path))


@pytest.mark.parametrize("damage", ["truncated", "no weights", "no step", "nonsense"])
def test_a_damaged_checkpoint_is_named_and_the_cure_works(tmp_path: Path, damage: str) -> None:
    checkpoint.save_state(tmp_path, 2, tensors(2), keep=2)
    newest = checkpoint.save_state(tmp_path, 4, tensors(4), keep=2)
    state, step = newest / "state.safetensors", newest / "step.json"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-4])
    elif damage == "no weights":
        state.unlink()
    elif damage == "no step":
        step.unlink()
    else:
        step.write_text('["step"]')
    with pytest.raises(CheckpointError, match=r"step_00000004 is damaged .* Remove that folder to continue"):
        checkpoint.load_state(tmp_path)
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()
    found = checkpoint.load_state(tmp_path)
    assert found is not None and found[0] == 2


@pytest.mark.parametrize("kind", ["ours", "of safetensors"])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    checkpoint.save_state(tmp_path, 2, tensors(2), keep=1)

    def full(content: dict[str, Tensor], path: Path, *_: object) -> None:
        Path(path).write_bytes(b"half of it")
        if kind == "ours":
            raise OSError(errno.ENOSPC, "No space left on device")
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OutputError, match=r"the disk is full: .*step_00000004"):
        checkpoint.save_state(tmp_path, 4, tensors(4), keep=1)
    assert steps_of(tmp_path) == ["step_00000002"]
    found = checkpoint.load_state(tmp_path)
    assert found is not None and found[0] == 2 and float(found[1]["model.weight"][0, 0]) == 2


def test_settings_that_change_the_training_are_refused_by_name(tmp_path: Path) -> None:
    checkpoint.save_config(tmp_path, config(tmp_path))
    checkpoint.require_same_config(tmp_path, config(tmp_path, resume=True, workers=3, save_every=7, cache_mb=1, keep=9))
    with pytest.raises(ConfigError) as caught:
        checkpoint.require_same_config(tmp_path, config(tmp_path, batch_size=3, augment="strong", workers=3))
    message = str(caught.value)
    assert "batch_size was 16, now 3" in message and "augment was 'none', now 'strong'" in message
    assert "workers" not in message and "Resume with the old ones" in message


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    checkpoint.save_config(tmp_path, config(tmp_path))
    other = TransformerTrainingConfig(data=tmp_path / "data", out=tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"learning_rate was 0\.0005, now 0\.0001"):
        checkpoint.require_same_config(tmp_path, other)


def test_a_setting_newer_than_the_run_counts_as_its_default(tmp_path: Path) -> None:
    checkpoint.save_config(tmp_path, config(tmp_path))
    file = tmp_path / checkpoint.CONFIG_FILE
    settings = json.loads(file.read_text())
    del settings["ema"]
    file.write_text(json.dumps(settings))
    checkpoint.require_same_config(tmp_path, config(tmp_path))
    with pytest.raises(ConfigError, match=r"ema was 0\.0, now 0\.5"):
        checkpoint.require_same_config(tmp_path, config(tmp_path, ema=0.5))


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "3"])
def test_without_readable_settings_there_is_nothing_to_resume(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / checkpoint.CONFIG_FILE).write_text(content)
    with pytest.raises(CheckpointError, match=r"nothing to resume in .*Drop --resume"):
        checkpoint.require_same_config(tmp_path, config(tmp_path))


def lay_out(run: Path, *paths: str) -> None:
    for path in paths:
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text("x")


def files_of(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


WRITTEN = (
    "checkpoints/step_00000002/state.safetensors", "checkpoints/.writing-step_00000004-abcdefgh/step.json",
    "model/config.json", ".writing-model-abcdefgh/config.json", "tensorboard/events.out.tfevents.1.host.2",
    "pictures/step_00000002.png", "tokens/segments.safetensors", ".writing-training-abcdefgh.json",
)  # fmt: skip
USERS = ("notes.txt", "train.log", "pictures/mine.png", "checkpoints/README.md", "data/000.npz", "models/config.json")


def test_clearing_removes_what_a_training_wrote_and_nothing_else(tmp_path: Path) -> None:
    lay_out(tmp_path, *WRITTEN, *USERS, checkpoint.CONFIG_FILE)
    checkpoint.clear_run(tmp_path)
    assert files_of(tmp_path) == {*USERS, checkpoint.CONFIG_FILE}
    assert not (tmp_path / "tensorboard").exists()


def test_clearing_leaves_alone_what_is_no_run(tmp_path: Path) -> None:
    lay_out(tmp_path, "notes.txt", "model/config.json", "pictures/step_1.png")
    with pytest.raises(OutputError, match=r"holds model, pictures but no training\.json"):
        checkpoint.clear_run(tmp_path)
    assert files_of(tmp_path) == {"notes.txt", "model/config.json", "pictures/step_1.png"}
    lay_out(tmp_path / "other", "train.log")
    checkpoint.clear_run(tmp_path / "other")
    assert files_of(tmp_path / "other") == {"train.log"}


def test_mending_brings_back_a_model_that_was_set_aside(tmp_path: Path) -> None:
    lay_out(
        tmp_path,
        ".replaced-model/config.json",
        ".writing-model-abcdefgh/half",
        "tokens/.writing-segments-x.safetensors",
    )
    checkpoint.repair_run(tmp_path)
    assert files_of(tmp_path) == {"model/config.json"}


def test_optimizer_state_travels_as_tensors() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    twin = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    twin.load_state_dict(model.state_dict())
    other = torch.optim.AdamW(twin.parameters(), lr=0.1)
    state = {name: tensor.clone() for name, tensor in checkpoint.optimizer_tensors(optimizer).items()}
    assert set(state) == {f"{i}.{name}" for i in (0, 1) for name in ("step", "exp_avg", "exp_avg_sq")}
    checkpoint.load_optimizer_tensors(other, state)
    x = torch.randn(4, 3)
    for each, its in ((model, optimizer), (twin, other)):
        its.zero_grad()
        each(x).square().sum().backward()
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
