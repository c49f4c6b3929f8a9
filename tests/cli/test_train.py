"""`ivideogpt train` through the real command: from episodes to a model, killed, resumed, and fed with mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ivideogpt import CompressiveTokenizer, VideoTransformer, WorldModel
from ivideogpt.cli.main import main
from ivideogpt.data.episode import Episode
from ivideogpt.data.sources.npz import write_episode
from ivideogpt.training import checkpoint
from ivideogpt.training.config import TokenizerTrainingConfig, TransformerTrainingConfig

COMMANDS = ("tokenizer", "transformer")
LENGTH = 8
SMALL = {
    "--batch-size": 2,
    "--warmup": 1,
    "--log-every": 2,
    "--validate-every": 4,
    "--validation-batches": 1,
    "--save-every": 2,
    "--device": "cpu",
    "--precision": "float32",
}


def write_episodes(folder: Path, count: int = 3, length: int = LENGTH, **changes: Any) -> Path:
    for number in range(count):
        rng = np.random.default_rng(number)
        frames = rng.integers(0, 256, (length, 16, 16, 3), np.uint8)
        actions = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        write_episode(folder / f"{number:03}.npz", Episode(**{"frames": frames, "actions": actions, **changes}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_episodes(tmp_path_factory.mktemp("data") / "episodes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random world model that takes actions of size 2."""
    torch.manual_seed(0)
    parts = CompressiveTokenizer.from_preset("micro-16"), VideoTransformer.from_preset("micro", action_dim=2)
    return WorldModel(*parts).save_pretrained(tmp_path_factory.mktemp("models") / "micro")


def words_of(command: str, data: Path, out: Path, *more: str, steps: int = 4) -> list[str]:
    kind = ["--horizon", "6", "--future-frames", "2"] if command == "tokenizer" else ["--segment-frames", "5"]
    if "--start-from" not in more:
        kind += ["--preset", "micro-16" if command == "tokenizer" else "micro"]
    places = ["--data", str(data), "--out", str(out), "--steps", str(steps)]
    return ["train", command, *places, *(str(word) for pair in SMALL.items() for word in pair), *kind, *more]


def train(command: str, data: Path, out: Path, *more: str, steps: int = 4) -> int:
    return main(words_of(command, data, out, *more, steps=steps))


def newest_state(out: Path) -> dict[str, torch.Tensor]:
    return load_file(max((out / "checkpoints").iterdir()) / "state.safetensors")


def weights(out: Path) -> dict[str, torch.Tensor]:
    parts = {}
    for file in sorted((out / "model").glob("*.safetensors")):
        parts.update({f"{file.stem}.{name}": tensor for name, tensor in load_file(file).items()})
    return parts


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The story


@pytest.mark.parametrize("cache", [[], ["--cache-tokens", "6"]])
def test_from_episodes_to_a_model(
    data: Path, tmp_path: Path, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "tokenizer", tmp_path / "transformer"
    assert train("tokenizer", data, first) == 0
    said = capsys.readouterr()
    assert "training without the perceptual loss" in said.err and "step 4, held-out episodes: psnr_context" in said.err
    assert "step 4, codes of late: context_usage" in said.err
    assert f"--tokenizer {first} --out" in said.out  # what to try next
    more = ["--tokenizer", str(first / "model"), *cache]
    assert train("transformer", data, second, *more, "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["steps"], figures["steps_trained_now"]) == (4, 4)
    assert {"cross_entropy", "loss"} <= set(figures)
    assert {"cross_entropy", "accuracy", "cross_entropy_shuffled_actions"} == set(figures["held_out"])
    assert (second / "tokens").is_dir() == bool(cache)
    assert train("transformer", data, second, *more, "--resume") == 0
    said = capsys.readouterr()
    assert "is complete; nothing is left to train" in said.err and "steps_trained_now  0" in said.out
    video = WorldModel.from_pretrained(second / "model").rollout(
        torch.zeros(1, 2, 3, 16, 16), torch.zeros(1, 3, 2), horizon=3
    )
    assert video.video.shape == (1, 1, 5, 3, 16, 16)


def test_a_folder_that_is_not_empty(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert train("tokenizer", data, out, steps=2) == 0
    (out / "notes.txt").write_text("mine")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert train("tokenizer", data, out, steps=2) == 2
    assert "exists and is not empty" in capsys.readouterr().err
    assert train("tokenizer", data, out, "--resume", steps=1) == 2
    assert "started with other settings: steps was 2, now 1" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert train("tokenizer", data, out, "--overwrite", steps=3) == 0
    assert sorted(os.listdir(out / "checkpoints")) == ["step_00000002", "step_00000003"]
    assert (out / "notes.txt").read_text() == "mine"
    assert train("tokenizer", data, tmp_path / "new", "--resume") == 2
    assert "nothing to resume" in capsys.readouterr().err and not (tmp_path / "new").exists()


# Killed and resumed

KILLED_AT_A_MOVE = """
import os, signal, sys
from ivideogpt.cli.main import main
name, number, replace = sys.argv[1], int(sys.argv[2]), os.replace
def move(source, target):
    global number
    if os.path.basename(target) == name:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        number -= 1
    replace(source, target)
os.replace = move
sys.exit(main(sys.argv[3:]))
"""
PLAIN = "import sys; from ivideogpt.cli.main import main; sys.exit(main(sys.argv[1:]))"


def command_line(program: str, *words: str) -> list[str]:
    return [sys.executable, "-c", program, *words]


def run(*words: str) -> None:
    done = subprocess.run(command_line(PLAIN, *words), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained for 12 steps in one go."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run(*words_of("tokenizer", data, out, "--ema", "0.9", steps=12))
    return out


def assert_resumed_right(out: Path, undisturbed: Path) -> None:
    assert same(newest_state(out), newest_state(undisturbed))
    assert same(weights(out), weights(undisturbed))
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in undisturbed.iterdir())
    assert not list(out.rglob(".*"))


def test_killed_anywhere_and_resumed(data: Path, tmp_path: Path, undisturbed: Path) -> None:
    """From outside, at any moment. The run has no end, so it can't win the race; its checkpoints tell how it went."""
    words = words_of("tokenizer", data, tmp_path / "run", "--ema", "0.9", "--keep", "1000", steps=100_000)
    checkpoints = tmp_path / "run" / "checkpoints"
    for wait_for, more in ((4, []), (12, ["--resume"])):
        process = subprocess.Popen(command_line(PLAIN, *words, *more), stderr=subprocess.DEVNULL)
        while not (checkpoints / f"step_{wait_for:08}").exists() and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    resumed = load_file(checkpoints / "step_00000012" / "state.safetensors")
    assert same(resumed, newest_state(undisturbed))


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("model", 2),  # the older model set aside, the new one not yet in place
        ("step_00000006", 0),  # the model of step 6 in place, its checkpoint not yet
    ],
)
def test_killed_in_the_middle_of_a_save_and_resumed(
    data: Path, tmp_path: Path, undisturbed: Path, name: str, number: int
) -> None:
    words = words_of("tokenizer", data, tmp_path / "run", "--ema", "0.9", steps=12)
    done = subprocess.run(command_line(KILLED_AT_A_MOVE, name, str(number), *words), capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert max(os.listdir(tmp_path / "run" / "checkpoints")) == "step_00000004"
    assert (tmp_path / "run" / "model").exists() == (name != "model")
    run(*words, "--resume")
    assert_resumed_right(tmp_path / "run", undisturbed)


# Help and wrong words


@pytest.mark.parametrize(
    ("command", "config"), [("tokenizer", TokenizerTrainingConfig), ("transformer", TransformerTrainingConfig)]
)
def test_help_explains_every_field(command: str, config: type[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", command, "--help"])
    assert stop.value.code == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, field in config.model_fields.items():
        assert field.description and len(field.description) > 8, name
        flag = f"--no-{name}" if field.default is True else f"--{name}"
        place = shown.index(f"{flag.replace('_', '-')} ")
        assert " ".join(field.description.split())[:30] in shown[place:], name


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the command says to a mistake, in one line; it must end with 2 and without a traceback."""
    capsys.readouterr()
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code  # type: ignore[assignment]
    shown = capsys.readouterr()
    assert code == 2 and shown.out == "" and "Traceback" not in shown.err
    return " ".join(shown.err.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--batchsize 3", "--batch-size"),
        ("--learning-rates 3", "--learning-rate"),
        ("--batch-size 0", "batch-size is 0, but should be greater than or equal to 1"),
        ("--ema 1.5", "ema is 1.5, but should be less than 1"),
        ("--learning-rate 0", "learning-rate is 0.0, but should be greater than 0"),
        ("--seed 99999999999999999999", "seed is 99999999999999999999, but should be less than 4294967296"),
        ("--schedule cosin", "('constant', 'cosine')"),
        ("--precision fp16", "('auto', 'float32', 'bf16')"),
        ("--steps many", "--steps"),
        ("--resume --overwrite", "resume and overwrite are both set"),
        ("--preset nano-46", "unknown"),
        ("--preset nan", "Did you mean 'nano"),
        ("--device gpu", "unknown device 'gpu'"),
        ("--states --state-angles 0 1", "unknown state key 'state'"),
        ("--state-angles 1", "states is not set"),
    ],
)
def test_wrong_words(
    data: Path, model: Path, tmp_path: Path, command: str, words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--tokenizer", str(model)] if command == "transformer" else []
    assert expected in refused(words_of(command, data, tmp_path / "run", *more, *words.split()), capsys)
    assert not (tmp_path / "run").exists()


# Bad input


def damage(folder: Path, **arrays: Any) -> None:
    """Rewrite every episode of a folder with other arrays."""
    for path in folder.glob("*.npz"):
        with np.load(path) as archive:
            content = {**dict(archive), **arrays}
        np.savez(path, **{key: value for key, value in content.items() if value is not None})


def with_nan(value: float) -> np.ndarray:
    actions = np.zeros((LENGTH, 2), np.float32)
    actions[3, 1] = value
    return actions


BAD_EPISODES: dict[str, dict[str, Any]] = {
    "unknown camera key 'image'": {"image": None},
    "channels first": {"image": np.zeros((LENGTH, 3, 16, 16), np.uint8)},
    "must be (T, H, W, 3)": {"image": np.zeros((LENGTH, 16, 16), np.uint8)},
    "images are <U1": {"image": np.full((LENGTH, 16, 16, 3), "a")},
}
BAD_ACTIONS: dict[str, dict[str, Any]] = {
    "actions row 3 is [0.0, nan]; all actions must be finite": {"action": with_nan(float("nan"))},
    "actions row 3 is [0.0, inf]": {"action": with_nan(float("inf"))},
    "unknown action key 'action'": {"action": None},
    "actions have 5 rows for 8 frames": {"action": np.zeros((5, 2), np.float32)},
    "of size 2, the data have 7": {"action": np.zeros((LENGTH, 7), np.float32)},
}


@pytest.mark.parametrize(
    ("command", "expected", "arrays"),
    [
        *(("tokenizer", expected, arrays) for expected, arrays in BAD_EPISODES.items()),
        *(("transformer", expected, arrays) for expected, arrays in {**BAD_EPISODES, **BAD_ACTIONS}.items()),
    ],
)
def test_bad_episodes(
    model: Path, tmp_path: Path, command: str, expected: str, arrays: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_episodes(tmp_path / "data")
    damage(data, **arrays)
    more = ["--tokenizer", str(model), "--start-from", str(model)] if command == "transformer" else []
    assert expected in refused(words_of(command, data, tmp_path / "run", *more), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_bad_data_folders(model: Path, tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--tokenizer", str(model)] if command == "transformer" else []
    truncated, empty = write_episodes(tmp_path / "truncated"), tmp_path / "empty"
    empty.mkdir()
    for path in truncated.iterdir():
        path.write_bytes(path.read_bytes()[:300])
    cases = {
        "no such folder": tmp_path / "missing",
        "no episode file": empty,
        "truncated": truncated,
        "the dataset has 1 episode": write_episodes(tmp_path / "one", count=1),
        "all training episodes are too short": write_episodes(tmp_path / "short", length=1),
    }
    for expected, data in cases.items():
        said = refused(words_of(command, data, tmp_path / "run", *more), capsys)
        assert expected in said
    assert not (tmp_path / "run").exists()


def test_bad_models(data: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def tokenizer_at(name: str) -> list[str]:
        return words_of("transformer", data, tmp_path / "run", "--tokenizer", str(tmp_path / name))

    (tmp_path / "empty").mkdir()
    for name in ("truncated", "version", "alone"):
        shutil.copytree(model, tmp_path / name)
    file = tmp_path / "truncated" / "tokenizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    (tmp_path / "alone" / "tokenizer.safetensors").unlink()
    config = json.loads((tmp_path / "version" / "config.json").read_text())
    (tmp_path / "version" / "config.json").write_text(json.dumps({**config, "version": 99}))
    cases = {
        "missing": "unknown model",
        "empty": "holds no model",
        "truncated": "is not a whole safetensors file",
        "alone": "missing weight file",
        "version": "version is 99; this library reads version 1",
    }
    for name, expected in cases.items():
        assert expected in refused(tokenizer_at(name), capsys)
    start = words_of("tokenizer", data, tmp_path / "run", "--start-from", str(tmp_path / "missing"))
    assert "unknown model" in refused(start, capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = words_of("tokenizer", data, tmp_path / "run", "--device", "cuda")
    assert "sees no CUDA device here. Use auto or cpu" in refused(words, capsys)
    assert not (tmp_path / "run").exists()


def test_an_episode_that_is_found_broken_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, save_state = write_episodes(tmp_path / "data"), checkpoint.save_state

    def save_and_break(*args: Any) -> Path:
        for path in data.iterdir():
            path.write_bytes(b"PK")
        return save_state(*args)

    monkeypatch.setattr(checkpoint, "save_state", save_and_break)
    said = refused(words_of("tokenizer", data, tmp_path / "run", "--cache-mb", "0"), capsys)
    assert re.search(r"error: .*\.npz: truncated", said)
    assert newest_state(tmp_path / "run")
