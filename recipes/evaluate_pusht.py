"""Evaluate a world model on held-out Push-T episodes: all the figures of its model card.

    python recipes/evaluate_pusht.py --model pusht-64 --out outputs/evaluation

64 episodes (seeds 900000 to 900063, never trained on), 2 context frames and 14 future frames from the start of each
episode, the recorded actions, one sample each. Writes metrics.json, psnr.png, and the best and worst episodes as
episodes.png.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from PIL import Image

from ivideogpt import WorldModel, __version__
from ivideogpt.cli.console import finish, progress, report
from ivideogpt.data.segment import fit_to_square
from ivideogpt.devices import Precision, choose_device
from ivideogpt.envs.record import EVALUATION_SEEDS_FROM, pusht_episode
from ivideogpt.errors import InputError
from ivideogpt.evaluation.pictures import prediction_rows, stacked, strip, write_png
from ivideogpt.evaluation.plot import line_plot
from ivideogpt.evaluation.prediction import Evaluation, evaluate_episodes, headline
from ivideogpt.files import require_free_output, write_atomically

CALIBRATED, CALIBRATED_FRAMES = 8, 4  # episodes for w8a8, and future frames of each
SHOWN = 3  # best episodes, and as many of the worst


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated, and how."""

    model: str = "pusht-64"
    """A shipped model, a model folder, or a Hub id."""
    out: Path = Path("outputs/evaluation")
    """Folder for the figures and pictures."""
    episodes: int = 64
    """How many episodes; their seeds begin at 900000."""
    horizon: int = 14
    """Future frames."""
    seed: int = 0
    """Decides every draw: episode i draws from the stream of seed + i."""
    batch_size: int = 8
    """Episodes imagined together."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    precision: Precision | Literal["auto"] = "float32"
    """How the model is prepared; w8a8 is calibrated on training episodes."""
    overwrite: bool = False
    """Write into a folder that is not empty."""


def main(options: Options) -> None:
    """Record, imagine, score, write."""
    require_free_output(options.out, overwrite=options.overwrite)
    device = choose_device(options.device)
    world_model = WorldModel.from_pretrained(options.model, device=device)
    if options.precision != "float32":
        world_model = world_model.prepared(options.precision, calibration=calibration_videos(world_model))
    seeds = range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + options.episodes)
    length = world_model.tokenizer.config.context_frames + options.horizon
    episodes = [pusht_episode(seed, length) for seed in seeds]
    started = time.monotonic()
    with progress("imagining", options.episodes, "episode") as bar:
        evaluation = evaluate_episodes(
            world_model,
            episodes,
            horizon=options.horizon,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=lambda done, _: bar.update(done),
        )
    figures = {
        "model": options.model,
        "episode_seeds": [seeds[0], seeds[-1]],
        "sampling_seed": options.seed,
        "precision": world_model.precision or options.precision,
        "sampling": world_model.sampling.model_dump(),
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"ivideogpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **evaluation.metrics,
    }
    wrote = write(options.out, evaluation, figures, seeds)
    report(headline(figures))
    finish(wrote)


def calibration_videos(world_model: WorldModel) -> torch.Tensor:
    """(B,T,3,R,R) uint8: the first frames of some episodes that are not evaluated."""
    config = world_model.tokenizer.config
    videos = [pusht_episode(seed, config.context_frames + CALIBRATED_FRAMES).frames for seed in range(CALIBRATED)]
    return torch.stack([fit_to_square(torch.from_numpy(video).movedim(-1, 1), config.resolution) for video in videos])


def write(out: Path, evaluation: Evaluation, figures: dict[str, Any], seeds: range) -> list[tuple[str, Path]]:
    """Write the figures and pictures; say what lies where."""
    curves = {name.replace("_", " "): values for name, values in figures["per_frame"]["psnr"].items()}
    wrote = [
        ("figures", out / "metrics.json"),
        ("PSNR per frame", out / "psnr.png"),
        ("best and worst episodes", out / "episodes.png"),
    ]
    write_atomically(wrote[0][1], lambda temporary: write_json(temporary, figures))
    write_png(wrote[1][1], line_plot(curves, "PSNR of future frames, dB", "future frame"))
    write_png(wrote[2][1], best_and_worst(evaluation, seeds))
    return wrote


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write figures as a human reads them."""
    path.write_text(json.dumps(figures, indent=2, allow_nan=False) + "\n")


def best_and_worst(evaluation: Evaluation, seeds: range) -> Image.Image:
    """Strips of the episodes with the highest and the lowest PSNR."""
    scores = evaluation.metrics["per_episode"]["psnr"]["imagined"]
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    shown = order if len(order) <= 2 * SHOWN else order[:SHOWN] + order[-SHOWN:]
    strips = {}
    for rank, index in enumerate(shown):
        kind = "best" if rank < len(shown) / 2 else "worst"
        prediction = evaluation.predictions[index]
        title = f"{kind}: episode {seeds[index]}, {scores[index]:.1f} dB"
        strips[title] = strip(prediction_rows(prediction), prediction.context_frames)
    return stacked(strips)


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
