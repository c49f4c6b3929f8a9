"""From the command line to validated options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_type_hints

import tyro
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from tyro.constructors import (
    MISSING_NONPROP,
    ConstructorRegistry,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from ivideogpt.errors import ConfigError

AnyOptions = TypeVar("AnyOptions")

Json = Annotated[bool, tyro.conf.arg(name="json")]
"""Type of the field `as_json`, the flag `--json` of every command that reports figures."""


class Options(BaseModel):
    """Base of every command's options. The text under a field is its help; bounds are checked by pydantic."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def parse_options(kind: type[AnyOptions], prog: str, argv: Sequence[str]) -> AnyOptions:
    """Read `argv` into a `kind`. For `--help` and for a flag that does not exist, say what there is and exit.

    Raises:
        ConfigError: a value that a field or a validator refuses.
        SystemExit: 0 after `--help`, 2 after a flag that does not exist or a value of the wrong type.
    """
    registry = ConstructorRegistry()
    registry.struct_rule(_pydantic_rule)
    flags = (tyro.conf.FlagCreatePairsOff,)
    try:
        return tyro.cli(kind, prog=prog, description=kind.__doc__, args=argv, config=flags, registry=registry)
    except _RefusedError as error:
        raise ConfigError(describe_refusal(error.refusal)) from error.refusal


def describe_refusal(refusal: ValidationError) -> str:
    """One line per refused field: its name, the value given, the rule."""
    return "; ".join(_describe(detail) for detail in refusal.errors())


def _describe(detail: ErrorDetails) -> str:
    field = ".".join(str(part) for part in detail["loc"]).replace("_", "-")
    if detail["type"] == "value_error":
        reason = str(detail["ctx"]["error"])
        return f"{field}: {reason}" if field else reason
    rule = detail["msg"].replace("Input should", "but should", 1)
    return f"{field} is {detail['input']!r}, {rule}"


class _RefusedError(Exception):
    """Carries pydantic's refusal past tyro, which words it for programmers."""

    def __init__(self, refusal: ValidationError) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


def _pydantic_rule(info: StructTypeInfo) -> StructConstructorSpec | None:
    model = info.type
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None

    def build(**values: Any) -> BaseModel:
        try:
            return model(**values)
        except ValidationError as refusal:
            raise _RefusedError(refusal) from refusal

    hints = get_type_hints(model, include_extras=True)
    fields = [
        StructFieldSpec(name, hints[name], _default(info.default, name, field), field.description)
        for name, field in model.model_fields.items()
    ]
    return StructConstructorSpec(instantiate=build, fields=tuple(fields))


def _default(parent: Any, name: str, field: FieldInfo) -> Any:
    if isinstance(parent, BaseModel):
        return getattr(parent, name)
    return MISSING_NONPROP if field.is_required() else field.get_default(call_default_factory=True)
