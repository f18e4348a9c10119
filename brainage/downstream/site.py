"""How well the site of a scan can be told from frozen features: as little as possible is what one hopes for.

The probe learns the sites of the fitted people and names those of test_internal, whose sites are all known by
definition; the sites of test_external cannot be named by anybody. With the external MAE it gives the challenge score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import KEY, scan_keys
from brainage.downstream.features import Features, join, refuse_seen_features
from brainage.downstream.predictions import Predicted, by_seed, stream
from brainage.downstream.probes import SiteProbe, fit_note, fitted_and_scored, people
from brainage.downstream.results import CHANCE, EXTERNAL, INTERNAL, missing_row, result_row, results_frame
from brainage.errors import DataError
from brainage.statistics.bootstrap import FEWEST_PERSONS, Interval, bootstrap, interval, replicates, seed_mean
from brainage.statistics.metrics import balanced_accuracy, mae_years

SITE_PREDICTION_COLUMNS = [*KEY, "split", "site", "model", "seed", "probe", "predicted_site", "classes", "fit_note"]
PROBES = {"converged": "", "published": "_published"}  # probe -> ending of its tasks


class SiteEvaluation(NamedTuple):
    """`predictions` has SITE_PREDICTION_COLUMNS, one row a scored scan and probe; none where nothing was scored."""

    results: pd.DataFrame
    predictions: pd.DataFrame
    C: float = np.nan  # penalty of the converged probe; NaN where none was fitted, or one a seed


class SitePeople(NamedTuple):
    """Rows of the table. `fitted` and `scored` are those of `everybody` and `internal` whose site a probe can know."""

    everybody: pd.DataFrame
    internal: pd.DataFrame
    fitted: pd.DataFrame
    scored: pd.DataFrame

    @property
    def reason(self) -> str:
        """Why no probe can be fitted and scored on them; empty where one can."""
        if self.internal.empty:
            return f"no scan in {INTERNAL}"
        if self.fitted["site"].nunique() < 2:
            return f"{self.fitted['site'].nunique()} site in the fitted splits, two are needed to tell them apart"
        return "" if len(self.scored) else f"no scan of {INTERNAL} is of a fitted site"


def site_people(table: pd.DataFrame, config: EvaluateConfig, *, limited: bool = False) -> SitePeople:
    """Raises what `evaluate_site` raises about the table."""
    everybody, internal = fitted_and_scored(table, config.fit_splits, (INTERNAL,))
    if not limited:
        _refuse_unknown_sites(internal, table)
    fitted = everybody[everybody["site"].notna()]
    return SitePeople(everybody, internal, fitted, internal[internal["site"].isin(fitted["site"].unique())])


def evaluate_site(
    features: Features,
    table: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    limited: bool = False,
) -> SiteEvaluation:
    """Fit the site probe on the people of `config.fit_splits`, score those of test_internal.

    The task `site` is the converged probe; `config.site_probe_published` adds the task `site_published`, the published
    protocol of 150 saga iterations. Scans without a site, and those of a site that only people outside the fitted
    splits have, are left out and counted in the note. One fitted site or no scan to score gives a row of NaN with the
    reason. Raises DataError when a site of test_internal is known neither to train nor to val (with `limited` it is
    left out like the others: data.limit may have cut it from train), and what `fitted_and_scored`,
    `refuse_seen_features` and `join` raise.
    """
    chosen = site_people(table, config, limited=limited)
    everybody, internal, fitted, scored = chosen
    refuse_seen_features(features, internal, allow=config.allow_seen)
    if chosen.reason:
        rows = [missing_row(features.label, cohort, INTERNAL, "site", "balanced_accuracy", chosen.reason)]
        return SiteEvaluation(results_frame(rows), pd.DataFrame(columns=SITE_PREDICTION_COLUMNS))
    X, y = join(features, fitted), fitted["site"].to_numpy(dtype=str)
    lost = (
        f"left out without a fitted site: {len(everybody) - len(fitted)} fitted, {len(internal) - len(scored)} scored"
    )
    frames, penalties = [], []
    for name in PROBES if config.site_probe_published else ("converged",):
        probe = SiteProbe("lbfgs" if name == "converged" else "saga", seed=seed).fit(X, y, people(fitted))
        complete = len(fitted) == len(everybody) and len(scored) == len(internal)
        frame = scored.assign(model=features.label, seed=int(features.seed), probe=name, classes=len(probe.classes_))
        frame["predicted_site"] = probe.predict(join(features, scored))
        frame["fit_note"] = _fit_note(probe) + ("" if complete else f"; {lost}")
        frames.append(frame[SITE_PREDICTION_COLUMNS])
        penalties.append(probe.C_)
    predictions = pd.concat(frames, ignore_index=True)
    results = score_sites(predictions, cohort=cohort, config=config, seed=seed)
    return SiteEvaluation(results, predictions, penalties[0])


def score_sites(predictions: pd.DataFrame, *, cohort: str, config: EvaluateConfig, seed: int) -> pd.DataFrame:
    """Balanced accuracy of each probe (with several seeds their mean) and the row `chance`, 1 / fitted sites.

    With many sites of one or two people the interval is too narrow: simulated with 362 people of 64 such sites, 95 %
    intervals held the truth 89 times in 100 (resamples miss whole sites), against 95 in 100 with four larger ones.
    """
    rows = []
    for name, part in predictions.groupby("probe"):
        block, task = by_seed(part, INTERNAL, "predicted_site"), f"site{PROBES[str(name)]}"
        truth = _sites(block)
        statistic = {"accuracy": seed_mean(balanced_accuracy, truth, block.values)}
        resamples, drawn = config.bootstrap, stream(seed, INTERNAL)
        found = bootstrap(statistic, block.persons, resamples=resamples, seed=drawn)["accuracy"]
        spread = block.spread([balanced_accuracy(truth, v, np.ones((1, len(truth))))[0] for v in block.values])
        classes = int(part["classes"].iloc[0])
        extent = f"{len(block.scans)} scans; {classes} sites fitted, {len(np.unique(truth))} scored"
        notes = (extent, spread, *dict.fromkeys(part["fit_note"]))
        rows.append(result_row(block.model, cohort, INTERNAL, task, "balanced_accuracy", found, block.n, *notes))
        chance = Interval(1 / classes, np.nan, np.nan)
        note = f"1 / {classes} sites fitted"
        rows.append(result_row(CHANCE, cohort, INTERNAL, task, "balanced_accuracy", chance, block.n, note))
    return results_frame(rows)


def pool_site_seeds(
    evaluations: Sequence[SiteEvaluation], *, cohort: str, config: EvaluateConfig, seed: int
) -> SiteEvaluation:
    """One model trained with several seeds; where nothing was scored, the evaluation that says why."""
    for evaluation in evaluations:
        if evaluation.predictions.empty:
            return evaluation
    predictions = pd.concat([evaluation.predictions for evaluation in evaluations], ignore_index=True)
    return SiteEvaluation(score_sites(predictions, cohort=cohort, config=config, seed=seed), predictions)


def challenge_value(balanced_accuracy: Any, mae_years: Any) -> Any:
    """L_c = BAcc_internal^0.3 x MAE_external, lower is better; BAcc is a fraction (OpenBHB challenge).

    >>> round(challenge_value(0.051, 3.76), 2), round(challenge_value(0.152, 2.92), 2)
    (1.54, 1.66)
    """
    return balanced_accuracy**0.3 * mae_years


def challenge_score(
    age_predictions: pd.DataFrame,
    site_predictions: pd.DataFrame,
    *,
    cohort: str,
    config: EvaluateConfig,
    seed: int,
    model: str = "model",
) -> pd.DataFrame:
    """L_c of one model for each site probe, from its ages in test_external and its sites in test_internal.

    Internal and external people are other people, so they are resampled independently: replicate r of L_c joins
    replicate r of the accuracy with replicate r of the MAE. With several seeds it is the mean of each seed's L_c. NaN
    with a note where a test has nothing to score (`model` names that row). Raises DataError when the two frames are of
    other models or seeds.
    """
    both = f"{INTERNAL}+{EXTERNAL}"
    if not (age_predictions["split"] == EXTERNAL).any() or site_predictions.empty:
        lost = f"site prediction in {INTERNAL}" if site_predictions.empty else f"age prediction in {EXTERNAL}"
        return results_frame([missing_row(model, cohort, both, "challenge", "challenge_score", f"no {lost}")])
    far = by_seed(age_predictions, EXTERNAL, "predicted_age_years")
    rows = []
    for name, part in site_predictions.groupby("probe"):
        near = by_seed(part, INTERNAL, "predicted_site")
        if (near.model, near.seeds) != (far.model, far.seeds):
            raise DataError(
                f"challenge score: sites are of {near.model!r} (seeds {near.seeds}), ages of {far.model!r} "
                f"(seeds {far.seeds}); expected one model and the same seeds"
            )
        values = _challenge_replicates(near, far, config.bootstrap, seed)
        each = values[:, 0]  # of the sample itself, one a seed
        drawn = values.mean(axis=0)[1:] if min(near.n, far.n) >= FEWEST_PERSONS else np.empty(0)
        notes = (f"{near.n} internal and {far.n} external people", near.spread(list(each)))
        found, task = interval(each.mean(), drawn), f"challenge{PROBES[str(name)]}"
        rows.append(result_row(near.model, cohort, both, task, "challenge_score", found, near.n + far.n, *notes))
    return results_frame(rows)


def _challenge_replicates(near: Predicted, far: Predicted, resamples: int, seed: int) -> np.ndarray:
    """[S, 1 + R] challenge scores of each seed: of the sample, then of each pair of resamples."""
    truth, age = _sites(near), far.scans["age_years"].to_numpy(dtype=np.float64)
    accuracy = {
        str(s): seed_mean(balanced_accuracy, truth, one[None]) for s, one in zip(near.seeds, near.values, strict=True)
    }
    error = {str(s): seed_mean(mae_years, age, one[None]) for s, one in zip(far.seeds, far.values, strict=True)}
    accuracies = replicates(accuracy, near.persons, resamples=resamples, seed=stream(seed, INTERNAL))
    errors = replicates(error, far.persons, resamples=resamples, seed=stream(seed, EXTERNAL))
    return np.stack([challenge_value(accuracies[name], errors[name]) for name in accuracies])


def _refuse_unknown_sites(internal: pd.DataFrame, table: pd.DataFrame) -> None:
    """The definition of test_internal: its sites are sites of train, of which val is a part."""
    known = table.loc[table["split"].isin(["train", "val"]), "site"].dropna().unique()
    unknown = internal[internal["site"].notna() & ~internal["site"].isin(known)]
    if len(unknown):
        sites = sorted(unknown["site"].unique())
        raise DataError(
            f"{len(unknown)} scans of {INTERNAL} are of {len(sites)} sites that train does not have, first site "
            f"{sites[0]} (scan {scan_keys(unknown).iloc[0]}): they belong in {EXTERNAL}; mend the split file"
        )


def _fit_note(probe: SiteProbe) -> str:
    state = "converged" if probe.converged_ else "NOT converged"
    note = f"{probe.solver} {state}, {fit_note(probe, 'C')}"
    if probe.lonely_sites_:
        note += f"; {len(probe.lonely_sites_)} sites have one fitted person, whom no fold can recognise"
    return note


def _sites(block: Predicted) -> np.ndarray:
    return block.scans["site"].to_numpy(dtype=str)
