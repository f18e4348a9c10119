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
    STANDARDISED,
    evaluate_age,
    mean_age,
    paired_mae_difference,
    pool_seeds,
    score_predictions,
)
from brainage.downstream.age_scores import HEALTHY, HIGH, LOW
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
    assert list(found.predictions.columns) == [
        *PREDICTION_COLUMNS,
        HEALTHY,
        STANDARDISED,
        LOW + "ridge",
        HIGH + "ridge",
    ]
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
        ages = f"ages {scored['age_years'].min():.0f}-{scored['age_years'].max():.0f} years"
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


@pytest.mark.parametrize("split", ["train", "val"])
def test_predictions_for_people_outside_the_tests_are_not_scored(split):
    table = make_table()
    fitted = table[table["split"] == split]
    predictions = predictions_frame(fitted, fitted["age_years"].to_numpy(), model="exp", seed=0)
    with pytest.raises(LeakageError, match=f"predictions for people of {split}: only test_internal and test_external"):
        score_predictions(predictions, **KNOWN)


def test_the_check_on_standardised_features_is_scikit_learns_ridge_and_scored_on_the_same_resamples():
    table = make_table(scans=2)
    features = make_features(table)
    found = evaluate_age(features, table, **KNOWN)
    fitted = table[table["split"].isin(["train", "val"])]
    X = join(features, fitted).astype(np.float64)
    folds = grouped_folds(people(fitted), KNOWN["seed"])
    grid = [10.0**decade for decade in range(-4, 7)]
    search = GridSearchCV(Ridge(), {"alpha": grid}, scoring="r2", cv=folds)
    search.fit((X - X.mean(axis=0)) / X.std(axis=0), fitted["age_years"])
    for split in ("test_internal", "test_external"):
        scored = table[table["split"] == split]
        values = (join(features, scored).astype(np.float64) - X.mean(axis=0)) / X.std(axis=0)
        expected = search.predict(values)
        check = row(found.results, split, task="age_standardised")
        assert check["estimate"] == pytest.approx(mean_absolute_error(scored["age_years"], expected))
        assert f"alpha {search.best_params_['alpha']:g}" in check["note"]
        same = found.predictions.assign(predicted_age_years=found.predictions[STANDARDISED])
        mae = row(score_predictions(same, **KNOWN), split)
        assert check[["low", "high", "n"]].tolist() == mae[["low", "high", "n"]].tolist()


def test_the_check_does_not_depend_on_the_units_of_the_features_and_the_protocol_does():
    table = make_table()
    features = make_features(table)
    scaled = dataclasses.replace(features, values=features.values * 1000)
    one, other = (evaluate_age(f, table, **KNOWN).results for f in (features, scaled))
    check = [row(results, "test_external", task="age_standardised")["estimate"] for results in (one, other)]
    assert check[0] == pytest.approx(check[1], rel=1e-5)
    assert row(one, "test_external")["estimate"] != pytest.approx(row(other, "test_external")["estimate"], rel=1e-3)


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
    table = make_table(internal=60)
    found = evaluate_age(make_features(table), table, **KNOWN)
    errors = found.predictions[found.predictions["split"] == "test_internal"]
    errors = errors.assign(error=(errors["predicted_age_years"] - errors["age_years"]).abs())
    for task, parts in {"age_by_site": errors["site"], "age_by_band": errors["age_years"] // 10}.items():
        rows = found.results[(found.results["task"] == task) & (found.results["split"] == "test_internal")]
        assert rows["n"].sum() == 60
        means = errors.groupby(parts.to_numpy())["error"].agg(["mean", "size"])
        shown = (means["size"] >= 5).to_numpy()
        np.testing.assert_allclose(rows["estimate"], means["mean"].where(means["size"] >= 5))
        assert rows.loc[shown, "note"].str.contains("scans; ages").all()
    assert rows["note"].str.split(";").str[0].tolist()[:2] == ["band=10-19", "band=20-29"]
    assert not shown.all()


def test_a_part_of_fewer_than_five_people_has_neither_an_error_nor_ages():
    table = make_table(scans=2)
    tiny = table["participant_id"].isin(["ext000", "ext001", "ext002", "ext003"])
    table.loc[tiny, "site"] = "tiny"
    results = evaluate_age(make_features(table), table, **KNOWN).results
    (found,) = results[results["note"].str.startswith("site=tiny")].to_dict("records")
    assert found["note"] == "site=tiny; not shown: fewer than 5 people"
    assert found["n"] == 4
    assert np.isnan([found["estimate"], found["low"], found["high"]]).all()
    few = results[(results["n"] < 5)]
    assert few["estimate"].isna().all()
    assert not few["note"].str.contains("ages").any()


def test_a_test_of_fewer_than_five_people_does_not_tell_their_ages():
    table = make_table(external=4)
    assert row(evaluate_age(make_features(table), table, **KNOWN).results, "test_external")["note"].startswith(
        "4 scans; ridge"
    )


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
    assert "interval over people only" in found["note"]
    with pytest.raises(DataError, match="test_external: the two models were not scored on the same scans"):
        paired_mae_difference(exp[0], worse[0][worse[0]["participant_id"] != "ext003"], **KNOWN)


def test_a_paired_difference_tells_what_the_seeds_say_where_they_are_matched():
    table = make_table()
    exp = several(table)
    other = [frame.assign(model="l1") for frame in several(table, noise=3.5)]
    other[1]["predicted_age_years"] = exp[1]["predicted_age_years"] * 1.5
    (note,) = paired_mae_difference(pd.concat(exp), pd.concat(other), **KNOWN).query("split == 'test_external'")["note"]
    maes = [[row(score_predictions(one, **KNOWN), "test_external", run=run)["estimate"] for one in frames]
            for frames, run in ((exp, "exp"), (other, "l1"))]  # fmt: skip
    differences = np.subtract(*maes)
    better = int((differences < 0).sum())
    assert f"matched seeds 0, 1, 2: sd of their differences {np.std(differences, ddof=1):.3g}" in note
    assert f"the first is better in {better} of 3" in note
    for frames, words in (
        (other[:2], "seeds 0, 1, 2 against 0, 1: not matched"),
        (other[:1], "against 0: not matched"),
    ):
        found = paired_mae_difference(pd.concat(exp), pd.concat(frames), **KNOWN)
        assert found["note"].str.contains(words).all()
        assert not found["note"].str.contains("sd of").any()
    alone = paired_mae_difference(exp[0], other[0], **KNOWN)
    assert alone["note"].str.contains(r"one seed \(0\): nothing is known of the spread").all()


def test_scans_of_one_person_count_as_one_person():
    once, often = make_table(60, 10, 24, 20), make_table(60, 10, 24, 20, scans=3)
    assert len(often) == 3 * len(once)
    found = evaluate_age(make_features(often), often, **KNOWN)
    assert row(found.results, "test_external")["n"] == len(
        once[once["split"] == "test_external"][PERSON].drop_duplicates()
    )
