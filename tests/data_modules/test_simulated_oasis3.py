"""The written layout of OASIS-3, as somebody who knows only the published description would check it."""

from __future__ import annotations

import json
import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from data_modules.simulated.oasis3 import SCANNERS, write_oasis3

SMALL = {"subjects": 9, "seed": 3, "spacing_mm": 12.0, "workers": 1}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_oasis3(tmp_path_factory.mktemp("oasis3") / "cohort", mci_rate=0.4, ad_rate=0.3, **SMALL)


def read(cohort, name):
    return pd.read_csv(cohort / "OASIS3_data_files" / f"OASIS3_{name}.csv", keep_default_na=False)


def truth_of(cohort):
    return pd.read_csv(cohort / "simulation" / "truth.tsv", sep="\t")


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_sessions_are_folders_by_day_with_a_sidecar_beside_each_image(cohort):
    images = sorted(cohort.glob("OAS3*/anat*/*.nii.gz"))
    truth = truth_of(cohort)
    assert len(images) == len(truth) + truth["two_runs"].sum()
    for image in images:
        session = re.fullmatch(r"(OAS3\d{4})_MR_(d\d{4})", image.parents[1].name)
        assert re.fullmatch(rf"sub-{session[1]}_sess?-{session[2]}(_run-0[12])?_T1w.nii.gz", image.name)
        facts = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
        assert facts["ManufacturersModelName"] in {model for _, model, _, _ in SCANNERS.values()}
    assert any("_sess-" in image.name for image in images)


def test_headers_tell_odd_axes_and_a_place_off_the_middle(cohort):
    images = [nib.load(path) for path in sorted(cohort.glob("OAS3*/anat2/*.nii.gz"))]
    axes = {"".join(nib.aff2axcodes(image.affine)) for image in images}
    assert len(axes) == 3
    assert len({tuple(image.affine[:3, 3].round(3)) for image in images}) == len(images)
    assert all(image.get_data_dtype() == np.int16 and np.asarray(image.dataobj).max() > 0 for image in images)


def test_two_runs_of_a_session_show_one_brain_with_other_noise(cohort):
    first = next(iter(sorted(cohort.glob("OAS3*/anat2/*run-01*.nii.gz"))))
    second = first.parents[1] / "anat3" / first.name.replace("run-01", "run-02")
    one, two = (np.asarray(nib.load(path).dataobj) for path in (first, second))
    assert not np.array_equal(one, two)
    assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.98


def test_the_clinic_sees_people_on_other_days_and_some_of_them_once(cohort):
    visits, truth = read(cohort, "UDSb4_cdr"), truth_of(cohort)
    scanned = set(zip(truth["participant_id"], truth["days"], strict=True))
    assert len(scanned & set(zip(visits["OASISID"], visits["days_to_visit"], strict=True))) < len(scanned) / 4
    assert (visits["OASISID"].value_counts() == 1).any()
    assert set(read(cohort, "demographics")["OASISID"]) - set(truth["participant_id"]) == {"OAS30010"}


def test_people_convert_and_the_form_of_diagnosis_changes_its_version(cohort):
    form = read(cohort, "UDSd1_diagnoses")
    states = form[["NORMCOG", "DEMENTED", "MCIAMEM"]].astype(str)
    assert (states.eq("1").sum(axis=1) == 1).all()
    mci, ad = (set(form.loc[states[name] == "1", "OASISID"]) for name in ("MCIAMEM", "DEMENTED"))
    assert mci & ad  # somebody went from one to the other
    demented = form[states["DEMENTED"] == "1"]
    assert (demented["PROBAD"].astype(str).eq("1") ^ demented["alzdis"].astype(str).eq("1")).all()
    assert {*demented["PROBAD"].astype(str), *demented["alzdis"].astype(str)} >= {"1", ""}


def test_cells_are_empty_and_coded_as_in_the_real_tables(cohort):
    people = read(cohort, "demographics")
    assert set(people["GENDER"]) == {1, 2}
    assert (people["Subject_accession"].astype(str) == "").all()
    assert {"0", "#N/A"} & set(people["APOE"].astype(str))
    assert people["AgeatEntry"].between(40, 95).all()


def test_a_person_ages_with_the_days_and_may_change_scanner(cohort):
    truth = truth_of(cohort)
    entry = truth["age_years"] - truth["days"] / 365.25
    assert (entry.groupby(truth["participant_id"]).agg(np.ptp) < 1e-9).all()
    assert truth.groupby("participant_id")["site"].nunique().max() == 2
    known = truth["days_to_clinical"].dropna()
    assert known.between(0, 365).all()
    assert truth.loc[truth["days_to_clinical"].isna(), "clinical_diagnosis"].isna().all()


def test_the_same_seed_gives_the_same_bytes_and_a_finished_cohort_is_left_alone(cohort, tmp_path):
    other = write_oasis3(tmp_path / "again", mci_rate=0.4, ad_rate=0.3, **SMALL)
    assert contents(cohort) == contents(other)
    before = {path: path.stat().st_mtime_ns for path in other.rglob("*.nii.gz")}
    write_oasis3(other, mci_rate=0.4, ad_rate=0.3, **SMALL)
    assert before == {path: path.stat().st_mtime_ns for path in other.rglob("*.nii.gz")}
    with pytest.raises(DataError, match="other parameters"):
        write_oasis3(other, mci_rate=0.1, ad_rate=0.3, **SMALL)


def test_an_interrupted_cohort_is_completed(cohort, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_oasis3(tmp_path / "torn", mci_rate=0.4, ad_rate=0.3, on_progress=stop, **SMALL)
    write_oasis3(tmp_path / "torn", mci_rate=0.4, ad_rate=0.3, **SMALL)
    assert contents(cohort) == contents(tmp_path / "torn")


def test_impossible_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"modality 'heads': unknown.*'head'"):
        write_oasis3(tmp_path, subjects=9, seed=0, modalities=("heads",))
    with pytest.raises(ConfigError, match="subjects=2"):
        write_oasis3(tmp_path, subjects=2, seed=0)
