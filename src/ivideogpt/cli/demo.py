"""`ivideogpt demo`: the whole story in a few minutes, from fresh episodes to imagined frames to training."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from ivideogpt.cli.console import finish, progress, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions

if TYPE_CHECKING:
    from ivideogpt.evaluation.report import Section

_FIRST_EVALUATION_SEED = 910_000
_FIRST_TRAINING_SEED = 90_000
_TRAINING_EPISODES = 12
_CONTACT = ("motion_explained", "rotation_explained", "way_to_reconstruction", "tokenizer_centre_error_px")
_START = 30  # by then the agent has reached the block
_FINE_TUNING = {"steps": 60, "batch_size": 8, "learning_rate": 2e-5, "warmup": 5, "ema": 0.0, "cache_tokens": 64}


class Options(BaseOptions):
    """Record fresh Push-T episodes, imagine them with a trained model, fine-tune it for a minute, and show it all.

    Everything is written below one folder, with a page that shows it.
    """

    out: Path = Path("outputs/demo")
    """Folder for everything."""
    model: str = "pusht-64"
    """A shipped model, a model folder, or a Hub id; it must take Push-T's actions."""
    episodes: int = Field(3, ge=1, le=20)
    """Episodes to imagine. None of them was trained on."""
    fine_tune_seconds: float = Field(60.0, ge=0)
    """How long to fine-tune, after the half a minute that imagining takes; 0 leaves it out."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    overwrite: bool = False
    """Replace an earlier demo in the folder."""
    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Record, imagine, fine-tune, show."""
    from ivideogpt.evaluation.report import Section, write_json, write_page
    from ivideogpt.files import require_free_output

    require_free_output(options.out, overwrite=options.overwrite)
    figures, sections = _imagine(options)
    if options.fine_tune_seconds:
        figures["fine_tuning"] = _fine_tune(options)
        text = "The transformer, trained further on new episodes, to show that the training path runs."
        sections.append(Section("Fine-tuning", text, figures=figures["fine_tuning"]))
    page, metrics = options.out / "index.html", options.out / "metrics.json"
    write_json(metrics, figures)
    write_page(page, f"Push-T, imagined by {options.model}", sections)
    report(figures, options.as_json)
    finish(
        wrote=[("page", page), ("figures", metrics), ("episodes and pictures", options.out)],
        next_steps=[
            f"show {page} in a browser",
            f"ivideogpt predict --model {options.model} --episode pusht:900123",
            "ivideogpt record pusht --episodes 300 --out data/pusht",
            "ivideogpt train tokenizer --data data/pusht --out runs/tokenizer",
        ],
        as_json=options.as_json,
    )


def _imagine(options: Options) -> tuple[dict[str, Any], list[Section]]:
    """Record evaluation episodes, predict each, and write its pictures."""
    from ivideogpt.data.sources.npz import read_episode
    from ivideogpt.devices import choose_device
    from ivideogpt.envs.record import record_episodes
    from ivideogpt.evaluation.prediction import headline, predict_episodes, summarize
    from ivideogpt.evaluation.pusht_contact import contact_of
    from ivideogpt.evaluation.report import (
        Section,
        prediction_section,
        shows_a_block,
        write_block_plot,
        write_prediction,
    )
    from ivideogpt.world_model import WorldModel

    world_model = WorldModel.from_pretrained(options.model, device=choose_device(options.device))
    tell(f"recording {options.episodes} fresh episodes of Push-T")
    paths = record_episodes(
        "pusht", options.episodes, options.out / "episodes", seed=_FIRST_EVALUATION_SEED, overwrite=options.overwrite
    )
    episodes = [read_episode(path) for path in paths]
    predictions = []
    with progress("imagining", len(episodes), "episode") as bar:
        for path, prediction in zip(paths, predict_episodes(world_model, episodes, start=_START), strict=True):
            write_prediction(options.out / path.stem, prediction, prediction.metrics)
            predictions.append(prediction)
            bar.advance()
    figures = headline(summarize(predictions))
    plots = []
    if all(map(shows_a_block, predictions)):
        tell("imagining each frame once more, in one step from the truth")
        contact = contact_of(world_model, predictions).summary()
        write_block_plot(options.out / "block.png", contact)
        figures["contact"] = headline({name: contact[name] for name in _CONTACT})
        plots.append(Path("block.png"))
    sections = [Section("All episodes", plots=plots, figures=figures)]
    for path, prediction in zip(paths, predictions, strict=True):
        sections.append(prediction_section(path.stem.replace("_", " "), Path(path.stem), prediction))
    return figures, sections


def _fine_tune(options: Options) -> dict[str, Any]:
    """Train the model's transformer further on new episodes until the time is up."""
    from ivideogpt import hub
    from ivideogpt.envs.record import record_episodes
    from ivideogpt.training.config import TransformerTrainingConfig
    from ivideogpt.training.loop import StepReport
    from ivideogpt.training.run import train_transformer

    data, start = options.out / "training-episodes", time.monotonic()
    record_episodes("pusht", _TRAINING_EPISODES, data, seed=_FIRST_TRAINING_SEED, overwrite=options.overwrite)
    model = hub.load_transformer(options.model)[0]
    config = TransformerTrainingConfig(
        data=data,
        out=options.out / "fine-tuned",
        tokenizer=options.model,
        start_from=options.model,
        states=model.state is not None,
        step_size=model.data.steps_of(None),
        device=options.device,
        overwrite=options.overwrite,
        validate_every=20,
        validation_batches=1,
        save_every=20,
        **_FINE_TUNING,
    )
    validations: list[dict[str, float]] = []
    steps = 0
    with progress("fine-tuning", config.steps, "step") as bar:
        for item in train_transformer(config):
            if isinstance(item, StepReport):
                steps = item.step
                bar.update(steps, f"loss {item.losses['loss']:.4f}")
                validations += [item.validation] if item.validation else []
            if time.monotonic() - start > options.fine_tune_seconds and validations:
                break
    return {
        "steps": steps,
        "seconds": round(time.monotonic() - start, 1),
        "model": str(config.out / "model"),
        "held_out_cross_entropy_first": validations[0]["cross_entropy"],
        "held_out_cross_entropy_last": validations[-1]["cross_entropy"],
    }
