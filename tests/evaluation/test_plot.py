from __future__ import annotations

import numpy as np
import pytest

from ivideogpt.evaluation.plot import _round_ticks, line_plot, line_plots


@pytest.mark.parametrize(
    "curves",
    [
        {"imagined": [30.0, 28.0, 27.5], "copy last": [26.0, 24.0, 23.0]},
        {"one value": [30.0]},
        {"flat": [20.0, 20.0]},
        {"long": [float(number) for number in range(100)], "short": [3.0, 4.0]},
    ],
)
def test_curves_are_drawn(curves: dict[str, list[float]]) -> None:
    picture = np.asarray(line_plot(curves, "PSNR, dB", "future frame")).astype(int)
    colourful = (picture.max(axis=-1) - picture.min(axis=-1)) > 60
    assert picture.shape == (400, 720, 3)
    assert colourful.sum() > 20


@pytest.mark.parametrize(("low", "high"), [(23.1, 34.9), (0.0, 0.03), (5.0, 5.0), (-3.0, 100.0)])
def test_ticks_enclose_the_values(low: float, high: float) -> None:
    ticks = _round_ticks(low, high)
    assert ticks[0] <= low < ticks[-1] or low == high == ticks[0]
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 8


def test_plots_stand_below_each_other() -> None:
    plots = {"first": {"a": [1.0, 2.0]}, "second": {"a": [3.0, 1.0], "b": [0.0, 0.5]}}
    page = np.asarray(line_plots(plots, "frame"))
    half = len(page) // 2
    assert np.array_equal(page[:half], np.asarray(line_plot(plots["first"], "first", "frame")))
    assert np.array_equal(page[half:], np.asarray(line_plot(plots["second"], "second", "frame")))
