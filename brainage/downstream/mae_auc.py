"""Whether networks that err less in age tell patients better: age error against AUC over losses, seeds, checkpoints.

A point is one network at one step: its MAE on the cohort that it was trained on, and the AUC of a predictor on another.
G runs (trainings), n points. Checkpoints of one run are anything but independent, so the unit of every interval is the
run: in simulations with five checkpoints a run (see tests) Fisher's z over points holds the truth in 73 of 100 cases,
percentiles of a bootstrap over runs in 90, and the form used, a jackknife over runs on the scale of z, in 94.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata
from scipy.stats import t as student

from brainage.config import read_experiment, run_folder, sibling
from brainage.data.table import write_atomically
from brainage.downstream.results import (
    EXTERNAL,
    SCORED,
    missing_row,
    parts_of,
    read_results,
    result_row,
    results_frame,
)
from brainage.errors import DataError
from brainage.losses.names import CONTRASTIVE_NAMES, SUPERVISED_NAMES
from brainage.runtime import warn
from brainage.statistics.bootstrap import Interval, interval, resample_weights

FILE = "mae_auc.csv"  # of a run folder: points of its checkpoints
POINT_COLUMNS = [
    "run", "model", "seed", "step", "mae_internal_years", "mae_external_years", "evaluation", "cohort", "split", "pair",
    "predictor", "auc",
]  # fmt: skip
MAES = {"internal": "mae_internal_years", "external": "mae_external_years"}
NETWORKS = "networks"  # `run` of rows that are about many
FEWEST_RUNS = 5
_SEEDED = re.compile(r"^(?P<model>.+)-seed(?P<seed>\d+)$")


def points(folders: Sequence[Path], *, pair: str, predictor: str, on: str = "") -> pd.DataFrame:
    """Columns POINT_COLUMNS: every network and checkpoint that the run folders know MAE and AUC of; NaN where the
    number could not be computed.

    Checkpoints are those of RUN/mae_auc.csv (`score_checkpoints`), finished networks those of RUN/results.csv and
    RUN/evaluations/*/results.csv, siblings included; a network that is in several folders counts once. `run` names the
    folder in which it was trained. `on`: only this evaluation. A folder without any point is warned of.
    """
    frames = []
    for folder in map(Path, folders):
        own = pd.concat([read_points(folder), _finished(folder, pair, predictor)], ignore_index=True)
        asked = (own["pair"] == pair) & (own["predictor"] == predictor) & (own["evaluation"].isin([on]) | (not on))
        if not asked.any():
            warn(f"{folder}: no network with an age error and an AUC of {pair} by {predictor}")
        frames.append(own[asked])
    found = pd.concat([_no_points(), *frames], ignore_index=True)
    found = found.drop_duplicates(["run", "evaluation", "step"])
    return found.sort_values(["evaluation", "run", "step"], kind="stable", ignore_index=True)


def correlate(
    found: pd.DataFrame, *, pair: str, predictor: str, group: str = "", resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Rows of the task mae_auc: Pearson's and Spearman's correlation of AUC with either MAE; `n` counts points.

    `found`: points of one pair, predictor and evaluation; `group` names which, where they are not all. Interval:
    Fisher's z with the jackknife's standard error over runs (delete one run; Efron and Tibshirani 1993, chapter 11) and
    Student's t of G - 1: the luck of trainings, the people judged being the same for all. The note states the
    percentiles of a bootstrap over runs and Fisher's z as if each run were one point. Points without one of the numbers
    are counted and left out; with fewer than FEWEST_RUNS runs there is a row without a number.
    """
    wheres = found[["evaluation", "cohort", "split"]].drop_duplicates()
    if len(wheres) > 1:
        names = ", ".join(wheres["evaluation"].astype(str))
        raise DataError(f"mae_auc: expected points of one evaluation, found {names}; ask for one of them (`on`)")
    cohort, split = map(str, wheres.iloc[0, 1:]) if len(wheres) else ("unknown", EXTERNAL)
    where = (NETWORKS, cohort, split, "mae_auc")
    rows = []
    for subset, column in MAES.items():
        known = found.dropna(subset=[column, "auc"])
        of = [f"group={group}"] if group else []
        parts = (f"pair={pair}", f"predictor={predictor}", f"subset={subset}", *of)
        runs = known["run"].astype(str).to_numpy()
        counted = f"{len(known)} points of {len(np.unique(runs))} runs"
        lost = f"{len(found) - len(known)} points without a number left out" if len(known) < len(found) else ""
        for metric, ranked in (("pearson_r", False), ("spearman_r", True)):
            if len(np.unique(runs)) < FEWEST_RUNS:
                reason = f"{counted}, expected {FEWEST_RUNS} runs or more"
                rows.append(missing_row(*where, metric, reason, *parts))
                continue
            x, y = known[column].to_numpy(float), known["auc"].to_numpy(float)
            one, said = correlation(x, y, runs, ranked=ranked, resamples=resamples, seed=seed)
            rows.append(result_row(*where, metric, one, len(known), *parts, counted, said, lost))
    return results_frame(rows)


def correlation(
    x: np.ndarray, y: np.ndarray, runs: np.ndarray, *, ranked: bool, resamples: int, seed: int
) -> tuple[Interval, str]:
    """Correlation of x and y [n] with its interval over runs [n] and what to say of it; of ranks where `ranked`.

    >>> x = np.arange(6.0)
    >>> round(correlation(x, np.array([1.0, 0, 3, 2, 5, 4]), x, ranked=True, resamples=10, seed=0)[0].estimate, 3)
    0.829
    """
    estimate = float(_weighted(x, y, np.ones((1, len(x))), ranked)[0])
    if not np.isfinite(estimate):
        return Interval(np.nan, np.nan, np.nan), "not computed: MAE or AUC is the same of all points"
    names, codes = np.unique(runs, return_inverse=True)
    without = _weighted(x, y, (codes[None] != np.arange(len(names))[:, None]).astype(float), ranked)
    drawn = np.concatenate([_weighted(x, y, w, ranked) for w in resample_weights(runs, resamples, seed)])
    low, high = interval(estimate, drawn)[1:]
    said = [f"bootstrap over runs {low:.2f} to {high:.2f}" if np.isfinite(low) else "no bootstrap: resamples are flat"]
    ends = _fisher(estimate, len(names), ranked)
    said.append(f"Fisher z as if each run were one point {ends[0]:.2f} to {ends[1]:.2f}")
    if not np.isfinite(without).all() or np.abs([estimate, *without]).max() > 1 - 1e-9:
        return Interval(estimate, np.nan, np.nan), "; ".join(["no interval: without some run all is on a line", *said])
    z, error = np.arctanh(estimate), _jackknife(np.arctanh(without))
    half = float(student.ppf(0.975, len(names) - 1)) * error
    found = Interval(estimate, float(np.tanh(z - half)), float(np.tanh(z + half)))
    return found, "; ".join(["jackknife over runs on Fisher's z, the people judged are fixed", *said])


def read_points(folder: Path) -> pd.DataFrame:
    """The points of a run's checkpoints, none where they were not scored; DataError on a file that is none of them."""
    path = Path(folder) / FILE
    if not path.is_file():
        return _no_points()
    try:
        return _typed(pd.read_csv(path)[POINT_COLUMNS])
    except (ValueError, KeyError) as error:
        raise DataError(f"{path}: not readable as points ({' '.join(str(error).split())[:200]})") from error


def write_points(folder: Path, name: str, found: pd.DataFrame) -> Path:
    """Put the points of evaluation `name` into the run's file; those of other evaluations stay."""
    path, before = Path(folder) / FILE, read_points(folder)
    whole = pd.concat([before[before["evaluation"] != name], _typed(found)], ignore_index=True)
    write_atomically(path, lambda draft: whole.to_csv(draft, index=False, lineterminator="\n"))
    return path


def step_of(checkpoint: str | Path) -> int:
    """
    >>> step_of("step_00000120.ckpt")
    120
    """
    return int(Path(checkpoint).stem.removeprefix("step_"))


def _finished(folder: Path, pair: str, predictor: str) -> pd.DataFrame:
    """Points of finished networks, from the results of the run's own cohort and of others."""
    own = folder / "results.csv"
    if not own.is_file():
        return _no_points()
    saved = read_experiment(folder / "config.yaml")
    ages = _by_network(read_results(own), saved.seed, "age", "mae_years", {})
    rows = []
    for file in sorted(folder.glob("evaluations/*/results.csv")):
        wanted = {"pair": pair, "predictor": predictor}
        aucs = _by_network(read_results(file), saved.seed, "diagnosis", "auc", wanted)
        for (model, seed), of in aucs.groupby(["model", "seed"]):
            mine = ages[(ages["model"] == model) & (ages["seed"] == seed)].set_index("split")["estimate"]
            other = folder.parent / run_folder(sibling(saved, str(model), int(str(seed)))).name
            trained = folder if (model, seed) == (saved.loss.name, saved.seed) else other
            maes = [mine.get(split, np.nan) for split in SCORED]
            head = [trained.name, model, seed, _last_step(trained), *maes]
            rows += [[*head, file.parent.name, r.cohort, r.split, pair, predictor, r.estimate] for r in of.itertuples()]
    return _typed(pd.DataFrame(rows, columns=POINT_COLUMNS)) if rows else _no_points()


def _by_network(results: pd.DataFrame, seed: int, task: str, metric: str, parts: dict[str, str]) -> pd.DataFrame:
    """Rows of single networks with columns model and seed: those of several seeds together are left out."""
    rows = results[(results["task"] == task) & (results["metric"] == metric)]
    rows = rows[[parts_of(str(note)) == parts for note in rows["note"].fillna("")]]
    named = [_SEEDED.match(str(run)) for run in rows["run"]]
    models = [match["model"] if match else str(run) for run, match in zip(rows["run"], named, strict=True)]
    seeds = [int(match["seed"]) if match else seed for match in named]
    several = {match["model"] for match in named if match}
    rows = rows.assign(model=models, seed=seeds, pooled=[not m for m in named])
    known = rows["model"].isin([*CONTRASTIVE_NAMES, *SUPERVISED_NAMES])
    return rows[known & ~(rows["pooled"] & rows["model"].isin(several))]


def _last_step(folder: Path) -> Any:
    marker = folder / "finished.json"
    return step_of(json.loads(marker.read_text(encoding="utf-8"))["checkpoint"]) if marker.is_file() else pd.NA


def _weighted(x: np.ndarray, y: np.ndarray, weights: np.ndarray, ranked: bool) -> np.ndarray:
    """[R] correlation of each resample [R, n] of points, NaN where x or y is constant in it."""
    if ranked:
        columns = [_ranks(values, weights) for values in (x, y)]
    else:
        columns = [np.broadcast_to(values, weights.shape) for values in (x, y)]
    total = weights.sum(axis=1, keepdims=True)
    a, b = (c - (weights * c).sum(axis=1, keepdims=True) / total for c in columns)
    both, first, second = ((weights * p).sum(axis=1) for p in (a * b, a * a, b * b))
    flat = 1e-12 * np.array([np.abs(c).max() ** 2 for c in columns]) * total.max()
    known = (first > flat[0]) & (second > flat[1])
    return np.divide(both, np.sqrt(first * second), out=np.full(len(weights), np.nan), where=known)


def _ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[R, n] mid-ranks that each point has where a point of weight w is there w times."""
    if (weights == 1).all():
        return rankdata(values)[None]
    below, equal = values[:, None] < values[None], values[:, None] == values[None]
    return weights @ below + (weights @ equal + 1) / 2


def _jackknife(values: np.ndarray) -> float:
    """Standard error from the values [G] with one run left out."""
    count = len(values)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))


def _fisher(estimate: float, count: int, ranked: bool) -> tuple[float, float]:
    """95 %; of ranks with the variance of Bonett and Wright (2000)."""
    variance = (1 + estimate**2 / 2 if ranked else 1.0) / (count - 3)
    z, half = np.arctanh(np.clip(estimate, -1 + 1e-12, 1 - 1e-12)), norm.ppf(0.975) * np.sqrt(variance)
    return float(np.tanh(z - half)), float(np.tanh(z + half))


def _no_points() -> pd.DataFrame:
    return _typed(pd.DataFrame(columns=POINT_COLUMNS))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    numbers = dict.fromkeys([*MAES.values(), "auc"], "float64")
    text = dict.fromkeys(["run", "model", "evaluation", "cohort", "split", "pair", "predictor"], "string")
    return frame[POINT_COLUMNS].astype({**numbers, **text, "seed": "Int64", "step": "Int64"})
