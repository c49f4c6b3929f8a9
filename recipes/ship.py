"""Round a trained world model, or a tokenizer alone, to bfloat16, as it is shipped.

    python recipes/ship.py --model runs/pusht-64/transformer/model --out runs/pusht-64/pusht-64

The folder it writes is what lies in src/ivideogpt/models/, beside a model card.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
import tyro

from ivideogpt import hub
from ivideogpt.cli.console import finish
from ivideogpt.errors import InputError


@dataclasses.dataclass(frozen=True)
class Options:
    """What is shipped."""

    model: Path
    """A trained model's folder."""
    out: Path
    """Folder to write."""
    overwrite: bool = False
    """Replace the model in a folder that is not empty."""


def main(options: Options) -> None:
    model = hub.load(options.model)
    rounded = {
        name: (part[0], hub.as_dtype(part[1], torch.bfloat16))
        for name in ("tokenizer", "transformer")
        if (part := getattr(model, name)) is not None
    }
    hub.save(options.out, dataclasses.replace(model, **rounded), overwrite=options.overwrite)
    size = sum(file.stat().st_size for file in options.out.glob("*.safetensors"))
    finish([(f"model, {size / 1e6:.1f} MB", options.out)], [f"ivideogpt info {options.out}"])


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, description=__doc__))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
