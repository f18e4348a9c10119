"""A finished run judged on another cohort: ADNI read with an encoder that was trained on OpenBHB.

Everybody of that cohort is judged, nobody trains. Ages come from a model fitted on the run's own people or on the
cohort's own healthy ones (`evaluate.age_fitted_on`); everything after them is that of the run's own evaluation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import Experiment, read_experiment, run_folder, sibling
from brainage.data.source import ScanSource
from brainage.data.splits import was_seen
from brainage.data.table import read_table
from brainage.downstream.age import score_predictions
from brainage.downstream.diagnosis import FitPredict
from brainage.downstream.embed import embed
from brainage.downstream.fairness import evaluate_fairness
from brainage.downstream.features import Features, pca_features, raw_features, read_embeddings
from brainage.downstream.kept import checkpoint_digest, kept_embeddings, write_evaluation
from brainage.downstream.predictions import PREDICTION_COLUMNS, predictions_frame
from brainage.downstream.readout import Readout
from brainage.downstream.readouts import Reference, cohort_readout, reference_mean_age
from brainage.downstream.results import EXTERNAL, INTERNAL, combine, missing_row, results_frame
from brainage.downstream.site import evaluate_site
from brainage.downstream.site_controls import evaluate_site_controls
from brainage.downstream.task import TaskResult, not_computed
from brainage.downstream.tasks import frames_of, merge, networks_of, over_seeds, run_tasks, without_networks
from brainage.errors import BrainageError, ConfigError, DataError
from brainage.losses.names import SUPERVISED_NAMES
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.folder import read_finished
from brainage.runtime import choose_device, console, set_threads, warn

Found = tuple[Features, Mapping[str, FitPredict]]  # what is judged, and the networks that learn the diagnosis
EVALUATIONS = "evaluations"  # folder of a run with one folder an evaluated cohort


def evaluation_folder(run: Path, name: str) -> Path:
    """Where the evaluation of a run on another cohort lies."""
    return run / EVALUATIONS / name


def evaluate_cohort(experiment: Experiment, data: ScanSource, run: Path, name: str) -> pd.DataFrame:
    """Score every network of `run` (its losses and seeds, as far as they are finished) and the baselines on `data`.

    `experiment`: the run's, with the data and evaluate sections of the evaluation. Writes the files of an evaluation
    folder and gives the results. What cannot be scored is a row with its reason; the first one is raised when nothing
    could be.
    """
    set_threads(experiment.trainer.threads)
    judging = Judging(experiment, data, run, evaluation_folder(run, name))
    saved = read_experiment(run / "config.yaml")
    seeds = range(saved.seed, saved.seed + saved.evaluate.seeds)
    for loss in dict.fromkeys([saved.loss.name, *saved.evaluate.losses]):
        judging.model(loss, seeds, judging.network_of(saved, loss))
    for baseline in experiment.evaluate.baselines:
        if baseline != "untrained":  # its age model would want the run's own samples
            console().print(f"baseline {baseline}", markup=False)
            judging.model(baseline, [saved.seed], judging.baseline(baseline))
    if not judging.tasks:
        raise judging.errors[0]
    return judging.write()  # what was judged of another configuration goes with this, and not before


class Judging:
    """The protocol that all models of one evaluation share."""

    def __init__(self, experiment: Experiment, data: ScanSource, run: Path, folder: Path) -> None:
        self.experiment, self.config = experiment, experiment.evaluate
        self.data, self.run, self.folder = data, run, folder
        self.table = data.table.reset_index(drop=True)
        self.cohort = experiment.data.cohort
        self.shared: dict[str, Any] = {"config": self.config, "seed": experiment.seed}
        self.results: list[pd.DataFrame] = []
        self.predictions: list[pd.DataFrame] = []
        self.tasks: list[TaskResult] = []
        self.lost: list[dict[str, Any]] = []
        self.errors: list[BrainageError] = []

    def model(self, label: str, seeds: Sequence[int], found: Callable[[int], Found]) -> None:
        """Every task for each seed of a model, and all seeds as one; `found(seed)` gives what is judged."""
        done, scored = [], []
        for seed in seeds:
            name = f"{label}-seed{seed}" if len(seeds) > 1 else label
            try:
                features, networks = found(seed)
                one = self._one(features, networks)
            except (DataError, ConfigError) as error:
                warn(f"{name} is not scored on {self.cohort}: {error}")
                self.errors.append(error)
                self.lost.append(missing_row(name, self.cohort, EXTERNAL, "age", "mae_years", str(error)))
                continue
            done.append(one.results)
            scored.append(seed)
            self.tasks.append(one)
            self.results.append(one.results.assign(run=one.results["run"].replace(label, name)))
        if len(seeds) > 1:
            self.results.append(over_seeds(done, scored, asked=len(seeds)))

    def network_of(self, saved: Experiment, loss: str) -> Callable[[int], Found]:
        """Features of the finished network of a loss and seed, embedded where that was not done before."""

        def find(seed: int) -> Found:
            own = loss == saved.loss.name and seed == saved.seed
            other = run_folder(dataclasses.replace(sibling(saved, loss, seed), runs=str(self.run.resolve().parent)))
            finished = read_finished(self.run if own else other)
            if finished is None:
                raise DataError(f"{loss} with seed {seed} is not trained; `brainage evaluate {self.run}` trains it")
            module, payload = load_module(finished.checkpoint)
            module.contract.refuse_other(self.data.contract, str(finished.checkpoint))
            seen = was_seen(self.table, payload.seen, payload.salt).to_numpy()
            device = str(choose_device(self.experiment.trainer.accelerator))
            path = self.folder / "embeddings" / f"{loss}-seed{seed}.parquet"
            rows = np.arange(len(self.table))
            kept = kept_embeddings(
                path, checkpoint_digest(finished.checkpoint), self.data,
                lambda: embed(module, self.data, rows, device=device), seen,
            )  # fmt: skip
            part = "trunk" if loss in SUPERVISED_NAMES else self.config.features
            wanted = self.config.predictors if loss == saved.loss.name else []
            networks = networks_of(self.experiment, finished.checkpoint, self.data, wanted)
            return kept.features(part, loss, seed), networks

        return find

    def baseline(self, name: str) -> Callable[[int], Found]:
        """Raw values, or their principal components. Axes are of everybody who is judged, ill or not, and of no label:
        with axes of the healthy alone, their scores would be those of people fitted on and the others' would not."""

        def find(seed: int) -> Found:
            samples = self.data.store.arrays
            if name == "ridge":
                return raw_features(samples, self.table), {}
            rows, rule = np.arange(len(self.table)), self.experiment.data.intensity
            return pca_features(samples, self.table, rows, intensity=rule, seed=seed), {}

        return find

    def write(self) -> pd.DataFrame:
        """The files of the evaluation folder; gives the results."""
        results = combine([results_frame(self.lost), *self.results])
        frames = frames_of(self.tasks)
        if self.predictions:
            frames["predictions"] = pd.concat(self.predictions)[PREDICTION_COLUMNS]
        write_evaluation(self.folder, self.experiment, self.table, self.data.dropped, frames, results)
        return results

    def _one(self, features: Features, networks: Mapping[str, FitPredict]) -> TaskResult:
        """All tasks of one network. The site probe keeps the splits that the cohort's data section draws."""
        reference = self._reference(features)
        readout = cohort_readout(features, self.table, reference, cohort=self.cohort, **self.shared)
        parts = []
        if "age" in self.config.tasks:
            parts.append(self._ages(readout, reference))
        config = without_networks(self.config, networks)
        parts.append(run_tasks(readout, config=config, seed=self.shared["seed"], networks=networks))
        if "site" in self.config.tasks:
            where: dict[str, Any] = {"cohort": self.cohort, **self.shared}
            site = evaluate_site(features, self.table, limited=True, **where)
            parts.append(TaskResult(site.results))
            parts.append(evaluate_site_controls(features, self.table, limited=True, evaluation=site, **where))
        return merge(parts)

    def _ages(self, readout: Readout, reference: Reference | None) -> TaskResult:
        """Errors are those of healthy people: in a patient the gap is what one looks for."""
        rows = readout.table[readout.correct]
        if rows.empty:
            reason = "nobody is healthy: every known diagnosis is another one, or a person has none"
            return not_computed(readout.label, self.cohort, EXTERNAL, "age", "mae_years", reason)
        predictions = predictions_frame(
            rows, readout.predicted_age_years[readout.correct], model=readout.label, seed=readout.seed
        )
        self.predictions.append(predictions)
        # One mean predictor an evaluation: that of the age model asked for, which baselines may not have.
        as_asked = reference is not None or self.config.age_fitted_on == "cohort"
        mean = reference_mean_age(reference, self.table, self.config) if as_asked else None
        where: dict[str, Any] = {"cohort": self.cohort, **self.shared}
        found = score_predictions(
            predictions, mean_age_years=mean, note=f"healthy people only; {readout.note}", **where
        )
        parts = [
            TaskResult(found[found["split"] != INTERNAL]),
            evaluate_fairness(predictions, model=readout.label, **where),
        ]
        return merge(parts)

    def _reference(self, features: Features) -> Reference | None:
        """The run's own people, where ages are fitted on them; baselines have features of this cohort alone."""
        if self.config.age_fitted_on == "cohort" or features.seen is None:
            return None
        path = self.run / "embeddings" / f"{features.label}-seed{features.seed}.parquet"
        if not path.is_file():
            raise DataError(
                f"{path}: not found; `brainage evaluate {self.run}` writes it, or fit the ages on the healthy people "
                f"of {self.cohort} itself: evaluate.age_fitted_on=cohort"
            )
        kept = read_embeddings(path).features("head" if features.part == "head" else "trunk", features.label, 0)
        cohort = read_experiment(self.run / "config.yaml").data.cohort
        return Reference(kept, read_table(self.run / "table.parquet"), cohort)
