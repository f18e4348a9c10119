"""Being told to stop: SIGUSR1 (Slurm, shortly before the time limit) and SIGTERM (somebody wants the machine back).

In training a signal is only noted; at the start of the next batch the ranks agree, save and leave together. Everywhere
else it ends the process at once: what the other stages write is whole or absent, so a second start goes on from there.
The exit code is 128 plus the signal's number: 138 asks for the same command again, 143 does not. A process that is not
listening yet (Python is still starting) dies of the signal, which a shell and srun report as the same number.

A second signal ends the process at once, whatever it is doing. Slurm sends each one to all processes of a step and
torch's launcher passes it on to the ranks, so what comes within ONE_SIGNAL_S counts as the first one.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

AGAIN = signal.SIGUSR1
LISTENED = (signal.SIGTERM, signal.SIGUSR1)
CODES = {128 + int(number): int(number) for number in LISTENED}  # exit code -> signal
ONE_SIGNAL_S = 5.0


class Stopped(SystemExit):
    """This process was told to stop and did. `together`: all ranks raise it at the same place."""

    def __init__(self, number: int, *, together: bool = False) -> None:
        super().__init__(128 + number)
        self.number = number
        self.together = together

    @property
    def continues(self) -> bool:
        """Whether the same run will be started again by itself: Slurm told it to make room before its time limit."""
        return self.number == AGAIN

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.number).name}"


@dataclass
class _Ear:
    """What this process has heard."""

    number: int = 0
    since_s: float = 0.0
    noting: int = 0  # depth of `noted`


_ear = _Ear()


def heed() -> None:
    """Listen from now on. Only a main thread can; elsewhere nothing happens."""
    if threading.current_thread() is threading.main_thread():
        for number in LISTENED:
            signal.signal(number, _heard)
        atexit.unregister(_deaf_when_told)
        atexit.register(_deaf_when_told)


def leave_to_parent() -> None:
    """Of a helping process (loader, reader): not to die of a signal that its parent answers."""
    for number in LISTENED:
        signal.signal(number, signal.SIG_IGN)


def heard() -> int:
    """Number of the signal that was noted, 0 where none was."""
    return _ear.number


@contextmanager
def noted() -> Iterator[None]:
    """Inside, signals are only noted; one that nobody acted on ends the process on the way out.

    Where nobody listens yet, as in a notebook, this listens for its own duration.
    """
    before: dict[int, Any] = {int(number): signal.getsignal(number) for number in LISTENED}
    listening = all(handler is _heard for handler in before.values())
    if not listening:
        heed()
    _ear.noting += 1
    try:
        yield
        if _ear.number:
            raise Stopped(_ear.number)
    finally:
        _ear.noting -= 1
        if not listening and threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)
            _ear.number = 0


def _deaf_when_told() -> None:
    """On its way out Python restores the defaults; srun's SIGTERM to ranks that are slower would change their code."""
    if _ear.number and threading.current_thread() is threading.main_thread():
        leave_to_parent()


def _heard(number: int, frame: Any) -> None:
    now = time.monotonic()
    if _ear.number:
        if now - _ear.since_s > ONE_SIGNAL_S:
            os._exit(128 + _ear.number)  # srun's code is the highest of all ranks: they must not differ
        return
    _ear.number, _ear.since_s = number, now
    if not _ear.noting:
        raise Stopped(number)
