"""What stands on a cohort's pages beside its tasks: curves, the table of models, commands, and files left behind."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from brainage.data.table import read_table
from brainage.downstream.results import parts_of, result_row, results_frame, write_results
from brainage.reporting import page as page_module
from brainage.reporting import report as report_module
from brainage.reporting.clinical_figures import predictor_name
from brainage.reporting.cohort_headline import cohort_headline
from brainage.reporting.evaluations import read_evaluations
from brainage.reporting.page import Canvas, Section, delete_others
from brainage.reporting.report import write_report
from brainage.reporting.reproduce import reproduce
from brainage.reporting.run_folder import read_run
from brainage.reporting.site_section import site
from brainage.reporting.task_methods import task_methods
from brainage.reporting.task_tables import Column, parts_table
from brainage.statistics.bootstrap import Interval
from tests.reporting.fake_evaluation import WHERE, built, judged


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> dict:
    """The figures that are drawn, by name; nothing is written of them."""
    found = {}
    monkeypatch.setattr(
        page_module, "save_figure", lambda figure, stem, *, pdf: found.update({stem.name: figure}) or ""
    )
    return found


def test_the_curves_are_of_what_their_areas_are_computed_from(folder, figures):
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = read_table(folder / "evaluations" / "adni" / "diagnosis.parquet")
    rows = rows[(rows["folds"] == "people") & (rows["labels"] == 1) & (rows["pair"] == "CN-AD")]
    told = [dict(result_row(*WHERE, "diagnosis", "auc", Interval(auc, auc - 0.05, auc + 0.05), 100,
                            "pair=CN-AD", f"predictor={name}"))
            for name, part in rows.groupby("predictor", sort=False)
            for auc in [roc_auc_score(part["truth"], part["marker"])]]  # fmt: skip
    write_results(results_frame(told), folder / "evaluations" / "adni" / "results.csv")
    built(folder)
    for row in told:
        name = predictor_name(row["note"].rpartition("=")[2])
        (line,) = [one for one in figures["roc_CN_AD"].axes[0].lines if one.get_label().startswith(name)]
        assert np.trapezoid(*line.get_data()[::-1]) == pytest.approx(row["estimate"], abs=1e-12)
        assert f"AUC {row['estimate']:.2f}" in line.get_label()
        ranked = rows.loc[rows["predictor"] == row["note"].rpartition("=")[2]]
        assert abs(roc_auc_score(ranked["truth"], ranked["score"]) - row["estimate"]) > 0.001
    part = rows[rows["predictor"] == "probe"]
    (line,) = [one for one in figures["precision_CN_AD"].axes[0].lines if one.get_label() == predictor_name("probe")]
    recall, precision = line.get_data()
    steps = float((np.diff(recall) * precision[1:]).sum())
    assert line.get_drawstyle() == "steps-pre"
    assert steps == pytest.approx(average_precision_score(part["truth"], part["marker"]))


def test_a_curve_of_one_seed_has_the_area_of_that_seed(folder, figures):
    rows = [result_row(label, *WHERE[1:], "diagnosis", "auc", Interval(auc, auc - 0.1, auc + 0.1), 90,
                       "pair=CN-AD", "predictor=probe")
            for label, auc in {"exp": 0.8, "exp-seed0": 0.7, "exp-seed1": 0.9}.items()]  # fmt: skip
    write_results(results_frame(rows), folder / "evaluations" / "adni" / "results.csv")
    built(folder)
    labels = [line.get_label() for line in figures["roc_CN_AD"].axes[0].lines]
    assert f"{predictor_name('probe')}: AUC 0.70 [0.60, 0.80]" in labels


def test_every_model_stands_at_the_head_of_a_cohort_with_its_own_numbers(folder):
    evaluation = judged(folder)
    (block,) = cohort_headline(evaluation)
    shown = block.content.shown.set_index("Model").map(str)
    assert list(shown.index) == ["L^exp", "L1, supervised", "y-Aware", "PCA + ridge", "Mean predictor"]
    assert list(shown.columns) == [
        "MAE (years)", "Site BAcc (%)", "AUC CN-AD, probe", "AUC CN-AD, gap", "AUC CN-MCI, probe", "AUC CN-MCI, gap",
        "Gap AD − CN (years)",
    ]  # fmt: skip
    n = int(block.content.data["mae_years_test_external_n"].iloc[0])
    assert shown.loc["PCA + ridge"].to_list() == [
        f"6.20 [5.90, 6.50] n {n}", f"70.0 [66.0, 74.0] chance 20.0 n {n}",
        f"0.78 [0.73, 0.83] n {n}", f"0.70 [0.65, 0.75] n {n}", f"0.78 [0.73, 0.83] n {n}",
        f"0.70 [0.65, 0.75] n {n}", "+3.20 [2.20, 4.20] n 200",
    ]  # fmt: skip
    assert shown.loc["L^exp", "Gap AD − CN (years)"] == "+5.00 [4.00, 6.00] g 1.25 [1.05, 1.45] n 200"
    assert shown.loc["L^exp", "Site BAcc (%)"].startswith("55.0 [51.0, 59.0] chance 21.0")  # of shuffles, its own
    assert shown.loc["Mean predictor"].to_list()[1:] == ["–"] * 6
    assert block.content.strong == (0,)
    own = dataclasses.replace(evaluation, name="", results=evaluation.results[evaluation.results["task"] == "age"])
    assert cohort_headline(own) == []  # the run's own table has that


def test_what_an_earlier_report_left_is_deleted_and_nothing_else(folder, monkeypatch):
    monkeypatch.setattr(report_module, "sections", lambda page: [Section("x", "X", lambda page: [])])
    ours, other = folder / "figures", folder / "evaluations" / "adni" / "tables"
    for place in (ours, other, ours / "mine"):
        place.mkdir(parents=True)
    stale = [ours / "old.svg", ours / "old.pdf", other / "old.csv", other / "old.tex"]
    kept = [ours / "notes.txt", ours / "mine" / "old.svg", folder / "old.csv", other / "old.svg", ours / "new.csv"]
    for path in [*stale, *kept]:
        path.write_text("x")
    before = {path for path in folder.rglob("*") if path.is_file()}
    write_report(folder)
    assert before - {path for path in folder.rglob("*") if path.is_file()} == set(stale)


def test_what_this_report_writes_stays_but_for_forms_that_it_does_not_write(tmp_path):
    canvases = [Canvas(tmp_path), Canvas(tmp_path, pdf=False)]
    canvases[0].written.add("figures/a")
    canvases[1].written.add("figures/b")
    (tmp_path / "figures").mkdir()
    for name in ("a.svg", "a.pdf", "b.svg", "b.png", "b.pdf", "c.svg"):
        (tmp_path / "figures" / name).write_text("x")
    delete_others(canvases)
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"a.svg", "a.pdf", "b.svg", "b.png"}


def test_harmonisation_is_compared_on_the_same_scans(folder, figures):
    (table,) = [block.content for block in site(judged(folder)) if getattr(block.content, "name", "") == "age_after"]
    assert table.shown.map(str)[["Harmonised", "Before, on the same scans (years)"]].to_numpy().tolist() == [
        ["after ComBat", "4.87"], ["after removing site means", "4.87"],
    ]  # fmt: skip
    assert "4.87" not in table.note
    assert "sites shuffled" in [text.get_text() for text in figures["site_accuracy"].axes[0].get_yticklabels()]


def test_a_reason_says_once_which_rows_it_is_about():
    why = "not computed: no spread; 42 CN and 37 AD; 5 folds"
    rows = [result_row(*WHERE, "diagnosis", "brier", Interval(0.2, 0.1, 0.3), 79, "pair=CN-AD", f"predictor={name}")
            for name in ("gap", "probe", "scratch")]  # fmt: skip
    rows += [result_row(*WHERE, "diagnosis", "calibration_slope", Interval(np.nan, np.nan, np.nan), 79, "pair=CN-AD",
                        f"predictor={name}", "Wald", why) for name in ("gap", "scratch")]  # fmt: skip
    frame = results_frame(rows)
    parts = pd.DataFrame([parts_of(note) for note in frame["note"]])
    table = parts_table("t", "T", frame.join(parts), {"pair": "Pair", "predictor": "Predictor"},
                        [Column("brier", "Brier"), Column("calibration_slope", "Slope")])  # fmt: skip
    assert table.reasons == ("Not computed: no spread (Slope: gap; scratch).",)
    assert "42 CN" not in table.note


def test_fine_tuning_is_told_as_the_evaluation_did_it(folder):
    text = " ".join(task_methods([judged(folder)]))
    assert "Fine-tuning trained its last stages for 7 epochs." in text
    (folder / "evaluations" / "adni" / "evaluation.yaml").unlink()
    (folder / "finetune.yaml").write_text("epochs: 3\n")
    assert "Fine-tuning trained all of its weights for 3 epochs." in " ".join(task_methods([judged(folder)]))


def test_the_commands_of_every_evaluation_are_told_without_a_path(folder):
    run = read_run(folder)
    commands = reproduce(run, read_evaluations(run)).evaluated
    assert commands == ["brainage evaluate RUN", "brainage evaluate RUN --on adni data.root=DATA"]
    (folder / "results.csv").unlink()
    assert reproduce(read_run(folder)).evaluated == []
