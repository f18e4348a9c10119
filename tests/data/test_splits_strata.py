"""Stratified splits: every group at its share, whoever comes first in the table."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.drawing import draw_stratified, first_scans, strata
from brainage.data.splits import apply_split, carve_val, draw_split, refuse_leakage, split_hash
from brainage.errors import ConfigError
from tests.data.people_tables import drawn, firsts, random_table

ALL = ["age", "sex", "site"]
TESTS = ("test_internal", "test_external")


def stratified(table: pd.DataFrame, fraction: float = 0.2, seed: int = 0, stratify=ALL, **more) -> pd.DataFrame:
    return draw_split(
        table, **{"external_sites": [], "internal_fraction": fraction, "seed": seed, "stratify": stratify} | more
    )


def off_by(chosen: np.ndarray, groups: pd.Series | pd.DataFrame, share: float) -> float:
    """The largest distance of any group from its share, in people."""
    keys = groups.astype(str).agg("/".join, axis=1) if isinstance(groups, pd.DataFrame) else groups.astype(str)
    of = pd.Series(chosen).groupby(keys.to_numpy())
    return float((of.sum() - share * of.size()).abs().max())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 0.5, 0.7]), st.integers(5, 200))
def test_every_site_sex_and_age_of_a_sex_keeps_its_share_within_one_person(seed, share, people):
    first = first_scans(random_table(seed, people=people, sites=25))
    labels = strata(first, ALL, share)
    chosen = draw_stratified(first, labels, share, purpose="internal", seed=seed)
    groups = [["site"], ["large"], ["site", "age"], ["site", "age", "sex"], ["sex"], ["sex", "age"]]
    for names in groups:
        assert off_by(chosen, labels[names], share) < 1
    assert abs(chosen.sum() - share * people) < 1
    assert off_by(chosen, labels["age"], share) < 3  # the sum of F, M and unknown


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.permutations(ALL), st.integers(1, 3))
def test_the_split_keeps_shares_for_any_wish_and_no_person_is_split(seed, words, number):
    table = random_table(seed, people=150)
    split = stratified(table, seed=seed, stratify=words[:number])
    refuse_leakage(apply_split(table, split))
    chosen, first = drawn(table, split, *TESTS), firsts(table)
    for word in words[:number]:
        if word != "age":
            assert off_by(chosen, first[word], 0.2) < 1


def test_ages_alone_are_kept_within_one_person_a_bin():
    table = random_table(1, people=600)
    first = firsts(table)
    counts = (first["age_years"] // 5).value_counts()
    full = counts[counts >= 5].index  # rarer ones are joined to their neighbours
    chosen = drawn(table, stratified(table, stratify=["age"]), *TESTS)
    inner = (first["age_years"] // 5).isin(full[1:-1]).to_numpy()
    assert len(full) > 8
    joined = strata(first_scans(table), ["age"], 0.2)["age"]
    assert off_by(chosen, joined, 0.2) < 1
    assert off_by(chosen[inner], (first["age_years"] // 5)[inner], 0.2) < 2


def test_a_stratified_test_is_nearer_to_train_than_one_drawn_by_hash():
    table = random_table(3, people=400, sites=12)
    first = firsts(table)

    def distance(seed: int, stratify: list[str]) -> float:
        chosen = drawn(table, stratified(table, seed=seed, stratify=stratify), *TESTS)
        return abs(first["age_years"][chosen].mean() - first["age_years"][~chosen].mean())

    gaps = {name: np.mean([distance(seed, words) for seed in range(8)]) for name, words in {"s": ALL, "h": []}.items()}
    assert gaps["s"] < gaps["h"] / 2


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 100))
def test_the_order_of_the_rows_is_of_no_consequence_and_the_seed_is(seed, shuffle):
    table = random_table(seed, people=100)
    other = table.sample(frac=1, random_state=shuffle)
    assert split_hash(stratified(table)) == split_hash(stratified(other))
    assert split_hash(stratified(table, seed=1)) != split_hash(stratified(table))


def test_people_of_several_scans_count_once_by_their_first():
    table = random_table(5, people=80, movers=0.9)
    alone = table.loc[table.groupby(["cohort", "participant_id"])["age_years"].idxmin()]
    alone = alone.sort_values("path").reset_index(drop=True)
    moved = table.assign(site="one")  # later sites must not decide; one site, so that none is unseen
    assert split_hash(stratified(moved)) == split_hash(stratified(alone.assign(site="one")))


def test_rare_age_bins_are_joined_to_the_next_older_and_rare_sites_count_together():
    ages = [6.0, 21, 21, 22, 23, 24, 24, 31, 31, 31, 31, 31, 88]
    sites = ["big"] * 7 + ["x", "x", "y", "y", "z", None]
    first = pd.DataFrame({"cohort": "a", "participant_id": [f"p{i:02d}" for i in range(13)], "age_years": ages})
    labels = strata(first.assign(sex="F", site=sites), ALL, 0.2)
    assert labels["age"].tolist() == ["0"] * 7 + ["1"] * 6  # 5-9 joins 20-24, 85-89 the bin before
    assert labels["large"].tolist() == ["big"] * 7 + ["rare"] * 6


@pytest.mark.slow
def test_every_person_is_drawn_about_equally_often_over_seeds():
    first = first_scans(random_table(7, people=60))
    labels = strata(first, ALL, 0.25)
    times = sum(draw_stratified(first, labels, 0.25, purpose="x", seed=seed).astype(int) for seed in range(400))
    share = times / 400
    assert abs(share.mean() - 0.25) < 0.01
    assert share.min() > 0.08  # nobody is always left out, or always taken; sd of a share of 0.25 is 0.022
    assert share.max() < 0.5


def test_stratified_val_keeps_the_shares_of_train_and_leaves_the_tests_alone():
    table = random_table(9, people=300)
    split = stratified(table)
    carved = carve_val(split, fraction=0.1, seed=0, table=table, stratify=ALL)
    moved = split["split"] != carved["split"]
    assert set(split.loc[moved, "split"]) == {"train"}
    assert set(carved.loc[moved, "split"]) == {"val"}
    train = drawn(table, split, "train")
    val, first = drawn(table, carved, "val")[train], firsts(table)[train]
    assert off_by(val, first["site"], 0.1) < 1
    assert off_by(val, first["sex"], 0.1) < 1
    assert split_hash(carve_val(split.sample(frac=1), fraction=0.1, seed=0, table=table, stratify=ALL)) == split_hash(
        carved
    )


def test_people_of_a_split_file_whom_the_table_lacks_stay_in_train():
    table = random_table(9, people=300)
    split = stratified(table)
    few = table[table["participant_id"] < "p0100"]
    carved = carve_val(split, fraction=0.5, seed=0, table=few, stratify=ALL)
    assert (carved.loc[carved["split"] == "val", "participant_id"] < "p0100").all()
    assert 20 < (carved["split"] == "val").sum() < 60


def test_held_out_sites_stay_out_of_a_stratified_draw():
    table = random_table(11, people=300)
    site = table["site"].value_counts().index[1]
    split = apply_split(table, stratified(table, external_sites=[site]))
    at_site = set(table.loc[table["site"] == site, "participant_id"])
    assert (split.loc[split["participant_id"].isin(at_site), "split"] == "test_external").all()
    left = table[~table["participant_id"].isin(at_site)]
    chosen = drawn(left, stratified(table, external_sites=[site]), *TESTS)
    assert off_by(chosen, firsts(left)["site"], 0.2) < 1


def test_a_fraction_of_zero_draws_nobody_and_an_unknown_word_is_refused():
    table = random_table(2)
    assert set(stratified(table, fraction=0.0)["split"]) == {"train"}
    for call in (
        lambda: stratified(table, stratify=["agee"]),
        lambda: carve_val(stratified(table), fraction=0.1, seed=0, table=table, stratify=["agee"]),
    ):
        with pytest.raises(ConfigError, match=r"data\.stratify: 'agee' is unknown.*'age'"):
            call()


def test_the_stratified_draw_of_a_seed_is_pinned_for_good():
    split = stratified(random_table(0, people=40, movers=0.0), fraction=0.25)
    assert split_hash(split) == "693a3a020c1e1974"
