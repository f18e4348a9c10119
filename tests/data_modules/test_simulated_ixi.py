"""The written layout of IXI, as somebody who knows only the published description would check it; and as it is read."""

from __future__ import annotations

import re

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError
from data_modules.ixi import IXI
from data_modules.simulated.ixi import COLUMNS, HOSPITALS, MODALITIES, write_ixi

SMALL = {"subjects": 12, "seed": 3, "spacing_mm": 8.0, "workers": 1, "modalities": tuple(MODALITIES)}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return write_ixi(tmp_path_factory.mktemp("ixi") / "cohort", **SMALL)


def truth_of(cohort):
    return pd.read_csv(cohort / "simulation" / "truth.tsv", sep="\t", dtype={"session_id": str})


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_names_and_sheet_are_the_published_ones(cohort):
    truth = truth_of(cohort)
    names = {path.name for path in (cohort / "images").iterdir()}
    assert names == {f"{scan}-T1{ending}.nii.gz" for scan in truth["scan"] for ending in ("", "_brain")}
    assert all(re.fullmatch(r"IXI\d{3}-(Guys|HH|IOP)-\d{4}", scan) for scan in truth["scan"])
    sheet = pd.read_csv(cohort / "tables" / "IXI.csv")
    assert list(sheet)[:2] == ["IXI_ID", "SEX_ID (1=m, 2=f)"]
    assert sheet["IXI_ID"].duplicated().any()
    assert sheet.drop_duplicates()["AGE"].isna().sum() == 1


def test_what_somebody_lacks_is_told_by_the_reader(cohort):
    truth = truth_of(cohort)
    reader = IXI(cohort, "brain")
    table, dropped = reader.table()
    whole = truth[truth["whole"]].sort_values("participant_id")
    assert len(whole) == 12
    for name, theirs in (("participant_id", "participant_id"), ("site", "site"), ("sex", "sex")):
        assert table[name].tolist() == whole[theirs].tolist()
    np.testing.assert_allclose(table["age_years"], whole["age_years"])
    lacking = dict(truth.loc[~truth["whole"], ["participant_id", "scan"]].values)
    repeated = dropped["reason"].str.contains("repeated row of")
    reasons = dropped[~repeated].set_index("participant_id")["reason"].to_dict()
    assert set(reasons) == set(lacking)
    assert sorted(reasons.values()) == ["age_years missing", "no usable row in the demographic sheets"]
    assert repeated.sum() > 1
    assert len(reader.without_scan()) == 1


def test_images_lie_in_the_axes_of_their_hospital(cohort):
    found = {
        hospital: {
            "".join(nib.aff2axcodes(nib.load(path).affine)) for path in (cohort / "images").glob(f"*-{hospital}-*")
        }
        for hospital in HOSPITALS
    }
    assert found == {hospital: {axes} for hospital, (_, _, axes) in HOSPITALS.items()}


def test_thickness_falls_with_age_and_has_freesurfers_names(cohort):
    table, truth = IXI(cohort, "thickness").table().table, truth_of(cohort).set_index("participant_id")
    reader = IXI(cohort, "thickness")
    assert reader.contract().features == tuple(sorted(name.removesuffix("_thickness") for name in COLUMNS))
    mean_mm = [float(reader.read(path).mean()) for path in table["path"]]
    assert 1.5 < min(mean_mm) < max(mean_mm) < 4
    assert np.corrcoef(mean_mm, truth.loc[table["participant_id"], "biological_age_years"])[0, 1] < -0.5


def test_the_same_seed_gives_the_same_bytes_whatever_is_asked_besides(cohort, tmp_path):
    again = contents(write_ixi(tmp_path / "again", **SMALL))
    assert again == contents(cohort)
    alone = contents(write_ixi(tmp_path / "alone", **SMALL | {"modalities": ("brain",)}))
    assert {path: data for path, data in again.items() if "_brain" in path.name} == {
        path: data for path, data in alone.items() if path.suffix == ".gz"
    }


def test_impossible_values_are_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"modality 'brains': unknown.*'brain'"):
        write_ixi(tmp_path, subjects=12, seed=0, modalities=("brains",))
    with pytest.raises(ConfigError, match="subjects=1000"):
        write_ixi(tmp_path, subjects=1000, seed=0)
