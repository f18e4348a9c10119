"""The challenge's three-fold mode against its probes written out with scikit-learn, and folds that are not those."""

import json
import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold

from brainage.config import EvaluateConfig
from brainage.downstream.challenge import ChallengeFold, read_challenge_folds, score_challenge_folds
from brainage.downstream.features import join
from brainage.downstream.results import parts_of
from brainage.errors import DataError, LeakageError

from .cohort import make_features, make_table

GRID = [0.01, 0.1, 1.0, 10.0, 100.0]


@pytest.fixture(scope="module")
def kit():
    """(table of one row a person, its features, three folds with other sites left out of each)."""
    table = make_table(train=150, val=0, internal=0, external=0, sites=6)
    rng = np.random.default_rng(0)
    folds = []
    for fold in range(3):
        outside = table["site"].isin([f"site{2 * fold}", f"site{2 * fold + 1}"]).to_numpy()
        inside = ~outside & (rng.random(len(table)) < 0.25)
        folds.append(ChallengeFold(f"fold{fold}", *map(np.flatnonzero, (~outside & ~inside, inside, outside))))
    return table, make_features(table, site_signal=1.0), folds


def known(published=False):
    return {"cohort": "demo", "seed": 0, "config": EvaluateConfig(site_probe_published=published)}


def test_every_fold_is_scored_as_the_kit_scores_it(kit):
    table, features, folds = kit
    results = score_challenge_folds(features, table, folds, **known(published=True))
    rows = {
        (parts_of(row["note"])["folds"], row["split"], row["metric"]): row["estimate"]
        for row in results[results["task"] == "challenge_folds_published"].to_dict("records")
    }
    X, ages = join(features, table).astype(np.float64), table["age_years"].to_numpy()
    sites, scores = table["site"].to_numpy(dtype=str), []
    for fold in folds:
        ridge = GridSearchCV(Ridge(), {"alpha": GRID}, cv=KFold(5), scoring="r2").fit(X[fold.train], ages[fold.train])
        saga = LogisticRegression(solver="saga", max_iter=150, random_state=0)
        search = GridSearchCV(saga, {"C": GRID}, cv=StratifiedKFold(5), scoring="balanced_accuracy")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            search.fit(X[fold.train], sites[fold.train])
        near, far = (
            mean_absolute_error(ages[part], ridge.predict(X[part])) for part in (fold.internal_test, fold.external_test)
        )
        accuracy = balanced_accuracy_score(sites[fold.internal_test], search.predict(X[fold.internal_test]))
        scores.append((near, far, accuracy, accuracy**0.3 * far))
    names = [
        ("test_internal", "mae_years"),
        ("test_external", "mae_years"),
        ("test_internal", "balanced_accuracy"),
        ("test_internal+test_external", "challenge_score"),
    ]
    for part, expected in zip(["fold0", "fold1", "fold2", "mean"], [*scores, np.mean(scores, axis=0)], strict=True):
        np.testing.assert_allclose([rows[part, *name] for name in names], expected, rtol=1e-8)


def test_the_converged_site_probe_is_the_default_and_ages_do_not_depend_on_it(kit):
    table, features, folds = kit
    alone = score_challenge_folds(features, table, folds, **known())
    assert set(alone["task"]) == {"challenge_folds"}
    assert alone["note"].str.contains("lbfgs converged").sum() == 12
    mean = alone[alone["note"].str.startswith("folds=mean")]
    assert len(mean) == 4
    outside = mean[mean["split"] == "test_external"]
    assert outside["n"].tolist() == [len(table)]  # every site is outside of one fold
    assert mean["note"].str.contains("mean of 3 folds, which share people").all()


def test_one_set_of_features_a_fold_is_used_for_that_fold(kit):
    table, features, folds = kit
    others = [features, make_features(table, noise_years=30.0), features]
    same, mixed = (score_challenge_folds(f, table, folds, **known())["estimate"] for f in (features, others))
    changed = (same != mixed).to_numpy().reshape(4, 4).any(axis=1)
    assert changed.tolist() == [False, True, False, True]
    with pytest.raises(DataError, match="found 2 for 3 folds"):
        score_challenge_folds(others[:2], table, folds, **known())


@pytest.mark.parametrize(
    ("part", "rows", "error", "message"),
    [
        (
            "internal_test",
            lambda fold: fold.external_test,
            DataError,
            "internal_test are of sites unknown to its train",
        ),
        ("external_test", lambda fold: fold.internal_test, DataError, "external_test are of sites known to its train"),
        ("external_test", lambda fold: fold.train[:3], LeakageError, "of people who are scored too"),
        ("external_test", lambda fold: fold.train[:0], DataError, "fold0: no row in external_test"),
        ("train", lambda fold: np.append(fold.train, 900), DataError, "row 900 in train, but the table has 150"),
    ],
)
def test_folds_that_are_not_the_challenge_s_are_refused(kit, part, rows, error, message):
    table, features, folds = kit
    with pytest.raises(error, match=message):
        score_challenge_folds(features, table, [folds[0]._replace(**{part: rows(folds[0])})], **known())


def test_the_kit_s_file_is_read_and_others_are_refused(kit, tmp_path):
    folds = kit[2]
    file = tmp_path / "cv_splits_indices.json"
    parts = ("train", "internal_test", "external_test")
    kept = {fold.name: {part: getattr(fold, part).tolist() for part in parts} for fold in folds}
    file.write_text(json.dumps(kept))
    for found, fold in zip(read_challenge_folds(file), folds, strict=True):
        assert found.name == fold.name
        for part in parts:
            np.testing.assert_array_equal(getattr(found, part), getattr(fold, part))
    for broken, message in (
        ({"fold0": {"train": [0], "test": [1]}}, "expected"),
        ({"fold0": {**kept["fold0"], "train": [0.5]}}, "expected"),
        ({"fold0": {**kept["fold0"], "train": kept["fold0"]["internal_test"]}}, "fold0 holds a row twice"),
        ({}, "expected"),
    ):
        file.write_text(json.dumps(broken))
        with pytest.raises(DataError, match=message):
            read_challenge_folds(file)
    file.write_text("{")
    with pytest.raises(DataError, match="not readable as the challenge's folds"):
        read_challenge_folds(file)
