"""A prediction as files: videos, pictures, figures, and a page that shows them all."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivideogpt import drawing
from ivideogpt.evaluation import pictures
from ivideogpt.evaluation.plot import line_plot, line_plots
from ivideogpt.evaluation.prediction import Prediction, headline
from ivideogpt.files import write_text_atomically

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
img { image-rendering: pixelated; max-width: 100%; } img.plot { image-rendering: auto; max-width: 34rem; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .9rem; border-bottom: 1px solid #ddd; }
th { text-align: left; font-weight: 600; } td { font-variant-numeric: tabular-nums; } code { background: #f3f3f3; }
"""

_PLOTTED = ("rollout", "copy_last", "reconstruction")
_PUSHT_SIZE = 64


@dataclass(frozen=True)
class Section:
    """One part of a page."""

    title: str
    """Heading."""
    text: str = ""
    """A paragraph below it."""
    images: Sequence[Path] = ()
    """Pictures, relative to the page."""
    plots: Sequence[Path] = ()
    """Plots, relative to the page."""
    figures: Mapping[str, Any] | None = None
    """A table of figures, in mappings of any depth."""


def write_prediction(out: Path, prediction: Prediction, figures: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Write prediction.mp4, prediction.gif, strip.png, psnr.png, metrics.json and, for Push-T, block.png into a folder.

    Args:
        out: folder, made if need be; files of these names are replaced.
        prediction: what is shown.
        figures: JSON-ready, with everything of `prediction.metrics`.

    Returns:
        (what, path) of each file.

    Raises:
        OutputError: the disk is full or the folder is not writable.
    """
    rows = pictures.prediction_rows(prediction)
    film = pictures.side_by_side(rows, prediction.context_frames)
    curves = {name.replace("_", " "): values for name, values in figures["per_frame"]["psnr"].items()}
    plot = line_plot(curves, "PSNR of future frames, dB", "future frame")
    wrote = [
        ("video", out / "prediction.mp4"),
        ("animation", out / "prediction.gif"),
        ("strip", out / "strip.png"),
        ("PSNR per frame", out / "psnr.png"),
        ("figures", out / "metrics.json"),
    ]
    mp4, gif, strip, psnr, metrics = (path for _, path in wrote)
    pictures.write_mp4(mp4, film)
    pictures.write_gif(gif, film)
    drawing.write_png(strip, drawing.strip(rows, prediction.context_frames))
    drawing.write_png(psnr, plot)
    write_json(metrics, figures)
    if shows_a_block(prediction):
        from ivideogpt.evaluation.pusht_contact import track_predictions

        wrote.append(("block per frame", out / "block.png"))
        write_block_plot(wrote[-1][1], track_predictions([prediction]).summary())
    return wrote


def write_block_plot(path: Path, contact: Mapping[str, Any]) -> None:
    """Plot how far Push-T's block is off in a rollout, frame by frame; errors as `write_prediction`.

    Args:
        path: a PNG file.
        contact: `Contact.summary` of module `pusht_contact`.
    """
    titles = {
        "position_error_px": "Block's position error, pixels",
        "angle_error_deg": "Block's angle error, degrees",
        "iou": "Overlap with the true block, IoU",
    }
    plots = {
        title: {name.replace("_", " "): contact["per_frame"][name][figure] for name in _PLOTTED}
        for figure, title in titles.items()
    }
    drawing.write_png(path, line_plots(plots, "future frame"))


def shows_a_block(prediction: Prediction) -> bool:
    """Whether it is one of Push-T, in frames in which the block can be found."""
    return prediction.states is not None and prediction.real.shape[-1] == _PUSHT_SIZE


def prediction_section(title: str, folder: Path, prediction: Prediction) -> Section:
    """The section of a page that shows what `write_prediction` wrote to `folder`, relative to the page."""
    return Section(
        title,
        images=[folder / "prediction.gif", folder / "strip.png"],
        plots=[folder / name for name in (("psnr.png", "block.png") if shows_a_block(prediction) else ("psnr.png",))],
        figures=headline(prediction.metrics),
    )


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write JSON-ready figures; whole or not at all."""
    write_text_atomically(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def write_page(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Write an HTML page that needs nothing but the pictures beside it; whole or not at all."""
    body = "\n".join(_section_html(section) for section in sections)
    text = (
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n{body}\n</body></html>\n"
    )
    write_text_atomically(path, text)


def _section_html(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    if section.text:
        parts.append(f"<p>{html.escape(section.text)}</p>")
    for kind, paths in (("picture", section.images), ("plot", section.plots)):
        for path in paths:
            source, name = html.escape(path.as_posix()), html.escape(path.stem)
            parts.append(f"<p><img class='{kind}' src='{source}' alt='{name}'></p>")
    if section.figures is not None:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(_shown(value))}</td></tr>"
            for name, value in _flat(section.figures)
        )
        parts.append(f"<table>{rows}</table>")
    return "\n".join(parts)


def _flat(figures: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in figures.items():
        label = f"{prefix}{name.replace('_', ' ')}"
        rows += _flat(value, f"{label}, ") if isinstance(value, Mapping) else [(label, value)]
    return rows


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
