"""Configurations are checked when they are built, and come back from JSON as they were."""

from __future__ import annotations

from typing import Any

import pytest

from ivideogpt.config import DataFacts, StateConfig, TokenizerConfig, TransformerConfig
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


def test_facts_on_data_fit_together() -> None:
    with pytest.raises(ConfigError, match=r"different lengths, \{'action_names': 1, 'action_mean': 2\}"):
        DataFacts.checked(action_names=("x",), action_mean=(0.0, 1.0))
    with pytest.raises(ConfigError, match="give both or neither"):
        DataFacts.checked(action_low=(0.0,))
    with pytest.raises(ConfigError, match="must be finite, and rise"):
        DataFacts.checked(action_min=(1.0,), action_max=(0.0,))
    facts = DataFacts(step_size=5, action_names=("x", "y"))
    assert TransformerConfig(action_dim=10, data=facts).data.action_size == 2
    with pytest.raises(ConfigError, match=r"action_dim is 2, but the facts .* 2 components with step size 5"):
        TransformerConfig.checked(action_dim=2, data=facts)


def test_the_step_size_is_the_models_or_the_one_given() -> None:
    known, unknown = DataFacts(step_size=5), DataFacts()
    assert [known.steps_of(None), known.steps_of(5), unknown.steps_of(None), unknown.steps_of(3)] == [5, 5, 1, 3]
    with pytest.raises(ConfigError, match="step_size is 1, but this model was trained with step size 5"):
        known.steps_of(1)
    with pytest.raises(ConfigError, match="step_size is 0; it must be at least 1"):
        unknown.steps_of(0)


def test_newer_facts_replace_what_they_know() -> None:
    old = DataFacts(environment="pusht", step_size=2, frame_rate=10, action_names=("x", "y"), action_mean=(0.0, 1.0))
    new = old.updated(DataFacts(step_size=1, action_mean=(3.0, 4.0)))
    assert new == DataFacts(step_size=1, frame_rate=10, action_names=("x", "y"), action_mean=(3.0, 4.0))
    assert old.updated(DataFacts(action_mean=(1.0,))).action_names == ()
