"""`ivideogpt predict`: what a model imagines beside what really happened, as pictures and figures."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions
from ivideogpt.errors import EpisodeError, InputError

if TYPE_CHECKING:
    from ivideogpt.config import SamplingConfig
    from ivideogpt.data.episode import Episode
    from ivideogpt.inference import Imagines


_LONGEST_NAME = 120  # of a folder; file systems refuse 256


class Options(BaseOptions):
    """Imagine the future of one recorded episode, and show it beside what really happened.

    Writes prediction.mp4, prediction.gif, strip.png, psnr.png and metrics.json. The figures stand between copying the
    last context frame (the baseline) and the tokenizer's own reconstruction (the upper bound); shuffled actions show
    how much the model follows them.
    """

    model: str
    """A shipped model, a model folder, or a Hub id."""
    episode: str
    """An episode file (.npz), an episode of a store (STORE#NAME), or pusht:SEED to record a Push-T episode on the spot;
    seeds from 900000 are held out."""
    out: Path | None = None
    """Folder for what is written; outputs/predict/<model>/<episode> where left out."""
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
    step_size: int | None = Field(None, ge=1)
    """Recorded frames from one frame of the prediction to the next; with k of them a step takes k actions of the
    episode, oldest first. The model's own where left out, 1 where it does not know; it cannot be another one."""
    camera_key: str | None = None
    """Key of the frames in the episode file; the model's own where left out, or image."""
    action_key: str | None = None
    """Key of the actions in the episode file; the model's own where left out, or action."""
    action_shift: int | None = Field(None, ge=0)
    """How many rows late the actions of the episode file are: row j + N is what is done at frame j. The model's own
    where left out, or 0."""
    goal: bool | None = None
    """Whether the model's first context frame is a goal, for a folder in the official layout, which does not say it;
    known of the published ids."""
    trained_frames: int | None = Field(None, ge=2)
    """Frames of the segments that the model was trained on, for a folder in the official layout, as above."""
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

    out = options.out or Path("outputs/predict") / _name_of_model(options.model) / _name_of(options.episode)
    require_free_output(out, overwrite=options.overwrite)
    loaded = WorldModel.from_pretrained(
        options.model,
        goal=options.goal,
        trained_frames=options.trained_frames,
        device=choose_device(options.device),
    )
    model = loaded.for_inference(options.precision)
    step_size = model.facts.steps_of(options.step_size)
    episode = _episode(options, model, step_size)
    sampling = _sampling(options, model)
    tell(f"imagining {options.horizon} frames of {options.episode} with {options.model} in {model.precision}")
    prediction = predict_episode(
        model,
        episode,
        start=options.start,
        horizon=options.horizon,
        step_size=step_size,
        seed=options.seed,
        sampling=sampling,
    )
    figures = {
        "model": options.model,
        "episode": options.episode,
        "start": options.start,
        "step_size": step_size,
        "seed": options.seed,
        "precision": model.precision,
        "sampling": sampling.model_dump(),
        **prediction.metrics,
    }
    wrote = write_prediction(out, prediction, figures)
    report(figures if options.as_json else headline(prediction.metrics), options.as_json)
    finish(wrote, _next_steps(options), options.as_json)


def _name_of_model(model: str) -> str:
    """A folder's name for a model: a run folder's `model/` is called as the run is."""
    words = _words(Path(model))
    return _joined(words[:-1] if len(words) > 1 and words[-1] == "model" else words)


def _name_of(episode: str) -> str:
    """A folder's name for an episode; two data folders hold episodes of one name, so it has the folder's too."""
    seed = _pusht_seed(episode)
    return _joined(_words(Path(episode.replace("#", "/")).with_suffix(""))) if seed is None else f"pusht-{seed}"


def _joined(words: list[str]) -> str:
    return "-".join(words)[-_LONGEST_NAME:].lstrip("-")


def _words(path: Path) -> list[str]:
    """What a path's parts are called; at least one, also of a path such as `.`."""
    words = [part for part in path.parts if part not in (path.anchor, ".", "..")]
    return words or [path.absolute().resolve().name or "root"]


def _pusht_seed(episode: str) -> int | None:
    """The seed of `pusht:SEED`; None for a file."""
    if not episode.startswith("pusht:"):
        return None
    if re.fullmatch(r"pusht:\d+", episode) is None:
        raise InputError(f"episode {episode!r} names no seed. Give a whole number, for example pusht:900000.")
    return int(episode.removeprefix("pusht:"))


def _episode(options: Options, model: Imagines, step_size: int) -> Episode:
    from ivideogpt.data.sources.npz import read_episode
    from ivideogpt.data.store import Store, as_stored
    from ivideogpt.envs.record import pusht_episode

    seed = _pusht_seed(options.episode)
    if seed is None:
        camera_key = options.camera_key or model.facts.camera_key or "image"
        action_key = options.action_key or model.facts.action_key or "action"
        shift = model.facts.action_shift if options.action_shift is None else options.action_shift
        takes_actions = model.transformer.config.action_dim is not None
        try:
            used = action_key if takes_actions else None
            stored = as_stored(options.episode)
            if stored is not None:
                store = Store(stored[0], camera_key, used, action_shift=shift or 0)
                return store.read(store.index(stored[1]))
            return read_episode(options.episode, camera_key, used, action_shift=shift or 0)
        except EpisodeError as error:
            own = [
                key for key in (model.facts.camera_key, model.facts.action_key) if key and f"key {key!r}" in str(error)
            ]
            if not own:
                raise
            hint = f"{own[0]!r} is what the model's own data call it; --camera-key and --action-key name another."
            raise EpisodeError(f"{error} {hint}") from error
    frames = model.layout.context_frames + options.horizon
    length = options.start + step_size * (frames - 1) + 1
    return pusht_episode(seed, length)


def _sampling(options: Options, model: Imagines) -> SamplingConfig:
    """The model's own way to draw tokens, with what the options change."""
    given = {"temperature": options.temperature, "top_k": options.top_k, "top_p": options.top_p}
    return model.sampling.model_copy(update={k: v for k, v in given.items() if v is not None})


def _next_steps(options: Options) -> list[str]:
    """Another episode of the same kind, where there is one, and another future of this one."""
    other = _another(options.episode)
    steps = [] if other is None else [_command(options, episode=other, out=None, overwrite=False)]
    return [*steps, f"{_command(options, seed=options.seed + 1, overwrite=True)}   # another future"]


def _another(episode: str) -> str | None:
    """The next Push-T seed, episode of the store, or file of the folder."""
    from ivideogpt.data.store import as_stored

    seed = _pusht_seed(episode)
    if seed is not None:
        return f"pusht:{seed + 1}"
    stored = as_stored(episode)
    if stored is not None:
        return _another_stored(*stored)
    path = Path(episode)
    files = sorted(file for file in path.parent.glob("*.npz") if not file.name.startswith("."))
    others = [file for file in files if file.name > path.name] + [file for file in files if file.name < path.name]
    return str(others[0]) if others else None


def _another_stored(folder: Path, name: str) -> str | None:
    """The next episode of a store."""
    from ivideogpt.data.store import Store, any_camera, stored_name

    store = Store(folder, any_camera(folder), action_key=None)
    following = store.name((store.index(name) + 1) % len(store))
    return stored_name(folder, following) if following != name else None


def _command(options: Options, **changes: Any) -> str:
    """The command line of these options with some changed, quoted for a shell."""
    words = ["ivideogpt", "predict"]
    for name, field in Options.model_fields.items():
        value = changes.get(name, getattr(options, name))
        if name != "as_json" and value != field.default:
            words += [f"--{name.replace('_', '-')}", *([] if name == "overwrite" else [str(value)])]
    return shlex.join(words)
