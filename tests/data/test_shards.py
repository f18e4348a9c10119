"""A store prepared by several jobs at once: the bytes of one run, whatever happened to any of them."""

import os
import signal
import time
from collections import namedtuple

import numpy as np
import pytest

from brainage.data.masking import Mask
from brainage.data.shards import block_of, shard_state
from brainage.data.store import prepare_store
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract
from tests.data.odd_cohort import MASK, VECTOR, VOLUME, Cohort, build, build_elsewhere, contents, people
from tests.data.test_store_interrupted import files_no_longer_than

TROUBLE = {"p99": "nan", "p91": "damaged", "p90": "shape"}


@pytest.fixture
def expected(tmp_path):
    """What an undisturbed run gives, and then no read is on record."""
    (tmp_path / "undisturbed").mkdir()
    return contents(build(tmp_path / "undisturbed", **TROUBLE).path)


def all_shards(folder, n, **options):
    for i in reversed(range(1, n + 1)):
        build(folder, shard=(i, n), **options)


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_any_number_of_shards_in_any_order_gives_the_bytes_of_one_run(tmp_path, n, mask):
    (tmp_path / "undisturbed").mkdir()
    one = contents(build(tmp_path / "undisturbed", mask=mask, **TROUBLE).path)
    all_shards(tmp_path, n, mask=mask, **TROUBLE)
    assert sorted(Cohort(tmp_path).reads()) == sorted(str(100 - i) for i in range(12))
    store = build(tmp_path, mask=mask)
    assert contents(store.path) == one
    assert len(Cohort(tmp_path).reads()) == 12  # the merge opened no source
    assert store.verify() == []
    assert sorted(path.name for path in tmp_path.glob("store*")) == ["store", "store.lock"]


def test_a_shard_tells_what_it_did_and_what_is_missing(tmp_path):
    seen = []
    cohort = Cohort(tmp_path, {"99": "nan", "91": "damaged"})

    def prepare(shard):
        return prepare_store(
            people(), VOLUME, cohort.read, tmp_path / "store", workers=1, shard=shard,
            on_progress=lambda done, total: seen.append((done, total)),
        )  # fmt: skip

    assert shard_state(tmp_path / "store") is None
    part = prepare((1, 3))
    assert seen == [(done, 4) for done in range(5)]
    assert (part.shard, len(part), len(part.dropped)) == ((1, 3), 3, 1)
    assert part.table["participant_id"].tolist() == ["p00", "p02", "p03"]
    assert shard_state(tmp_path / "store").missing == [2, 3]
    with pytest.raises(StoreError) as refusal:
        prepare(None)
    assert "1 of 3 shards are done; missing: 2/3, 3/3; prepare them with --shard 2/3 and so on" in str(refusal.value)
    prepare((3, 3))
    prepare((2, 3))
    assert shard_state(tmp_path / "store").missing == []
    seen.clear()
    store = prepare(None)
    assert store.shard is None
    assert seen[-1] == (12, 12)
    assert shard_state(tmp_path / "store") is None
    assert prepare((2, 3)).table.equals(store.table)  # a job that is queued again finds the whole store
    assert len(cohort.reads()) == 12


def test_a_shard_that_is_done_is_not_read_again_and_takes_new_ages(tmp_path):
    build(tmp_path, shard=(2, 3))
    before = contents(tmp_path / "store.shards" / "2-of-3")
    build(tmp_path, shard=(2, 3))
    assert contents(tmp_path / "store.shards" / "2-of-3") == before
    cohort = Cohort(tmp_path)
    older = people().assign(age_years=31.0)
    for i in (1, 2, 3):
        prepare_store(older, VOLUME, cohort.read, tmp_path / "store", workers=1, shard=(i, 3))
    assert len(cohort.reads()) == 12
    store = prepare_store(older, VOLUME, cohort.read, tmp_path / "store", workers=1)
    assert set(store.table["age_years"]) == {31.0}


def test_shards_killed_with_9_are_resumed_to_the_same_bytes(tmp_path, expected):
    killed = build_elsewhere(tmp_path, shard=(2, 2), **{**TROUBLE, "p92": "kill"})
    assert killed.wait(60) == -signal.SIGKILL
    assert shard_state(tmp_path / "store").missing == [1, 2]
    assert Cohort(tmp_path).reads() == ["94", "93", "92"]
    build(tmp_path, shard=(2, 2), **TROUBLE)
    assert Cohort(tmp_path).reads()[3:] == ["92", "91", "90", "89"]
    build(tmp_path, shard=(1, 2), **TROUBLE)
    assert contents(build(tmp_path).path) == expected


def test_two_processes_are_at_two_shards_at_once_and_never_at_one(tmp_path, expected):
    waiting = {**TROUBLE, "p100": "wait", "p94": "wait"}
    jobs = [build_elsewhere(tmp_path, shard=(i, 2), **waiting) for i in (1, 2)]
    deadline = time.monotonic() + 60
    while len(Cohort(tmp_path).reads()) < 2:
        assert time.monotonic() < deadline
        assert all(job.poll() is None for job in jobs), [job.stderr.read() for job in jobs if job.poll() is not None]
        time.sleep(0.02)
    for i, job in enumerate(jobs, start=1):
        with pytest.raises(StoreError, match=f"{i}-of-2: process {job.pid} on .* is preparing it"):
            build(tmp_path, shard=(i, 2))
    with pytest.raises(StoreError, match="missing: 1/2, 2/2"):
        build(tmp_path)
    (tmp_path / "go").touch()
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert contents(build(tmp_path).path) == expected
    assert len(Cohort(tmp_path).reads()) == 12


class Stopped(Exception):  # noqa: N818
    pass


def stop_after(monkeypatch, module, name, calls):
    real, count = getattr(module, name), []

    def stopping(*args, **kwargs):
        count.append(1)
        if len(count) > calls:
            raise Stopped
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, stopping)


@pytest.mark.parametrize(("name", "calls"), [("pwrite", 4), ("ftruncate", 0), ("rename", 0), ("rmdir", 1)])
def test_a_merge_killed_at_any_point_is_ended_by_the_next_call(tmp_path, expected, monkeypatch, name, calls):
    """Between two rows; before the arrays are whole; before it moves in; while the parts are being deleted."""
    all_shards(tmp_path, 3, **TROUBLE)
    stop_after(monkeypatch, os, name, calls)
    with pytest.raises(Stopped):
        build(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / "store").exists()
    if name in ("rename", "rmdir"):
        with pytest.raises(StoreError, match="unfinished build or merge; end it without --shard"):
            build(tmp_path, shard=(1, 2))
    assert contents(build(tmp_path).path) == expected
    assert len(Cohort(tmp_path).reads()) == 12
    assert not (tmp_path / "store.shards").exists()


def test_shards_of_something_else_are_refused(tmp_path):
    build(tmp_path, shard=(1, 3))
    before = contents(tmp_path / "store.shards" / "1-of-3")
    with pytest.raises(StoreError, match=r"was begun in 3 shards, found one of 4; go on with i/3, or delete"):
        build(tmp_path, shard=(1, 4))
    with pytest.raises(StoreError, match="it is a shard of another table"):
        build(tmp_path, shard=(1, 3), n=14)  # whose first block has the same four scans
    with pytest.raises(StoreError, match="mask: expected ball"):
        build(tmp_path, shard=(1, 3), mask=MASK)
    with pytest.raises(StoreError, match="modality: expected 'rois'"):
        prepare_store(people(), VECTOR, Cohort(tmp_path).read, tmp_path / "store", workers=1, shard=(1, 3))
    build(tmp_path, shard=(2, 3))
    build(tmp_path, shard=(3, 3), mask=MASK)
    with pytest.raises(StoreError, match=r"3-of-3 .*: mask: expected none"):
        build(tmp_path)
    assert contents(tmp_path / "store.shards" / "1-of-3") == before
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("shard", [(0, 3), (4, 3), (1, 13), (1, 0)])
def test_a_shard_that_cannot_be_is_refused(tmp_path, shard):
    with pytest.raises(StoreError, match=r"expected i/n with i from 1|12 scans make at most 12 shards"):
        build(tmp_path, shard=shard)
    assert not list(tmp_path.glob("store*"))


@pytest.mark.parametrize(("n", "scans"), [(1, 1), (3, 10), (7, 20000), (12, 12)])
def test_blocks_cover_every_scan_once_and_differ_by_one(n, scans):
    blocks = [range(scans)[block_of((i, n), scans)] for i in range(1, n + 1)]
    assert [row for block in blocks for row in block] == list(range(scans))
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_a_build_in_one_go_and_shards_do_not_mix(tmp_path):
    with pytest.raises(MemoryError):
        build(tmp_path, p94="memory")
    with pytest.raises(StoreError, match=r"store\.building is an unfinished build or merge; end it without --shard"):
        build(tmp_path, shard=(1, 2))
    assert len(build(tmp_path)) == 12


def test_a_shard_of_which_nothing_can_be_read_is_refused_and_can_be_tried_again(tmp_path):
    """Most often a folder that one of the nodes has not mounted."""
    with pytest.raises(StoreError, match=r"none of 2 scans could be read; first c/p00//: .* into fewer shards"):
        build(tmp_path, shard=(1, 6), p100="damaged", p99="nan")
    assert len(build(tmp_path, shard=(1, 6))) == 2


def test_bytes_that_changed_in_a_part_stop_the_merge_by_name(tmp_path):
    all_shards(tmp_path, 3, **TROUBLE)
    with open(tmp_path / "store.shards" / "2-of-3" / "arrays.npy", "r+b") as file:
        file.seek(128 + 2 * 16384 + 9)
        file.write(b"\1\2")
    with pytest.raises(StoreError, match=r"2-of-3: the bytes of scan c/p06// are not the ones .*; delete that folder"):
        build(tmp_path)
    assert not (tmp_path / "store").exists()
    os.truncate(tmp_path / "store.shards" / "2-of-3" / "arrays.npy", 4000)
    with pytest.raises(StoreError, match=r"2-of-3: arrays\.npy: expected \d+ bytes"):
        build(tmp_path)


def test_a_shard_asks_for_the_space_of_all_and_of_their_merge(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    huge = InputContract("gm", "volume", (1, 256, 256, 256), spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), axes="RAS")
    part = Mask("m", 0.0, np.arange(2**24).reshape(256, 256, 256) < 2**22)
    for mask, free_gib, needed in ((None, 0.7, "0.38"), (part, 0.18, "0.09")):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free_gib: usage(0, 0, int(free * 2**30)))
        with pytest.raises(StoreError, match=rf"need {needed} GiB, and as much again until its shards are merged, "):
            prepare_store(people(), huge, Cohort(tmp_path).read, tmp_path / "store", mask=mask, shard=(1, 12))
    assert not Cohort(tmp_path).reads()


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_a_disk_that_runs_full_in_a_shard_or_the_merge_keeps_what_is_done(tmp_path, monkeypatch, mask):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    (tmp_path / "undisturbed").mkdir()
    one = contents(build(tmp_path / "undisturbed", mask=mask).path)
    row = 16384 if mask is None else 2 * MASK.voxels
    with files_no_longer_than(200 + 4 * row), pytest.raises(StoreError, match=r"no space left .*run again"):
        build(tmp_path, shard=(1, 2), mask=mask)
    assert len((tmp_path / "store.shards" / "1-of-2.building" / "journal.tsv").read_text().splitlines()) == 4
    all_shards(tmp_path, 2, mask=mask)
    assert len(Cohort(tmp_path).reads()) == 5 + 12 - 4
    with files_no_longer_than(200 + 8 * row), pytest.raises(StoreError, match=r"no space left .*run again"):
        build(tmp_path, mask=mask)
    assert not (tmp_path / "store").exists()
    assert contents(build(tmp_path, mask=mask).path) == one
    assert len(Cohort(tmp_path).reads()) == 5 + 12 - 4
