"""ICBM as its archive gives it: a simulated cohort against its truth, and faults one by one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainage.errors import DataError
from data_modules.adni import ADNI
from data_modules.check import assert_cohort
from data_modules.icbm import ICBM
from data_modules.simulated.icbm import write_icbm
from tests.data_modules import small_adni as small

PERSON = "MNI_0579"


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("icbm") / "all"
    return write_icbm(folder, subjects=24, seed=2, spacing_mm=8.0, modalities=("head", "brain"))


@pytest.fixture
def root(tmp_path):
    """Two dates of one person, as tables see them."""
    for number, date in ((5, "2006-09-14"), (6, "2008-09-14")):
        small.image(tmp_path, number, date, "T1", PERSON)
    sheet(tmp_path, {"Image Data ID": "5", "Age": "41"}, {"Image Data ID": "6", "Age": "43", "Acq Date": "9/14/2008"})
    return tmp_path


def sheet(folder, *rows):
    common = {
        "Subject": PERSON,
        "Group": "Normal",
        "Description": "T1",
        "Sex": "F",
        "Acq Date": "9/14/2006",
        "Age": "41",
    }
    small.search(*[common | row for row in rows]).to_csv(folder / "search.csv", index=False)


def test_the_table_is_the_planted_truth_and_every_other_scan_is_listed(cohort):
    table, dropped = ICBM(cohort, "head").table()
    truth = pd.read_csv(cohort / "simulation" / "truth.tsv", sep="\t", dtype={"session_id": str, "image_id": str})
    planted = truth[truth["fate"] == "table"]
    both = planted.merge(table, on=["participant_id", "session_id"], suffixes=("_true", ""), validate="one_to_one")
    assert len(both) == len(planted) == len(table)
    for name in ("age_years", "visit_years"):
        np.testing.assert_allclose(both[name], both[f"{name}_true"], atol=1e-9)
    assert (both["sex"] == both["sex_true"]).all()
    assert (both["site"] == both["site_true"]).all()
    assert (both["visit_years"] > 0).any()
    assert set(table["diagnosis"]) == {"CN"}
    words = {
        "repeat": "second T1 of this session",
        "no file": "has no file here",
        "nobody": "person is not in the image-",
    }
    for fate, reason in words.items():
        planted = (truth["fate"] == fate).sum()
        assert dropped["reason"].str.contains(reason).sum() == planted > 0


@pytest.mark.parametrize("modality", ["head", "brain"])
def test_the_battery_passes(cohort, modality, tmp_path):
    assert_cohort(ICBM(cohort, modality, 8.0), tmp_path, scans=3)


def test_its_brains_fit_encoders_of_adni(cohort):
    assert ICBM(cohort, "brain", 4.0).contract() == ADNI(cohort, "brain", 4.0).contract()


def test_sessions_are_dates_and_ages_those_of_the_image(root):
    table = ICBM(root, "head").table().table
    assert table["session_id"].tolist() == ["20060914", "20080914"]
    assert table["age_years"].tolist() == [41.0, 43.0]
    assert table["visit_years"].tolist() == [0.0, pytest.approx(2.0, abs=0.01)]
    assert table[["site", "diagnosis_detail"]].values.tolist() == [["MNI", "Normal"]] * 2


def test_an_image_without_a_row_and_a_range_of_ages_are_left_out(root):
    small.image(root, 8, "2009-01-01", "T1", PERSON)
    small.image(root, 9, "2009-02-01", "T1", "UCLA_0001")
    sheet(root, {"Image Data ID": "5"}, {"Image Data ID": "6", "Age": "40-45", "Acq Date": "9/14/2008"})
    table, dropped = ICBM(root, "head").table()
    assert table["session_id"].tolist() == ["20060914"]
    assert sorted(dropped["reason"]) == [
        "age '40-45' is a range", "image I8 has no row in the image-search CSV",
        "person is not in the image-search CSV",
    ]  # fmt: skip


def test_another_group_than_healthy_is_told_apart(root):
    sheet(
        root, {"Image Data ID": "5", "Group": "Patient"}, {"Image Data ID": "6", "Acq Date": "9/14/2008", "Group": ""}
    )
    assert ICBM(root, "head").table().table["diagnosis"].tolist() == ["other", "CN"]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no image-search CSV .*here or one folder down"):
        ICBM(tmp_path, "head").table()
    sheet(tmp_path, {"Image Data ID": "5"})
    with pytest.raises(DataError, match="no NIfTI image found; expected for example ICBM/MNI_0579/T1/"):
        ICBM(tmp_path, "head").table()


def test_people_of_the_sheet_without_any_image_are_named(root):
    other = {"Image Data ID": "7", "Subject": "UCLA_0001", "Description": "BOLD"}
    sheet(root, {"Image Data ID": "5"}, {"Image Data ID": "6", "Acq Date": "9/14/2008"}, other)
    assert ICBM(root, "head").without_scan() == ["UCLA_0001"]


def test_prepared_maps_join_by_date_or_by_the_only_date(root):
    for label, session in (("MNI0579", "20060914"), ("MNI0579", "3"), ("UCLA0001", "")):
        name = f"sub-{label}" + (f"/ses-{session}" if session else "")
        folder = root / "derivatives" / name
        folder.mkdir(parents=True)
        (folder / f"{name.replace('/', '_')}_preproc-quasiraw_T1w.nii.gz").write_bytes(b"none")
    other = {"Image Data ID": "7", "Subject": "UCLA_0001", "Age": "30"}
    sheet(root, {"Image Data ID": "5"}, {"Image Data ID": "6", "Acq Date": "9/14/2008", "Age": "43"}, other)
    table, dropped = ICBM(root, "quasiraw").table()
    assert table[["participant_id", "session_id", "age_years"]].values.tolist() == [
        [PERSON, "20060914", 41.0], ["UCLA_0001", "20060914", 30.0],
    ]  # fmt: skip
    assert dropped["reason"].tolist() == ["session '3' is no date at which the image-search CSV has this person"]


def test_subjects_in_small_letters_are_the_same_people(root):
    expected = ICBM(root, "head").table().table["participant_id"].tolist()
    for file in root.glob("*.csv"):
        file.write_text(file.read_text().replace("MNI_", "mni_"))
    assert ICBM(root, "head").table().table["participant_id"].tolist() == expected
