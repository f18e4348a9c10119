"""Result rows of age predictions, whoever made them.

n scans, S seeds. All rows are of healthy people: the gap of a patient is not an error of the model. Whom HEALTHY leaves
out is counted in the note; without that column everybody counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.splits import refuse_leakage
from brainage.data.table import person_keys
from brainage.downstream.predictions import Predicted, by_seed, stream
from brainage.downstream.probes import people
from brainage.downstream.readout import healthy
from brainage.downstream.results import (
    FEWEST_PEOPLE,
    MEAN_PREDICTOR,
    SCORED,
    missing_row,
    result_row,
    results_frame,
    too_few_row,
)
from brainage.errors import LeakageError
from brainage.statistics.bootstrap import Interval, bootstrap, seed_mean
from brainage.statistics.metrics import AGE_METRICS, mae_years, pearson_r

# Columns of predictions beside PREDICTION_COLUMNS, where there are any.
HEALTHY = "healthy"  # bool: is this person counted
STANDARDISED = "standardised_age_years"  # the sensitivity check, not the protocol
FURTHER = "predicted_age_years:"  # + probe: ages by the probes beyond the first
LOW, HIGH = "interval_low_years:", "interval_high_years:"  # + probe: split-conformal

Statistics = Mapping[str, Callable[[np.ndarray], np.ndarray]]


class Judging(NamedTuple):
    """What all rows of one call share."""

    cohort: str
    config: EvaluateConfig
    seed: int
    notes: Mapping[str, str]  # column of predictions, or of LOW -> how its values came about

    def intervals(self, block: Predicted, statistics: Statistics) -> dict[str, Interval]:
        drawn = stream(self.seed, block.split)
        return bootstrap(statistics, block.persons, resamples=self.config.bootstrap, seed=drawn)


def mark_healthy(predictions: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """With the column HEALTHY, from the diagnoses of `table`, which holds every scan of these people."""
    well = person_keys(table)[healthy(table)]
    return predictions.assign(**{HEALTHY: person_keys(predictions).isin(well).to_numpy(dtype=bool)})


def score_predictions(
    predictions: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    mean_age_years: float | None = None,
    note: str = "",
    check_note: str = "",
    probe_notes: Mapping[str, str] | None = None,
    model: str = "model",
) -> pd.DataFrame:
    """Results of one model's predictions in both tests, and a NaN row for a test without scans of healthy people.

    With several seeds the estimate is the mean of the metric over seeds (of scores, not the score of an averaged
    prediction), every seed is scored on the same resamples of people, and the note gives the sd over seeds, which the
    interval does not contain. `mean_age_years` adds the rows of the mean predictor; `model` names the rows where there
    is no prediction at all; `check_note` goes with the STANDARDISED predictions and `probe_notes` (probe -> note) with
    those of FURTHER probes and with intervals (LOW + probe -> note), where there are any. Raises LeakageError on
    predictions for people outside the tests, DataError on several models or on seeds that scored different scans.
    """
    others = sorted(set(predictions["split"]) - set(SCORED))
    if others:
        raise LeakageError(f"predictions for people of {' and '.join(others)}: only {' and '.join(SCORED)} are scored")
    refuse_leakage(predictions)
    notes = {"": note, STANDARDISED: check_note, **(probe_notes or {})}
    judging = Judging(cohort, config, seed, notes)
    counted, left_out = healthy_only(predictions)
    rows: list[dict[str, Any]] = []
    for split in SCORED:
        if (counted["split"] == split).any():
            rows += _split_rows(counted, split, judging, mean_age_years, left_out.get(split, ""))
        else:
            name = str(predictions["model"].iloc[0]) if len(predictions) else model
            reason = left_out.get(split) or f"no scan in {split}"
            rows.append(missing_row(name, cohort, split, "age", "mae_years", reason))
    return results_frame(rows)


def healthy_only(predictions: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The rows of HEALTHY people, all of them without that column, and split -> the phrase on those left out."""
    if HEALTHY not in predictions:
        return predictions, {}
    well = predictions[HEALTHY].to_numpy(dtype=bool)
    phrases = {}
    for split in SCORED:
        here = (predictions["split"] == split).to_numpy()
        everybody, ill = people(predictions[here]), people(predictions[here & ~well])
        if len(ill):
            counts = f"{len(np.unique(ill))} of {len(np.unique(everybody))} people"
            phrases[split] = f"healthy people only: {counts} with another or no diagnosis left out"
    return predictions[well], phrases


def extent(scans: pd.DataFrame) -> str:
    """Ages in whole years, and of FEWEST_PEOPLE or more: the youngest and the oldest are single persons."""
    ages = scans["age_years"]
    shown = f"; ages {ages.min():.0f}-{ages.max():.0f} years" if len(np.unique(people(scans))) >= FEWEST_PEOPLE else ""
    return f"{len(scans)} scans{shown}"


def ages_of(block: Predicted) -> np.ndarray:
    """[n] years."""
    return block.scans["age_years"].to_numpy(dtype=np.float64)


def _split_rows(
    counted: pd.DataFrame, split: str, judging: Judging, mean_age_years: float | None, left_out: str
) -> list[dict[str, Any]]:
    block = by_seed(counted, split, "predicted_age_years")
    rows = _whole_rows(block, judging, judging.notes[""], left_out, mean_age_years=mean_age_years)
    if STANDARDISED in counted:
        rows.append(_check_row(by_seed(counted, split, STANDARDISED), judging, left_out))
    rows += _part_rows(block, judging)
    for column in counted:
        kind, colon, name = str(column).partition(":")
        if kind + colon == FURTHER:
            further = by_seed(counted, split, str(column))
            rows += _whole_rows(further, judging, judging.notes.get(name, ""), left_out, f"probe={name}")
        elif kind + colon == LOW:
            rows += _interval_rows(counted, split, judging, name, left_out)
    return rows


def _whole_rows(
    block: Predicted, judging: Judging, note: str, left_out: str, part: str = "", mean_age_years: float | None = None
) -> list[dict[str, Any]]:
    """Every metric, among them the calibration: bias, slope on age, and correlation of the gap with age."""
    age, one = ages_of(block), np.ones((1, len(block.scans)))
    metrics = {**AGE_METRICS, "gap_age_r": gap_age_r}
    statistics = {name: seed_mean(metric, age, block.values) for name, metric in metrics.items()}
    if mean_age_years is not None:
        statistics[MEAN_PREDICTOR] = seed_mean(mae_years, age, np.full((1, len(age)), mean_age_years))
    found = judging.intervals(block, statistics)
    rows = []
    for name, metric in metrics.items():
        spread = block.spread([metric(age, predicted, one)[0] for predicted in block.values])
        undefined = "not computed: needs scans of different ages" if np.isnan(found[name].estimate) else ""
        where = (block.model, judging.cohort, block.split, "age", name)
        phrases = (part, extent(block.scans), spread, note, undefined, left_out)
        rows.append(result_row(*where, found[name], block.n, *phrases))
    if mean_age_years is not None:
        where = (MEAN_PREDICTOR, judging.cohort, block.split, "age", "mae_years")
        guess = f"predicts {mean_age_years:.1f} years for everybody"
        rows.append(result_row(*where, found[MEAN_PREDICTOR], block.n, extent(block.scans), guess, left_out))
    return rows


def gap_age_r(age: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Correlation of predicted - age with age [R]: below 0 by regression to the mean, NaN when either is constant.

    >>> ages = np.array([20.0, 40.0, 60.0])
    >>> round(float(gap_age_r(ages, np.array([25.0, 40.0, 55.0]), np.ones((1, 3)))[0]), 6)
    -1.0
    """
    return pearson_r(age, predicted - age, weights)


def _check_row(block: Predicted, judging: Judging, left_out: str) -> dict[str, Any]:
    age, one = ages_of(block), np.ones((1, len(block.scans)))
    found = judging.intervals(block, {"mae": seed_mean(mae_years, age, block.values)})["mae"]
    spread = block.spread([mae_years(age, predicted, one)[0] for predicted in block.values])
    check = "a check: standardised features, penalties from 1e-4 to 1e6"
    phrases = (extent(block.scans), spread, judging.notes[STANDARDISED], check, left_out)
    where = (block.model, judging.cohort, block.split, "age_standardised", "mae_years")
    return result_row(*where, found, block.n, *phrases)


def _part_rows(block: Predicted, judging: Judging) -> list[dict[str, Any]]:
    """The MAE of each site (task age_by_site), decade of age (age_by_band) and sex (age_by_sex) of FEWEST_PEOPLE."""
    parts = {
        "site": block.scans["site"].fillna("unknown").str.replace(";", ",").to_numpy(dtype=str),
        "band": decades(ages_of(block)),
        "sex": block.scans["sex"].fillna("unknown").to_numpy(dtype=str),
    }
    rows = []
    for kind, names in parts.items():
        for name in in_order(names, by_length=kind == "band"):
            part = _only(block, names == name)
            where = (block.model, judging.cohort, block.split, f"age_by_{kind}", "mae_years")
            if part.n < FEWEST_PEOPLE:
                rows.append(too_few_row(*where, part.n, f"{kind}={name}"))
                continue
            found = judging.intervals(part, {"mae": seed_mean(mae_years, ages_of(part), part.values)})["mae"]
            rows.append(result_row(*where, found, part.n, f"{kind}={name}", extent(part.scans)))
    return rows


def _interval_rows(
    counted: pd.DataFrame, split: str, judging: Judging, probe: str, left_out: str
) -> list[dict[str, Any]]:
    """Coverage and mean width of one probe's intervals, of everybody and of each decade of age."""
    low, high = by_seed(counted, split, LOW + probe), by_seed(counted, split, HIGH + probe)
    parts = f"probe={probe}; coverage={judging.config.conformal_coverage:g}"
    note = judging.notes.get(LOW + probe, "")
    if not np.isfinite(low.values).all():  # the note says why
        where = (low.model, judging.cohort, split, "age_interval", "coverage")
        return [missing_row(*where, note or "no people to calibrate on, see the rows of single seeds", parts)]
    rows = _coverage_rows(low, high, judging, parts, note, left_out)
    bands = decades(ages_of(low))
    for band in in_order(bands, by_length=True):
        some = bands == band
        part = f"{parts}; band={band}"
        rows += _coverage_rows(_only(low, some), _only(high, some), judging, part, "", "")
    return rows


def _coverage_rows(
    low: Predicted, high: Predicted, judging: Judging, part: str, note: str, left_out: str
) -> list[dict[str, Any]]:
    """Every person counts once, however many scans: the promise is about a random scan of a person."""
    where = (low.model, judging.cohort, low.split, "age_interval")
    if low.n < FEWEST_PEOPLE:
        return [too_few_row(*where, name, low.n, part) for name in ("coverage", "width_years")]
    _, codes, scans = np.unique(low.persons, return_inverse=True, return_counts=True)
    share = 1.0 / scans[codes]
    age = ages_of(low)
    values = {
        "coverage": ((low.values <= age) & (age <= high.values)).astype(np.float64),
        "width_years": high.values - low.values,
    }  # [S, n]
    statistics = {name: _person_mean(one.mean(axis=0), share) for name, one in values.items()}
    found = judging.intervals(low, statistics)
    rows = []
    for name, one in values.items():
        spread = low.spread(list((one @ share) / share.sum()))
        phrases = (part, extent(low.scans), spread, note, left_out)
        rows.append(result_row(*where, name, found[name], low.n, *phrases))
    return rows


def _person_mean(values: np.ndarray, share: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda weights: (weights @ (share * values)) / (weights @ share)


def decades(ages: np.ndarray) -> np.ndarray:
    """[n] text: `20-29` for 23.4 years."""
    first = (ages // 10).astype(int) * 10
    return np.array([f"{decade}-{decade + 9}" for decade in first])


def in_order(names: np.ndarray, *, by_length: bool) -> list[str]:
    """Distinct names; `by_length` puts 20-29 before 100-109."""
    return sorted(set(names.tolist()), key=lambda name: (len(name) if by_length else 0, name))


def _only(block: Predicted, some: np.ndarray) -> Predicted:
    return block._replace(scans=block.scans[some], values=block.values[:, some])
