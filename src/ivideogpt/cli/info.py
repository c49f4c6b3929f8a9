"""`ivideogpt info`: what a model is."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from pydantic import Field
from tyro.conf import Positional

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions

if TYPE_CHECKING:
    from ivideogpt.config import TokenizerConfig, TransformerConfig
    from ivideogpt.hub import Checkpoint

_MOST = 8  # components of an action that a line shows


class Options(BaseOptions):
    """Say what a model is: its sizes, frames and tokens, its actions, and the data it was trained on."""

    model: Positional[str] = "pusht-64"
    """A shipped model, a model folder (native or official layout), or a Hub id."""
    goal: bool | None = None
    """Whether the model's first context frame is a goal, for a folder in the official layout, which does not say it;
    known of the published ids."""
    trained_frames: int | None = Field(None, ge=2)
    """Frames of the segments that the model was trained on, for a folder in the official layout, as above."""
    config: bool = False
    """Print the whole configuration instead."""
    card: bool = False
    """Print the model card too."""
    as_json: Json = False
    """Print the whole configuration as JSON."""


def run(options: Options) -> None:
    """Look the model up and describe it."""
    from ivideogpt import hub

    found = hub.load(options.model, goal=options.goal, trained_frames=options.trained_frames)
    folder = hub.resolve(options.model)
    figures: dict[str, Any] = {"model": options.model, "folder": folder}
    figures |= _everything(found) if options.config or options.as_json else _in_short(found)
    report({**figures, "shipped_models": hub.shipped_models()}, options.as_json)
    card = folder / "README.md"
    if options.card and card.is_file():
        tell(card.read_text())
    finish(next_steps=_next_steps(options.model, found), as_json=options.as_json)


def _next_steps(model: str, found: Checkpoint) -> list[str]:
    """A prediction, where it is known what episodes the model can take."""
    from ivideogpt.hub import shipped_models

    if found.transformer is None or (
        found.transformer[0].data.environment != "pusht" and model not in shipped_models()
    ):
        return []
    return [shlex.join(["ivideogpt", "predict", "--model", model, "--episode", "pusht:900000"])]


def _everything(found: Checkpoint) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, part in (("tokenizer", found.tokenizer), ("transformer", found.transformer)):
        if part is not None:
            config, weights = part
            figures[name] = {
                "parameters": sum(tensor.numel() for tensor in weights.values()),
                "stored_as": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}),
                **config.model_dump(mode="json"),
            }
    if found.transformer is not None:
        figures["sampling"] = found.sampling.model_dump()
    return figures


def _in_short(found: Checkpoint) -> dict[str, str]:
    lines: dict[str, str] = {}
    for name, part in (("tokenizer", found.tokenizer), ("transformer", found.transformer)):
        if part is not None:
            millions = sum(tensor.numel() for tensor in part[1].values()) / 1e6
            stored = ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in part[1].values()}))
            lines[name] = f"{millions:.3g} M parameters in {stored}"
    if found.tokenizer is not None:
        lines |= _frames(found.tokenizer[0])
    if found.transformer is not None:
        lines |= _imagines(found.transformer[0])
        lines |= _actions(found.transformer[0])
        lines |= _data(found.transformer[0])
        sampling = found.sampling
        lines["sampling"] = f"temperature {sampling.temperature:g}, top-k {sampling.top_k}, top-p {sampling.top_p:g}"
    return lines


def _frames(config: TokenizerConfig) -> dict[str, str]:
    layout = config.layout
    return {
        "frames": f"{config.resolution} x {config.resolution} pixels",
        "tokens": f"{layout.context_tokens} a context frame of {layout.context_codes} codes, "
        f"{layout.dynamics_tokens} a future frame of {layout.dynamics_codes} ({config.quantizer})",
    }


def _imagines(config: TransformerConfig) -> dict[str, str]:
    layout, trained = config.layout, config.trained_frames
    horizon = "not known" if trained is None else str(trained - layout.context_frames)
    first = " (the first is the goal)" if layout.goal else ""
    also = [name for name, has in (("rewards", config.reward), ("states", config.state is not None)) if has]
    return {
        "context": f"{layout.context_frames} frames{first}",
        "trained horizon": f"{horizon} frames",
        "predicts": " and ".join(["frames", *also]),
    }


def _actions(config: TransformerConfig) -> dict[str, str]:
    data = config.data
    if config.action_dim is None:
        return {"actions": "none"}
    steps = data.steps_of(None)
    block = f", {steps} of {config.action_dim // steps} one after another" if steps > 1 else ""
    names = f": {', '.join(data.action_names)}" if data.action_names else ""
    lines = {"actions": f"{config.action_dim} numbers a step{block}{names}"}
    bounds = _ranges(data.action_low, data.action_high)
    limit = "" if config.action_limit is None else f"at most {config.action_limit:g} in size"
    if bounds or limit:
        lines["action bounds"] = bounds or limit
    if data.action_mean:
        spread = " ".join(
            f"{m:.3g}±{s:.2g}" for m, s in list(zip(data.action_mean, data.action_std, strict=True))[:_MOST]
        )
        lines["actions seen"] = f"{_ranges(data.action_min, data.action_max)}, mean±std {spread}"
    return lines


def _data(config: TransformerConfig) -> dict[str, str]:
    data = config.data
    step = "not known, taken as 1" if data.step_size is None else str(data.step_size)
    parts = [data.environment, f"step size {step}", data.frame_rate and f"{data.frame_rate:g} recorded frames a second"]
    keys = [key for key in (data.camera_key, data.action_key, data.state_key) if key is not None]
    late = [f"actions {data.action_shift} rows late"] if data.action_shift else []
    return {"data": ", ".join([part for part in parts if part] + ([f"keys {' '.join(keys)}"] if keys else []) + late)}


def _ranges(low: tuple[float, ...], high: tuple[float, ...]) -> str:
    pairs = [f"[{a:.3g}, {b:.3g}]" for a, b in zip(low, high, strict=True)]
    return " ".join(pairs[:_MOST]) + (" ..." if len(pairs) > _MOST else "")
