"""Checkpoints in the native layout: there and back, where a name leads, and every kind of damage."""

from __future__ import annotations

import errno
import json
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel, hub
from ivideogpt.config import SamplingConfig
from ivideogpt.errors import CheckpointError, ConfigError, OutputError
from ivideogpt.weights import load_weights

MakeWorldModel = Callable[..., WorldModel]


@pytest.fixture
def model(make_world_model: MakeWorldModel) -> WorldModel:
    return make_world_model(action_dim=3, reward=True)


@pytest.fixture
def saved(model: WorldModel, tmp_path: Path) -> Path:
    return model.save_pretrained(tmp_path / "saved")


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# There and back


def test_round_trip(model: WorldModel, saved: Path) -> None:
    model.sampling = SamplingConfig(temperature=0.7, top_k=5)
    model.save_pretrained(saved, overwrite=True)
    again = WorldModel.from_pretrained(saved)
    assert same_weights(model, again)
    assert again.tokenizer.config == model.tokenizer.config
    assert again.transformer.config == model.transformer.config
    assert again.sampling == model.sampling
    assert not again.training


def test_the_folder_is_readable(saved: Path) -> None:
    assert sorted(contents(saved)) == ["config.json", "tokenizer.safetensors", "transformer.safetensors"]
    config = json.loads((saved / "config.json").read_text())
    assert (config["format"], config["version"]) == ("ivideogpt", 1)
    assert config["tokenizer"]["widths"] == [8, 8, 16]
    assert config["transformer"]["layout"]["context_frames"] == 2
    assert config["sampling"] == {"temperature": 1.0, "top_k": 100, "top_p": 1.0}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in saved.iterdir()), "not to the owner alone"
    assert (saved / "config.json").read_text().count("\n") > 20


def test_parts_alone(model: WorldModel, saved: Path) -> None:
    assert same_weights(CompressiveTokenizer.from_pretrained(saved), model.tokenizer)
    assert same_weights(VideoTransformer.from_pretrained(saved), model.transformer)


def test_a_folder_with_one_part(model: WorldModel, tmp_path: Path) -> None:
    part = (model.tokenizer.config, dict(model.tokenizer.state_dict()))
    hub.save(tmp_path / "tokenizer", hub.Checkpoint(tokenizer=part))
    assert same_weights(CompressiveTokenizer.from_pretrained(tmp_path / "tokenizer"), model.tokenizer)
    with pytest.raises(CheckpointError, match="holds no transformer"):
        VideoTransformer.from_pretrained(tmp_path / "tokenizer")
    with pytest.raises(CheckpointError, match="holds no transformer; a world model needs both"):
        WorldModel.from_pretrained(tmp_path / "tokenizer")
    part = (model.transformer.config, dict(model.transformer.state_dict()))
    hub.save(tmp_path / "transformer", hub.Checkpoint(transformer=part))
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        CompressiveTokenizer.from_pretrained(tmp_path / "transformer")


def test_half_precision_on_disk(model: WorldModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    for name in ("tokenizer", "transformer"):
        assert {t.dtype for t in load_file(tmp_path / "half" / f"{name}.safetensors").values()} == {torch.bfloat16}
    again = WorldModel.from_pretrained(tmp_path / "half")
    assert {weight.dtype for weight in again.parameters()} == {torch.float32}
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name].bfloat16().float())
    assert {w.dtype for w in model.parameters()} == {torch.float32}, "the model itself stays as it was"
    half = WorldModel.from_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    assert {weight.dtype for weight in half.parameters()} == {torch.bfloat16}


def test_finite_scalar_quantization_goal_and_places(make_tokenizer: Any, make_transformer: Any, tmp_path: Path) -> None:
    levels = {"context_codes": 20, "context_levels": (5, 4), "dynamics_codes": 24, "dynamics_levels": (4, 3, 2)}
    tokenizer = make_tokenizer(quantizer="fsq", **levels)
    layout = tokenizer.layout.__class__(2, 16, 4, 20, 24, goal=True)
    transformer = make_transformer(layout=layout, reward=True, reward_symlog=True, place_embedding=True)
    model = WorldModel(tokenizer, transformer)
    again = WorldModel.from_pretrained(model.save_pretrained(tmp_path / "fsq"))
    assert same_weights(model, again)
    assert again.tokenizer.config == model.tokenizer.config
    assert again.transformer.config == model.transformer.config


# Where a name leads


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A package folder with one shipped model, `shipped-1`."""
    (tmp_path / "package" / "models" / "shipped-1").mkdir(parents=True)
    (tmp_path / "package" / "models" / "shipped-1" / "config.json").write_text("{}")
    monkeypatch.setattr(hub, "package_files", lambda _: tmp_path / "package")
    return tmp_path / "package"


def test_a_folder_then_a_shipped_model(package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert hub.shipped_models() == ["shipped-1"]
    assert hub.resolve("shipped-1") == package / "models" / "shipped-1"
    Path("shipped-1").mkdir()
    assert hub.resolve("shipped-1") == Path("shipped-1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/here") == tmp_path / "here"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("name", ["shiped-1", "./missing", "../missing", "/no/such/folder"])
def test_no_such_model(name: str) -> None:
    with pytest.raises(CheckpointError, match=f"unknown model '{name}'.*Available: shipped-1.*Or give a folder"):
        hub.resolve(name)


@pytest.mark.usefixtures("package")
def test_the_nearest_name_is_named() -> None:
    with pytest.raises(CheckpointError, match="Did you mean 'shipped-1'"):
        hub.resolve("shiped-1")


def test_a_file_is_no_folder(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"is a file. Give the folder"):
        hub.resolve(saved / "config.json")


def test_every_shipped_model_can_be_loaded() -> None:
    for name in hub.shipped_models():
        assert WorldModel.from_pretrained(name).longest_horizon >= 1


def test_hub_id(model: WorldModel, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert same_weights(WorldModel.from_pretrained("owner/name"), model)
    assert asked == [("owner/name", ["*.json", "*.safetensors", "*.md"])], "never a pickle"


@pytest.mark.usefixtures("package")
def test_hub_id_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, **_: Any) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(CheckpointError, match="'owner/name' is neither a local folder nor shipped") as error:
        hub.load("owner/name")
    for part in ("shipped-1", "ConnectionError", "Check the id and the network", "pass its path"):
        assert part in str(error.value)


# Damage


def rewrite(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}))


def retouch(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a safetensors file in place."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cut(path: Path, keep: float) -> None:
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing tensor": (
        lambda f: retouch(f / "transformer.safetensors", lambda t: t.pop("norm.weight")),
        r"transformer of .* does not fit its configuration: 1 missing \(norm.weight\)",
    ),
    "extra tensor": (
        lambda f: retouch(f / "tokenizer.safetensors", lambda t: t.update(more=torch.zeros(2))),
        r"tokenizer of .* does not fit its configuration: 1 extra \(more\)",
    ),
    "wrong shape": (
        lambda f: retouch(f / "transformer.safetensors", lambda t: t.update({"norm.weight": torch.zeros(3)})),
        r"1 wrong shape \(norm.weight is \(3,\), must be \(16,\)\)",
    ),
    "another model's weights": (
        lambda f: (f / "tokenizer.safetensors").write_bytes((f / "transformer.safetensors").read_bytes()),
        r"\d+ missing \(.*; .*; .* \.\.\.\), \d+ extra .*come from different models",
    ),
    "newer version": (lambda f: rewrite(f / "config.json", version=2), "version is 2; this library reads version 1"),
    "no version": (lambda f: rewrite(f / "config.json", version=None), "version is None"),
    "another format": (
        lambda f: rewrite(f / "config.json", format=None, _class_name="CompressiveVQModel"),
        "format is None; this library reads 'ivideogpt'",
    ),
    "illegal value": (
        lambda f: rewrite(f / "config.json", sampling={"temperature": -1}),
        "config.json is not a legal configuration: temperature is -1",
    ),
    "unknown field": (
        lambda f: rewrite(f / "config.json", sampling={"heat": 1}),
        "not a legal configuration: unknown field 'heat'",
    ),
    "a part that is no object": (
        lambda f: rewrite(f / "config.json", tokenizer=[1, 2]),
        "config.json is not a legal configuration",
    ),
    "broken JSON": (lambda f: cut(f / "config.json", 0.5), "config.json cannot be read as JSON"),
    "empty JSON": (lambda f: cut(f / "config.json", 0), "config.json cannot be read as JSON"),
    "JSON that is no object": (lambda f: (f / "config.json").write_text("[1]"), "holds list; a configuration is"),
    "bytes for JSON": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe\x00"), "cannot be read as JSON"),
    "truncated weights": (
        lambda f: cut(f / "tokenizer.safetensors", 0.9),
        "tokenizer.safetensors is not a whole safetensors file",
    ),
    "empty weights": (lambda f: cut(f / "tokenizer.safetensors", 0), "is not a whole safetensors file"),
    "pickled weights": (
        lambda f: torch.save({"a": torch.zeros(2)}, f / "tokenizer.safetensors"),
        "is not a whole safetensors file.*pickled weights are never read",
    ),
    "missing weights": (
        lambda f: (f / "transformer.safetensors").unlink(),
        "missing weight file .*transformer.safetensors",
    ),
    "weights of another kind": (
        lambda f: (f / "transformer.safetensors").rename(f / "transformer.pt"),
        "missing weight file .*Found transformer.pt: only safetensors files are read",
    ),
    "no configuration": (
        lambda f: (f / "config.json").unlink(),
        "holds no model: neither config.json .* nor tokenizer/config.json .* It holds: tokenizer.safetensors",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named(kind: str, saved: Path) -> None:
    damage, complaint = DAMAGE[kind]
    damage(saved)
    before = contents(saved)
    with pytest.raises(CheckpointError, match=complaint):
        WorldModel.from_pretrained(saved)
    assert contents(saved) == before


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds no model.*It holds: nothing"):
        hub.load(tmp_path)


def test_nothing_is_loaded_from_a_misfit(model: WorldModel) -> None:
    weights = {name: torch.zeros_like(w) for name, w in model.transformer.state_dict().items()}
    weights.pop("norm.weight")
    before = {name: w.clone() for name, w in model.transformer.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"norm.weight"):
        load_weights(model.transformer, weights, where="here")
    assert all(torch.equal(before[name], w) for name, w in model.transformer.state_dict().items())


# Saving


def test_refuses_a_folder_that_holds_something(model: WorldModel, saved: Path) -> None:
    before = contents(saved)
    with pytest.raises(OutputError, match=r"exists and is not empty.*overwrite=True"):
        model.save_pretrained(saved)
    assert contents(saved) == before
    (saved.parent / "empty").mkdir()
    model.save_pretrained(saved.parent / "empty")
    with pytest.raises(OutputError, match="is a file"):
        model.save_pretrained(saved / "config.json")


def test_overwriting_replaces_the_whole_model(model: WorldModel, saved: Path) -> None:
    hub.save(saved, hub.Checkpoint(transformer=hub.load(saved).transformer), overwrite=True)
    assert sorted(contents(saved)) == ["config.json", "transformer.safetensors"]
    model.save_pretrained(saved, overwrite=True)
    assert sorted(contents(saved)) == ["config.json", "tokenizer.safetensors", "transformer.safetensors"]
    assert [path.name for path in saved.parent.iterdir()] == ["saved"]


def test_overwriting_never_costs_other_files(model: WorldModel, saved: Path) -> None:
    saved.joinpath("config.json").rename(saved / "mine.json")  # no model any more, but somebody's files
    before = contents(saved)
    with pytest.raises(OutputError, match=r"holds more than a model \(mine.json\), which would be lost"):
        model.save_pretrained(saved, overwrite=True)
    assert contents(saved) == before


def test_unknown_layout(model: WorldModel, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown checkpoint layout 'oficial'. Did you mean 'official'"):
        model.save_pretrained(tmp_path / "model", layout="oficial")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        SafetensorError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "full" })'),
    ],
)
def test_a_full_disk_leaves_the_old_model(
    model: WorldModel, saved: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    before, written = contents(saved), []

    def fill_the_disk(tensors: dict[str, Tensor], path: Path, metadata: Any) -> None:
        if written:
            raise failure
        written.append(path)
        save_file(tensors, path, metadata)

    monkeypatch.setattr(hub, "save_file", fill_the_disk)
    with pytest.raises(OutputError, match=r"the disk is full.*what was there before is unchanged"):
        model.save_pretrained(saved, overwrite=True)
    assert contents(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == ["saved"], "no half-written folder stays"


def test_an_interrupted_save_leaves_the_old_model(
    model: WorldModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(saved)

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(hub, "save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(saved, overwrite=True)
    assert contents(saved) == before
    with pytest.raises(KeyboardInterrupt):
        model.save_pretrained(saved.parent / "new")
    assert not (saved.parent / "new").exists()


def test_safetensors_failures_are_those_of_files(tmp_path: Path) -> None:
    """The real library against a real limit of the system: a file that may not grow."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=re.escape(str(tmp_path / "x.safetensors"))) as failure:
            hub.write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert failure.value.errno == errno.EFBIG


def test_notes_beside_a_model_are_kept(model: WorldModel, saved: Path) -> None:
    for name in ("README.md", ".DS_Store"):
        (saved / name).write_text(f"about {name}")
    (saved / "pictures").mkdir()
    (saved / "pictures" / "one.png").write_bytes(b"one")
    model.save_pretrained(saved, overwrite=True)
    assert (saved / "README.md").read_text() == "about README.md" and (saved / ".DS_Store").exists()
    assert (saved / "pictures" / "one.png").read_bytes() == b"one"


def test_a_run_stands_for_its_model(model: WorldModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "run" / "model")
    assert hub.resolve(tmp_path / "run") == tmp_path / "run" / "model"
    assert WorldModel.from_pretrained(tmp_path / "run").transformer.config == model.transformer.config
