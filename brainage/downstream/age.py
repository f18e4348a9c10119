"""Age read out of frozen features, and the scores of any age predictions.

n scans, S seeds. A probe's predictions and a network's own, of one seed or many, are scored by the same code. Every MAE
has the people, scans and age range it was measured on in its row, and beside it the row `mean_predictor`: the MAE of
predicting the mean age of the fitted people for everybody. Without them an MAE means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.splits import refuse_leakage
from brainage.data.table import scan_keys
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.predictions import PREDICTION_COLUMNS, Predicted, by_seed, predictions_frame, stream
from brainage.downstream.probes import WIDE_PENALTIES, RidgeProbe, fit_note, fitted_and_scored, people
from brainage.downstream.results import (
    FEWEST_PEOPLE,
    MEAN_PREDICTOR,
    SCORED,
    missing_row,
    result_row,
    results_frame,
    too_few_row,
)
from brainage.errors import DataError, LeakageError
from brainage.statistics.bootstrap import Interval, bootstrap, seed_mean
from brainage.statistics.metrics import AGE_METRICS, bias_years, mae_years

__all__ = [
    "MEAN_PREDICTOR",
    "PREDICTION_COLUMNS",
    "AgeEvaluation",
    "evaluate_age",
    "mean_age",
    "paired_mae_difference",
    "pool_seeds",
    "predictions_frame",
    "score_predictions",
]

STANDARDISED = "standardised_age_years"  # column of predictions: the sensitivity check, not the protocol


class AgeEvaluation(NamedTuple):
    """`results` as in `results.RESULT_COLUMNS`; `predictions` has PREDICTION_COLUMNS, one row a scored scan, and after
    a probe STANDARDISED, which `pool_seeds` reads.
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
    """Fit the ridge probe on the people of `config.fit_splits`, score those of the two tests.

    `cohort` is the name that the rows carry; `seed` shuffles the folds and draws the resamples: give every model the
    same one, so that all are scored on the same resamples. The task `age` is the published protocol, whose penalty
    depends on the scale of the features; `age_standardised` beside it is a check of how much: a ridge on standardised
    features over a wider grid. Raises what `fitted_and_scored`, `refuse_seen_features`, `join` and `RidgeProbe.fit`
    raise.
    """
    fitted, scored = fitted_and_scored(table, config.fit_splits)
    refuse_seen_features(features, scored, allow=config.allow_seen)
    known = join(features, fitted), fitted["age_years"].to_numpy(), people(fitted)
    probe = RidgeProbe(seed=seed).fit(*known)
    check = RidgeProbe(WIDE_PENALTIES, seed=seed, standardise=True).fit(*known)
    X = join(features, scored) if len(scored) else np.empty((0, features.values.shape[1]))
    predictions = predictions_frame(scored, probe.predict(X), model=features.label, seed=features.seed)
    predictions[STANDARDISED] = check.predict(X)
    ridge = f"ridge on {f'the {features.part} of ' if features.part else ''}{len(fitted)} scans"
    results = score_predictions(
        predictions,
        cohort=cohort,
        config=config,
        seed=seed,
        mean_age_years=mean_age(table, config),
        note=f"{ridge}, {fit_note(probe, 'alpha')}",
        check_note=f"{ridge}, {fit_note(check, 'alpha')}",
        model=features.label,
    )
    return AgeEvaluation(results, predictions)


def mean_age(table: pd.DataFrame, config: EvaluateConfig) -> float:
    """Years; the mean over the scans that probes are fitted on, which the mean predictor predicts for everybody."""
    return float(table.loc[table["split"].isin(config.fit_splits), "age_years"].mean())


def score_predictions(
    predictions: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    mean_age_years: float | None = None,
    note: str = "",
    check_note: str = "",
    model: str = "model",
) -> pd.DataFrame:
    """Results of one model's predictions in both tests, and a NaN row for a test without scans.

    With several seeds the estimate is the mean of the metric over seeds (of scores, not the score of an averaged
    prediction), every seed is scored on the same resamples of people, and the note gives the sd over seeds, which the
    interval does not contain. `mean_age_years` adds the rows of the mean predictor; `model` names the rows where there
    is no prediction at all; `check_note` goes with the STANDARDISED predictions, where there are any. Raises
    LeakageError on predictions for people outside the tests, DataError on several models or on seeds that scored
    different scans.
    """
    others = sorted(set(predictions["split"]) - set(SCORED))
    if others:
        raise LeakageError(f"predictions for people of {' and '.join(others)}: only {' and '.join(SCORED)} are scored")
    refuse_leakage(predictions)
    rows: list[dict[str, Any]] = []
    for split in SCORED:
        if (predictions["split"] == split).any():
            block = by_seed(predictions, split, "predicted_age_years")
            rows += _whole_rows(block, cohort, config, seed, mean_age_years, note)
            if STANDARDISED in predictions:
                rows.append(_check_row(by_seed(predictions, split, STANDARDISED), cohort, config, seed, check_note))
            rows += _part_rows(block, cohort, config, seed)
        else:
            name = str(predictions["model"].iloc[0]) if len(predictions) else model
            rows.append(missing_row(name, cohort, split, "age", "mae_years", f"no scan in {split}"))
    return results_frame(rows)


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
    for split in SCORED:
        blocks = [by_seed(p, split, "predicted_age_years") for p in (first, second) if (p["split"] == split).any()]
        if not blocks:
            continue
        keys = [scan_keys(block.scans).tolist() for block in blocks]
        if len(blocks) < 2 or keys[0] != keys[1]:
            raise DataError(f"{split}: the two models were not scored on the same scans; score both on one table")
        errors = [np.abs(block.values - _ages(block)) for block in blocks]  # [S, n]
        a, b = (error.mean(axis=0) for error in errors)
        # The mean of a - b; bias_years is that mean as a weighted function.
        statistic = {"difference": seed_mean(bias_years, b, a[None])}
        found = _intervals(blocks[0], statistic, config, seed)["difference"]
        name = f"{blocks[0].model} - {blocks[1].model}"
        seeds = _seed_differences(blocks, [error.mean(axis=1) for error in errors])
        notes = (_extent(blocks[0].scans), "below 0: the first is better", "interval over people only", seeds)
        rows.append(result_row(name, cohort, split, "age", "mae_difference_years", found, blocks[0].n, *notes))
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


def _whole_rows(
    block: Predicted,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    mean_age_years: float | None,
    note: str,
) -> list[dict[str, Any]]:
    age, one = _ages(block), np.ones((1, len(block.scans)))
    statistics = {name: seed_mean(metric, age, block.values) for name, metric in AGE_METRICS.items()}
    if mean_age_years is not None:
        statistics[MEAN_PREDICTOR] = seed_mean(mae_years, age, np.full((1, len(age)), mean_age_years))
    found = _intervals(block, statistics, config, seed)
    extent = _extent(block.scans)
    rows = []
    for name, metric in AGE_METRICS.items():
        spread = block.spread([metric(age, predicted, one)[0] for predicted in block.values])
        undefined = "not computed: needs scans of different ages" if np.isnan(found[name].estimate) else ""
        whole = (extent, spread, note, undefined)
        rows.append(result_row(block.model, cohort, block.split, "age", name, found[name], block.n, *whole))
    if mean_age_years is not None:
        guess = f"predicts {mean_age_years:.1f} years for everybody"
        mean = found[MEAN_PREDICTOR]
        rows.append(result_row(MEAN_PREDICTOR, cohort, block.split, "age", "mae_years", mean, block.n, extent, guess))
    return rows


def _check_row(block: Predicted, cohort: str, config: EvaluateConfig, seed: int, note: str) -> dict[str, Any]:
    age, one = _ages(block), np.ones((1, len(block.scans)))
    found = _intervals(block, {"mae": seed_mean(mae_years, age, block.values)}, config, seed)["mae"]
    spread = block.spread([mae_years(age, predicted, one)[0] for predicted in block.values])
    notes = (_extent(block.scans), spread, note, "a check: standardised features, penalties from 1e-4 to 1e6")
    return result_row(block.model, cohort, block.split, "age_standardised", "mae_years", found, block.n, *notes)


def _part_rows(block: Predicted, cohort: str, config: EvaluateConfig, seed: int) -> list[dict[str, Any]]:
    """The MAE of each site (task age_by_site) and each decade of age (task age_by_band) of FEWEST_PEOPLE or more."""
    decades = (_ages(block) // 10).astype(int) * 10
    parts = {
        "site": block.scans["site"].fillna("unknown").str.replace(";", ",").to_numpy(dtype=str),
        "band": np.array([f"{decade}-{decade + 9}" for decade in decades]),
    }
    rows = []
    for kind, names in parts.items():
        for name in sorted(set(names), key=lambda text: (len(text) if kind == "band" else 0, text)):  # 20-29 < 100-109
            here = names == name
            part = block._replace(scans=block.scans[here], values=block.values[:, here])
            where = (block.model, cohort, block.split, f"age_by_{kind}", "mae_years")
            if part.n < FEWEST_PEOPLE:
                rows.append(too_few_row(*where, part.n, f"{kind}={name}"))
                continue
            statistic = {"mae": seed_mean(mae_years, _ages(part), part.values)}
            found = _intervals(part, statistic, config, seed)["mae"]
            rows.append(result_row(*where, found, part.n, f"{kind}={name}", _extent(part.scans)))
    return rows


def _intervals(block: Predicted, statistics: dict, config: EvaluateConfig, seed: int) -> dict[str, Interval]:
    return bootstrap(statistics, block.persons, resamples=config.bootstrap, seed=stream(seed, block.split))


def _ages(block: Predicted) -> np.ndarray:
    return block.scans["age_years"].to_numpy(dtype=np.float64)


def _extent(scans: pd.DataFrame) -> str:
    """Ages in whole years, and of FEWEST_PEOPLE or more: the youngest and the oldest are single persons."""
    ages = scans["age_years"]
    shown = f"; ages {ages.min():.0f}-{ages.max():.0f} years" if len(np.unique(people(scans))) >= FEWEST_PEOPLE else ""
    return f"{len(scans)} scans{shown}"
