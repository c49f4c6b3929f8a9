"""Ctrl-C while a simulator runs: put off, never lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ivideogpt.envs.interrupts import interrupts_afterwards
from ivideogpt.envs.pusht import PushT


def test_an_interrupt_comes_after_the_block() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_afterwards():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("the rest of the block")
    assert done and signal.getsignal(signal.SIGINT) is before


def test_somebody_elses_handler_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: got.append(number))
    try:
        with interrupts_afterwards():
            os.kill(os.getpid(), signal.SIGINT)
            assert not got
        assert got == [signal.SIGINT]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with interrupts_afterwards():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_leave_signals_alone() -> None:
    seen: list[object] = []
    before = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with interrupts_afterwards():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_a_callback_of_the_simulator_does_not_swallow_it(capsys: pytest.CaptureFixture[str]) -> None:
    env = PushT()
    env.reset(seed=0)
    plain = env._simulator._draw

    def interrupted(*arguments: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return plain(*arguments)

    env._simulator._draw = interrupted
    with pytest.raises(KeyboardInterrupt):
        env.step(env.action_space.sample())
    env._simulator._draw = plain
    env.step(env.action_space.sample())
    assert "Traceback" not in capsys.readouterr().err
