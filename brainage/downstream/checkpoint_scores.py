"""Every checkpoint that a run kept, scored lightly: age error on the run's own cohort, AUC on another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, Experiment
from brainage.data.source import ScanSource
from brainage.data.splits import was_seen
from brainage.downstream.features import Features
from brainage.downstream.mae_auc import MAES, POINT_COLUMNS, step_of, write_points
from brainage.downstream.results import SCORED, parts_of
from brainage.errors import ConfigError, DataError
from brainage.losses.names import SUPERVISED_NAMES
from brainage.runtime import choose_device, console, set_threads, warn

PREDICTOR = "probe"
_FEW = 10  # resamples: of a point only the estimate is kept


def score_checkpoints(
    experiment: Experiment,
    data: ScanSource,
    clinical_experiment: Experiment,
    clinical_data: ScanSource,
    run: Path,
    *,
    name: str,
) -> pd.DataFrame:
    """Points (POINT_COLUMNS) of all checkpoints that `run` kept, oldest first; written to RUN/mae_auc.csv.

    Each is embedded on both cohorts and read by ridge (MAE of healthy people, as task `age`) and by the probe of every
    pair of `clinical_experiment.evaluate.pairs`, as task `diagnosis`: the last checkpoint gets the numbers that the
    evaluations give. `name` is the evaluation's. A number that cannot be computed is NaN, and warned of. How many
    checkpoints there are is `checkpoint.keep`.
    """
    from brainage.pretraining.checkpoint import checkpoints

    set_threads(experiment.trainer.threads)
    rows: list[dict[str, Any]] = []
    paths = checkpoints(run)[::-1]
    for number, path in enumerate(paths, start=1):
        console().print(f"checkpoint {number}/{len(paths)}: {path.name}", markup=False)
        own, other = _features(experiment, data, path), _features(experiment, clinical_data, path)
        maes = _age_errors(experiment, data, own, path)
        aucs = _aucs(clinical_experiment, clinical_data, other, path)
        head = {"run": run.name, "model": experiment.loss.name, "seed": experiment.seed, "step": step_of(path)}
        where = {"evaluation": name, "cohort": clinical_experiment.data.cohort, "split": SCORED[1]}
        rows += [
            {**head, **maes, **where, "pair": pair, "predictor": PREDICTOR, "auc": auc} for pair, auc in aucs.items()
        ]
    if not rows:
        raise DataError(f"{run}: no checkpoint or no pair to score; see checkpoint.keep and evaluate.pairs")
    found = pd.DataFrame(rows, columns=POINT_COLUMNS)
    write_points(run, name, found)
    return found


def _features(experiment: Experiment, data: ScanSource, checkpoint: Path) -> Features:
    from brainage.downstream.embed import embed
    from brainage.pretraining.checkpoint import load_module

    module, payload = load_module(checkpoint)
    device = str(choose_device(experiment.trainer.accelerator))
    found = embed(module, data, np.arange(len(data.table)), device=device)
    seen = was_seen(data.table, payload.seen, payload.salt).to_numpy()
    part = "trunk" if experiment.loss.name in SUPERVISED_NAMES else experiment.evaluate.features
    return found._replace(seen=seen).features(part, experiment.loss.name, experiment.seed)


def _light(config: EvaluateConfig, **changes: Any) -> EvaluateConfig:
    return dataclasses.replace(config, bootstrap=_FEW, **changes)


def _age_errors(experiment: Experiment, data: ScanSource, features: Features, path: Path) -> dict[str, float]:
    from brainage.downstream.age import evaluate_age

    config = _light(experiment.evaluate, age_probes=experiment.evaluate.age_probes[:1])
    try:
        rows = evaluate_age(
            features, data.table, cohort=experiment.data.cohort, config=config, seed=experiment.seed
        ).results
    except DataError as error:
        warn(f"{path.name}: no age error: {error}")
        return dict.fromkeys(MAES.values(), np.nan)
    rows = rows[(rows["run"] == features.label) & (rows["task"] == "age") & (rows["metric"] == "mae_years")]
    rows = rows[[not parts_of(str(note)) for note in rows["note"].fillna("")]].set_index("split")["estimate"]
    return {column: float(rows.get(split, np.nan)) for column, split in zip(MAES.values(), SCORED, strict=True)}


def _aucs(experiment: Experiment, data: ScanSource, features: Features, path: Path) -> dict[str, float]:
    from brainage.downstream.diagnosis import evaluate_diagnosis
    from brainage.downstream.readouts import cohort_readout

    pairs = list(dict.fromkeys(experiment.evaluate.pairs))
    config = _light(
        experiment.evaluate, predictors=[PREDICTOR], label_shares=[1.0], diagnosis_by_site=False,
        age_probes=experiment.evaluate.age_probes[:1],
    )  # fmt: skip
    try:
        readout = cohort_readout(
            features, data.table, None, cohort=experiment.data.cohort, config=config, seed=experiment.seed
        )
        rows = evaluate_diagnosis(readout, pd.DataFrame(), config=config, seed=experiment.seed).results
    except (DataError, ConfigError) as error:
        warn(f"{path.name}: no AUC: {error}")
        return dict.fromkeys(pairs, np.nan)
    rows = rows[rows["metric"] == "auc"]
    by_pair = {parts_of(str(row.note))["pair"]: float(str(row.estimate)) for row in rows.itertuples()}
    return {pair: by_pair.get(pair, np.nan) for pair in pairs}
