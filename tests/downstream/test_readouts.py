"""Readouts of a run's own cohort and of another one: every age in them is by a model of other people."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge

from brainage.config import EvaluateConfig
from brainage.downstream.age import evaluate_age
from brainage.downstream.features import Features
from brainage.downstream.probes import PENALTIES
from brainage.downstream.readouts import Reference, cohort_readout, own_readout, reference_mean_age
from brainage.errors import DataError, LeakageError

CONFIG = EvaluateConfig(bootstrap=20)
D = 4


def people(n: int, splits: tuple[str, ...], *, ill: float = 0.0, seed: int = 0, cohort: str = "c") -> pd.DataFrame:
    """One scan a person; those of the share `ill` have AD."""
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "cohort": cohort, "participant_id": [f"p{i:03d}" for i in range(n)], "session_id": "1", "run": "1",
            "split": np.resize(splits, n), "site": np.resize(["a", "b", "c"], n), "age_years": rng.uniform(50, 90, n),
            "sex": np.resize(["F", "M"], n), "visit_years": 0.0,
            "diagnosis": pd.array(np.where(rng.random(n) < ill, "AD", "CN"), dtype="string"),
        }
    )  # fmt: skip


def features_of(table: pd.DataFrame, *, noise: float = 1.0, seed: int = 1, seen=None) -> Features:
    rng = np.random.default_rng(seed)
    values = table["age_years"].to_numpy()[:, None] * np.linspace(1, 2, D) + rng.normal(size=(len(table), D)) * noise
    return Features("exp", 0, table.iloc[:, :4], values.astype(np.float32), "trunk", seen)


def own(table: pd.DataFrame, features: Features, config: EvaluateConfig = CONFIG):
    predictions = evaluate_age(features, table, cohort="c", config=config, seed=0).predictions
    return own_readout(features, table, predictions, cohort="c", config=config, seed=0), predictions


def test_tests_are_judged_with_the_ages_of_the_age_task_and_val_corrects():
    table = people(120, ("train", "train", "val", "test_internal", "test_external"))
    features = features_of(table)
    found, predictions = own(table, features)
    tested = table["split"].isin(["test_internal", "test_external"]).to_numpy()
    assert (found.score == tested).all()
    assert (found.correct == (table["split"] == "val")).all()
    np.testing.assert_array_equal(found.predicted_age_years[tested], predictions["predicted_age_years"])
    assert np.isnan(found.predicted_age_years[(table["split"] == "train").to_numpy()]).all()


def test_ages_of_the_correction_are_by_a_model_of_the_other_fitted_people():
    table = people(120, ("train", "train", "val", "test_internal"))
    features = features_of(table)
    found, _ = own(table, features)
    train, val = ((table["split"] == name).to_numpy() for name in ("train", "val"))
    X, y = features.values.astype(float), table["age_years"].to_numpy()
    models = [Ridge(alpha=alpha).fit(X[train], y[train]).predict(X[val]) for alpha in PENALTIES]
    assert min(np.abs(model - found.predicted_age_years[val]).max() for model in models) < 1e-6


def test_a_person_of_the_correction_does_not_change_an_own_age():
    """Memory of one's own age would show: the age of one val person is moved by 30 years."""
    table = people(100, ("train", "val", "test_internal"))
    moved = table.copy()
    who = table.index[table["split"] == "val"][0]
    moved.loc[who, "age_years"] += 30
    features = features_of(table)
    for splits in (["val"], ["train", "val"]):  # by the other splits, and by folds
        config = dataclasses.replace(CONFIG, correct_on=splits)
        ages = [own(t, features, config)[0].predicted_age_years[who] for t in (table, moved)]
        assert ages[0] == pytest.approx(ages[1], abs=1e-9), splits


def test_patients_of_val_do_not_correct_and_too_few_people_are_said():
    table = people(120, ("train", "train", "val", "test_internal"), ill=0.3)
    found, _ = own(table, features_of(table))
    assert not found.correct[(table["diagnosis"] == "AD").to_numpy()].any()
    few = people(60, ("train", "test_internal"))
    found, _ = own(few, features_of(few))
    assert not found.correct.any()
    assert "0 healthy people to correct the age bias on" in found.note


def test_another_cohort_is_cross_fitted_over_its_healthy_people():
    table = people(90, ("train",), ill=0.3)
    features = features_of(table)
    found = cohort_readout(features, table, None, cohort="c", config=CONFIG, seed=0)
    assert found.score.all()
    assert set(found.table["split"]) == {"test_external"}
    well = (table["diagnosis"] == "CN").to_numpy()
    assert (found.correct == well).all()
    moved = table.copy()
    who = int(np.flatnonzero(well)[3])
    moved.loc[who, "age_years"] += 30
    again = cohort_readout(features, moved, None, cohort="c", config=CONFIG, seed=0)
    assert found.predicted_age_years[who] == pytest.approx(again.predicted_age_years[who], abs=1e-9)
    ill = table.copy()
    ill.loc[~well, "age_years"] += 30  # nor do patients train the age model
    same = cohort_readout(features, ill, None, cohort="c", config=CONFIG, seed=0)
    np.testing.assert_allclose(found.predicted_age_years, same.predicted_age_years)


def test_the_runs_own_healthy_people_give_the_ages_where_they_are_asked_to():
    theirs = people(80, ("train", "test_internal"), ill=0.2, cohort="run")
    reference = Reference(features_of(theirs), theirs, "run")
    table = people(50, ("train",), ill=0.3, seed=5)
    features = features_of(table, seed=6)
    found = cohort_readout(features, table, reference, cohort="c", config=CONFIG, seed=0)
    fitted = ((theirs["split"] == "train") & (theirs["diagnosis"] == "CN")).to_numpy()
    X, y = reference.features.values.astype(float)[fitted], theirs["age_years"].to_numpy()[fitted]
    models = [Ridge(alpha=a).fit(X, y).predict(features.values.astype(float)) for a in PENALTIES]
    assert min(np.abs(model - found.predicted_age_years).max() for model in models) < 1e-6
    assert f"ridge on {fitted.sum()} healthy people of run" in found.note
    assert reference_mean_age(reference, table, CONFIG) == pytest.approx(y.mean())


def test_other_features_too_few_healthy_people_and_people_who_were_trained_on_are_refused():
    table = people(30, ("train",))
    with pytest.raises(DataError, match="5 healthy people to cross-fit an age model on, expected 6"):
        cohort_readout(features_of(table[:5]), table[:5], None, cohort="c", config=CONFIG, seed=0)
    wide = features_of(table.assign(cohort="run"))
    narrow = dataclasses.replace(wide, values=wide.values[:, :2])
    with pytest.raises(DataError, match="2 features in the run's own embeddings, 4 here"):
        cohort_readout(
            features_of(table),
            table,
            Reference(narrow, table.assign(cohort="run"), "run"),
            cohort="c",
            config=CONFIG,
            seed=0,
        )
    assert cohort_readout(features_of(table[:6]), table[:6], None, cohort="c", config=CONFIG, seed=0).score.all()
    seen = np.zeros(30, dtype=bool)
    seen[7] = True
    with pytest.raises(LeakageError, match="were trained on"):
        cohort_readout(features_of(table, seen=seen), table, None, cohort="c", config=CONFIG, seed=0)


def test_the_runs_own_people_are_not_judged_by_an_age_model_that_was_fitted_on_them():
    theirs = people(80, ("train", "val", "test_internal"))
    reference = Reference(features_of(theirs), theirs, "run")
    val = theirs[theirs["split"] == "val"]
    with pytest.raises(LeakageError, match=r"age model of run: 27 people are fitted on and judged too, first c/p001"):
        cohort_readout(features_of(val), val, reference, cohort="c", config=CONFIG, seed=0)


def test_who_is_healthy_is_known_from_all_of_the_runs_scans():
    """Diagnoses that only the tests have: nobody of train is known to be healthy."""
    theirs = people(60, ("train", "test_internal"), cohort="run")
    theirs["diagnosis"] = theirs["diagnosis"].mask(theirs["split"] == "train")
    table = people(20, ("train",), seed=3)
    reference = Reference(features_of(theirs), theirs, "run")
    with pytest.raises(DataError, match="run: 0 people known to be healthy in train and val"):
        cohort_readout(features_of(table), table, reference, cohort="c", config=CONFIG, seed=0)
    theirs["diagnosis"] = pd.array([None] * 60, dtype="string")
    found = cohort_readout(features_of(table), table, reference, cohort="c", config=CONFIG, seed=0)
    assert "of run, no scan of this cohort has a diagnosis: everybody counts as healthy" in found.note


def test_people_whom_the_encoder_was_trained_on_do_not_correct():
    table = people(90, ("train", "val", "test_internal"))
    seen = (table["split"] == "train").to_numpy()
    features = features_of(table, seen=seen)
    assert own(table, features)[0].correct.any()
    with pytest.raises(LeakageError, match="were trained on"):
        own(table, features, dataclasses.replace(CONFIG, correct_on=["train"]))
