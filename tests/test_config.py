"""Configurations are checked when they are built, and come back from JSON as they were."""

from __future__ import annotations

from typing import Any

import pytest

from ivideogpt.config import StateConfig, TokenizerConfig, TransformerConfig
from ivideogpt.errors import ConfigError

USUAL: dict[str, Any] = {
    "names": ("x", "turn"),
    "angles": (1,),
    "mean": (0.1, 0.0),
    "std": (2.0, 1.0),
    "change": (0.5, 0.1),
}


def test_sizes_of_a_state() -> None:
    config = StateConfig(**USUAL)
    assert (config.size, config.features) == (2, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (), "std": (), "change": (), "names": (), "angles": ()}, "mean is .*at least 1 item"),
        ({"std": (1.0,)}, "2 means, 1 standard deviations, 2 changes and 2 names"),
        ({"names": ("x",)}, "2 means, 2 standard deviations, 2 changes and 1 names"),
        ({"names": ("x", "x")}, "no two columns"),
        ({"angles": (2,)}, r"angles is \(2,\)"),
        ({"angles": (1, 0)}, r"angles is \(1, 0\).*rising"),
        ({"mean": (float("nan"), 0.0)}, "mean is"),
        ({"std": (0.0, 1.0)}, "std is .*above 0"),
        ({"std": (float("inf"), 1.0)}, "std is .*finite"),
        ({"change": (1.0,)}, "1 changes"),
        ({"change": (0.0, 1.0)}, "change is .*above 0"),
    ],
)
def test_illegal_states(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StateConfig.checked(**{**USUAL, **changes})


@pytest.mark.parametrize("kind", [TokenizerConfig, TransformerConfig])
def test_a_state_travels_with_its_model_as_json(kind: type[TokenizerConfig] | type[TransformerConfig]) -> None:
    for state in (None, StateConfig(**USUAL)):
        config = kind(state=state)
        back = kind.checked(**config.model_dump(mode="json"))
        assert back == config and back.state == state
    with pytest.raises(ConfigError, match="std is"):
        kind.checked(state={**USUAL, "std": (1.0, -1.0)})
