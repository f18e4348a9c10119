"""The real visits of the Dallas Lifespan Brain Study (ds004856), with gaps that are simulated on them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainage.config import EvaluateConfig
from brainage.downstream.longitudinal import evaluate_longitudinal
from brainage.downstream.survival import evaluate_survival
from brainage.downstream.trajectories import follow
from data_modules.bids import BIDS
from tests.downstream.followed_people import found, make_readout

ROOT = Path(os.environ.get("BRAINAGE_REAL_DATA") or "/nonexistent")
WAVES = {
    "wave1": {"age_years": "AgeMRI_W1"},
    "wave2": {"age_years": "AgeMRI_W2", "visit_years": "MRIW1toW2"},
    "wave3": {"age_years": "AgeMRI_W3", "visit_years": "MRIW1toW3"},
}
EVERYBODY = {"group": "all", "correction": "beheshti"}

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not (ROOT / "openneuro").is_dir(), reason="BRAINAGE_REAL_DATA names no folder with openneuro/"),
]


@pytest.fixture(scope="module")
def waves():
    options = {"participants_file": "ds004856_DLBS_participants.tsv", "sessions": WAVES, "cohort_name": "dlbs"}
    return BIDS(ROOT / "openneuro", "head", options=options).people()[0]


def with_gaps(table, slope, seed):
    """Gaps of `slope` a year on average on the visits of `table`."""
    rng = np.random.default_rng(seed)
    person = table["participant_id"].astype("category").cat.codes.to_numpy()
    own = slope + rng.normal(0, 0.1, person.max() + 1)[person]
    years = table["visit_years"].to_numpy(dtype=float)
    gap = rng.normal(0, 3, person.max() + 1)[person] + own * years + rng.normal(0, 1.5, len(table))
    gaps = table.assign(gap_beheshti_years=gap, gap_none_years=gap - 0.1 * table["age_years"], split="test_external")
    gaps["predicted_age_years"] = gaps["age_years"] + gaps["gap_none_years"]
    return gaps.assign(mci_outcome=pd.NA, healthy=True, model="exp", seed=0, corrected_by=-1)


def test_visits_and_drop_out_of_the_dallas_study_are_what_pandas_counts(waves):
    gaps = with_gaps(waves, 0.2, 0)
    result = evaluate_longitudinal(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=200), seed=0)
    seen = waves.groupby("participant_id").size()
    assert seen.value_counts().to_dict() == {1: 150, 2: 135, 3: 179}
    for subset, count in {"1 visit": 150, "2 visits": 135, "3+ visits": 179}.items():
        row = found(result.results, "visits_share", group="all", subset=subset)
        assert (row["estimate"], row["n"]) == (pytest.approx(count / 464), 464)
    last = waves.groupby("participant_id")["visit_years"].max()
    mean = found(result.results, "follow_up_years", group="all")
    assert mean["estimate"] == pytest.approx(last[seen > 1].mean(), abs=1e-6)
    for term in ("age", "gap"):  # the gap is simulated; by age too, the interval of the odds of coming back holds 1
        row = found(result.results, "follow_up_odds_ratio", term=term, correction="beheshti")
        assert row["low"] < 1 < row["high"]
        assert "314 people seen again" in row["note"]
    assert len(result.frames["trajectories"]) == len(waves) == 957


def test_a_planted_slope_is_recovered_on_the_real_visits(waves):
    estimates, hits = [], 0
    for seed in range(20):
        gaps = with_gaps(waves, 0.2, seed)
        rows = evaluate_longitudinal(make_readout(gaps), gaps, config=EvaluateConfig(bootstrap=20), seed=0).results
        row = found(rows, "slope_years_per_year", **EVERYBODY)
        raw = found(rows, "slope_years_per_year", group="all", correction="none")
        estimates.append(row["estimate"])
        hits += row["low"] <= 0.2 <= row["high"]
        assert raw["estimate"] == pytest.approx(row["estimate"] - 0.1, abs=0.01)  # ages in the file are rounded
        assert row["n"] == 464
    assert hits >= 16  # binomial: fewer has a chance of 0.3 %
    assert np.mean(estimates) == pytest.approx(0.2, abs=0.02)


def test_nobody_of_the_dallas_study_has_a_diagnosis_and_survival_says_so(waves):
    gaps = with_gaps(waves, 0.2, 0)
    result = evaluate_survival(make_readout(gaps), gaps, config=EvaluateConfig(), seed=0)
    assert "everybody counts as healthy" in result.results["note"].iloc[0]


def test_without_the_times_of_waves_ages_in_whole_years_are_not_taken_for_times(waves):
    gaps = with_gaps(waves, 0.2, 0)
    followed = follow(gaps.assign(visit_years=np.nan), "beheshti")
    assert followed.people["visits"].eq(1).all()
    assert "314 people (807 scans) without visit_years, and with ages in whole years, left out" in followed.notes
