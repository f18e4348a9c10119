"""What is said of results in a few lines: on the terminal, and as MLflow's metrics."""

from __future__ import annotations

import numpy as np
import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table

from brainage.downstream.results import parts_of
from brainage.runtime import console

GLANCE = {  # column of a table of runs -> split, task, metric
    "mae internal": ("test_internal", "age", "mae_years"),
    "mae external": ("test_external", "age", "mae_years"),
    "site bacc": ("test_internal", "site", "balanced_accuracy"),
}
SHOWN = {  # task and metric -> digits
    ("gap_contrast", "difference_years"): 2,
    ("diagnosis", "auc"): 3,
    ("longitudinal", "slope_years_per_year"): 2,
    ("survival", "hazard_ratio"): 2,
}


def mlflow_metrics(results: pd.DataFrame, model: str) -> dict[str, float]:
    """`task/split/metric` -> estimate of the run's own network, whole splits only."""
    rows = _whole(results, model)
    rows = rows[rows["task"].isin(["age", "site", "challenge"])]
    return {f"{r.task}/{r.split}/{r.metric}".replace("+", "_"): float(r.estimate) for r in rows.itertuples()}


def at_a_glance(results: pd.DataFrame, model: str) -> dict[str, float]:
    """What a table of runs shows in a few columns: errors, site accuracy, how well the embedding tells diagnoses."""
    found: dict[str, float] = {}
    for name, (split, task, metric) in GLANCE.items():
        rows = _of(_whole(results, model), split, task, metric)
        if len(rows):
            found[name] = float(rows["estimate"].iloc[0])
    rows = _rows_of(results, model)
    for row in rows[(rows["task"] == "diagnosis") & (rows["metric"] == "auc")].itertuples():
        parts = parts_of(str(row.note))
        if parts.get("predictor") == "probe" and set(parts) == {"pair", "predictor"}:
            found[f"auc {parts['pair']}"] = float(row.estimate)
    return found


def print_tasks(results: pd.DataFrame, model: str, correction: str) -> None:
    """Gap contrasts, diagnosis, slopes and hazards of the run's network, one line each, of the gap with `correction`;
    nothing where none was computed."""
    rows = _rows_of(results, model)
    table = Table(title="Estimate and 95 % interval", title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for column in ("task", "of", "estimate", "people"):
        table.add_column(column, justify="right" if column in ("estimate", "people") else "left")
    for row in rows.itertuples():
        digits, parts = SHOWN.get((str(row.task), str(row.metric)), 0), parts_of(str(row.note))
        of_this_gap = parts.pop("correction", correction) == correction and parts.pop("term", "gap") == "gap"
        if not digits or not of_this_gap or not set(parts) <= {"contrast", "pair", "predictor", "group"}:
            continue
        words = ", ".join(parts.values())
        ends = "" if np.isnan(row.low) else f" [{row.low:.{digits}f}, {row.high:.{digits}f}]"
        name = f"{row.task} {row.metric}".replace("_", " ")
        table.add_row(name, words, f"{row.estimate:.{digits}f}{ends}", str(row.n))
    if table.row_count:
        console().print(table)


def print_headline(results: pd.DataFrame, model: str) -> None:
    """Models side by side: MAE on seen and unseen sites with intervals, site accuracy, challenge score."""
    columns = {
        "MAE internal": ("test_internal", "age", "mae_years"),
        "MAE external": ("test_external", "age", "mae_years"),
        "site BAcc": ("test_internal", "site", "balanced_accuracy"),
        "L_c": ("test_internal+test_external", "challenge", "challenge_score"),
    }
    rows = results[~results["run"].str.contains(r"-seed\d+$")]
    rows = rows[_about_all(rows)]
    columns = {title: where for title, where in columns.items() if len(_of(rows, *where))}
    title = "Years, 95 % intervals over people; site and L_c: lower is better"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("model", no_wrap=True)
    for title, where in columns.items():
        table.add_column(f"{title}\nn {_of(rows, *where)['n'].max()}", justify="right", no_wrap=True)
    names = list(dict.fromkeys(rows["run"]))
    for name in sorted(names, key=lambda name: (name != model, name in ("mean_predictor", "chance"))):
        cells = [_cell(rows[rows["run"] == name], *where) for where in columns.values()]
        if any(cells):
            table.add_row(name, *cells)
    console().print(table)


def _cell(rows: pd.DataFrame, split: str, task: str, metric: str) -> str:
    """Estimate over its interval, empty where the model has no such number."""
    found = _of(rows, split, task, metric)
    if found.empty:
        return ""
    row = found.iloc[0]
    interval = "" if np.isnan(row["low"]) else f"\n[{row['low']:.2f}, {row['high']:.2f}]"
    return "-" if np.isnan(row["estimate"]) else f"{row['estimate']:.2f}{interval}"


def _of(rows: pd.DataFrame, split: str, task: str, metric: str) -> pd.DataFrame:
    return rows[(rows["split"] == split) & (rows["task"] == task) & (rows["metric"] == metric)]


def _rows_of(results: pd.DataFrame, model: str) -> pd.DataFrame:
    """Numbers of the run's network; of several seeds those of all together."""
    return results[(results["run"] == model) & results["estimate"].notna()]


def _whole(results: pd.DataFrame, model: str) -> pd.DataFrame:
    """Those that are about whole splits."""
    rows = _rows_of(results, model)
    return rows[_about_all(rows)]


def _about_all(rows: pd.DataFrame) -> np.ndarray:
    return np.array([not parts_of(str(note)) for note in rows["note"].fillna("")], dtype=bool)
