"""Readouts of features: honest ages for a run's own cohort, by its splits, and for any other cohort.

Legend: n scans, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import person_keys, scan_keys
from brainage.downstream.age_probes import fit_age_probe, out_of_fold_years
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.probes import FEWEST_FITTED, fitted_and_scored, people
from brainage.downstream.readout import NOBODY_DIAGNOSED, Readout, healthy, refuse_same_people
from brainage.downstream.results import EXTERNAL, SCORED
from brainage.errors import DataError

FEWEST_CROSS_FITTED = FEWEST_FITTED + 2  # people: whom the smallest fold leaves can still be fitted on


@dataclass(frozen=True)
class Reference:
    """Whom an age model is fitted on in place of the judged cohort: the run's own people, as its folder keeps them."""

    features: Features
    table: pd.DataFrame  # with `split`
    cohort: str


def own_readout(
    features: Features,
    table: pd.DataFrame,
    predictions: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
) -> Readout:
    """The tests of a cohort that has splits are judged; the bias correction is for the healthy of `config.correct_on`.

    `predictions`: those of `evaluate_age`, every scan of the two tests. The ages of those whom the correction is fitted
    on come from a model fitted on the healthy people of the other fitted splits or, where there are none, from the
    other folds. Raises what `fitted_and_scored` and `join` raise.
    """
    table = table.reset_index(drop=True)
    fitted, scored = fitted_and_scored(table, config.fit_splits)
    refuse_seen_features(features, scored, allow=config.allow_seen)
    X, well = join(features, table), healthy(table)
    predicted = np.full(len(table), np.nan)
    years = predictions["predicted_age_years"].set_axis(scan_keys(predictions))
    predicted[scored.index] = years.loc[scan_keys(scored)].to_numpy(dtype=np.float64)
    correct = well & table["split"].isin(config.correct_on).to_numpy(dtype=bool)
    refuse_seen_features(features, table[correct], allow=config.allow_seen)
    others = well & table.index.isin(fitted.index) & ~correct
    how = _predict_held_out(predicted, X, table, correct, others, config.age_probes[0], seed)
    notes = [how, NOBODY_DIAGNOSED if table["diagnosis"].isna().all() else ""]
    score = table["split"].isin(SCORED).to_numpy(dtype=bool)
    note = "; ".join(filter(None, notes))
    return Readout(features.label, features.seed, cohort, table, X, predicted, correct, score, note)


def cohort_readout(
    features: Features,
    table: pd.DataFrame,
    reference: Reference | None,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
) -> Readout:
    """Everybody of another cohort is judged, as test_external; all healthy people are there for the bias correction.

    With a `reference` the age model is fitted on its healthy people; without one, on the healthy people of the cohort
    itself, each of whom gets the age that a model of the other folds gives. Raises LeakageError when the network was
    trained on somebody of the table, DataError when there are too few healthy people to fit on.
    """
    table = table.reset_index(drop=True).assign(split=EXTERNAL)
    refuse_seen_features(features, table, allow=config.allow_seen)
    X, well, name = join(features, table), healthy(table), config.age_probes[0]
    persons = people(table)
    if reference is None:
        if len(np.unique(persons[well])) < FEWEST_CROSS_FITTED:
            raise DataError(
                f"{cohort}: {len(np.unique(persons[well]))} healthy people to cross-fit an age model on, expected "
                f"{FEWEST_CROSS_FITTED} or more; evaluate.age_fitted_on=run fits it on those of the run"
            )
        ages = table["age_years"].to_numpy(dtype=np.float64)
        predicted = fit_age_probe(name, X[well], ages[well], persons[well], seed).predict(X)
        predicted[well], _ = out_of_fold_years(name, X[well], ages[well], persons[well], seed=seed)
        note = f"age model: {name} on the {len(np.unique(persons[well]))} healthy people of {cohort}, cross-fitted"
    else:
        predicted, note = _by_reference(X, table, reference, name, config, seed)
    notes = [note, NOBODY_DIAGNOSED if table["diagnosis"].isna().all() else ""]
    whole = np.ones(len(table), dtype=bool)
    text = "; ".join(filter(None, notes))
    return Readout(features.label, features.seed, cohort, table, X, predicted, well, whole, text)


def reference_mean_age(reference: Reference | None, table: pd.DataFrame, config: EvaluateConfig) -> float:
    """Years; what the mean predictor says: the mean age of whom the age model is fitted on."""
    whose = table[healthy(table)] if reference is None else _fitted(reference, config)
    return float(whose["age_years"].mean())


def _fitted(reference: Reference, config: EvaluateConfig) -> pd.DataFrame:
    """The healthy people whom the age model of a reference is fitted on."""
    well = healthy(reference.table)  # by all that is known of them, not by the fitted scans alone
    return reference.table[well & reference.table["split"].isin(config.fit_splits).to_numpy(dtype=bool)]


def _by_reference(
    X: np.ndarray, table: pd.DataFrame, reference: Reference, name: str, config: EvaluateConfig, seed: int
) -> tuple[np.ndarray, str]:
    fitted = _fitted(reference, config)
    count = person_keys(fitted).nunique()
    if count < FEWEST_FITTED:
        raise DataError(
            f"{reference.cohort}: {count} people known to be healthy in {' and '.join(config.fit_splits)} to fit an "
            f"age model on, expected {FEWEST_FITTED} or more; evaluate.age_fitted_on=cohort fits it on those judged"
        )
    refuse_same_people(fitted, table, f"age model of {reference.cohort}")
    known = join(reference.features, fitted)
    if known.shape[1] != X.shape[1]:
        raise DataError(
            f"{reference.features.label}: {known.shape[1]} features in the run's own embeddings, {X.shape[1]} here"
        )
    ages = fitted["age_years"].to_numpy(dtype=np.float64)
    probe = fit_age_probe(name, known, ages, people(fitted), seed)
    unknown = f"; of {reference.cohort}, {NOBODY_DIAGNOSED}" if reference.table["diagnosis"].isna().all() else ""
    return probe.predict(X), f"age model: {name} on {count} healthy people of {reference.cohort}{unknown}"


def _predict_held_out(
    predicted: np.ndarray,
    X: np.ndarray,
    table: pd.DataFrame,
    correct: np.ndarray,
    others: np.ndarray,
    name: str,
    seed: int,
) -> str:
    """Fill in the ages of `correct`; gives the phrase that says how."""
    ages, persons = table["age_years"].to_numpy(dtype=np.float64), people(table)
    count = len(np.unique(persons[correct]))
    alone = len(np.unique(persons[others])) < FEWEST_FITTED
    if count < (FEWEST_CROSS_FITTED if alone else FEWEST_FITTED):
        correct[:] = False
        return f"{count} healthy people to correct the age bias on"
    if not alone:
        predicted[correct] = fit_age_probe(name, X[others], ages[others], persons[others], seed).predict(X[correct])
        return f"bias correction from {count} healthy people whom the age model of their ages was not fitted on"
    predicted[correct], _ = out_of_fold_years(name, X[correct], ages[correct], persons[correct], seed=seed)
    return f"bias correction from out-of-fold ages of {count} healthy people"
