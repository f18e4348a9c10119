"""Embeddings computed by several processes: dealt, gathered by key, and to the bit those of one process."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from brainage.data.table import scan_keys
from brainage.downstream.embed import embed
from brainage.errors import DataError
from brainage.pretraining.checkpoint import load_module
from tests.pretraining.groups import together


@pytest.fixture(scope="module")
def scans(finished):
    """(checkpoint, what of the data travels to another process)"""
    data = finished[1]
    arrays = np.array(data.store.arrays)
    plain = SimpleNamespace(contract=data.contract, table=data.table, store=SimpleNamespace(arrays=arrays))
    return finished[2].checkpoint, plain


ROWS = np.array([17, 3, 30, 4, 39, 0, 8, 21, 5, 6, 11])


def embedded(rank, ranks, checkpoint, data):
    """Eleven scans in batches of 4, 2 and 11, and one scan: parts of the ranks differ, and some are empty."""
    module, seen = load_module(checkpoint)[0], []
    encode = module.embed
    module.embed = lambda samples: seen.append(len(samples)) or encode(samples)
    found = []
    for rows, batch_size in ((ROWS, 4), (ROWS, 2), (ROWS, 11), (ROWS[:1], 16)):
        whole = embed(module, data, rows, batch_size=batch_size)
        found.append((scan_keys(whole.keys).tolist(), torch.from_numpy(whole.trunk), torch.from_numpy(whole.head)))
    return found, seen


@pytest.mark.parametrize("ranks", [2, 3])
def test_each_process_gets_what_one_computes_to_the_bit_from_its_own_part(scans, ranks):
    expected, alone = embedded(0, 1, *scans)
    processes = together(ranks, embedded, *scans)
    for found, _ in processes:
        for (keys, *values), (expected_keys, *expected_values) in zip(found, expected, strict=True):
            assert keys == expected_keys
            assert all(torch.equal(one, two) for one, two in zip(values, expected_values, strict=True))
    shares = [seen for _, seen in processes]
    assert sorted(size for share in shares for size in share) == sorted(alone)  # nobody's scan is computed twice
    assert len({sum(share) for share in shares}) > 1
    assert all(shares)


def of_other_scans(rank, ranks, checkpoint, data):
    if rank == 1:
        data.table = data.table.assign(participant_id="x" + data.table["participant_id"])
    with pytest.raises(DataError) as refused:
        embed(load_module(checkpoint)[0], data, ROWS, batch_size=4)
    return str(refused.value)


def test_processes_that_hold_other_scans_are_refused_on_each(scans):
    first, second = together(2, of_other_scans, *scans)
    assert "the processes hold other scans (11 embedded, 4 of this one's 11 not among them)" in first
    assert "(11 embedded, 7 of this one's 11 not among them)" in second


def test_a_scan_asked_for_twice_is_there_once_where_it_was_first(scans):
    module = load_module(scans[0])[0]
    found = embed(module, scans[1], np.array([17, 3, 17, 30, 3]), batch_size=2)
    assert scan_keys(found.keys).tolist() == scan_keys(scans[1].table.iloc[[17, 3, 30]]).tolist()
    np.testing.assert_array_equal(found.trunk[2], embed(module, scans[1], ROWS[2:3]).trunk[0])


def test_no_rows_are_refused(scans):
    with pytest.raises(DataError, match="no scans to embed"):
        embed(load_module(scans[0])[0], scans[1], ROWS[:0])
