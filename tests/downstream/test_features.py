"""Vectors are found by key, files bring them back, and principal components are those of scikit-learn."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA

from brainage.data.table import KEY
from brainage.downstream import features as module
from brainage.downstream.features import (
    Features,
    join,
    pca_features,
    raw_features,
    read_embeddings,
    write_embeddings,
)
from brainage.errors import DataError

from .cohort import make_features, make_table


def test_vectors_are_joined_by_key_whatever_the_order_of_either_side():
    table = make_table(10, 0, 3, 3)
    numbers = np.arange(len(table), dtype=np.float32)
    features = Features("exp", 0, table[KEY].iloc[::-1], np.stack([numbers, numbers**2], axis=1)[::-1])
    np.testing.assert_array_equal(join(features, table)[:, 0], numbers)
    some = table.sample(frac=0.5, random_state=1)
    np.testing.assert_array_equal(join(features, some)[:, 0], numbers[some.index])


def changed(features, **changes):
    return dataclasses.replace(features, **changes)


def test_vectors_that_do_not_fit_the_table_are_refused_by_scan():
    table = make_table(10, 0, 3, 3)
    features = make_features(table)
    first = "/".join(table.loc[0, KEY].fillna(""))
    lost = (features.keys["participant_id"] != table.loc[0, "participant_id"]).to_numpy()
    with pytest.raises(DataError, match=f"1 of 16 scans have no vector, first {first}"):
        join(changed(features, keys=features.keys[lost], values=features.values[lost]), table)
    twice = changed(
        features, keys=pd.concat([features.keys, features.keys]), values=np.repeat(features.values, 2, axis=0)
    )
    with pytest.raises(DataError, match="16 scans are there more than once"):
        join(twice, table)
    with pytest.raises(DataError, match="table: 1 scans are there more than once"):
        join(features, pd.concat([table, table[:1]]))
    broken = features.values.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="1 vectors hold NaN or infinity, first of scan demo/"):
        join(changed(features, values=broken), table)
    with pytest.raises(DataError, match="the encoder has collapsed"):
        join(changed(features, values=np.ones_like(broken)), table)
    with pytest.raises(DataError, match="found 16 keys and values of shape"):
        changed(features, values=broken[:5])


def test_a_dead_unit_is_no_reason_to_refuse_the_others():
    table = make_table(10, 0, 3, 3)
    features = make_features(table)
    values = features.values.copy()
    values[:, 4] = 0
    assert join(changed(features, values=values), table).shape == (16, 12)


def test_a_file_of_embeddings_brings_keys_and_vectors_back(tmp_path):
    table = make_table(6, 0, 2, 2)
    rng = np.random.default_rng(0)
    trunk, head = rng.normal(size=(10, 7)).astype(np.float32), rng.normal(size=(10, 3)).astype(np.float32)
    write_embeddings(tmp_path / "exp-seed0.parquet", table[KEY], trunk, head)
    found = read_embeddings(tmp_path / "exp-seed0.parquet")
    pd.testing.assert_frame_equal(found.keys, table[KEY])
    np.testing.assert_array_equal(found.trunk, trunk)
    np.testing.assert_array_equal(join(found.features("head", "exp", 0), table), head)
    assert [path.name for path in tmp_path.iterdir()] == ["exp-seed0.parquet"]
    plain = pd.read_parquet(tmp_path / "exp-seed0.parquet")
    np.testing.assert_array_equal(np.stack(plain["trunk"].to_list()), trunk)


def test_a_file_that_holds_no_embeddings_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.parquet: file not found"):
        read_embeddings(tmp_path / "gone.parquet")
    make_table()[KEY].to_parquet(tmp_path / "keys.parquet")
    with pytest.raises(DataError, match=r"keys\.parquet: column 'trunk' missing"):
        read_embeddings(tmp_path / "keys.parquet")
    ragged = make_table(4, 0, 0, 0)[KEY].assign(trunk=[[1.0], [1.0, 2.0], [1.0], [1.0]], head=[[1.0]] * 4)
    ragged.to_parquet(tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match=r"'trunk': expected vectors of one length, found \[1, 2\]"):
        read_embeddings(tmp_path / "ragged.parquet")
    with pytest.raises(DataError, match="found 4, 3 and 4"):
        write_embeddings(tmp_path / "x.parquet", ragged, np.ones((3, 2)), np.ones((4, 2)))


@pytest.fixture
def volumes():
    """fp16 samples of decaying spectrum with a constant background, the last ten of another kind."""
    rng = np.random.default_rng(3)
    samples = np.zeros((50, 1, 8, 9, 7))
    smooth = rng.normal(size=(50, 20)) * np.exp(-np.arange(20) / 4)
    samples[:, :, 2:7] = (smooth @ rng.normal(size=(20, 5 * 9 * 7))).reshape(50, 1, 5, 9, 7) + 1
    samples[40:] += 5
    return samples.astype(np.float16)


def test_components_are_those_of_scikit_learn_fitted_on_the_same_rows(volumes, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_VALUES", 50 * 60)  # several blocks, one of them all background
    table, fit_rows = make_table(40, 0, 0, 10), np.arange(40)
    found = pca_features(volumes, table, fit_rows, n_components=8)
    flat = volumes.reshape(50, -1).astype(np.float64)
    reference = PCA(8, svd_solver="full").fit(flat[fit_rows])
    expected = reference.transform(flat)
    # The background is constant over the fitted rows, so that the last ten differ there without being scored for it.
    signs = np.sign((found.values[:40] * expected[:40]).sum(axis=0))
    np.testing.assert_allclose(found.values[:40] * signs, expected[:40], atol=2e-3)
    np.testing.assert_allclose(found.values[40:] * signs, expected[40:], atol=2e-3)
    assert found.keys.equals(table[KEY])
    assert found.values.dtype == np.float32


@pytest.mark.parametrize("rule", ["zscore", "standardise"])
def test_components_follow_the_rule_of_the_network_s_input(volumes, rule, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK_VALUES", 50 * 60)
    table, fit_rows = make_table(40, 0, 0, 10), np.arange(40)
    found = pca_features(volumes, table, fit_rows, intensity=rule, n_components=5).values
    flat = volumes.reshape(50, -1).astype(np.float64)
    if rule == "zscore":
        flat = (flat - flat.mean(axis=1, keepdims=True)) / flat.std(axis=1, keepdims=True)
    else:
        sd = flat[fit_rows].std(axis=0)
        flat = flat[:, sd > 0] / sd[sd > 0]
    expected = PCA(5, svd_solver="full").fit(flat[fit_rows]).transform(flat)
    signs = np.sign((found[:40] * expected[:40]).sum(axis=0))
    np.testing.assert_allclose(found * signs, expected, atol=2e-3 * np.abs(expected).max())


def test_rows_that_are_not_fitted_move_no_axis(volumes):
    table, changed_rows = make_table(40, 0, 0, 10), volumes.copy()
    changed_rows[40:] = np.random.default_rng(9).normal(size=volumes[40:].shape)
    one, other = (pca_features(x, table, np.arange(40), n_components=5) for x in (volumes, changed_rows))
    np.testing.assert_allclose(one.values[:40], other.values[:40], atol=1e-4)
    assert np.abs(one.values[40:] - other.values[40:]).max() > 1


def test_more_components_than_the_scans_have_are_not_invented(volumes):
    table = make_table(40, 0, 0, 10)
    assert pca_features(volumes, table, np.arange(6), n_components=30).values.shape == (50, 5)
    capped = pca_features(volumes, table, np.arange(40), n_components=30, most_fitted=10, seed=1)
    assert capped.values.shape == (50, 9)


def test_samples_without_components_are_refused(volumes):
    table = make_table(40, 0, 0, 10)
    with pytest.raises(DataError, match="at least two scans"):
        pca_features(volumes, table, np.array([3]))
    with pytest.raises(DataError, match="all equal"):
        pca_features(np.ones((50, 4)), table, np.arange(40))
    volumes[7, 0, 3, 3, 3] = np.nan
    with pytest.raises(DataError, match="row 7 holds NaN"):
        pca_features(volumes, table, np.arange(40))
    with pytest.raises(DataError, match="found 50 and 16"):
        raw_features(volumes, make_table(10, 0, 3, 3))


def test_raw_features_are_the_flattened_samples_unless_they_would_fill_the_memory(volumes, monkeypatch):
    found = raw_features(volumes, make_table(40, 0, 0, 10))
    monkeypatch.setattr(module, "_MOST_RAW_VALUES", 1000)
    with pytest.raises(DataError, match="50 samples of 504 values are too many for ridge; use pca_ridge"):
        raw_features(volumes, make_table(40, 0, 0, 10))
    np.testing.assert_array_equal(found.values, volumes.reshape(50, -1).astype(np.float32))
