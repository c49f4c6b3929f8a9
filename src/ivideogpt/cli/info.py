"""`ivideogpt info`: what a model is."""

from __future__ import annotations

from typing import Any

from tyro.conf import Positional

from ivideogpt.cli.console import finish, report, tell
from ivideogpt.cli.options import Json
from ivideogpt.cli.options import Options as BaseOptions


class Options(BaseOptions):
    """Say what a model is: its parts, sizes and token layout, and how it was trained where it says so."""

    model: Positional[str] = "pusht-64"
    """A shipped model, a model folder (native or official layout), or a Hub id."""
    card: bool = False
    """Print the model card too."""
    as_json: Json = False
    """Print the figures as JSON."""


def run(options: Options) -> None:
    """Look the model up and describe it."""
    from ivideogpt import hub

    found = hub.load(options.model)
    folder = hub.resolve(options.model)
    figures: dict[str, Any] = {"model": options.model, "folder": folder, "shipped_models": hub.shipped_models()}
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
    report(figures, options.as_json)
    card = folder / "README.md"
    if options.card and card.is_file():
        tell(card.read_text())
    next_steps = [f"ivideogpt predict --model {options.model} --episode pusht:900000"]
    finish(next_steps=next_steps if found.transformer is not None else [], as_json=options.as_json)
