"""Two participants files of OpenNeuro: waves in columns, two sites; counted by pandas alone for comparison."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_modules.bids import BIDS

ROOT = Path(os.environ.get("BRAINAGE_REAL_DATA") or "/nonexistent")
DLBS = "ds004856_DLBS_participants.tsv"
TWO_SITES = "ds003592_participants.tsv"
WAVES = {
    "wave1": {"age_years": "AgeMRI_W1", "mmse": "MMSE_W1"},
    "wave2": {"age_years": "AgeMRI_W2", "mmse": "MMSE_W2", "visit_years": "MRIW1toW2"},
    "wave3": {"age_years": "AgeMRI_W3", "mmse": "MMSE_W3", "visit_years": "MRIW1toW3"},
}

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (ROOT / "openneuro").is_dir(), reason="BRAINAGE_REAL_DATA names no folder with openneuro/"),
]


def people(file, **options):
    return BIDS(ROOT / "openneuro", "head", options={"participants_file": file, **options}).people()


def test_waves_of_the_dallas_study_are_sessions_with_their_own_age_at_mri():
    table, dropped = people(DLBS, sessions=WAVES, cohort_name="dlbs", columns={"education_years": "EduYrsEstCap"})
    sheet = pd.read_csv(ROOT / "openneuro" / DLBS, sep="\t", na_values="n/a")
    scanned = {f"wave{n}": int(sheet[f"AgeMRI_W{n}"].notna().sum()) for n in (1, 2, 3)}
    assert table["session_id"].value_counts().to_dict() == scanned == {"wave1": 464, "wave2": 300, "wave3": 193}
    tested = sum(int((sheet[f"MMSE_W{n}"].notna() & sheet[f"AgeMRI_W{n}"].isna()).sum()) for n in (1, 2, 3))
    assert len(dropped) == tested > 0  # seen at that wave, not scanned
    assert set(dropped["reason"]) == {"no age of this session"}
    for wave in (1, 2, 3):
        ages = table[table["session_id"] == f"wave{wave}"].set_index("participant_id")["age_years"]
        theirs = sheet.set_index(sheet["participant_id"].str.removeprefix("sub-"))[f"AgeMRI_W{wave}"].dropna()
        pd.testing.assert_series_equal(ages.sort_index(), theirs.sort_index().astype(float), check_names=False,
                                       check_index_type=False)  # fmt: skip
    assert table["sex"].value_counts().loc["F"] == (sheet.set_index("participant_id")["Sex"].loc[
        "sub-" + table["participant_id"]] == "f").sum()  # fmt: skip


def test_ages_and_years_of_the_dallas_study_increase_from_wave_to_wave():
    table, _ = people(DLBS, sessions=WAVES)
    ordered = table.sort_values(["participant_id", "session_id"])
    later = ordered.groupby("participant_id")[["age_years", "visit_years"]].diff().dropna()
    assert len(later) == 300 + 193
    assert (later > 0).all().all()
    first = ordered[ordered["session_id"] == "wave1"]
    assert (first["visit_years"] == 0).all()
    since_first = ordered["age_years"] - ordered.groupby("participant_id")["age_years"].transform("min")
    assert (since_first - ordered["visit_years"]).abs().max() < 1.0  # the file rounds ages, not intervals
    without_second = set(ordered.loc[ordered["session_id"] == "wave3", "participant_id"]) - set(
        ordered.loc[ordered["session_id"] == "wave2", "participant_id"]
    )
    assert len(without_second) == 14


def test_the_second_dataset_has_two_sites_and_one_age_that_is_a_bound():
    table, dropped = people(TWO_SITES)
    sheet = pd.read_csv(ROOT / "openneuro" / TWO_SITES, sep="\t", dtype=str)
    assert table["site"].nunique() == 2
    usable = sheet[pd.to_numeric(sheet["age"], errors="coerce").notna()]
    assert table["site"].value_counts().to_dict() == usable["site"].value_counts().to_dict()
    assert dropped["reason"].tolist() == ["age '89+' is a bound"]
    np.testing.assert_array_equal(table["age_years"], usable.sort_values("participant_id")["age"].astype(float))


def test_the_region_volumes_of_ten_ixi_people_are_a_modality():
    options = {"participants_file": "IXI_demog_n10.csv", "table_file": "IXI_dlmuse_n10.csv", "cohort_name": "ixi"}
    reader = BIDS(ROOT / "ixi_2mm", "roi", options=options)
    table, dropped = reader.table()
    volumes = pd.read_csv(ROOT / "ixi_2mm" / "IXI_dlmuse_n10.csv", index_col="MRID")
    ages = pd.read_csv(ROOT / "ixi_2mm" / "IXI_demog_n10.csv", index_col="MRID")
    assert len(table) == len(volumes) == 10
    assert len(dropped) == 0
    assert reader.contract().features == tuple(volumes.columns)
    for row in table.itertuples():
        assert row.age_years == ages.loc[row.participant_id, "Age"]
        np.testing.assert_allclose(reader.read(row.path), volumes.loc[row.participant_id], rtol=1e-6)
