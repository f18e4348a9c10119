"""Batches out of stores with and without a mask, and what a device makes of them."""

import numpy as np
import pytest
import torch

from data_modules import batches
from data_modules.batches import DeviceSide, ScanBatches, rows_on
from tests.data.odd_cohort import MASK, VOLUME, build


@pytest.fixture
def stores(tmp_path):
    return build(tmp_path, "whole"), build(tmp_path, "masked", mask=MASK)


@pytest.mark.parametrize("resident", [True, False])
def test_a_batch_moves_the_voxels_inside_and_the_device_makes_the_volumes(stores, resident):
    _, store = stores
    dataset = ScanBatches(None if resident else store, store.table, np.array([1, 4, 7, 9]), reuse=2)
    batch = dataset.__getitems__([3, 0])
    assert batch["index"].tolist() == [9, 1]
    if not resident:
        assert batch["sample"].shape == (2, MASK.voxels)
    batch = DeviceSide(store)(batch)
    assert batch["sample"].shape == (2, *VOLUME.shape)
    np.testing.assert_array_equal(batch["sample"].numpy(), store.read([9, 1]))


def test_without_a_mask_a_batch_is_handed_over_as_it_is(stores):
    store, _ = stores
    batch = ScanBatches(store, store.table, np.arange(12)).__getitems__([5])
    sample = batch["sample"]
    assert DeviceSide(store)(batch)["sample"] is sample
    np.testing.assert_array_equal(sample.numpy(), store.read([5]))


def test_all_rows_reach_the_device_in_blocks(stores, monkeypatch):
    monkeypatch.setattr(batches, "_BLOCK_BYTES", 5 * 16384)  # 5 volumes, 16 masked rows
    for store in stores:
        np.testing.assert_array_equal(rows_on(torch.device("cpu"), store).numpy(), store.stored)


def test_rows_are_moved_to_a_device_once(stores):
    _, store = stores
    side = DeviceSide(store)
    dataset = ScanBatches(None, store.table, np.arange(12))
    side(dataset.__getitems__([0]))
    rows = side._rows
    side(dataset.__getitems__([1]))
    assert side._rows is rows
