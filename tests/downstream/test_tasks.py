"""All tasks of one readout, and the same of several seeds as one row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from brainage.config import EvaluateConfig
from brainage.downstream.results import missing_row, result_row, results_frame
from brainage.downstream.tasks import frames_of, merge, over_seeds, run_tasks, without_networks
from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval
from tests.downstream.diagnosed import cohort

CONFIG = EvaluateConfig(bootstrap=50, pairs=["CN-AD"])


def rows(estimate: float, *, metric: str = "auc", parts: tuple[str, ...] = ("pair=CN-AD", "predictor=gap")):
    found = Interval(estimate, estimate - 0.1, estimate + 0.1)
    return results_frame([result_row("exp", "c", "test_external", "diagnosis", metric, found, 40, *parts, "a note")])


def test_a_row_over_seeds_is_the_mean_of_estimates_and_ends_and_says_so():
    found = over_seeds([rows(0.6), rows(0.8)], [0, 1], asked=2).iloc[0]
    assert found["estimate"] == pytest.approx(0.7)
    assert found["low"] == pytest.approx(0.6)
    assert found["note"] == (
        "pair=CN-AD; predictor=gap; seeds 0, 1, sd over seeds 0.141; interval ends are means over seeds"
    )


def test_a_lost_seed_is_counted_and_a_number_that_one_seed_lacks_is_the_mean_of_the_others():
    assert "1 of 2 seeds" in over_seeds([rows(0.6)], [1], asked=2)["note"].iloc[0]
    parts = ("pair=CN-AD", "predictor=gap")
    lost = results_frame([missing_row("exp", "c", "test_external", "diagnosis", "auc", "it stopped", *parts)])
    found = over_seeds([rows(0.6), lost, rows(0.8)], [0, 1, 2], asked=3).iloc[0]
    assert found["estimate"] == pytest.approx(0.7)
    assert "2 of 3 seeds; seeds 0, 2, sd over seeds" in found["note"]
    nothing = over_seeds([lost, lost], [0, 1], asked=2).iloc[0]
    assert np.isnan(nothing["estimate"])
    assert nothing["note"].endswith("not computed: it stopped")


def test_without_an_interval_in_every_seed_there_is_none_and_no_word_of_it():
    bare = rows(0.6).assign(low=np.nan, high=np.nan)
    found = over_seeds([bare, rows(0.8)], [0, 1], asked=2).iloc[0]
    assert np.isnan(found["low"])
    assert "interval ends" not in found["note"]


def test_where_there_are_no_gaps_the_other_tasks_are_computed_or_say_so():
    readout, _ = cohort(60)
    constant = dataclasses.replace(readout, predicted_age_years=np.full(len(readout.table), 70.0))
    config = dataclasses.replace(CONFIG, tasks=["diagnosis", "longitudinal"])
    found = run_tasks(constant, config=config, seed=0)
    told = found.results.set_index("task")["estimate"].notna().groupby("task").any()
    assert told["diagnosis"]  # the embedding, age and sex need no gap
    assert not told[["gap", "longitudinal", "survival"]].any()


def test_trajectories_are_of_the_raw_gap_where_no_correction_could_be_fitted_and_say_so():
    readout, _ = cohort(60, scans=3)
    few = dataclasses.replace(readout, correct=readout.correct & (np.cumsum(readout.correct) <= 6))
    config = dataclasses.replace(CONFIG, tasks=["longitudinal"])
    found = run_tasks(few, config=config, seed=0).results
    assert found["note"].str.contains("no gap corrected by beheshti").any()


def test_p_values_are_not_averaged():
    assert over_seeds([rows(0.01, metric="p"), rows(0.9, metric="p")], [0, 1], asked=2).empty
    assert over_seeds([], [], asked=2).empty


def test_tasks_that_are_not_asked_for_are_not_computed():
    readout, _ = cohort(60)
    none = run_tasks(readout, config=EvaluateConfig(tasks=["age", "site"]), seed=0)
    assert none.results.empty
    assert none.frames == {}
    only = run_tasks(readout, config=EvaluateConfig(tasks=["diagnosis"], bootstrap=50, pairs=["CN-AD"]), seed=0)
    assert set(only.results["task"]) == {"diagnosis", "diagnosis_paired"}  # the gaps it reads are kept, not told
    assert set(only.frames) == {"gaps", "diagnosis"}


def test_every_task_of_a_readout_and_frames_of_several_networks():
    readout, _ = cohort(60)
    found = run_tasks(readout, config=CONFIG, seed=0)
    assert set(found.results["task"]) >= {"gap", "gap_contrast", "diagnosis", "longitudinal", "survival"}
    both = frames_of([found, found])
    assert len(both["gaps"]) == 2 * len(found.frames["gaps"])
    other = over_seeds([found.results, found.results], [0, 1], asked=2)
    with pytest.raises(DataError, match="two different rows"):  # one network's, or one of several seeds: not both
        merge([found, type(found)(other)])


def test_networks_that_were_not_trained_are_not_asked_for():
    config = EvaluateConfig(predictors=["gap", "finetuned", "scratch"])
    assert without_networks(config, {"scratch": lambda *_: np.zeros(1)}).predictors == ["gap", "scratch"]
