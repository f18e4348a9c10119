"""The batch of a step is a pure function of (seed, step), so that a resumed run needs no state."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.sampling import StepBatches
from brainage.errors import ConfigError

SIZES = {"n": st.integers(2, 60), "batch_size": st.integers(1, 70), "seed": st.integers(0, 2**31)}


@settings(max_examples=60, deadline=None)
@given(**SIZES, step=st.integers(0, 400))
def test_the_batch_of_a_step_does_not_depend_on_what_was_asked_before(n, batch_size, seed, step):
    asked_in_order = StepBatches(n, batch_size, seed)
    in_order = [asked_in_order.batch(number) for number in range(step + 1)][-1]
    assert StepBatches(n, batch_size, seed).batch(step) == in_order
    backwards = StepBatches(n, batch_size, seed)
    backwards.batch(step + 17)
    assert backwards.batch(step) == in_order


@settings(max_examples=60, deadline=None)
@given(**SIZES, epoch=st.integers(0, 5))
def test_an_epoch_holds_no_scan_twice_and_leaves_out_less_than_a_batch(n, batch_size, seed, epoch):
    batches = StepBatches(n, batch_size, seed)
    steps = range(epoch * len(batches), (epoch + 1) * len(batches))
    drawn = [batches.batch(step) for step in steps]
    size = min(batch_size, n)
    assert {len(batch) for batch in drawn} == {size}
    flat = [position for batch in drawn for position in batch]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(n))
    assert 0 <= n - len(flat) < size


@settings(max_examples=60, deadline=None)
@given(**SIZES, position=st.integers(0, 200))
def test_a_resumed_epoch_is_the_rest_of_the_undisturbed_one(n, batch_size, seed, position):
    undisturbed, resumed = StepBatches(n, batch_size, seed), StepBatches(n, batch_size, seed, position=lambda: position)
    epoch = position // len(undisturbed)
    whole = [undisturbed.batch(step) for step in range(epoch * len(undisturbed), (epoch + 1) * len(undisturbed))]
    assert list(resumed) == whole[position % len(undisturbed) :]


def test_the_position_is_asked_for_anew_at_each_epoch():
    stands_at = iter([0, 3, 7])
    batches = StepBatches(9, 3, seed=1, position=lambda: next(stands_at))
    epochs = [list(batches) for _ in range(3)]
    assert epochs[0] == [batches.batch(step) for step in (0, 1, 2)]
    assert epochs[1] == [batches.batch(step) for step in (3, 4, 5)]
    assert epochs[2] == [batches.batch(step) for step in (7, 8)]


def test_epochs_and_seeds_shuffle_differently():
    one, other = StepBatches(40, 40, seed=0), StepBatches(40, 40, seed=1)
    assert sorted(one.batch(0)) == list(range(40))
    assert one.batch(0) != list(range(40))
    assert one.batch(0) != one.batch(1)
    assert one.batch(0) != other.batch(0)


def test_every_scan_comes_first_about_equally_often():
    first = [StepBatches(8, 1, seed).batch(0)[0] for seed in range(800)]
    counts = np.bincount(first, minlength=8)
    assert counts.min() > 60  # expected 100, sd 9.4
    assert counts.max() < 140


def test_with_fewer_scans_than_a_batch_an_epoch_is_one_batch_of_all():
    batches = StepBatches(5, 64, seed=0)
    assert len(batches) == 1
    assert sorted(batches.batch(0)) == sorted(batches.batch(3)) == list(range(5))


def test_overfitting_repeats_the_first_batches_of_the_first_epoch_for_ever():
    ordinary, repeated = StepBatches(20, 4, seed=0), StepBatches(20, 4, seed=0, repeat_first=2)
    assert len(repeated) == 2
    assert [repeated.batch(step) for step in range(6)] == [ordinary.batch(0), ordinary.batch(1)] * 3
    assert len(StepBatches(20, 4, seed=0, repeat_first=99)) == 5


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_scans_cannot_be_trained_on(n):
    with pytest.raises(ConfigError, match=f"at least 2 scans, found {n}"):
        StepBatches(n, 4, seed=0)
