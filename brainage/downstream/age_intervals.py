"""Split-conformal intervals of age: which people calibrate them, and around which probe they lie.

The promise of `statistics.conformal` needs people whom the probe was not fitted on. Those of `config.correct_on` are
that; where the probe is fitted on them too (fit_splits train and val, correct_on val), the interval lies around the
same kind of probe fitted on the others alone. That costs a fit and some width, and keeps the full promise `coverage`;
cross-conformal or jackknife+ intervals from out-of-fold errors would promise 2 coverage - 1 only (Barber et al. 2021,
theorems 1 and 4), and take five fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.downstream.age_probes import FittedAgeProbe, fit_age_probe
from brainage.downstream.age_scores import HIGH, LOW
from brainage.downstream.features import Features, join
from brainage.downstream.probes import FEWEST_FITTED, people
from brainage.downstream.readout import healthy
from brainage.statistics.conformal import calibrate, fewest_for, refuse_reuse


class Calibration(NamedTuple):
    """Healthy people who calibrate, and healthy people of the fit splits who are none of them."""

    held_back: pd.DataFrame
    others: pd.DataFrame
    reason: str  # why there can be no interval; empty where there can


def add_intervals(
    predictions: pd.DataFrame,
    probes: Mapping[str, FittedAgeProbe],
    features: Features,
    table: pd.DataFrame,
    fitted: pd.DataFrame,
    asked: np.ndarray,
    *,
    config: EvaluateConfig,
    seed: int,
) -> dict[str, str]:
    """Give `predictions` the columns LOW and HIGH + probe (years; NaN where there is no interval).

    `fitted`: the scans that `probes` were fitted on; `asked` [rows of predictions, D]: features of the scored scans.
    Errors are divided by the predicted sd where a probe has one. Returns LOW + probe -> how its intervals came about,
    or why there are none. Raises LeakageError when people of `config.correct_on` are scored.
    """
    split = _calibration(table, fitted, config)
    # Who calibrates must not be scored: a split file or config.correct_on that says otherwise is a leak.
    refuse_reuse(people(split.held_back), people(split.others), people(predictions))
    notes = {}
    for name, probe in probes.items():
        if split.reason:
            predictions[LOW + name] = predictions[HIGH + name] = np.nan
            notes[LOW + name] = split.reason
            continue
        same = len(split.others) == len(fitted)
        alone = probe if same else _refitted(name, features, split.others, seed)
        values = join(features, split.held_back)
        ages, persons = split.held_back["age_years"].to_numpy(dtype=np.float64), people(split.held_back)
        found = calibrate(
            ages,
            alone.predict(values),
            persons,
            coverage=config.conformal_coverage,
            seed=seed,
            sd=alone.predict_sd(values),
        )
        predictions[LOW + name], predictions[HIGH + name] = found.interval(
            alone.predict(asked), alone.predict_sd(asked)
        )
        kind = "errors over predicted sd" if found.scaled else "absolute errors"
        probe_of = "" if same else f", around a probe fitted on {len(split.others)} scans of others"
        notes[LOW + name] = f"split conformal: {kind} of {found.people} people, a random scan each{probe_of}"
    return notes


def _refitted(name: str, features: Features, others: pd.DataFrame, seed: int) -> FittedAgeProbe:
    ages = others["age_years"].to_numpy(dtype=np.float64)
    return fit_age_probe(name, join(features, others), ages, people(others), seed)


def _calibration(table: pd.DataFrame, fitted: pd.DataFrame, config: EvaluateConfig) -> Calibration:
    held_back = table[table["split"].isin(config.correct_on).to_numpy(dtype=bool) & healthy(table)]
    others = fitted[~fitted["split"].isin(config.correct_on)]
    calibrating, left = len(np.unique(people(held_back))), len(np.unique(people(others)))
    where, fewest = " and ".join(config.correct_on) or "no split", fewest_for(config.conformal_coverage)
    reason = ""
    if calibrating < fewest:
        reason = f"{calibrating} healthy people in {where} (evaluate.correct_on) to calibrate on, expected {fewest}"
    elif left < FEWEST_FITTED:
        reason = f"{left} people of evaluate.fit_splits are not in {where}, expected {FEWEST_FITTED} to fit on"
    return Calibration(held_back, others, reason)
