"""Site controls: age alone against scikit-learn, matched pairs by hand, and planted sites that a control must catch."""

from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import SplineTransformer, StandardScaler

from brainage.config import EvaluateConfig
from brainage.downstream.features import Features
from brainage.downstream.probes import people
from brainage.downstream.results import parts_of
from brainage.downstream.site import evaluate_site
from brainage.downstream.site_controls import evaluate_site_controls
from brainage.downstream.site_matched import age_matched, pair_accuracy, shuffled_pairs
from brainage.errors import DataError, LeakageError

from .cohort import make_features, make_table

EVERYTHING = EvaluateConfig(
    bootstrap=50, site_permutations=50, nuisance=["age", "sex", "tiv"], harmonise=["combat", "residual"]
)
SITES = np.array(["site0", "site1", "site2"])


def unlike(train=240, internal=150, seed=0):
    """Sites of other ages: site0 is young, site1 middle-aged, site2 old, all overlapping; with tiv_ml."""
    table = make_table(train, 0, internal, 20, seed=seed)
    rng = np.random.default_rng(seed + 50)
    centre = table["site"].map({"site0": 42.0, "site1": 50.0, "site2": 58.0, "far": 50.0})
    return table.assign(
        age_years=(centre + rng.normal(0, 9, len(table))).clip(18, 85), tiv_ml=rng.normal(1500, 100, len(table))
    )


def ages_only(table, shift=0.0):
    """Features that hold age, and with `shift` the site too."""
    rng = np.random.default_rng(7)
    values = rng.normal(0, 1, (len(table), 6))
    values[:, 0] = table["age_years"] / 5
    values[:, 1] += shift * table["site"].astype("category").cat.codes
    return Features("exp", 0, table[["cohort", "participant_id", "session_id", "run"]], values.astype(np.float32))


def controls(features, table, config=EVERYTHING, **options):
    return evaluate_site_controls(features, table, cohort="demo", config=config, seed=3, **options)


def rows_of(result, metric="balanced_accuracy", task="site", split="test_internal"):
    """`words of the parts` -> row."""
    rows = result.results[(result.results[["metric", "task", "split"]] == [metric, task, split]).all(axis=1)]
    return {" ".join(map("=".join, parts_of(row["note"]).items())): row for _, row in rows.iterrows()}


def test_age_alone_is_the_probe_that_scikit_learn_fits_on_a_spline_of_age():
    table = unlike()
    found = rows_of(controls(ages_only(table), table, EvaluateConfig(bootstrap=10, site_permutations=10)))
    fitted, scored = table[table["split"] == "train"], table[table["split"] == "test_internal"]
    spline = SplineTransformer(n_knots=5, knots="quantile", extrapolation="linear", include_bias=False)
    model = make_pipeline(spline, StandardScaler(), LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-8))
    named = model.fit(fitted[["age_years"]].to_numpy(), fitted["site"]).predict(scored[["age_years"]].to_numpy())
    assert found["predictor=age"]["estimate"] == pytest.approx(balanced_accuracy_score(scored["site"], named))
    assert found["predictor=age"]["estimate"] > 0.5


def test_matched_sites_have_equally_many_people_in_every_bin_whatever_the_order_of_the_rows():
    table = unlike()
    scored = table[table["split"] == "test_internal"]
    pairs, whole = age_matched(scored, SITES, seed=1)
    again, _ = age_matched(scored.sample(frac=1, random_state=0), SITES, seed=1)
    assert people(pairs.scans).tolist() == people(again.scans).tolist()
    assert (pairs.member == again.member).all()
    assert pairs.extent().startswith("mean over 3 pairs of 3 sites, chance 0.5; ")
    for a, b in permutations(range(3), 2):
        counts = {site: np.bincount(pairs.bins[pairs.codes == site], minlength=20) for site in (a, b)}
        taken = pairs.member[:, b].astype(bool) & (pairs.codes == a)
        assert (np.bincount(pairs.bins[taken], minlength=20) == np.minimum(counts[a], counts[b])).all()
        assert pairs.sizes()[a, b] == pairs.sizes()[b, a] == taken.sum()
        assert whole.sizes()[a, b] == (pairs.codes == a).sum()
    assert not pairs.sizes().diagonal().any()
    other = age_matched(scored, SITES, seed=2)[0]
    assert (other.member != pairs.member).any()


def test_a_guess_made_from_the_bin_of_age_alone_is_right_in_half():
    table = unlike()
    pairs, whole = age_matched(table[table["split"] == "test_internal"], SITES, seed=1)
    scores = np.random.default_rng(0).normal(size=(30, 3))[pairs.bins]
    assert pair_accuracy(pairs, scores)(np.ones((1, len(scores))))[0] == pytest.approx(0.5)
    by_age = -((pairs.scans[["age_years"]].to_numpy() - [42, 50, 58]) ** 2)
    assert pair_accuracy(whole, by_age)(np.ones((1, len(scores))))[0] > 0.7
    assert pair_accuracy(pairs, np.zeros((len(scores), 3)))(np.ones((1, len(scores))))[0] == 0.5  # ties


def test_the_accuracy_of_pairs_and_its_shuffles_are_the_mean_of_balanced_accuracies():
    table = unlike(internal=90)
    pairs, _ = age_matched(table[table["split"] == "test_internal"], SITES, seed=1)
    rng = np.random.default_rng(2)
    scores, weights = rng.normal(size=(len(pairs.scans), 3)), rng.integers(0, 3, len(pairs.scans)).astype(float)

    def by_hand(scores, weights):
        each = []
        for a, b in combinations(range(3), 2):
            rows = [i for i, site in enumerate(pairs.codes) for k in (a, b) if site == a + b - k and pairs.member[i, k]]
            named = [a if scores[i, a] > scores[i, b] else b for i in rows]
            each.append(balanced_accuracy_score(pairs.codes[rows], named, sample_weight=weights[rows]))
        return np.mean(each)

    assert pair_accuracy(pairs, scores)(weights[None])[0] == pytest.approx(by_hand(scores, weights))
    values = shuffled_pairs(pairs, scores, shuffles=300, seed=[5])
    assert values[0] == pytest.approx(by_hand(scores, np.ones(len(scores))))
    assert values[1:].mean() == pytest.approx(0.5, abs=0.02)


def test_sites_that_differ_in_age_only_are_told_apart_until_age_is_controlled():
    table = unlike()
    result = controls(ages_only(table), table)
    found, p = rows_of(result), rows_of(result, "p")
    assert found["subset=same_pairs"]["estimate"] > 0.65
    assert found["subset=age_matched"]["low"] < 0.5 < found["subset=age_matched"]["high"]
    assert p[""]["estimate"] < 0.05 < p["subset=age_matched"]["estimate"]
    assert found["after=nuisance term=age, sex, tiv"]["estimate"] < 0.45
    assert (
        "regressed out by slopes within sites of 240 fitted scans: age, sex, tiv"
        in found["after=nuisance term=age, sex, tiv"]["note"]
    )


def test_sites_that_differ_in_their_scanner_stay_visible_at_equal_age_until_they_are_harmonised():
    table = unlike()
    features = ages_only(table, shift=3.0)
    result = controls(features, table)
    found, p = rows_of(result), rows_of(result, "p")
    assert found["subset=age_matched"]["low"] > 0.7
    assert p["subset=age_matched"]["estimate"] == pytest.approx(1 / 51)
    assert found["after=nuisance term=age, sex, tiv"]["estimate"] > 0.7
    plain = evaluate_site(features, table, cohort="demo", config=EVERYTHING, seed=3)
    before = plain.results.iloc[0]["estimate"]
    for how in ("combat", "residual"):
        after = found[f"after={how}"]
        assert f"before, on the same scans: {before:.3f}; {how} fitted on 240 scans of 3 sites" in after["note"]
        assert after["estimate"] < before - 0.15  # what is left is age, which is kept
    again = controls(features, table, evaluation=plain)
    pd.testing.assert_frame_equal(result.results, again.results)


def test_ages_after_harmonisation_are_those_of_a_ridge_on_it_and_unseen_sites_stay():
    table = make_table(200, 0, 80, 40, scans=2).assign(tiv_ml=1500.0)
    features = make_features(table, site_signal=3.0)
    values = features.values.copy()
    at_site1 = features.keys.merge(table)["site"].eq("site1").to_numpy()
    values[at_site1, 0] += 2.0  # age is misread there by the scanner
    features = Features("exp", 0, features.keys, values)
    result = controls(features, table, EvaluateConfig(bootstrap=20, harmonise=["residual"], nuisance=["age"]))
    inside, outside = (
        rows_of(result, "mae_years", "age", f"test_{name}")["after=residual"] for name in ("internal", "external")
    )
    before = float(inside["note"].split("same scans: ")[1].split(";")[0])
    assert inside["estimate"] < before
    assert inside["n"] == 80
    assert "80 scans of sites that were not fitted stay as they are" in outside["note"]
    assert "applied with the age predicted before, of fitted people out of fold" in inside["note"]


def test_shuffles_are_kept_and_every_number_has_its_row():
    table = unlike(120, 60)
    result = controls(ages_only(table), table)
    shuffles = result.frames["site_shuffles"]
    assert set(shuffles.groupby(["task", "parts"]).size()) == {51}
    accuracy, chance = rows_of(result), rows_of(result, "chance_balanced_accuracy")
    assert set(chance) == {
        "", "predictor=age", "subset=age_matched", "predictor=age subset=age_matched",
        "after=nuisance term=age, sex, tiv", "after=combat", "after=residual",
    }  # fmt: skip
    assert set(accuracy) == set(chance) - {""} | {"subset=same_pairs", "predictor=age subset=same_pairs"}
    first = shuffles[(shuffles["parts"] == "after=combat") & (shuffles["shuffle"] == 0)]["balanced_accuracy"].item()
    assert first == pytest.approx(accuracy["after=combat"]["estimate"])


def test_nothing_is_removed_that_is_not_named():
    table = unlike(120, 60)
    config = EvaluateConfig(bootstrap=10, site_permutations=0)
    assert set(rows_of(controls(ages_only(table), table, config))) == {
        "predictor=age", "subset=age_matched", "subset=same_pairs", "predictor=age subset=age_matched",
        "predictor=age subset=same_pairs",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (make_table(internal=0), "no scan in test_internal"),
        (make_table(sites=1), "1 site in the fitted splits"),
        (make_table().assign(site=pd.Series(pd.NA, index=range(114), dtype="string")), "0 site in the fitted splits"),
    ],
)
def test_without_sites_to_tell_apart_every_row_says_why(table, reason):
    config = EvaluateConfig(bootstrap=10, nuisance=["age"], harmonise=["combat"])
    result = controls(make_features(table), table, config)
    site = result.results[result.results["task"] == "site"]
    assert site["estimate"].isna().all()
    assert site["note"].str.contains(reason).all()
    assert len(site) == 4
    assert result.frames == {}
    assert (result.results["task"] == "age").sum() == 2


def test_broken_covariates_are_rows_with_their_reason_and_the_rest_goes_on():
    table = unlike(120, 60).assign(sex=pd.Series("F", index=range(200), dtype="string"))
    result = controls(ages_only(table), table)
    found = rows_of(result)
    for part in ("after=nuisance term=age, sex, tiv", "after=combat"):
        assert "not computed: sex: 120 of 120 fitted scans" in found[part]["note"]
    assert "sex: 120 of 120" in rows_of(result, "mae_years", "age", "test_external")["after=combat"]["note"]
    assert np.isfinite(found["predictor=age"]["estimate"])
    known = unlike(120, 60)
    known.loc[known.index[::10], "tiv_ml"] = np.nan
    note = rows_of(controls(ages_only(known), known))["after=nuisance term=age, sex, tiv"]["note"]
    lost = [known["tiv_ml"].isna()[known["split"] == name].sum() for name in ("train", "test_internal")]
    assert f"left out without them: {lost[0]} fitted and {lost[1]} scored scans" in note


def test_a_site_that_is_lost_with_its_covariates_or_its_people_is_counted():
    table = unlike(120, 60)
    train = (table["split"] == "train") & (table["site"] == "site2")
    lost = (table["split"] == "test_internal") & (table["site"] == "site2")
    table.loc[train, "tiv_ml"] = np.nan
    found = rows_of(controls(ages_only(table), table))
    for part in ("after=nuisance term=age, sex, tiv", "after=combat"):
        assert f"{lost.sum()} scored scans left out, of sites that are no longer fitted" in found[part]["note"]
        assert found[part]["n"] == 60 - lost.sum()
    table.loc[table["split"] == "train", "tiv_ml"] = np.nan
    found = rows_of(controls(ages_only(table), table))
    assert "not computed: tiv: 0 of 120 fitted scans" in found["after=residual"]["note"]


def test_sites_too_small_or_too_far_apart_in_age_to_match_are_said():
    table = unlike(120, 60)
    table["age_years"] = table["site"].map({"site0": 22.0, "site1": 42.0, "site2": 62.0, "far": 50.0}) + (
        np.arange(len(table)) % 3
    )
    row = rows_of(controls(ages_only(table), table))["subset=age_matched"]
    assert np.isnan(row["estimate"])
    assert "no two sites have 5 scored people each to match by age in 5-year bins" in row["note"]


def test_people_the_network_was_trained_on_are_not_scored_and_broken_features_are_refused():
    table = make_table()
    features = make_features(table)
    seen = Features("exp", 0, features.keys, features.values, seen=np.ones(len(table), dtype=bool))
    with pytest.raises(LeakageError):
        controls(seen, table)
    broken = features.values.copy()
    broken[0, 0] = np.nan
    with pytest.raises(DataError, match="NaN or infinity"):
        controls(Features("exp", 0, features.keys, broken), table)
