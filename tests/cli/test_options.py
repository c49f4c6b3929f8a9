"""Reading options: nested ones, defaults, and refusals worded for the user."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, Field, ValidationError, model_validator

from ivideogpt.cli.options import Json, Options, describe_refusal, parse_options
from ivideogpt.errors import ConfigError


class Optimizer(Options):
    """Nested options."""

    rate: float = Field(0.1, gt=0)
    """Learning rate."""
    warm_up: int = 5
    """Steps until the rate is reached."""


class Pretend(Options):
    """Options for the tests."""

    steps: int = Field(ge=1)
    """How many steps."""
    optimizer: Optimizer = Optimizer(warm_up=7)
    """How to step."""
    quiet: bool = False
    """Say nothing."""
    as_json: Json = False
    """Print JSON."""

    @model_validator(mode="after")
    def _check(self) -> Pretend:
        if self.quiet and self.as_json:
            raise ConfigError("--quiet and --json exclude each other.")
        return self


def parse(*argv: str) -> Pretend:
    return parse_options(Pretend, prog="pretend", argv=argv)


def test_defaults_and_nested_defaults() -> None:
    assert parse("--steps", "3") == Pretend(steps=3)
    assert parse("--steps", "3").optimizer.warm_up == 7


def test_values_reach_their_fields() -> None:
    options = parse("--steps", "3", "--optimizer.rate", "0.5", "--optimizer.warm-up", "2", "--json")
    assert options == Pretend(steps=3, optimizer=Optimizer(rate=0.5, warm_up=2), as_json=True)


def test_every_refused_field_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^steps is 0, but should be greater than or equal to 1$"):
        parse("--steps", "0")
    with pytest.raises(ConfigError, match=r"^rate is -1\.0, but should be greater than 0$"):
        parse("--steps", "3", "--optimizer.rate", "-1")


def test_a_validator_speaks_for_itself() -> None:
    with pytest.raises(ConfigError, match=r"^--quiet and --json exclude each other\.$"):
        parse("--steps", "3", "--quiet", "--json")


def test_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for flag, text in [("--steps", "How many"), ("--optimizer.rate", "Learning"), ("--json", "Print JSON")]:
        assert flag in shown and text in shown
    assert "--no-quiet" not in shown


def test_a_missing_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse()
    assert stop.value.code == 2
    shown = capsys.readouterr()
    assert "--steps" in shown.err and shown.out == ""


def test_other_rules_keep_their_words() -> None:
    class Strict(BaseModel, extra="forbid"):
        pass

    with pytest.raises(ValidationError) as refusal:
        Strict.model_validate({"top_k": 3})
    assert describe_refusal(refusal.value) == "top-k is 3, Extra inputs are not permitted"
