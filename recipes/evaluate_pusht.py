"""Evaluate a world model on held-out Push-T episodes: all the figures of its model card.

    python recipes/evaluate_pusht.py --model pusht-64 --out outputs/evaluation
    python recipes/evaluate_pusht.py --model pusht-64 --set pusht-fast --out outputs/evaluation-fast

64 episodes (seeds 900000 to 900063, never trained on), 2 context frames and 14 future frames from a fixed frame of each
episode, the recorded actions, one sample each; and each future frame once more in one step from the truth. Prints the
table of the card. Writes it as card.md, all figures as metrics.json, psnr.png, block.png, and the best and worst
episodes as episodes.png.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from PIL import Image

from ivideogpt import WorldModel, __version__
from ivideogpt.cli.console import finish, progress, tell
from ivideogpt.devices import Precision, choose_device
from ivideogpt.drawing import stacked, strip, write_png
from ivideogpt.envs.record import EVALUATION_SEEDS_FROM, pusht_episode
from ivideogpt.errors import InputError
from ivideogpt.evaluation.pictures import prediction_rows
from ivideogpt.evaluation.plot import line_plot
from ivideogpt.evaluation.prediction import Evaluation, evaluate_episodes
from ivideogpt.evaluation.pusht_contact import contact_of
from ivideogpt.evaluation.report import write_block_plot, write_json
from ivideogpt.files import require_free_output, write_text_atomically

STARTS = {"pusht": 30, "pusht-fast": 0}
MOTION_AIMS = {"pusht": "60 %", "pusht-fast": "70 %"}  # of the block's motion in one step
SHOWN = 3  # best episodes, and as many of the worst


@dataclasses.dataclass(frozen=True)
class Options:
    """What is evaluated, and how."""

    model: str = "pusht-64"
    """A shipped model, a model folder, or a Hub id."""
    out: Path = Path("outputs/evaluation")
    """Folder for the figures and pictures."""
    episode_set: Annotated[Literal["pusht", "pusht-fast"], tyro.conf.arg(name="set")] = "pusht"
    """Episodes pushed as people push, or faster and anywhere."""
    episodes: int = 64
    """How many episodes; their seeds begin at 900000."""
    start: int | None = None
    """First context frame of every episode. Left out: 30 in the set pusht, where people first walk up to the block, and
    0 in pusht-fast."""
    horizon: int = 14
    """Future frames."""
    seed: int = 0
    """Decides every draw: episode i draws from the stream of seed + i."""
    batch_size: int = 8
    """Episodes imagined together."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    precision: Precision | Literal["auto"] = "float32"
    """What is computed in; auto is bf16 where the hardware multiplies it, else float32."""
    overwrite: bool = False
    """Write into a folder that is not empty."""


def main(options: Options) -> None:
    """Record, imagine, score, write."""
    require_free_output(options.out, overwrite=options.overwrite)
    device = choose_device(options.device)
    world_model = WorldModel.from_pretrained(options.model, device=device).for_inference(options.precision)
    seeds = range(EVALUATION_SEEDS_FROM, EVALUATION_SEEDS_FROM + options.episodes)
    start = STARTS[options.episode_set] if options.start is None else options.start
    length = start + world_model.layout.context_frames + options.horizon
    episodes = [pusht_episode(seed, length, options.episode_set) for seed in seeds]
    started = time.monotonic()
    with progress("imagining", options.episodes, "episode") as bar:
        evaluation = evaluate_episodes(
            world_model,
            episodes,
            start=start,
            horizon=options.horizon,
            seed=options.seed,
            batch_size=options.batch_size,
            progress=lambda done, _: bar.update(done),
        )
    tell("imagining each frame in one step from the truth")
    contact = contact_of(world_model, evaluation.predictions, seed=options.seed, batch_size=options.batch_size)
    figures = {
        "model": options.model,
        "set": options.episode_set,
        "episode_seeds": [seeds[0], seeds[-1]],
        "start": start,
        "sampling_seed": options.seed,
        "precision": world_model.precision,
        "sampling": world_model.sampling.model_dump(),
        "seconds": round(time.monotonic() - started, 1),
        "versions": {"ivideogpt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **evaluation.metrics,
        "contact": contact.summary(),
    }
    wrote = write(options.out, evaluation, figures, seeds)
    print(card(figures))
    finish(wrote)


def write(out: Path, evaluation: Evaluation, figures: dict[str, Any], seeds: range) -> list[tuple[str, Path]]:
    """Write the figures and pictures; say what lies where."""
    curves = {name.replace("_", " "): values for name, values in figures["per_frame"]["psnr"].items()}
    wrote = [
        ("card", out / "card.md"),
        ("figures", out / "metrics.json"),
        ("PSNR per frame", out / "psnr.png"),
        ("block per frame", out / "block.png"),
        ("best and worst episodes", out / "episodes.png"),
    ]
    table, metrics, psnr, block, strips = (path for _, path in wrote)
    write_text_atomically(table, card(figures) + "\n")
    write_json(metrics, figures)
    write_png(psnr, line_plot(curves, "PSNR of future frames, dB", "future frame"))
    write_block_plot(block, figures["contact"])
    write_png(strips, best_and_worst(evaluation, seeds))
    return wrote


def card(figures: dict[str, Any]) -> str:
    """The table of the model card: copying, what is imagined, the tokenizer's ceiling, and what is aimed at."""
    psnr, contact, horizon = figures["psnr"], figures["contact"], figures["horizon"]
    lost, objects = figures["psnr_lost_by_shuffling"], figures["objects"]
    agent = {name: objects[name]["agent_median_error_at_last_frame_px"] for name in ("imagined", "reconstruction")}
    seen = {name: objects[name]["agent_visible_share"] for name in ("imagined", "reconstruction")}
    share, way = figures["share_of_ceiling"], contact["way_to_reconstruction"]
    rollout = ("copy_last", "rollout", "reconstruction")
    rows = [
        ("", "copy", "imagined", "reconstructed", "aim"),
        ("---",) * 5,
        ("tokenizer: block's centre off, median pixels", "", "", shown(contact["tokenizer_centre_error_px"]), "0.2"),
        *steps(contact, "one_step", "one step from two true frames", MOTION_AIMS[figures["set"]]),
        *steps(contact, "with_history", "one step from all true frames", MOTION_AIMS[figures["set"]]),
        block_row(contact, "iou", "last_frame", rollout, f"rollout: block's IoU at frame {horizon}", "0.75"),
        block_row(contact, "iou", "moving", rollout, "rollout: block's IoU, moving frames", ""),
        ("rollout: way from copy to ceiling in that", "", percent(way["rollout"]), "", ""),
        block_row(contact, "median_position_error_px", "last_frame", rollout, "rollout: block off, median pixels", ""),
        ("rollout: PSNR, dB", *(shown(psnr[name]) for name in ("copy_last", "imagined", "reconstruction")), "29"),
        ("rollout: way from copy to ceiling in PSNR", "", percent(share), "", "60 %"),
        ("rollout: PSNR lost by shuffled actions, dB", "", shown(lost), "", "3"),
        ("rollout: agent visible", "", percent(seen["imagined"]), percent(seen["reconstruction"]), "95 %"),
        (f"rollout: agent off at frame {horizon}, median pixels", "", *map(shown, agent.values()), "1"),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def steps(contact: dict[str, Any], name: str, title: str, motion_aim: str) -> list[tuple[str, ...]]:
    """Rows of one way to take one step from the truth, over the frames in which the block moves; none without it."""
    if name not in contact["block"]:
        return []
    names = ("copy_previous", name, "reconstruction")
    explained = [
        (f"{title}: {what} explained", "0 %", percent(shares[name]), percent(shares["reconstruction"]), aim)
        for what, shares, aim in (
            ("motion", contact["motion_explained"], motion_aim),
            ("rotation", contact["rotation_explained"], "50 %"),
        )
    ]
    way = contact["way_to_reconstruction"][name]
    lost = contact["block"][name]["not_found_share_moving"]
    return [
        *explained,
        block_row(contact, "median_position_error_px", "moving", names, f"{title}: block off, median pixels", ""),
        block_row(
            contact, "median_angle_error_deg", "turning", names, f"{title}: block turned off, median degrees", ""
        ),
        block_row(contact, "iou", "moving", names, f"{title}: block's IoU", ""),
        (f"{title}: way from copy to ceiling in that", "", percent(way), "", "50 %"),
        (f"{title}: no block found", "", percent(lost), "", ""),
        block_row(contact, "iou", "still", names, f"{title}: block's IoU, other frames", ""),
    ]


def block_row(
    contact: dict[str, Any], figure: str, group: str, names: tuple[str, ...], title: str, aim: str
) -> tuple[str, ...]:
    """A figure of the block in three kinds of video."""
    return title, *(shown(contact["block"][name][figure][group]) for name in names), aim


def shown(value: float | None) -> str:
    """A figure with two decimals."""
    return "none" if value is None else f"{value:.2f}"


def percent(value: float | None) -> str:
    """A share."""
    return "none" if value is None else f"{100 * value:.0f} %"


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
