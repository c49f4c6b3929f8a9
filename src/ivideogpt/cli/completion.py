"""What a shell offers behind `ivideogpt`: commands, their options, and the values of those that have few.

`complete -o default -C 'ivideogpt complete' ivideogpt` makes bash ask; zsh does too after `autoload bashcompinit`. The
shell tells what has been typed in COMP_LINE and COMP_POINT, and reads the answers line by line.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from tyro.conf import Positional


def complete(commands: Iterable[str]) -> None:
    """Print what may stand where the cursor is; nothing where that is a file, which the shell knows better."""
    line = os.environ.get("COMP_LINE", "")
    typed = line[: int(os.environ.get("COMP_POINT", len(line)))]
    words = typed.split(" ")
    words, begun = [word for word in words[1:-1] if word], words[-1]
    print("\n".join(answer for answer in answers(list(commands), words) if answer.startswith(begun)))


def answers(commands: Sequence[str], words: Sequence[str]) -> list[str]:
    """What may follow these whole words.

    Args:
        commands: all commands, some of them two words.
        words: those behind `ivideogpt`.
    """
    following = sorted({rest[0] for name in commands if (rest := _behind(name.split(), words))})
    command = max((name for name in commands if list(words[: name.count(" ") + 1]) == name.split()), default=None)
    if command is None:
        return following
    named = {name: f for name, f in _options(command).model_fields.items() if Positional not in f.metadata}
    fields = {f"--{_flag(name)}": field.annotation for name, field in named.items()}
    last = words[-1]
    if last in fields and fields[last] is not bool:
        return _choices(fields[last])
    return [*following, *(flag for flag in fields if flag not in words), "--help"]


def _behind(name: Sequence[str], words: Sequence[str]) -> Sequence[str]:
    """The words of a name that are still to be typed; none where other words have been."""
    return name[len(words) :] if list(words) == list(name[: len(words)]) else []


def _options(command: str) -> type[BaseModel]:
    options: type[BaseModel] = importlib.import_module(f"ivideogpt.cli.{command.replace(' ', '_')}").Options
    return options


def _flag(field: str) -> str:
    return "json" if field == "as_json" else field.replace("_", "-")


def _choices(hint: Any) -> list[str]:
    """The values of a literal, alone or beside others."""
    if get_origin(hint) is Literal:
        return [str(value) for value in get_args(hint)]
    return [value for part in get_args(hint) for value in _choices(part)]
