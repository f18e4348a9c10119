import json
import os
import pickle

import numpy as np
import pandas as pd
import pytest

from brainage.data.store import ArrayStore, estimate_bytes, prepare_store
from brainage.data.table import read_tsv, scan_keys
from brainage.errors import DataError, StoreError
from tests.data.odd_cohort import VECTOR, VOLUME, Cohort, build, contents, people, sample_of


def test_arrays_and_table_have_one_order_and_the_stored_type(tmp_path):
    store = build(tmp_path)
    assert store.arrays.dtype == np.float16
    assert store.arrays.shape == (12, *VOLUME.shape)
    assert scan_keys(store.table).tolist() == [f"c/p{i:02d}//" for i in range(12)]
    for row, path in enumerate(store.table["path"]):
        np.testing.assert_array_equal(store.arrays[row], sample_of(path).astype(np.float16))
    np.testing.assert_array_equal(np.load(store.path / "arrays.npy"), store.arrays)
    assert set(contents(store.path)) == {"arrays.npy", "table.parquet", "dropped.tsv", "contract.json"}
    assert estimate_bytes(12, VOLUME) == (store.path / "arrays.npy").stat().st_size
    assert store.nbytes == 12 * 16 * 16 * 32 * 2
    assert store.contract == VOLUME


def test_vectors_are_stored_in_fp32_and_may_be_large(tmp_path):
    cohort = Cohort(tmp_path, {"99": "large"}, VECTOR)
    store = prepare_store(people(3), VECTOR, cohort.read, tmp_path / "store", workers=1)
    assert store.arrays.dtype == np.float32
    assert store.arrays[1].max() == 1e6


def test_two_processes_build_the_same_bytes_as_one(tmp_path):
    trouble = {"p93": "nan", "p100": "shape"}
    one = build(tmp_path, "one", **trouble)
    two = build(tmp_path, "two", workers=2, **trouble)
    assert contents(one.path) == contents(two.path)


def test_damaged_scans_are_listed_and_the_others_kept(tmp_path, caplog):
    trouble = {"p100": "nan", "p98": "shape", "p97": "large", "p95": "damaged", "p89": "odd"}
    store = build(tmp_path, **trouble)
    assert store.table["path"].tolist() == ["99", "96", "94", "93", "92", "91", "90"]
    for row, path in enumerate(store.table["path"]):
        np.testing.assert_array_equal(store.arrays[row], sample_of(path).astype(np.float16))
    assert store.verify() == []
    reasons = read_tsv(store.path / "dropped.tsv").set_index("path")["reason"].to_dict()
    assert reasons == {
        "100": "damaged: 1 of 8192 values are not finite",
        "98": "damaged: sample has shape (1, 16, 16, 31), expected (1, 16, 16, 32)",
        "97": "damaged: largest value 1e+06 does not fit float16 (at most 65504)",
        "95": "damaged: scan95.npy: truncated, 120 of 400 bytes",
        "89": "damaged: RuntimeError:",
    }
    assert "5 of 12 scans are damaged" in caplog.text
    assert len(store.table) + len(store.dropped) == 12


def test_a_store_without_one_readable_scan_is_refused_and_nothing_is_left(tmp_path):
    cohort = Cohort(tmp_path, {"100": "damaged", "99": "nan"})
    with pytest.raises(StoreError, match=r"none of 2 scans could be read; first c/p00//: scan100.npy: truncated"):
        prepare_store(people(2), VOLUME, cohort.read, tmp_path / "store", workers=1)
    assert not list(tmp_path.glob("store*/*"))
    assert len(build(tmp_path, n=2)) == 2  # once the disk is mounted again


def test_preparing_again_reads_nothing_and_touches_nothing(tmp_path):
    build(tmp_path, p96="nan")
    before = {path.name: path.stat() for path in (tmp_path / "store").iterdir()}
    build(tmp_path, p96="nan")
    after = {path.name: path.stat() for path in (tmp_path / "store").iterdir()}
    assert {n: (s.st_mtime_ns, s.st_ino) for n, s in before.items()} == {
        n: (s.st_mtime_ns, s.st_ino) for n, s in after.items()
    }
    assert len(Cohort(tmp_path).reads()) == 12


def test_new_ages_and_splits_refresh_the_table_and_leave_the_arrays(tmp_path):
    cohort = Cohort(tmp_path, {"98": "nan"})
    left_out = pd.DataFrame({"cohort": ["c"], "participant_id": ["p99"], "reason": ["file not found"]})
    first = prepare_store(people(), VOLUME, cohort.read, tmp_path / "store", workers=1, dropped=left_out)
    arrays = (tmp_path / "store" / "arrays.npy").stat()
    table = people(split="train", tiv_ml=1500.0)
    table["age_years"] += 1
    store = prepare_store(table, VOLUME, cohort.read, tmp_path / "store", workers=1)
    assert set(store.table["age_years"]) == {31.0}
    assert set(store.table["split"]) == {"train"}
    assert set(store.table["tiv_ml"]) == {1500.0}
    assert "p02" not in set(store.table["participant_id"])
    pd.testing.assert_series_equal(store.table["digest"], first.table["digest"])
    assert store.dropped["reason"].tolist() == ["damaged: 1 of 8192 values are not finite", "file not found"]
    assert (tmp_path / "store" / "arrays.npy").stat().st_mtime_ns == arrays.st_mtime_ns
    assert len(cohort.reads()) == 12
    assert store.verify() == []
    pd.testing.assert_frame_equal(ArrayStore.open(tmp_path / "store").table, store.table)


def test_a_store_of_something_else_is_refused_with_what_differs(tmp_path):
    build(tmp_path)
    before = contents(tmp_path / "store")
    cohort = Cohort(tmp_path)
    with pytest.raises(StoreError, match=r"expected 11 scans, found 12; name another folder with data.store=DIR"):
        prepare_store(people(11), VOLUME, cohort.read, tmp_path / "store", workers=1)
    with pytest.raises(StoreError, match="other keys, files or another order"):
        prepare_store(people(path=[str(i) for i in range(12)]), VOLUME, cohort.read, tmp_path / "store", workers=1)
    with pytest.raises(StoreError, match="other keys, files or another order"):
        prepare_store(people().iloc[::-1], VOLUME, cohort.read, tmp_path / "store", workers=1)
    with pytest.raises(StoreError, match=r"modality: expected 'rois', found 'gm'.*shape: expected \(3,\)"):
        prepare_store(people(), VECTOR, cohort.read, tmp_path / "store", workers=1)
    assert contents(tmp_path / "store") == before


def test_a_store_that_still_holds_people_who_withdrew_is_refused_in_one_line(tmp_path):
    build(tmp_path, p95="nan")
    before = contents(tmp_path / "store")
    left = people().drop(index=[3, 5])  # p05 is among the damaged
    reasons = pd.DataFrame({"cohort": "c", "participant_id": ["p03", "p05"], "reason": ["withdrawn", "withdrawn"]})
    cohort = Cohort(tmp_path)
    with pytest.raises(StoreError) as refusal:
        prepare_store(left, VOLUME, cohort.read, tmp_path / "store", workers=1, dropped=reasons)
    line = str(refusal.value)
    assert "still holds 2 scans of c/p03, c/p05, who withdrew; take them out of it with `brainage withdraw" in line
    with pytest.raises(StoreError, match=r"1 scan of c/p11 that the table no longer lists: expected 11 "):
        prepare_store(people(11), VOLUME, cohort.read, tmp_path / "store", workers=1)
    assert contents(tmp_path / "store") == before


def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match=r"contract\.json not found"):
        build(tmp_path)
    assert contents(tmp_path / "store") == {"thesis.tex": b"years of work"}


def test_a_truncated_array_file_is_refused_with_its_bytes(tmp_path):
    store = build(tmp_path)
    arrays = store.path / "arrays.npy"
    full = arrays.stat().st_size
    os.truncate(arrays, full - 7)
    with pytest.raises(StoreError, match=f"arrays.npy: expected {full} bytes for 12 samples, found {full - 7}"):
        ArrayStore.open(store.path)
    with pytest.raises(StoreError, match=r"arrays\.npy"):
        build(tmp_path)


@pytest.mark.parametrize("name", ["arrays.npy", "table.parquet", "dropped.tsv", "contract.json"])
def test_an_absent_or_torn_file_is_refused_by_name(tmp_path, name):
    store = build(tmp_path, p99="nan")
    whole = (store.path / name).read_bytes()
    (store.path / name).write_bytes(b"torn")
    with pytest.raises(StoreError, match="delete the folder and prepare it again"):
        ArrayStore.open(store.path)
    (store.path / name).unlink()
    with pytest.raises(StoreError, match=f"{name} not found"):
        ArrayStore.open(store.path)
    (store.path / name).write_bytes(whole)
    ArrayStore.open(store.path)


def test_files_of_two_stores_are_not_mixed(tmp_path):
    ours, others = build(tmp_path, "ours").path, build(tmp_path, "others", p100="nan").path
    (ours / "table.parquet").write_bytes((others / "table.parquet").read_bytes())
    with pytest.raises(StoreError, match=r"table\.parquet does not fit contract\.json"):
        ArrayStore.open(ours)


def test_a_store_of_another_schema_is_refused(tmp_path):
    store = build(tmp_path)
    record = json.loads((store.path / "contract.json").read_text())
    (store.path / "contract.json").write_text(json.dumps({**record, "schema": 99}))
    with pytest.raises(StoreError, match="schema 99, expected 1"):
        ArrayStore.open(store.path)


def test_verify_names_the_scan_whose_bytes_changed(tmp_path):
    store = build(tmp_path)
    assert store.verify() == []
    with open(store.path / "arrays.npy", "r+b") as file:
        file.seek(128 + 4 * 16384 + 100)
        file.write(b"\1\2\3")
    assert ArrayStore.open(store.path).verify() == ["c/p04//"]


def test_read_copies_rows_in_the_order_asked_into_a_reused_buffer(tmp_path):
    store = build(tmp_path)
    out = np.empty((3, *VOLUME.shape), np.float16)
    indices = np.array([7, 0, 7])
    assert store.read(indices, out) is out
    np.testing.assert_array_equal(out, np.asarray(store.arrays)[indices])
    np.testing.assert_array_equal(store.read([11]), np.asarray(store.arrays)[[11]])
    assert type(store.read([1])) is np.ndarray
    with pytest.raises(ValueError, match=r"out: expected float16 \(2, 1, 16, 16, 32\), found float16 \(3,"):
        store.read([1, 2], out)


def test_the_arrays_are_mapped_when_first_read_cannot_be_written_and_survive_a_pickle(tmp_path):
    store = build(tmp_path)
    assert store._arrays is None
    with pytest.raises(ValueError, match="read-only"):
        store.arrays[0] = 0
    data = pickle.dumps(store)
    assert len(data) < 16384  # less than one sample
    copy = pickle.loads(data)
    np.testing.assert_array_equal(copy.arrays, store.arrays)
    pd.testing.assert_frame_equal(copy.table, store.table)


def test_a_table_that_did_not_come_through_the_door_is_refused(tmp_path):
    with pytest.raises(DataError, match="age_years -4"):
        prepare_store(people().assign(age_years=-4.0), VOLUME, Cohort(tmp_path).read, tmp_path / "store")
    assert not list(tmp_path.iterdir())
