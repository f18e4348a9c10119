"""Who is followed and for how long, and the slope of each person who is: what stands beside the mixed model.

The mixed model holds if drop-out depends on what was seen before (missing at random); whether the gap or the age at the
first visit tells who comes back is shown, and people with one visit are counted.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from brainage.downstream.readout import Readout
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.downstream.task_rows import TaskRows, alone, as_known
from brainage.statistics.bootstrap import Interval, Statistic, bootstrap

VISITS = {"1 visit": (1, 1), "2 visits": (2, 2), "3+ visits": (3, np.inf)}
FEWEST_OUTCOMES = 10  # people with and without follow-up, below which drop-out is not modelled


def person_slopes(visits: pd.DataFrame) -> pd.Series:
    """Least-squares slope of gap_years over years of each person with two or more visits; index: person."""
    grouped = visits.groupby("person")
    years = visits["years"] - grouped["years"].transform("mean")
    sums = pd.DataFrame({"up": years * visits["gap_years"], "over": years**2}).groupby(visits["person"]).sum()
    return (sums["up"] / sums["over"])[sums["over"] > 0]


class FollowUpRows(TaskRows):
    """Makes the rows that need no mixed model; `correction` is a part (`correction=beheshti`)."""

    def __init__(self, readout: Readout, task: str, correction: str, *, resamples: int, seed: int) -> None:
        super().__init__(readout, task)
        self.correction, self.resamples, self.seed = correction, resamples, seed

    def own_slopes(self, people: pd.DataFrame, slopes: pd.Series) -> list[dict[str, Any]]:
        """Mean and sd over people of their own slopes, for those with three or more visits and with two or more."""
        found = []
        for group in dict.fromkeys(people["group"]):
            for subset, fewest in (("3+ visits", 3), ("2+ visits", 2)):
                chosen = people[(people["group"] == group) & (people["visits"] >= fewest)].index
                values = slopes.reindex(chosen).dropna()
                parts = (f"group={group}", f"subset={subset}", self.correction)
                metrics = {"person_slope_mean_years_per_year": _mean, "person_slope_sd_years_per_year": _sd}
                if len(values) < FEWEST_PEOPLE:
                    found += [self.too_few(metric, len(values), *parts) for metric in metrics]
                    continue
                statistics = {metric: make(values.to_numpy()) for metric, make in metrics.items()}
                note = "each person's own least-squares line, its noise included; bootstrap over people"
                known = as_known(self.correction.partition("=")[2])
                drawn = self._bootstrap(statistics, values.index)
                found += [self.row(metric, drawn[metric], len(values), *parts, note, *known) for metric in metrics]
        return found

    def _bootstrap(self, statistics: Mapping[str, Statistic], persons: pd.Index) -> dict[str, Interval]:
        return bootstrap(statistics, persons.to_numpy(dtype=str), resamples=self.resamples, seed=self.seed)

    def dropout(self, people: pd.DataFrame) -> list[dict[str, Any]]:
        """Share of people with one, two, three or more visits; length of follow-up; who is followed at all."""
        found = []
        for group, part in people.groupby("group", sort=False):
            if len(part) < FEWEST_PEOPLE:
                found.append(self.too_few("visits_share", len(part), f"group={group}"))
                continue
            for subset, (low, high) in VISITS.items():
                count = int(part["visits"].between(low, high).sum())
                note = f"{count} of {len(part)} people"
                found.append(self.row("visits_share", alone(count / len(part)), len(part), f"group={group}",
                                      f"subset={subset}", note))  # fmt: skip
            years = part.loc[part["visits"] >= 2, "follow_up_years"]
            if len(years) < FEWEST_PEOPLE:
                found.append(self.too_few("follow_up_years", len(years), f"group={group}"))
                continue
            drawn = self._bootstrap({"mean": _mean(years.to_numpy())}, years.index)["mean"]
            note = "mean over people seen twice or more, first to last visit; bootstrap over people"
            found.append(self.row("follow_up_years", drawn, len(years), f"group={group}", note))
        return found + self._who_is_followed(people)

    def _who_is_followed(self, people: pd.DataFrame) -> list[dict[str, Any]]:
        from statsmodels.discrete.discrete_model import Logit

        metric, parts = "follow_up_odds_ratio", {"gap": "gap_years", "age": "age_years"}
        again = (people["visits"] >= 2).to_numpy()
        least = int(min(again.sum(), (~again).sum()))
        if least < FEWEST_OUTCOMES:
            reason = f"fewer than {FEWEST_OUTCOMES} people were seen {'once' if again.mean() > 0.5 else 'twice'} only"
            return [self.missing(metric, reason, f"term={term}", self.correction) for term in parts]
        centred = people[list(parts.values())] - people[list(parts.values())].mean()
        others = pd.get_dummies(people[["group", "sex"]].astype(object).fillna("NA"), drop_first=True, dtype=float)
        terms = np.column_stack([centred, np.ones(len(people)), others])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # judged by the standard errors below
            try:
                fit = Logit(again.astype(float), terms).fit(disp=0, maxiter=100)
                bad = not fit.mle_retvals["converged"] or not (fit.bse[:2] < 10).all()
            except np.linalg.LinAlgError:
                bad = True
        if bad:
            reason = "the logistic model of who was followed does not converge (a group wholly followed, or not at all)"
            return [self.missing(metric, reason, f"term={term}", self.correction) for term in parts]
        note = f"odds of a second visit, per year; adjusted for the other, group, sex; {again.sum()} people seen again"
        ends = np.exp(np.column_stack([fit.params, fit.conf_int()]))[:2]
        return [self.row(metric, Interval(*map(float, row)), len(people), f"term={term}", self.correction, note)
                for term, row in zip(parts, ends, strict=True)]  # fmt: skip


def _mean(values: np.ndarray) -> Statistic:
    return lambda weights: weights @ values / weights.sum(axis=1)


def _sd(values: np.ndarray) -> Statistic:
    centred = values - values.mean()

    def sd(weights: np.ndarray) -> np.ndarray:
        n = weights.sum(axis=1)
        variance = (weights @ centred**2 - (weights @ centred) ** 2 / n) / (n - 1)
        return np.sqrt(np.maximum(variance, 0))

    return sd
