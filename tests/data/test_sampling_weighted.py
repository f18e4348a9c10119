"""Balanced and weighted batches: how often each scan comes, never twice in a batch, and without a state."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.sampling import StepBatches, scan_strata, scan_weights, share
from brainage.errors import ConfigError


@st.composite
def weighted(draw):
    """(n, B, seed, weights, strata): some strata of equal weight, some scans of none."""
    n = draw(st.integers(2, 60))
    strata = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)))
    of_stratum = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 1.0, 3.0, 50.0]), min_size=7, max_size=7)))
    weights = of_stratum[strata]
    if (weights > 0).sum() < 2:
        weights = np.ones(n)
    return n, draw(st.integers(1, 70)), draw(st.integers(0, 2**31)), weights, strata


def batches_of(n, batch_size, seed, weights, strata, **options) -> StepBatches:
    return StepBatches(n, batch_size, seed, weights=weights, strata=strata, **options)


def epoch_of(batches: StepBatches, epoch: int) -> list[list[int]]:
    return [batches.batch(step) for step in range(epoch * len(batches), (epoch + 1) * len(batches))]


def expected_by_brute_force(weights: np.ndarray, steps: int, size: int) -> np.ndarray:
    """Draws an epoch of each scan: in proportion to its weight, but once a step at most (found by bisection)."""
    low, high = 0.0, steps * size / weights[weights > 0].min() * 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(weights * middle, steps).sum() < steps * size else (low, middle)
    return np.minimum(weights * high, steps)


@settings(max_examples=150, deadline=None)
@given(weighted(), st.integers(0, 40))
def test_no_scan_is_twice_in_a_batch_and_none_of_weight_zero_is_drawn(given_weights, step):
    n, size, _, weights, _ = given_weights
    batches = batches_of(*given_weights)
    assert len(batches) == n // min(size, (weights > 0).sum())
    batch = batches.batch(step)
    assert len(batch) == len(set(batch)) == min(size, (weights > 0).sum())
    assert (weights[batch] > 0).all()


@settings(max_examples=150, deadline=None)
@given(weighted(), st.integers(0, 30))
def test_an_epoch_draws_each_stratum_its_expected_number_of_times_rounded(given_weights, epoch):
    _, _, _, weights, strata = given_weights
    batches = batches_of(*given_weights)
    expected = expected_by_brute_force(weights, len(batches), batches.batch_size)
    drawn = Counter(strata[position] for batch in epoch_of(batches, epoch) for position in batch)
    for stratum in set(strata.tolist()):
        wanted = expected[strata == stratum].sum()
        assert np.floor(wanted - 1e-6) <= drawn[stratum] <= np.ceil(wanted + 1e-6)


@settings(max_examples=80, deadline=None)
@given(weighted(), st.integers(1, 12))
def test_the_scans_of_a_stratum_take_turns_however_long_the_training(given_weights, epochs):
    n, _, _, weights, strata = given_weights
    batches = batches_of(*given_weights)
    drawn = np.zeros(n, dtype=int)
    for epoch in range(epochs):
        drawn += np.bincount(np.concatenate(epoch_of(batches, epoch)), minlength=n)
    for stratum in set(strata[weights > 0].tolist()):
        members = drawn[strata == stratum]
        assert members.max() - members.min() <= 1


@settings(max_examples=60, deadline=None)
@given(weighted(), st.integers(0, 200))
def test_a_weighted_training_resumed_at_any_step_goes_on_with_the_same_batches(given_weights, position):
    undisturbed = batches_of(*given_weights)
    epoch = position // len(undisturbed)
    whole = epoch_of(undisturbed, epoch)
    resumed = batches_of(*given_weights, position=lambda: position)
    assert list(resumed) == whole[position % len(undisturbed) :]
    backwards = batches_of(*given_weights)
    backwards.batch(position + 3 * len(backwards))
    assert backwards.batch(position) == undisturbed.batch(position)


@settings(max_examples=60, deadline=None)
@given(weighted(), st.integers(0, 20), st.integers(1, 4))
def test_the_parts_of_all_ranks_laid_end_to_end_are_the_global_batch(given_weights, step, ranks):
    batch = batches_of(*given_weights).batch(step)
    if ranks > len(batch):
        with pytest.raises(ConfigError, match="leaves some without any"):
            share(batch, 0, ranks)
        return
    parts = [share(batch, rank, ranks) for rank in range(ranks)]
    assert [position for part in parts for position in part] == batch
    assert len(parts[0]) - len(parts[-1]) in (0, 1)
    assert [len(part) for part in parts] == sorted((len(part) for part in parts), reverse=True)


@pytest.mark.parametrize("rank", [-1, 3])
def test_a_rank_that_does_not_exist_has_no_part(rank):
    with pytest.raises(ConfigError, match="expected 0 to 2"):
        share([1, 2, 3], rank, 3)


def test_every_scan_appears_though_its_weight_is_small():
    weights = np.r_[np.full(50, 1.0), np.full(50, 20.0)]
    batches = StepBatches(100, 8, seed=3, weights=weights)
    drawn = np.zeros(100, dtype=int)
    for epoch in range(30):  # 30 x 96 draws: 2.7 of each rare one
        drawn += np.bincount(np.concatenate(epoch_of(batches, epoch)), minlength=100)
    assert set(drawn[:50]) == {2, 3}
    assert abs(drawn[50:].sum() / drawn[:50].sum() - 20) < 0.5


def test_long_run_frequencies_are_the_weights_without_strata():
    weights = np.random.default_rng(0).uniform(0.2, 2.0, 40)
    batches = StepBatches(40, 5, seed=1, weights=weights)
    drawn = sum(np.bincount(np.concatenate(epoch_of(batches, epoch)), minlength=40) for epoch in range(200))
    np.testing.assert_allclose(drawn / drawn.sum(), weights / weights.sum(), atol=4 / 8000)


def test_every_batch_of_a_balanced_epoch_has_its_part_of_each_bin():
    bins = np.repeat([0, 1, 2, 3], [400, 60, 24, 16])
    weights = (1 / np.bincount(bins))[bins]
    batches = StepBatches(500, 20, seed=0, weights=weights, strata=bins)
    for batch in epoch_of(batches, 0) + epoch_of(batches, 7):
        counts = np.bincount(bins[batch], minlength=4)
        assert counts.sum() == 20
        assert counts.min() >= 4  # 5 each, a bin's part of a step rounded down or up
        assert counts.max() <= 6


def test_bins_too_small_for_their_part_are_in_every_batch_once():
    weights = np.r_[1.0, np.full(99, 1 / 99)]  # one scan is worth as much as all others
    batches = StepBatches(100, 10, seed=0, weights=weights)
    assert all(batch.count(0) == 1 for epoch in (0, 5) for batch in epoch_of(batches, epoch))


def test_positions_within_a_batch_are_shuffled_so_that_no_rank_gets_one_stratum():
    bins = np.repeat([0, 1], 200)
    batches = StepBatches(400, 40, seed=0, weights=np.ones(400), strata=bins)
    first_half = [np.mean(bins[batch[:20]]) for epoch in range(20) for batch in epoch_of(batches, epoch)]
    assert 0.45 < np.mean(first_half) < 0.55
    assert np.std(first_half) < 0.15  # 0 or 1 each where the strata stayed together


def test_pairs_meet_as_often_within_a_stratum_as_chance_has_it():
    batches = StepBatches(12, 4, seed=0, weights=np.ones(12))
    met = sum(0 in batch and 1 in batch for epoch in range(2000) for batch in epoch_of(batches, epoch))
    assert abs(met / 2000 - 3 / 11) < 0.04  # chance 3/11 an epoch, sd 0.01


def test_seeds_and_epochs_draw_differently_and_overfitting_repeats_the_first_epoch():
    weights = np.r_[np.ones(20), np.full(20, 3.0)]
    one, other = StepBatches(40, 8, 0, weights=weights), StepBatches(40, 8, 1, weights=weights)
    assert one.batch(0) != other.batch(0)
    assert epoch_of(one, 0) != epoch_of(one, 1)
    repeated = StepBatches(40, 8, 0, weights=weights, repeat_first=2)
    assert [repeated.batch(step) for step in range(4)] == [one.batch(0), one.batch(1)] * 2


def test_an_order_of_a_seed_is_pinned_for_good():
    weights = [1, 1, 1, 1, 4, 4, 0]
    batches = StepBatches(7, 3, 0, weights=weights)
    assert [batches.batch(step) for step in range(4)] == [[3, 5, 4], [4, 5, 1], [4, 0, 5], [4, 2, 5]]


@pytest.mark.parametrize("weights", [[1, 2], [1, -1, 1], [1, np.nan, 1], [1, np.inf, 1]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ConfigError, match="expected 3 numbers of 0 or more"):
        StepBatches(3, 2, 0, weights=weights)


def test_fewer_than_two_scans_of_a_weight_cannot_be_trained_on():
    with pytest.raises(ConfigError, match=r"at least 2 scans of a weight above 0 \(data\.weights\), found 1"):
        StepBatches(3, 2, 0, weights=[0, 0, 1])


def cohorts(**sizes: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    names = np.repeat(list(sizes), list(sizes.values()))
    return pd.DataFrame(
        {
            "cohort": pd.array(names, dtype="string"),
            "site": pd.array(rng.choice(["1", "2", "3"], len(names), p=[0.7, 0.2, 0.1]), dtype="string"),
            "age_years": rng.normal(40, 15, len(names)).clip(5, 95),
        }
    )


def total(weights: np.ndarray, by: pd.Series) -> dict:
    return pd.Series(weights).groupby(by.to_numpy()).sum().round(9).to_dict()


def test_balance_gives_each_bin_site_or_cohort_the_same_share():
    table = cohorts(a=300, b=60)
    table.loc[:9, "site"] = pd.NA
    places = table["cohort"] + "/" + table["site"].fillna("?")  # site 1 of a is not site 1 of b
    for balance, groups in {"age": table["age_years"] // 5, "site": places, "cohort": table["cohort"]}.items():
        weights, strata = scan_weights(table, balance=balance), scan_strata(table, balance=balance)
        assert weights.sum() == pytest.approx(1)
        assert set(total(weights, groups).values()) == {round(1 / groups.nunique(), 9)}
        assert len(set(zip(strata, groups, strict=True))) == len(set(strata)) == groups.nunique()
        assert pd.Series(weights).groupby(strata).nunique().eq(1).all()


def test_cohort_weights_are_shares_and_a_balance_holds_within_each_cohort():
    table = cohorts(a=300, b=60)
    weights = scan_weights(table, balance="age", cohort_weights={"a": 3, "b": 1})
    assert total(weights, table["cohort"]) == {"a": 0.75, "b": 0.25}
    for name, part in pd.DataFrame({"w": weights, "bin": table["age_years"] // 5}).groupby(table["cohort"]):
        shares = part.groupby("bin")["w"].sum()
        np.testing.assert_allclose(shares, {"a": 0.75, "b": 0.25}[name] / len(shares))
    assert total(scan_weights(table, cohort_weights={"a": 1, "b": 0}), table["cohort"]) == {"a": 1.0, "b": 0.0}


def test_without_a_wish_all_scans_count_alike():
    assert scan_weights(cohorts(a=5), balance="none", cohort_weights={}) is None
    assert scan_strata(cohorts(a=5)) is None


def test_scans_without_an_age_are_a_bin_of_their_own():
    table = pd.DataFrame({"cohort": ["a"] * 3 + ["b"] * 2, "age_years": [21.0, np.nan, np.nan, 62.0, 63.0]})
    assert scan_weights(table, balance="age").round(3).tolist() == [0.333, 0.167, 0.167, 0.167, 0.167]
    assert scan_strata(table, balance="age").tolist() == [1, 0, 0, 2, 2]
    weighted = scan_weights(table, balance="age", cohort_weights={"a": 1, "b": 1})
    assert weighted.tolist() == [0.25, 0.125, 0.125, 0.25, 0.25]
    assert scan_weights(table[1:3], balance="age").tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "ages"}, r"data\.balance=ages: unknown.*'age'"),
        ({"cohort_weights": {"a": 1, "bb": 1}}, r"data\.weights\.bb: no scan to train on.*'b'"),
        ({"cohort_weights": {"a": 1}}, r"expected a share for each cohort, found none for b"),
        ({"cohort_weights": {"a": -1, "b": 1}}, r"data\.weights\.a=-1: expected a share of 0 or more"),
        ({"cohort_weights": {"a": float("nan"), "b": 1}}, r"data\.weights\.a=nan"),
        ({"cohort_weights": {"a": 0, "b": 0}}, "every share is 0"),
        ({"balance": "cohort", "cohort_weights": {"a": 1, "b": 1}}, "keep one"),
    ],
)
def test_wishes_that_contradict_the_table_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        scan_weights(cohorts(a=5, b=5), **options)


def test_two_bins_of_equal_size_are_each_drawn_their_number_of_times():
    table = pd.DataFrame({"cohort": "a", "age_years": [21.0] * 10 + [61.0] * 10 + [35.0] * 30})
    options = {"weights": scan_weights(table, balance="age"), "strata": scan_strata(table, balance="age")}
    batches = StepBatches(50, 7, 0, **options)
    for epoch in range(20):
        ages = table["age_years"].to_numpy()[np.concatenate(epoch_of(batches, epoch))]
        assert all((ages == age).sum() in (16, 17) for age in (21.0, 61.0, 35.0))  # 49 / 3


def test_an_epoch_of_fifty_thousand_scans_is_planned_in_well_under_a_second():
    bins = np.random.default_rng(0).normal(9, 3, 50_000).astype(int).clip(1, 18)
    start = time.process_time()
    batches = StepBatches(50_000, 64, 0, weights=(1 / np.bincount(bins, minlength=19).clip(1))[bins], strata=bins)
    batches.batch(300 * len(batches))
    assert time.process_time() - start < 0.5  # 0.02 s
