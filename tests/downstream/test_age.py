"""Age evaluation against scikit-learn, brute force over seeds, and the refusals that keep scores honest."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.model_selection import GridSearchCV

from brainage.config import EvaluateConfig
from brainage.data.table import PERSON
from brainage.downstream.age import (
    evaluate_age,
    mean_age,
    paired_mae_difference,
    pool_seeds,
    score_predictions,
)
from brainage.downstream.features import join
from brainage.downstream.predictions import PREDICTION_COLUMNS, predictions_frame
from brainage.downstream.probes import PENALTIES, grouped_folds, people
from brainage.errors import DataError, LeakageError

from .cohort import make_features, make_table

CONFIG = EvaluateConfig(bootstrap=200)
KNOWN = {"cohort": "demo", "config": CONFIG, "seed": 3}


def row(results, split, metric="mae_years", run="exp", task="age"):
    kept = results[(results[["run", "split", "task", "metric"]] == [run, split, task, metric]).all(axis=1)]
    assert len(kept) == 1, f"{len(kept)} rows of {run}/{split}/{task}/{metric}"
    return kept.iloc[0]


def test_the_age_of_unseen_people_is_the_one_that_scikit_learn_predicts():
    table = make_table(scans=2)
    features = make_features(table)
    found = evaluate_age(features, table, **KNOWN)
    fitted = table[table["split"].isin(["train", "val"])]
    folds = grouped_folds(people(fitted), KNOWN["seed"])
    search = GridSearchCV(Ridge(), {"alpha": PENALTIES}, scoring="r2", cv=folds)
    search.fit(join(features, fitted).astype(np.float64), fitted["age_years"])
    assert list(found.predictions.columns) == PREDICTION_COLUMNS
    for split, count in {"test_internal": 24, "test_external": 20}.items():
        scored = table[table["split"] == split]
        expected = search.predict(join(features, scored).astype(np.float64))
        ours = found.predictions[found.predictions["split"] == split]
        np.testing.assert_allclose(ours["predicted_age_years"], expected, rtol=1e-8)
        mae, mean = row(found.results, split), row(found.results, split, run="mean_predictor")
        assert mae["estimate"] == pytest.approx(mean_absolute_error(scored["age_years"], expected))
        assert row(found.results, split, "r2")["estimate"] == pytest.approx(r2_score(scored["age_years"], expected))
        average = np.full(len(scored), fitted["age_years"].mean())
        assert mean["estimate"] == pytest.approx(mean_absolute_error(scored["age_years"], average))
        assert mae["low"] < mae["estimate"] < mae["high"] < mean["low"]
        assert mae["n"] == count
        ages = f"ages {scored['age_years'].min():.1f}-{scored['age_years'].max():.1f} years"
        assert mae["note"] == f"{2 * count} scans; {ages}; ridge on 140 scans, alpha {search.best_params_['alpha']:g}"
    assert set(found.predictions["split"]) == {"test_internal", "test_external"}


def test_the_order_of_the_table_changes_nothing():
    table = make_table()
    features = make_features(table)
    shuffled = table.sample(frac=1, random_state=5)
    one, other = (evaluate_age(features, t, **KNOWN).results for t in (table, shuffled))
    pd.testing.assert_frame_equal(one, other, check_exact=False, rtol=1e-9)


def test_a_subject_in_two_splits_is_never_scored():
    table = make_table()
    moved = table[table["split"] == "train"][:1].assign(split="test_external", session_id="again")
    both = pd.concat([table, moved], ignore_index=True)
    with pytest.raises(LeakageError, match="is in test_external and train"):
        evaluate_age(make_features(both), both, **KNOWN)
    with pytest.raises(LeakageError, match="is in test_external and train"):
        predictions_frame(both, np.zeros(len(both)), model="l1", seed=0)
    with pytest.raises(LeakageError, match="holds test_internal"):
        evaluate_age(
            make_features(table), table, cohort="demo", seed=0, config=EvaluateConfig(fit_splits=["test_internal"])
        )


def test_fitted_people_are_scored_only_when_asked_for_and_marked():
    table = make_table()
    found = evaluate_age(make_features(table), table, in_sample=True, **KNOWN)
    assert row(found.results, "train")["note"].endswith("in-sample: fitted on these people")
    assert row(found.results, "val")["note"].endswith("in-sample: fitted on these people")
    assert "in-sample" not in row(found.results, "test_internal")["note"]
    with pytest.raises(LeakageError, match="people of train"):
        score_predictions(found.predictions, **KNOWN)


def test_a_scored_scan_without_a_vector_is_refused():
    table = make_table()
    features = make_features(table)
    external = features.keys["participant_id"].str.startswith("ext").to_numpy()
    fewer = dataclasses.replace(features, keys=features.keys[~external], values=features.values[~external])
    with pytest.raises(DataError, match="20 of 44 scans have no vector"):
        evaluate_age(fewer, table, **KNOWN)


def test_a_test_without_scans_is_a_visible_row():
    table = make_table(external=0)
    results = evaluate_age(make_features(table), table, **KNOWN).results
    assert np.isnan(row(results, "test_external")["estimate"])
    assert row(results, "test_external")["note"] == "not computed: no scan in test_external"
    alone = make_table(internal=0, external=0)
    assert evaluate_age(make_features(alone), alone, **KNOWN).results["estimate"].isna().tolist() == [True, True]


def test_a_network_that_predicts_age_itself_is_scored_the_same_way():
    table = make_table()
    scored = table[table["split"].str.startswith("test")]
    own = predictions_frame(scored, scored["age_years"].to_numpy() + 2.0, model="l1", seed=1)
    results = score_predictions(own, mean_age_years=mean_age(table, CONFIG), note="own head", **KNOWN)
    assert row(results, "test_external", run="l1")["estimate"] == pytest.approx(2)
    assert row(results, "test_external", "bias_years", "l1")["estimate"] == pytest.approx(2)
    assert row(results, "test_external", "age_slope", "l1")["estimate"] == pytest.approx(1)
    probe = evaluate_age(make_features(table), table, **KNOWN).results
    mean = row(probe, "test_external", run="mean_predictor")
    pd.testing.assert_series_equal(row(results, "test_external", run="mean_predictor"), mean, check_names=False)
    with pytest.raises(DataError, match=r"'l1' \(seed 1\): 1 are not finite, first demo/ext000"):
        predictions_frame(scored, np.r_[np.nan, np.zeros(len(scored) - 1)], model="l1", seed=1)
    with pytest.raises(DataError, match=r"expected shape \(44,\), found \(2,\)"):
        predictions_frame(scored, np.zeros(2), model="l1", seed=1)


def test_sites_and_decades_share_out_the_error():
    table = make_table()
    found = evaluate_age(make_features(table), table, **KNOWN)
    errors = found.predictions.assign(error=(found.predictions["predicted_age_years"] - table["age_years"]).abs())
    errors = found.predictions[found.predictions["split"] == "test_internal"]
    errors = errors.assign(error=(errors["predicted_age_years"] - errors["age_years"]).abs())
    for task, parts in {"age_by_site": errors["site"], "age_by_band": errors["age_years"] // 10}.items():
        rows = found.results[(found.results["task"] == task) & (found.results["split"] == "test_internal")]
        assert rows["n"].sum() == 24
        np.testing.assert_allclose(rows["estimate"], errors.groupby(parts.to_numpy())["error"].mean())
    assert rows["note"].str.split(";").str[0].tolist()[:2] == ["band=10-19", "band=20-29"]
    assert rows["note"].str.contains("scans; ages").all()


def several(table, label="exp", seeds=(0, 1, 2), noise=3.0):
    return [
        evaluate_age(make_features(table, label, seed, noise_years=noise), table, **KNOWN).predictions for seed in seeds
    ]


def test_pooled_seeds_are_the_mean_of_their_scores_on_the_same_resamples():
    table = make_table(scans=2)
    frames = several(table)
    pooled = row(pool_seeds(frames, **KNOWN), "test_external")
    scored = [frame[frame["split"] == "test_external"] for frame in frames]
    maes = [mean_absolute_error(one["age_years"], one["predicted_age_years"]) for one in scored]
    assert pooled["estimate"] == pytest.approx(np.mean(maes))
    assert f"seeds 0, 1, 2, sd over seeds {np.std(maes, ddof=1):.3g}" in pooled["note"]
    names = np.unique(people(scored[0]))
    drawn = np.random.default_rng([3, 3]).integers(0, len(names), (CONFIG.bootstrap, len(names)))
    error = np.mean([(one["predicted_age_years"] - one["age_years"]).abs().to_numpy() for one in scored], axis=0)
    of_person = np.array([error[people(scored[0]) == name].mean() for name in names])  # two scans everybody
    assert [pooled["low"], pooled["high"]] == pytest.approx(np.percentile(of_person[drawn].mean(axis=1), [2.5, 97.5]))


def test_one_seed_pooled_is_that_seed():
    table = make_table()
    only = evaluate_age(make_features(table), table, **KNOWN)
    pooled = pool_seeds([only.predictions], **KNOWN)
    expected = only.results[only.results["run"] == "exp"].drop(columns="note").reset_index(drop=True)
    pd.testing.assert_frame_equal(pooled.drop(columns="note"), expected)


def test_seeds_that_scored_other_scans_are_not_pooled():
    first, second, _ = several(make_table())
    with pytest.raises(DataError, match="seeds 0 and 1 scored different scans of test_external"):
        pool_seeds([first, second[second["participant_id"] != "ext003"]], **KNOWN)
    with pytest.raises(DataError, match=r"seed 0: scan demo/.* twice"):
        pool_seeds([first, first], **KNOWN)
    with pytest.raises(DataError, match="those of one model, found exp, other"):
        pool_seeds([first, second.assign(model="other")], **KNOWN)


def test_the_paired_difference_is_that_of_the_maes_and_narrower_than_two_unpaired_intervals():
    table = make_table(300, 0, 100, 100)
    exp = several(table, seeds=(0, 1))
    worse = [frame.assign(model="l1", predicted_age_years=frame["predicted_age_years"] * 1.05) for frame in exp]
    found = row(
        paired_mae_difference(pd.concat(exp), pd.concat(worse), **KNOWN),
        "test_external",
        "mae_difference_years",
        "exp - l1",
    )
    a, b = (row(pool_seeds(frames, **KNOWN), "test_external", run=run) for frames, run in ((exp, "exp"), (worse, "l1")))
    assert found["estimate"] == pytest.approx(a["estimate"] - b["estimate"])
    assert found["high"] - found["low"] < np.hypot(a["high"] - a["low"], b["high"] - b["low"])
    assert "seeds 0, 1 against 0, 1" in found["note"]
    with pytest.raises(DataError, match="test_external: the two models were not scored on the same scans"):
        paired_mae_difference(exp[0], worse[0][worse[0]["participant_id"] != "ext003"], **KNOWN)


def test_scans_of_one_person_count_as_one_person():
    once, often = make_table(60, 10, 24, 20), make_table(60, 10, 24, 20, scans=3)
    assert len(often) == 3 * len(once)
    found = evaluate_age(make_features(often), often, **KNOWN)
    assert row(found.results, "test_external")["n"] == len(
        once[once["split"] == "test_external"][PERSON].drop_duplicates()
    )
