"""One process at a time builds a store or a part of one, on this node and, as far as a network disk allows, on others.

The kernel's lock is the truth on one node: it goes with the process, so that nothing is ever stale. Between nodes it is
not reliable (an NFS without its lock daemon, a Lustre mounted with `localflock` or without `flock`), so that the holder
also writes a line into the lock file every few seconds. A line of another node that changes while it is watched has a
living holder; one that stands still was left by a killed process.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from brainage.errors import StoreError

BEAT_S = 5.0  # seconds between two lines of a holder
PATIENCE_S = 20.0  # a holder that is silent for so long is gone
_LINE_BYTES = 160
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)


@contextmanager
def only_process(out: Path) -> Iterator[None]:
    """Hold `<out>.lock`, which stays as an empty file; StoreError naming the holder when another process is at `out`.

    Waits PATIENCE_S where the last holder was killed on another node.
    """
    path = out.with_name(out.name + ".lock")
    with open(path, "a+", encoding="utf-8") as file:
        locked = _lock(file, path, out)
        line = _line(path)
        if line and not (locked and line.split()[2:3] == [os.uname().nodename]):
            _refuse_living_holder(path, out, line)
        done = threading.Event()
        beats = threading.Thread(target=_beat, args=(path, done), daemon=True)
        _write(path, 0)
        if not locked:  # the other process of a tie has written by now: the last line wins
            time.sleep(min(1.0, BEAT_S))
            if not _line(path).startswith(_name()):
                raise _refusal(out, _line(path))
        beats.start()
        try:
            yield
        finally:
            done.set()
            beats.join()
            with suppress(OSError):
                path.write_text("", encoding="utf-8")  # freed: nobody has to wait for a silence


def _lock(file: IO[str], path: Path, out: Path) -> bool:
    """Whether the kernel keeps this lock; StoreError when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(out, _line(path)) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _refuse_living_holder(path: Path, out: Path, line: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        time.sleep(min(1.0, BEAT_S))
        if (now := _line(path)) != line:
            if not now:  # it has just finished
                return
            raise _refusal(out, now)


def _refusal(out: Path, line: str) -> StoreError:
    holder = " ".join(line.split()[:3]) or "unknown"
    return StoreError(
        f"store {out}: process {holder} is preparing it; wait, or name another folder with data.store=DIR"
    )


def _beat(path: Path, done: threading.Event) -> None:
    for number in itertools.count(1):
        if done.wait(BEAT_S):
            return
        _write(path, number)


def _name() -> str:
    return f"{os.getpid()} on {os.uname().nodename}"


def _line(path: Path) -> str:
    """Opened anew each time: that is when a network disk looks whether the file has changed."""
    return path.read_text(encoding="utf-8").strip()


def _write(path: Path, beat: int) -> None:
    """In place and of one length: a reader of another node never sees an empty file, which means freed."""
    line = f"{_name()} beat {beat}".ljust(_LINE_BYTES) + "\n"
    with suppress(OSError):  # a full disk must not end the work of a holder
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            os.pwrite(descriptor, line.encode(), 0)
        finally:
            os.close(descriptor)
