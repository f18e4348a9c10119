"""Principal components as a baseline favour nobody: neither those whom axes, corrections or intervals rest on."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainage.downstream.features import pca_features
from brainage.statistics.metrics import age_slope

F, COMPONENTS = 1500, 60


def samples(n: int, seed: int) -> tuple[np.ndarray, pd.DataFrame]:
    """Many noisy values that follow age a little."""
    rng = np.random.default_rng(seed)
    ages = rng.uniform(55, 90, n)
    direction = np.random.default_rng(99).normal(size=F) / 20
    values = (ages[:, None] - 70) * direction / 10 + rng.normal(size=(n, F))
    keys = pd.DataFrame({"cohort": "c", "participant_id": [str(i) for i in range(n)], "session_id": "1", "run": "1"})
    return values.astype(np.float32), keys.assign(age_years=ages)


@pytest.mark.parametrize("fitted", ["healthy", "everybody"])
def test_axes_of_one_group_alone_give_it_larger_scores_and_axes_of_everybody_do_not(fitted):
    """Why `evaluate_cohort` takes axes of everybody judged: scores of people fitted on spread more than others'."""
    ratios = []
    for seed in range(4):
        values, table = samples(140, seed)
        rows = np.arange(80) if fitted == "healthy" else np.arange(140)
        scores = pca_features(values, table, rows, n_components=COMPONENTS).values
        ratios.append((scores[:80] ** 2).mean() / (scores[80:] ** 2).mean())
    ratio = float(np.mean(ratios))
    assert (ratio > 1.5) if fitted == "healthy" else (0.9 < ratio < 1.1)


def test_the_slope_that_a_correction_learns_is_that_of_others_where_axes_leave_its_people_out():
    from sklearn.linear_model import Ridge

    slopes = {"with": [], "without": []}
    for seed in range(6):
        values, table = samples(400, seed)
        train, val, test = np.arange(150), np.arange(150, 200), np.arange(200, 400)
        age = table["age_years"].to_numpy()
        for name, rows in (("with", np.r_[train, val]), ("without", train)):
            X = pca_features(values, table, rows, n_components=COMPONENTS).values.astype(float)
            predicted = Ridge(alpha=1.0).fit(X[train], age[train]).predict(X)
            one = np.ones((1, 200))
            gap = [float(age_slope(age[p], predicted[p], one[:, : len(p)])[0]) for p in (val, test)]
            slopes[name].append(gap[0] - gap[1])
    assert abs(np.mean(slopes["without"])) < 0.05
    assert np.mean(slopes["with"]) > np.mean(slopes["without"]) + 0.03
