"""`ivideogpt predict` through the real command."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from ivideogpt.cli import predict as predict_command
from ivideogpt.cli.main import main
from ivideogpt.config import DataFacts
from ivideogpt.devices import Precision
from ivideogpt.evaluation.prediction import Prediction
from ivideogpt.hub import write_facts
from tests.reference.checkpoints import (
    made_up,
    tokenizer_config,
    tokenizer_shapes,
    transformer_config,
    transformer_shapes,
    write_official,
)

FILES = ["metrics.json", "prediction.gif", "prediction.mp4", "psnr.png", "strip.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    parts = CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro", action_dim=2)
    return WorldModel(*parts).save_pretrained(tmp_path_factory.mktemp("models") / "micro")


@pytest.fixture
def episode(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "episode.npz"
    np.savez(path, image=rng.integers(0, 256, (8, 16, 16, 3), np.uint8), action=rng.normal(size=(8, 2)))
    return path


def predict(model: Path, episode: Path | str, out: Path, *more: str) -> int:
    words = ["predict", "--model", str(model), "--episode", str(episode), "--out", str(out), "--device", "cpu"]
    return main([*words, "--horizon", "4", *more])


def test_writes_pictures_and_figures(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(model, episode, out) == 0
    assert sorted(path.name for path in out.iterdir()) == FILES
    said = capsys.readouterr().out
    assert all(str(out / name) in said for name in FILES)
    assert "psnr.imagined" in said
    assert "next" in said
    figures = json.loads((out / "metrics.json").read_text())
    assert set(figures["psnr"]) == {"imagined", "copy_last", "reconstruction", "shuffled"}
    assert len(figures["per_frame"]["ssim"]["imagined"]) == 4
    assert figures["objects"] is None


def test_json_stands_alone_on_stdout(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert predict(model, episode, out, "--json", "--temperature", "0", "--top-k", "5", "--start", "1") == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures == json.loads((out / "metrics.json").read_text())
    assert figures["sampling"] == {"temperature": 0, "top_k": 5, "top_p": 1.0}
    assert figures["start"] == 1


def test_another_precision_is_said(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(model, episode, tmp_path / "one", "--precision", "bf16", "--top-p", "0.9", "--json") == 0
    said = capsys.readouterr()
    assert f"with {model} in bf16\n" in said.err
    figures = json.loads(said.out)
    assert (figures["sampling"]["top_p"], figures["precision"]) == (0.9, "bf16")
    assert predict(model, episode, tmp_path / "two", "--precision", "auto") == 0
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["precision"] in ("float32", "bf16")


def test_the_precisions_are_those_of_the_library() -> None:
    choices = get_args(predict_command.Options.model_fields["precision"].annotation)
    assert set(choices) == {*get_args(Precision), "auto"}


def test_other_keys_sizes_and_steps(episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro", action_dim=4)
    model = WorldModel(*parts).save_pretrained(tmp_path / "model")
    with np.load(episode) as archive:
        frames, actions = archive["image"], archive["action"]
    path = tmp_path / "other.npz"
    np.savez(path, front=frames.repeat(2, axis=1).repeat(3, axis=2), command=actions)
    words = ["--camera-key", "front", "--action-key", "command", "--step-size", "2", "--horizon", "2", "--json"]
    assert predict(model, path, tmp_path / "out", *words) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["step_size"], figures["horizon"]) == (2, 2)


def test_records_a_pusht_episode_on_the_spot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = CompressiveTokenizer.from_preset("micro-16", resolution=64, stem_stride=4)
    model = WorldModel(tokenizer, VideoTransformer.from_preset("micro", action_dim=2))
    folder = model.save_pretrained(tmp_path / "model")
    assert predict(folder, "pusht:900000", tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out)["objects"]["real"]["agent_visible_share"] == 1


def test_the_output_has_a_place_of_its_own(
    model: Path, episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["predict", "--model", str(model), "--episode", episode.name, "--horizon", "2", "--device", "cpu"]
    assert main(words) == 0
    [folder] = Path("outputs/predict").iterdir()
    assert folder.name.endswith("-micro")
    assert sorted(path.name for path in (folder / "episode").iterdir()) == FILES


def test_a_second_model_or_episode_has_another_place(
    model: Path, episode: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where runs keep models, and folders episodes, of the same name."""
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        shutil.copytree(model, Path("runs") / run / "model")
        Path(f"data_{run}").mkdir()
        shutil.copy(episode, Path(f"data_{run}") / "0.npz")
    for run, data in (("a", "a"), ("b", "a"), ("b", "b")):
        words = ["predict", "--model", f"runs/{run}/model", "--episode", f"data_{data}/0.npz", "--horizon", "2"]
        assert main([*words, "--device", "cpu"]) == 0
    written = sorted(str(path.parent.relative_to("outputs/predict")) for path in Path().rglob("metrics.json"))
    assert written == ["runs-a/data_a-0", "runs-b/data_a-0", "runs-b/data_b-0"]


def test_what_is_said_next_can_be_done(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the same kind of data, with the same options, quoted."""
    folder = tmp_path / "my data"
    folder.mkdir()
    with np.load(episode) as archive:
        for name in ("0", "1"):
            np.savez(folder / f"{name}.npz", front=archive["image"], action=archive["action"])
    assert predict(model, folder / "0.npz", tmp_path / "my out", "--camera-key", "front") == 0
    lines = [line.removeprefix("next").split("#")[0] for line in capsys.readouterr().out.splitlines()]
    other, again = [shlex.split(line) for line in lines if "ivideogpt predict" in line]
    assert (other[other.index("--episode") + 1], "--out" in other) == (str(folder / "1.npz"), False)
    for words in ([*other, "--out", str(tmp_path / "other")], again):
        assert words[:2] == ["ivideogpt", "predict"] and main(words[1:]) == 0
    assert predict_command._another("pusht:7") == "pusht:8"


def test_the_model_knows_its_keys_and_steps(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = tmp_path / "known"
    shutil.copytree(model, known)
    facts = DataFacts(step_size=2, camera_key="front", action_key="command", action_names=("x",))
    write_facts(known, facts)
    with np.load(episode) as archive:
        np.savez(tmp_path / "other.npz", front=archive["image"], command=archive["action"][:, :1])
    assert predict(known, tmp_path / "other.npz", tmp_path / "out", "--horizon", "2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["step_size"] == 2
    assert predict(known, tmp_path / "other.npz", tmp_path / "no", "--horizon", "2", "--step-size", "3") == 2
    assert "step_size is 3, but this model was trained with step size 2" in capsys.readouterr().err
    assert predict(known, episode, tmp_path / "no") == 2
    assert "'command' is what the model's own data call it; --camera-key" in capsys.readouterr().err
    assert predict(known, episode, tmp_path / "yes", "--horizon", "2", "--action-key", "action") == 2
    assert "unknown camera key 'front'" in capsys.readouterr().err


def test_a_goal_is_the_last_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder in the official layout that does not say that it has one."""
    config = tokenizer_config()
    llama = transformer_config(config)
    parts = made_up(tokenizer_shapes(config), seed=1), made_up(transformer_shapes(llama, None, False), seed=2)
    write_official(tmp_path / "theirs", (config, parts[0]), (llama, parts[1]))
    frames = np.arange(0, 240, 30, dtype=np.uint8)[:, None, None, None] * np.ones((8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "episode.npz", image=frames)
    seen: list[Prediction] = []
    keep = lambda out, prediction, figures: seen.append(prediction) or []  # noqa: E731
    monkeypatch.setattr("ivideogpt.evaluation.report.write_prediction", keep)
    more = ["--horizon", "5", "--goal", "True", "--trained-frames", "5"]
    assert predict(tmp_path / "theirs", tmp_path / "episode.npz", tmp_path / "out", *more) == 0
    [prediction] = seen
    assert prediction.real[:, 0, 0, 0].tolist() == [150, 0, 30, 60, 90, 120, 150]
    assert torch.equal(prediction.imagined[:2], prediction.real[:2])


def test_keeps_what_is_there_unless_told(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert predict(model, episode, out) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    assert predict(model, episode, out, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*FILES, "mine.txt"])


@pytest.mark.parametrize(
    ("episode_given", "more", "message"),
    [
        ("missing.npz", [], "no such file"),
        ("pusht:first", [], "pusht:900000"),
        ("pusht:100000", [], "900000"),
        (None, ["--start", "3"], "has 8 frames"),
        (None, ["--horizon", "0"], "greater than or equal to 1"),
        (None, ["--temperature", "-1"], "greater than or equal to 0"),
        (None, ["--camera-key", "imag"], "Did you mean 'image'?"),
        (None, ["--action-key", "actions"], "Did you mean 'action'?"),
        (None, ["--step-size", "2"], "has 8 frames"),
        (None, ["--device", "gpu"], "unknown device"),
        (None, ["--model", "pusht-63"], "unknown model"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    model: Path,
    episode: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    episode_given: str | None,
    more: list[str],
    message: str,
) -> None:
    out = tmp_path / "out"
    assert predict(model, episode_given or episode, out, *more) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


def test_damaged_episodes_are_named(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with np.load(episode) as archive:
        frames, actions = archive["image"], archive["action"].copy()
    actions[3, 1] = np.nan
    uneven = np.empty(8, dtype=object)
    uneven[:] = [frames[0], *frames[1:, :8]]
    cut, nan, ragged = (tmp_path / f"{name}.npz" for name in ("cut", "nan", "ragged"))
    cut.write_bytes(episode.read_bytes()[:900])
    np.savez(nan, image=frames, action=actions)
    np.savez(ragged, image=uneven, action=actions)
    for path, message in ((cut, "truncated"), (nan, "actions row 3"), (ragged, "ragged.npz")):
        assert predict(model, path, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_damaged_models_are_named(
    model: Path, episode: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "damaged")
    file = tmp_path / "damaged" / "transformer.safetensors"
    tensors = load_file(file)
    name = next(iter(tensors))
    changes: dict[str, dict[str, torch.Tensor]] = {
        "missing": {key: value for key, value in tensors.items() if key != name},
        "1 extra (extra.weight)": {**tensors, "extra.weight": torch.zeros(2)},
        "shape": {**tensors, name: torch.zeros(3)},
    }
    for message, content in changes.items():
        save_file(content, file)
        assert predict(tmp_path / "damaged", episode, tmp_path / "out") == 2
        said = capsys.readouterr().err
        assert message in said and "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_actions_must_fit_the_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "wide.npz"
    np.savez(path, image=np.zeros((8, 16, 16, 3), np.uint8), action=np.zeros((8, 7)))
    assert predict(model, path, tmp_path / "out") == 2
    assert "actions of size 7; this model takes actions of size 2" in capsys.readouterr().err
