"""Whether ages are read off some people worse than off others: errors by sex, decade of age and site.

n scans, S seeds. Parts of a test always differ a little. How much chance alone makes the best and the worst part
differ, in parts of these sizes, is what a gap has to be read beside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.downstream.predictions import Predicted, by_seed, stream
from brainage.downstream.results import FEWEST_PEOPLE, SCORED, missing_row, result_row, results_frame, too_few_row
from brainage.downstream.task import TaskResult, not_computed
from brainage.statistics.bootstrap import Interval, Statistic, bootstrap, interval, seed_mean
from brainage.statistics.metrics import bias_years, mae_years
from brainage.statistics.permutation import permutation_p, person_shuffles

KINDS = ("sex", "band", "site")
METRICS = {"mae_years": mae_years, "bias_years": bias_years}


def evaluate_fairness(
    predictions: pd.DataFrame, *, cohort: str, config: EvaluateConfig, seed: int, model: str = "model"
) -> TaskResult:
    """MAE and bias of each sex, decade of age and site of one model's predictions (PREDICTION_COLUMNS), and their gap.

    Rows of task `fairness`: `mae_years` and `bias_years` with `sex=`, `band=` or `site=`; `mae_gap_years` with
    `term=` one of the three: the largest MAE minus the smallest among parts of FEWEST_PEOPLE or more, its interval
    over people on resamples that all parts share; `chance_mae_gap_years` and `p`: the same gap with the parts dealt
    anew over these people (`person_shuffles`, `config.site_permutations` of them). The interval of a largest
    difference lies too high (resamples add noise to every part, and the gap only grows by it): whether there is any gap
    is told by `p`. Several seeds: the mean of each seed's MAE. Raises what `by_seed` raises.
    """
    rows: list[dict[str, Any]] = []
    for split in SCORED:
        if (predictions["split"] == split).any():
            block = by_seed(predictions, split, "predicted_age_years")
            for kind, names in _parts(block.scans).items():
                rows += _part_rows(block, kind, names, cohort, config, seed)
                rows += _gap_rows(block, kind, names, cohort, config, seed)
    if not rows:
        return not_computed(model, cohort, SCORED[1], "fairness", "mae_gap_years", "no prediction in either test")
    return TaskResult(results_frame(rows))


def _parts(scans: pd.DataFrame) -> dict[str, np.ndarray]:
    """Kind -> the name [n] of each scan's part."""
    decades = (scans["age_years"].to_numpy(dtype=np.float64) // 10).astype(int) * 10
    return {
        "sex": scans["sex"].fillna("unknown").to_numpy(dtype=str),
        "band": np.array([f"{decade}-{decade + 9}" for decade in decades]),
        "site": scans["site"].fillna("unknown").str.replace(";", ",").to_numpy(dtype=str),
    }


def _part_rows(
    block: Predicted, kind: str, names: np.ndarray, cohort: str, config: EvaluateConfig, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for name in sorted(set(names), key=lambda text: (len(text) if kind == "band" else 0, text)):
        here = names == name
        part = block._replace(scans=block.scans[here], values=block.values[:, here])
        where = (block.model, cohort, block.split, "fairness")
        if part.n < FEWEST_PEOPLE:
            rows += [too_few_row(*where, metric, part.n, f"{kind}={name}") for metric in METRICS]
            continue
        statistics = {metric: seed_mean(of, _ages(part), part.values) for metric, of in METRICS.items()}
        found = bootstrap(statistics, part.persons, resamples=config.bootstrap, seed=stream(seed, block.split))
        extent = f"{len(part.scans)} scans"
        rows += [result_row(*where, metric, found[metric], part.n, f"{kind}={name}", extent) for metric in METRICS]
    return rows


def _gap_rows(
    block: Predicted, kind: str, names: np.ndarray, cohort: str, config: EvaluateConfig, seed: int
) -> list[dict[str, Any]]:
    where, part = (block.model, cohort, block.split, "fairness"), f"term={kind}"
    sizes = pd.Series(block.persons).groupby(names).nunique()
    large = sizes[sizes >= FEWEST_PEOPLE].index
    if len(large) < 2:
        reason = f"{len(large)} parts have {FEWEST_PEOPLE} people or more, two are needed to compare"
        return [missing_row(*where, "mae_gap_years", reason, part)]
    here = np.isin(names, large)
    errors = np.abs(block.values - _ages(block)).mean(axis=0)[here]  # a mean of MAEs is the MAE of mean errors
    persons, codes = block.persons[here], np.searchsorted(large.to_numpy(dtype=str), names[here])
    n, drawn = len(np.unique(persons)), stream(seed, block.split)
    statistic = {"gap": _gap(errors, codes)}
    gap = bootstrap(statistic, persons, resamples=config.bootstrap, seed=drawn)["gap"]
    each = _means(errors, codes)
    extremes = f"{large[each.argmax()]} {each.max():.2f}, {large[each.argmin()]} {each.min():.2f}"
    small = f"{len(sizes) - len(large)} smaller parts left out" if len(large) < len(sizes) else ""
    notes = (part, f"{len(large)} parts", extremes, small)
    rows = [result_row(*where, "mae_gap_years", gap, n, *notes, "interval too high by the noise of the parts")]
    if config.site_permutations:
        orders = person_shuffles(persons, shuffles=config.site_permutations, seed=[*drawn, 1])
        chance = np.array([np.ptp(_means(errors, codes[order])) for order in orders])
        null = f"{len(chance)} shuffles of the parts over people, errors fixed"
        p = Interval(permutation_p(gap.estimate, chance), np.nan, np.nan)
        rows.append(result_row(*where, "chance_mae_gap_years", interval(chance.mean(), chance), n, part, null))
        rows.append(result_row(*where, "p", p, n, part, null, "(b + 1) / (m + 1)"))
    return rows


def _means(errors: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[parts]"""
    return np.bincount(codes, errors) / np.bincount(codes)


def _gap(errors: np.ndarray, codes: np.ndarray) -> Statistic:
    """Largest mean error of a part minus the smallest; parts that a resample misses do not take part."""
    member = np.eye(codes.max() + 1)[codes]  # [n, parts]

    def statistic(weights: np.ndarray) -> np.ndarray:
        scans, sums = weights @ member, weights @ (member * errors[:, None])
        means = np.divide(sums, scans, out=np.full_like(sums, np.nan), where=scans > 0)
        return np.nanmax(means, axis=1) - np.nanmin(means, axis=1)

    return statistic


def _ages(block: Predicted) -> np.ndarray:
    return block.scans["age_years"].to_numpy(dtype=np.float64)
