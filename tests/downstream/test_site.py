"""Site evaluation against scikit-learn, its visible refusals, and the challenge score against the published rows."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error

from brainage.config import EvaluateConfig
from brainage.downstream.age import evaluate_age
from brainage.downstream.features import join
from brainage.downstream.predictions import by_seed
from brainage.downstream.site import (
    challenge_score,
    challenge_value,
    evaluate_site,
    pool_site_seeds,
)
from brainage.downstream.site_rows import shuffle_rows, shuffled_accuracies
from brainage.errors import DataError, LeakageError
from brainage.statistics.permutation import person_shuffles

from .cohort import make_features, make_table

CONFIG = EvaluateConfig(bootstrap=200)
KNOWN = {"cohort": "demo", "config": CONFIG, "seed": 3}

# Balanced accuracy in %, external MAE in years, challenge score: OpenBHB leaderboard rows and arXiv 2211.08326.
PUBLISHED = [
    (5.1, 3.76, 1.54),
    (5.0, 3.88, 1.58),
    (4.9, 4.50, 1.82),
    (5.7, 4.10, 1.74),
    (6.6, 4.10, 1.82),
    (6.7, 4.18, 1.86),
    (8.0, 7.13, 3.34),
    (8.3, 4.66, 2.21),
    (4.5, 4.76, 1.88),
    (7.6, 2.85, 1.31),
    (15.2, 2.92, 1.66),
    (5.2, 3.56, 1.468),
    (7.0, 3.49, 1.572),
]


@pytest.mark.parametrize(("percent", "mae", "published"), PUBLISHED)
def test_a_published_challenge_score_lies_within_the_rounding_of_its_row(percent, mae, published):
    low, high = (challenge_value((percent + s * 0.05) / 100, mae + s * 0.005) for s in (-1, 1))
    rounding = 0.005 if published == round(published, 2) else 0.0005
    assert low - rounding <= published <= high + rounding
    assert abs(challenge_value(percent / 100, mae) - published) < 0.0065


def row(results, task="site", run="exp"):
    kept = results[(results[["run", "task"]] == [run, task]).all(axis=1)]
    assert len(kept) == 1, f"{len(kept)} rows of {run}/{task}"
    return kept.iloc[0]


def test_the_site_of_unseen_people_is_the_one_that_scikit_learn_names():
    table = make_table(scans=2)
    features = make_features(table)
    found = evaluate_site(features, table, **KNOWN)
    fitted, scored = table[table["split"].isin(["train", "val"])], table[table["split"] == "test_internal"]
    accuracy, chance = row(found.results), row(found.results, run="chance")
    C = float(accuracy["note"].split("C ")[1].split(" ")[0])
    model = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-8)
    expected = model.fit(join(features, fitted), fitted["site"]).predict(join(features, scored))
    assert found.predictions["predicted_site"].tolist() == expected.tolist()
    assert accuracy["estimate"] == pytest.approx(balanced_accuracy_score(scored["site"], expected))
    assert 1 / 3 < accuracy["low"] < accuracy["estimate"] < accuracy["high"] < 1
    assert accuracy["n"] == 24
    assert accuracy["note"].startswith("48 scans; 3 sites fitted, 3 scored; lbfgs converged")
    assert chance["estimate"] == pytest.approx(1 / 3)
    assert set(found.predictions["split"]) == {"test_internal"}


def test_features_without_the_site_are_near_chance():
    table = make_table(300, 0, 200, 10)
    found = row(evaluate_site(make_features(table, site_signal=0.0), table, **KNOWN).results)
    assert found["low"] < 1 / 3 < found["high"]


def test_the_published_probe_is_a_task_of_its_own():
    table = make_table()
    config = EvaluateConfig(bootstrap=50, site_probe_published=True)
    results = evaluate_site(make_features(table), table, cohort="demo", config=config, seed=0).results
    assert "saga" in row(results, "site_published")["note"]
    assert "lbfgs converged" in row(results)["note"]


def test_a_subject_in_two_splits_is_never_scored():
    table = make_table()
    moved = table[table["split"] == "train"][:1].assign(split="test_internal", session_id="again")
    both = pd.concat([table, moved], ignore_index=True)
    with pytest.raises(LeakageError, match="is in test_internal and train"):
        evaluate_site(make_features(both), both, **KNOWN)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (make_table(internal=0), "no scan in test_internal"),
        (make_table(sites=1), "1 site in the fitted splits"),
        (make_table().assign(site=pd.Series(pd.NA, index=range(114), dtype="string")), "0 site in the fitted splits"),
    ],
)
def test_a_probe_that_cannot_be_scored_leaves_a_row_that_says_why(table, reason):
    found = evaluate_site(make_features(table), table, **KNOWN)
    assert np.isnan(row(found.results)["estimate"])
    assert reason in row(found.results)["note"]
    assert found.predictions.empty
    assert pool_site_seeds([found, found], **KNOWN) is found


def test_an_internal_site_that_train_does_not_have_contradicts_its_name():
    table = make_table()
    stray = table["participant_id"] == "int004"
    table.loc[stray, "site"] = "elsewhere"
    with pytest.raises(DataError, match=r"1 scans .* first site elsewhere \(scan demo/int004"):
        evaluate_site(make_features(table), table, **KNOWN)
    found = evaluate_site(make_features(table), table, limited=True, **KNOWN)
    assert "left out without a fitted site: 0 fitted, 1 scored" in row(found.results)["note"]
    assert row(found.results)["n"] == 23


def test_scans_without_a_site_and_sites_of_one_person_are_counted():
    table = make_table()
    train, internal = (table.index[table["split"] == split] for split in ("train", "test_internal"))
    table.loc[[train[0], train[1], internal[0]], "site"] = pd.NA
    table.loc[train[2], "site"] = "lonely"
    found = row(evaluate_site(make_features(table), table, **KNOWN).results)
    assert "left out without a fitted site: 2 fitted, 1 scored" in found["note"]
    assert "1 sites have one fitted person" in found["note"]
    assert "4 sites fitted, 3 scored" in found["note"]


def evaluated(table, seeds=(0, 1), config=CONFIG):
    features = [make_features(table, seed=seed) for seed in seeds]
    ages = [evaluate_age(one, table, cohort="demo", config=config, seed=3).predictions for one in features]
    return ages, [evaluate_site(one, table, cohort="demo", config=config, seed=3) for one in features]


def test_the_challenge_score_of_seeds_is_the_mean_of_their_scores():
    table = make_table(scans=2)
    ages, sites = evaluated(table)
    pooled = pool_site_seeds(sites, **KNOWN)
    found = row(challenge_score(pd.concat(ages), pooled.predictions, **KNOWN), "challenge")
    accuracies, expected = [], []
    for age, site in zip(ages, sites, strict=True):
        far = age[age["split"] == "test_external"]
        accuracies.append(balanced_accuracy_score(site.predictions["site"], site.predictions["predicted_site"]))
        expected.append(accuracies[-1] ** 0.3 * mean_absolute_error(far["age_years"], far["predicted_age_years"]))
    assert found["estimate"] == pytest.approx(np.mean(expected))
    assert row(pooled.results)["estimate"] == pytest.approx(np.mean(accuracies))
    assert found["split"] == "test_internal+test_external"
    assert found["n"] == 44
    assert f"seeds 0, 1, sd over seeds {np.std(expected, ddof=1):.3g}" in found["note"]


def test_the_interval_of_the_challenge_score_joins_independent_resamples_of_both_tests():
    config = EvaluateConfig(bootstrap=4000)
    (ages,), (sites,) = evaluated(make_table(300, 0, 200, 200), (0,), config)
    found = row(challenge_score(ages, sites.predictions, cohort="demo", config=config, seed=3), "challenge")
    rng = np.random.default_rng(99)
    far = ages[ages["split"] == "test_external"]
    error = (far["predicted_age_years"] - far["age_years"]).abs().to_numpy()
    truth, named = (
        sites.predictions["site"].to_numpy(dtype=str),
        sites.predictions["predicted_site"].to_numpy(dtype=str),
    )
    correct = truth == named
    values = []
    for _ in range(3000):
        near, other = rng.integers(0, 200, 200), rng.integers(0, 200, 200)
        recalls = [correct[near][truth[near] == site].mean() for site in np.unique(truth)]
        values.append(np.mean(recalls) ** 0.3 * error[other].mean())
    low, high = np.percentile(values, [2.5, 97.5])
    assert [found["low"], found["high"]] == pytest.approx([low, high], abs=0.08 * (high - low))


def test_a_challenge_score_without_one_of_its_tests_says_which():
    table = make_table()
    (ages,), (sites,) = evaluated(table, (0,))
    internal = ages[ages["split"] == "test_internal"]
    assert (
        "no age prediction in test_external"
        in row(challenge_score(internal, sites.predictions, **KNOWN), "challenge", "model")["note"]
    )
    lost = challenge_score(ages, sites.predictions[:0], model="exp", **KNOWN)
    assert "no site prediction in test_internal" in row(lost, "challenge")["note"]
    assert np.isnan(row(lost, "challenge")["estimate"])


def test_ages_and_sites_of_two_models_or_seeds_are_not_joined():
    (ages, _), (sites, others) = evaluated(make_table())
    with pytest.raises(DataError, match=r"'exp' \(seeds \[1\]\), ages of 'exp' \(seeds \[0\]\)"):
        challenge_score(ages, others.predictions, **KNOWN)
    with pytest.raises(DataError, match="ages of 'l1'"):
        challenge_score(ages.assign(model="l1"), sites.predictions, **KNOWN)


def test_shuffled_sites_are_scored_as_scikit_learn_scores_them():
    rng = np.random.default_rng(0)
    truth, persons = rng.choice(list("abc"), 80), np.arange(80).astype(str)
    predicted = np.array([np.where(rng.uniform(size=80) < 0.5, truth, rng.choice(list("abcz"), 80)) for _ in range(2)])
    found = shuffled_accuracies(truth, predicted, persons, shuffles=20, seed=4)
    orders = [np.arange(80), *person_shuffles(persons, shuffles=20, seed=4)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # z is predicted and nobody's
        expected = [np.mean([balanced_accuracy_score(truth[rows], one) for one in predicted]) for rows in orders]
    assert found == pytest.approx(expected)


def test_chance_and_p_of_a_probe_that_sees_sites_and_of_one_that_does_not():
    table, config = make_table(300, 0, 120, 10, scans=2), EvaluateConfig(bootstrap=20, site_permutations=200)
    for signal, seen in ((0.5, True), (0.0, False)):
        found = evaluate_site(make_features(table, site_signal=signal), table, cohort="demo", config=config, seed=3)
        block = by_seed(found.predictions, "test_internal", "predicted_site")
        rows, frame = shuffle_rows(block, cohort="demo", config=config, seed=3)
        chance, p = rows
        assert chance["metric"] == "chance_balanced_accuracy"
        assert chance["low"] < 1 / 3 < chance["high"] < 0.45
        assert (p["estimate"] == pytest.approx(1 / 201)) is seen
        assert frame["balanced_accuracy"].iloc[0] == pytest.approx(row(found.results)["estimate"])
        assert len(frame) == 201
        assert np.isfinite(found.C)


def test_chance_of_one_scored_site_or_of_a_handful_is_not_computed():
    table = make_table(60, 0, 4, 10)
    found = evaluate_site(make_features(table), table, **KNOWN)
    block = by_seed(found.predictions, "test_internal", "predicted_site")
    rows, frame = shuffle_rows(block, cohort="demo", config=CONFIG, seed=0)
    assert all("fewer than 5 people" in row["note"] and np.isnan(row["estimate"]) for row in rows)
    assert frame.empty
    alone = block._replace(scans=block.scans.assign(site="site0"))
    assert "one site only" in shuffle_rows(alone, cohort="demo", config=CONFIG, seed=0)[0][0]["note"]
    assert shuffle_rows(block, cohort="demo", config=EvaluateConfig(site_permutations=0), seed=0)[0] == []
