"""What a site accuracy has to be read beside: chance, age, declared nuisance variables, and harmonised features.

n scans, D features, K sites. All rows are of the task `site` (and `age` for the age that harmonised features give); the
parts `predictor`, `subset` and `after` say what was done, and the row of `evaluate_site` has none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from sklearn.preprocessing import SplineTransformer

from brainage.config import EvaluateConfig
from brainage.data.table import scan_keys
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.harmonise import CovariateResidual, Covariates, harmonise
from brainage.downstream.predictions import Predicted, by_seed, stream
from brainage.downstream.probes import RidgeProbe, SiteProbe, fit_note, fitted_and_scored, people
from brainage.downstream.results import (
    FEWEST_PEOPLE,
    INTERNAL,
    SCORED,
    missing_row,
    result_row,
    results_frame,
    too_few_row,
)
from brainage.downstream.site import (
    PROBES,
    SiteEvaluation,
    SitePeople,
    chance_rows,
    evaluate_site,
    shuffle_frame,
    shuffle_rows,
    site_people,
)
from brainage.downstream.site_matched import BIN_YEARS, Pairs, age_matched, pair_accuracy, shuffled_pairs
from brainage.downstream.softmax import fit_softmax_path
from brainage.downstream.task import TaskResult
from brainage.errors import DataError
from brainage.statistics.bootstrap import bootstrap, seed_mean
from brainage.statistics.metrics import balanced_accuracy, mae_years

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
    found = _Found(features, cohort, config, seed)
    if chosen.reason:
        found.missing(INTERNAL, "site", "chance_balanced_accuracy", chosen.reason)
        before = SiteEvaluation(results_frame([]), pd.DataFrame())
    else:
        before = evaluation or evaluate_site(features, table, cohort=cohort, config=config, seed=seed, limited=limited)
        for name, part in before.predictions.groupby("probe"):
            found.shuffles(by_seed(part, INTERNAL, "predicted_site"), task=f"site{PROBES[str(name)]}")
    steps: dict[str, Callable[[], None]] = {"predictor=age": partial(_age_controls, found, chosen, before.C)}
    if config.nuisance:
        steps["after=nuisance"] = partial(_without_nuisance, found, chosen, before)
    for how in config.harmonise:
        steps[f"after={how}"] = partial(_site_after, found, table, chosen, before, how)
    for part, step in steps.items():
        found.attempt(step, chosen.reason, (INTERNAL,), "site", "balanced_accuracy", part)
    for how in config.harmonise:
        found.attempt(partial(_ages_after, found, table, scored, how), "", SCORED, "age", "mae_years", f"after={how}")
    shuffles = {"site_shuffles": pd.concat(found.frames, ignore_index=True)} if found.frames else {}
    return TaskResult(results_frame(found.rows), shuffles)


@dataclass
class _Found:
    """Rows and frames as they come, and what every step needs."""

    features: Features
    cohort: str
    config: EvaluateConfig
    seed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    frames: list[pd.DataFrame] = field(default_factory=list)

    def attempt(
        self, step: Callable[[], None], reason: str, splits: Sequence[str], task: str, metric: str, *parts: str
    ) -> None:
        """Take the step; where there is a reason not to, or it finds nothing to work on, say so in its rows."""
        try:
            if reason:
                raise DataError(reason)
            step()
        except DataError as error:
            for split in splits:
                self.missing(split, task, metric, str(error), *parts)

    def missing(self, split: str, task: str, metric: str, reason: str, *parts: str) -> None:
        self.rows.append(missing_row(self.features.label, self.cohort, split, task, metric, reason, *parts))

    def shuffles(self, block: Predicted, *parts: str, task: str = "site") -> None:
        shared: dict[str, Any] = {"cohort": self.cohort, "config": self.config, "seed": self.seed}
        rows, frame = shuffle_rows(block, *parts, task=task, **shared)
        self.rows += rows
        self.frames += [frame] if len(frame) else []

    def accuracy(self, scored: pd.DataFrame, named: np.ndarray, *notes: str, parts: tuple[str, ...]) -> None:
        """Balanced accuracy of the named sites [scored] with its interval, and what chance gives."""
        if scored.empty:
            raise DataError("no scored scan is left")
        frame = scored.assign(model=self.features.label, seed=int(self.features.seed), named=named)
        block = by_seed(frame, INTERNAL, "named")
        truth = block.scans["site"].to_numpy(dtype=str)
        statistic = {"accuracy": seed_mean(balanced_accuracy, truth, block.values)}
        drawn = stream(self.seed, INTERNAL)
        found = bootstrap(statistic, block.persons, resamples=self.config.bootstrap, seed=drawn)["accuracy"]
        where = (block.model, self.cohort, INTERNAL, "site", "balanced_accuracy")
        extent = f"{len(frame)} scans; {len(np.unique(truth))} sites scored"
        self.rows.append(result_row(*where, found, block.n, *parts, extent, *notes))
        self.shuffles(block, *parts)


def _age_controls(found: _Found, chosen: SitePeople, C: float) -> None:
    """How far age alone tells sites apart, and how far the features do among people of the same age."""
    sites, codes = np.unique(chosen.fitted["site"].to_numpy(dtype=str), return_inverse=True)
    columns = _age_columns(chosen.fitted)
    by_age = _scorer(columns(chosen.fitted), codes, AGE_C)
    named = sites[by_age(columns(chosen.scored)).argmax(axis=1)]
    note = f"age and its spline of {_KNOTS} knots only, softmax C {AGE_C:g}"
    found.accuracy(chosen.scored, named, note, parts=("predictor=age",))
    matched, everybody = age_matched(chosen.scored, sites, found.seed)
    if not matched.P:
        reason = f"no two sites have {FEWEST_PEOPLE} scored people each to match by age in {BIN_YEARS}-year bins"
        found.missing(INTERNAL, "site", "balanced_accuracy", reason, "subset=age_matched")
        return
    X = join(found.features, chosen.fitted).astype(np.float64)
    by_features = _scorer(X, codes, C)(join(found.features, matched.scans).astype(np.float64))
    for scores, predictor in ((by_features, ()), (by_age(columns(matched.scans)), ("predictor=age",))):
        _pair_rows(found, matched, scores, (*predictor, "subset=age_matched"), shuffle=True)
        _pair_rows(found, everybody, scores, (*predictor, "subset=same_pairs"), shuffle=False)


def _pair_rows(found: _Found, pairs: Pairs, scores: np.ndarray, parts: tuple[str, ...], *, shuffle: bool) -> None:
    drawn, n = stream(found.seed, INTERNAL), len(np.unique(pairs.row))
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


def _without_nuisance(found: _Found, chosen: SitePeople, before: SiteEvaluation) -> None:
    """The site probe on features from which the declared covariates were regressed out."""
    covariates = Covariates(found.config.nuisance).fit(chosen.fitted)
    C, C_scored = covariates.transform(chosen.fitted), covariates.transform(chosen.scored)
    known, known_scored = np.isfinite(C).all(axis=1), np.isfinite(C_scored).all(axis=1)
    fitted, scored = chosen.fitted[known], chosen.scored[known_scored]
    if fitted.empty or scored.empty:
        raise DataError(f"{len(fitted)} fitted and {len(scored)} scored scans have {', '.join(covariates.names)}")
    X = join(found.features, fitted)
    model = CovariateResidual().fit(X, fitted["site"].to_numpy(dtype=str), C[known])
    X = model.transform(X, C[known])
    X_scored = model.transform(join(found.features, scored), C_scored[known_scored])
    note = f"regressed out by slopes within sites of {len(fitted)} fitted scans: {', '.join(covariates.names)}"
    if not (known.all() and known_scored.all()):
        note += f"; left out without them: {(~known).sum()} fitted and {(~known_scored).sum()} scored scans"
    _probe_site(found, fitted, X, scored, X_scored, before, note, "after=nuisance")


def _site_after(found: _Found, table: pd.DataFrame, chosen: SitePeople, before: SiteEvaluation, how: str) -> None:
    harmonised = harmonise(found.features, table, how, config=found.config, scored=chosen.scored)
    here = harmonised.changed
    stay = f"left out: {(~here).sum()} scored scans of sites that were not fitted" if not here.all() else ""
    scored, X_scored = harmonised.scored[here], harmonised.X_scored[here]
    note = "; ".join(phrase for phrase in (harmonised.note, stay) if phrase)
    _probe_site(found, harmonised.fitted, harmonised.X, scored, X_scored, before, note, f"after={how}")


def _probe_site(
    found: _Found,
    fitted: pd.DataFrame,
    X: np.ndarray,
    scored: pd.DataFrame,
    X_scored: np.ndarray,
    before: SiteEvaluation,
    note: str,
    part: str,
) -> None:
    """The converged probe on changed features, beside what the unchanged ones gave on the same scans."""
    scored, X_scored = _of_fitted_sites(fitted, scored, X_scored)
    probe = SiteProbe(seed=found.seed).fit(X, fitted["site"].to_numpy(dtype=str), people(fitted))
    state = "converged" if probe.converged_ else "NOT converged"
    known = before.predictions[before.predictions["probe"] == "converged"]
    same = known[scan_keys(known).isin(scan_keys(scored))]
    truth, named = (same[name].to_numpy(dtype=str) for name in ("site", "predicted_site"))
    earlier = f"before, on the same scans: {balanced_accuracy(truth, named, np.ones((1, len(same))))[0]:.3f}"
    found.accuracy(scored, probe.predict(X_scored), earlier, note, f"{state}, {fit_note(probe, 'C')}", parts=(part,))


def _of_fitted_sites(
    fitted: pd.DataFrame, scored: pd.DataFrame, X_scored: np.ndarray
) -> tuple[pd.DataFrame, np.ndarray]:
    here = scored["site"].isin(fitted["site"]).to_numpy(dtype=bool)
    if not here.any():
        raise DataError("no scored scan is of a site that is still fitted")
    return scored[here], X_scored[here]


def _ages_after(found: _Found, table: pd.DataFrame, scored: pd.DataFrame, how: str) -> None:
    """The MAE of the ridge probe fitted anew on harmonised features, beside the old one's on the same scans.

    The covariate age of a judged person is the age predicted before: the true one would be told to the features.
    """
    features, config = found.features, found.config
    fitted = table[table["split"].isin(config.fit_splits)]
    ridge = RidgeProbe(seed=found.seed).fit(join(features, fitted), fitted["age_years"].to_numpy(), people(fitted))
    before = pd.Series(ridge.predict(join(features, scored)), index=scored.index)
    honest = before if "age" in config.nuisance else None
    harmonised = harmonise(features, table, how, config=config, scored=scored, scored_ages=honest)
    again = RidgeProbe(seed=found.seed).fit(
        harmonised.X, harmonised.fitted["age_years"].to_numpy(), people(harmonised.fitted)
    )
    whose = "scored people enter with the age predicted before" if honest is not None else ""
    notes = (harmonised.note, whose, fit_note(again, "alpha"))
    frame = harmonised.scored.assign(changed=harmonised.changed, before=before[harmonised.scored.index])
    frame["after"] = again.predict(harmonised.X_scored)
    for split in SCORED:
        part = frame[frame["split"] == split]
        if len(part):
            _age_row(found, split, part, f"after={how}", *notes)
        else:
            reason = f"no scan in {split} that could be harmonised"
            found.missing(split, "age", "mae_years", reason, f"after={how}")


def _age_row(found: _Found, split: str, scans: pd.DataFrame, part: str, *notes: str) -> None:
    where, persons = (found.features.label, found.cohort, split, "age", "mae_years"), people(scans)
    n = len(np.unique(persons))
    if n < FEWEST_PEOPLE:
        found.rows.append(too_few_row(*where, n, part))
        return
    age, before, after = (scans[name].to_numpy(dtype=np.float64) for name in ("age_years", "before", "after"))
    statistic = {"mae": seed_mean(mae_years, age, after[None])}
    drawn = stream(found.seed, split)
    mae = bootstrap(statistic, persons, resamples=found.config.bootstrap, seed=drawn)["mae"]
    unseen = int((~scans["changed"]).sum())
    stay = f"{unseen} scans of sites that were not fitted stay as they are" if unseen else ""
    earlier = f"before, on the same scans: {np.abs(before - age).mean():.2f}"
    found.rows.append(result_row(*where, mae, n, part, f"{len(scans)} scans", earlier, stay, *notes))
