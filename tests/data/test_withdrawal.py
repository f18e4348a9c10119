"""People who withdrew leave stores and run folders, as if they had never been there, and nobody else does."""

from __future__ import annotations

import fcntl
import os
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from brainage.data import withdrawal_store
from brainage.data.array_store import ArrayStore
from brainage.data.overlap import OTHER
from brainage.data.splits import split_hash, write_split
from brainage.data.store import prepare_store
from brainage.data.table import KEY, finish_dropped, person_keys, read_table, read_tsv, write_table, write_tsv
from brainage.data.withdrawal import WITHDRAWN, withdraw, withdrawn_people
from brainage.downstream.features import read_embeddings, write_embeddings
from brainage.errors import DataError, StoreError
from brainage.imaging.quality import write_quality
from tests.data.odd_cohort import MASK, VOLUME, Cohort, contents, people

GONE = ["p02", "p05", "p11"]


def persons(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"cohort": "c", "participant_id": names}, dtype="string")


def stamp(path: str) -> str:
    return f"7:{path}"


def build(folder, table, out="store", dropped=None, mask=None, **trouble):
    cohort = Cohort(folder, {key.lstrip("p"): value for key, value in trouble.items()})
    store = prepare_store(
        table, VOLUME, cohort.read, folder / out, workers=1, dropped=dropped, stamp=stamp, mask=mask
    )  # fmt: skip
    return store, cohort


def listed(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """What a reader gives as `dropped` once these people withdrew."""
    return finish_dropped(table[table["participant_id"].isin(names)].assign(reason=WITHDRAWN))


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_store_is_the_one_that_the_others_alone_would_have_given_to_the_byte(tmp_path, mask):
    table = people()  # path 95 is p05's and damaged, 97 is p03's
    build(tmp_path, table, mask=mask, p95="damaged", p97="nan")
    (tmp_path / "fresh").mkdir()
    rest = table[~table["participant_id"].isin(GONE)]
    fresh, _ = build(tmp_path / "fresh", rest, dropped=listed(table, *GONE), mask=mask, p97="nan")

    changes = withdraw(persons(*GONE), stores=[tmp_path / "store"])

    assert [(change.path.name, change.removed) for change in changes] == [("store", 2)]
    assert contents(tmp_path / "store") == contents(fresh.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "reads.log", "store", "store.lock"]


def test_what_was_computed_of_a_store_goes_with_them(tmp_path):
    store, _ = build(tmp_path, people(), mask=MASK)
    assert "p02" in set(write_quality(store)["participant_id"])
    beside = [_made(tmp_path / f"store.{what}") for what in ("sheet", "kept", "kept.sheet")]
    for folder in beside:
        (folder / "thumbnails_1.png").write_bytes(b"p02")
    _made(tmp_path / "store2.sheet")

    changes = withdraw(persons(*GONE), stores=[tmp_path / "store"])

    assert [change.path for change in changes] == [tmp_path / "store", *beside]
    assert all("deleted" in change.note for change in changes[1:])
    assert not any(folder.exists() for folder in beside)
    assert (tmp_path / "store2.sheet").is_dir()
    names = {path.name for path in (tmp_path / "store").iterdir()}
    assert names == {"arrays.npy", "contract.json", "dropped.tsv", "mask.npy", "stamps.tsv", "table.parquet"}
    assert len(write_quality(ArrayStore.open(tmp_path / "store"))) == 9
    _made(beside[0])  # inspected again, without them
    assert withdraw(persons(*GONE), stores=[tmp_path / "store"]) == []
    assert beside[0].is_dir()


def test_a_mixtures_folder_loses_their_rows_by_the_members_name(tmp_path):
    folder = _made(tmp_path / "both")
    ours, theirs = persons("p02", "p01", "p03"), persons("q1", "p02", "p02").assign(cohort="d")
    pairs = ours.join(theirs.set_axis(OTHER, axis=1)).assign(rule="content", verdict="same")
    write_tsv(pairs, folder / "overlap.tsv")
    (folder / "overlap.json").write_text("{}")
    reasons = ["same person as c/p02", "same person as c/p03", "qc"]
    dropped = finish_dropped(persons("q1", "q2", "q3").assign(cohort="d", path="1", reason=reasons))
    write_tsv(dropped, folder / "dropped.tsv")
    table = people(3)
    write_table(pd.concat([table, table.assign(cohort="d")], ignore_index=True), folder / "quality.parquet")
    sheet = _made(tmp_path / "both.sheet")

    assert withdraw(persons("p99"), stores=[folder]) == []
    changes = withdraw(persons("p02"), stores=[folder])

    removed = {change.path.name: change.removed for change in changes}
    assert removed == {"dropped.tsv": 1, "overlap.tsv": 1, "quality.parquet": 1, "both.sheet": 0, "both": 0}
    assert "stores of its members" in changes[-1].note
    assert not sheet.exists()
    assert read_tsv(folder / "overlap.tsv")["participant_id"].tolist() == ["p01", "p03"]
    assert read_tsv(folder / "dropped.tsv")["participant_id"].tolist() == ["q2", "q3"]
    quality = read_table(folder / "quality.parquet")
    assert person_keys(quality).tolist() == ["c/p00", "c/p01", "d/p00", "d/p01", "d/p02"]
    before = contents_of(folder)
    assert withdraw(persons("p02"), stores=[folder]) == []
    assert contents_of(folder) == before
    withdraw(persons("p02").assign(cohort="d"), stores=[folder])  # the other side of a pair
    assert read_tsv(folder / "overlap.tsv").empty


def test_the_smaller_store_opens_without_reading_a_scan_and_the_older_table_no_longer_fits(tmp_path):
    table = people()
    build(tmp_path, table)
    rest, dropped = table[~table["participant_id"].isin(GONE)], listed(table, *GONE)
    with pytest.raises(StoreError, match=r"withdrew.*brainage withdraw"):
        build(tmp_path, rest, dropped=dropped)
    withdraw(persons(*GONE), stores=[tmp_path / "store"])
    os.unlink(tmp_path / "reads.log")
    before = contents(tmp_path / "store")
    store, cohort = build(tmp_path, rest, dropped=dropped)
    assert cohort.reads() == []
    assert contents(tmp_path / "store") == before
    assert store.verify() == []
    assert len(store) == 9
    assert not set(store.table["participant_id"]) & set(GONE)
    with pytest.raises(StoreError, match="expected 12 scans, found 9"):
        build(tmp_path, table)


def test_a_second_call_changes_nothing_and_strangers_are_no_error(tmp_path):
    build(tmp_path, people())
    store = tmp_path / "store"
    assert withdraw(persons("p99"), stores=[store]) == []
    assert len(withdraw(persons(*GONE), stores=[store])) == 1
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.iterdir()}
    assert withdraw(persons(*GONE), stores=[store]) == []
    assert {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in store.iterdir()} == before


def test_a_person_of_another_cohort_with_the_same_number_stays(tmp_path):
    build(tmp_path, people())
    assert withdraw(persons("p02").assign(cohort="d"), stores=[tmp_path / "store"]) == []


def test_someone_who_was_only_listed_gets_the_reason_and_no_sample_is_copied(tmp_path):
    table = people()
    second = finish_dropped(pd.DataFrame({"cohort": "c", "participant_id": ["p77"], "path": "9", "reason": "twice"}))
    build(tmp_path, table, dropped=second)
    before = (tmp_path / "store" / "arrays.npy").stat().st_ino
    changes = withdraw(persons("p77"), stores=[tmp_path / "store"])
    assert [change.removed for change in changes] == [0]
    assert (tmp_path / "store" / "arrays.npy").stat().st_ino == before
    assert ArrayStore.open(tmp_path / "store").dropped["reason"].tolist() == [WITHDRAWN]


@pytest.mark.parametrize("step", [0, 2, 4, 5, 6, 7])
def test_killed_at_any_step_the_next_call_ends_what_was_begun(tmp_path, monkeypatch, step):
    """Every write, rename and deletion is a step; at each of them the process may end."""
    table = people()
    build(tmp_path, table)
    (tmp_path / "fresh").mkdir()
    rest = table[~table["participant_id"].isin(GONE)]
    fresh, _ = build(tmp_path / "fresh", rest, dropped=listed(table, *GONE))
    left = [step]

    class Killed(BaseException):
        pass

    def mortal(function):
        def call(*words, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            return function(*words, **options)

        return call

    with monkeypatch.context() as patch:
        for module, name in (
            (withdrawal_store, "write_tsv"), (withdrawal_store, "write_table"), (withdrawal_store, "write_json_atomic"),
            (withdrawal_store.os, "rename"), (withdrawal_store.os, "fsync"), (withdrawal_store.shutil, "rmtree"),
        ):  # fmt: skip
            patch.setattr(module, name, mortal(getattr(module, name)))
        with pytest.raises(Killed):
            withdraw(persons(*GONE), stores=[tmp_path / "store"])
    withdraw(persons(*GONE), stores=[tmp_path / "store"])
    assert contents(tmp_path / "store") == contents(fresh.path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "reads.log", "store", "store.lock"]


def test_between_the_two_renames_the_old_store_is_out_of_reach(tmp_path, monkeypatch):
    build(tmp_path, people())
    rename, calls = os.rename, []

    def once(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(withdrawal_store.os, "rename", once)
        with pytest.raises(KeyboardInterrupt):
            withdraw(persons(*GONE), stores=[tmp_path / "store"])
    assert not (tmp_path / "store").exists()
    withdraw(persons(*GONE), stores=[tmp_path / "store"])
    assert len(ArrayStore.open(tmp_path / "store")) == 9
    assert not (tmp_path / "store.withdrawn").exists()


def test_progress_counts_the_samples_that_stay(tmp_path):
    build(tmp_path, people())
    seen = []
    withdraw(persons(*GONE), stores=[tmp_path / "store"], on_progress=lambda *counts: seen.append(counts))
    assert seen == [(done, 9) for done in range(1, 10)]


def test_stores_that_cannot_be_rewritten_say_why(tmp_path, monkeypatch):
    table = people()
    build(tmp_path, table)
    store = tmp_path / "store"
    with pytest.raises(StoreError, match="everybody in it is withdrawn"):
        withdraw(persons(*table["participant_id"]), stores=[store])
    with pytest.raises(StoreError, match=r"absent: contract\.json not found"):
        withdraw(persons(*GONE), stores=[tmp_path / "absent"])
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 0))
        with pytest.raises(StoreError, match=r"needs .* GiB beside it"):
            withdraw(persons(*GONE), stores=[store])
    with open(tmp_path / "store.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="preparing it"):
            withdraw(persons(*GONE), stores=[store])
    assert len(ArrayStore.open(store)) == 12
    (tmp_path / "store.building").mkdir()
    assert "delete it" in withdraw(persons("p99"), stores=[store])[0].note


def test_an_unknown_order_of_damaged_scans_is_refused_and_not_guessed(tmp_path):
    table = people().iloc[::-1].reset_index(drop=True)  # not sorted by key
    build(tmp_path, table, p95="damaged")
    (tmp_path / "store" / "stamps.tsv").unlink()
    with pytest.raises(StoreError, match="in which order"):
        withdraw(persons("p02"), stores=[tmp_path / "store"])


@pytest.fixture
def run(tmp_path):
    """A run folder with every table that carries people, and a checkpoint."""
    folder = tmp_path / "run"
    table = people(visit_years=[0.0, 1.0] * 6).assign(split="train")
    table["split"] = table["split"].astype("string")
    write_table(table, _made(folder) / "table.parquet")
    write_split(table[["cohort", "participant_id", "split"]], folder / "split.tsv")
    keys = table[KEY]
    vectors = np.arange(24, dtype=np.float32).reshape(12, 2)
    write_embeddings(_made(folder / "embeddings") / "exp.parquet", keys, vectors, vectors + 1, source="a checkpoint")
    predictions = table.assign(model="exp", predicted_age_years=np.arange(12.0))
    write_table(predictions, folder / "predictions.parquet")
    (folder / "worst.csv").write_text("age,participant_id,cohort\n" + "3,p02,c\n4,p01,c\n")
    (folder / "results.csv").write_text("run,metric,estimate\nexp,mae,3.1\n")
    write_tsv(listed(table, "p05"), folder / "dropped.tsv")
    (_made(folder / "checkpoints") / "last.ckpt").write_bytes(b"weights")
    (folder / "report.html").write_text("<p>p02</p>")
    (folder / "run.lock").touch()
    return folder


def _made(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def test_every_table_of_a_run_loses_them_and_keeps_everything_else(run):
    source = run / "embeddings" / "exp.parquet"
    schema = pq.read_schema(source)
    untouched = {name: (run / name).read_bytes() for name in ("results.csv", "checkpoints/last.ckpt", "dropped.tsv")}
    before = read_embeddings(source)

    changes = withdraw(persons(*GONE), runs=[run])

    removed = {str(change.path.relative_to(run)): change.removed for change in changes if change.removed}
    assert removed == {
        "embeddings/exp.parquet": 3, "predictions.parquet": 3, "split.tsv": 3, "table.parquet": 3, "worst.csv": 1,
    }  # fmt: skip
    stays = ~before.keys["participant_id"].isin(GONE).to_numpy(dtype=bool)
    after = read_embeddings(source)
    assert after.keys["participant_id"].tolist() == before.keys["participant_id"][stays].tolist()
    np.testing.assert_array_equal(after.trunk, before.trunk[stays])
    assert after.source == "a checkpoint"
    assert pq.read_schema(source).equals(schema, check_metadata=True)
    for frame in (
        read_table(run / "table.parquet"),
        read_tsv(run / "split.tsv"),
        read_table(run / "predictions.parquet"),
    ):
        assert len(frame) == 9
        assert not person_keys(frame).isin([f"c/{name}" for name in GONE]).any()
    assert read_table(run / "table.parquet")["visit_years"].dtype == "float64"
    assert (run / "worst.csv").read_text() == "age,participant_id,cohort\n4,p01,c\n"
    assert {name: (run / name).read_bytes() for name in untouched} == untouched


def test_what_cannot_be_undone_is_said(run):
    notes = {change.path.name: change.note for change in withdraw(persons(*GONE), runs=[run]) if not change.removed}
    assert "cannot be undone" in notes["last.ckpt"]
    assert "weights" in notes["last.ckpt"]
    assert "write it again" in notes["report.html"]
    before = contents_of(run)
    assert withdraw(persons(*GONE), runs=[run]) == []
    assert contents_of(run) == before


def contents_of(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_run_in_training_an_absent_one_and_a_torn_table_are_refused(run, tmp_path):
    with open(run / "run.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is training it"):
            withdraw(persons(*GONE), runs=[run])
    with pytest.raises(DataError, match=r"run folder .*absent: not found"):
        withdraw(persons(*GONE), runs=[tmp_path / "absent"])
    (run / "embeddings" / "exp.parquet").write_bytes(b"torn")
    with pytest.raises(DataError, match=r"exp\.parquet: not readable"):
        withdraw(persons(*GONE), runs=[run])


@pytest.mark.parametrize(
    "data",
    [
        b"1000011\n1000022\n",
        b"\xef\xbb\xbfeid\r\n1000022\r\n1000011\r\n\r\n",
        b'"1000011"\r1000022,2025-01-01\r1000011',
        b"  1000011 \n\n1000022\t\n",
    ],
)
def test_withdrawal_lists_are_read_in_every_spelling(tmp_path, data):
    (tmp_path / "w1_2.csv").write_bytes(data)
    found = withdrawn_people([tmp_path / "w1_2.csv"], "ukb")
    assert found.to_numpy().tolist() == [["ukb", "1000011"], ["ukb", "1000022"]]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"1000011\nplease remove these\n", "line 2: expected one id, found 'please remove these'"),
        (b"10000\xe911\n", "UTF-8"),
    ],
)
def test_a_withdrawal_list_that_cannot_be_read_is_never_taken_for_an_empty_one(tmp_path, data, message):
    (tmp_path / "w1_2.csv").write_bytes(data)
    with pytest.raises(DataError, match=rf"w1_2\.csv.*{message}"):
        withdrawn_people([tmp_path / "w1_2.csv"], "ukb")
    with pytest.raises(DataError, match="not found"):
        withdrawn_people([tmp_path / "absent.csv"], "ukb")


def test_a_list_of_the_header_alone_names_nobody(tmp_path):
    (tmp_path / "w1_2.csv").write_text("eid\n")
    assert withdrawn_people([tmp_path / "w1_2.csv"], "ukb").empty


def test_a_finished_run_stays_usable_for_those_who_stayed_and_for_no_other_people(tmp_path):
    from brainage.errors import CheckpointError
    from brainage.pretraining.folder import read_finished
    from brainage.pretraining.run import pretrain
    from tests.scans import SimulatedScans, small_experiment

    experiment = small_experiment(tmp_path)
    data = SimulatedScans(experiment)
    run = pretrain(experiment, data)
    person = data.split["participant_id"].iloc[0]
    gone = data.split[data.split["participant_id"] == person][["cohort", "participant_id"]]
    withdraw(gone, runs=[run.folder])
    with pytest.raises(CheckpointError, match="people or splits changed"):
        read_finished(run.folder, data)  # a cohort that still lists the person
    data.split = data.split[data.split["participant_id"] != person].reset_index(drop=True)
    data.split_hash = split_hash(data.split)
    assert read_finished(run.folder, data) is not None
    data.split.loc[data.split.index[0], "split"] = "val"
    data.split_hash = split_hash(data.split)
    with pytest.raises(CheckpointError, match="people or splits changed"):
        read_finished(run.folder, data)
