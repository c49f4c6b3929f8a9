"""The loop, with a model and batches small enough to check by hand."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from ivideogpt import hub
from ivideogpt.config import TransformerConfig
from ivideogpt.errors import CheckpointError, ConfigError, InputError, OutputError
from ivideogpt.training import checkpoint
from ivideogpt.training.config import TrainingConfig
from ivideogpt.training.loop import Rows, StepReport, prepare_run, train

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Points:
    """Inputs (B, 3) and what they map to (B, 2)."""

    x: Tensor
    y: Tensor

    def to(self, device: torch.device) -> Points:
        return self


class Stream:
    """Batches that are a pure function of (seed, number)."""

    def __init__(self, batch_size: int = 4, seed: int = 0) -> None:
        self.batch_size, self.seed = batch_size, seed

    def batch_at(self, step: int) -> Points:
        rows = [
            torch.Generator().manual_seed(1000 * self.seed + step * self.batch_size + i) for i in range(self.batch_size)
        ]
        x = torch.stack([torch.randn(3, generator=row) for row in rows])
        return Points(x, x[:, :2] * 2 + 1)

    def iterate(self, start_step: int = 0) -> Iterator[Points]:
        step = start_step
        while True:
            yield self.batch_at(step)
            step += 1


class Learner:
    """Two losses, dropout, and a state of its own that the next step depends on."""

    def __init__(self, dropout: float = 0.2, poison: dict[int, float] | None = None) -> None:
        torch.manual_seed(1)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(dropout), nn.Linear(4, 2))
        self.poison = poison or {}
        self.momentum = torch.zeros(2)
        self.norms: list[float] = []
        self.graph_at_picture: bool | None = None

    def losses(self, batch: Points, step: int) -> dict[str, Tensor]:
        assert self.model.training
        error = self.model(batch.x) - batch.y + self.momentum
        return {"square": error.square().mean() * self.poison.get(step, 1.0), "absolute": error.abs().mean()}

    def after_step(self, step: int) -> Rows:
        grads = [p.grad for p in self.model.parameters() if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()))
        self.momentum = 0.9 * self.momentum + 0.01 * torch.randn(2)
        return {}

    def metrics(self) -> dict[str, float]:
        return {"answer": 42.0}

    def validate(self, batches: list[Points]) -> dict[str, float]:
        assert not self.model.training
        torch.rand(17)  # must not disturb the training
        return {"error": sum(float((self.model(b.x) - b.y).abs().mean()) for b in batches)}

    def picture(self, batch: Points) -> Tensor:
        self.graph_at_picture = self.model(batch.x).requires_grad
        return torch.zeros(3, 4, 6)

    def state(self) -> dict[str, Tensor]:
        return {"momentum": self.momentum}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        self.momentum = tensors["momentum"].clone()

    def checkpoint(self) -> hub.Checkpoint:
        weights = {name: weight.clone() for name, weight in self.model.state_dict().items()}
        return hub.Checkpoint(transformer=(TransformerConfig(), weights))


def settings(out: Path, **changes: Any) -> TrainingConfig:
    usual = {"steps": 6, "warmup": 2, "save_every": 3, "log_every": 2, "validate_every": 3, "validation_batches": 2}
    return TrainingConfig(**{"data": out, "out": out, "learning_rate": 0.05, **usual, **changes})


def run(learner: Learner, config: TrainingConfig, batches: Stream | None = None) -> Iterator[StepReport]:
    prepare_run(config)
    return train(learner, batches or Stream(), Stream(seed=9), config, CPU)


def saved(out: Path) -> dict[str, Tensor]:
    found = checkpoint.load_state(out)
    assert found is not None
    return {"step": torch.tensor(found[0]), **found[1]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def model_weights(out: Path) -> dict[str, Tensor]:
    return hub.load_transformer(out / "model")[1]


def test_reports(tmp_path: Path) -> None:
    reports = list(run(Learner(), settings(tmp_path, steps=7)))
    assert [r.step for r in reports] == [1, 2, 3, 4, 5, 6, 7]
    assert [r.step for r in reports if r.validation] == [3, 6, 7]
    assert [r.saved.name for r in reports if r.saved] == ["step_00000003", "step_00000006", "step_00000007"]
    for report in reports:
        assert report.losses.keys() == {"square", "absolute", "loss"}
        assert report.losses["loss"] == pytest.approx(report.losses["square"] + report.losses["absolute"])
        assert report.metrics == ({"answer": 42.0} if report.step in (2, 4, 6, 7) else {})
    assert reports[-1].losses["loss"] < reports[0].losses["loss"]


def test_the_run_folder(tmp_path: Path) -> None:
    learner = Learner()
    list(run(learner, settings(tmp_path)))
    names = {"checkpoints", "model", "pictures", "tensorboard", "training.json"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert same(model_weights(tmp_path), dict(learner.model.state_dict()))
    assert Image.open(tmp_path / "pictures" / "step_00000003.png").size == (6, 4)
    assert learner.graph_at_picture is False
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    scalars = {"square", "absolute", "loss", "answer", "learning_rate"}
    scalars = [*scalars, "gradient_norm", "steps_per_second"]
    assert set(events.Tags()["scalars"]) == {*(f"train/{name}" for name in scalars), "validation/error"}
    assert events.Tags()["images"] == ["validation/picture"]
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]


def test_logged_losses_are_means_since_the_last_entry(tmp_path: Path) -> None:
    reports = list(run(Learner(), settings(tmp_path, steps=5, log_every=3)))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    losses = [report.losses["loss"] for report in reports]
    assert [event.value for event in events] == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 2])


def test_accumulated_micro_batches_equal_one_large_batch(tmp_path: Path) -> None:
    learners = [Learner(dropout=0.0), Learner(dropout=0.0)]
    sizes = {"large": (12, 1), "small": (4, 3)}
    results = []
    for learner, (name, (batch_size, accumulate)) in zip(learners, sizes.items(), strict=True):
        config = settings(tmp_path / name, accumulate=accumulate)
        results.append(list(run(learner, config, Stream(batch_size))))
    for one, other in zip(*(learner.model.parameters() for learner in learners), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    for one, other in zip(*results, strict=True):
        assert one.losses == pytest.approx(other.losses, rel=1e-5)


def test_gradients_are_clipped(tmp_path: Path) -> None:
    free, clipped = Learner(), Learner()
    list(run(free, settings(tmp_path / "free", clip=1e9)))
    list(run(clipped, settings(tmp_path / "clipped", clip=0.1)))
    assert max(free.norms) > 1
    assert clipped.norms == pytest.approx([0.1] * 6, rel=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path: Path, value: float) -> None:
    learner = Learner(poison={4: value})
    with pytest.raises(InputError, match=rf"the loss became {value} at step 5; what was saved before is kept\."):
        list(run(learner, settings(tmp_path, save_every=2)))
    assert all(torch.isfinite(weight).all() for weight in learner.model.parameters())
    assert int(saved(tmp_path)["step"]) == 4
    assert EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")  # closed, so written


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    learner = Learner(dropout=0.0)
    with torch.no_grad():
        learner.model[2].weight.zero_()

    def losses(batch: Points, step: int) -> dict[str, Tensor]:
        return {"root": (learner.model[2].weight * batch.x.sum()).sum().abs().sqrt()}  # its slope at 0 is infinite

    learner.losses = losses  # type: ignore[method-assign]
    with pytest.raises(InputError, match=r"the gradient became (nan|inf) at step 1"):
        list(run(learner, settings(tmp_path)))
    assert torch.equal(learner.model[2].weight, torch.zeros(2, 4))
    assert checkpoint.load_state(tmp_path) is None


@pytest.mark.parametrize("ema", [0.0, 0.7])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resuming_is_bit_exact(tmp_path: Path, ema: float, accumulate: int) -> None:
    changes = {"ema": ema, "accumulate": accumulate, "schedule": "cosine", "weight_decay": 0.1}
    whole = list(run(Learner(), settings(tmp_path / "whole", **changes)))
    config = settings(tmp_path / "parts", **changes)
    list(islice(run(Learner(), config), 3))
    torch.rand(5)  # whatever else the process does
    rest = list(run(Learner(), config.model_copy(update={"resume": True})))
    assert [report.step for report in rest] == [4, 5, 6]
    assert [r.losses for r in rest] == [r.losses for r in whole[3:]]
    assert [r.validation for r in rest] == [r.validation for r in whole[3:]]
    one, other = saved(tmp_path / "whole"), saved(tmp_path / "parts")
    assert same(one, other)
    parts = {name.split(".")[0] for name in one}
    assert parts == {"step", "model", "optimizer", "learner", *(["average"] if ema else [])}
    assert same(model_weights(tmp_path / "whole"), model_weights(tmp_path / "parts"))


@pytest.mark.parametrize("last", [1, 3, 5])
def test_a_run_that_is_stopped_saves_and_goes_on_as_if_nothing_had_happened(tmp_path: Path, last: int) -> None:
    whole = list(run(Learner(), settings(tmp_path / "whole", ema=0.9)))
    parts = settings(tmp_path / "parts", ema=0.9)
    prepare_run(parts)
    done = iter(range(1, 9))
    reports = list(train(Learner(), Stream(), Stream(seed=9), parts, CPU, stop=lambda: next(done) == last))
    assert [report.step for report in reports] == list(range(1, last + 1))
    assert reports[-1].saved == tmp_path / "parts" / "checkpoints" / f"step_{last:08}"
    assert model_weights(tmp_path / "parts")
    resumed = parts.model_copy(update={"resume": True, "max_minutes": 60.0})
    rest = list(run(Learner(), resumed))
    assert [r.losses for r in reports + rest] == [r.losses for r in whole]
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    assert same(model_weights(tmp_path / "whole"), model_weights(tmp_path / "parts"))


def test_a_run_is_not_stopped_at_its_end(tmp_path: Path) -> None:
    asked = iter([False, False])  # not after the third step
    prepare_run(settings(tmp_path, steps=3))
    reports = train(Learner(), Stream(), Stream(9), settings(tmp_path, steps=3), CPU, stop=lambda: next(asked))
    assert [report.step for report in reports] == [1, 2, 3]


def test_how_often_it_looks_changes_nothing(tmp_path: Path) -> None:
    list(run(Learner(), settings(tmp_path / "often", log_every=1, validate_every=1, save_every=1, ema=0.5)))
    list(run(Learner(), settings(tmp_path / "seldom", log_every=9, validate_every=9, save_every=9, ema=0.5)))
    assert same(saved(tmp_path / "often"), saved(tmp_path / "seldom"))


def test_batches_that_draw_from_torchs_generator_change_nothing(tmp_path: Path) -> None:
    class Drawing(Stream):
        def iterate(self, start_step: int = 0) -> Iterator[Points]:
            for batch in super().iterate(start_step):
                torch.rand(3)  # as a DataLoader does when it starts its workers
                yield batch

    list(run(Learner(), settings(tmp_path / "drawing", accumulate=2), Drawing()))
    list(run(Learner(), settings(tmp_path / "plain", accumulate=2)))
    assert same(saved(tmp_path / "drawing"), saved(tmp_path / "plain"))


def test_a_full_disk_at_the_curves_is_said_plainly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    with pytest.raises(OutputError, match=r"the disk is full: .*tensorboard could not be written"):
        list(run(Learner(), settings(tmp_path)))


def test_the_saved_model_is_the_average(tmp_path: Path) -> None:
    learner = Learner()
    list(run(learner, settings(tmp_path, ema=0.9)))
    state = saved(tmp_path)
    for name, weight in model_weights(tmp_path).items():
        assert torch.equal(weight, state[f"average.{name}"])
        assert torch.equal(learner.model.state_dict()[name], state[f"model.{name}"])
        assert not torch.equal(weight, state[f"model.{name}"])


def test_the_curves_of_an_interrupted_run_are_not_drawn_twice(tmp_path: Path) -> None:
    config = settings(tmp_path, steps=8, log_every=1, save_every=4)
    reports = run(Learner(), config)
    list(islice(reports, 7))
    reports.close()  # type: ignore[attr-defined]
    list(run(Learner(), config.model_copy(update={"resume": True})))
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]
    shutil.rmtree(tmp_path / "checkpoints")
    list(run(Learner(), config.model_copy(update={"resume": True})))  # from the beginning
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_run_without_a_checkpoint_resumes_from_the_beginning(tmp_path: Path) -> None:
    config = settings(tmp_path / "parts")
    list(islice(run(Learner(), config), 2))
    assert not (tmp_path / "parts" / "checkpoints").exists()
    rest = list(run(Learner(), config.model_copy(update={"resume": True})))
    assert [report.step for report in rest] == [1, 2, 3, 4, 5, 6]
    list(run(Learner(), settings(tmp_path / "whole")))
    assert same(saved(tmp_path / "parts"), saved(tmp_path / "whole"))


def test_a_complete_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    config = settings(tmp_path)
    list(run(Learner(), config))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert list(run(Learner(), config.model_copy(update={"resume": True}))) == []
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("part", ["model", "checkpoints"])
def test_a_full_disk_at_a_save_keeps_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    reports = run(Learner(), settings(tmp_path, save_every=2))
    list(islice(reports, 2))
    before, save_file = model_weights(tmp_path), hub.save_file

    def full(content: dict[str, Tensor], path: Path, *more: Any) -> None:
        if (Path(path).name == "state.safetensors") == (part == "checkpoints"):
            raise OSError(28, "No space left on device")
        save_file(content, path, *more)

    monkeypatch.setattr(hub, "save_file", full)
    with pytest.raises(OutputError, match="the disk is full"):
        list(reports)
    assert int(saved(tmp_path)["step"]) == 2
    assert part == "checkpoints" or same(model_weights(tmp_path), before)
    monkeypatch.undo()
    list(run(Learner(), settings(tmp_path, save_every=2, resume=True)))
    list(run(Learner(), settings(tmp_path / "whole")))
    assert same(saved(tmp_path), saved(tmp_path / "whole"))


def test_a_kill_during_a_save_leaves_nothing_behind_after_resuming(tmp_path: Path) -> None:
    config = settings(tmp_path)
    list(islice(run(Learner(), config), 3))
    (tmp_path / "checkpoints" / ".writing-step_00000006-abcdefgh").mkdir()
    (tmp_path / ".writing-model-abcdefgh").mkdir()
    (tmp_path / "model").rename(tmp_path / ".replaced-model")  # killed between the two moves
    prepare_run(config.model_copy(update={"resume": True}))
    assert hub.load_transformer(tmp_path / "model")
    assert not list(tmp_path.rglob(".*"))


def test_a_folder_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="pass --overwrite or --resume"):
        prepare_run(settings(tmp_path))
    with pytest.raises(CheckpointError, match="nothing to resume"):
        prepare_run(settings(tmp_path, resume=True))
    prepare_run(settings(tmp_path, overwrite=True))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_overwriting_starts_afresh(tmp_path: Path) -> None:
    list(run(Learner(), settings(tmp_path, steps=3)))
    reports = list(run(Learner(), settings(tmp_path, steps=2, overwrite=True)))
    assert [report.step for report in reports] == [1, 2]
    assert int(saved(tmp_path)["step"]) == 2
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


class ModelConfig(TrainingConfig):
    """Settings that begin with a model."""

    start_from: str | None = None


def test_overwriting_the_model_it_begins_with_is_refused(tmp_path: Path) -> None:
    list(run(Learner(), settings(tmp_path / "run")))
    start = {"data": tmp_path, "start_from": str(tmp_path / "run" / "model"), "overwrite": True}
    with pytest.raises(ConfigError, match="inside the run folder"):
        prepare_run(ModelConfig(**start, out=tmp_path / "run"))
    assert model_weights(tmp_path / "run")
    prepare_run(ModelConfig(**start, out=tmp_path / "other"))
