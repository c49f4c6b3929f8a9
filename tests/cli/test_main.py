"""The command line as a user meets it: help, exit codes, one readable message for a mistake."""

from __future__ import annotations

import errno
import subprocess
import sys
import types
import warnings

import pytest
from pydantic import Field

from ivideogpt import __version__
from ivideogpt.cli import main as command_line
from ivideogpt.cli.main import COMMANDS, main
from ivideogpt.cli.options import Options
from ivideogpt.errors import InputError


class PretendOptions(Options):
    """A command for the tests."""

    count: int = Field(1, ge=1, le=9)
    """How often."""


def install(monkeypatch: pytest.MonkeyPatch, run: object) -> None:
    """Make `ivideogpt pretend` a command that does `run`."""
    module = types.ModuleType("ivideogpt.cli.pretend")
    module.Options = PretendOptions  # type: ignore[attr-defined]
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ivideogpt.cli.pretend", module)
    monkeypatch.setattr(command_line, "COMMANDS", {**COMMANDS, "pretend": "for the tests"})


def fail_with(error: BaseException) -> object:
    def run(options: PretendOptions) -> None:
        raise error

    return run


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert main([]) == 0


def test_group_help_lists_its_members(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "train tokenizer" in out and "record" not in out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ivideogpt {__version__}\n"


@pytest.mark.parametrize(
    ("words", "nearest"),
    [
        (["recrod", "pusht"], "'record'"),
        (["train", "tokeniser"], "'train tokenizer'"),
        (["train"], "train transformer"),
        (["--versoin"], "Available"),
    ],
)
def test_unknown_command_names_the_nearest(words: list[str], nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert nearest in shown.err and shown.out == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert f"usage: ivideogpt {name}" in capsys.readouterr().out


def test_options_reach_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[PretendOptions] = []
    install(monkeypatch, seen.append)
    assert main(["pretend", "--count", "3"]) == 0
    assert seen == [PretendOptions(count=3)]


def test_a_refused_value_names_value_and_rule(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, fail_with(AssertionError("never reached")))
    assert main(["pretend", "--count", "12"]) == 2
    assert capsys.readouterr().err == "error: count is 12, but should be less than or equal to 9\n"


def test_a_wrong_flag_names_the_nearest(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, fail_with(AssertionError("never reached")))
    with pytest.raises(SystemExit) as stop:
        main(["pretend", "--cuont", "3"])
    assert stop.value.code == 2
    assert "--count" in capsys.readouterr().err


def test_an_input_error_is_one_message_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, fail_with(InputError("the cup is empty. Fill it.")))
    assert main(["pretend"]) == 2
    assert capsys.readouterr().err == "error: the cup is empty. Fill it.\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fail_with(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError):
        main(["pretend"])


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    install(monkeypatch, fail_with(KeyboardInterrupt()))
    assert main(["pretend"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_mistake_ends_the_process_with_two() -> None:
    program = "import sys; from ivideogpt.cli.main import main; sys.exit(main(['recrod']))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command 'recrod'") and "Traceback" not in done.stderr


def test_a_path_that_nobody_looked_at_is_no_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(monkeypatch, fail_with(OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300)))
    assert main(["pretend"]) == 2
    assert "File name too long" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["info", "info --json", "predict --help", "--help", "train tokenizer --help"])
def test_nobody_reads(words: str) -> None:
    program = f"import sys; from ivideogpt.cli.main import main; sys.exit(main({words.split()}))"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert "Error" not in process.stderr.read()  # what else it says there is read
    assert process.returncode == 141


def test_warnings_are_worded_for_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the place in the code that they come from."""
    usual, said = warnings.formatwarning, []

    def run(options: PretendOptions) -> None:
        said.append(warnings.formatwarning("frames are odd", UserWarning, "segment.py", 7))
        raise InputError("no")

    install(monkeypatch, run)
    assert main(["pretend"]) == 2
    assert said == ["note: frames are odd\n"]
    assert warnings.formatwarning is usual, "also after a mistake"
