"""What a run writes down as it goes: TensorBoard scalars and pictures, and the pictures as files too."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ivideogpt.files import readable_write_errors, write_atomically


class RunLog:
    """Averages losses between two entries and writes them.

    Args:
        run: run folder; `tensorboard/` and `pictures/` are made inside.
        start: step the run continues from; later entries of an interrupted run are dropped.
        settings: what the run was told, to be read beside its curves.

    Raises:
        OutputError: everything that writes does, where the disk is full.
    """

    def __init__(self, run: Path, start: int, settings: str) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only training needs it

        self._pictures, self._curves = run / "pictures", run / "tensorboard"
        with readable_write_errors(self._curves):
            self._writer = SummaryWriter(str(self._curves), purge_step=start + 1)
            self._writer.add_text("settings", f"```\n{settings}\n```", start)
        self._sums: dict[str, float] = {}
        self._count, self._since = 0, time.monotonic()

    def add(self, losses: dict[str, float]) -> None:
        """Count the losses of one step."""
        self._count += 1
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Write the mean losses since the last entry, and other figures."""
        means = {name: total / self._count for name, total in self._sums.items()}
        now = time.monotonic()
        means["steps_per_second"] = self._count / max(now - self._since, 1e-9)
        with readable_write_errors(self._curves):
            for name, value in {**means, **figures}.items():
                self._writer.add_scalar(f"train/{name}", value, step)
        self._sums, self._count, self._since = {}, 0, now

    def write_validation(self, step: int, figures: dict[str, float], picture: Tensor) -> None:
        """Write figures on held-out episodes and a picture (3,H,W) in [0,1]."""
        with readable_write_errors(self._curves):
            for name, value in figures.items():
                self._writer.add_scalar(f"validation/{name}", value, step)
            self._writer.add_image("validation/picture", picture, step)
            self._writer.flush()
        pixels = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(np.ascontiguousarray(pixels))
        write_atomically(self._pictures / f"step_{step:08d}.png", image.save)

    def close(self) -> None:
        """Flush and close."""
        with readable_write_errors(self._curves):
            self._writer.close()
