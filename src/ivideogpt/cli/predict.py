"""`ivideogpt predict`: what a model imagines beside what really happened, as pictures and figures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import InputError

if TYPE_CHECKING:
    from ivideogpt.config import SamplingConfig
    from ivideogpt.data.episode import Episode
    from ivideogpt.inference import Imagines


class Options(BaseOptions):
    """Imagine the future of one recorded episode, and show it beside what really happened.

    Writes prediction.mp4, prediction.gif, strip.png, psnr.png and metrics.json. The figures stand between copying the
    last context frame (the floor) and the tokenizer's own reconstruction (the ceiling); shuffled actions show how much
    the model heeds them.
    """

    model: str
    """A shipped model, a model folder, or a Hub id."""
    episode: str
    """An episode file (.npz), or pusht:SEED to record a Push-T episode on the spot; seeds from 900000 are held out."""
    out: Path | None = None
    """Folder for what is written; outputs/predict/<episode> where left out."""
    start: int = Field(0, ge=0)
    """First context frame."""
    horizon: int = Field(14, ge=1)
    """Future frames to imagine."""
    seed: int = Field(0, ge=0)
    """Decides every draw."""
    temperature: float | None = Field(None, ge=0)
    """Divides the logits, 0 takes the most likely token; the model's own value where left out."""
    top_k: int | None = Field(None, ge=0)
    """Only the k most likely tokens are drawn, 0 for all; the model's own value where left out."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Only the most likely tokens that make up this share are drawn, 1 for all; the model's own value where left
    out."""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """What is computed in; auto is bf16 where the hardware multiplies it, else float32."""
    step_size: int = Field(1, ge=1)
    """Recorded frames from one frame of the prediction to the next, as in training; with k of them a step takes k
    actions of the episode, oldest first."""
    camera_key: str = "image"
    """Key of the frames in the episode file."""
    action_key: str = "action"
    """Key of the actions in the episode file."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:n."""
    overwrite: bool = False
    """Write into a folder that is not empty."""
    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Predict, write and report."""
    from ivideogpt.devices import choose_device
    from ivideogpt.evaluation.prediction import headline, predict_episode
    from ivideogpt.evaluation.report import write_prediction
    from ivideogpt.files import require_free_output
    from ivideogpt.world_model import WorldModel

    out = options.out or Path("outputs/predict") / _name_of(options.episode)
    require_free_output(out, overwrite=options.overwrite)
    loaded = WorldModel.from_pretrained(options.model, device=choose_device(options.device))
    model = loaded.for_inference(options.precision)
    episode = _episode(options, model)
    sampling = _sampling(options, model)
    tell(f"imagining {options.horizon} frames of {options.episode} with {options.model} in {model.precision}")
    prediction = predict_episode(
        model,
        episode,
        start=options.start,
        horizon=options.horizon,
        step_size=options.step_size,
        seed=options.seed,
        sampling=sampling,
    )
    figures = {
        "model": options.model,
        "episode": options.episode,
        "start": options.start,
        "step_size": options.step_size,
        "seed": options.seed,
        "precision": model.precision,
        "sampling": sampling.model_dump(),
        **prediction.metrics,
    }
    wrote = write_prediction(out, prediction, figures)
    report(figures if options.as_json else headline(prediction.metrics), options.as_json)
    finish(wrote, _next_steps(options), options.as_json)


def _name_of(episode: str) -> str:
    seed = _pusht_seed(episode)
    return Path(episode).stem if seed is None else f"pusht-{seed}"


def _pusht_seed(episode: str) -> int | None:
    """The seed of `pusht:SEED`; None for a file."""
    if not episode.startswith("pusht:"):
        return None
    if re.fullmatch(r"pusht:\d+", episode) is None:
        raise InputError(f"episode {episode!r} names no seed. Give a whole number, for example pusht:900000.")
    return int(episode.removeprefix("pusht:"))


def _episode(options: Options, model: Imagines) -> Episode:
    from ivideogpt.data.sources.npz import read_episode
    from ivideogpt.envs.record import pusht_episode

    seed = _pusht_seed(options.episode)
    if seed is None:
        takes_actions = model.transformer.config.action_dim is not None
        return read_episode(options.episode, options.camera_key, options.action_key if takes_actions else None)
    frames = model.layout.context_frames + options.horizon
    length = options.start + options.step_size * (frames - 1) + 1
    return pusht_episode(seed, length)


def _sampling(options: Options, model: Imagines) -> SamplingConfig:
    """The model's own way to draw tokens, with what the options change."""
    given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return model.sampling.model_copy(update={k: v for k, v in given.items() if v is not None})


def _next_steps(options: Options) -> list[str]:
    seed = _pusht_seed(options.episode)
    other = f"pusht:{seed + 1}" if seed is not None else "pusht:900000"
    command = f"ivideogpt predict --model {options.model} --episode"
    place = "" if options.out is None else f" --out {options.out}"
    return [
        f"{command} {other}",
        f"{command} {options.episode} --seed {options.seed + 1}{place} --overwrite   # another future",
    ]
