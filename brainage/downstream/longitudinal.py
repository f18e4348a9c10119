"""How the gap changes over the years: by group, before conversion, and among whom it could be seen at all.

The model is gap ~ years x group + baseline age + sex, with an intercept and a slope of its own for every person
(`statistics.mixed`). A slope is years of gap per year: 0 where the predicted age keeps pace with the calendar.

What a bias correction does to slopes: age grows by a year a year, so that a correction that subtracts a x age + b
(Beheshti 2019) takes the constant a (mostly negative, so it adds) from every slope, and one that divides the predicted
age by a (Cole 2018) turns a slope s into (1 + s) / a - 1. Differences between groups stay as they are after the first
and are divided by a after the second. A corrected slope of 0 thus says "as the healthy people of the correction differ
from age to age", not "as the calendar"; slopes of the raw gap stand beside it.

Intervals take the correction as known. The error of Beheshti's a moves the slopes of all groups alike: the interval of
a group's corrected slope is too narrow by it, that of a difference is right (but for the folds of a cross-fit, whose a
differ a little); the error of Cole's a is missing in both. Raw and corrected slopes are two views of the same visits: a
difference found in both was found once, and Holm's adjustment counts the contrasts of one correction.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import KEY
from brainage.downstream.dropout import FollowUpRows, person_slopes
from brainage.downstream.readout import NOBODY_DIAGNOSED, Readout
from brainage.downstream.results import FEWEST_PEOPLE, results_frame
from brainage.downstream.task import TaskResult, not_computed
from brainage.downstream.task_rows import TaskRows, alone, as_known
from brainage.downstream.trajectories import CONVERTER, EVERYBODY, GROUPS, STABLE, WORSE, Followed, follow
from brainage.errors import DataError
from brainage.statistics.mixed import MixedFit, fit_mixed
from brainage.statistics.seeds import holm

TASK = "longitudinal"
TRAJECTORY_COLUMNS = [
    *KEY, "group", "converter", "visit_years", "years_to_conversion", "gap_years", "age_years", "baseline_age_years",
    "slope_years_per_year", "model", "seed",
]  # fmt: skip
BANDS = (  # name, from (included) and to (not included) in years before the conversion was first seen
    ("over 4 years before", 4.0, np.inf),
    ("2-4 years before", 2.0, 4.0),
    ("0-2 years before", 1e-6, 2.0),
    ("at conversion or later", -np.inf, 1e-6),
)
SLOPE, DIFFERENCE = "slope_years_per_year", "slope_difference_years_per_year"
CANCELS = ("none", "beheshti")  # corrections whose error does not change differences of slopes


def evaluate_longitudinal(readout: Readout, gaps: pd.DataFrame, *, config: EvaluateConfig, seed: int) -> TaskResult:
    """Slopes by group and for converters, each person's slope, and drop-out; the frame `trajectories`.

    `gaps` has GAP_COLUMNS, one row a scored scan; `config.correction` names the gap that is read, slopes of the raw one
    stand beside it. Where nobody was seen twice there is one missing row and no frame. Groups below FEWEST_PEOPLE
    people seen twice have a row that says so and no part in the model. Raises what `follow` raises.
    """
    rows = _Rows(readout, TASK)
    correction = f"correction={config.correction}"
    beside = FollowUpRows(readout, TASK, correction, resamples=config.bootstrap, seed=seed)
    followed = follow(gaps, config.correction)
    people = followed.people
    if not (people["visits"] >= 2).any():
        reason = "; ".join(["nobody was seen twice", *followed.notes]).replace("; ", ", ")
        return not_computed(readout.label, readout.cohort, readout.split, TASK, SLOPE, reason)
    found = rows.groups(followed, config.correction, terms=True)
    if config.correction != "none":
        found += rows.groups(follow(gaps, "none"), "none", terms=False)
    for group in WORSE:
        if (people["group"] == group).any():
            found += rows.converters(followed, group, correction)
    slopes = person_slopes(followed.visits)
    found += beside.own_slopes(people, slopes) + beside.dropout(people)
    frame = followed.scans.assign(visit_years=followed.scans["years"], model=readout.label, seed=readout.seed)
    frame["slope_years_per_year"] = frame["person"].map(slopes)
    text = dict.fromkeys((*KEY, "group", "converter", "model"), "string")
    trajectories = frame[TRAJECTORY_COLUMNS].astype(text).reset_index(drop=True)
    return TaskResult(results_frame(found), {"trajectories": trajectories})


def design(visits: pd.DataFrame, levels: Iterable[str], level: pd.Series) -> pd.DataFrame:
    """Fixed terms [n, K] of years x level + baseline age (from its mean) + sex; the first level is the reference.

    `sex=M` is left out where all are of one sex.
    """
    others = list(levels)[1:]
    terms = {"intercept": np.ones(len(visits)), "years": visits["years"].to_numpy()}
    for name in others:
        there = (level == name).to_numpy(dtype=float)
        terms[f"group {name}"], terms[f"years x {name}"] = there, there * terms["years"]
    ages = visits["baseline_age_years"].to_numpy()
    if np.ptp(ages) > 0:
        terms["baseline_age"] = ages - ages.mean()
    if visits["sex"].nunique() > 1:
        terms["sex_M"] = (visits["sex"] == "M").to_numpy(dtype=float)
    return pd.DataFrame(terms)


class _Rows(TaskRows):
    """Makes the rows that come from mixed models."""

    def groups(self, followed: Followed, correction: str, *, terms: bool) -> list[dict[str, Any]]:
        """Slopes of each group, their differences, and with `terms` the other terms of the model."""
        part = f"correction={correction}"
        visits, notes = _modelled(followed, followed.visits["group"].notna())
        sizes = _seen_twice(visits, "group")
        known = [g for g in (*GROUPS, EVERYBODY) if (followed.people["group"] == g).any()]
        groups = [g for g in known if sizes.get(g, 0) >= FEWEST_PEOPLE]
        found = [self.too_few(SLOPE, int(sizes.get(g, 0)), f"group={g}", part) for g in known if g not in groups]
        if not groups:
            return found
        visits = visits[visits["group"].isin(groups)]
        try:
            fit = _fit(visits, design(visits, groups, visits["group"]))
        except DataError as error:
            return found + [self.missing(SLOPE, str(error), f"group={g}", part) for g in groups]
        notes = [fit.method, f"{fit.people} people, {fit.scans} visits", *notes]
        if groups == [EVERYBODY]:
            notes.append(NOBODY_DIAGNOSED)
        in_model = visits.drop_duplicates("person")["group"].value_counts()
        slope = {g: {"years": 1.0} if i == 0 else {"years": 1.0, f"years x {g}": 1.0} for i, g in enumerate(groups)}
        if not terms:
            notes.append("raw gap of the people whose corrected one is beside it, the same evidence seen twice")
        known = as_known(correction)
        found += [self.row(SLOPE, fit.contrast(slope[g])[0], int(in_model[g]), f"group={g}", part, *known, *notes)
                  for g in groups]  # fmt: skip
        found += self._differences(fit, slope, in_model, part, [*([] if correction in CANCELS else known), *notes])
        return found + (self._terms(fit, part, notes) if terms else [])

    def _differences(
        self, fit: MixedFit, slope: Mapping[str, Mapping[str, float]], sizes: pd.Series, part: str, notes: list[str]
    ) -> list[dict[str, Any]]:
        pairs = [(high, low) for low, high in combinations(slope, 2)]
        found, chances = [], []
        for high, low in pairs:
            weights = {name: slope[high].get(name, 0.0) - slope[low].get(name, 0.0)
                       for name in {**slope[high], **slope[low]}}  # fmt: skip
            value, p = fit.contrast({name: weight for name, weight in weights.items() if weight})
            chances.append(p)
            named = (int(sizes[high] + sizes[low]), f"contrast={high}-{low}", part)
            found.append(self.row(DIFFERENCE, value, *named, *notes))
            found.append(self.row("p", alone(p), *named, "slopes differ"))
        for (high, low), p in zip(pairs, holm(chances), strict=True):
            parts = (f"contrast={high}-{low}", part)
            said = f"Holm over the {len(pairs)} contrasts of groups under this correction alone"
            found.append(self.row("p_holm", alone(p), int(sizes[high] + sizes[low]), *parts, said))
        return found

    def _terms(self, fit: MixedFit, part: str, notes: list[str]) -> list[dict[str, Any]]:
        unit = {"baseline_age": "years of gap per year of age at the first visit", "sex_M": "years, men minus women",
                "intercept": "years, at the first visit and the mean age"}  # fmt: skip
        found = []
        for name in fit.names:
            if "years" in name.split():
                continue  # slopes and their differences have rows of their own
            parts = (f"term={name.replace(' ', '_')}", part)
            try:
                value, p = fit.contrast({name: 1.0})
            except DataError as error:
                found.append(self.missing("coefficient", str(error), *parts))
                continue
            said = unit.get(name, "years at the first visit, against the first group")
            found.append(self.row("coefficient", value, fit.people, *parts, said, *notes))
            found.append(self.row("p", alone(p), fit.people, *parts, "coefficient other than 0"))
        together = f"correlation with the intercept {fit.correlation:.2f}"
        for name, metric, sd, said in (
            ("person", "sd_years", fit.sd_intercept, "sd between people's intercepts"),
            ("person_slope", "sd_years_per_year", fit.sd_slope, f"sd between people's slopes, {together}"),
            ("residual", "sd_years", fit.sd_residual, "sd between visits of a person"),
        ):
            if np.isfinite(sd):
                found.append(self.row(metric, alone(sd), fit.people, f"term={name}", part, said))
            else:
                found.append(self.missing(metric, fit.reason, f"term={name}", part))
        return found

    def converters(self, followed: Followed, group: str, correction: str) -> list[dict[str, Any]]:
        """Converters against stable people of one group at the first visit: slopes, and gap by time to conversion."""
        named = (f"group={group}", f"contrast={CONVERTER}-{STABLE}", correction)
        people = followed.people[followed.people["group"] == group]
        chosen = (followed.visits["group"] == group) & followed.visits["converter"].isin([CONVERTER, STABLE])
        visits, notes = _modelled(followed, chosen)
        sizes = _seen_twice(visits, "converter")
        least = min(int(sizes.get(name, 0)) for name in (CONVERTER, STABLE))
        if least < FEWEST_PEOPLE:
            return [self.too_few(DIFFERENCE, least, *named)]
        unknown = int((people["converter"] == "unknown").sum())
        notes.append(f"{unknown} people of unknown outcome left out")
        try:
            fit = _fit(visits, design(visits, (STABLE, CONVERTER), visits["converter"]))
        except DataError as error:
            return [self.missing(DIFFERENCE, str(error), *named)]
        value, p = fit.contrast({f"years x {CONVERTER}": 1.0})
        amounts = visits.drop_duplicates("person")["converter"].value_counts()
        notes = [f"{amounts[CONVERTER]} converters, {amounts[STABLE]} stable", fit.method, *notes]
        found = [self.row(DIFFERENCE, value, fit.people, *named, *notes)]
        found.append(self.row("p", alone(p), fit.people, *named, "slopes differ"))
        return found + self._bands(visits, named)

    def _bands(self, visits: pd.DataFrame, named: tuple[str, ...]) -> list[dict[str, Any]]:
        """How far the gap of converters is above that of stable people of their age, sex and year of follow-up."""
        before = visits["years_to_conversion"]
        stable = visits["converter"] == STABLE
        terms = design(visits[stable], (STABLE,), visits.loc[stable, "converter"]).columns
        base = design(visits, (STABLE,), visits["converter"])[terms]
        inside = {name: ~stable & (before >= low) & (before < high) for name, low, high in BANDS}
        counts = {name: int(visits.loc[rows, "person"].nunique()) for name, rows in inside.items()}
        shown = [name for name in inside if counts[name] >= FEWEST_PEOPLE]
        found = [self.too_few("difference_years", n, *named[:2], f"band={name}", *named[2:])
                 for name, n in counts.items() if name not in shown]  # fmt: skip
        if not shown:
            return found
        kept = (stable | np.logical_or.reduce([inside[name] for name in shown])).to_numpy(dtype=bool)
        bands = pd.DataFrame({name: inside[name].to_numpy(dtype=float) for name in shown})
        try:
            fit = _fit(visits[kept], pd.concat([base, bands], axis=1)[kept])
        except DataError as error:
            return found + [self.missing("difference_years", str(error), *named[:2], f"band={n}", *named[2:])
                            for n in shown]  # fmt: skip
        for name in shown:
            parts = (*named[:2], f"band={name}", *named[2:])
            said = f"adjusted for years, baseline age, sex; {int(inside[name].sum())} visits"
            found.append(
                self.row("difference_years", fit.contrast({name: 1.0})[0], counts[name], *parts, said, fit.method)
            )
        return found


def _seen_twice(visits: pd.DataFrame, name: str) -> pd.Series:
    """How many people of each value of a column have two or more visits."""
    return visits[visits["person"].duplicated()].drop_duplicates("person")[name].value_counts()


def _modelled(followed: Followed, chosen: pd.Series) -> tuple[pd.DataFrame, list[str]]:
    """The chosen visits whose sex is known (all where nobody's is), and the notes."""
    visits, notes = followed.visits[chosen], list(followed.notes)
    lost = visits["sex"].isna()
    if lost.all():
        return visits, [*notes, "sex unknown, not adjusted for"]
    if lost.any():
        notes.append(f"{visits.loc[lost, 'person'].nunique()} people of unknown sex left out")
        visits = visits[~lost]
    if visits["sex"].nunique() == 1:
        notes.append(f"all of sex {visits['sex'].iloc[0]}, not adjusted for")
    return visits, notes


def _fit(visits: pd.DataFrame, terms: pd.DataFrame) -> MixedFit:
    years = visits["years"].to_numpy()
    return fit_mixed(visits["gap_years"].to_numpy(), terms, years, visits["person"].to_numpy(dtype=str))
