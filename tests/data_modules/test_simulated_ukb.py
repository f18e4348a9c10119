"""The simulated UK Biobank: what is planted is read back, and people who withdrew can be taken out of everything."""

from __future__ import annotations

import gzip
import json
import shutil
import zipfile
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.data.splits import write_split
from brainage.data.store import prepare_store
from brainage.data.table import KEY, read_table, read_tsv, write_table
from brainage.data.withdrawal import withdraw
from brainage.downstream.features import read_embeddings, write_embeddings
from brainage.errors import ConfigError, DataError, StoreError
from brainage.imaging.simulate import BrainSimulator
from brainage.imaging.simulated_people import scans
from data_modules import ukb as ukb_module
from data_modules.check import assert_cohort
from data_modules.simulated.ukb import write_ukb
from data_modules.ukb import MEMBERS, UKBiobank

WRITTEN: dict[str, Any] = {"subjects": 24, "seed": 7, "spacing_mm": 8.0, "workers": 1, "modalities": tuple(MEMBERS)}
FATES = {  # of the truth -> the reason that a reader gives; people without a zip have no scan to be dropped
    "withdrawn": "withdrawn",
    "no row": "no row of this person and visit in the tables",
    "no MNI": "zip without T1/T1_brain_to_MNI.nii.gz",
}


@pytest.fixture(scope="module")
def ukb(tmp_path_factory):
    return write_ukb(tmp_path_factory.mktemp("simulated") / "ukb", **WRITTEN)


@pytest.fixture(scope="module")
def truth(ukb):
    text = {"participant_id": str, "session_id": str}
    return pd.read_csv(ukb / "simulation" / "truth.tsv", sep="\t", dtype=text)


@pytest.fixture
def copy(ukb, tmp_path):
    """A cohort of one's own, to be changed."""
    return shutil.copytree(ukb, tmp_path / "ukb")


def test_every_visit_of_the_truth_is_read_or_dropped_by_its_fate(ukb, truth):
    reader = UKBiobank(ukb, "brain_mni")
    table, dropped = reader.table()
    found = {(row.participant_id, row.session_id): row.reason for row in dropped.itertuples()}
    found |= {(row.participant_id, row.session_id): "scan" for row in table.itertuples()}
    planted = {
        (row.participant_id, row.session_id): FATES.get(row.fate, row.fate)
        for row in truth.itertuples()
        if row.fate != "no zip"
    }
    assert found == planted
    assert set(planted.values()) == {"scan", *FATES.values()}
    assert reader.without_scan() == sorted(set(truth.loc[truth["fate"] == "no zip", "participant_id"]))


def test_the_table_holds_the_planted_values(ukb, truth):
    table = UKBiobank(ukb, "brain_mni").table().table
    joined = table.merge(truth, on=["participant_id", "session_id"], suffixes=("", "_planted"))
    assert len(joined) == len(table) > 15
    for name in ("site", "sex"):
        assert (joined[name] == joined[f"{name}_planted"]).all()
    np.testing.assert_allclose(joined["tiv_ml"], joined["tiv_ml_planted"], atol=1e-6)
    np.testing.assert_allclose(joined["age_years"], joined["age_years_planted"], atol=17 / 365.25)
    np.testing.assert_allclose(joined["visit_years"], joined["visit_years_planted"], atol=1.1 / 365.25)
    assert set(joined["session_id"]) == {"2", "3"}
    assert joined["age_years"].between(44.9, 82.1).all()


@pytest.mark.parametrize("modality", MEMBERS)
def test_the_cohort_passes_every_check(ukb, tmp_path, modality):
    assert_cohort(UKBiobank(ukb, modality, 0.0 if modality == "brain_mni" else 8.0), tmp_path, scans=3)


def test_a_brain_in_mni_space_is_the_planted_one_in_ras(ukb, truth):
    reader = UKBiobank(ukb, "brain_mni")
    row = reader.table().table.iloc[3]
    planted = truth[(truth["participant_id"] == row["participant_id"]) & (truth["session_id"] == row["session_id"])]
    brains = BrainSimulator(8.0, 7)
    volume = brains.t1(scans(planted)[0])
    found = reader.read(row["path"])[0]
    np.testing.assert_allclose(found / found.max(), volume / volume.max(), rtol=1e-5)
    assert np.percentile(found[found > 0.1], 99) == pytest.approx(1.0, abs=0.02)
    contract = reader.contract()
    assert contract.modality == "ukb_brain_mni"
    np.testing.assert_allclose(contract.affine, brains.affine)


def test_the_grid_comes_from_the_first_zip_that_can_be_read_and_from_nobody_who_withdrew(copy, monkeypatch):
    reader = UKBiobank(copy, "brain_mni")
    expected = reader.contract()
    first, second = (path.split("!")[0] for path in sorted(reader.table().table["path"])[:2])
    torn = (copy / first).read_bytes()
    (copy / first).write_bytes(torn[:2000] + bytes(500) + torn[2500:])  # its directory is whole
    person = second.rpartition("/")[2].split("_")[0]
    (copy / "w1_1.csv").write_text(f"{person}\n")
    opened = []
    read_member = ukb_module.read_member

    def watched(file, member):
        opened.append(file.name)
        return read_member(file, member)

    monkeypatch.setattr(ukb_module, "read_member", watched)
    assert UKBiobank(copy, "brain_mni").contract() == expected
    withdrawn = {person, *(copy / "w12345_20250101.csv").read_text().split()}
    assert not withdrawn & {name.split("_")[0] for name in opened}
    assert first.rpartition("/")[2] in opened


def test_one_zip_on_another_grid_is_damaged_and_named(copy):
    reader = UKBiobank(copy, "brain_mni")
    path = sorted(reader.table().table["path"])[0]
    reader.contract()
    file, member = path.split("!")
    mirrored = nib.Nifti1Image(np.random.default_rng(0).random((23, 28, 23), np.float32), np.diag([8.0, 8, 8, 1]))
    with zipfile.ZipFile(copy / file, "w") as archive:
        archive.writestr(member, gzip.compress(mirrored.to_bytes()))
    with pytest.raises(DataError, match=r"_20252_.*not on the grid"):
        reader.read(path)


def test_equal_seeds_give_equal_bytes_and_a_rerun_completes(copy, ukb):
    def contents(root):
        return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    for path in [*sorted((copy / "bulk").rglob("*.zip"))[::3], copy / "ukb12345.csv"]:
        path.unlink()
    note = copy / "simulation" / "parameters.json"
    note.write_text(json.dumps(json.loads(note.read_text()) | {"finished": False}))
    seen = []
    write_ukb(copy, **WRITTEN, on_progress=lambda *counts: seen.append(counts))
    assert contents(copy) == contents(ukb)
    assert seen[-1][0] == seen[-1][1]
    write_ukb(copy, **WRITTEN, on_progress=lambda *counts: pytest.fail("a finished cohort was written again"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"style": "p_31"}, "style 'p_31': unknown"),
        ({"modalities": ("vbm",)}, "modality 'vbm': unknown"),
        ({"subjects": 6}, "subjects=6"),
        ({"odd_share": 0.3}, "at most an eighth"),
        ({"repeat_share": 2.0}, "repeat_share=2.0"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_is_written(tmp_path, wrong, message):
    with pytest.raises(ConfigError, match=message):
        write_ukb(tmp_path / "ukb", **{**WRITTEN, **wrong})
    assert not (tmp_path / "ukb").exists()


def prepare(reader: UKBiobank, store, read=None):
    table, dropped = reader.table()
    return prepare_store(
        table, reader.contract(), read or reader.read, store, workers=1, dropped=dropped, stamp=reader.stamp
    )  # fmt: skip


def test_people_who_withdraw_later_are_taken_out_of_store_and_run_and_never_come_back(copy, tmp_path):
    reader = UKBiobank(copy, "brain_mni")
    store = prepare(reader, tmp_path / "store")
    table, arrays = store.table.drop(columns="digest"), np.array(store.arrays)
    run = tmp_path / "run"
    vectors = np.arange(len(table) * 2, dtype=np.float32).reshape(-1, 2)
    (run / "embeddings").mkdir(parents=True)
    write_embeddings(run / "embeddings" / "exp.parquet", table[KEY], vectors, vectors)
    write_table(table, run / "table.parquet")
    people = table[["cohort", "participant_id"]].drop_duplicates()
    write_split(people.assign(split="train"), run / "split.tsv")
    twice = table.loc[table["participant_id"].duplicated(), "participant_id"].iloc[0]
    gone = {twice, table["participant_id"].iloc[-1]}
    (copy / "w12345_20260101.txt").write_text("\n".join(sorted(gone)))

    with pytest.raises(StoreError, match="brainage withdraw"):
        prepare(reader, tmp_path / "store")
    changes = withdraw(reader.withdrawn_people(), stores=[tmp_path / "store"], runs=[run])

    removed = table["participant_id"].isin(gone).sum()
    assert removed >= 3
    assert {change.path.name: change.removed for change in changes} == {
        "store": removed, "table.parquet": removed, "exp.parquet": removed, "split.tsv": 2,
    }  # fmt: skip

    def no_read(path):
        raise AssertionError(f"{path} was read again")

    written = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    smaller = prepare(reader, tmp_path / "store", no_read)
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == written
    rows = store.table.index[~store.table["participant_id"].isin(gone)]
    np.testing.assert_array_equal(smaller.arrays, arrays[rows])
    frames = [reader.table().table, smaller.table, read_table(run / "table.parquet"), read_tsv(run / "split.tsv")]
    for frame in [*frames, read_embeddings(run / "embeddings" / "exp.parquet").keys]:
        assert not set(frame["participant_id"]) & gone
    listed = smaller.dropped[smaller.dropped["participant_id"].isin(gone)]
    assert (listed["reason"] == "withdrawn").all()
    assert withdraw(reader.withdrawn_people(), stores=[tmp_path / "store"], runs=[run]) == []
