"""A line plot drawn with Pillow: figures frame by frame, with no plotting library to install."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw

from ivideogpt.drawing import font

_SIZE = (720, 400)
_LEFT, _TOP, _RIGHT, _BOTTOM = 56, 40, 150, 48  # margins, pixels
_SMOOTH = 2  # drawn larger by this and shrunk, so that lines are smooth
_TEXT_SIZE, _LINE_WIDTH = 14, 2
_LABEL_SPACING = 18
_PAPER, _INK, _FAINT, _GRID = (255, 255, 255), (30, 30, 30), (110, 110, 110), (228, 228, 228)
# Distinct for colour-blind readers too.
_COLOURS = ((0, 114, 178), (130, 130, 130), (0, 140, 100), (213, 94, 0), (170, 90, 150))


def line_plot(curves: Mapping[str, Sequence[float]], title: str, x_label: str) -> Image.Image:
    """Curves over 1, 2, 3 ..., each named at its right end.

    Args:
        curves: finite values by name, at least one value each.
        title: what the values are, with their unit.
        x_label: what is counted.
    """
    picture = Image.new("RGB", (_SIZE[0] * _SMOOTH, _SIZE[1] * _SMOOTH), _PAPER)
    axes = _Axes(ImageDraw.Draw(picture), curves)
    axes.frame(title, x_label)
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(curves)}
    for name, values in curves.items():
        axes.line(values, colours[name])
    axes.name_lines(curves, colours)
    return picture.resize(_SIZE, Image.Resampling.LANCZOS)


def line_plots(plots: Mapping[str, Mapping[str, Sequence[float]]], x_label: str) -> Image.Image:
    """Several line plots below each other, by title; see `line_plot`."""
    pictures = [line_plot(curves, title, x_label) for title, curves in plots.items()]
    page = Image.new("RGB", (_SIZE[0], _SIZE[1] * len(pictures)), _PAPER)
    for number, picture in enumerate(pictures):
        page.paste(picture, (0, number * _SIZE[1]))
    return page


class _Axes:
    """Maps values to pixels and draws there; coordinates are those of the final picture."""

    def __init__(self, draw: ImageDraw.ImageDraw, curves: Mapping[str, Sequence[float]]) -> None:
        values = [value for curve in curves.values() for value in curve]
        self._draw = draw
        self._count = max(len(curve) for curve in curves.values())
        self._ticks = _round_ticks(min(values), max(values))

    def frame(self, title: str, x_label: str) -> None:
        """Title, grid and tick labels."""
        for tick in self._ticks:
            y = self._y(tick)
            self._segment([(_LEFT, y), (_SIZE[0] - _RIGHT, y)], _GRID, 1)
            self._text((_LEFT - 8, y), f"{tick:g}", _FAINT, "rm")
        step = math.ceil(self._count / 16)
        for number in range(1, self._count + 1, step):
            self._text((self._x(number), _SIZE[1] - _BOTTOM + 14), str(number), _FAINT, "mm")
        self._text((_LEFT, _TOP / 2), title, _INK, "lm")
        self._text(((_LEFT + _SIZE[0] - _RIGHT) / 2, _SIZE[1] - 12), x_label, _FAINT, "mm")

    def line(self, values: Sequence[float], colour: tuple[int, int, int]) -> None:
        """One curve, with a dot at every value."""
        points = [(self._x(number), self._y(value)) for number, value in enumerate(values, start=1)]
        self._segment(points, colour, _LINE_WIDTH)
        for x, y in points:
            box = [(v + d) * _SMOOTH for d in (-2.5, 2.5) for v in (x, y)]
            self._draw.ellipse(box, fill=colour)

    def name_lines(self, curves: Mapping[str, Sequence[float]], colours: Mapping[str, tuple[int, int, int]]) -> None:
        """Names at the right ends, from the top down, moved apart where they would touch."""
        lowest_free = -math.inf
        for name in sorted(curves, key=lambda name: -curves[name][-1]):
            y = max(self._y(curves[name][-1]), lowest_free)
            lowest_free = y + _LABEL_SPACING
            self._text((_SIZE[0] - _RIGHT + 10, y), name, colours[name], "lm")

    def _x(self, number: int) -> float:
        width = _SIZE[0] - _LEFT - _RIGHT
        return _LEFT + width * ((number - 1) / (self._count - 1) if self._count > 1 else 0.5)

    def _y(self, value: float) -> float:
        low, high = self._ticks[0], self._ticks[-1]
        return _SIZE[1] - _BOTTOM - (value - low) / (high - low) * (_SIZE[1] - _TOP - _BOTTOM)

    def _segment(self, points: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: int) -> None:
        scaled = [(x * _SMOOTH, y * _SMOOTH) for x, y in points]
        self._draw.line(scaled, fill=colour, width=width * _SMOOTH, joint="curve")

    def _text(self, place: tuple[float, float], text: str, fill: tuple[int, int, int], anchor: str) -> None:
        x, y = place
        self._draw.text((x * _SMOOTH, y * _SMOOTH), text, fill=fill, font=font(_TEXT_SIZE * _SMOOTH), anchor=anchor)


def _round_ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose `low` .. `high`."""
    rough = max(high - low, 1e-3) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [number * step for number in range(first, max(last, first + 1) + 1)]
