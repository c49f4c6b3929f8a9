"""What a shell is told to offer."""

from __future__ import annotations

import pytest

from ivideogpt.cli.completion import answers
from ivideogpt.cli.main import COMMANDS, main


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ([], ["bench", "convert", "data", "demo", "export", "info", "predict", "record", "train"]),
        (["train"], ["tokenizer", "transformer"]),
        (["train", "tokenizer", "--schedule"], ["constant", "cosine"]),
        (["train", "tokenizer", "--data"], []),  # a file
        (["nothing", "of", "the", "kind"], []),
    ],
)
def test_what_may_follow(typed: list[str], offered: list[str]) -> None:
    assert answers(list(COMMANDS), typed) == offered


def test_options_that_are_there_already_are_not_offered_again() -> None:
    offered = answers(list(COMMANDS), ["bench", "--overwrite"])
    assert {"--json", "--precision", "--help"} <= set(offered) and "--overwrite" not in offered
    assert "--environment" not in answers(list(COMMANDS), ["record"])  # it is named by its place
    assert "--longest-default-warmup" not in answers(list(COMMANDS), ["train", "tokenizer"])


def test_a_shell_asks_and_reads_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", "ivideogpt train tokenizer --opt and more")
    monkeypatch.setenv("COMP_POINT", str(len("ivideogpt train tokenizer --opt")))
    assert main(["complete"]) == 0
    assert capsys.readouterr().out.split() == ["--optimizer"]
