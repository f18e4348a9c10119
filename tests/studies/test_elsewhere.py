"""A study whose cells are judged on a second cohort: trained, judged, every checkpoint a point, all on the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from brainage.config import save_experiment
from brainage.downstream.mae_auc import FILE
from brainage.downstream.results import parts_of, read_results
from brainage.errors import ConfigError
from brainage.studies.cells import cells_of, state_of
from brainage.studies.comparison import gather
from brainage.studies.metrics import Metric
from brainage.studies.running import run_cells
from brainage.studies.stage import study_folder, study_stage
from brainage.studies.study import form_of, load_study
from data_modules.cohort import CohortDataModule
from tests.downstream.test_mae_auc import Patients
from tests.scans import VectorCohort, small_experiment

AUC = "on:diagnosis/test_external/auc pair=CN-AD predictor=probe"
STUDY = """
description: a test
base: {base}
arms:
  exp: {{}}
  l1: {{loss.name: l1}}
reference: exp
compare:
  - age/test_external/mae_years
  - on:diagnosis/test_external/auc predictor=probe pair=CN-AD
  - on:age/test_external/mae_years
seeds: [0, 1]
evaluate_on: {clinic}
evaluate_on_overrides: {{evaluate.pairs: [CN-AD]}}
small:
  simulate: {{subjects: 11}}
  simulate_on: {{layout: adni, subjects: 12, options: {{form: bids}}}}
"""
CLINIC = """
description: patients
data: {cohort: adni}
evaluate:
  tasks: [age, diagnosis]
  age_fitted_on: cohort
  predictors: [probe]
  baselines: []
  bootstrap: 20
"""


class Opener:
    """Opens the cohort that an experiment names: the vectors, or for `adni` the patients."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, []

    def __call__(self, experiment):
        self.opened.append(experiment.data.cohort)
        reader = Patients if experiment.data.cohort == "adni" else VectorCohort
        root = self.folder / reader.name
        root.mkdir(exist_ok=True)
        config = dataclasses.replace(
            experiment.data, root=str(root), store=str(root / "store"), prepare_workers=1,
            external_sites=["site3"],
        )  # fmt: skip
        return CohortDataModule(config, reader=reader(config.root, "vbm"), seed=experiment.seed)


class Ran(NamedTuple):
    file: str
    opener: Opener
    form: object
    cells: list
    gathered: object


def write_files(folder: Path, text: str = STUDY) -> str:
    save_experiment(
        small_experiment(
            folder / "runs", "trainer.epochs=1", "evaluate.losses=[]", "evaluate.baselines=[]", "evaluate.tasks=[age]",
            "checkpoint.keep=2",
        ),
        folder / "base.yaml",
    )  # fmt: skip
    (folder / "clinic.yaml").write_text(CLINIC, encoding="utf-8")
    file = folder / "mine.yaml"
    file.write_text(text.format(base=folder / "base.yaml", clinic=folder / "clinic.yaml"), encoding="utf-8")
    return str(file)


def run_study(file: str, opener: Opener, task: str = "all", words=(), *, small: bool = False, layouts=dict):
    return study_stage(file, list(words), small=small, task=task, only=-1, open_cohort=opener, layouts=layouts)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder = tmp_path_factory.mktemp("elsewhere")
    file, opener = write_files(folder), Opener(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("brainage.downstream.mae_auc.FEWEST_RUNS", 4)  # two trainings more would only take time
        assert run_study(file, opener) == {}
        form = form_of(load_study(file), small=False)
        cells = cells_of(form)
        return Ran(file, opener, form, cells, gather(form, cells))


def test_every_cell_is_trained_evaluated_and_judged_elsewhere(ran):
    assert [state_of(cell) for cell in ran.cells] == ["finished"] * 4
    for cell in ran.cells:
        results = read_results(cell.folder / "evaluations" / "clinic" / "results.csv")
        assert set(results["cohort"]) == {"adni"}
        assert set(results["task"]) >= {"age", "diagnosis"}


def test_the_long_table_tells_the_two_cohorts_apart(ran):
    long, cell = ran.gathered.long, ran.cells[1]
    mine = long[(long["arm"] == cell.arm) & (long["seed"] == cell.seed) & (long["model"] == "network")]
    mine = mine.set_index("metric")["estimate"]
    own = read_results(cell.folder / "results.csv")
    other = read_results(cell.folder / "evaluations" / "clinic" / "results.csv")
    for frame, metric in ((own, "age/test_external/mae_years"), (other, "on:age/test_external/mae_years")):
        rows = frame[(frame["run"] == "l1") & (frame["task"] == "age") & (frame["metric"] == "mae_years")]
        rows = rows[rows["split"] == "test_external"]
        rows = rows[[not parts_of(note) for note in rows["note"]]]
        assert [mine[metric]] == rows["estimate"].tolist()
    rows = other[(other["task"] == "diagnosis") & (other["metric"] == "auc")]
    assert [mine[AUC]] == rows["estimate"].tolist()


def test_arms_are_compared_on_the_other_cohort_too(ran):
    table = ran.gathered.comparisons.set_index("metric")
    aucs = ran.gathered.long.query("metric == @AUC and model == 'network'").pivot(
        index="seed", columns="arm", values="estimate"
    )
    assert table.loc[AUC, "difference"] == pytest.approx((aucs["l1"] - aucs["exp"]).mean())
    assert table.loc[AUC, "seeds"] == 2
    assert np.isnan(table.loc["on:age/test_external/mae_years", "people_low"])  # of the own cohort alone
    assert np.isfinite(table.loc["age/test_external/mae_years", "people_low"]).all()


def test_every_checkpoint_of_every_cell_is_a_point_and_correlations_are_over_trainings(ran):
    found = ran.gathered.points
    kept = {cell.folder.name: len(list(cell.folder.glob("checkpoints/*.ckpt"))) for cell in ran.cells}
    assert found.points.groupby("run").size().to_dict() == kept
    assert found.points.groupby("run")["last"].sum().eq(1).all()
    assert found.points.groupby("arm")["run"].nunique().to_dict() == {"exp": 2, "l1": 2}
    rows = {
        (parts_of(r.note).get("group", ""), parts_of(r.note)["subset"], r.metric): r for r in found.rows.itertuples()
    }
    assert len(rows) == 8
    last = found.points[found.points["last"]]
    assert rows["", "external", "pearson_r"].n == len(found.points)
    row = rows["last", "external", "pearson_r"]
    assert row.estimate == pytest.approx(last["mae_external_years"].corr(last["auc"]))
    assert (row.run, row.n) == ("networks", 4)


def test_the_page_shows_age_error_against_auc(ran):
    folder = study_folder(ran.form, ran.cells)
    page = (folder / "study.html").read_text(encoding="utf-8")
    assert "AUC of CN-AD against age error of" in page
    assert "AUC CN-AD probe" in page
    assert "jackknife" in page
    assert (folder / "figures" / "mae_auc_CN_AD.png").is_file()
    assert len(pd.read_csv(folder / "points.csv")) == len(ran.gathered.points.points)
    assert len(pd.read_csv(folder / "tables" / "mae_auc.csv")) == 8


def test_what_was_judged_is_not_judged_again_and_what_was_not_is(ran, capsys):
    before, cell = len(ran.opener.opened), ran.cells[-1]
    assert run_cells([cell], ran.opener) == {}
    assert len(ran.opener.opened) == before
    assert "finished before" in capsys.readouterr().out
    (cell.folder / FILE).unlink()
    assert state_of(cell) == "trained"
    stamp = (cell.folder / "results.csv").stat().st_mtime_ns
    assert run_cells([cell], ran.opener) == {}
    assert state_of(cell) == "finished"
    assert (cell.folder / "results.csv").stat().st_mtime_ns == stamp  # the own cohort is not evaluated again
    assert ran.opener.opened[before:] == ["openbhb", "adni"]


def test_words_for_the_other_cohort_reach_it_alone(ran):
    cells = cells_of(ran.form, ["on.evaluate.bootstrap=30"])
    assert [cell.folder for cell in cells] == [cell.folder for cell in ran.cells]
    assert state_of(cells[0]) == "trained"  # judged otherwise than asked
    moved = cells_of(ran.form, ["on.data.root=/elsewhere"])
    assert state_of(moved[0]) == "finished"  # where a cohort lies changes no number
    with pytest.raises(ConfigError, match=r"unknown key 'evaluate.bootstap'"):
        state_of(cells_of(ran.form, ["on.evaluate.bootstap=30"])[0])


def test_an_evaluation_that_would_be_another_training_is_refused_by_name(ran):
    with pytest.raises(ConfigError, match=r"evaluate_on .*: loss.name=l1: exp-seed0 was trained"):
        state_of(cells_of(ran.form, ["on.loss.name=l1"])[0])


def test_the_small_form_simulates_both_cohorts_and_prepares_both_stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {}

    def writer(layout):
        return lambda out, *, on_progress, **keywords: asked.update({layout: {**keywords, "out": out}})

    opener = Opener(tmp_path)
    layouts = {"openbhb": writer("openbhb"), "adni": writer("adni")}
    run_study(write_files(tmp_path), opener, "prepare", small=True, layouts=lambda: layouts)
    assert asked["openbhb"]["subjects"] == 11
    assert (asked["adni"]["subjects"], asked["adni"]["form"]) == (12, "bids")
    assert sorted(opener.opened) == ["adni", "openbhb"]
    cells = cells_of(form_of(load_study(str(tmp_path / "mine.yaml")), small=True))
    assert f'data.root="{asked["adni"]["out"]}"' in cells[0].on.words


TWO = "base: demo\nreference: a\narms:\n  a: {loss.name: exp}\n  b: {loss.name: l1}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("compare: ['on:age/test_external/mae_years']\n", "there is no other cohort; say evaluate_on"),
        ("evaluate_on: adni\n", "evaluate_on and small.simulate_on: expected both or neither"),
        ("small: {simulate_on: {layout: adni}}\n", "evaluate_on and small.simulate_on: expected both or neither"),
        ("evaluate_on_overrides: {evaluate.bootstrap: 9}\n", "evaluate_on_overrides: there is no other cohort"),
        ("compare: [diagnosis/test_external/auc pairs=CN-AD]\n", "'pairs': expected word=name"),
        ("compare: [diagnosis/test_external/auc pair]\n", "'pair': expected word=name"),
        ("small: {simulate_on: {peple: 3}}\n", "unknown key 'small.simulate_on.peple'"),
    ],
)
def test_a_mistake_about_the_other_cohort_is_refused_by_name(tmp_path, text, said):
    file = tmp_path / "mine.yaml"
    file.write_text(TWO + text, encoding="utf-8")
    with pytest.raises(ConfigError, match=said):
        load_study(str(file))


def test_an_unknown_evaluation_and_words_without_one_are_refused(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(TWO + "evaluate_on: adnni\nsmall: {simulate_on: {layout: adni}}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"evaluate_on: .*did you mean 'adni'"):
        cells_of(form_of(load_study(str(file)), small=False))
    file.write_text(TWO, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"on.data.root=x: .* has no evaluate_on"):
        cells_of(form_of(load_study(str(file)), small=False), ["on.data.root=x"])


def test_metrics_are_spelled_one_way():
    assert str(Metric.of("on:diagnosis/test_external/auc predictor=probe pair=CN-AD")) == AUC
    assert Metric.of("challenge/test_internal+test_external/challenge_score").split == "test_internal+test_external"
    assert not Metric.of("age/test_internal/r2").on
