"""An evaluation folder as `brainage evaluate --on` leaves one: invented people with planted group effects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from brainage.data.table import KEY, finish_table, write_table
from brainage.downstream.results import missing_row, result_row, results_frame, too_few_row, write_results
from brainage.reporting.cohort_sections import cohort_section
from brainage.reporting.evaluations import Evaluation, read_evaluations
from brainage.reporting.page import Page
from brainage.reporting.run_folder import read_run
from brainage.statistics.bootstrap import Interval
from tests.reporting.fake_run import PERSON_PREFIX

GROUP_GAPS = {"CN": 0.0, "MCI": 2.0, "AD": 5.0}
SLOPE = -0.25  # of the raw gap on age
PAIRS = {"CN-AD": ("CN", "AD"), "CN-MCI": ("CN", "MCI")}
AUCS = {"age_sex": 0.56, "gap": 0.74, "probe": 0.83, "finetuned": 0.85, "scratch": 0.71}
WHERE = ("exp", "adni", "test_external")
SEED0 = "exp-seed0"


def write_fake_evaluation(run: Path, name: str = "adni", people: int = 240) -> Path:
    """Write RUN/evaluations/<name> with every file."""
    folder = run / "evaluations" / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    table = fake_table(rng, people)
    gaps = fake_gaps(rng, table)
    write_table(table, folder / "table.parquet")
    write_table(gaps, folder / "gaps.parquet")
    write_table(fake_predictions(gaps), folder / "predictions.parquet")
    write_table(fake_diagnosis(rng, gaps), folder / "diagnosis.parquet")
    write_table(fake_trajectories(gaps), folder / "trajectories.parquet")
    write_table(fake_survival(rng, gaps), folder / "survival.parquet")
    write_results(fake_results(gaps), folder / "results.csv")
    (folder / "evaluation.yaml").write_text(
        "data:\n  cohort: adni\nevaluate:\n  label_shares: [0.1, 0.5, 1.0]\nfinetune:\n  epochs: 7\n  mode: last\n"
    )
    return folder


def fake_table(rng: np.random.Generator, people: int) -> pd.DataFrame:
    """Two to four visits a person, half a year to a year apart."""
    visits = rng.integers(2, 5, people)
    person = np.repeat(np.arange(people), visits)
    visit = np.concatenate([np.arange(count) for count in visits])
    groups = np.array(list(GROUP_GAPS))[rng.choice(3, people, p=[0.45, 0.35, 0.2])]
    ages = rng.uniform(58, 88, people) + np.where(groups == "AD", 2.0, 0.0)
    outcome = np.where(groups == "MCI", rng.choice(["stable", "progressive"], people), "")
    names = [f"{PERSON_PREFIX}A{number:04d}" for number in person]
    rows = pd.DataFrame({
        "cohort": "adni", "participant_id": names, "session_id": (visit + 1).astype(str),
        "site": [f"s{number % 5}" for number in person], "age_years": ages[person] + visit,
        "visit_years": visit.astype(float), "sex": rng.choice(["F", "M"], people)[person],
        "diagnosis": groups[person], "mci_outcome": outcome[person], "split": "test_external",
        "path": [f"{one}.nii" for one in names],
    })  # fmt: skip
    return finish_table(rows, source="adni").table


def fake_gaps(rng: np.random.Generator, table: pd.DataFrame) -> pd.DataFrame:
    code = table["diagnosis"].astype(str)
    own = pd.Series(rng.normal(0, 4, len(table)), index=table.index)
    own = own.groupby(table["participant_id"]).transform("first")
    planted = code.map(GROUP_GAPS) + own + table["visit_years"] * code.map({"CN": 0.0, "MCI": 0.3, "AD": 0.8})
    corrected = planted + rng.normal(0, 1, len(table))
    raw = corrected + SLOPE * (table["age_years"] - 70)
    columns = [*KEY, "split", "site", "age_years", "sex", "diagnosis", "visit_years", "mci_outcome"]
    return table[columns].assign(
        healthy=(code == "CN").to_numpy(), model=SEED0, seed=0, predicted_age_years=table["age_years"] + raw,
        gap_none_years=raw, gap_beheshti_years=corrected, gap_cole_years=corrected / (1 + SLOPE),
        gap_conditional_years=corrected, corrected_by=0,
    )  # fmt: skip


def fake_predictions(gaps: pd.DataFrame) -> pd.DataFrame:
    columns = [*KEY, "split", "site", "age_years", "sex", "model", "seed", "predicted_age_years", "healthy"]
    return gaps.assign(model="exp")[columns]


def fake_diagnosis(rng: np.random.Generator, gaps: pd.DataFrame) -> pd.DataFrame:
    first = gaps.drop_duplicates("participant_id")
    frames = []
    for pair, (low, high) in PAIRS.items():
        rows = first[first["diagnosis"].isin([low, high])]
        truth = (rows["diagnosis"] == high).to_numpy(int)
        for predictor, auc in AUCS.items():
            marker = rng.normal(0, 1, len(rows)) + 4 * (auc - 0.5) * (truth - 0.5)
            fold = np.arange(len(rows)) % 5
            score = 1 / (1 + np.exp(0.5 * fold - marker))  # every fold has its own idea of how likely a patient is
            for folds, share in (("people", 1.0), ("people", 0.1), ("site", 1.0)):
                shown = marker if (folds, share) == ("people", 1.0) else -marker
                frames.append(rows[[*KEY, "site", "age_years", "sex", "diagnosis"]].assign(
                    pair=pair, predictor=predictor, folds=folds, labels=share, fold=fold, truth=truth, score=score,
                    marker=shown, model=SEED0, seed=0,
                ))  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def fake_trajectories(gaps: pd.DataFrame) -> pd.DataFrame:
    grouped = gaps.groupby("participant_id")
    progressive = gaps["mci_outcome"].astype("string").fillna("") == "progressive"
    left = grouped["visit_years"].transform("max") - gaps["visit_years"]
    gain = grouped["gap_beheshti_years"].transform("last") - grouped["gap_beheshti_years"].transform("first")
    return gaps[KEY].assign(
        group=gaps["diagnosis"], converter=np.where(progressive, "converter", "stable"),
        visit_years=gaps["visit_years"], years_to_conversion=left.where(progressive),
        gap_years=gaps["gap_beheshti_years"], age_years=gaps["age_years"],
        baseline_age_years=grouped["age_years"].transform("first"),
        slope_years_per_year=gain / grouped["visit_years"].transform("max"), model=SEED0, seed=0,
    )  # fmt: skip


def fake_survival(rng: np.random.Generator, gaps: pd.DataFrame) -> pd.DataFrame:
    first = gaps[gaps["diagnosis"] == "MCI"].drop_duplicates("participant_id")
    gap = first["gap_beheshti_years"].to_numpy()
    time = rng.exponential(6 * np.exp(-0.12 * gap))
    return first[["cohort", "participant_id"]].assign(
        group="MCI", time_years=np.minimum(time, 5.0).round(2), event=time < 5.0, gap_years=gap,
        stratum=np.where(gap > np.median(gap), "gap above the median", "gap up to the median"), model=SEED0, seed=0,
    )  # fmt: skip


def _around(value: float, half: float) -> Interval:
    return Interval(value, value - half, value + half)


def _alone(value: float) -> Interval:
    return Interval(value, np.nan, np.nan)


def fake_results(gaps: pd.DataFrame) -> pd.DataFrame:
    first = gaps.drop_duplicates("participant_id")
    n = len(first)
    rows = [result_row(*WHERE, "age", metric, _around(value, 0.3), n, "ridge of the run") for metric, value in {
        "mae_years": 5.1, "rmse_years": 6.4, "r2": 0.55, "pearson_r": 0.78, "bias_years": 0.4, "age_slope": 0.75,
    }.items()]  # fmt: skip
    rows.append(result_row("mean_predictor", *WHERE[1:], "age", "mae_years", _around(7.4, 0.4), n, "predicts 72 years"))
    rows += [
        *_interval_rows(n),
        *_gap_rows(first),
        *_diagnosis_rows(n),
        *_site_rows(n),
        *_fair_rows(n),
        *_baseline_rows(n),
    ]
    rows += [*_longitudinal_rows(n), *_network_rows(n)]
    return results_frame(rows)


def _interval_rows(n):
    for band, share in (("", 0.91), ("60-69", 0.93), ("70-79", 0.9), ("80-89", 0.86)):
        parts = f"probe=ridge; coverage=0.9{'; band=' + band if band else ''}"
        yield result_row(*WHERE, "age_interval", "coverage", _around(share, 0.03), n, parts)
        yield result_row(*WHERE, "age_interval", "width_years", _around(20.0, 0.5), n, parts)


def _gap_rows(first):
    for correction in ("none", "beheshti", "cole", "conditional"):
        for group in GROUP_GAPS:
            part = first.loc[first["diagnosis"] == group, f"gap_{correction}_years"]
            parts, n = (f"group={group}", f"correction={correction}"), len(part)
            yield result_row(*WHERE, "gap", "mean_years", _around(part.mean(), 0.8), n, *parts)
            yield result_row(*WHERE, "gap", "sd_years", _around(part.std(), 0.3), n, *parts)
            slope = SLOPE if correction == "none" else 0.0
            yield result_row(*WHERE, "gap", "age_slope", _around(slope, 0.05), n, *parts)
        for contrast, value in (("AD-CN", 5.0), ("MCI-CN", 2.0)):
            parts = (f"contrast={contrast}", f"correction={correction}")
            how = "HC2 and t; adjusted for age, sex and site"
            yield result_row(*WHERE, "gap_contrast", "difference_years", _around(value, 1.0), 200, *parts, how)
            yield result_row(*WHERE, "gap_contrast", "hedges_g", _around(value / 4, 0.2), 200, *parts, how)
            yield result_row(*WHERE, "gap_contrast", "p", _alone(1e-6), 200, *parts, how)
            yield result_row(*WHERE, "gap_contrast", "p_holm", _alone(0.012), 200, *parts, how)
    yield missing_row(*WHERE, "gap_repeat", "icc", "3 people were scanned twice within 90 days, fewer than 5")


def _diagnosis_rows(n):
    for pair in PAIRS:
        for predictor, auc in AUCS.items():
            for share in ("", "; labels=0.1", "; labels=0.5"):
                parts = f"pair={pair}; predictor={predictor}{share}"
                less = 0.0 if not share else 0.08 if "0.1" in share else 0.03
                yield result_row(*WHERE, "diagnosis", "auc", _around(auc - less * (auc > 0.6), 0.05), n, parts)
            parts = f"pair={pair}; predictor={predictor}"
            yield result_row(*WHERE, "diagnosis", "auc", _around(auc - 0.02, 0.05), n, f"{parts}; folds=site")
            yield result_row(*WHERE, "diagnosis", "average_precision", _around(auc - 0.1, 0.05), n, parts)
            yield result_row(*WHERE, "diagnosis", "balanced_accuracy", _around(auc - 0.08, 0.05), n, parts)
            yield result_row(*WHERE, "diagnosis", "brier", _around(0.18, 0.02), n, parts)
            yield result_row(*WHERE, "diagnosis", "calibration_slope", _around(0.9, 0.2), n, parts)
        for contrast in ("probe-age_sex", "gap-age_sex", "probe-gap"):
            parts = f"pair={pair}; contrast={contrast}"
            yield result_row(*WHERE, "diagnosis_paired", "auc_difference", _around(0.2, 0.08), n, parts, "DeLong")
            yield result_row(*WHERE, "diagnosis_paired", "p", _alone(0.0004), n, parts, "DeLong")
            yield result_row(*WHERE, "diagnosis_paired", "p_holm", _alone(0.0012), n, parts, "DeLong")
    yield missing_row(*WHERE, "diagnosis", "auc", "4 people of pMCI, fewer than 20", "pair=sMCI-pMCI", "predictor=gap")


def _site_rows(n):
    yield result_row("chance", *WHERE[1:], "site", "balanced_accuracy", _alone(0.2), n, "1 / 5 sites fitted")
    yield result_row(*WHERE, "site", "chance_balanced_accuracy", Interval(0.21, 0.17, 0.24), n, "200 shuffles")
    yield result_row(*WHERE, "site", "p", _alone(0.005), n, "200 shuffles")
    for parts, value in (
        ("", 0.55), ("predictor=age", 0.25), ("after=combat", 0.24), ("after=residual", 0.26),
        ("subset=age_matched", 0.5), ("subset=same_pairs", 0.6), ("after=nuisance; term=age", 0.52),
    ):  # fmt: skip
        yield result_row(*WHERE, "site", "balanced_accuracy", _around(value, 0.04), n, parts, "lbfgs converged")
    for way in ("combat", "residual"):
        yield result_row(*WHERE, "age", "mae_years", _around(5.3, 0.3), 31, f"after={way}", "40 scans",
                         "before, on the same scans: 4.87", "alpha 1")  # fmt: skip


def _baseline_rows(n):
    where = ("pca_ridge", *WHERE[1:])
    yield result_row(*where, "age", "mae_years", _around(6.2, 0.3), n, "ridge of the run")
    yield result_row(*where, "age", "mae_years", _around(4.4, 0.3), 31, "after=combat")
    for pair in PAIRS:
        for predictor, auc in {"probe": 0.78, "gap": 0.7}.items():
            parts = f"pair={pair}; predictor={predictor}"
            yield result_row(*where, "diagnosis", "auc", _around(auc, 0.05), n, parts)
            yield result_row(*where, "diagnosis", "auc", _around(0.99, 0.005), n, f"{parts}; folds=site")
    parts = "contrast=AD-CN; correction=beheshti"
    yield result_row(*where, "gap_contrast", "difference_years", _around(3.2, 1.0), 200, parts)
    yield result_row(*where, "site", "balanced_accuracy", _around(0.7, 0.04), n)


def _fair_rows(n):
    for kind, names in {"sex": "FM", "band": ("60-69", "70-79", "80-89"), "site": ("s0", "s1", "s2")}.items():
        for place, name in enumerate(names):
            yield result_row(*WHERE, "fairness", "mae_years", _around(5 + place / 3, 0.5), 50, f"{kind}={name}")
            yield result_row(*WHERE, "fairness", "bias_years", _around(place / 2, 0.5), 50, f"{kind}={name}")
    yield too_few_row(*WHERE, "fairness", "mae_years", 3, "site=s9")
    for kind in ("sex", "band", "site"):
        yield result_row(*WHERE, "fairness", "mae_gap_years", _around(0.6, 0.4), n, f"contrast={kind}")
        yield result_row(*WHERE, "fairness", "chance_mae_gap_years", _alone(0.4), n, f"contrast={kind}", "200 shuffles")
        yield result_row(*WHERE, "fairness", "p", _alone(0.2), n, f"contrast={kind}", "200 shuffles")


def _longitudinal_rows(n):
    task = (*WHERE, "longitudinal")
    for correction in ("beheshti", "none"):
        part = f"correction={correction}"
        for group, value in (("CN", 0.02), ("MCI", 0.31), ("AD", 0.82)):
            yield result_row(*task, "slope_years_per_year", _around(value, 0.1), 60, f"group={group}", part)
        for contrast, value in (("MCI-CN", 0.29), ("AD-CN", 0.8)):
            parts = (f"contrast={contrast}", part)
            yield result_row(*task, "slope_difference_years_per_year", _around(value, 0.12), 120, *parts)
            yield result_row(*task, "p", _alone(1e-5), 120, *parts)
            yield result_row(*task, "p_holm", _alone(2e-5), 120, *parts)
    for group, value in (("CN", 0.02), ("MCI", 0.31), ("AD", 0.82)):
        parts = (f"group={group}", "subset=2+ visits", "correction=beheshti")
        yield result_row(*task, "person_slope_mean_years_per_year", _around(value, 0.15), 60, *parts)
    for name, value in (("1 visit", 0.0), ("2 visits", 0.33), ("3+ visits", 0.67)):
        yield result_row(*task, "visits_share", _alone(value), 80, "group=CN", f"subset={name}")
    hazard = Interval(1.14, 1.05, 1.23)
    yield result_row(*WHERE, "survival", "hazard_ratio", hazard, n, "term=gap", "80 people, 45 events")
    yield result_row(*WHERE, "survival", "concordance", _around(0.64, 0.05), n, "term=gap")
    yield result_row(*WHERE, "survival", "p", _alone(0.002), n, "term=gap")


def _network_rows(n):
    rng = np.random.default_rng(5)
    for model in ("exp", "l1", "yaware"):
        for seed in range(3):
            label, mae = f"{model}-seed{seed}", 5 + rng.normal(0, 0.5)
            auc = 0.83 - 0.05 * (mae - 5) + rng.normal(0, 0.01)
            yield result_row(label, *WHERE[1:], "age", "mae_years", _around(mae, 0.3), n, "ridge of the run")
            parts = "pair=CN-AD; predictor=probe"
            yield result_row(label, *WHERE[1:], "diagnosis", "auc", _around(auc, 0.05), n, parts)
    found = Interval(-0.7, -0.92, -0.1)
    yield result_row(
        "networks", *WHERE[1:], "mae_auc", "pearson_r", found, 9, "pair=CN-AD; predictor=probe", "Fisher z"
    )
    yield result_row(
        "networks", *WHERE[1:], "mae_auc", "spearman_r", found, 9, "pair=CN-AD; predictor=probe", "Fisher z"
    )


def judged(folder: Path) -> Evaluation:
    (found,) = read_evaluations(read_run(folder))
    return found


def built(folder: Path) -> Page:
    """The page after the cohort's section; the template is not needed to know what is shown."""
    run = read_run(folder)
    page = Page(run, read_evaluations(run))
    for evaluation in page.evaluations:
        cohort_section(evaluation).build(page)
    return page
