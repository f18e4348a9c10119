"""Real people: IXI thickness with a hospital held out, through age, gap, site, its controls, harmonisation, fairness.

Needs BRAINAGE_REAL_DATA. What is asserted is what any good evaluation of these 558 people must find.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brainage.config import EvaluateConfig, load_experiment
from brainage.downstream.age import evaluate_age
from brainage.downstream.fairness import evaluate_fairness
from brainage.downstream.features import raw_features
from brainage.downstream.results import parts_of
from brainage.downstream.site import evaluate_site
from brainage.downstream.site_controls import evaluate_site_controls
from data_modules.cohort import CohortDataModule

REAL = os.environ.get("BRAINAGE_REAL_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL, reason="BRAINAGE_REAL_DATA does not name the folder of real data"),
]
CONFIG = EvaluateConfig(
    bootstrap=200, site_permutations=100, nuisance=["age", "sex"], harmonise=["combat", "residual"]
)  # fmt: skip


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """(task, split, metric, parts) -> row of the thicknesses of IXI, IOP held out."""
    folder = tmp_path_factory.mktemp("thickness")
    overrides = [f"data.root={REAL}/ixi_tables", f"data.store={folder / 'store'}", "data.prepare_workers=1"]
    experiment = load_experiment("ixi_thickness_exp", overrides)
    scans = CohortDataModule(experiment.data, seed=0)
    scans.prepare()
    features, shared = (
        raw_features(np.asarray(scans.store.arrays), scans.table),
        {"cohort": "ixi", "config": CONFIG, "seed": 0},
    )
    age, site = evaluate_age(features, scans.table, **shared), evaluate_site(features, scans.table, **shared)
    tasks = [
        evaluate_site_controls(features, scans.table, evaluation=site, **shared),
        evaluate_fairness(age.predictions, **shared),
    ]
    found = {}
    for results in (age.results, site.results, *(task.results for task in tasks)):
        for row in results[results["run"] == "ridge"].to_dict("records"):
            parts = " ".join(map("=".join, parts_of(row["note"]).items()))
            found[row["task"], row["split"].removeprefix("test_"), row["metric"], parts] = row
    return found


def test_hospitals_are_told_apart_by_thickness_beyond_chance_and_beyond_age(rows):
    site = {key[2:]: row for key, row in rows.items() if key[:2] == ("site", "internal")}
    plain, chance = site["balanced_accuracy", ""], site["chance_balanced_accuracy", ""]
    assert plain["estimate"] > 0.75 > chance["high"] > 0.5 > chance["low"]
    assert site["p", ""]["estimate"] == pytest.approx(1 / 101)
    assert site["balanced_accuracy", "predictor=age"]["estimate"] < 0.7
    matched = site["balanced_accuracy", "subset=age_matched"]
    assert matched["low"] > 0.6
    assert 20 < matched["n"] < plain["n"]
    assert site["balanced_accuracy", "after=nuisance term=age, sex"]["estimate"] > 0.7


@pytest.mark.parametrize("how", ["combat", "residual"])
def test_harmonisation_hides_the_hospital_and_keeps_age(rows, how):
    after = rows["site", "internal", "balanced_accuracy", f"after={how}"]
    assert after["estimate"] < 0.62
    assert "fitted on 396 scans of 2 sites, keeping age, sex" in after["note"]
    for split, n in (("internal", 95), ("external", 67)):
        mae, before = (rows["age", split, "mae_years", part] for part in (f"after={how}", ""))
        assert mae["n"] == n
        assert abs(mae["estimate"] - before["estimate"]) < 1
        assert f"before, on the same scans: {before['estimate']:.2f}" in mae["note"]
    assert "67 scans of sites that were not fitted stay as they are" in mae["note"]


def test_errors_by_sex_decade_and_hospital_are_listed_with_what_chance_gives(rows):
    for kind in ("sex", "band", "site"):
        gap, chance = (
            rows["fairness", "internal", name, f"term={kind}"] for name in ("mae_gap_years", "chance_mae_gap_years")
        )
        assert 0 <= gap["estimate"] < 15
        assert chance["low"] < chance["high"]
    assert {"site=Guys", "site=HH", "sex=F", "sex=M"} <= {key[3] for key in rows if key[:2] == ("fairness", "internal")}


def test_the_table_of_hospitals_held_out_is_printed_whole():
    script = Path(__file__).parents[1] / "experiments" / "benchmarks" / "ixi_hospitals.py"
    command = [sys.executable, str(script), REAL, "--bootstrap", "50", "--permutations", "20"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert shown.returncode == 0, shown.stderr[-2000:]
    lines = [line for line in shown.stdout.splitlines() if line.startswith("|")]
    assert lines[0] == "| held out | Guys | HH | IOP |"
    assert len(lines) == 16
    assert "nan" not in shown.stdout
    assert not re.search(r"IXI\d", shown.stdout)
