"""What the diagnosis task says of the scores of one arm: areas, other metrics, contrasts, and their notes.

n people of a pair. Areas of whole sites held out, and of networks, are over case-control pairs within folds
(`roc_within`): their fold models rank sites, or have no common scale. Contrasts are over one kind of pairs for both.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit

from brainage.config import EvaluateConfig
from brainage.downstream.classifiers import CrossFitted
from brainage.downstream.diagnosis_folds import Folds, Pair
from brainage.downstream.readout import Readout
from brainage.downstream.results import result_row
from brainage.statistics import roc, roc_within
from brainage.statistics.bootstrap import Interval, bootstrap
from brainage.statistics.metrics import balanced_accuracy
from brainage.statistics.seeds import holm

BASELINE = "age_sex"
NETWORKS = ("finetuned", "scratch")
BOOTSTRAPPED = ("auc", "average_precision", "balanced_accuracy", "brier")

Weighted = Callable[[np.ndarray], np.ndarray]  # weights [R, n] -> values [R]


class Arm(NamedTuple):
    """One way of holding out and one share of labels, of one pair."""

    pair: Pair
    folds: Folds
    by: str  # people | site
    share: float
    scored: np.ndarray  # bool [n]: of a fold whose training part can be fitted
    labelled: np.ndarray  # bool [n]

    @property
    def parts(self) -> list[str]:
        by_site = ["folds=site"] if self.by == "site" else []
        return by_site + ([f"labels={self.share:g}"] if self.share < 1 else [])

    @property
    def compared(self) -> np.ndarray:
        """bool [n]: who is ranked against anybody: of whole sites, those of folds that hold both classes."""
        if self.by != "site":
            return self.scored
        return self.scored & roc_within.paired(self.pair.truth, np.where(self.scored, self.folds.fold, -1))

    def within(self, *predictors: str) -> bool:
        """Are these compared within folds only?"""
        return self.by == "site" or any(name in NETWORKS for name in predictors)


class Scored(NamedTuple):
    """`marker` [n] is what ROC and PR rank by: the gap itself, a probe's scaled log odds, a network's log odds."""

    marker: np.ndarray
    fitted: CrossFitted
    note: str


class _Areas(NamedTuple):
    """Of all predictors, over pairs of everybody and over pairs within folds."""

    names: list[str]
    pooled: roc.DeLong
    within: roc.DeLong

    def of(self, arm: Arm, *predictors: str) -> tuple[roc.DeLong, list[int]]:
        """The areas over the pairs that all of `predictors` are judged by, and where these are among them."""
        return self.within if arm.within(*predictors) else self.pooled, [self.names.index(one) for one in predictors]

    def interval(self, arm: Arm, name: str, one: Scored) -> Interval:
        areas, (index,) = self.of(arm, name)
        return roc.delong_interval(float(areas.auc[index]), float(areas.covariance[index, index]) * one.fitted.widen)


def arm_rows(
    arm: Arm, found: dict[str, Scored], readout: Readout, config: EvaluateConfig, seed: int
) -> list[dict[str, Any]]:
    """Rows of the tasks `diagnosis` and, on all labels, `diagnosis_paired`; `found` holds BASELINE whether asked for or
    not.
    """
    if not found:
        return []
    truth, fold = arm.pair.truth[arm.scored], arm.folds.fold[arm.scored]
    statistics = {}
    for name, one in found.items():
        for metric, statistic in _statistics(arm, name, one, truth, fold).items():
            statistics[f"{name} {metric}"] = statistic
    of_people = readout.persons[arm.pair.rows[arm.scored]]
    drawn = [seed, zlib.crc32(arm.pair.name.encode())]
    intervals = bootstrap(statistics, of_people, resamples=config.bootstrap, seed=drawn)
    markers = np.stack([one.marker[arm.scored] for one in found.values()])
    areas = _Areas(list(found), roc.delong(truth, markers), roc_within.delong(truth, markers, fold))
    baseline = _baseline_note(areas.interval(arm, BASELINE, found[BASELINE]))
    rows = []
    for name, one in found.items():
        if name in config.predictors:
            own = {metric: _widened(intervals[f"{name} {metric}"], one.fitted.widen) for metric in BOOTSTRAPPED}
            own["auc_delong"] = areas.interval(arm, name, one)
            rows += _metric_rows(arm, name, one, own, readout, "" if name == BASELINE else baseline)
    return rows + (_paired_rows(arm, found, areas, readout, config) if arm.share == 1 else [])


def _statistics(arm: Arm, name: str, one: Scored, truth: np.ndarray, fold: np.ndarray) -> dict[str, Weighted]:
    """Of BOOTSTRAPPED. Precision and calls of whole sites are within folds too; a network's over all people, so that
    they stand beside the other predictors'. Balanced accuracy is the area of the calls.
    """
    probability, marker = one.fitted.probability[arm.scored], one.marker[arm.scored]
    called = (probability > one.fitted.threshold).astype(np.int64)
    area: Weighted = partial(roc.auc, truth, marker)
    precision: Weighted = partial(roc.average_precision, truth, marker)
    calls: Weighted = partial(balanced_accuracy, truth, called)
    if arm.within(name):
        area = partial(roc_within.auc, truth, marker, fold=fold)
    if arm.by == "site":
        precision = partial(roc_within.average_precision, truth, marker, fold=fold)
        calls = partial(roc_within.auc, truth, called, fold=fold)
    brier = partial(roc.brier, truth, probability)
    return dict(zip(BOOTSTRAPPED, (area, precision, calls, brier), strict=True))


def _metric_rows(
    arm: Arm, name: str, one: Scored, own: dict[str, Interval], readout: Readout, baseline: str
) -> list[dict[str, Any]]:
    truth, score = arm.pair.truth[arm.scored], one.fitted.probability[arm.scored]
    share, second = float(truth.mean()), arm.pair.name.split("-")[1]
    widen, delong = _widen_note(one.fitted.widen), own["auc_delong"]
    slope = roc.calibration(truth, score).slope
    who = (*_who(arm), one.note)
    pairs = _pairs_note(arm, name)
    ranks = _pairs_note(arm) if arm.by == "site" else ""
    every = "over the people of all sites" if arm.by == "site" else ""
    chance = roc_within.chance_precision(truth, arm.folds.fold[arm.scored]) if arm.by == "site" else share
    folds_by = "mean of folds by cases" if arm.by == "site" else ""
    notes: dict[str, tuple[Interval, tuple[str, ...]]] = {
        "auc": (own["auc"], ("bootstrap", widen, _shown("DeLong", delong), baseline, pairs, *who)),
        "auc_delong": (delong, ("DeLong on log odds", widen, _no_interval(delong), pairs, *who)),
        "average_precision": (own["average_precision"], (f"chance {chance:.3g}", folds_by, _taken(widen), *who)),
        "balanced_accuracy": (
            own["balanced_accuracy"],
            (f"called {second} above {one.fitted.threshold:.3g}", ranks, _taken(widen), *who),
        ),
        "brier": (own["brier"], (f"the share alone gives {share * (1 - share):.3g}", every, _taken(widen), *who)),
        "calibration_slope": (
            slope,
            ("Wald interval, maximum likelihood, the fits taken as known", _no_slope(slope), every, *who),
        ),
    }
    where = (readout.label, readout.cohort, readout.split, "diagnosis")
    parts = (f"pair={arm.pair.name}", f"predictor={name}", *arm.parts)
    people = dict.fromkeys(("brier", "calibration_slope"), len(truth))
    n = int(arm.compared.sum())
    return [
        result_row(*where, metric, value, people.get(metric, n), *parts, *said)
        for metric, (value, said) in notes.items()
    ]


def _who(arm: Arm) -> tuple[str, ...]:
    truth, (first, second) = arm.pair.truth[arm.scored], arm.pair.name.split("-")
    counts = f"{int((truth == 0).sum())} {first} and {int((truth == 1).sum())} {second}"
    lost = int((~arm.scored).sum())
    return counts, f"{lost} people not scored" if lost else "", arm.pair.note, arm.folds.note


def _paired_rows(
    arm: Arm, found: dict[str, Scored], areas: _Areas, readout: Readout, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """AUC of each predictor minus that of each before it in `config.predictors`, and Holm over these contrasts."""
    asked = [name for name in dict.fromkeys(config.predictors) if name in found]
    pairs = list(combinations(asked, 2))
    tests = []
    for first, second in pairs:
        widen = max(found[first].fitted.widen, found[second].fitted.widen)
        both, (before, after) = areas.of(arm, first, second)
        tests.append((*roc.delong_test(both, after, before, widen=widen), widen))
    adjusted = holm([p for _, p, _ in tests])
    rows, n = [], int(arm.compared.sum())
    where = (readout.label, readout.cohort, readout.split, "diagnosis_paired")
    for (first, second), (difference, p, widen), p_holm in zip(pairs, tests, adjusted, strict=True):
        parts = (f"pair={arm.pair.name}", f"contrast={second}-{first}", *arm.parts)
        said = ("paired DeLong", _widen_note(widen), _pairs_note(arm, first, second))
        why = "not computed: DeLong's variance is 0" if np.isnan(p) else ""
        rows.append(result_row(*where, "auc_difference", difference, n, *parts, *said, _no_interval(difference)))
        rows.append(result_row(*where, "p", Interval(p, np.nan, np.nan), n, *parts, *said, why))
        holm_note = f"Holm over {len(pairs)} contrasts of the pair"
        rows.append(result_row(*where, "p_holm", Interval(p_holm, np.nan, np.nan), n, *parts, holm_note, why))
    return rows


def _widened(found: Interval, widen: float) -> Interval:
    """An interval of something between 0 and 1, stretched about its estimate by the root of `widen` on log odds.

    Where the estimate is 0 or 1 there is nothing to stretch about, and it stays.
    """
    if not 0 < found.estimate < 1 or np.isnan(found.low):
        return found
    centre, ends = logit(found.estimate), logit(np.array(found[1:]))  # an end at 0 or 1 stays there
    low, high = expit(centre + np.sqrt(widen) * (ends - centre))
    return Interval(found.estimate, float(low), float(high))


def _baseline_note(alone: Interval) -> str:
    told = " and tell the classes apart" if alone.low > 0.5 else ""
    return f"age and sex alone reach {alone.estimate:.3f}{told}"


def _pairs_note(arm: Arm, *predictors: str) -> str:
    if not arm.within(*predictors):
        return ""
    lost = int((arm.scored & ~arm.compared).sum())
    none = f", {lost} people of folds of one class in none" if lost else ""
    return f"over case-control pairs within folds{none}"


def _widen_note(widen: float) -> str:
    return f"variance x {widen:.2f} for shared training people" if widen > 1 else ""


def _taken(widen: str) -> str:
    """Of what `shared_training` was not derived for."""
    return f"{widen}, taken to be the area's" if widen else ""


def _shown(method: str, found: Interval) -> str:
    return f"{method} {found.low:.3f} to {found.high:.3f}" if found.low == found.low else ""


def _no_interval(found: Interval) -> str:
    return "no interval: DeLong's variance is 0" if np.isnan(found.low) else ""


def _no_slope(found: Interval) -> str:
    why = "not computed: probabilities hardly vary, or tell the classes apart without an error"
    return why if np.isnan(found.estimate) else ""
