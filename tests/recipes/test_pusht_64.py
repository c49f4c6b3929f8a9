"""The recipe of the shipped model: its options are options, and in small it goes from nothing to a judged model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ivideogpt import WorldModel
from ivideogpt.cli import train_tokenizer, train_transformer
from ivideogpt.cli.options import parse_options

ROOT = Path(__file__).parents[2]
RECIPE, GPU_RECIPE = ROOT / "recipes" / "pusht_64.sh", ROOT / "recipes" / "pusht_64_gpu.sh"
SMALL = "--batch-size 2 --validation-batches 1 --device cpu --precision float32"
STEPS = {"tokenizer": 20, "transformer": 30}
VARIABLES = {
    "PYTHON": sys.executable,
    "SCALE": "0.001",
    "EPISODES": "5",
    "PROCESSES": "2",
    "EVALUATED": "2",
    "TOKENIZER_MORE": SMALL,
    "TRANSFORMER_MORE": SMALL,
}


def start(work: Path, **more: str) -> subprocess.Popen[str]:
    """The recipe under way, its words kept."""
    return subprocess.Popen(
        ["bash", RECIPE, work],
        env={**os.environ, **VARIABLES, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )


def trained(work: Path, what: str) -> int:
    """Steps of the newest checkpoint."""
    return max((int(path.name[5:]) for path in (work / what / "checkpoints").glob("step_*")), default=0)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_nothing_to_an_evaluated_model_with_interruptions(tmp_path: Path) -> None:
    work = tmp_path / "work"

    recipe = start(work, MINUTES="0.001")  # a step, and the time is up
    words, _ = recipe.communicate()
    assert recipe.returncode == 3, words
    assert "run the same again to go on" in words
    assert trained(work, "tokenizer") in range(1, STEPS["tokenizer"])
    assert len(list((work / "data").glob("episode_*.npz"))) == 5

    recipe = start(work)
    while recipe.poll() is None and not list((work / "transformer").glob("tensorboard/*")):
        time.sleep(0.2)
    os.killpg(recipe.pid, signal.SIGINT)  # as Ctrl-C on a terminal does
    words, _ = recipe.communicate()
    assert recipe.returncode == 143, words
    assert trained(work, "tokenizer") == STEPS["tokenizer"]
    assert trained(work, "transformer") in range(1, STEPS["transformer"])

    recipe = start(work)
    words, _ = recipe.communicate()
    assert recipe.returncode == 0, words
    assert trained(work, "transformer") == STEPS["transformer"]
    assert WorldModel.from_pretrained(work / "pusht-64").transformer.config.trained_frames == 16
    for name, episode_set in (("evaluation", "pusht"), ("evaluation-fast", "pusht-fast")):
        assert json.loads((work / name / "metrics.json").read_text())["set"] == episode_set

    recipe = start(work)
    words, _ = recipe.communicate()
    assert recipe.returncode == 0
    assert "training" not in words  # nothing was left to do


def test_scale_asks_for_whole_steps(tmp_path: Path) -> None:
    command = f'source "{RECIPE}" "{tmp_path}"; scaled 20000; SCALE=1e-9 scaled 20000; SCALE=0.00017 scaled 10000'
    assert sourced(command) == ["20000", "1", "2"]


@pytest.mark.parametrize("recipe_start", ["", "pusht-64"])
def test_options_are_those_of_the_trainings(recipe_start: str, tmp_path: Path) -> None:
    command = f'source "{RECIPE}" "{tmp_path}"; printf "%s\\n" "${{tokenizer[@]}}" -- "${{transformer[@]}}"'
    words = sourced(command, START=recipe_start, TOKENIZER_MORE="--batch-size 3")
    middle = words.index("--")
    needed = ["--data", "data", "--out", str(tmp_path)]
    tokenizer = parse_options(train_tokenizer.Options, "train tokenizer", [*words[:middle], *needed])
    transformer = parse_options(train_transformer.Options, "train transformer", [*words[middle + 1 :], *needed])
    assert (tokenizer.preset, tokenizer.start_from) == ((None, recipe_start) if recipe_start else ("nano-64", None))
    assert (tokenizer.batch_size, transformer.preset) == (3, "nano")


def test_the_gpu_recipe_explains_itself() -> None:
    done = subprocess.run(["bash", GPU_RECIPE], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pusht_64_gpu.sh wheels" in done.stderr


def sourced(command: str, **variables: str) -> list[str]:
    """Lines that a command prints which uses the parts of the recipe."""
    plain = {name: value for name, value in os.environ.items() if name not in ("SCALE", "START")}
    done = subprocess.run(
        ["bash", "-c", command], env={**plain, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
