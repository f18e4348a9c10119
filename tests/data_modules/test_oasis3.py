"""OASIS-3 as downloaded: sessions by days, in every form of the download; the simulated one against its truth."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.table import read_tsv
from brainage.errors import ConfigError, DataError
from data_modules.oasis3 import OASIS3, join_visits
from data_modules.simulated.oasis3 import MODALITIES, write_oasis3
from data_modules.volumes import native_contract
from tests.data_modules import small_oasis3 as small


@pytest.fixture(scope="module")
def simulated_oasis3(tmp_path_factory):
    out = tmp_path_factory.mktemp("oasis3") / "cohort"
    return write_oasis3(out, subjects=14, seed=5, spacing_mm=8.0, workers=1, modalities=tuple(MODALITIES))


def reasons_of(dropped):
    return dropped["reason"].tolist()


# The simulated cohort


@pytest.mark.parametrize("modality", OASIS3.modalities)
def test_the_table_is_the_planted_truth(simulated_oasis3, modality):
    truth = read_tsv(simulated_oasis3 / "simulation" / "truth.tsv").sort_values(["participant_id", "session_id"])
    table = OASIS3(simulated_oasis3, modality).table().table
    for name in ("participant_id", "session_id", "site", "sex"):
        assert table[name].tolist() == truth[name].tolist(), name
    for name in ("age_years", "visit_years", "days_to_clinical", "field_tesla"):
        np.testing.assert_allclose(table[name], pd.to_numeric(truth[name]), atol=1e-6, err_msg=name)
    assert table["diagnosis"].fillna("").tolist() == truth["clinical_diagnosis"].fillna("").tolist()
    assert {"CN", "MCI", "AD"} <= set(table["diagnosis"].dropna())
    assert table["diagnosis"].isna().sum() > 0  # somebody came to the clinic once, years before
    assert table["run"].fillna("").tolist() == ["01" if twice == "True" else "" for twice in truth["two_runs"]]


def test_second_runs_are_listed_and_people_without_mr_are_named(simulated_oasis3):
    truth = read_tsv(simulated_oasis3 / "simulation" / "truth.tsv")
    reader = OASIS3(simulated_oasis3, "head")
    dropped = reader.table().dropped
    assert len(dropped) == (truth["two_runs"] == "True").sum() > 0
    assert set(dropped["run"]) == {"02"}
    assert reader.without_scan() == ["OAS30015"]


def test_brains_of_all_scanners_come_out_alike_and_as_those_of_other_cohorts(simulated_oasis3):
    reader = OASIS3(simulated_oasis3, "brain", 8.0)
    assert reader.contract() == native_contract("brain", 8.0)
    table = reader.table().table.drop_duplicates("site")
    assert len(table) == 3
    first, *others = (reader.read(path) for path in table["path"])
    for other in others:  # stored in other axes, at other places
        assert np.corrcoef(first.ravel(), other.ravel())[0, 1] > 0.9


def test_grey_matter_is_read_on_its_own_grid_the_right_way_up(simulated_oasis3):
    from brainage.imaging.simulate import BrainSimulator
    from brainage.imaging.simulated_people import scans

    reader = OASIS3(simulated_oasis3, "vbm")
    assert reader.contract().modality == "cat12vbm_gm"
    truth = read_tsv(simulated_oasis3 / "simulation" / "truth.tsv")
    truth["biological_age_years"] = pd.to_numeric(truth["biological_age_years"])
    truth["disease_severity"] = pd.to_numeric(truth["disease_severity"])
    table = reader.table().table.set_index(["participant_id", "session_id"])
    brains = BrainSimulator(8.0, 5)
    for scan in scans(truth.iloc[:3]):
        path = table.loc[(scan.participant_id, scan.session_id), "path"]
        np.testing.assert_allclose(reader.read(path)[0], brains.grey_matter(scan), atol=1e-5)
    with pytest.raises(ConfigError, match="own grid of"):
        OASIS3(simulated_oasis3, "vbm", 2.0).contract()


def test_a_truncated_image_is_named_and_another_one_gives_the_grid(simulated_oasis3, tmp_path):
    source = simulated_oasis3 / "derivatives" / "cat12"
    files = [sorted(person.rglob("*.nii.gz"))[0] for person in sorted(source.iterdir())[:2]]
    for file in files:
        copy = tmp_path / file.relative_to(simulated_oasis3)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes()[: 40 if file == files[0] else None])
    reader = OASIS3(tmp_path, "vbm")
    assert reader.contract().shape == OASIS3(simulated_oasis3, "vbm").contract().shape
    with pytest.raises(DataError, match=rf"{files[0].name}: damaged"):
        reader.read(files[0].relative_to(simulated_oasis3).as_posix())
    head = small.touch(tmp_path / "OAS30001_MR_d0129" / "anat2" / "sub-OAS30001_ses-d0129_T1w.nii.gz")
    head.write_bytes(next(simulated_oasis3.glob("*/anat2/*.nii.gz")).read_bytes()[:500])
    with pytest.raises(DataError, match=f"{head.name}: damaged"):
        OASIS3(tmp_path, "head", 8.0).read(head.relative_to(tmp_path).as_posix())


# Forms of the download


def expected_table():
    return [
        ("OAS30001", "d0129", 65.15 + 129 / 365.25, "F", "CN", 129.0),
        ("OAS30001", "d0757", 65.15 + 757 / 365.25, "F", "MCI", 57.0),
        ("OAS30002", "d0000", 67.21, "M", "AD", 10.0),
        ("OAS30003", "d1000", 58.79 + 1000 / 365.25, "F", None, None),
    ]


def found_in(table):
    names = ["participant_id", "session_id", "age_years", "sex", "diagnosis", "days_to_clinical"]
    rows = table[names].astype(object).where(table[names].notna(), None)
    return [tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in rows.itertuples(index=False)]


def expected():
    return [tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in expected_table()]


NAMES = {
    "as the scripts leave it": "{p}_MR_{d}/anat3/sub-{p}_ses-{d}_T1w.nii.gz",
    "as the server zips it": "scans/{p}_MR_{d}/anat3/NIFTI/sub-{p}_ses-{d}_T1w.nii.gz",
    "older names": "{p}_MR_{d}/anat3/sub-{p}_sess-{d}_T1w.nii.gz",
    "in batches": "42_47/{p}_MR_{d}/anat3/sub-{p}_ses-{d}_T1w.nii",
    "BIDS": "sub-{p}/ses-{d}/anat/sub-{p}_ses-{d}_T1w.nii.gz",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_form_of_the_download_is_read(tmp_path, name):
    small.write_tables(tmp_path / "OASIS3_data_files" / "scans" / "demo" / "resources" / "csv" / "files")
    for person, days in small.SESSIONS.items():
        for day in days:
            small.touch(tmp_path / NAMES[name].format(p=person, d=day))
            small.touch(tmp_path / NAMES[name].format(p=person, d=day).replace("T1w", "acq-TSE_T2w"))
    reader = OASIS3(tmp_path, "head")
    table, dropped = reader.table()
    assert found_in(table) == expected()
    assert dropped.empty
    assert reader.without_scan() == ["OAS30004"]
    assert reader.official_split() is None


def test_facts_of_the_person_and_of_the_joined_visit_travel_along(tmp_path):
    table = OASIS3(small.write_cohort(tmp_path), "head").table().table
    assert table["education_years"].tolist()[:3] == [12.0, 12.0, 18.0]
    assert table["apoe4"].fillna(-1).tolist() == [0.0, 0.0, 1.0, -1.0]
    assert table["cdr"].fillna(-1).tolist() == [0.0, 0.5, 1.0, -1.0]
    assert table["mmse"].fillna(-1).tolist() == [29.0, 26.0, -1.0, -1.0]  # 88: not done
    assert table["diagnosis_detail"].fillna("").tolist() == [
        "Cognitively normal",
        "uncertain dementia",
        "AD Dementia",
        "",
    ]
    np.testing.assert_allclose(table["visit_years"] * 365.25, [129, 757, 0, 1000])


def test_the_window_of_clinical_visits_is_an_option_and_its_end_belongs_to_it(tmp_path):
    small.write_cohort(tmp_path)
    wide = OASIS3(tmp_path, "head", options={"clinical_days": 900}).table().table
    assert (wide["diagnosis"][3], wide["days_to_clinical"][3]) == ("CN", 900.0)
    assert OASIS3(tmp_path, "head", options={"clinical_days": 899.5}).table().table["diagnosis"].isna()[3]


def test_sessions_without_a_clinical_visit_are_counted(tmp_path):
    notes = OASIS3(small.write_cohort(tmp_path), "head").notes()
    assert notes == ["1 of 4 sessions have no clinical visit within 365 days: diagnosis missing"]


def test_without_clinical_tables_every_diagnosis_is_missing(tmp_path):
    table = OASIS3(small.write_cohort(tmp_path, UDSb4_cdr=None, UDSd1_diagnoses=None), "head").table().table
    assert table["diagnosis"].isna().all()
    assert len(table) == 4


@pytest.mark.parametrize(("choice", "runs"), [("first", ["01"]), ("last", ["10"]), ("all", ["01", "02", "10"])])
def test_of_several_runs_one_is_taken_and_the_others_are_listed(tmp_path, choice, runs):
    small.write_tables(small.write_images(tmp_path, {"OAS30001": ("d0129",)}, runs=("_run-02", "_run-10", "_run-01")))
    table, dropped = OASIS3(tmp_path, "head", options={"one_run": choice}).table()
    assert table["run"].tolist() == runs
    assert sorted([*runs, *dropped["run"]]) == ["01", "02", "10"]
    assert dropped["reason"].str.contains("another T1 of the session is used").all()


def test_two_files_of_one_name_in_two_folders_are_one_scan(tmp_path):
    small.write_tables(small.write_images(tmp_path, {"OAS30001": ("d0129",)}, runs=("", "")))
    table, dropped = OASIS3(tmp_path, "head", options={"one_run": "all"}).table()
    assert (len(table), len(dropped)) == (1, 1)


def test_unknown_options_are_refused(tmp_path):
    small.write_cohort(tmp_path)
    with pytest.raises(ConfigError, match=r"one_run=best: expected first, last or all"):
        OASIS3(tmp_path, "head", options={"one_run": "best"}).table()
    with pytest.raises(ConfigError, match=r"data.options.clinical_day: unknown .*clinical_days"):
        OASIS3(tmp_path, "head", options={"clinical_day": 1})


# Scanners


SIDECAR = {"Manufacturer": "Siemens", "ManufacturersModelName": "TrioTim", "MagneticFieldStrength": 3}


@pytest.mark.parametrize(
    ("text", "site", "field"),
    [
        (json.dumps(SIDECAR | {"DeviceSerialNumber": 35177}), "TrioTim-35177", 3.0),
        (json.dumps(SIDECAR), "TrioTim-3T", 3.0),
        (json.dumps({"MagneticFieldStrength": 1.5}), "1.5T", 1.5),
        ("{torn", "OASIS3", None),
        ("[]", "OASIS3", None),
    ],
)
def test_the_site_is_the_scanner_as_far_as_the_sidecar_knows_it(tmp_path, text, site, field):
    small.write_cohort(tmp_path)
    (tmp_path / "OAS30002_MR_d0000" / "anat2" / "sub-OAS30002_ses-d0000_T1w.json").write_text(text)
    table = OASIS3(tmp_path, "head").table().table
    assert table["site"].tolist() == ["OASIS3", "OASIS3", site, "OASIS3"]
    assert table["field_tesla"].astype(object).where(table["field_tesla"].notna(), None)[2] == field
    assert set(OASIS3(tmp_path, "head", options={"sidecars": False}).table().table["site"]) == {"OASIS3"}


def test_sidecars_are_also_found_in_the_folder_of_the_server(tmp_path):
    small.write_tables(tmp_path)
    small.touch(tmp_path / "OAS30001_MR_d0129/anat2/NIFTI/sub-OAS30001_ses-d0129_T1w.nii.gz")
    sidecar = small.touch(tmp_path / "OAS30001_MR_d0129/anat2/BIDS/sub-OAS30001_ses-d0129_T1w.json")
    sidecar.write_text(json.dumps(SIDECAR))
    assert OASIS3(tmp_path, "head").table().table["scanner"].tolist() == ["TrioTim"]


def test_the_table_of_series_tells_the_scanner_of_a_session(tmp_path):
    series = pd.DataFrame(
        {
            "subject_id": "OAS30001", "label": ["OAS30001_MR_d0129", "OAS30001_MR_d0129", "OAS30001_PIB_d0129"],
            "scan category": ["T2w", "T1w", "T1w"], "Manufacturer": "Siemens",
            "ManufacturersModelName": ["Vision", "TrioTim", "ECAT"], "MagneticFieldStrength": [1.5, 3.0, ""],
        }
    )  # fmt: skip
    table = OASIS3(small.write_cohort(tmp_path, MR_json=series), "head").table().table
    assert table["site"].tolist() == ["TrioTim-3T", "OASIS3", "OASIS3", "OASIS3"]
    assert table["manufacturer"][0] == "Siemens"


# Conversion


def test_mci_that_becomes_ad_within_the_window_is_progressive(tmp_path):
    d1 = small.visits(
        {
            "OASISID": ["OAS30001"] * 3, "days_to_visit": [100, 750, 1900], "NORMCOG": [1, 0, 0],
            "MCIAMEM": ["", 1, ""], "DEMENTED": ["", "", 1], "PROBAD": ["", "", 1],
        }
    )  # fmt: skip
    small.write_cohort(tmp_path, UDSd1_diagnoses=d1, UDSb4_cdr=None)
    found = [
        OASIS3(tmp_path, "head", options={"conversion_months": months}).table().table["mci_outcome"].fillna("").tolist()
        for months in (24, 36, 48)
    ]
    assert found == [["", "stable", "", ""], ["", "progressive", "", ""], ["", "progressive", "", ""]]


# Files that are not what they should be


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (
            "OAS30001_MR_d0129/anat2/sub-OAS30001_ses-129_T1w.nii.gz",
            "session label '129' does not parse, expected one like d0129",
        ),
        ("OAS30001_MR_d129/anat2/sub-OAS30001_ses-d0129_T1w.nii.gz", "folder says OAS30001 d129, file OAS30001 d0129"),
        ("loose/sub-OAS30001_ses-0129_T1w.nii.gz", "session label '0129' does not parse, expected one like d0129"),
        ("loose/sub-OAS30001_T1w.nii.gz", "session label '' does not parse, expected one like d0129"),
        ("loose/sub-OAS3001_ses-d0129_T1w.nii.gz", "'OAS3001' is no OASIS-3 number like OAS30001"),
        (
            "OAS30001_MR_d0129/anat2/sub-OAS30002_ses-d0129_T1w.nii.gz",
            "folder says OAS30001 d0129, file OAS30002 d0129",
        ),
        ("OAS30777_MR_d0001/anat2/sub-OAS30777_ses-d0001_T1w.nii.gz", "no usable row in the demographic tables"),
    ],
)
def test_files_that_cannot_be_told_a_person_and_a_day_are_listed(tmp_path, name, reason):
    small.touch(small.write_cohort(tmp_path) / name)
    table, dropped = OASIS3(tmp_path, "head").table()
    assert found_in(table) == expected()
    assert dropped[["path", "reason"]].values.tolist() == [[name, reason]]


def test_a_folder_without_the_modality_says_what_it_looked_for(tmp_path):
    small.write_cohort(tmp_path)
    with pytest.raises(DataError, match=r"no vbm image; expected names with .*mwp1"):
        OASIS3(tmp_path, "vbm").table()


# The join, against plain loops

days = st.integers(0, 3000)
visit_rows = st.lists(st.tuples(st.sampled_from("ab"), days, st.sampled_from(["CN", "AD", None])), max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    scans=st.lists(st.tuples(st.sampled_from("abc"), days), min_size=1, max_size=6, unique=True),
    visits=visit_rows,
    window=st.integers(0, 800),
)
def test_the_nearest_visit_that_says_something_is_joined(scans, visits, window):
    visits = list({(person, day): (person, day, found) for person, day, found in visits}.values())
    left = pd.DataFrame(scans, columns=["participant_id", "day"]).assign(run="")
    left["session_id"] = left["day"].astype(str)
    right = pd.DataFrame(visits, columns=["participant_id", "day", "diagnosis"]).astype({"day": "float64"})
    joined = join_visits(left, right.astype({"participant_id": "object", "diagnosis": "string"}), window)
    for row, (person, day) in zip(joined.itertuples(), scans, strict=True):
        near = [(abs(at - day), at, found) for who, at, found in visits if who == person and found]
        near = [one for one in near if one[0] <= window]
        if near:
            away, _, found = min(near)
            assert (row.diagnosis, row.days_to_clinical) == (found, away)
        else:
            assert pd.isna(row.diagnosis)
            assert np.isnan(row.days_to_clinical)


def test_numbers_in_small_letters_are_the_same_people(tmp_path):
    root = small.write_cohort(tmp_path)
    expected = OASIS3(root, "head").table().table
    people = next(root.glob("*demographics*"))
    people.write_text(people.read_text().replace("OAS30", "oas30"))
    (root / "OAS30002_MR_d0000").rename(root / "oas30002_MR_d0000")
    image = next((root / "oas30002_MR_d0000").rglob("*.nii.gz"))
    image.rename(image.with_name(image.name.replace("OAS3", "oas3")))
    found = OASIS3(root, "head").table().table
    pd.testing.assert_frame_equal(found.drop(columns="path"), expected.drop(columns="path"))
