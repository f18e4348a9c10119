"""The site probe once more after something was taken from the features: declared covariates, or the site itself.

What harmonisation costs is seen in the age that is read from harmonised features. Before and after always stand on the
same scans.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import scan_keys
from brainage.downstream.age_probes import out_of_fold_years
from brainage.downstream.age_scores import HEALTHY, healthy_only, mark_healthy
from brainage.downstream.features import Features, join
from brainage.downstream.harmonise import CovariateResidual, Covariates, harmonise
from brainage.downstream.predictions import stream
from brainage.downstream.probes import RidgeProbe, SiteProbe, fit_note, people
from brainage.downstream.results import FEWEST_PEOPLE, SCORED, result_row, too_few_row
from brainage.downstream.site import SiteEvaluation, SitePeople
from brainage.downstream.site_rows import SiteRows
from brainage.errors import DataError
from brainage.statistics.bootstrap import bootstrap, seed_mean
from brainage.statistics.metrics import balanced_accuracy, mae_years


def nuisance_parts(config: EvaluateConfig) -> tuple[str, str]:
    """The parts of rows from which `config.nuisance` was removed: they say what."""
    return "after=nuisance", f"term={', '.join(config.nuisance)}"


def without_nuisance(found: SiteRows, chosen: SitePeople, before: SiteEvaluation) -> None:
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
    _probe_site(found, fitted, X, scored, X_scored, before, note, *nuisance_parts(found.config))


def site_after(found: SiteRows, table: pd.DataFrame, chosen: SitePeople, before: SiteEvaluation, how: str) -> None:
    """The site probe on features harmonised by `how`; scans of sites that it could not be fitted on are left out."""
    harmonised = harmonise(found.features, table, how, config=found.config, scored=chosen.scored)
    scored, X_scored = harmonised.scored, harmonised.X_scored
    _probe_site(found, harmonised.fitted, harmonised.X, scored, X_scored, before, harmonised.note, f"after={how}")


def _probe_site(
    found: SiteRows,
    fitted: pd.DataFrame,
    X: np.ndarray,
    scored: pd.DataFrame,
    X_scored: np.ndarray,
    before: SiteEvaluation,
    note: str,
    *parts: str,
) -> None:
    """The converged probe on changed features, beside what the unchanged ones gave on the same scans."""
    here = scored["site"].isin(fitted["site"]).to_numpy(dtype=bool)
    if not here.any():
        raise DataError("no scored scan is of a site that is still fitted")
    if not here.all():
        note += f"; {(~here).sum()} scored scans left out, of sites that are no longer fitted"
    scored, X_scored = scored[here], X_scored[here]
    probe = SiteProbe(seed=found.seed).fit(X, fitted["site"].to_numpy(dtype=str), people(fitted))
    state = "converged" if probe.converged_ else "NOT converged"
    known = before.predictions[before.predictions["probe"] == "converged"]
    same = known[scan_keys(known).isin(scan_keys(scored))]
    truth, named = (same[name].to_numpy(dtype=str) for name in ("site", "predicted_site"))
    found_sites = probe.predict(X_scored)
    alone = "names one site for everybody" if len(set(found_sites)) == 1 else ""
    earlier = f"before, on the same scans: {balanced_accuracy(truth, named, np.ones((1, len(same))))[0]:.3f}"
    found.accuracy(scored, found_sites, alone, earlier, note, f"{state}, {fit_note(probe, 'C')}", parts=parts)


def ages_after(found: SiteRows, table: pd.DataFrame, scored: pd.DataFrame, how: str) -> None:
    """The MAE of healthy people by a ridge fitted anew on harmonised features, beside the old one's on the same scans.

    Where age is a covariate, the harmoniser is applied with the age predicted before, of fitted people out of fold.
    """
    features, config = found.features, found.config
    scored, left_out = healthy_only(mark_healthy(scored, table))
    before = _ages_before(features, table, scored, config, found.seed)
    honest = before if "age" in config.nuisance else None
    harmonised = harmonise(features, table, how, config=config, scored=scored, ages=honest)
    well = mark_healthy(harmonised.fitted, table)[HEALTHY].to_numpy(dtype=bool)
    fitted, X = harmonised.fitted[well], harmonised.X[well]
    again = RidgeProbe(seed=found.seed).fit(X, fitted["age_years"].to_numpy(), people(fitted))
    whose = "applied with the age predicted before, of fitted people out of fold" if honest is not None else ""
    notes = (harmonised.note, whose, fit_note(again, "alpha"))
    frame = harmonised.scored.assign(changed=harmonised.changed, before=before[harmonised.scored.index])
    frame["after"] = again.predict(harmonised.X_scored)
    for split in SCORED:
        part = frame[frame["split"] == split]
        if len(part):
            _age_row(found, split, part, f"after={how}", *notes, left_out.get(split, ""))
        else:
            reason = f"no scan in {split} that could be harmonised"
            found.missing(split, "age", "mae_years", reason, f"after={how}")


def _ages_before(
    features: Features, table: pd.DataFrame, scored: pd.DataFrame, config: EvaluateConfig, seed: int
) -> pd.Series:
    """Years of fitted and scored scans by the ridge on the healthy fitted people, of these out of fold."""
    everybody = mark_healthy(table[table["split"].isin(config.fit_splits)], table)
    fitted, _ = healthy_only(everybody)
    X, y, persons = join(features, fitted), fitted["age_years"].to_numpy(dtype=np.float64), people(fitted)
    rows = pd.concat([everybody, scored])
    years = pd.Series(RidgeProbe(seed=seed).fit(X, y, persons).predict(join(features, rows)), index=rows.index)
    if "age" in config.nuisance:
        years[fitted.index] = out_of_fold_years("ridge", X, y, persons, seed=seed)[0]
    return years


def _age_row(found: SiteRows, split: str, scans: pd.DataFrame, part: str, *notes: str) -> None:
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
