"""Episodes that are too short for the segments of a training: found before it begins, and said."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ivideogpt.data.segment import SegmentSpec
from ivideogpt.errors import EpisodeError


class LengthSource(Protocol):
    """A numbered collection of episodes that knows their lengths without reading them."""

    def length(self, index: int) -> int:
        """Frames of episode `index`."""
        ...


class _Fit(NamedTuple):
    """Episodes by what fits into them: whole segments, a part of one, not even its context."""

    whole: list[int]
    padded: list[int]
    useless: list[int]


def long_enough(
    source: LengthSource, training: Sequence[int], held_out: Sequence[int], spec: SegmentSpec, *, shrink: bool
) -> tuple[list[int], list[int]]:
    """The episodes that a segment's context fits into; warns of those left out and of those that will be padded.

    Args:
        source: knows the lengths.
        training, held_out: episodes to train on and to validate on.
        spec: what a segment consists of.
        shrink: whether short episodes shrink the step, see `data.segment`.

    Raises:
        EpisodeError: no training episode holds a whole segment, no held-out one its context, or a file is damaged.
    """
    lengths = {index: source.length(index) for index in (*training, *held_out)}
    fits = [_fit(lengths, indices, spec, shrink) for indices in (training, held_out)]
    shortest, longest = min(lengths.values()), max(lengths.values())
    spanned = (spec.drawn_frames - 1) * (1 if shrink else spec.step_size) + 1
    if not fits[0].whole or not fits[1].whole + fits[1].padded:
        which = "training" if not fits[0].whole else "held-out"
        raise EpisodeError(
            f"all {which} episodes are too short: a segment of {spec.drawn_frames} frames spans {spanned} recorded "
            f"ones, and the episodes have {shortest} to {longest}. Take shorter segments or a smaller step size, or "
            "record longer episodes."
        )
    useless, padded = (sum(len(getattr(fit, kind)) for fit in fits) for kind in ("useless", "padded"))
    if useless:
        warnings.warn(
            f"{useless} of {len(lengths)} episodes are left out: a segment's context of {spec.context_frames} frames "
            f"does not fit into them (the shortest has {shortest}).",
            stacklevel=2,
        )
    if padded:
        warnings.warn(
            f"{padded} of {len(lengths)} episodes are shorter than a segment, which spans {spanned} recorded frames "
            f"(the shortest has {shortest}): their last frame is repeated, and what is repeated does not count.",
            stacklevel=2,
        )
    return sorted(fits[0].whole + fits[0].padded), sorted(fits[1].whole + fits[1].padded)


def _fit(lengths: dict[int, int], indices: Sequence[int], spec: SegmentSpec, shrink: bool) -> _Fit:
    fit = _Fit([], [], [])
    for index in indices:
        try:
            real = spec.real_frames(lengths[index], shrink=shrink)
        except EpisodeError:
            fit.useless.append(index)
            continue
        (fit.whole if real == spec.drawn_frames else fit.padded).append(index)
    return fit
