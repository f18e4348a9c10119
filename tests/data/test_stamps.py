"""Files that change behind a store: replaced, mended, copied, or gone, while it is used or half-built."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from brainage.data.array_store import ArrayStore
from brainage.data.store import prepare_store
from brainage.errors import DataError, StoreError
from brainage.imaging.contract import InputContract
from tests.data.odd_cohort import contents, people

VECTOR = InputContract("rois", "vector", (3,), features=("a", "b", "c"))


@dataclass
class Files:
    """One .npy file a scan; `reads` counts every read, `stamps` every look."""

    folder: Path

    def write(self, path: str, value: float = 0.0, time_ns: int = 10**18) -> None:
        np.save(self.folder / f"{path}.npy", np.array([int(path), value, 1], np.float32))
        os.utime(self.folder / f"{path}.npy", ns=(time_ns, time_ns))

    def read(self, path: str) -> np.ndarray:
        with open(self.folder / "reads.log", "a") as log:
            log.write(f"{path}\n")
        try:
            return np.load(self.folder / f"{path}.npy")
        except ValueError as error:
            raise DataError(f"{path}.npy: damaged") from error

    def stamp(self, path: str) -> str:
        found = (self.folder / f"{path}.npy").stat()
        return f"{found.st_size}:{found.st_mtime_ns}"

    def reads(self) -> list[str]:
        log = self.folder / "reads.log"
        found = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return found


@pytest.fixture
def files(tmp_path):
    """Scans 100 to 95, of which 97 is damaged; a prepared store beside them."""
    (tmp_path / "cohort").mkdir()
    cohort = Files(tmp_path / "cohort")
    for path in range(95, 101):
        cohort.write(str(path))
    (tmp_path / "cohort" / "97.npy").write_bytes(b"torn")
    prepare(cohort)
    assert len(cohort.reads()) == 6
    return cohort


def prepare(files: Files, name: str = "store", **options) -> ArrayStore:
    out = files.folder.parent / name
    return prepare_store(people(6), VECTOR, files.read, out, **{"workers": 1, "stamp": files.stamp} | options)


def store_of(files: Files) -> dict[str, bytes]:
    return contents(files.folder.parent / "store")


def test_unchanged_files_are_not_read_again_and_no_byte_of_the_store_changes(files):
    before = store_of(files)
    assert len(prepare(files)) == 5
    assert files.reads() == []
    assert store_of(files) == before


def test_two_builds_from_the_same_files_are_equal_to_the_byte(files):
    assert contents(prepare(files, "again").path) == store_of(files)
    assert contents(prepare(files, "with two", workers=2).path) == store_of(files)


def test_a_file_replaced_in_place_is_refused_by_name_with_what_to_do(files):
    before = store_of(files)
    files.write("99", 0.5, time_ns=2 * 10**18)  # of the same size
    store = files.folder.parent / "store"
    with pytest.raises(StoreError) as refusal:
        prepare(files)
    assert files.reads() == ["99"]
    line = str(refusal.value)
    assert f"store {store}: the files of 1 of its 6 scans changed after it was prepared; 99 of scan c/p01//" in line
    assert f"holds other values now; delete the folder {store} and prepare again" in line
    assert store_of(files) == before
    with pytest.raises(StoreError, match="holds other values now"):  # and not only once
        prepare(files)


def test_touched_and_copied_files_are_compared_once_and_then_known(files):
    digests = prepare(files).table["digest"].tolist()
    for path in range(95, 101):
        os.utime(files.folder / f"{path}.npy", ns=(3 * 10**18, 3 * 10**18))
    seen = []
    store = prepare(files, on_progress=lambda done, total: seen.append((done, total)))
    assert sorted(files.reads()) == sorted(map(str, range(95, 101)))  # the damaged one too, which is so still
    assert seen == [(done, 6) for done in range(1, 7)]
    assert store.table["digest"].tolist() == digests
    prepare(files)
    assert files.reads() == []


def test_several_processes_compare_as_one_does(files):
    for path in ("100", "96", "95"):
        files.write(path, time_ns=3 * 10**18)
    assert len(prepare(files, workers=2)) == 5
    assert sorted(files.reads()) == ["100", "95", "96"]
    files.write("96", 7.0, time_ns=4 * 10**18)
    files.write("95", time_ns=4 * 10**18)
    with pytest.raises(StoreError, match=r"files of 2 of its 6 scans .*; 96 of scan c/p04// holds other values now"):
        prepare(files, workers=2)


def test_a_mended_scan_is_not_left_out_for_ever(files):
    files.write("97")
    with pytest.raises(StoreError, match=r"97 of scan c/p03// was damaged then and is not now; delete the folder"):
        prepare(files)
    assert len(prepare(files, "anew")) == 6


def test_a_scan_that_was_damaged_since_is_refused_with_the_reason(files):
    (files.folder / "95.npy").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"95 of scan c/p05// cannot be read any more \(95.npy: damaged\)"):
        prepare(files)


def test_a_store_without_stamps_is_compared_with_the_files_before_it_is_trusted(files):
    (files.folder.parent / "store" / "stamps.tsv").unlink()
    prepare(files)
    assert len(files.reads()) == 6
    prepare(files)
    assert files.reads() == []
    (files.folder.parent / "store" / "stamps.tsv").write_text("torn")
    files.write("100", 1.0)  # of the same size and time: only its values can tell
    with pytest.raises(StoreError, match="100 of scan c/p00// holds other values now"):
        prepare(files)


def test_new_ages_do_not_hide_a_replaced_file(files):
    files.write("98", 0.5, time_ns=2 * 10**18)
    table = people(6)
    table["age_years"] += 1
    with pytest.raises(StoreError, match="98 of scan"):
        prepare_store(table, VECTOR, files.read, files.folder.parent / "store", workers=1, stamp=files.stamp)
    assert set(ArrayStore.open(files.folder.parent / "store").table["age_years"]) == {30.0}


def test_without_a_stamp_the_files_are_not_looked_at(files):
    files.write("99", 0.5, time_ns=2 * 10**18)
    assert len(prepare(files, stamp=None)) == 5
    assert files.reads() == []
    with pytest.raises(StoreError, match="99 of scan"):  # the stamps are still those of the build
        prepare(files)


def test_a_file_replaced_while_a_build_is_interrupted_is_read_again(files):
    def stop_at_97(path):
        if path == "97":
            raise MemoryError
        return files.read(path)

    with pytest.raises(MemoryError):
        prepare_store(people(6), VECTOR, stop_at_97, files.folder.parent / "b", workers=1, stamp=files.stamp)
    assert files.reads() == ["100", "99", "98"]
    files.write("99", 0.5, time_ns=2 * 10**18)
    resumed = prepare(files, "b")
    assert files.reads() == ["99", "97", "96", "95"]
    assert resumed.arrays[1].tolist() == [99.0, 0.5, 1.0]
    assert contents(resumed.path) == contents(prepare(files, "undisturbed").path)


def test_a_file_replaced_before_a_finished_build_is_moved_in_is_noticed(files, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(files, "b")
    monkeypatch.undo()
    files.write("99", 0.5, time_ns=2 * 10**18)
    with pytest.raises(StoreError, match="99 of scan c/p01// holds other values now"):
        prepare(files, "b")


def test_a_file_replaced_while_the_others_are_read_is_noticed_the_next_time(files):
    def replaced_behind(path):
        sample = files.read(path)
        if path == "100":
            files.write("100", 0.5, time_ns=2 * 10**18)
        return sample

    prepare_store(people(6), VECTOR, replaced_behind, files.folder.parent / "b", workers=1, stamp=files.stamp)
    with pytest.raises(StoreError, match="100 of scan c/p00// holds other values now"):
        prepare(files, "b")
