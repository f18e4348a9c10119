"""Shuffles of people against the definition: whole people, all orders alike, and a p value that holds its level."""

import numpy as np
from scipy import stats

from brainage.statistics.permutation import permutation_p, person_shuffles

PERSONS = np.array(["b", "a", "c", "a", "b", "d", "e", "f", "f", "f"])  # a, b: two scans; c, d, e: one; f: three


def test_all_scans_of_a_person_get_those_of_one_other_in_their_order():
    labels = np.array(["b0", "a0", "c0", "a1", "b1", "d0", "e0", "f0", "f1", "f2"])
    for rows in person_shuffles(PERSONS, shuffles=50, seed=0):
        new = labels[rows]
        assert sorted(new) == sorted(labels)
        for person in "abcdef":
            got = new[person == PERSONS]
            assert len({label[0] for label in got}) == 1
            assert [int(label[1]) for label in got] == list(range(len(got)))
        assert new[PERSONS == "f"].tolist() == ["f0", "f1", "f2"]  # nobody else has three


def test_every_order_is_as_probable_as_any_other():
    persons = np.array(["x", "y", "z"])
    orders = [tuple(rows) for rows in person_shuffles(persons, shuffles=3000, seed=1)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 0.001


def test_people_of_other_strata_never_exchange():
    strata = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    drawn = [tuple(rows) for rows in person_shuffles(PERSONS, shuffles=200, seed=2, strata=strata)]
    assert len(set(drawn)) == 4  # a with b, d with e, nothing else
    for rows in drawn:
        assert (strata[list(rows)] == strata).all()


def test_the_p_value_of_equal_groups_is_below_5_percent_in_5_percent():
    rng = np.random.default_rng(3)
    persons, group = np.arange(30).astype(str), np.arange(30) % 2
    ps = []
    for sample in range(400):
        x = rng.normal(size=30)
        values = [x[rows][group == 1].mean() for rows in person_shuffles(persons, shuffles=99, seed=sample)]
        ps.append(permutation_p(x[group == 1].mean(), np.array(values)))
    low, high = stats.binom.ppf([0.0005, 0.9995], 400, 0.05)
    assert low <= (np.array(ps) <= 0.05).sum() <= high
    assert min(ps) >= 0.01
