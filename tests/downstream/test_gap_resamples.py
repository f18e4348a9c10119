"""Intervals of corrected gaps hold the error of the correction: against refits written out, and planted truths.

Seeds and the 99.9 % binomial bounds of 95 % are fixed in advance: 91.0 to 98.2 % of 400.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom
from sklearn.linear_model import LinearRegression

from brainage.downstream.gap import NAMES
from brainage.downstream.gap_resamples import GapResamples
from brainage.statistics.bias import CORRECTIONS, Scans
from brainage.statistics.bootstrap import resample_weights
from brainage.statistics.cross_fit import CrossFit, cross_fit
from brainage.statistics.refit import Refits

SEEDS = 400
LOW, HIGH = (binom.ppf(q, SEEDS, 0.95) / SEEDS for q in (0.0005, 0.9995))
TRUTHS = {"none": (-0.4 * (67.5 - 67), -0.4)} | dict.fromkeys(CORRECTIONS, (0.0, 0.0))  # mean gap, its slope on age


def people(n: int, rng: np.random.Generator, slope=0.6, noise_years=5.0) -> tuple[pd.DataFrame, np.ndarray]:
    """n people of one scan without any gap but regression to the mean, and their predicted ages."""
    age = rng.uniform(50, 85, n)
    table = pd.DataFrame({
        "cohort": "c", "participant_id": np.arange(n).astype(str), "session_id": "1", "run": "1",
        "age_years": age, "sex": rng.choice(["F", "M"], n),
    })  # fmt: skip
    return table, slope * age + 67 * (1 - slope) + rng.normal(0, noise_years, n)


def fits(table, predicted, correct, score, names=tuple(CORRECTIONS)) -> dict[str, CrossFit]:
    return {name: cross_fit(CORRECTIONS[name](), table, predicted, correct, score, seed=0) for name in names}


def frame(table, predicted, found: dict[str, CrossFit], rows) -> pd.DataFrame:
    gaps = {f"gap_{name}_years": fit.gap_years for name, fit in found.items()}
    return table.assign(
        predicted_age_years=predicted, gap_none_years=predicted - table["age_years"], **gaps,
        corrected_by=next(iter(found.values())).fold,
    )[rows]  # fmt: skip


def resamples(table, predicted, found, correct, count, seed=0) -> GapResamples:
    scans = Scans.of(table[correct])
    return GapResamples({k: Refits(fit, scans, predicted[correct]) for k, fit in found.items()}, count, seed)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_a_refit_to_weights_is_the_fit_to_people_repeated(name):
    """Residuals are spread by their leverage first, and what that does to the sample itself is taken back."""
    table, predicted = people(60, np.random.default_rng(1))
    table["sex"] = "F"
    scans, everybody = Scans.of(table), np.ones(60, dtype=bool)
    found = fits(table, predicted, everybody, everybody, [name])[name]
    refits, whole = Refits(found, scans, predicted), found.whole
    weights = next(resample_weights(whole.persons_, 20, 3))
    by_row = weights[:, np.searchsorted(whole.persons_, scans.persons)]
    dealt = found.dealt[np.searchsorted(whole.persons_, scans.persons)]
    design = whole.design(scans)
    values, fitted = whole.values(scans, predicted), design @ whole.coef_
    divided = fitted + (values - fitted) / (1 - np.diag(design @ np.linalg.pinv(design)))
    grid = np.array([50.0, 60.0, 70.0, 80.0])
    points = whole.design(Scans(grid, np.zeros(4), np.arange(4, dtype=np.uint64)))
    for fold, coefficients in refits.coefficients(weights).items():
        for drawn, given in zip(by_row, coefficients, strict=True):
            drawn = np.where(dealt == fold, 0, drawn) if fold >= 0 else drawn
            once = np.where(dealt == fold, 0.0, 1.0) if fold >= 0 else np.ones(60)
            expected, moved, back = (
                points @ LinearRegression(fit_intercept=False).fit(design, y, w).coef_
                for y, w in ((divided, drawn), (divided, once), (values, once))
            )
            np.testing.assert_allclose(points @ given, expected - moved + back, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("fitted", "scored"), [(30, 300), (100, 400)])
def test_intervals_hold_the_planted_gap_when_few_people_taught_the_correction(fitted, scored):
    held = {(name, metric): 0 for name in NAMES for metric in ("mean_years", "age_slope")}
    for seed in range(SEEDS):
        table, predicted = people(fitted + scored, np.random.default_rng([31, seed]))
        correct = np.arange(len(table)) < fitted
        found = fits(table, predicted, correct, ~correct)
        part = frame(table, predicted, found, ~correct)
        given = resamples(table, predicted, found, correct, 500, seed).intervals(part)
        for name, metric in held:
            low, high = given[name][metric][1:]
            held[name, metric] += low <= TRUTHS[name][metric == "age_slope"] <= high
    rates = {key: count / SEEDS for key, count in held.items()}
    print(rates)
    for key, rate in rates.items():
        assert LOW <= rate <= HIGH, f"{key}: {rate}"


@pytest.mark.slow
@pytest.mark.parametrize(("well", "ill"), [(80, 100), (200, 100)])
def test_patients_without_a_planted_gap_have_one_in_twenty_times_when_healthy_people_are_cross_fitted(well, ill):
    excluded, held = dict.fromkeys(CORRECTIONS, 0), dict.fromkeys(CORRECTIONS, 0)
    for seed in range(SEEDS):
        table, predicted = people(well + ill, np.random.default_rng([32, seed]))
        correct, everybody = np.arange(len(table)) < well, np.ones(len(table), dtype=bool)
        found = fits(table, predicted, correct, everybody)
        given = resamples(table, predicted, found, correct, 500, seed)
        patients = given.intervals(frame(table, predicted, found, ~correct))
        for name in CORRECTIONS:
            low, high = patients[name]["mean_years"][1:]
            excluded[name] += not low <= 0 <= high
        healthy = given.intervals(frame(table, predicted, found, correct))
        for name in CORRECTIONS:
            held[name] += healthy[name]["mean_years"].low <= 0 <= healthy[name]["mean_years"].high
    print(excluded, held)
    for name, count in excluded.items():
        assert 1 - HIGH <= count / SEEDS <= 1 - LOW, f"{name}: {count / SEEDS}"
