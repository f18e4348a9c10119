"""What a site accuracy has to be read beside: chance, age, declared nuisance variables, and harmonised features.

n scans, D features, K sites. All rows are of the task `site` (and `age` for the age that harmonised features give); the
parts `predictor`, `subset` and `after` say what was done, and the row of `evaluate_site` has none of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pandas as pd
from sklearn.preprocessing import SplineTransformer

from brainage.config import EvaluateConfig
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.predictions import by_seed, stream
from brainage.downstream.probes import fitted_and_scored
from brainage.downstream.results import FEWEST_PEOPLE, INTERNAL, SCORED, result_row, results_frame
from brainage.downstream.site import PROBES, SiteEvaluation, SitePeople, evaluate_site, site_people
from brainage.downstream.site_after import ages_after, nuisance_parts, site_after, without_nuisance
from brainage.downstream.site_matched import BIN_YEARS, Pairs, age_matched, pair_accuracy, shuffled_pairs
from brainage.downstream.site_rows import SiteRows, chance_rows, shuffle_frame
from brainage.downstream.softmax import fit_softmax_path
from brainage.downstream.task import TaskResult
from brainage.errors import DataError
from brainage.statistics.bootstrap import bootstrap

AGE_C = 1.0  # penalty of the probe that knows age only: a few standardised columns, hardly shrunken
_KNOTS = 5


def evaluate_site_controls(
    features: Features,
    table: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    limited: bool = False,
    evaluation: SiteEvaluation | None = None,
) -> TaskResult:
    """Chance, age alone, age-matched pairs, `config.nuisance` and `config.harmonise` of one network's features.

    `evaluation` is what `evaluate_site` gave for the same arguments; without it the probe is fitted here. The frame
    `site_shuffles` (SHUFFLE_COLUMNS) has the accuracy of every shuffle and names nobody. What cannot be computed is a
    row with its reason. Raises what `evaluate_site` raises.
    """
    fitted, scored = fitted_and_scored(table, config.fit_splits)
    refuse_seen_features(features, scored, allow=config.allow_seen)
    join(features, pd.concat([fitted, scored]))  # broken vectors are an error and no row
    chosen = site_people(table, config, limited=limited)
    found = SiteRows(features, cohort, config, seed)
    if chosen.reason:
        found.missing(INTERNAL, "site", "chance_balanced_accuracy", chosen.reason)
        before = SiteEvaluation(results_frame([]), pd.DataFrame())
    else:
        before = evaluation or evaluate_site(features, table, cohort=cohort, config=config, seed=seed, limited=limited)
        for name, part in before.predictions.groupby("probe"):
            found.shuffles(by_seed(part, INTERNAL, "predicted_site"), task=f"site{PROBES[str(name)]}")
    steps: dict[tuple[str, ...], Callable[[], None]] = {
        ("predictor=age",): partial(_age_controls, found, chosen, before.C)
    }
    if config.nuisance:
        steps[nuisance_parts(config)] = partial(without_nuisance, found, chosen, before)
    for how in config.harmonise:
        steps[(f"after={how}",)] = partial(site_after, found, table, chosen, before, how)
    for parts, step in steps.items():
        found.attempt(step, chosen.reason, (INTERNAL,), "site", "balanced_accuracy", *parts)
    for how in config.harmonise:
        found.attempt(partial(ages_after, found, table, scored, how), "", SCORED, "age", "mae_years", f"after={how}")
    shuffles = {"site_shuffles": pd.concat(found.frames, ignore_index=True)} if found.frames else {}
    return TaskResult(results_frame(found.rows), shuffles)


def _age_controls(found: SiteRows, chosen: SitePeople, C: float) -> None:
    """How far age alone tells sites apart, and how far the features do among people of the same age."""
    sites, codes = np.unique(chosen.fitted["site"].to_numpy(dtype=str), return_inverse=True)
    columns = _age_columns(chosen.fitted)
    by_age = _scorer(columns(chosen.fitted), codes, AGE_C)
    named = sites[by_age(columns(chosen.scored)).argmax(axis=1)]
    note = f"age and its spline of {_KNOTS} knots only, softmax C {AGE_C:g}"
    found.accuracy(chosen.scored, named, note, parts=("predictor=age",))
    matched, everybody = age_matched(chosen.scored, sites, found.seed)
    if not matched.n:
        reason = f"no two sites have {FEWEST_PEOPLE} scored people each to match by age in {BIN_YEARS}-year bins"
        found.missing(INTERNAL, "site", "balanced_accuracy", reason, "subset=age_matched")
        return
    X = join(found.features, chosen.fitted).astype(np.float64)
    by_features = _scorer(X, codes, C)(join(found.features, matched.scans).astype(np.float64))
    for scores, predictor in ((by_features, ()), (by_age(columns(matched.scans)), ("predictor=age",))):
        _pair_rows(found, matched, scores, (*predictor, "subset=age_matched"), shuffle=True)
        _pair_rows(found, everybody, scores, (*predictor, "subset=same_pairs"), shuffle=False)


def _pair_rows(found: SiteRows, pairs: Pairs, scores: np.ndarray, parts: tuple[str, ...], *, shuffle: bool) -> None:
    drawn, n = stream(found.seed, INTERNAL), pairs.n
    label, config = found.features.label, found.config
    statistic = {"accuracy": pair_accuracy(pairs, scores)}
    accuracy = bootstrap(statistic, pairs.persons, resamples=config.bootstrap, seed=drawn)["accuracy"]
    where = (label, found.cohort, INTERNAL, "site")
    matched = (
        f"matched one to one in bins of {BIN_YEARS} years" if shuffle else "all people of the same pairs, unmatched"
    )
    found.rows.append(result_row(*where, "balanced_accuracy", accuracy, n, *parts, pairs.extent(), matched))
    if shuffle and config.site_permutations:
        values = shuffled_pairs(pairs, scores, shuffles=config.site_permutations, seed=[*drawn, 2])
        null = f"sites shuffled over the scored people of each bin of {BIN_YEARS} years, scores fixed"
        found.rows += chance_rows(where, values, n, parts, null)
        found.frames.append(shuffle_frame(values, label, [int(found.features.seed)], "site", parts))


def _age_columns(fitted: pd.DataFrame) -> Callable[[pd.DataFrame], np.ndarray]:
    """A cubic spline of age, knots at quantiles of the fitted ages, straight beyond them, standardised."""
    ages = fitted[["age_years"]].to_numpy(dtype=np.float64)
    knots = np.unique(np.quantile(ages, np.linspace(0, 1, _KNOTS)))
    if len(knots) < 2:
        raise DataError("all fitted people are of one age")
    spline = SplineTransformer(degree=3, knots=knots[:, None], extrapolation="linear", include_bias=False).fit(ages)
    columns = spline.transform(ages)
    mean, sd = columns.mean(axis=0), columns.std(axis=0)
    sd[sd == 0] = 1.0
    return lambda table: (spline.transform(table[["age_years"]].to_numpy(dtype=np.float64)) - mean) / sd


def _scorer(X: np.ndarray, codes: np.ndarray, C: float) -> Callable[[np.ndarray], np.ndarray]:
    """Class scores [n, K] of the softmax fitted on X [fitted, D]."""
    (model,) = fit_softmax_path(X, codes, [C])
    return lambda X: X @ model.coef + model.intercept
