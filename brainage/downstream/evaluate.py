"""From a finished run to results: embed, probe age and site, and set the network beside what it must beat.

Every network and every baseline is `Features`, scored by the same code on the same people and the same resamples.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import Experiment, sibling, write_section
from brainage.data.source import ScanSource
from brainage.data.splits import was_seen
from brainage.downstream.diagnosis import FitPredict
from brainage.downstream.embed import embed
from brainage.downstream.features import Embeddings, Features, pca_features, raw_features
from brainage.downstream.kept import RESULTS, checkpoint_digest, kept_embeddings, write_frames
from brainage.downstream.predictions import PREDICTION_COLUMNS
from brainage.downstream.results import combine, results_frame, write_results
from brainage.downstream.scoring import Judged, Scoring
from brainage.downstream.tasks import frames_of, networks_of
from brainage.errors import CheckpointError, DataError
from brainage.losses.names import SUPERVISED_NAMES
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.folder import read_finished
from brainage.pretraining.run import build_module, pretrain
from brainage.runtime import choose_device, console, set_threads

OWN_HEAD = "_head"  # ending of the label of a supervised network judged by the ages it predicts itself


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
    (folder / RESULTS).unlink(missing_ok=True)  # written last: its presence vouches for the others
    write_section(experiment.evaluate, folder / "evaluate.yaml")  # as used now: config.yaml is from the training
    write_section(experiment.finetune, folder / "finetune.yaml")
    frames = frames_of(task for model in judged for task in model.tasks)
    frames["predictions"] = pd.concat([model.predictions for model in judged])[PREDICTION_COLUMNS]
    write_frames(frames, folder)
    write_results(results, folder / RESULTS)


def _networks(
    experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, loss: str, seeds: range
) -> list[Judged]:
    """The networks of one loss, trained where missing: judged by a probe, and by their own head where they have one."""
    embedded: dict[int, Embeddings] = {}
    checkpoints: dict[int, Path] = {}
    supervised = loss in SUPERVISED_NAMES

    def features(seed: int) -> Features:
        label = f"{loss}-seed{seed}"
        own = loss == experiment.loss.name and seed == experiment.seed
        found = _embedded(sibling(experiment, loss, seed), own, data, folder, scoring, label)
        embedded[seed], checkpoints[seed] = found
        return embedded[seed].features("trunk" if supervised else experiment.evaluate.features, loss, seed)

    def networks(seed: int) -> dict[str, FitPredict]:
        own = experiment.evaluate.predictors if loss == experiment.loss.name else []
        return networks_of(sibling(experiment, loss, seed), checkpoints.get(seed), data, own)

    judged = scoring.judge(loss, seeds, features, networks)
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
) -> tuple[Embeddings, Path]:
    """Embeddings of a network and its checkpoint: the run's own is in `folder`, wherever that lies; others are trained
    if missing."""
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

    def compute() -> Embeddings:
        return embed(module, data, np.arange(len(data.table)), device=device)

    module.contract.refuse_other(data.contract, str(run.checkpoint))
    seen = was_seen(data.table, payload.seen, payload.salt)
    path = folder / "embeddings" / f"{label}.parquet"
    return kept_embeddings(path, checkpoint_digest(run.checkpoint), data, compute, seen.to_numpy()), run.checkpoint


def _baseline(
    experiment: Experiment, data: ScanSource, folder: Path, scoring: Scoring, name: str, seeds: range
) -> list[Judged]:
    """`untrained`: the same encoder with fresh weights, one a seed. `pca_ridge`, `ridge`: no network at all."""
    console().print(f"baseline {name}", markup=False)

    def features(seed: int) -> Features:
        if name == "untrained":
            return _untrained(experiment, data, folder, seed).features("trunk", name, seed)
        if name == "pca_ridge":
            # Not of those who calibrate: their scores must be those of people whom nothing was fitted on.
            config = experiment.evaluate
            apart = [split for split in config.fit_splits if split not in config.correct_on]
            fit_rows = data.rows(*(apart or config.fit_splits))
            rule = experiment.data.intensity
            return pca_features(data.store.arrays, data.table, fit_rows, intensity=rule, seed=experiment.seed)
        return raw_features(data.store.arrays, data.table)

    return scoring.judge(name, seeds if name == "untrained" else [experiment.seed], features)


def _untrained(experiment: Experiment, data: ScanSource, folder: Path, seed: int) -> Embeddings:
    device = str(choose_device(experiment.trainer.accelerator))

    def compute() -> Embeddings:
        module = build_module(sibling(experiment, experiment.loss.name, seed), data)
        return embed(module, data, np.arange(len(data.table)), device=device)

    return kept_embeddings(folder / "embeddings" / f"untrained-seed{seed}.parquet", "untrained", data, compute)
