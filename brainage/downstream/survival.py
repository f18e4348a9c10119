"""Whether people with a larger gap at their first scan convert sooner: CN to MCI or AD, MCI to AD.

Time runs from the first scan to the visit at which the conversion was first seen, up to one interval between visits
after it happened (interval censoring is not modelled; with the same visits planned for everybody it shifts all times
alike). People who do not convert are censored at their last visit with a diagnosis, which takes leaving the study as
saying nothing about a conversion to come; people who leave because they decline make that false.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import PERSON
from brainage.downstream.readout import NOBODY_DIAGNOSED, Readout
from brainage.downstream.results import FEWEST_PEOPLE, results_frame
from brainage.downstream.task import TaskResult, not_computed
from brainage.downstream.task_rows import TaskRows, alone
from brainage.downstream.trajectories import EVERYBODY, WORSE, follow
from brainage.errors import DataError
from brainage.statistics.bootstrap import bootstrap
from brainage.statistics.survival import FEWEST_EVENTS, concordance, converted_by, fit_cox, logrank_p

TASK = "survival"
SURVIVAL_COLUMNS = [*PERSON, "group", "time_years", "event", "gap_years", "stratum", "model", "seed"]
STRATA = ("lowest third", "middle third", "highest third")  # of the gap at the first scan, within a group
HORIZON_YEARS = 3.0  # as the window of stable and progressive MCI
CONVERTED = "converted_share_3_years"
ASSUMED = "time to the visit that first shows it; others censored at their last diagnosis, taken as uninformative"
_UNITS = {"gap": "year of gap", "age": "year of age", "sex_M": "men against women"}


def evaluate_survival(readout: Readout, gaps: pd.DataFrame, *, config: EvaluateConfig, seed: int) -> TaskResult:
    """Cox regression on the gap at the first scan, age and sex; log-rank and shares converted by thirds of the gap;
    Harrell's concordance. CN and MCI apart. The frame `survival` has one row a person who was seen again.

    `gaps` has GAP_COLUMNS; `config.correction` names the gap. One missing row and no frame where nobody has a
    diagnosis, or nobody who can convert was seen again. Raises what `follow` raises.
    """
    followed = follow(gaps, config.correction)
    people = followed.people
    at_risk = people[people["group"].isin(list(WORSE)) & (people["time_years"] > 0)].copy()
    if at_risk.empty:
        reason = "nobody with CN or MCI at the first scan has a later diagnosis"
        if (people["group"] == EVERYBODY).any():
            reason = NOBODY_DIAGNOSED
        return not_computed(readout.label, readout.cohort, readout.split, TASK, "hazard_ratio", reason)
    at_risk["stratum"] = at_risk.groupby("group")["gap_years"].transform(_thirds)
    at_risk["stratum"] = np.array(STRATA, dtype=object)[at_risk["stratum"].astype(int)]
    rows = _Rows(readout, TASK, config, seed, followed.notes)
    found = []
    for group in WORSE:
        everybody = people[people["group"] == group]
        if len(everybody):
            found += rows.group(group, at_risk[at_risk["group"] == group], len(everybody))
    first = followed.scans.drop_duplicates("person").set_index("person")[PERSON]
    frame = at_risk.join(first).assign(model=readout.label, seed=readout.seed)
    text = dict.fromkeys((*PERSON, "group", "stratum", "model"), "string")
    return TaskResult(results_frame(found), {TASK: frame[SURVIVAL_COLUMNS].astype(text).reset_index(drop=True)})


def _thirds(gap: pd.Series) -> np.ndarray:
    """0, 1 or 2 for each gap; equal gaps are in one third."""
    return np.searchsorted(np.quantile(gap, [1 / 3, 2 / 3]), gap, side="left")


class _Rows(TaskRows):
    def __init__(self, readout: Readout, task: str, config: EvaluateConfig, seed: int, notes: tuple[str, ...]) -> None:
        super().__init__(readout, task)
        self.correction, self.notes = f"correction={config.correction}", notes
        self.resamples, self.seed = config.bootstrap, seed

    def group(self, group: str, at_risk: pd.DataFrame, everybody: int) -> list[dict[str, Any]]:
        """`at_risk`: those of `everybody` in the group who have a later diagnosis."""
        part, events, n = f"group={group}", int(at_risk["event"].sum()), len(at_risk)
        named = {"hazard_ratio": "term=gap", "concordance": "predictor=gap"}
        if n < FEWEST_PEOPLE:
            return [self.too_few(metric, n, part, which, self.correction) for metric, which in named.items()]
        if events < FEWEST_EVENTS:
            reason = f"{events} conversions among {n} people seen again, fewer than {FEWEST_EVENTS}"
            return [self.missing(metric, reason, part, which, self.correction) for metric, which in named.items()]
        counted = f"{events} conversions among {n} people, {everybody - n} without a later diagnosis left out"
        found = self._cox(at_risk, part, counted)
        p = logrank_p(at_risk["time_years"].to_numpy(), at_risk["event"].to_numpy(), at_risk["stratum"].to_numpy(str))
        parts = (part, "contrast=thirds of the gap", self.correction)
        if np.isfinite(p):
            found.append(self.row("p", alone(p), n, *parts, "log-rank", counted))
        else:
            found.append(self.missing("p", "the gap at the first scan has one value only", *parts))
        found += [row for name in STRATA for row in self._share(at_risk[at_risk["stratum"] == name], part, name)]
        return found + self._concordance(at_risk, part, counted)

    def _cox(self, at_risk: pd.DataFrame, part: str, counted: str) -> list[dict[str, Any]]:
        known, notes = at_risk, [counted, *self.notes]
        lost = int(at_risk["sex"].isna().sum())
        if 0 < lost < len(at_risk):
            notes.append(f"{lost} people of unknown sex left out")
            known = at_risk[at_risk["sex"].notna()]
        terms = pd.DataFrame({"gap": known["gap_years"], "age": known["age_years"]})
        if known["sex"].nunique() > 1:
            terms["sex_M"] = (known["sex"] == "M").astype(float)
        else:
            notes.append("not adjusted for sex, which is one or unknown")
        try:
            fit = fit_cox(known["time_years"].to_numpy(), known["event"].to_numpy(), terms)
        except DataError as error:
            return [self.missing("hazard_ratio", str(error), part, "term=gap", self.correction)]
        found = []
        for term, drift in zip(fit.names, fit.drift_p, strict=True):
            ratio, p = fit.hazard_ratio(term)
            named = (part, f"term={term}")
            said = f"per {_UNITS[term]}" if term != "sex_M" else _UNITS[term]
            method = (f"{said}, Cox on {', '.join(fit.names)}, Wald interval", ASSUMED)
            found.append(self.row("hazard_ratio", ratio, fit.people, *named, self.correction, *method, *notes))
            found.append(self.row("p", alone(p), fit.people, *named, self.correction, "hazard ratio other than 1"))
            parts = (part, "contrast=proportional hazards", f"term={term}", self.correction)
            if np.isfinite(drift):
                note = "Schoenfeld residuals against rank of time: small where the ratio changes over time"
                found.append(self.row("p", alone(drift), fit.events, *parts, note))
            else:
                found.append(self.missing("p", "all conversions were seen at one time", *parts))
        return found

    def _share(self, stratum: pd.DataFrame, part: str, name: str) -> list[dict[str, Any]]:
        parts = (part, f"subset={name}", self.correction)
        if len(stratum) < FEWEST_PEOPLE:
            return [self.too_few(CONVERTED, len(stratum), *parts)]
        share = converted_by(stratum["time_years"].to_numpy(), stratum["event"].to_numpy(), HORIZON_YEARS)
        if not np.isfinite(share.estimate):
            return [self.missing(CONVERTED, f"nobody was followed for {HORIZON_YEARS:g} years", *parts)]
        note = "Kaplan-Meier, log(-log) interval; none where nobody or everybody converts"
        return [self.row(CONVERTED, share, len(stratum), *parts, note)]

    def _concordance(self, at_risk: pd.DataFrame, part: str, counted: str) -> list[dict[str, Any]]:
        time, event = at_risk["time_years"].to_numpy(), at_risk["event"].to_numpy()
        scores = {name: at_risk[f"{name}_years"].to_numpy() for name in ("gap", "age")}
        statistics = {
            name: lambda weights, score=score: concordance(time, event, score, weights)
            for name, score in scores.items()
        }  # fmt: skip
        drawn = bootstrap(statistics, at_risk.index.to_numpy(dtype=str), resamples=self.resamples, seed=self.seed)
        note = "Harrell's C of the value at the first scan alone; bootstrap over people"
        found = []
        for name in scores:
            parts = (part, f"predictor={name}", self.correction)
            found.append(self.row("concordance", drawn[name], len(at_risk), *parts, note, counted))
        return found
