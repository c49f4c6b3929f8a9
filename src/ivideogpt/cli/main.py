"""`ivideogpt <command>`: finds the command, reads its options, runs it, and puts its errors into words.

The command `train tokenizer` is the module `ivideogpt.cli.train_tokenizer`, with a class `Options` and a function
`run(options)`. Only the module of the chosen command is imported, so that `--help` answers at once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from ivideogpt import __version__
from ivideogpt.errors import InputError, unknown_name

COMMANDS = {
    "demo": "imagine fresh Push-T episodes with the shipped model, and show them",
    "record": "record episodes from a simulator",
    "convert": "convert a data set of another format into a store",
    "export": "write a store or a data set as LeRobot or .npz",
    "data": "look at a store: info, stats, verify, show",
    "train tokenizer": "train a tokenizer on episodes",
    "train transformer": "train a transformer on the tokens of a trained tokenizer",
    "predict": "imagine the future of one episode, beside what really happened",
    "bench": "measure speed against a reference",
    "bench rollout": "measure sessions of one future and of many against Hugging Face's generate",
    "bench sessions": "measure what many worlds in one session cost",
    "bench data": "measure how fast clips are read from a store",
    "info": "say what a model is",
}

_HELP_FLAGS = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code: 0 done, 2 a mistake of the user's, 130 interrupted, 141 unread.

    Args:
        argv: what follows `ivideogpt`; None takes it from the process.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _dispatch(argv)
        finally:
            sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our words has left
        _write_nowhere()
        return 141
    except OSError as error:  # of a path that nobody has looked at before
        where = "" if error.filename is None else f" {str(error.filename)!r}"
        print(f"error: the system says of{where or ' a file'}: {error.strerror or error}.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


def _write_nowhere() -> None:
    """So that what is still to be written at the very end finds somewhere to go."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # no real file, as under a test
            os.dup2(nowhere, stream.fileno())


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in _HELP_FLAGS:
        print(_help(list(COMMANDS)))
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"ivideogpt {__version__}")
        return 0
    if argv[0] == "complete":
        from ivideogpt.cli.completion import complete

        complete(COMMANDS)
        return 0
    for size in (2, 1):
        name = " ".join(argv[:size])
        if name in COMMANDS:
            return _run(name, argv[size:])
    members = [name for name in COMMANDS if name.startswith(f"{argv[0]} ")]
    if members and argv[1:2] and argv[1] in _HELP_FLAGS:
        print(_help(members))
        return 0
    typed = " ".join(argv[:2] if members else argv[:1])
    raise InputError(unknown_name("command", typed, members or COMMANDS))


def _run(name: str, argv: list[str]) -> int:
    from ivideogpt.cli.options import parse_options

    command = importlib.import_module(f"ivideogpt.cli.{name.replace(' ', '_')}")
    usual, warnings.formatwarning = warnings.formatwarning, _worded
    try:
        if name.startswith("train "):
            from ivideogpt.cli.resume import with_settings_of_run

            argv = with_settings_of_run(command.Options, argv)
        command.run(parse_options(command.Options, prog=f"ivideogpt {name}", argv=argv))
    finally:
        warnings.formatwarning = usual
    return 0


def _worded(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as a user reads it; where in the code it comes from is nothing to them."""
    return f"{'note' if category is UserWarning else category.__name__}: {message}\n"


def _help(names: list[str]) -> str:
    width = max(map(len, names))
    lines = ["usage: ivideogpt <command> [options]", "", "commands:"]
    lines += [f"  {name:<{width}}   {COMMANDS[name]}" for name in names]
    return "\n".join(
        [
            *lines,
            "",
            "ivideogpt <command> --help explains every option.  ivideogpt --version",
            "completion in bash: complete -o default -C 'ivideogpt complete' ivideogpt",
        ]
    )
