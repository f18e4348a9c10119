"""Signals: noted where that is asked for, at once elsewhere, and the second one ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest

from brainage.runtime import signals
from brainage.runtime.signals import Stopped, heard, noted

SCRIPT = """
import os, signal, sys, time
from brainage.runtime import signals
signals.ONE_SIGNAL_S = 0.05
signals.heed()
me = lambda number: os.kill(os.getpid(), number)
try:
    {body}
except signals.Stopped as stopped:
    print("stopped", stopped.number, flush=True)
    raise
finally:
    print("left", flush=True)
"""


def run(body: str) -> tuple[int, list[str]]:
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(body=body)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.split("\n")[:-1] + done.stderr.splitlines()


def test_a_signal_outside_of_training_ends_the_process_with_its_code():
    assert run("me(signal.SIGTERM); time.sleep(9)") == (143, ["stopped 15", "left"])
    assert run("me(signal.SIGUSR1); time.sleep(9)") == (138, ["stopped 10", "left"])


def test_a_signal_that_is_noted_ends_the_process_on_the_way_out():
    body = "exec('with signals.noted():\\n me(10)\\n print(signals.heard(), flush=True)')"
    assert run(body) == (138, ["10", "stopped 10", "left"])


def test_one_signal_may_come_twice_and_a_second_one_leaves_at_once_with_the_code_of_the_first():
    twice = "exec('with signals.noted():\\n me(10)\\n me(10)\\n print(1, flush=True)')"
    assert run(twice) == (138, ["1", "stopped 10", "left"])
    second = "exec('with signals.noted():\\n me(10)\\n time.sleep(0.1)\\n me(15)\\n print(1, flush=True)')"
    assert run(second) == (138, [])


def test_a_process_that_was_told_is_deaf_while_python_ends():
    body = "import atexit; atexit._clear(); signals.heed(); me(10)"
    code = "class Late:\n def __del__(self, kill=os.kill, me=os.getpid()): kill(me, 15)\nsys.late = Late()\n"
    script = SCRIPT.format(body=body).replace("signals.heed()\n", code + "signals.heed()\n", 1)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 138


def test_a_loader_ignores_what_its_parent_answers():
    assert run("signals.leave_to_parent(); me(15); me(10)") == (0, ["left"])


def test_where_nobody_listens_noting_lasts_as_long_as_it_is_asked_for():
    before = [signal.getsignal(number) for number in signals.LISTENED]
    with pytest.raises(Stopped, match="SIGUSR1") as stopped:
        _note(lambda: None)
    assert stopped.value.code == 138
    assert not stopped.value.together
    assert heard() == 0
    assert [signal.getsignal(number) for number in signals.LISTENED] == before


def test_an_error_inside_is_told_rather_than_the_signal():
    with pytest.raises(ZeroDivisionError):
        _note(lambda: 1 / 0)


def _note(action: Callable[[], object]) -> None:
    with noted():
        os.kill(os.getpid(), signal.SIGUSR1)
        assert heard() == signal.SIGUSR1
        action()
