"""Stores seen as one: every row is the one its key names, wherever it lies, and nothing is written."""

from __future__ import annotations

import pickle

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.data.joined import JoinedStore, join_tables
from brainage.data.masking import load_mask
from brainage.data.store import prepare_store
from brainage.data.table import finish_dropped, finish_table
from brainage.errors import ContractError, DataError
from brainage.imaging.contract import InputContract

VECTOR = InputContract("features", "vector", (3,))
VOLUME = InputContract("map", "volume", (1, 2, 3, 2), spacing_mm=(1, 1, 1), origin_mm=(0, 0, 0), axes="RAS")
NOBODY = finish_dropped(pd.DataFrame(columns=["reason"]))


def sample(path: str, contract: InputContract) -> np.ndarray:
    return np.random.default_rng(int(path)).random(contract.shape).astype(np.float32) + 1


class Read:
    def __init__(self, contract: InputContract) -> None:
        self.contract = contract

    def __call__(self, path: str) -> np.ndarray:
        return sample(path, self.contract)


def store_of(folder, cohort: str, numbers, contract=VECTOR, mask=None, **extra):
    rows = {"cohort": cohort, "participant_id": [f"p{n}" for n in numbers], "age_years": 30.0}
    rows |= {"path": [str(n) for n in numbers], **extra}
    table = finish_table(pd.DataFrame(rows), source=cohort).table
    return prepare_store(table, contract, Read(contract), folder / cohort, workers=1, mask=mask)


def joined(folder, contract=VECTOR, mask=None, **values) -> JoinedStore:
    stores = [store_of(folder, "a", [1, 2, 3], contract, mask), store_of(folder, "b", [7, 8], contract, mask)]
    values = {"path": folder / "both", "dropped": NOBODY} | values
    return JoinedStore(stores, [store.table for store in stores], **values)


def expected(store: JoinedStore) -> np.ndarray:
    return np.stack([sample(path, store.contract) for path in store.table["path"]]).astype(store.contract.dtype)


@pytest.mark.parametrize("contract", [VECTOR, VOLUME])
def test_a_row_is_the_sample_that_its_key_names(tmp_path, contract):
    store = joined(tmp_path, contract)
    assert store.table["participant_id"].tolist() == ["p1", "p2", "p3", "p7", "p8"]
    np.testing.assert_array_equal(store.read([4, 0, 3]), expected(store)[[4, 0, 3]])
    out = np.empty((2, *contract.shape), contract.dtype)
    assert store.read([2, 3], out=out) is out
    np.testing.assert_array_equal(out, expected(store)[[2, 3]])
    assert store.nbytes == expected(store).nbytes
    assert not store.verify()
    with pytest.raises(ValueError, match="out: expected"):
        store.read([1], out=out)


@pytest.mark.parametrize("contract", [VECTOR, VOLUME])
def test_its_arrays_answer_as_one_array_would(tmp_path, contract):
    store = joined(tmp_path, contract)
    rows, whole = store.arrays, expected(store)
    assert (rows.shape, rows.dtype, rows.ndim, rows.size, len(rows)) == (
        whole.shape, whole.dtype, whole.ndim, whole.size, len(whole),
    )  # fmt: skip
    np.testing.assert_array_equal(np.asarray(rows), whole)
    np.testing.assert_array_equal(rows[np.array([3, 1])], whole[[3, 1]])
    np.testing.assert_array_equal(rows[1:4], whole[1:4])
    np.testing.assert_array_equal(rows[-1], whole[-1])
    np.testing.assert_array_equal(rows.reshape(5, -1)[:, 1:3], whole.reshape(5, -1)[:, 1:3])
    np.testing.assert_array_equal(np.stack(list(rows)), whole)
    with pytest.raises(ContractError, match="expected to keep 5 rows"):
        rows.reshape(1, -1)


def test_masked_stores_are_joined_as_they_lie_and_read_whole(tmp_path):
    inside = np.arange(12).reshape(2, 3, 2) % 3 > 0
    nib.save(nib.Nifti1Image(inside.astype(np.uint8), VOLUME.affine), tmp_path / "mask.nii")
    mask = load_mask(tmp_path / "mask.nii", 0, VOLUME)
    store = joined(tmp_path, VOLUME, mask)
    whole = expected(store) * inside[None, None]
    np.testing.assert_array_equal(store.read(range(5)), whole)
    np.testing.assert_array_equal(store.read_stored([4, 1]), whole[[4, 1]][:, :, inside].reshape(2, -1))
    np.testing.assert_array_equal(store.arrays[3], whole[3])
    np.testing.assert_array_equal(store.arrays.reshape(5, -1)[:, 2:9], whole.reshape(5, -1)[:, 2:9])
    store.preload()
    assert store.mask is not None


def test_only_the_rows_kept_are_there_and_the_checksum_says_so(tmp_path):
    every = joined(tmp_path)
    dropped = finish_dropped(every.table.iloc[[1]].assign(reason="same person as b/p7"))
    some = joined(tmp_path, keep=[np.array([True, False, True]), np.array([True, True])], dropped=dropped)
    assert some.table["participant_id"].tolist() == ["p1", "p3", "p7", "p8"]
    np.testing.assert_array_equal(some.read([1, 2]), expected(every)[[2, 3]])
    np.testing.assert_array_equal(np.asarray(some.arrays), expected(every)[[0, 2, 3, 4]])
    assert some.checksum != every.checksum == joined(tmp_path).checksum
    assert some.dropped["reason"].tolist() == ["same person as b/p7"]
    assert some.nbytes == 4 * every.nbytes // 5


def test_it_travels_light_and_writes_nothing(tmp_path):
    store = joined(tmp_path)
    store.read([0])
    size = len(pickle.dumps(store))
    copy = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(copy.read([4, 2]), expected(store)[[4, 2]])
    assert size < 60_000
    assert not store.path.exists()


def test_stores_of_another_kind_or_with_one_scan_twice_are_refused(tmp_path):
    a, b = store_of(tmp_path, "a", [1]), store_of(tmp_path, "b", [2], VOLUME)
    with pytest.raises(ContractError, match=r"store.*/b joined with .*/a|/b joined with"):
        JoinedStore([a, b], [a.table, b.table], path=tmp_path, dropped=NOBODY)
    with pytest.raises(DataError, match="scan a/p1// is in two of the joined stores"):
        JoinedStore([a, a], [a.table, a.table], path=tmp_path, dropped=NOBODY)
    with pytest.raises(DataError, match="expected a row for each of its 1 samples, found 0"):
        JoinedStore([a], [a.table.iloc[:0]], path=tmp_path, dropped=NOBODY)


def test_tables_with_other_columns_are_joined_without_losing_a_value():
    one = pd.DataFrame({"x": pd.array(["u"], dtype="string"), "scanner": [3.0], "tiv": [1.5]})
    other = pd.DataFrame({"x": pd.array(["v"], dtype="string"), "scanner": pd.array(["Trio"], dtype="string")})
    found = join_tables([one, other])
    assert found["x"].tolist() == ["u", "v"]
    assert found["scanner"].tolist() == ["3", "Trio"]
    assert found["tiv"].tolist()[0] == 1.5
    assert np.isnan(found["tiv"][1])
    assert found.dtypes.astype(str).tolist() == ["string", "string", "float64"]
