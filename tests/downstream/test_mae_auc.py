"""Age error against AUC: points from run folders and checkpoints, correlations against SciPy and a known truth."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy.stats import pearsonr, spearmanr

from brainage.config import apply_overrides, read_experiment, run_folder, save_experiment, sibling
from brainage.data.table import finish_table
from brainage.downstream.checkpoint_scores import score_checkpoints
from brainage.downstream.evaluate import evaluate
from brainage.downstream.evaluate_cohort import evaluate_cohort
from brainage.downstream.mae_auc import (
    FILE,
    POINT_COLUMNS,
    correlate,
    correlation,
    points,
    read_points,
    step_of,
    write_points,
)
from brainage.downstream.results import parts_of
from brainage.errors import DataError
from brainage.pretraining.checkpoint import checkpoints
from tests.downstream.test_evaluate import copy_of, value
from tests.scans import SimulatedScans, VectorCohort

WHERE = {"pair": "CN-AD", "predictor": "probe"}


class Patients(VectorCohort):
    """The people of the vector cohort under other names, some with a disease that moves their features."""

    name = "patients"

    def table(self):
        table = super().table().table
        names = [f"q{number:03d}" for number in range(len(table))]
        sick = np.arange(len(table)) % 3 == 0
        diagnosis = pd.array(np.where(sick, "AD", "CN"), dtype="string")
        table = table.assign(cohort="patients", participant_id=names, diagnosis=diagnosis)
        return finish_table(table.drop(columns="split"), source="patients")

    def read(self, path):
        return (super().read(path) + (6 if int(path) % 3 == 0 else 0)).astype(np.float32)


@pytest.fixture(scope="module")
def judged(finished, tmp_path_factory):
    """(run folder, points of its checkpoints, results on patients, results on its own cohort): L^exp and L1."""
    experiment, data, folder = copy_of(finished, tmp_path_factory.mktemp("mae_auc"))
    light = ["evaluate.losses=[l1]", "evaluate.baselines=[]", "evaluate.tasks=[age]"]
    experiment = apply_overrides(experiment, light)
    save_experiment(experiment, folder / "config.yaml")
    own = evaluate(experiment, data, folder)
    clinical = apply_overrides(
        experiment,
        ["data.cohort=patients", "evaluate.age_fitted_on=cohort", "evaluate.tasks=[age,diagnosis]",
         "evaluate.pairs=[CN-AD, CN-MCI]"],
    )  # fmt: skip
    patients = SimulatedScans(clinical, Patients)
    results = evaluate_cohort(clinical, patients, folder, "clinic")
    found = score_checkpoints(experiment, data, clinical, patients, folder, name="clinic")
    return folder, found, results, own


def auc(results, run):
    rows = results[(results["run"] == run) & (results["task"] == "diagnosis") & (results["metric"] == "auc")]
    rows = rows[[parts_of(note) == WHERE for note in rows["note"]]]
    return float(rows["estimate"].iloc[0])


def test_every_kept_checkpoint_is_a_point_and_the_last_has_the_numbers_of_the_evaluations(judged):
    folder, found, results, own = judged
    mine = found[found["pair"] == "CN-AD"]
    assert mine["step"].tolist() == sorted(step_of(path) for path in checkpoints(folder))
    last = mine.iloc[-1]
    assert last["auc"] == auc(results, "exp")
    assert last["mae_internal_years"] == pytest.approx(value(own, "exp", "test_internal"), abs=1e-12)
    assert last["mae_external_years"] == pytest.approx(value(own, "exp", "test_external"), abs=1e-12)
    assert mine["mae_external_years"].nunique() == len(mine)
    assert found.loc[found["pair"] == "CN-MCI", "auc"].isna().all()  # nobody has MCI


def test_points_join_checkpoints_with_finished_siblings_each_network_once(judged):
    folder, _, results, own = judged
    table = points([folder], **WHERE)
    assert list(table.columns) == POINT_COLUMNS
    assert table["model"].tolist().count("exp") == len(checkpoints(folder))
    (other,) = table[table["model"] == "l1"].to_dict("records")
    assert (other["auc"], other["mae_external_years"]) == (auc(results, "l1"), value(own, "l1", "test_external"))
    assert other["step"] == 12
    assert other["run"] in {path.name for path in folder.parent.iterdir()}
    assert set(table["evaluation"]) == {"clinic"}
    pd.testing.assert_frame_equal(points([folder, folder], **WHERE), table)
    assert len(points([folder], **WHERE, on="elsewhere")) == 0


def test_predictors_that_checkpoints_do_not_have_come_from_the_evaluations(judged, capsys):
    folder = judged[0]
    assert points([folder], pair="CN-AD", predictor="gap")["model"].sort_values().tolist() == ["exp", "l1"]
    assert points([folder], pair="CN-AD", predictor="finetuned").empty
    assert "no network with an age error and an AUC of CN-AD by finetuned" in capsys.readouterr().err


def test_pooled_seeds_are_no_point_of_their_own(judged, tmp_path):
    shutil.copytree(judged[0], tmp_path / "run")
    folder = tmp_path / "run"
    (folder / FILE).unlink()
    for file in (folder / "results.csv", folder / "evaluations" / "clinic" / "results.csv"):
        rows = pd.read_csv(file, keep_default_na=False)
        seeds = [rows[rows["run"] == "exp"].assign(run=f"exp-seed{seed}") for seed in (0, 1)]
        pd.concat([rows, *seeds]).to_csv(file, index=False)
    table = points([folder], **WHERE)
    assert sorted(zip(table["model"], table["seed"], strict=True)) == [("exp", 0), ("exp", 1), ("l1", 0)]


def test_points_of_another_evaluation_stay_when_one_is_written_again(judged, tmp_path):
    found = judged[1]
    write_points(tmp_path, "a", found.assign(evaluation="a"))
    write_points(tmp_path, "b", found.assign(evaluation="b"))
    write_points(tmp_path, "a", found.assign(evaluation="a").iloc[:1])
    assert read_points(tmp_path)["evaluation"].value_counts().to_dict() == {"b": len(found), "a": 1}
    (tmp_path / FILE).write_text("run,step\nx,1\n")
    with pytest.raises(DataError, match="not readable as points"):
        read_points(tmp_path)


def simulated(rng, runs, a_run, rho, shared=0.7):
    """MAE and AUC of checkpoints whose correlation is rho, between runs and within them."""
    root = np.linalg.cholesky([[1, rho], [rho, 1]])
    of_run = rng.standard_normal((runs, 1, 2)) @ root.T * np.sqrt(shared)
    both = of_run + rng.standard_normal((runs, a_run, 2)) @ root.T * np.sqrt(1 - shared)
    table = pd.DataFrame(both.reshape(-1, 2), columns=["mae_internal_years", "auc"])
    table = table.assign(mae_external_years=-table["auc"] + 7, run=np.repeat([f"r{i}" for i in range(runs)], a_run))
    facts = {"model": "exp", "seed": 0, "step": 1, "evaluation": "clinic", "cohort": "adni", "split": "test_external"}
    return table.assign(**facts, **WHERE)[POINT_COLUMNS]


def rows_of(table, **options):
    rows = correlate(table, **WHERE, resamples=options.pop("resamples", 200), **options)
    return {(parts_of(row.note)["subset"], row.metric): row for row in rows.itertuples()}


def test_correlations_are_those_of_scipy():
    table = simulated(np.random.default_rng(1), 9, 3, 0.4).round({"auc": 1})  # with ties
    rows = rows_of(table)
    assert set(rows) == {(s, m) for s in ("internal", "external") for m in ("pearson_r", "spearman_r")}
    x, y = table["mae_internal_years"], table["auc"]
    assert rows["internal", "pearson_r"].estimate == pytest.approx(pearsonr(x, y).statistic)
    assert rows["internal", "spearman_r"].estimate == pytest.approx(spearmanr(x, y).statistic)
    row = rows["internal", "pearson_r"]
    assert row.low < row.estimate < row.high
    assert (row.run, row.cohort, row.split, row.task, row.n) == ("networks", "adni", "test_external", "mae_auc", 27)
    assert row.note.startswith("pair=CN-AD; predictor=probe; subset=internal; 27 points of 9 runs; ")


def test_the_jackknife_is_that_of_leaving_out_each_run_with_scipy():
    table = simulated(np.random.default_rng(2), 7, 2, 0.5)
    for metric, function in (("pearson_r", pearsonr), ("spearman_r", spearmanr)):
        kept = [table[table["run"] != run] for run in table["run"].unique()]
        z = np.arctanh([function(part["mae_internal_years"], part["auc"]).statistic for part in kept])
        error = np.sqrt(6 / 7 * ((z - z.mean()) ** 2).sum())
        whole = np.arctanh(function(table["mae_internal_years"], table["auc"]).statistic)
        row = rows_of(table)["internal", metric]
        assert (row.low, row.high) == pytest.approx(np.tanh(whole + np.array([-1, 1]) * 2.446912 * error), abs=1e-6)


def test_the_bootstrap_draws_whole_runs_and_the_fisher_interval_counts_runs():
    table = simulated(np.random.default_rng(3), 8, 4, 0.5)
    x, y, runs = (table[name].to_numpy() for name in ("mae_internal_years", "auc", "run"))
    names, rng = np.unique(runs), np.random.default_rng(0)
    by_run = [np.flatnonzero(runs == name) for name in names]
    drawn = [np.concatenate([by_run[i] for i in rng.integers(0, 8, 8)]) for _ in range(4000)]
    for ranked, function in ((False, pearsonr), (True, spearmanr)):
        expected = np.percentile([function(x[d], y[d]).statistic for d in drawn], [2.5, 97.5])
        _, note = correlation(x, y, runs, ranked=ranked, resamples=4000, seed=1)
        told = note.split("bootstrap over runs ")[1].split(";")[0].split(" to ")
        assert [float(end) for end in told] == pytest.approx(expected, abs=0.05)
    alone = table.groupby("run").head(1)
    interval = pearsonr(alone["mae_internal_years"], alone["auc"]).confidence_interval()
    assert f"one point {interval.low:.2f} to {interval.high:.2f}" in rows_of(alone)["internal", "pearson_r"].note


def test_a_perfect_line_has_an_estimate_and_says_why_there_is_no_interval():
    row = rows_of(simulated(np.random.default_rng(4), 6, 2, 0.3))["external", "pearson_r"]
    assert row.estimate == pytest.approx(-1)
    assert np.isnan(row.low)
    assert "no interval" in row.note


def test_too_few_runs_are_a_row_without_a_number_however_many_checkpoints():
    rows = rows_of(simulated(np.random.default_rng(5), 4, 9, 0.5))
    assert all(np.isnan(row.estimate) for row in rows.values())
    assert all("36 points of 4 runs, expected 5 runs or more" in row.note for row in rows.values())
    empty = correlate(points([], **WHERE), **WHERE)
    assert empty["note"].str.contains("0 points of 0 runs").all()


def test_points_without_a_number_are_counted_and_flat_ones_are_said_to_be():
    table = simulated(np.random.default_rng(6), 7, 2, 0.5)
    table.loc[0, "auc"] = np.nan
    rows = rows_of(table)
    assert "1 points without a number left out" in rows["internal", "pearson_r"].note
    flat = rows_of(table.assign(auc=0.5))["internal", "spearman_r"]
    assert np.isnan(flat.estimate)
    assert "the same of all points" in flat.note


def test_points_of_two_evaluations_are_not_mixed():
    table = simulated(np.random.default_rng(7), 6, 2, 0.5)
    with pytest.raises(DataError, match="points of one evaluation, found clinic, other"):
        correlate(pd.concat([table, table.assign(evaluation="other")]), **WHERE)


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "rho"), [(6, 0.0), (8, 0.5), (24, 0.5)])
def test_the_interval_holds_a_known_correlation_at_its_rate_where_points_are_no_runs(runs, rho):
    """300 seeds of five checkpoints a run: at least 270 held (95 % would be 285, 99.9 % bounds 272 and 296)."""
    held = {"pearson_r": 0, "spearman_r": 0}
    truth = {"pearson_r": rho, "spearman_r": 6 / np.pi * np.arcsin(rho / 2)}
    naive = 0
    for seed in range(300):
        table = simulated(np.random.default_rng([seed, runs]), runs, 5, rho)
        for (subset, metric), row in rows_of(table, resamples=20).items():
            if subset == "internal":
                held[metric] += row.low <= truth[metric] <= row.high
        ends = pearsonr(table["mae_internal_years"], table["auc"]).confidence_interval()
        naive += ends.low <= rho <= ends.high
    assert min(held.values()) >= 270, held
    assert max(held.values()) <= 297, held
    assert naive < 250  # what taking checkpoints for networks of their own would do


def test_a_sibling_is_known_by_the_folder_it_was_trained_in(judged):
    folder = judged[0]
    saved = read_experiment(folder / "config.yaml")
    name = run_folder(sibling(dataclasses.replace(saved, runs=str(folder.parent)), "l1", 0)).name
    assert name in set(points([folder], **WHERE)["run"])
