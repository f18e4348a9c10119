"""A small study from its file to its page: run, continued, one cell alone, a failing cell, subsets, one seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_rel

from brainage.config import save_experiment
from brainage.data.splits import read_split
from brainage.downstream.age import paired_mae_difference
from brainage.downstream.results import read_results
from brainage.errors import ConfigError
from brainage.studies.cells import FINISHED_STATE, cells_of, state_of
from brainage.studies.comparison import gather
from brainage.studies.running import run_cells
from brainage.studies.stage import study_folder, study_stage
from brainage.studies.study import form_of, load_study
from data_modules.cohort import CohortDataModule
from tests.scans import VectorCohort, small_experiment

METRICS = ["age/test_external/mae_years", "site/test_internal/balanced_accuracy"]
STUDY = """
description: a test
base: {base}
arms:
  exp: {{}}
  huge: {{loss.name: l2, optim.name: sgd, optim.lr: 1.0e+30}}
  l1: {{loss.name: l1}}
reference: exp
compare: [age/test_external/mae_years, site/test_internal/balanced_accuracy]
baselines: [ridge]
seeds: [0, 1]
"""
SUBSETS = """
description: a test
base: {base}
overrides: {{evaluate.fit_splits: [train]}}
arms:
  people_14: {{subset.people: 14}}
  people_9: {{subset.people: 9}}
  sites_2: {{subset.sites: 2, subset.people: 9}}
reference: people_14
compare: [age/test_external/mae_years, site/test_internal/balanced_accuracy]
seeds: [3]
small:
  simulate: {{subjects: 11, seed: 4, options: {{visits: 2}}}}
"""


class Ran(NamedTuple):
    file: str
    failed: dict
    form: object
    cells: list
    gathered: object


class Opener:
    """Opens the vector cohort; counts how often, and can be told to be interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened, self.interrupt_at = folder, 0, -1

    def __call__(self, experiment):
        self.opened += 1
        if self.opened == self.interrupt_at:
            raise KeyboardInterrupt
        config = dataclasses.replace(
            experiment.data, root=str(self.folder), store=str(self.folder / "store"), prepare_workers=1
        )
        return CohortDataModule(config, reader=VectorCohort(config.root, "vbm"), seed=experiment.seed)


def write_study(folder: Path, text: str) -> str:
    base, file = folder / "base.yaml", folder / "mine.yaml"
    experiment = small_experiment(folder / "runs", "trainer.epochs=1", "evaluate.losses=[]", "data.val_fraction=0.2")
    save_experiment(experiment, base)
    file.write_text(text.format(base=base), encoding="utf-8")
    return str(file)


def cells_in(file: str, *, small: bool = False):
    form = form_of(load_study(file), small=small)
    return form, cells_of(form)


def run_study(file: str, opener: Opener, task: str = "all", only: int = -1, *, small: bool = False, layouts=dict):
    return study_stage(file, [], small=small, task=task, only=only, open_cohort=opener, layouts=layouts)


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    """Six cells, of which two fail; interrupted at the second cell, then run to the end."""
    folder = tmp_path_factory.mktemp("study")
    file, opener = write_study(folder, STUDY), Opener(folder)
    opener.interrupt_at = 2
    with pytest.raises(KeyboardInterrupt):
        run_study(file, opener)
    form, cells = cells_in(file)
    assert [state_of(cell) for cell in cells] == ["finished", *["missing"] * 5]
    first = (cells[0].folder / "metrics.jsonl").read_bytes()
    failed = run_study(file, opener)
    assert (cells[0].folder / "metrics.jsonl").read_bytes() == first
    return Ran(file, failed, form, cells, gather(form, cells))


def test_a_failed_cell_stops_no_other_and_is_named_with_its_reason(ran):
    assert set(ran.failed) == {"huge-seed0", "huge-seed1"}
    assert "not finite" in ran.failed["huge-seed0"]
    assert [state_of(cell) for cell in ran.cells] == ["finished", "failed", "finished"] * 2
    assert set(ran.gathered.unfinished) == set(ran.failed)
    assert "not finite" in ran.gathered.unfinished["huge-seed1"]


def test_what_is_finished_is_not_run_again(ran, capsys):
    opener = Opener(Path(ran.file).parent)
    finished = [cell for cell in ran.cells if state_of(cell) == FINISHED_STATE]
    assert run_cells(finished, opener) == {}
    assert opener.opened == 0
    assert capsys.readouterr().out.count("finished before") == 4


def test_a_cell_evaluated_otherwise_is_not_finished(ran):
    study = load_study(ran.file)
    again = cells_of(form_of(study, small=False), ["evaluate.bootstrap=60"])
    assert state_of(again[0]) == "trained"
    fewer = cells_of(form_of(dataclasses.replace(study, baselines=[]), small=False))
    assert state_of(fewer[0]) == "finished"
    more = cells_of(form_of(dataclasses.replace(study, baselines=["ridge", "pca_ridge"]), small=False))
    assert [state_of(cell) for cell in more[:3]] == ["trained", "failed", "finished"]


def test_the_long_table_holds_the_numbers_of_the_cells(ran):
    long = ran.gathered.long
    for cell in (ran.cells[0], ran.cells[5]):
        results = read_results(cell.folder / "results.csv").query("task == 'age' and metric == 'mae_years'")
        own = results[(results["run"] == cell.experiment.loss.name) & (results["split"] == "test_external")]
        (wanted,) = own["estimate"]
        rows = long[(long["arm"] == cell.arm) & (long["seed"] == cell.seed) & (long["metric"] == METRICS[0])]
        assert rows.loc[rows["model"] == "network", "estimate"].tolist() == [wanted]
    assert set(long["model"]) == {"network", "own head", "ridge", "mean_predictor", "chance"}


def test_differences_are_paired_by_seed(ran):
    long, table = ran.gathered.long, ran.gathered.comparisons
    for metric in METRICS:
        values = long[(long["metric"] == metric) & (long["model"] == "network")].pivot(index="seed", columns="arm")
        values = values["estimate"]
        row = table[(table["arm"] == "l1") & (table["metric"] == metric)].iloc[0]
        assert row["difference"] == pytest.approx((values["l1"] - values["exp"]).mean())
        expected = ttest_rel(values["l1"], values["exp"])
        low, high = expected.confidence_interval()
        p = np.nan_to_num(expected.pvalue, nan=1.0)  # two differences of 0
        assert (row["low"], row["high"], row["p"]) == pytest.approx((low, high, p))
        assert row["seeds"] == 2
    assert np.isnan(table["people_low"]).tolist() == [metric != METRICS[0] for metric in table["metric"]]


def test_the_interval_over_people_is_that_of_the_evaluation(ran):
    frames = []
    for arm, loss in (("l1", "l1"), ("exp", "exp")):
        parts = [pd.read_parquet(cell.folder / "predictions.parquet") for cell in ran.cells if cell.arm == arm]
        together = pd.concat(parts)
        frames.append(together[together["model"] == loss])
    config = ran.cells[0].experiment.evaluate
    found = paired_mae_difference(*frames, cohort="vectors", config=config, seed=0).query("split == 'test_external'")
    row = ran.gathered.comparisons.query("arm == 'l1' and metric == @METRICS[0]").iloc[0]
    assert row["difference"] == pytest.approx(found["estimate"].iloc[0])
    assert (row["people_low"], row["people_high"]) == (found["low"].iloc[0], found["high"].iloc[0])


def test_the_page_and_the_tables_show_what_was_found(ran):
    folder = study_folder(ran.form, ran.cells)
    page = (folder / "study.html").read_text(encoding="utf-8")
    summary = pd.read_csv(folder / "tables" / "summary.csv").set_index(["arm", "metric"])
    mean = summary.loc[("l1 (own head)", METRICS[0]), "estimate"]
    assert f"{mean:.2f}" in page
    assert "4 of 6 networks" in page
    assert "MAE external (years): 10 people, 10 scans; ages " in page
    assert "huge-seed1" in page
    assert len(pd.read_csv(folder / "results.csv")) == len(ran.gathered.long)
    assert r"\toprule" in (folder / "tables" / "comparisons.tex").read_text(encoding="utf-8")
    assert (folder / "figures" / "age_test_external_mae_years.png").is_file()
    assert not [who for who in ("p001", "p017") if who in page]


@pytest.fixture(scope="module")
def scaled(tmp_path_factory):
    """Three cells of one seed on parts of train; the second was run alone before."""
    folder = tmp_path_factory.mktemp("scaling")
    file, opener = write_study(folder, SUBSETS), Opener(folder)
    form, cells = cells_in(file)
    assert run_study(file, opener, "only", 1) == {}
    assert [state_of(cell) for cell in cells] == ["missing", "finished", "missing"]
    assert not study_folder(form, cells).exists()
    assert run_study(file, opener) == {}
    return form, cells


def test_a_cell_that_is_not_there_is_refused_and_the_list_shows_those_that_are(scaled, capsys):
    file = str(Path(scaled[1][0].experiment.runs).parents[2] / "mine.yaml")
    with pytest.raises(ConfigError, match="cells 0 to 2"):
        run_study(file, Opener(Path()), "only", 3)
    run_study(file, Opener(Path()), "list")
    shown = capsys.readouterr().out
    assert all(arm in shown for arm in scaled[0].arms)
    assert shown.count("finished") == 3


def test_a_cell_of_a_subset_trains_on_just_these_people(scaled):
    _, cells = scaled
    train = {}
    for cell in cells:
        used = pd.read_parquet(cell.folder / "table.parquet").query("split == 'train'")
        train[cell.arm] = set(used["participant_id"])
        split = read_split(cell.experiment.data.split)
        assert set(split.loc[split["split"] == "train", "participant_id"]) == train[cell.arm]
    assert [len(people) for people in train.values()] == [14, 9, 9]
    assert train["people_9"] < train["people_14"]
    used = pd.read_parquet(cells[2].folder / "table.parquet").query("split == 'train'")
    assert used["site"].nunique() == 2


def test_one_seed_has_a_difference_and_no_interval_over_seeds(scaled):
    gathered = gather(*scaled)
    row = gathered.comparisons.query("arm == 'people_9' and metric == @METRICS[0]").iloc[0]
    assert np.isfinite(row["difference"])
    assert np.isnan(row[["low", "high", "p", "p_holm"]].astype(float)).all()
    assert row["people_low"] <= row["difference"] <= row["people_high"]
    assert row["note"] == "one seed: no spread"
    networks = gathered.summary[gathered.summary["arm"].isin(["people_9", "people_14"])]
    assert networks[["low", "high"]].isna().all(axis=None)


def test_scores_of_other_people_are_not_compared(scaled):
    row = gather(*scaled).comparisons.query("arm == 'sites_2' and metric == @METRICS[1]").iloc[0]
    assert np.isnan(row["difference"])
    assert "other people were scored" in row["note"]


def test_the_small_form_is_run_on_the_cohort_that_it_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = {}

    def write_openbhb(out, *, on_progress, **keywords):
        asked.update(keywords, out=out)

    opener = Opener(tmp_path)
    file = write_study(tmp_path, SUBSETS)
    run_study(file, opener, "prepare", small=True, layouts=lambda: {"openbhb": write_openbhb})
    assert {key: asked[key] for key in ("subjects", "seed", "visits")} == {"subjects": 11, "seed": 4, "visits": 2}
    form, cells = cells_in(file, small=True)
    assert Path(cells[0].experiment.data.root) == asked["out"]
    assert all(Path(cell.experiment.data.split).is_file() for cell in cells)
    assert study_folder(form, cells) == tmp_path / "runs" / "studies" / "mine_small"
