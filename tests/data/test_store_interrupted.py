"""What kills a build half-way, and how the next one goes on: kill -9, power cuts, full disks, other processes."""

import os
import resource
import signal
import time
from collections import namedtuple
from contextlib import contextmanager
from pathlib import Path

import pytest

from brainage.data.store import prepare_store
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract
from tests.data.odd_cohort import MASK, VOLUME, Cohort, build, build_elsewhere, contents, people


def test_no_memory_is_no_damage(tmp_path):
    with pytest.raises(MemoryError):
        build(tmp_path, p95="memory")
    assert build(tmp_path).table["path"].tolist() == [str(100 - i) for i in range(12)]


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_a_build_killed_with_9_is_resumed_to_the_same_bytes(tmp_path, mask):
    extra = {"p99": "nan", "p91": "damaged"}
    (tmp_path / "undisturbed").mkdir()
    expected = contents(build(tmp_path / "undisturbed", mask=mask, **extra).path)
    killed = build_elsewhere(tmp_path, masked=mask is not None, **{**extra, "p94": "kill"})
    assert killed.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "store").exists()
    journal = tmp_path / "store.building" / "journal.tsv"
    journal.write_bytes(journal.read_bytes() + b"\0\0\n7\t12ab")  # and torn lines
    cohort = Cohort(tmp_path)
    assert cohort.reads() == ["100", "99", "98", "97", "96", "95", "94"]
    assert contents(build(tmp_path, mask=mask, **extra).path) == expected
    assert cohort.reads()[7:] == ["94", "93", "92", "91", "90", "89"]
    assert not (tmp_path / "store.building").exists()


def test_reading_processes_die_with_a_killed_parent_and_the_build_goes_on(tmp_path):
    expected = contents(build(tmp_path, "undisturbed").path)
    (tmp_path / "reads.log").unlink()
    killed = build_elsewhere(tmp_path, workers=2, p94="kill parent")
    assert killed.wait(120) == -signal.SIGKILL
    readers = {int(line.split()[1]) for line in (tmp_path / "reads.log").read_text().splitlines()}
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid in readers):
        assert time.monotonic() < deadline, "a reading process outlived its parent"
        time.sleep(0.05)
    assert contents(build(tmp_path).path) == expected


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_rows_that_a_power_cut_took_from_the_disk_are_read_again(tmp_path):
    expected = contents(build(tmp_path, "undisturbed").path)
    (tmp_path / "reads.log").unlink()
    with pytest.raises(MemoryError):
        build(tmp_path, p94="memory")
    with open(tmp_path / "store.building" / "arrays.npy", "r+b") as file:
        file.seek(128 + 2 * 16384 + 5)  # inside the third row
        file.write(b"\0\0\0\0")
    assert contents(build(tmp_path).path) == expected
    assert Cohort(tmp_path).reads()[7:] == ["98", "94", "93", "92", "91", "90", "89"]


def test_a_build_killed_while_rows_move_together_is_resumed_to_the_same_bytes(tmp_path, monkeypatch):
    expected = contents(build(tmp_path, "undisturbed", p98="nan").path)
    pwrites = []
    real = os.pwrite

    def stop_at_the_fifteenth(*args):
        pwrites.append(args)
        if len(pwrites) == 15:  # 11 samples, then the fourth move
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, "pwrite", stop_at_the_fifteenth)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, p98="nan")
    monkeypatch.undo()
    assert contents(build(tmp_path, p98="nan").path) == expected


def test_a_build_killed_just_before_it_moves_in_is_only_moved(tmp_path, monkeypatch):
    expected = contents(build(tmp_path, "undisturbed").path)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path)
    monkeypatch.undo()
    reads = len(Cohort(tmp_path).reads())
    (tmp_path / "store.building" / ".table.parquet.123").touch()  # what a killed process leaves half-written
    assert contents(build(tmp_path).path) == expected
    assert len(Cohort(tmp_path).reads()) == reads


def test_a_second_process_is_refused_and_told_who_is_at_it(tmp_path):
    first = build_elsewhere(tmp_path, p100="wait")
    deadline = time.monotonic() + 60
    while not Cohort(tmp_path).reads():
        assert time.monotonic() < deadline
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.02)
    with pytest.raises(StoreError, match=f"process {first.pid} on .* is preparing it") as refusal:
        build(tmp_path)
    assert "\n" not in str(refusal.value)
    (tmp_path / "go").touch()
    assert first.wait(60) == 0
    assert len(build(tmp_path)) == 12
    assert len(Cohort(tmp_path).reads()) == 12


def test_an_unfinished_build_of_something_else_is_refused_once_it_holds_samples(tmp_path):
    with pytest.raises(MemoryError):
        build(tmp_path, p94="memory")
    with pytest.raises(
        StoreError, match=r"unfinished build .*store\.building .*expected 11 scans, found 12; delete that"
    ):
        build(tmp_path, n=11)
    assert (tmp_path / "store.building" / "journal.tsv").exists()
    with pytest.raises(MemoryError):
        build(tmp_path, "empty", p100="memory")
    assert len(build(tmp_path, "empty", n=11)) == 11


def test_a_small_disk_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9 - 5 * 10**4, 5 * 10**4))
    huge = InputContract("gm", "volume", (1, 512, 512, 512), spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), axes="RAS")
    cohort = Cohort(tmp_path)
    with pytest.raises(StoreError, match=r"need 3\.00 GiB, 0\.00 GiB are free; name another disk with data\.store=DIR"):
        prepare_store(people(), huge, cohort.read, tmp_path / "store", workers=1)
    assert not cohort.reads()


@contextmanager
def files_no_longer_than(size: int):
    """The kernel refuses bytes beyond `size` in any file, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_at_the_start_is_an_error_and_no_crash(tmp_path):
    cohort = Cohort(tmp_path)
    with files_no_longer_than(100_000), pytest.raises(StoreError, match=r"no space left .* need 0\.00 GiB"):
        prepare_store(people(), VOLUME, cohort.read, tmp_path / "store", workers=1)
    assert not cohort.reads()
    assert not (tmp_path / "store").exists()
    assert len(build(tmp_path)) == 12


@pytest.mark.parametrize("workers", [1, 2])
def test_a_disk_that_runs_full_keeps_what_is_done(tmp_path, monkeypatch, workers):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")  # as on network disks, which cannot claim space beforehand

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    expected = contents(build(tmp_path, "undisturbed").path)
    (tmp_path / "reads.log").unlink()
    with files_no_longer_than(100_000), pytest.raises(StoreError, match=r"no space left .*run again"):  # 6 samples
        build(tmp_path, workers=workers)
    assert not (tmp_path / "store").exists()
    done = len((tmp_path / "store.building" / "journal.tsv").read_text().splitlines())
    assert done == 6 if workers == 1 else 0 < done <= 6
    read = len(Cohort(tmp_path).reads())
    assert contents(build(tmp_path).path) == expected
    assert len(Cohort(tmp_path).reads()) - read == 12 - done


def test_a_killed_reading_process_is_one_clear_line_and_the_build_goes_on(tmp_path):
    with pytest.raises(StoreError, match=r"reading process was killed.*fewer data\.prepare_workers \(now 2\)"):
        build(tmp_path, workers=2, p92="kill")
    assert len(build(tmp_path)) == 12


def test_progress_counts_every_scan_and_what_was_done_before(tmp_path):
    with pytest.raises(MemoryError):
        build(tmp_path, p97="memory")
    seen = []
    cohort = Cohort(tmp_path, {"95": "nan"})
    prepare_store(
        people(),
        VOLUME,
        cohort.read,
        tmp_path / "store",
        workers=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 12) for done in range(3, 13)]


def test_a_torn_journal_line_costs_one_row_once(tmp_path):
    with pytest.raises(MemoryError):
        build(tmp_path, p98="memory")
    with open(tmp_path / "store.building" / "journal.tsv", "a") as journal:
        journal.write("2\t12ab")
    with pytest.raises(MemoryError):
        build(tmp_path, p96="memory")
    build(tmp_path)
    assert Cohort(tmp_path).reads() == [*("100", "99", "98"), *("98", "97", "96"), *map(str, range(96, 88, -1))]
