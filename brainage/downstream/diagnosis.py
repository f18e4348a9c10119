"""Diagnosis from the gap, from a frozen embedding, from age and sex alone, or from a network trained on it.

n people of a pair (one scan each), K folds. Every probability is out of fold; every predictor of a pair is judged on
the same people, folds and resamples. The class named second is 1: a higher score speaks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from brainage.config import EvaluateConfig
from brainage.data.table import KEY, scan_keys
from brainage.downstream.classifiers import CrossFitted, cross_fit, fittable
from brainage.downstream.diagnosis_folds import Folds, Pair, draw_pair, labelled, people_folds, site_folds
from brainage.downstream.diagnosis_rows import BASELINE, NETWORKS, Arm, Scored, arm_rows
from brainage.downstream.readout import Readout
from brainage.downstream.results import FEWEST_PEOPLE, missing_row, results_frame
from brainage.downstream.task import TaskResult
from brainage.errors import ConfigError, DataError, TrainingStopped

DIAGNOSIS_COLUMNS = [
    *KEY, "site", "age_years", "sex", "diagnosis", "pair", "predictor", "folds", "labels", "fold", "truth", "score",
    "marker", "threshold", "model", "seed",
]  # fmt: skip
PREDICTORS = (BASELINE, "gap", "probe", *NETWORKS)

_LEAST = 1e-12  # of a network's probability, so that its log odds are finite

# (pair, training rows of the readout's table, their labels, test rows, seed) -> probabilities of the test rows
FitPredict = Callable[[str, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


def evaluate_diagnosis(
    readout: Readout,
    gaps: pd.DataFrame,
    *,
    config: EvaluateConfig,
    seed: int,
    networks: Mapping[str, FitPredict] | None = None,
) -> TaskResult:
    """Every pair of `config.pairs` by every predictor of `config.predictors`, over folds of people and, where asked, of
    sites; low-data curves over `config.label_shares` with the same test folds.

    `gaps` has GAP_COLUMNS, one row a scored scan. `networks` maps `finetuned` and `scratch` to a function that trains
    on some rows of the readout's table and gives probabilities for others. Rows (tasks `diagnosis`, `diagnosis_paired`)
    as in `results`; what is missing for a predictor or a pair is a row with its reason. The frame `diagnosis` has
    DIAGNOSIS_COLUMNS, one row a person, pair, predictor, folds and share. Raises ConfigError on an unknown pair or
    predictor, DataError on features or scores that are not finite.
    """
    unknown = [name for name in config.predictors if name not in PREDICTORS]
    if unknown:
        raise ConfigError(f"evaluate.predictors holds {unknown[0]!r}; known: {', '.join(PREDICTORS)}")
    rows: list[dict[str, Any]] = []
    frames = []
    for name in dict.fromkeys(config.pairs):
        pair = draw_pair(readout, name)
        if pair.reason:
            rows += [_missing(readout, pair.reason, f"pair={name}", f"predictor={p}") for p in config.predictors]
            continue
        for arm in _arms(pair, readout, config, seed):
            found, reasons = _predict(arm, readout, gaps, config, seed, networks or {})
            rows += [_missing(readout, why, f"pair={name}", f"predictor={p}", *arm.parts) for p, why in reasons.items()]
            rows += arm_rows(arm, found, readout, config, seed)
            frames += [_frame(arm, p, found[p], readout) for p in config.predictors if p in found]
    whole = {"diagnosis": pd.concat(frames, ignore_index=True)} if frames else {}
    return TaskResult(results_frame(rows), whole)


def _arms(pair: Pair, readout: Readout, config: EvaluateConfig, seed: int) -> Iterator[Arm]:
    by_people = people_folds(pair, config.diagnosis_folds, seed)
    for share in sorted(set(config.label_shares), reverse=True):
        if not 0 < share <= 1:
            raise ConfigError(f"evaluate.label_shares holds {share:g}: expected shares above 0, at most 1")
        yield _arm(pair, by_people, "people", share)
    if config.diagnosis_by_site:
        yield _arm(pair, site_folds(pair, readout.table), "site", 1.0)


def _arm(pair: Pair, folds: Folds, by: str, share: float) -> Arm:
    used = labelled(folds, pair.truth, share)
    scored = folds.fold >= 0
    for fold in np.unique(folds.fold[scored]):
        if not fittable(pair.truth[used & (folds.fold != fold)]):
            scored = scored & (folds.fold != fold)
    return Arm(pair, folds, by, share, scored, used)


def _predict(
    arm: Arm,
    readout: Readout,
    gaps: pd.DataFrame,
    config: EvaluateConfig,
    seed: int,
    networks: Mapping[str, FitPredict],
) -> tuple[dict[str, Scored], dict[str, str]]:
    """What each predictor says, and why those that say nothing do not; the baseline is always computed."""
    counts = np.bincount(arm.pair.truth[arm.compared], minlength=2)
    if counts.min() < FEWEST_PEOPLE:
        which = "that hold both classes, as does their training part" if arm.by == "site" else ""
        which = which or "whose training part holds both classes"
        reason = f"fewer than {FEWEST_PEOPLE} people of a class in folds {which}"
        return {}, dict.fromkeys(config.predictors, reason)
    table = readout.table.iloc[arm.pair.rows]
    found, reasons = {BASELINE: _from_features(arm, *_age_and_sex(table), seed)}, {}
    for name in config.predictors:
        if name == "gap":
            gap, why = _gap_of(table, gaps, config)
            if why:
                reasons[name] = why
            else:
                scored = _from_features(arm, gap[:, None], f"gap corrected by {config.correction}", seed)
                found[name] = Scored(gap, scored.fitted._replace(widen=1.0), scored.note)  # the marker needs no fit
        elif name == "probe":
            found[name] = _from_features(arm, _finite(readout, arm.pair.rows), "", seed)
        elif name in NETWORKS and name not in networks:
            reasons[name] = f"no {name} network was trained for this evaluation"
        elif name in NETWORKS:
            try:
                found[name] = _from_network(arm, networks[name], name, seed)
            except TrainingStopped as error:
                reasons[name] = f"training of a {name} network stopped: {error}"
    return found, reasons


def _from_features(arm: Arm, X: np.ndarray, note: str, seed: int) -> Scored:
    fitted = cross_fit(X, arm.pair.truth.astype(np.float64), arm.folds.fold, arm.labelled, seed)
    return Scored(fitted.marker, fitted, "; ".join(phrase for phrase in (note, fitted.note) if phrase))


def _from_network(arm: Arm, fit_predict: FitPredict, name: str, seed: int) -> Scored:
    fold, truth, rows = arm.folds.fold, arm.pair.truth, arm.pair.rows
    log_odds, share = np.full(len(truth), np.nan), float(truth[arm.labelled].mean())
    for held_out in np.unique(fold[arm.scored]):
        train, test = arm.labelled & (fold != held_out), fold == held_out
        scores = np.asarray(fit_predict(arm.pair.name, rows[train], truth[train], rows[test], seed), dtype=np.float64)
        if scores.shape != (int(test.sum()),) or not ((scores >= 0) & (scores <= 1)).all():
            raise DataError(
                f"{name} network, pair {arm.pair.name}: expected {int(test.sum())} probabilities within 0 and 1, found "
                f"shape {scores.shape} and {int((~((scores >= 0) & (scores <= 1))).sum())} that are none"
            )
        # A network answers at the class share of its own training people: brought to that of all labelled people.
        log_odds[test] = logit(np.clip(scores, _LEAST, 1 - _LEAST)) - logit(truth[train].mean()) + logit(share)
    # How far the fold networks agree is not known, so that they get the widest interval.
    fitted = CrossFitted(expit(log_odds), log_odds, share, 2.0, "")
    return Scored(log_odds, fitted, "ranked by log odds")


def _age_and_sex(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """[n, 2] and what is said of unknown sexes."""
    male = table["sex"].map({"M": 1.0, "F": 0.0}).astype("float64")
    unknown = int(male.isna().sum())
    note = f"{unknown} people of unknown sex between both" if unknown else ""
    return np.column_stack([table["age_years"].to_numpy(dtype=np.float64), male.fillna(0.5)]), note


def _gap_of(table: pd.DataFrame, gaps: pd.DataFrame, config: EvaluateConfig) -> tuple[np.ndarray, str]:
    """The corrected gap [n] in years, or why there is none."""
    column = f"gap_{config.correction}_years"
    if column not in gaps or gaps.empty:
        return np.empty(0), f"no gaps corrected by {config.correction}: see the rows of the task gap"
    known = pd.Series(gaps[column].to_numpy(dtype=np.float64), index=scan_keys(gaps).to_numpy(dtype=str))
    gap = known.reindex(scan_keys(table).to_numpy(dtype=str)).to_numpy()
    lost = int((~np.isfinite(gap)).sum())
    return gap, f"{lost} of {len(gap)} people have no gap corrected by {config.correction}" if lost else ""


def _finite(readout: Readout, rows: np.ndarray) -> np.ndarray:
    X = readout.features[rows]
    broken = ~np.isfinite(X).all(axis=1)
    if broken.any():
        first = scan_keys(readout.table.iloc[rows])[broken].iloc[0]
        raise DataError(f"diagnosis of {readout.label!r}: {int(broken.sum())} vectors are not finite, first {first}")
    return X


def _frame(arm: Arm, name: str, one: Scored, readout: Readout) -> pd.DataFrame:
    here = arm.scored
    table = readout.table.iloc[arm.pair.rows[here]].reset_index(drop=True)
    facts = {
        "pair": arm.pair.name, "predictor": name, "folds": arm.by, "labels": float(arm.share),
        "fold": arm.folds.fold[here], "truth": arm.pair.truth[here], "score": one.fitted.probability[here],
        "marker": one.marker[here], "threshold": one.fitted.threshold, "model": readout.label,
        "seed": int(readout.seed),
    }  # fmt: skip
    return table.assign(**facts)[DIAGNOSIS_COLUMNS]


def _missing(readout: Readout, reason: str, *parts: str) -> dict[str, Any]:
    return missing_row(readout.label, readout.cohort, readout.split, "diagnosis", "auc", reason, *parts)
