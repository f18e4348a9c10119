"""Frozen representations: found by key, the same whatever they are computed with, never of samples of another kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainage.data.table import scan_keys
from brainage.downstream.embed import embed
from brainage.downstream.features import read_embeddings, write_embeddings
from brainage.errors import ContractError
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import load_module
from tests.scans import FEATURES


@pytest.fixture
def trained(finished):
    """(module, scans)"""
    return load_module(finished[2].checkpoint)[0], finished[1]


def vectors(found, name="trunk") -> np.ndarray:
    return getattr(found, name)


def test_rows_come_in_the_order_asked_for_with_their_keys(trained):
    module, data = trained
    rows = np.array([17, 3, 30, 4])
    found = embed(module, data, rows)
    assert scan_keys(found.keys).tolist() == scan_keys(data.table.iloc[rows]).tolist()
    whole = embed(module, data, np.arange(len(data.table)))
    np.testing.assert_allclose(vectors(found), vectors(whole)[rows], rtol=1e-5, atol=1e-6)


def test_they_are_what_the_encoder_makes_of_one_scan_at_a_time(trained):
    module, data = trained
    found = embed(module, data, np.arange(len(data.table)))
    for row in (0, 21, 39):
        sample = (np.array(data.store.arrays[row]) - module.normaliser.mean.numpy()) / module.normaliser.sd.numpy()
        with torch.no_grad():
            trunk = module.encoder(torch.from_numpy(sample)[None])
            head = module.head(trunk)
        np.testing.assert_allclose(found.trunk[row], trunk[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.head[row], (head / head.norm())[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_batches_change_nothing(trained, batch_size):
    module, data = trained
    rows = np.arange(len(data.table))
    expected = embed(module, data, rows)
    found = embed(module, data, rows, batch_size=batch_size)
    for name in ("trunk", "head"):
        np.testing.assert_allclose(vectors(found, name), vectors(expected, name), rtol=1e-5, atol=1e-6)
        assert vectors(found, name).dtype == np.float32


def test_a_module_left_in_training_mode_is_evaluated_all_the_same(trained):
    module, data = trained
    rows = np.arange(len(data.table))
    expected = vectors(embed(module, data, rows))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = vectors(embed(module.train(), data, rows))
    np.testing.assert_array_equal(found, expected)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())  # BatchNorm too


def test_augmentation_and_random_numbers_play_no_part(trained):
    module, data = trained
    one = embed(module, data, np.arange(5))
    torch.manual_seed(99)
    two = embed(module, data, np.arange(5))
    np.testing.assert_array_equal(vectors(one), vectors(two))


class NeverRead:
    """Scans of another kind whose arrays must not be touched."""

    contract = InputContract("brain", "volume", (1, 9, 9, 9), spacing_mm=(4.0,) * 3, axes="RAS", intensity="raw")

    @property
    def store(self):
        raise AssertionError("arrays were read before the contract was compared")


def test_samples_of_another_kind_are_refused_before_anything_is_computed(trained):
    with pytest.raises(ContractError) as refused:
        embed(trained[0], NeverRead(), np.arange(3))
    message = str(refused.value)
    assert message.startswith("small (trained encoder): input does not fit the encoder: ")
    assert "modality: expected 'features', found 'brain'" in message
    assert f"shape: expected ({FEATURES},), found (1, 9, 9, 9)" in message
    assert "spacing_mm: expected (), found (4.0, 4.0, 4.0)" in message


def test_a_file_of_embeddings_says_what_it_was_computed_from(trained, tmp_path):
    found = embed(*trained, np.arange(4))
    arrays = (found.keys, found.trunk, found.head)
    write_embeddings(tmp_path / "a.parquet", *arrays, source="checkpoint 12ab")
    write_embeddings(tmp_path / "b.parquet", *arrays)
    assert read_embeddings(tmp_path / "a.parquet").source == "checkpoint 12ab"
    assert read_embeddings(tmp_path / "b.parquet").source == ""
