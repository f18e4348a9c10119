"""Age read out of frozen features by one probe or several, and the scores of any age predictions.

n scans, S seeds. A probe's predictions and a network's own, of one seed or many, are scored by the same code. Every MAE
has the people, scans and age range it was measured on in its row, and beside it the row `mean_predictor`: the MAE of
predicting the mean age of the fitted people for everybody. Without them an MAE means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import scan_keys
from brainage.downstream.age_intervals import add_intervals
from brainage.downstream.age_probes import FittedAgeProbe, fit_age_probe
from brainage.downstream.age_scores import (
    FURTHER,
    HEALTHY,
    STANDARDISED,
    Judging,
    ages_of,
    extent,
    healthy_only,
    mark_healthy,
    score_predictions,
)
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.predictions import PREDICTION_COLUMNS, Predicted, by_seed, predictions_frame
from brainage.downstream.probes import WIDE_PENALTIES, RidgeProbe, fit_note, fitted_and_scored, people
from brainage.downstream.readout import healthy
from brainage.downstream.results import MEAN_PREDICTOR, SCORED, result_row, results_frame
from brainage.errors import ConfigError, DataError
from brainage.statistics.bootstrap import seed_mean
from brainage.statistics.metrics import bias_years

__all__ = [
    "MEAN_PREDICTOR",
    "PREDICTION_COLUMNS",
    "STANDARDISED",
    "AgeEvaluation",
    "evaluate_age",
    "mark_healthy",
    "mean_age",
    "paired_mae_difference",
    "pool_seeds",
    "predictions_frame",
    "score_predictions",
]


class AgeEvaluation(NamedTuple):
    """`results` as in `results.RESULT_COLUMNS`; `predictions` has PREDICTION_COLUMNS, one row a scored scan, and after
    a probe the columns that `age_scores` names, which `pool_seeds` reads.
    """

    results: pd.DataFrame
    predictions: pd.DataFrame


def evaluate_age(
    features: Features,
    table: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
) -> AgeEvaluation:
    """Fit the probes `config.age_probes` on the healthy people of `config.fit_splits`, score those of the two tests.

    `cohort` is the name that the rows carry; `seed` shuffles the folds and draws the resamples: give every model the
    same one, so that all are scored on the same resamples. The first probe gives the predictions and the rows without
    a part `probe=`. Everybody of the tests is predicted; rows are of healthy people, and count whom that leaves out.
    The task `age` of `ridge` is the published protocol, whose penalty depends on the scale of the features;
    `age_standardised` beside it is a check of how much: a ridge on standardised features over a wider grid. The task
    `age_interval` is `age_intervals.add_intervals`. Raises what `fitted_and_scored`, `refuse_seen_features`, `join` and
    `fit_age_probe` raise.
    """
    names = _probe_names(config)
    everybody, scored = fitted_and_scored(table, config.fit_splits)
    refuse_seen_features(features, scored, allow=config.allow_seen)
    fitted = _healthy_of(everybody, table, config)
    X, y, persons = join(features, fitted), fitted["age_years"].to_numpy(), people(fitted)
    asked = join(features, scored) if len(scored) else np.empty((0, features.values.shape[1]))
    probes = {name: fit_age_probe(name, X, y, persons, seed) for name in names}
    predictions = predictions_frame(scored, probes[names[0]].predict(asked), model=features.label, seed=features.seed)
    predictions = mark_healthy(predictions, table)
    for name in names[1:]:
        predictions[FURTHER + name] = probes[name].predict(asked)
    scans = f"{f'the {features.part} of ' if features.part else ''}{_count(fitted, everybody)}"
    notes = {name: f"{_spoken(probe)} on {scans}, {probe.note}" for name, probe in probes.items()}
    check_note = ""
    if names[0] == "ridge":
        check = RidgeProbe(WIDE_PENALTIES, seed=seed, standardise=True).fit(X, y, persons)
        predictions[STANDARDISED] = check.predict(asked)
        check_note = f"ridge on {scans}, {fit_note(check, 'alpha')}"
    interval_notes = add_intervals(predictions, probes, features, table, fitted, asked, config=config, seed=seed)
    results = score_predictions(
        predictions,
        cohort=cohort,
        config=config,
        seed=seed,
        mean_age_years=float(y.mean()),
        note=notes[names[0]],
        check_note=check_note,
        probe_notes={**notes, **interval_notes},
        model=features.label,
    )
    return AgeEvaluation(results, predictions)


def mean_age(table: pd.DataFrame, config: EvaluateConfig) -> float:
    """Years; the mean over the scans that probes are fitted on, which the mean predictor predicts for everybody."""
    fitted = table["split"].isin(config.fit_splits).to_numpy(dtype=bool)
    return float(table.loc[fitted & healthy(table), "age_years"].mean())


def pool_seeds(
    predictions: Sequence[pd.DataFrame],
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    mean_age_years: float | None = None,
    note: str = "",
) -> pd.DataFrame:
    """`score_predictions` of one model trained with several seeds, one frame a seed."""
    together = pd.concat(list(predictions), ignore_index=True)
    return score_predictions(
        together, cohort=cohort, config=config, seed=seed, mean_age_years=mean_age_years, note=note
    )


def paired_mae_difference(
    first: pd.DataFrame, second: pd.DataFrame, *, cohort: str, config: EvaluateConfig, seed: int
) -> pd.DataFrame:
    """MAE of `first` minus MAE of `second` on the same people, each averaged over its seeds: below 0, first is better.

    The resamples pair the two, so that the interval is free of how difficult the drawn people are for both. It holds
    the luck of the people scored and not that of the training seeds; for that, where both models have the same seeds,
    the note gives the sd of the difference over seeds and how many seeds favour the first. Raises DataError when the
    two models were not scored on the same scans.
    """
    rows = []
    (first, left_out), (second, _) = healthy_only(first), healthy_only(second)
    for split in SCORED:
        blocks = [by_seed(p, split, "predicted_age_years") for p in (first, second) if (p["split"] == split).any()]
        if not blocks:
            continue
        keys = [scan_keys(block.scans).tolist() for block in blocks]
        if len(blocks) < 2 or keys[0] != keys[1]:
            raise DataError(f"{split}: the two models were not scored on the same scans; score both on one table")
        errors = [np.abs(block.values - ages_of(block)) for block in blocks]  # [S, n]
        a, b = (error.mean(axis=0) for error in errors)
        # The mean of a - b; bias_years is that mean as a weighted function.
        statistic = {"difference": seed_mean(bias_years, b, a[None])}
        judging = Judging(cohort, config, seed, {})
        found = judging.intervals(blocks[0], statistic)["difference"]
        name = f"{blocks[0].model} - {blocks[1].model}"
        seeds = _seed_differences(blocks, [error.mean(axis=1) for error in errors])
        notes = (extent(blocks[0].scans), "below 0: the first is better", "interval over people only", seeds)
        where = (name, cohort, split, "age", "mae_difference_years")
        rows.append(result_row(*where, found, blocks[0].n, *notes, left_out.get(split, "")))
    return results_frame(rows)


def _seed_differences(blocks: Sequence[Predicted], maes: Sequence[np.ndarray]) -> str:
    """The phrase on seeds of a paired difference; `maes` holds one number a seed for each of the two models."""
    first, second = (", ".join(map(str, block.seeds)) for block in blocks)
    if blocks[0].seeds != blocks[1].seeds:
        return f"seeds {first} against {second}: not matched"
    if len(blocks[0].seeds) == 1:
        return f"one seed ({first}): nothing is known of the spread over seeds"
    differences = maes[0] - maes[1]
    better = f"the first is better in {(differences < 0).sum()} of {len(differences)}"
    return f"matched seeds {first}: sd of their differences {differences.std(ddof=1):.3g}, {better}"


def _probe_names(config: EvaluateConfig) -> list[str]:
    names = list(dict.fromkeys(config.age_probes))
    if not names:
        raise ConfigError("evaluate.age_probes is empty: expected one age probe or more, e.g. [ridge]")
    return names


def _healthy_of(everybody: pd.DataFrame, table: pd.DataFrame, config: EvaluateConfig) -> pd.DataFrame:
    well = everybody[mark_healthy(everybody, table)[HEALTHY]]
    if well.empty:
        raise DataError(
            f"no healthy person in {' or '.join(config.fit_splits)} to fit an age probe on: "
            f"{len(everybody)} scans, all of people with another or no diagnosis; see evaluate.fit_splits"
        )
    return well


def _count(fitted: pd.DataFrame, everybody: pd.DataFrame) -> str:
    lost = len(everybody) - len(fitted)
    return f"{len(fitted)} scans" + (f" of healthy people ({lost} of others left out)" if lost else "")


def _spoken(probe: FittedAgeProbe) -> str:
    return {"knn": "k-NN"}.get(probe.name, probe.name.replace("_", " "))
