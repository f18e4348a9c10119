"""The protocol that all models of a run's own evaluation share, and what each of them got."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from brainage.config import EvaluateConfig, Experiment
from brainage.data.source import ScanSource
from brainage.data.splits import refuse_seen
from brainage.data.table import person_keys, scan_keys
from brainage.downstream.age import (
    AgeEvaluation,
    evaluate_age,
    mean_age,
    paired_mae_difference,
    pool_seeds,
    predictions_frame,
    score_predictions,
)
from brainage.downstream.age_scores import healthy_only, mark_healthy
from brainage.downstream.diagnosis import FitPredict
from brainage.downstream.fairness import evaluate_fairness
from brainage.downstream.features import Features
from brainage.downstream.probes import FEWEST_FITTED, SCORED, fitted_and_scored
from brainage.downstream.readouts import own_readout
from brainage.downstream.results import combine, missing_row
from brainage.downstream.site import SiteEvaluation, challenge_score, evaluate_site, pool_site_seeds
from brainage.downstream.site_controls import evaluate_site_controls
from brainage.downstream.task import TaskResult
from brainage.downstream.tasks import OF_READOUTS, merge, over_seeds, run_tasks, without_networks
from brainage.errors import BrainageError, ConfigError, DataError, TrainingStopped
from brainage.runtime import warn


@dataclasses.dataclass
class Judged:
    """What one model got, all its seeds together."""

    label: str
    ages: list[AgeEvaluation]
    sites: list[SiteEvaluation]
    tasks: list[TaskResult]  # gap, diagnosis, trajectories, controls of site, fairness
    asked: int  # seeds that should be there; fewer are where a training stopped

    @property
    def seeds(self) -> list[int]:
        return [int(age.predictions["seed"].iloc[0]) for age in self.ages]

    @property
    def predictions(self) -> pd.DataFrame:
        return pd.concat([age.predictions for age in self.ages], ignore_index=True)


class Scoring:
    """The protocol that all models share: table, splits, resamples, and the mean predictor."""

    def __init__(self, experiment: Experiment, data: ScanSource) -> None:
        self.config: EvaluateConfig = experiment.evaluate
        self.cohort = experiment.data.cohort
        # One seed for all models, whatever theirs: they are compared on the same folds and resamples.
        self.shared: dict[str, Any] = {"cohort": self.cohort, "config": self.config, "seed": experiment.seed}
        self.limited = experiment.data.limit > 0  # n scans may leave a site of test_internal out of train
        self.with_site = "site" in self.config.tasks
        self.table = data.table.reset_index(drop=True)
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

    def judge(
        self,
        label: str,
        seeds: Sequence[int],
        features: Callable[[int], Features],
        networks: Callable[[int], Mapping[str, FitPredict]] | None = None,
    ) -> list[Judged]:
        """Every task of one model, `features(seed)` for each of its seeds; `networks(seed)` are those that learn the
        diagnosis from the samples.

        What stopped in training, or has features that no probe can read, is noted in `lost` and warned of.
        """
        judged = Judged(label, [], [], [], asked=len(seeds))
        for seed in seeds:
            try:
                one = features(seed)
                age = evaluate_age(one, self.table, **self.shared)
                sites = [evaluate_site(one, self.table, limited=self.limited, **self.shared)] if self.with_site else []
                tasks = self._tasks(one, age, sites, networks(seed) if networks else {})
            except (DataError, TrainingStopped, ConfigError) as error:
                self.lose(f"{label}-seed{seed}" if len(seeds) > 1 else label, error)
            else:
                judged.ages.append(age)
                judged.sites += sites
                judged.tasks.append(tasks)
        if not judged.ages and len(seeds) > 1:
            self.lose(label, self.errors[-1])
        return [judged] if judged.ages else []

    def _tasks(
        self,
        features: Features,
        age: AgeEvaluation,
        sites: list[SiteEvaluation],
        networks: Mapping[str, FitPredict],
    ) -> TaskResult:
        """What is read of the ages and the features of one network, beside its age and site probes."""
        parts = (
            [evaluate_fairness(healthy_only(age.predictions)[0], model=features.label, **self.shared)]
            if "age" in self.config.tasks
            else []
        )
        if self.with_site:
            found = sites[0] if sites else None
            parts.append(
                evaluate_site_controls(features, self.table, limited=self.limited, evaluation=found, **self.shared)
            )
        if set(self.config.tasks) & set(OF_READOUTS):
            readout = own_readout(features, self.table, age.predictions, **self.shared)
            config = without_networks(self.config, networks)
            parts.append(run_tasks(readout, config=config, seed=self.shared["seed"], networks=networks))
        return merge(parts)

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
            rows = mark_healthy(predictions_frame(scored, years.to_numpy(), model=label, seed=seed), self.table)
            ages.append(AgeEvaluation(self._score(rows, "the network's own linear head"), rows))
        return Judged(label, ages, [], [], asked=asked)

    def results(self, model: Judged) -> pd.DataFrame:
        """Rows of one model; with several seeds, rows of each (`label-seedN`) and of all together (`label`)."""
        several = model.asked > 1
        frames = []
        for place, (seed, age) in enumerate(zip(model.seeds, model.ages, strict=True)):
            sites = [site.results for site in model.sites[place : place + 1]]
            rows = [age.results, *sites, *(task.results for task in model.tasks[place : place + 1])]
            if several:
                label = f"{model.label}-seed{seed}"
                rows = [frame.assign(run=frame["run"].replace(model.label, label)) for frame in rows]
            frames += rows
        if several:
            predictions = [age.predictions for age in model.ages]
            note = f"{len(model.ages)} of {model.asked} seeds" if len(model.ages) < model.asked else ""
            years = mean_age(self.table, self.config)
            frames.append(pool_seeds(predictions, mean_age_years=years, note=note, **self.shared))
            if model.tasks:
                done = [task.results for task in model.tasks]
                frames.append(over_seeds(done, model.seeds, asked=model.asked))
        if model.sites:
            pooled = pool_site_seeds(model.sites, **self.shared)
            frames += [pooled.results] if several else []
            well = healthy_only(model.predictions)[0]
            frames.append(challenge_score(well, pooled.predictions, model=model.label, **self.shared))
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
