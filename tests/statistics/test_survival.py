"""Survival statistics: against partial likelihoods, counts and pairs written out, and by what they refuse."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.optimize import minimize

from brainage.errors import DataError
from brainage.statistics import survival as module
from brainage.statistics.survival import concordance, converted_by, fit_cox, logrank_p


def followed(n=150, effect=0.5, seed=0, rounded=False):
    """time, event, terms: two of them, the first with a log hazard ratio of `effect`."""
    rng = np.random.default_rng(seed)
    terms = pd.DataFrame({"gap": rng.normal(0, 2, n), "age": rng.uniform(60, 85, n)})
    until = rng.exponential(1 / (0.2 * np.exp(effect * terms["gap"])))
    ends = rng.uniform(1, 6, n)
    time = np.minimum(until, ends)
    return np.ceil(2 * time) / 2 if rounded else time, until <= ends, terms


def test_without_ties_hazard_ratios_maximise_the_partial_likelihood_written_out():
    time, event, terms = followed()
    x = terms.to_numpy() - terms.to_numpy().mean(axis=0)

    def loss(b):
        risk = np.exp(x @ b)
        return -sum(x[i] @ b - np.log(risk[time >= time[i]].sum()) for i in np.flatnonzero(event))

    def information(b):
        total = 0.0
        for i in np.flatnonzero(event):
            risk = np.where(time >= time[i], np.exp(x @ b), 0.0)
            mean = risk @ x / risk.sum()
            total = total + (x.T * risk) @ x / risk.sum() - np.outer(mean, mean)
        return total

    best = minimize(loss, np.zeros(2), method="BFGS")
    found = fit_cox(time, event, terms)
    np.testing.assert_allclose(found.estimate, best.x, atol=1e-4)
    np.testing.assert_allclose(found.error, np.sqrt(np.diag(np.linalg.inv(information(best.x)))), rtol=1e-3)
    ratio, p = found.hazard_ratio("gap")
    np.testing.assert_allclose(ratio, np.exp(found.estimate[0] + found.error[0] * np.array([0, -1.959964, 1.959964])))
    assert p == pytest.approx(stats.chi2.sf((found.estimate[0] / found.error[0]) ** 2, 1))
    assert (found.people, found.events) == (150, int(event.sum()))


def test_ties_follow_efron():
    time, event, terms = followed(rounded=True)
    x = (terms["gap"] - terms["gap"].mean()).to_numpy()

    def loss(b):
        risk, total = np.exp(x * b[0]), 0.0
        for at in np.unique(time[event]):
            tied = event & (time == at)
            total -= (x[tied] * b[0]).sum()
            steps = np.arange(tied.sum()) / tied.sum()
            total += np.log(risk[time >= at].sum() - steps * risk[tied].sum()).sum()
        return total

    best = minimize(loss, np.zeros(1), method="BFGS")
    np.testing.assert_allclose(fit_cox(time, event, terms[["gap"]]).estimate, best.x, atol=1e-4)


def test_a_ratio_that_turns_round_over_time_is_seen_and_a_constant_one_is_not():
    rng = np.random.default_rng(0)
    group = np.repeat([0.0, 1.0], 200)
    early = rng.exponential(1 / np.where(group == 1, 0.6, 0.1))
    late = 1 + rng.exponential(1 / np.where(group == 1, 0.1, 0.6))
    turning = fit_cox(np.where(early < 1, early, late), np.ones(400, bool), pd.DataFrame({"group": group}))
    constant = fit_cox(rng.exponential(1 / np.where(group == 1, 0.6, 0.2)), np.ones(400, bool),
                       pd.DataFrame({"group": group}))  # fmt: skip
    assert turning.drift_p[0] < 1e-4
    assert constant.drift_p[0] > 0.05


def test_the_log_rank_test_is_the_one_of_scipy():
    time, event, terms = followed(rounded=True)
    high = (terms["gap"] > 0).to_numpy()
    first, second = (stats.CensoredData.right_censored(time[rows], ~event[rows]) for rows in (high, ~high))
    assert logrank_p(time, event, high) == pytest.approx(stats.logrank(first, second).pvalue, rel=1e-6)
    assert np.isnan(logrank_p(time, event, np.zeros(150)))
    assert np.isnan(logrank_p(time, np.zeros(150, bool), high))


def test_the_share_converted_is_one_minus_kaplan_meier():
    time, event, _ = followed(rounded=True)
    curve = stats.ecdf(stats.CensoredData.right_censored(time, ~event)).sf
    found = converted_by(time, event, 2.2)
    assert found.estimate == pytest.approx(1 - curve.evaluate(2.2))
    theirs = stats.ecdf(stats.CensoredData.right_censored(time, ~event)).sf.confidence_interval(method="log-log")
    np.testing.assert_allclose(found[1:], [1 - theirs.high.evaluate(2.2), 1 - theirs.low.evaluate(2.2)], rtol=1e-6)
    assert np.isnan(converted_by(time, event, 50.0)).all()
    assert converted_by(time + 1, event, 0.5).estimate == 0.0


def pairs(time, event, score, rows):
    agreed = total = 0.0
    for i in rows:
        for j in rows:
            if event[i] and (time[i] < time[j] or (time[i] == time[j] and not event[j])):
                total += 1
                agreed += 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
    return agreed / total if total else np.nan


@pytest.mark.parametrize("chunk", [5_000_000, 100])
def test_the_concordance_is_that_of_all_pairs_and_of_resampled_people(monkeypatch, chunk):
    monkeypatch.setattr(module, "_CHUNK_VALUES", chunk)
    time, event, terms = followed(40, rounded=True)
    score = terms["gap"].round().to_numpy()
    rng = np.random.default_rng(1)
    weights = np.stack([np.ones(40), np.bincount(rng.integers(0, 40, 40), minlength=40), np.zeros(40)])
    found = concordance(time, event, score, weights)
    assert found[0] == pytest.approx(pairs(time, event, score, np.arange(40)))
    assert found[1] == pytest.approx(pairs(time, event, score, np.repeat(np.arange(40), weights[1].astype(int))))
    assert np.isnan(found[2])
    assert concordance(time, event, event - 10 * time, np.ones((1, 40)))[0] == 1.0


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_concordance_of_many_events_is_that_of_all_pairs(decimals):
    rng = np.random.default_rng(decimals)
    time, score = rng.exponential(5, 600).round(decimals) + 0.5, rng.normal(size=600).round(decimals)
    event, weights = rng.random(600) < 0.5, rng.poisson(1, size=(4, 600)).astype(float)
    later = (time > time[:, None]) | ((time == time[:, None]) & event[:, None] & ~event)
    later &= event[:, None]
    higher = (score[:, None] > score) + 0.5 * (score[:, None] == score)
    expected = [w @ (later * higher) @ w / (w @ later @ w) for w in weights]
    np.testing.assert_allclose(concordance(time, event, score, weights), expected, rtol=1e-12)


def test_nobody_with_the_event_is_no_concordance_and_a_score_that_is_not_finite_is_refused():
    time, event = np.array([1.0, 2.0]), np.array([True, True])
    assert np.isnan(concordance(time, ~event, time, np.ones((3, 2)))).all()
    with pytest.raises(DataError, match="1 scores that are not finite"):
        concordance(time, event, np.array([1.0, np.nan]), np.ones((1, 2)))


def test_what_cannot_be_fitted_is_refused_with_the_reason():
    time, event, terms = followed()
    with pytest.raises(DataError, match="expected 10 events or more, found 9"):
        fit_cox(time, event & (event.cumsum() <= 9), terms)
    with pytest.raises(DataError, match="not told apart"):
        fit_cox(time, event, terms.assign(one=1.0))
    with pytest.raises(DataError, match="not told apart"):
        fit_cox(time, event, terms.assign(again=2 * terms["gap"]))
    with pytest.raises(DataError, match="not finite"):
        fit_cox(time, event, terms.assign(gap=np.nan))
    with pytest.raises(DataError, match="does not converge"):
        fit_cox(np.where(event, time, 10.0), event, pd.DataFrame({"event": event.astype(float)}))
    for bad in (0.0, -1.0, np.nan):
        with pytest.raises(DataError, match="1 times that are not above 0"):
            fit_cox(np.r_[bad, time[1:]], event, terms)
