"""What the finished cells of a study say together: one long table, a summary over seeds, and paired comparisons.

Arms are compared with the reference seed by seed: two networks of one seed share the order of the scans and the draws
of their views, so their difference is free of that part of the luck. Two intervals are given and never mixed:
- over seeds: mean of the paired differences with its t interval and p value; Holm's correction over the arms of one
  metric. One seed gives a difference and neither interval nor p value.
- over people: the MAE difference on the same resamples of the people scored, each arm averaged over its seeds; it holds
  the luck of who was scored, not that of the seeds, and is not corrected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.table import read_table
from brainage.downstream.age import paired_mae_difference
from brainage.downstream.results import CHANCE, MEAN_PREDICTOR, parts_of, read_results
from brainage.errors import BrainageError
from brainage.statistics.seeds import holm, seed_interval
from brainage.studies.cells import FINISHED_STATE, Cell, state_of
from brainage.studies.elsewhere import Points, gather_points, judged_folder
from brainage.studies.metrics import Metric, in_order
from brainage.studies.study import Form

LONG_COLUMNS = ["arm", "seed", "model", "metric", "estimate", "low", "high", "n", "note"]
SUMMARY_COLUMNS = ["arm", "metric", "estimate", "low", "high", "seed_sd", "seeds", "n"]
COMPARISON_COLUMNS = [
    "arm", "reference", "metric", "difference", "low", "high", "p", "p_holm", "seeds", "lower",
    "people_low", "people_high", "n", "note",
]  # fmt: skip
NETWORK, OWN_HEAD = "network", "own head"  # `model` of an arm's network by a probe, and by the ages it predicts itself
HEAD = "_head"  # as in brainage.downstream.evaluate
MAE = "mae_years"


@dataclass(frozen=True)
class Gathered:
    """Frames with LONG_COLUMNS, SUMMARY_COLUMNS and COMPARISON_COLUMNS; `unfinished`: cell -> state or reason.

    `points`: age error against AUC of all networks and checkpoints, empty where they were judged on no other cohort.
    """

    long: pd.DataFrame
    summary: pd.DataFrame
    comparisons: pd.DataFrame
    unfinished: dict[str, str]
    points: Points


def gather(form: Form, cells: Sequence[Cell]) -> Gathered:
    """Read every finished cell and compare; cells that are not finished are named with their state."""
    unfinished, frames = {}, []
    done = []
    for cell in cells:
        if (state := state_of(cell)) == FINISHED_STATE:
            frames.append(_long(cell, form.compare))
            done.append(cell)
        else:
            reason = cell.failure.read_text(encoding="utf-8").splitlines()[0] if cell.failure.is_file() else state
            unfinished[cell.name] = reason
    long = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=LONG_COLUMNS)
    return Gathered(long, summarise(form, long), compare(form, done, long), unfinished, gather_points(done))


def _long(cell: Cell, compared: Sequence[str]) -> pd.DataFrame:
    """Rows of a cell's results about whole splits and of what is compared, on both cohorts: its network's, and those of
    the baselines scored beside it."""
    frames = [_named(cell.folder / "results.csv", on=False)]
    frames += [_named(judged_folder(cell) / "results.csv", on=True)] if cell.on else []
    rows = pd.concat(frames, ignore_index=True)
    wanted = rows["whole"] | rows["metric"].isin(compared)
    rows = rows[wanted & ~rows["run"].str.contains(" - ", regex=False)]
    loss = cell.experiment.loss.name
    model = rows["run"].replace({loss: NETWORK, loss + HEAD: OWN_HEAD})
    return rows.assign(arm=cell.arm, seed=cell.seed, model=model)[LONG_COLUMNS]


def _named(path: Path, *, on: bool) -> pd.DataFrame:
    """Results with `metric` as a study spells it, and whether a row is about a whole split."""
    rows = read_results(path)
    parts = [in_order(parts_of(note)) for note in rows["note"].fillna("")]
    names = zip(rows["task"], rows["split"], rows["metric"], parts, strict=True)
    metric = pd.array([str(Metric(on, *of_row)) for of_row in names], dtype="string")
    return rows.assign(metric=metric, whole=np.array([not of for of in parts], dtype=bool))


def summarise(form: Form, long: pd.DataFrame) -> pd.DataFrame:
    """Each arm over its seeds, metric by metric, then baselines; the interval is over seeds, of one there is none."""
    rows: list[dict[str, Any]] = []
    for metric in form.compare:
        here = long[long["metric"] == metric]
        for name, part in _by_name(here, form):
            over_seeds = seed_interval(part["estimate"].to_numpy(float))
            values = [
                name, metric, *over_seeds.interval, over_seeds.sd, over_seeds.seeds, int(part["n"].max()),
            ]  # fmt: skip
            rows.append(dict(zip(SUMMARY_COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=SUMMARY_COLUMNS)


def _by_name(rows: pd.DataFrame, form: Form) -> list[tuple[str, pd.DataFrame]]:
    """Arms in the study's order, own heads behind, then baselines: once where all arms agree, else one of each arm."""
    found = []
    for model in (NETWORK, OWN_HEAD):
        for arm in form.arms:
            part = rows[(rows["arm"] == arm) & (rows["model"] == model)]
            if len(part):
                found.append((arm_name(arm, model), part))
    others = rows[~rows["model"].isin([NETWORK, OWN_HEAD])]
    for model, part in others.groupby("model", sort=False):
        firsts = part.sort_values("seed", kind="stable").drop_duplicates("arm")  # no seed is in them, or it was one
        if firsts["estimate"].round(9).nunique() <= 1:
            found.append((str(model), firsts.head(1)))
            continue
        found += [(f"{model} of {arm}", firsts[firsts["arm"] == arm]) for arm in form.arms if arm in set(firsts["arm"])]
    return sorted(found, key=lambda named: named[0].split(" of ")[0] in (MEAN_PREDICTOR, CHANCE))


def arm_name(arm: str, model: str) -> str:
    """
    >>> arm_name("l1", NETWORK), arm_name("l1", OWN_HEAD)
    ('l1', 'l1 (own head)')
    """
    return arm if model == NETWORK else f"{arm} ({model})"


def compare(form: Form, cells: Sequence[Cell], long: pd.DataFrame) -> pd.DataFrame:
    """Every arm against the reference, metric by metric."""
    rows: list[dict[str, Any]] = []
    for metric in form.compare:
        of_metric = [
            row
            for model in (NETWORK, OWN_HEAD)
            for arm in form.arms
            if (arm, model) != (form.reference, NETWORK)
            and (row := _against_reference(form, cells, long[long["metric"] == metric], metric, arm, model))
        ]
        for row, adjusted in zip(of_metric, holm([row["p"] for row in of_metric]), strict=True):
            row["p_holm"] = adjusted
        rows += of_metric
    return pd.DataFrame(rows, columns=COMPARISON_COLUMNS)


def _against_reference(
    form: Form, cells: Sequence[Cell], rows: pd.DataFrame, metric: str, arm: str, model: str
) -> dict[str, Any] | None:
    """One row, None where the arm has no such number."""
    ours = rows[(rows["arm"] == arm) & (rows["model"] == model)].set_index("seed")
    theirs = rows[(rows["arm"] == form.reference) & (rows["model"] == NETWORK)].set_index("seed")
    if ours.empty or theirs.empty:
        return None
    shared = [seed for seed in form.seeds if seed in ours.index and seed in theirs.index]
    ours, theirs = ours.loc[shared], theirs.loc[shared]
    row: dict[str, Any] = dict.fromkeys(COMPARISON_COLUMNS, np.nan)
    row |= {"arm": arm_name(arm, model), "reference": form.reference, "metric": metric, "seeds": 0, "lower": ""}
    row |= {"n": int(ours["n"].max()) if shared else 0, "note": "no seed is finished in both"}
    if not shared:
        return row
    if (ours["n"] != theirs["n"]).any():
        counts = f"{ours['n'].iloc[0]} against {theirs['n'].iloc[0]} people"
        return row | {"note": f"not compared: other people were scored ({counts})"}
    differences = (ours["estimate"] - theirs["estimate"]).to_numpy(float)
    found = seed_interval(differences)
    row |= {"difference": found.interval.estimate, "low": found.interval.low, "high": found.interval.high}
    row |= {"p": found.p, "seeds": found.seeds, "lower": f"{int((differences < 0).sum())} of {found.seeds}"}
    row["note"] = "one seed: no spread" if found.seeds == 1 else ""
    of = Metric.of(metric)
    if (of.on, of.task, of.name, of.parts) == (False, "age", MAE, ()):
        row |= _over_people(form, cells, of.split, arm, model, shared)
    return row


def _over_people(
    form: Form, cells: Sequence[Cell], split: str, arm: str, model: str, seeds: Sequence[int]
) -> dict[str, float]:
    """Interval of the MAE difference over people, on the same resamples of them."""
    frames = [_predictions(cells, arm, model, seeds), _predictions(cells, form.reference, NETWORK, seeds)]
    first = cells[0].experiment
    try:
        found = paired_mae_difference(*frames, cohort=first.data.cohort, config=first.evaluate, seed=form.seeds[0])
    except BrainageError:  # other scans: a mean over the same number of other people is no pair
        return {"difference": np.nan, "low": np.nan, "high": np.nan, "p": np.nan}
    row = found[found["split"] == split]
    return {"people_low": float(row["low"].iloc[0]), "people_high": float(row["high"].iloc[0])} if len(row) else {}


def _predictions(cells: Sequence[Cell], arm: str, model: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Predictions of an arm's network over seeds, under the arm's name."""
    frames = []
    for cell in cells:
        if cell.arm == arm and cell.seed in seeds:
            rows = read_table(cell.folder / "predictions.parquet")
            loss = cell.experiment.loss.name
            rows = rows[rows["model"] == (loss if model == NETWORK else loss + HEAD)]
            frames.append(rows.assign(model=arm_name(arm, model)))
    return pd.concat(frames, ignore_index=True)
