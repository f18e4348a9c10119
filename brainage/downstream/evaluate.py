"""From a finished run to results: embed, probe age and site, and set the network beside what it must beat.

Every network and every baseline is `Features`, scored by the same code on the same people and the same resamples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, Experiment, sibling
from brainage.data.source import ScanSource
from brainage.data.splits import refuse_seen
from brainage.data.table import scan_keys, write_table
from brainage.downstream.age import (
    PREDICTION_COLUMNS,
    AgeEvaluation,
    evaluate_age,
    mean_age,
    paired_mae_difference,
    pool_seeds,
    predictions_frame,
    score_predictions,
)
from brainage.downstream.embed import embed
from brainage.downstream.features import (
    Embeddings,
    Features,
    pca_features,
    raw_features,
    read_embeddings,
    write_embeddings,
)
from brainage.downstream.results import combine, missing_row, results_frame, write_results
from brainage.downstream.site import SiteEvaluation, challenge_score, evaluate_site, pool_site_seeds
from brainage.errors import DataError, TrainingStopped
from brainage.losses.names import SUPERVISED_NAMES
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.run import build_module, pretrain
from brainage.runtime import choose_device, console, set_threads, warn

SCORED = ("test_internal", "test_external")
OWN_HEAD = "_head"  # ending of the label of a supervised network judged by the ages it predicts itself


@dataclasses.dataclass
class Judged:
    """What one model got, all its seeds together."""

    label: str
    ages: list[AgeEvaluation]
    sites: list[SiteEvaluation]

    @property
    def predictions(self) -> pd.DataFrame:
        return pd.concat([age.predictions for age in self.ages], ignore_index=True)


def evaluate(experiment: Experiment, data: ScanSource, folder: Path) -> pd.DataFrame:
    """Score the run in `folder`, its siblings (other losses and seeds, trained when missing) and the baselines.

    Writes embeddings/, results.csv and predictions.parquet into `folder` and returns the results. Raises ContractError
    and LeakageError before anything is scored.
    """
    experiment = dataclasses.replace(experiment, runs=str(folder.parent))
    set_threads(experiment.trainer.threads)
    scoring = Scoring(experiment, data)
    seeds = range(experiment.seed, experiment.seed + experiment.evaluate.seeds)
    losses = list(dict.fromkeys([experiment.loss.name, *experiment.evaluate.losses]))
    frames: list[pd.DataFrame] = []
    judged: list[Judged] = []
    for loss in losses:
        models, lost = _networks(experiment, data, folder, scoring, loss, seeds)
        judged += models
        frames += [lost] if lost is not None else []
    for baseline in experiment.evaluate.baselines:
        judged.append(_baseline(experiment, data, folder, scoring, baseline, seeds))
    frames += [scoring.results(model) for model in judged]
    frames += [scoring.difference(judged[0], other) for other in judged[1:]] if judged else []
    results = combine(frames)
    write_results(results, folder / "results.csv")
    write_table(pd.concat([model.predictions for model in judged])[PREDICTION_COLUMNS], folder / "predictions.parquet")
    return results


class Scoring:
    """The protocol that all models share: table, splits, resamples, and the mean predictor."""

    def __init__(self, experiment: Experiment, data: ScanSource) -> None:
        self.config: EvaluateConfig = experiment.evaluate
        self.cohort = experiment.data.cohort
        # One seed for all models, whatever theirs: they are compared on the same folds and resamples.
        self.shared: dict[str, Any] = {"cohort": self.cohort, "config": self.config, "seed": experiment.seed}
        self.limited = experiment.data.limit > 0  # the first n scans may leave a site of test_internal out of train
        self.table = data.table
        if not self.table["split"].isin(SCORED).any():
            raise DataError(f"{self.cohort}: no scan in {' or '.join(SCORED)}, nothing to score; check the split")

    def judge(self, features: list[Features]) -> Judged:
        """Age and site probes of one model, one `Features` a seed."""
        ages = [evaluate_age(one, self.table, **self.shared) for one in features]
        sites = [evaluate_site(one, self.table, limited=self.limited, **self.shared) for one in features]
        return Judged(features[0].label, ages, sites)

    def own_head(self, label: str, predicted: list[tuple[int, pd.DataFrame]]) -> Judged:
        """A supervised network judged by the ages it predicts itself: (seed, keys with `predicted_age_years`)."""
        scored = self.table[self.table["split"].isin(SCORED)]
        ages = []
        for seed, frame in predicted:
            years = frame["predicted_age_years"].set_axis(scan_keys(frame)).loc[scan_keys(scored)]
            rows = predictions_frame(scored, years.to_numpy(), model=label, seed=seed)
            ages.append(AgeEvaluation(self._score(rows, "the network's own linear head"), rows))
        return Judged(label, ages, [])

    def results(self, model: Judged) -> pd.DataFrame:
        """Rows of one model; with several seeds, rows of each (`label-seedN`) and of all together (`label`)."""
        several = len(model.ages) > 1
        frames = []
        for place, age in enumerate(model.ages):
            rows = [age.results, *(site.results for site in model.sites[place : place + 1])]
            if several:
                label = f"{model.label}-seed{age.predictions['seed'].iloc[0]}"
                rows = [frame.assign(run=frame["run"].replace(model.label, label)) for frame in rows]
            frames += rows
        if several:
            predictions = [age.predictions for age in model.ages]
            frames.append(pool_seeds(predictions, mean_age_years=mean_age(self.table, self.config), **self.shared))
        if model.sites:
            sites = pool_site_seeds(model.sites, **self.shared)
            frames += [sites.results] if several else []
            frames.append(challenge_score(model.predictions, sites.predictions, model=model.label, **self.shared))
        return combine(frames)

    def difference(self, first: Judged, other: Judged) -> pd.DataFrame:
        """MAE of the run's network minus another's on the same people."""
        return paired_mae_difference(first.predictions, other.predictions, **self.shared)

    def refuse_seen(self, seen: list[str], salt: str, context: str) -> None:
        """Raise LeakageError when somebody who will be scored was trained on."""
        scored = self.table[self.table["split"].isin(SCORED)]
        refuse_seen(scored, seen, salt, allow=self.config.allow_seen, context=context)

    def _score(self, rows: pd.DataFrame, note: str) -> pd.DataFrame:
        return score_predictions(rows, mean_age_years=mean_age(self.table, self.config), note=note, **self.shared)


def _networks(
    experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, loss: str, seeds: range
) -> tuple[list[Judged], pd.DataFrame | None]:
    """The networks of one loss, trained where missing: judged by a probe, and by their own head where they have one.

    A network that stopped (collapsed, NaN) is a row with its reason instead.
    """
    embedded: list[tuple[int, Embeddings]] = []
    lost = []
    for seed in seeds:
        label = f"{loss}-seed{seed}"
        try:
            embedded.append((seed, _embedded(sibling(experiment, loss, seed), data, folder, scoring, label)))
        except TrainingStopped as stopped:
            warn(f"{label}: {stopped}")
            lost.append(
                missing_row(label, scoring.cohort, SCORED[0], "age", "mae_years", f"training stopped: {stopped}")
            )
    judged = []
    if embedded:
        which = experiment.evaluate.features
        if loss in SUPERVISED_NAMES:
            own = [(s, e.keys.assign(predicted_age_years=e.head[:, 0].astype(np.float64))) for s, e in embedded]
            judged.append(scoring.own_head(loss + OWN_HEAD, own))
            which = "trunk"
        judged.insert(0, scoring.judge([e.features(which, loss, seed) for seed, e in embedded]))
    return judged, results_frame(lost) if lost else None


def _embedded(experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, label: str) -> Embeddings:
    run = pretrain(experiment, data, label=label, parent=folder)
    module, payload = load_module(run.checkpoint)
    scoring.refuse_seen(payload.seen, payload.salt, f"{label} ({run.folder.name})")
    device = str(choose_device(experiment.trainer.accelerator))

    def compute() -> pd.DataFrame:
        return embed(module, data, np.arange(len(data.table)), device=device)

    module.contract.refuse_other(data.contract, str(run.checkpoint))
    return _kept(folder / "embeddings" / f"{label}.parquet", run.checkpoint, data, compute)


def _kept(path: Path, checkpoint: Path | None, data: ScanSource, compute: Callable[[], pd.DataFrame]) -> Embeddings:
    """The embeddings in `path` if they are those of this checkpoint and these scans, else computed and written."""
    newer = path.is_file() and (checkpoint is None or path.stat().st_mtime >= checkpoint.stat().st_mtime)
    if newer:
        kept = read_embeddings(path)
        if scan_keys(kept.keys).tolist() == scan_keys(data.table).tolist():
            return kept
    frame = compute()
    path.parent.mkdir(exist_ok=True)
    write_embeddings(path, frame, np.stack(list(frame["trunk"])), np.stack(list(frame["head"])))
    return read_embeddings(path)


def _baseline(
    experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, name: str, seeds: range
) -> Judged:
    console().print(f"baseline {name}", markup=False)
    return scoring.judge(list(_baseline_features(experiment, data, folder, name, seeds)))


def _baseline_features(
    experiment: Experiment, data: ScanSource, folder: Path, name: str, seeds: range
) -> Iterator[Features]:
    """`untrained`: the same encoder with fresh weights, one a seed. `pca_ridge`, `ridge`: no network at all."""
    if name == "untrained":
        for seed in seeds:
            yield _untrained(experiment, data, folder, seed).features("trunk", name, seed)
    elif name == "pca_ridge":
        fit_rows = data.rows(*experiment.evaluate.fit_splits)
        yield pca_features(data.store.arrays, data.table, fit_rows, seed=experiment.seed)
    else:
        yield raw_features(data.store.arrays, data.table)


def _untrained(experiment: Experiment, data: ScanSource, folder: Path, seed: int) -> Embeddings:
    device = str(choose_device(experiment.trainer.accelerator))

    def compute() -> pd.DataFrame:
        module = build_module(sibling(experiment, experiment.loss.name, seed), data)
        return embed(module, data, np.arange(len(data.table)), device=device)

    return _kept(folder / "embeddings" / f"untrained-seed{seed}.parquet", None, data, compute)
