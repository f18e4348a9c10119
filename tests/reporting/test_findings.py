"""Warnings: each one appears when its fault is there, and none on a sound run."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from brainage.config import read_experiment, save_experiment
from brainage.data.table import read_table, read_tsv, write_table, write_tsv
from brainage.downstream.results import read_results, write_results
from brainage.reporting.findings import findings
from brainage.reporting.run_folder import read_run


def _change_results(folder: Path, query: str, **values: object) -> None:
    frame = read_results(folder / "results.csv")
    for name, value in values.items():
        frame.loc[frame.query(query).index, name] = value
    write_results(frame, folder / "results.csv")


def _leak(folder: Path) -> None:
    split = read_tsv(folder / "split.tsv")
    write_tsv(pd.concat([split, split.tail(3).assign(split="train")]), folder / "split.tsv")


def _leak_in_the_table(folder: Path) -> None:
    table = read_table(folder / "table.parquet")
    again = table.tail(3).assign(split="train", session_id="2").astype(table.dtypes)
    write_table(pd.concat([table, again], ignore_index=True), folder / "table.parquet")


def _seen(folder: Path) -> None:
    split = read_tsv(folder / "split.tsv")
    split.loc[split["split"] == "test_internal", "split"] = "train"
    write_tsv(split, folder / "split.tsv")


def _journal(folder: Path, **metrics: float) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in range(500, 505):
            file.write(json.dumps({"step": step, "time_ms": 0, "metrics": metrics}) + "\n")


def _configure(folder: Path, section: str, key: str, value: object) -> None:
    experiment = read_experiment(folder / "config.yaml")
    setattr(getattr(experiment, section), key, value)
    save_experiment(experiment, folder / "config.yaml")


def _train_on_the_young(folder: Path) -> None:
    table = read_table(folder / "table.parquet")
    write_table(table[(table["split"] != "train") | (table["age_years"] < 40)], folder / "table.parquet")


def _drop_many(folder: Path) -> None:
    dropped = read_tsv(folder / "dropped.tsv")
    write_tsv(pd.concat([dropped] * 10), folder / "dropped.tsv")


def _few_people(folder: Path) -> None:
    frame = read_table(folder / "predictions.parquet")
    kept = (frame["split"] != "test_external") | (frame.groupby(["model", "split"]).cumcount() < 12)
    write_table(frame[kept], folder / "predictions.parquet")


WHOLE = "run == 'exp' and split == 'test_external' and task == 'age' and metric == 'mae_years'"
FAULTS: list[tuple[str, str, Callable[[Path], None]]] = [
    ("Leak between splits", "severe", _leak),
    ("Leak between splits", "severe", _leak_in_the_table),
    ("People seen in training were scored", "severe", _seen),
    ("Scoring of seen people was allowed", "caution", lambda f: _configure(f, "evaluate", "allow_seen", True)),
    ("The embedding collapsed", "severe", lambda f: _journal(f, **{"health/loss_over_collapse": 0.998})),
    ("The embedding collapsed", "severe", lambda f: _journal(f, **{"health/loss_over_collapse": 1.004})),
    ("The embedding collapsed", "severe", lambda f: _journal(f, **{"health/effective_rank": 1.1})),
    (
        "The embedding collapsed",
        "severe",
        lambda f: _journal(f, **{"health/loss_over_collapse": 1.4, "health/effective_rank": 1.1}),
    ),
    (
        "The loss is worse than that of a constant embedding",
        "caution",
        lambda f: _journal(f, **{"health/loss_over_collapse": 1.416, "health/effective_rank": 18}),
    ),
    ("The loss is not a number", "severe", lambda f: _journal(f, **{"train/loss": float("nan")})),
    (
        "Training was stopped",
        "severe",
        lambda f: (f / "health.json").write_text('{"status":"stopped","message":"NaN"}'),
    ),
    ("Training has not finished", "caution", lambda f: (f / "finished.json").unlink()),
    ("A trial run", "severe", lambda f: _configure(f, "data", "limit", 40)),
    ("A trial run", "severe", lambda f: _configure(f, "trainer", "overfit_batches", 2)),
    ("No better than the mean age", "severe", lambda f: _change_results(f, WHOLE, estimate=13.0, high=14.0)),
    ("Not clearly better than the mean age", "caution", lambda f: _change_results(f, WHOLE, estimate=12.0, high=14.0)),
    ("No better than an untrained encoder", "caution", lambda f: _change_results(f, WHOLE, estimate=9.9, high=10.0)),
    ("Test ages outside the training range", "caution", _train_on_the_young),
    (
        "A site probe did not converge",
        "caution",
        lambda f: _change_results(f, "task == 'site'", note="lbfgs NOT converged, C 1"),
    ),
    (
        "Penalty of the age probe at the edge of its grid",
        "caution",
        lambda f: _change_results(f, WHOLE, note="60 scans; ridge on 180 scans, alpha 100 (edge of the grid)"),
    ),
    (
        "Penalty of the age probe at the edge of its grid",
        "caution",
        lambda f: _change_results(
            f, WHOLE.replace("exp", "untrained"), note="60 scans; ridge on 180 scans, alpha 0.01 (edge of the grid)"
        ),
    ),
    (
        "Penalty of the site probe at the edge of its grid",
        "caution",
        lambda f: _change_results(f, "task == 'site'", note="lbfgs converged, C 100 (edge of the grid)"),
    ),
    (
        "The age error depends on the scale of the features",
        "caution",
        lambda f: _change_results(f, WHOLE.replace("'age'", "'age_standardised'"), estimate=4.0, low=3.0, high=5.0),
    ),
    ("Many scans were dropped", "caution", _drop_many),
    ("Small external test", "caution", _few_people),
]


def test_a_sound_run_has_no_warning(run_folder):
    assert findings(read_run(run_folder)) == []


@pytest.mark.parametrize(("title", "level", "spoil"), FAULTS, ids=[f"{i}-{row[0]}" for i, row in enumerate(FAULTS)])
def test_each_fault_is_said(run_folder, title, level, spoil):
    spoil(run_folder)
    found = {finding.title.split(" (")[0]: finding.level for finding in findings(read_run(run_folder))}
    assert found.get(title) == level


def test_severe_warnings_come_first(run_folder):
    _drop_many(run_folder)
    _leak(run_folder)
    levels = [finding.level for finding in findings(read_run(run_folder))]
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {"severe", "caution"}


def test_a_loss_above_that_of_a_constant_embedding_is_no_collapse(run_folder):
    _journal(run_folder, **{"health/loss_over_collapse": 1.416, "health/effective_rank": 18})
    (found,) = findings(read_run(run_folder))
    assert found.level == "caution"
    assert "1.416 of it, with an effective rank of 18.0: undertrained or overfitted" in found.text


def test_one_bad_look_is_not_a_collapse(run_folder):
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 500, "time_ms": 0, "metrics": {"health/loss_over_collapse": 1.0}}) + "\n")
    assert findings(read_run(run_folder)) == []


def test_the_warning_of_the_grid_tells_the_models_apart(run_folder):
    note = "60 scans; ridge on 180 scans, alpha 100 (edge of the grid)"
    _change_results(run_folder, WHOLE.replace("run == 'exp'", "run in ['exp', 'l1']"), note=note)
    (found,) = findings(read_run(run_folder))
    assert found.text.startswith(
        "alpha ends at the edge of its grid for L^exp; L1, supervised (and not for Untrained encoder; PCA + ridge). "
    )


def test_no_warning_names_a_person(run_folder):
    _leak(run_folder)
    _seen(run_folder)
    _train_on_the_young(run_folder)
    assert not any("ZQXV" in finding.text for finding in findings(read_run(run_folder)))
