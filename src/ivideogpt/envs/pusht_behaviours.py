"""Who moves the agent of Push-T: named behaviours, and mixtures of them by weight.

The set `pusht` moves about as people do. 400 episodes of 100 frames (200 of each behaviour), beside the published
recordings of people (DINO-WM's Push-T set, whole episodes). Agent speed: standard deviation of x and y, units a second.
Ahead: that of (target - agent) / 100. Moving: frames in which the block moves more than 4 units.

            speed     ahead       agent mean, std   block mean, std   block angle  moving
    people   75  74   0.20 0.20   237 265, 101 87   255 266,  53  57  1.96 ± 1.76
    pusht    81  80   0.20 0.20   238 295,  92 88   254 283,  70  68  2.20 ± 1.87  23 %
    slow     71  69   0.18 0.17   240 295,  90 88   254 281,  67  69  2.21 ± 1.88  23 %
    medium   93  91   0.23 0.23   237 293,  85 85   255 275,  62  66  2.01 ± 1.85  25 %
    fast    212 215   0.54 0.54   256 265, 121 119  261 286, 109 109  3.17 ± 1.79  30 %
    random  139 137   0.35 0.35   251 298, 128 122  246 292, 118 108  3.16 ± 1.87  11 %

80 % of the goal are covered at some time in 49 % of the episodes of 100 frames, in 74 % of those of 150.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ivideogpt.envs.pusht_people import MEDIUM, SLOW, PersistentPusher
from ivideogpt.envs.pusht_policies import Policy, ScriptedPusher, SmoothWanderer
from ivideogpt.errors import InputError, unknown_name

# The order matters: it decides which behaviour a seed draws.
BEHAVIOURS: dict[str, Callable[[np.random.Generator], Policy]] = {
    "slow": lambda rng: PersistentPusher(rng, SLOW),
    "medium": lambda rng: PersistentPusher(rng, MEDIUM),
    "fast": ScriptedPusher,
    "random": SmoothWanderer,
}
MIXTURES: dict[str, dict[str, float]] = {
    "pusht": {"slow": 0.88, "medium": 0.07, "fast": 0.01, "random": 0.04},
    "pusht-fast": {"fast": 0.7, "random": 0.3},
}
"""The named sets of episodes: `pusht` as people push, `pusht-fast` quicker than people and without a goal."""


def checked_mixture(weights: Mapping[str, float]) -> dict[str, float]:
    """The shares of the behaviours, in the order of `BEHAVIOURS`, without those of weight 0; they add up to 1.

    Raises:
        InputError: an unknown behaviour, a weight that is negative or not finite, or none above 0.
    """
    for name, weight in weights.items():
        if name not in BEHAVIOURS:
            raise InputError(unknown_name("behaviour", name, BEHAVIOURS))
        if not (math.isfinite(weight) and weight >= 0):
            raise InputError(f"behaviour {name!r} has weight {weight}; a weight is a finite number, 0 or more.")
    total = sum(weights.values())
    if not 0 < total < math.inf:
        raise InputError(
            f"the behaviours have the weights {dict(weights)}; at least one must be above 0, and their sum finite. "
            f"Available: {', '.join(BEHAVIOURS)}."
        )
    # Rounded so that weights given as 6 and 4 or as 0.6 and 0.4 are the same mixture.
    return {name: round(weights[name] / total, 9) for name in BEHAVIOURS if weights.get(name, 0.0) > 0}


def parse_mixture(text: str) -> dict[str, float]:
    """Weights written as `slow=0.9,random=0.1`, checked as by `checked_mixture`.

    Raises:
        InputError: a part that is not name=weight, a name given twice, or weights that `checked_mixture` refuses.
    """
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (word.strip() for word in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            raise InputError(
                f"behaviours are {text!r}, where {part.strip()!r} is not name=weight. Write them as "
                f"slow=0.9,random=0.1. Available: {', '.join(BEHAVIOURS)}."
            ) from None
        if name in weights:
            raise InputError(f"behaviours are {text!r}, where {name!r} has two weights; give it one.")
        weights[name] = weight
    return checked_mixture(weights)


def draw_behaviour(mixture: Mapping[str, float], rng: np.random.Generator) -> str:
    """The name of one behaviour of a checked mixture, by its shares, from one number of `rng`."""
    number, upto = rng.random(), 0.0
    for name, share in mixture.items():
        upto += share
        if number < upto:
            return name
    return name
