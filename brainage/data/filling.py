"""Filling the one big file of an array store: each process reads samples and writes their bytes in place.

Nothing is memory-mapped here: a full disk under a memory map kills the process (SIGBUS), under `pwrite` it is an error.
A journal of one line a row makes the work resumable after `kill -9`, and the digest in it after a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import io
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from brainage.data.files import write_atomically
from brainage.data.masking import Mask
from brainage.errors import BrainageError, DataError, StoreError
from brainage.runtime.signals import leave_to_parent

Read = Callable[[str], np.ndarray]
Progress = Callable[[int, int], None]
_FLUSH_S = 1.0


@dataclass(frozen=True, eq=False)
class Layout:
    """Where row i of `path`, a .npy file of n samples in C order, lies."""

    path: Path
    n: int
    shape: tuple[int, ...]  # of a stored row
    dtype: np.dtype
    mask: Mask | None = None  # of each sample, rows hold the values inside

    @property
    def sample_shape(self) -> tuple[int, ...]:
        return self.mask.shape if self.mask else self.shape

    @property
    def row_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    @cached_property
    def header(self) -> bytes:
        """The .npy header; numpy pads it so that its length does not depend on n."""
        buffer = io.BytesIO()
        descr = np.lib.format.dtype_to_descr(self.dtype)
        fields = {"descr": descr, "fortran_order": False, "shape": (self.n, *self.shape)}
        np.lib.format.write_array_header_1_0(buffer, fields)
        return buffer.getvalue()

    @property
    def nbytes(self) -> int:
        return self.offset(self.n)

    def offset(self, row: int) -> int:
        return len(self.header) + row * self.row_bytes


class Row(NamedTuple):
    """What became of one row: a digest of its stored bytes, or the reason why there are none."""

    place: int
    digest: str
    damage: str
    outside: float = 0.0  # share of the sample's intensity that the mask takes away

    @property
    def line(self) -> str:
        """Of the journal."""
        return f"{self.place}\t{self.digest}\t{self.outside!r}\t{self.damage}\n"

    @classmethod
    def of_line(cls, line: str) -> Row | None:
        """None of a line that is no row: a power cut leaves blocks of zeros."""
        try:
            place, digest, outside, damage = line.rstrip("\n").split("\t")
            return cls(int(place), digest, damage, float(outside))
        except ValueError:
            return None


def digest_of(data: Any) -> str:
    """32 hex digits of the bytes of a row."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def allocate(layout: Layout) -> None:
    """Claim the whole file now, so that a disk that is too small fails at the start and not at hour nine."""
    layout.path.touch()
    with open(layout.path, "r+b") as file:
        file.write(layout.header)
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, layout.nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise  # not so where a network disk cannot claim space: there, writing a row will tell


def fill(
    layout: Layout, read: Read, locators: list[str], journal: Path, workers: int, on_progress: Progress | None
) -> list[Row]:
    """Read every sample that the journal does not hold yet and write it into its row; one Row for each locator.

    A sample that cannot be read, has another shape or holds values that are not finite or do not fit the stored type is
    a row with a `damage`. Raises StoreError when a process was killed from outside, OSError when the disk is full;
    what was done stays in the journal.
    """
    rows = _recall(layout, journal)
    todo = [index for index in range(layout.n) if index not in rows]
    filled = _rows(layout, read, locators, todo, workers, write=True)
    with open(journal, "a", encoding="utf-8") as lines, closing(filled), _flushed_meanwhile(layout.path):
        if on_progress:
            on_progress(len(rows), layout.n)
        for row in filled:
            lines.write(row.line)
            lines.flush()
            rows[row.place] = row
            if on_progress:
                on_progress(len(rows), layout.n)
    return [rows[index] for index in range(layout.n)]


@contextmanager
def _flushed_meanwhile(path: Path) -> Iterator[None]:
    """Bytes go to the disk while the next samples are decoded: flushed at the end, all cores would wait for them."""
    done = threading.Event()
    errors: list[OSError] = []

    def flush() -> None:
        with open(path, "rb") as file:
            while not done.wait(_FLUSH_S) and not errors:
                try:
                    os.fsync(file.fileno())
                except OSError as error:  # a network disk tells here that it is full; it tells it once
                    errors.append(error)

    thread = threading.Thread(target=flush, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    for error in errors:
        raise error


def reread(
    layout: Layout, read: Read, locators: list[str], places: list[int], workers: int
) -> Generator[Row, None, None]:
    """The Rows that `fill` would give for some places now, as they are read; writes nothing."""
    return _rows(layout, read, locators, places, workers, write=False)


def forget(journal: Path, places: list[int]) -> None:
    """Take rows out of the journal, so that `fill` reads them again."""
    if places and journal.is_file():
        gone = {str(place).encode() for place in places}
        lines = [line for line in journal.read_bytes().splitlines(keepends=True) if line.split(b"\t")[0] not in gone]
        write_atomically(journal, lambda temporary: temporary.write_bytes(b"".join(lines)))


def compact(layout: Layout, kept: list[int]) -> Layout:
    """Move the kept rows together, cut the file behind them and flush it to the disk.

    Killed half-way it leaves rows whose bytes do not match their digest: `fill` reads those again.
    """
    compacted = replace(layout, n=len(kept))
    with open(layout.path, "r+b") as file:
        for target, source in enumerate(kept):
            if target != source:
                data = os.pread(file.fileno(), layout.row_bytes, layout.offset(source))
                write_at(file.fileno(), memoryview(data), layout.offset(target))
        file.write(compacted.header)
        file.flush()
        os.ftruncate(file.fileno(), compacted.nbytes)
        os.fsync(file.fileno())
    return compacted


def _recall(layout: Layout, journal: Path) -> dict[int, Row]:
    """The rows of the journal whose bytes are on the disk; cuts off a last line that was torn."""
    if not journal.exists():
        return {}
    text = journal.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    os.truncate(journal, len(whole))
    rows = {}
    with open(layout.path, "rb") as file:
        for line in whole.decode(errors="replace").split("\n"):
            row = Row.of_line(line)
            if row is None or not 0 <= row.place < layout.n:
                continue
            data = b"" if row.damage else os.pread(file.fileno(), layout.row_bytes, layout.offset(row.place))
            if row.damage or digest_of(data) == row.digest:
                rows[row.place] = row
    return rows


def _rows(
    layout: Layout, read: Read, locators: list[str], todo: list[int], workers: int, *, write: bool
) -> Generator[Row, None, None]:
    from brainage.runtime import allowed_cores  # not for the reading processes, which import this module too

    workers = min(workers or allowed_cores(), len(todo))
    if workers <= 1:
        return _here(layout, read, locators, todo, write)
    return _pooled(layout, read, locators, todo, workers, write)


def _here(layout: Layout, read: Read, locators: list[str], todo: list[int], write: bool) -> Generator[Row, None, None]:
    with open(layout.path, "r+b" if write else "rb") as file:
        for index in todo:
            yield _fill_row(layout, file.fileno() if write else None, read, index, locators[index])


def _pooled(
    layout: Layout, read: Read, locators: list[str], todo: list[int], workers: int, write: bool
) -> Generator[Row, None, None]:
    """Rows as they are finished, with at most two samples a process under way."""
    context = multiprocessing.get_context("spawn")  # a forked process may inherit locked threads of torch or a GPU
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker, initargs=(layout, read, write))
    waiting = iter(todo)
    flying: set[Future[Row]] = set()
    try:
        while True:
            for index in waiting:
                flying.add(pool.submit(_fill_row_of_worker, index, locators[index]))
                if len(flying) >= 2 * workers:
                    break
            if not flying:
                return
            finished, flying = wait(flying, return_when=FIRST_COMPLETED)
            yield from sorted(future.result() for future in finished)
    except BrokenProcessPool as error:
        raise StoreError(
            f"{layout.path.parent}: a reading process was killed, most often for lack of memory; "
            f"run again to go on, with fewer data.prepare_workers (now {workers})"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: dict[str, Any] = {}


def _start_worker(layout: Layout, read: Read, write: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    leave_to_parent()
    threading.Thread(target=_die_with_parent, daemon=True).start()
    file = open(layout.path, "r+b") if write else None  # noqa: SIM115
    _worker.update(layout=layout, read=read, file=file)


def _die_with_parent() -> None:
    """A parent killed by `kill -9` must not leave processes that go on writing under a resumed build."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _fill_row_of_worker(index: int, locator: str) -> Row:
    file = _worker["file"]
    return _fill_row(_worker["layout"], file.fileno() if file else None, _worker["read"], index, locator)


def _fill_row(layout: Layout, fileno: int | None, read: Read, index: int, locator: str) -> Row:
    try:
        sample, outside = _as_stored(read(locator), layout)
    except MemoryError:  # of this machine, not of this scan
        raise
    except Exception as error:
        kind = "" if isinstance(error, BrainageError) else f"{type(error).__name__}: "
        words = " ".join(f"{kind}{error}".split()).encode("utf-8", "backslashreplace").decode()  # odd file names
        return Row(index, "", words[:500] or type(error).__name__)
    data = sample.reshape(-1).view(np.uint8).data
    if fileno is not None:
        write_at(fileno, data, layout.offset(index))
    return Row(index, digest_of(data), "", outside)


def _as_stored(sample: Any, layout: Layout) -> tuple[np.ndarray, float]:
    """The row of a sample in the stored type, and the share of its intensity that a mask takes away.

    DataError unless the shape fits and every value of the sample is finite there: with a mask or without, a cohort
    keeps the same scans.
    """
    array = np.asarray(sample)
    if array.shape != layout.sample_shape:
        raise DataError(f"sample has shape {array.shape}, expected {layout.sample_shape}")
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=layout.dtype)
    if not np.isfinite(stored).all():
        bad = int((~np.isfinite(array)).sum())
        if bad:
            raise DataError(f"{bad} of {array.size} values are not finite")
        largest = float(np.abs(array).max())
        raise DataError(
            f"largest value {largest:g} does not fit {layout.dtype} (at most {np.finfo(layout.dtype).max:g})"
        )
    if layout.mask is None:
        return stored, 0.0
    return layout.mask.take(stored), layout.mask.share_outside(array)


def write_at(fileno: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(fileno, data, offset)
        data, offset = data[written:], offset + written
