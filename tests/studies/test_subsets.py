"""Parts of the training set: they lie in one another, keep the shares they promise, and leave the tests alone."""

import numpy as np
import pandas as pd
import pytest

from brainage.data.drawing import first_scans
from brainage.data.splits import carve_val, draw_split
from brainage.data.table import PERSON, finish_table
from brainage.errors import DataError
from brainage.studies.subsets import Subset, people_order, site_order, subset_split

SITES = 12


@pytest.fixture(scope="module")
def cohort():
    """Twelve sites of 10 to 60 people, whose mean age follows their number; one site external."""
    table = people_table({f"s{number:02d}": 10 + 5 * number for number in range(SITES)})
    split = draw_split(table, external_sites=["s05"], internal_fraction=0.2, seed=0)
    return table, carve_val(split, fraction=0.1, seed=0)


def people_table(sizes):
    """One scan a person; the mean age of a site follows its place."""
    rng = np.random.default_rng(0)
    sites = [name for name, size in sizes.items() for _ in range(size)]
    means = {name: 15 + 5 * number for number, name in enumerate(sizes)}
    ages = [float(np.clip(rng.normal(means[site], 6), 6, 90)) for site in sites]
    people = pd.DataFrame({"participant_id": [f"p{number:04d}" for number in rng.permutation(len(sites))]})
    return finish_table(people.assign(cohort="c", site=sites, age_years=ages, path="x.npy"), source="test").table


def train_of(split):
    return {tuple(row) for row in split.loc[split["split"] == "train", PERSON].itertuples(index=False)}


def sites_of(table, people):
    keys = pd.MultiIndex.from_frame(table[PERSON])
    return table.loc[keys.isin(people), "site"].value_counts()


def test_a_smaller_number_of_people_lies_in_a_larger_one_and_the_sites_stay(cohort):
    table, split = cohort
    everybody = train_of(split)
    before: set = set()
    for number in (11, 40, 80, 160, len(everybody)):
        chosen = train_of(subset_split(table, split, Subset(people=number), seed=0))
        assert len(chosen) == number
        assert before < chosen <= everybody
        assert set(sites_of(table, chosen).index) == set(sites_of(table, everybody).index)
        before = chosen


def test_sites_keep_their_shares_to_a_person(cohort):
    table, split = cohort
    whole = sites_of(table, train_of(split))
    for number in (60, 120, 200):
        part = sites_of(table, train_of(subset_split(table, split, Subset(people=number), seed=0)))
        assert (part - whole * number / whole.sum()).abs().max() <= 1.2


def test_ages_keep_their_shares_within_the_subset(cohort):
    table, split = cohort
    keys = pd.MultiIndex.from_frame(table[PERSON])
    ages = {
        number: table.loc[keys.isin(train_of(subset_split(table, split, Subset(people=number), seed=0))), "age_years"]
        for number in (60, len(train_of(split)))
    }
    small, whole = ages.values()
    # a plain draw of 60 of these people has a standard error of the mean of about sd / sqrt(60)
    assert abs(small.mean() - whole.mean()) < whole.std() / np.sqrt(60)


def test_a_smaller_number_of_sites_lies_in_a_larger_one_at_equal_people(cohort):
    table, split = cohort
    before: set = set()
    for number in (3, 6, 11):
        chosen = train_of(subset_split(table, split, Subset(people=60, sites=number), seed=0))
        sites = set(sites_of(table, chosen).index)
        assert (len(chosen), len(sites)) == (60, number)
        assert before < sites
        before = sites


def test_few_sites_are_of_all_ages(cohort):
    table, split = cohort
    keys = pd.MultiIndex.from_frame(table[PERSON])
    people = table[keys.isin(train_of(split))]
    by_age = people.groupby("site")["age_years"].mean().sort_values().index.tolist()
    for seed in range(5):
        thirds = {by_age.index(site) * 3 // len(by_age) for site in site_order(people, seed=seed)[:4]}
        assert thirds == {0, 1, 2}


def test_tests_and_val_stay_who_they_are_and_nobody_is_lost(cohort):
    table, split = cohort
    made = subset_split(table, split, Subset(people=40, sites=5), seed=0)
    both = split.merge(made, on=PERSON, suffixes=("", "_made"))
    assert len(both) == len(split) == len(made)
    untouched = both[both["split"] != "train"]
    assert (untouched["split"] == untouched["split_made"]).all()
    assert set(both.loc[both["split"] == "train", "split_made"]) == {"train", "val"}


def test_the_order_of_rows_changes_nothing_and_the_seed_does(cohort):
    table, split = cohort
    shuffled = table.sample(frac=1, random_state=3)
    ask = Subset(people=50)
    chosen = train_of(subset_split(table, split, ask, seed=0))
    assert train_of(subset_split(shuffled, split.sample(frac=1, random_state=1), ask, seed=0)) == chosen
    assert train_of(subset_split(table, split, ask, seed=1)) != chosen


def test_a_person_without_a_site_is_never_chosen(cohort):
    table, split = cohort
    lost = sorted(train_of(subset_split(table, split, Subset(people=40), seed=0)))[0]
    nowhere = table.assign(site=table["site"].mask(pd.MultiIndex.from_frame(table[PERSON]) == lost))
    assert lost not in train_of(subset_split(nowhere, split, Subset(people=200), seed=0))


@pytest.mark.parametrize(
    ("subset", "said"),
    [
        (Subset(sites=12), "train has 11 sites"),
        (Subset(people=5), "expected 11 to"),
        (Subset(people=5000), "expected 11 to"),
        (Subset(people=200, sites=2), "2 sites of train hold"),
    ],
)
def test_what_train_does_not_have_is_refused_with_what_it_has(cohort, subset, said):
    with pytest.raises(DataError, match=said):
        subset_split(*cohort, subset, seed=0)


def test_all_of_train_without_val_is_refused(cohort):
    table, split = cohort
    no_val = split.assign(split=split["split"].replace("val", "train"))
    with pytest.raises(DataError, match="there is no val"):
        subset_split(table, no_val, Subset(people=len(train_of(no_val))), seed=0)


def test_the_beginning_of_the_order_is_one_of_each_site():
    table = people_table({"a": 30, "b": 3, "c": 1})
    people = first_scans(table)
    order = people_order(people, seed=0)
    assert set(people["site"].iloc[order[:3]]) == {"a", "b", "c"}
    assert sorted(order) == list(range(34))
