"""`--resume --out RUN` is enough: the run knows its settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ivideogpt.training.checkpoint import CONFIG_FILE

_OF_ONE_CALL = {"out", "resume", "overwrite", "max_minutes"}


def with_settings_of_run(kind: type[BaseModel], argv: Sequence[str]) -> list[str]:
    """What follows a training's command, and behind them what its run was told and they leave out.

    Args:
        kind: the command's options.
        argv: behind the command. Without --resume, or without a run in --out, they stay as they are.
    """
    given = {word.split("=", 1)[0] for word in argv if word.startswith("--")}
    out = _value_of("--out", argv)
    if "--resume" not in given or out is None:
        return list(argv)
    try:
        saved = dict(json.loads((Path(out) / CONFIG_FILE).read_text()))
    except (OSError, ValueError, TypeError):
        return list(argv)  # whoever reads them says that there is no run
    more: list[str] = []
    for name, value in saved.items():
        flag = f"--{name.replace('_', '-')}"
        if name in kind.model_fields and name not in _OF_ONE_CALL and flag not in given:
            more += _as_words(kind, name, flag, value)
    return [*argv, *more]


def _as_words(kind: type[BaseModel], name: str, flag: str, value: Any) -> list[str]:
    field = kind.model_fields[name]
    usual = None if field.is_required() else field.get_default(call_default_factory=True)
    if value is None or value == json.loads(json.dumps(usual, default=str)):
        return []
    if isinstance(value, bool):
        return [flag] if value else [f"--no-{flag.removeprefix('--')}"]
    return [flag, *map(str, value if isinstance(value, list) else [value])]


def _value_of(flag: str, argv: Sequence[str]) -> str | None:
    for word, following in zip(argv, [*argv[1:], ""], strict=True):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1]
    return None
