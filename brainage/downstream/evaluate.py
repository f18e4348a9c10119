"""From a finished run to results: embed, probe age and site, and set the network beside what it must beat.

Every network and every baseline is `Features`, scored by the same code on the same people and the same resamples.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, Experiment, sibling, write_section
from brainage.data.source import ScanSource
from brainage.data.splits import refuse_seen, was_seen
from brainage.data.table import person_keys, scan_keys, write_table
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
from brainage.downstream.probes import FEWEST_FITTED, SCORED, fitted_and_scored
from brainage.downstream.results import combine, missing_row, results_frame, write_results
from brainage.downstream.site import SiteEvaluation, challenge_score, evaluate_site, pool_site_seeds
from brainage.errors import BrainageError, CheckpointError, ConfigError, DataError, TrainingStopped
from brainage.losses.names import SUPERVISED_NAMES
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.folder import read_finished
from brainage.pretraining.run import build_module, pretrain
from brainage.runtime import choose_device, console, set_threads, warn

OWN_HEAD = "_head"  # ending of the label of a supervised network judged by the ages it predicts itself


@dataclasses.dataclass
class Judged:
    """What one model got, all its seeds together."""

    label: str
    ages: list[AgeEvaluation]
    sites: list[SiteEvaluation]
    asked: int  # seeds that should be there; fewer are where a training stopped

    @property
    def seeds(self) -> list[int]:
        return [int(age.predictions["seed"].iloc[0]) for age in self.ages]

    @property
    def predictions(self) -> pd.DataFrame:
        return pd.concat([age.predictions for age in self.ages], ignore_index=True)


def evaluate(experiment: Experiment, data: ScanSource, folder: Path) -> pd.DataFrame:
    """Score the run in `folder`, its siblings (other losses and seeds, trained when missing) and the baselines.

    Writes embeddings/, results.csv and predictions.parquet into `folder` and returns the results. A network or baseline
    that cannot be scored is a row with its reason; the first such reason is raised when nothing could be scored at all.
    Raises DataError when there are too few people, ContractError and LeakageError before anything is scored.
    """
    # However the run itself was started, what is finished is scored as it is and what is missing is trained.
    checkpoint = dataclasses.replace(experiment.checkpoint, resume="auto")
    experiment = dataclasses.replace(experiment, runs=str(folder.resolve().parent), checkpoint=checkpoint)
    set_threads(experiment.trainer.threads)
    scoring = Scoring(experiment, data)
    seeds = range(experiment.seed, experiment.seed + experiment.evaluate.seeds)
    judged: list[Judged] = []
    frames: list[pd.DataFrame] = []
    losses = list(dict.fromkeys([experiment.loss.name, *experiment.evaluate.losses]))
    for name in [losses[0], *experiment.evaluate.baselines, *losses[1:]]:  # what takes hours last
        kind = _baseline if name in experiment.evaluate.baselines else _networks
        for model in kind(experiment, data, folder, scoring, name, seeds):
            judged.append(model)
            frames.append(scoring.results(model))
            if model is not judged[0] and judged[0].label == experiment.loss.name:
                frames.append(scoring.difference(judged[0], model))
        if judged:  # after each: whatever ends a long evaluation, what was scored is kept
            results = combine([results_frame(scoring.lost), *frames])
            _write(experiment, folder, results, judged)
    if not judged:
        raise scoring.errors[0]
    return results


def _write(experiment: Experiment, folder: Path, results: pd.DataFrame, judged: list[Judged]) -> None:
    write_section(experiment.evaluate, folder / "evaluate.yaml")  # as used now: config.yaml is from the training
    write_results(results, folder / "results.csv")
    write_table(pd.concat([model.predictions for model in judged])[PREDICTION_COLUMNS], folder / "predictions.parquet")


class Scoring:
    """The protocol that all models share: table, splits, resamples, and the mean predictor."""

    def __init__(self, experiment: Experiment, data: ScanSource) -> None:
        self.config: EvaluateConfig = experiment.evaluate
        self.cohort = experiment.data.cohort
        # One seed for all models, whatever theirs: they are compared on the same folds and resamples.
        self.shared: dict[str, Any] = {"cohort": self.cohort, "config": self.config, "seed": experiment.seed}
        self.limited = experiment.data.limit > 0  # n scans may leave a site of test_internal out of train
        self.table = data.table
        self.lost: list[dict[str, Any]] = []  # rows of what could not be scored
        self.errors: list[BrainageError] = []  # why
        fitted, scored = fitted_and_scored(self.table, self.config.fit_splits)
        found = person_keys(fitted).nunique()
        if found < FEWEST_FITTED or scored.empty:
            raise DataError(
                f"{self.cohort}: {found} people in {' and '.join(self.config.fit_splits)}, {len(scored)} scans in "
                f"{' and '.join(SCORED)}: too few to evaluate, expected at least {FEWEST_FITTED} people to fit a probe "
                "on and 1 scan to score; `brainage embed` gives their embeddings"
            )

    def judge(self, label: str, seeds: Sequence[int], features: Callable[[int], Features]) -> list[Judged]:
        """Age and site probes of one model, `features(seed)` for each of its seeds.

        What stopped in training, or has features that no probe can read, is noted in `lost` and warned of.
        """
        ages, sites = [], []
        for seed in seeds:
            try:
                one = features(seed)
                age = evaluate_age(one, self.table, **self.shared)
                site = evaluate_site(one, self.table, limited=self.limited, **self.shared)
            except (DataError, TrainingStopped, ConfigError) as error:
                self.lose(f"{label}-seed{seed}" if len(seeds) > 1 else label, error)
            else:
                ages.append(age)
                sites.append(site)
        if not ages and len(seeds) > 1:
            self.lose(label, self.errors[-1])
        return [Judged(label, ages, sites, asked=len(seeds))] if ages else []

    def lose(self, label: str, error: BrainageError) -> None:
        """Note that `label` could not be scored."""
        reason = f"training stopped: {error}" if isinstance(error, TrainingStopped) else str(error)
        warn(f"{label} is not scored: {reason}")
        self.errors.append(error)
        self.lost += [missing_row(label, self.cohort, split, "age", "mae_years", reason) for split in SCORED]

    def own_head(self, label: str, predicted: list[tuple[int, pd.DataFrame]], asked: int) -> Judged:
        """A supervised network judged by the ages it predicts itself: (seed, keys with `predicted_age_years`)."""
        scored = self.table[self.table["split"].isin(SCORED)]
        ages = []
        for seed, frame in predicted:
            years = frame["predicted_age_years"].set_axis(scan_keys(frame)).loc[scan_keys(scored)]
            rows = predictions_frame(scored, years.to_numpy(), model=label, seed=seed)
            ages.append(AgeEvaluation(self._score(rows, "the network's own linear head"), rows))
        return Judged(label, ages, [], asked=asked)

    def results(self, model: Judged) -> pd.DataFrame:
        """Rows of one model; with several seeds, rows of each (`label-seedN`) and of all together (`label`)."""
        several = model.asked > 1
        frames = []
        for place, (seed, age) in enumerate(zip(model.seeds, model.ages, strict=True)):
            rows = [age.results, *(site.results for site in model.sites[place : place + 1])]
            if several:
                label = f"{model.label}-seed{seed}"
                rows = [frame.assign(run=frame["run"].replace(model.label, label)) for frame in rows]
            frames += rows
        if several:
            predictions = [age.predictions for age in model.ages]
            note = f"{len(model.ages)} of {model.asked} seeds" if len(model.ages) < model.asked else ""
            years = mean_age(self.table, self.config)
            frames.append(pool_seeds(predictions, mean_age_years=years, note=note, **self.shared))
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
) -> list[Judged]:
    """The networks of one loss, trained where missing: judged by a probe, and by their own head where they have one."""
    embedded: dict[int, Embeddings] = {}
    supervised = loss in SUPERVISED_NAMES

    def features(seed: int) -> Features:
        label = f"{loss}-seed{seed}"
        own = loss == experiment.loss.name and seed == experiment.seed
        embedded[seed] = _embedded(sibling(experiment, loss, seed), own, data, folder, scoring, label)
        return embedded[seed].features("trunk" if supervised else experiment.evaluate.features, loss, seed)

    judged = scoring.judge(loss, seeds, features)
    if judged and supervised:
        scored = judged[0].seeds
        own = [
            (seed, embedded[seed].keys.assign(predicted_age_years=embedded[seed].head[:, 0].astype(np.float64)))
            for seed in scored
        ]
        judged.append(scoring.own_head(loss + OWN_HEAD, own, asked=len(seeds)))
    return judged


def _embedded(
    experiment: Experiment, own: bool, data: ScanSource, folder: Path, scoring: Scoring, label: str
) -> Embeddings:
    """Embeddings of a network: the run's own is in `folder`, wherever that lies; others are trained if missing."""
    try:
        run = read_finished(folder, data) if own else pretrain(experiment, data, label=label, parent=folder)
    except CheckpointError as error:
        if own:
            raise
        raise DataError(f"{error} (`brainage pretrain` with loss.name and seed of {label})") from error
    if run is None:
        raise CheckpointError(f"{folder}: not finished; `brainage pretrain` continues it")
    module, payload = load_module(run.checkpoint)
    scoring.refuse_seen(payload.seen, payload.salt, f"{label} ({run.folder.name})")
    device = str(choose_device(experiment.trainer.accelerator))

    def compute() -> pd.DataFrame:
        return embed(module, data, np.arange(len(data.table)), device=device)

    module.contract.refuse_other(data.contract, str(run.checkpoint))
    seen = was_seen(data.table, payload.seen, payload.salt)
    return _kept(folder / "embeddings" / f"{label}.parquet", _digest(run.checkpoint), data, compute, seen.to_numpy())


def _kept(
    path: Path, model: str, data: ScanSource, compute: Callable[[], pd.DataFrame], seen: np.ndarray | None = None
) -> Embeddings:
    """The embeddings in `path` if they are those of this model and these samples, else computed and written; `seen`
    are the scans of people whom the model was trained on."""
    source = f"{model}, store {data.store.checksum}"
    if path.is_file():
        kept = read_embeddings(path)
        if kept.source == source and scan_keys(kept.keys).tolist() == scan_keys(data.table).tolist():
            return kept
    frame = compute()
    path.parent.mkdir(exist_ok=True)
    vectors = np.stack(list(frame["trunk"])), np.stack(list(frame["head"]))
    write_embeddings(path, frame, *vectors, source=source, seen=seen)
    return read_embeddings(path)


def _digest(checkpoint: Path) -> str:
    with checkpoint.open("rb") as file:
        return f"checkpoint {hashlib.file_digest(file, 'sha256').hexdigest()}"


def _baseline(
    experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, name: str, seeds: range
) -> list[Judged]:
    """`untrained`: the same encoder with fresh weights, one a seed. `pca_ridge`, `ridge`: no network at all."""
    console().print(f"baseline {name}", markup=False)

    def features(seed: int) -> Features:
        if name == "untrained":
            return _untrained(experiment, data, folder, seed).features("trunk", name, seed)
        if name == "pca_ridge":
            fit_rows = data.rows(*experiment.evaluate.fit_splits)
            rule = experiment.data.intensity
            return pca_features(data.store.arrays, data.table, fit_rows, intensity=rule, seed=experiment.seed)
        return raw_features(data.store.arrays, data.table)

    return scoring.judge(name, seeds if name == "untrained" else [experiment.seed], features)


def _untrained(experiment: Experiment, data: ScanSource, folder: Path, seed: int) -> Embeddings:
    device = str(choose_device(experiment.trainer.accelerator))

    def compute() -> pd.DataFrame:
        module = build_module(sibling(experiment, experiment.loss.name, seed), data)
        return embed(module, data, np.arange(len(data.table)), device=device)

    return _kept(folder / "embeddings" / f"untrained-seed{seed}.parquet", "untrained", data, compute)
