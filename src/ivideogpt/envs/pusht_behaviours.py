"""Who moves the agent of Push-T: named behaviours, and mixtures of them by weight."""

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
    if not total > 0:
        raise InputError(
            f"the behaviours have the weights {dict(weights)}; at least one must be above 0. "
            f"Available: {', '.join(BEHAVIOURS)}."
        )
    # Rounded so that weights given as 6 and 4 or as 0.6 and 0.4 are the same mixture.
    return {name: round(weights[name] / total, 9) for name in BEHAVIOURS if weights.get(name, 0.0) > 0}


def draw_behaviour(mixture: Mapping[str, float], rng: np.random.Generator) -> str:
    """The name of one behaviour of a checked mixture, by its shares, from one number of `rng`."""
    number, upto = rng.random(), 0.0
    for name, share in mixture.items():
        upto += share
        if number < upto:
            return name
    return name
