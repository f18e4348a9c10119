"""The data module: what a batch holds, who is in which loader, and that none of its shortcuts changes a batch."""

from __future__ import annotations

import shutil
from collections import deque

import lightning as L
import numpy as np
import pytest
import torch

from brainage.config import DataConfig
from brainage.data.table import person_keys, sample_numbers, scan_keys
from brainage.errors import ConfigError, StoreError
from data_modules.cohort import CohortDataModule
from tests.data_modules.visits import Visits, visits


def batches(data: CohortDataModule) -> list[dict[str, torch.Tensor]]:
    """Copies of one epoch's batches, as the training step would get them."""
    served = (data.on_after_batch_transfer(batch, 0) for batch in data.train_dataloader())
    return [{name: values.clone() for name, values in batch.items()} for batch in served]


def assert_equal_batches(found, expected) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_batch_holds_the_scans_that_its_keys_name(tmp_path):
    data = visits(tmp_path)
    table = data.table.assign(number=sample_numbers(data.table).astype(np.int64)).set_index("number")
    person_of = {}
    for batch in batches(data):
        rows = table.loc[batch["key"].tolist()]
        assert batch["sample"].dtype == torch.float32
        assert batch["sample"].tolist() == [[float(path)] * 3 for path in rows["path"]]
        assert batch["age_years"].tolist() == rows["age_years"].tolist()
        assert scan_keys(data.table.iloc[batch["index"].tolist()]).tolist() == scan_keys(rows).tolist()
        assert set(rows["split"]) == {"train"}
        for subject, person in zip(batch["subject"].tolist(), person_keys(rows), strict=True):
            assert person_of.setdefault(subject, person) == person
    assert len(set(person_of.values())) == len(person_of)


def test_volumes_arrive_as_the_reader_gives_them(simulated, tmp_path):
    data = CohortDataModule(
        DataConfig(root=str(simulated), store=str(tmp_path / "store"), batch_size=4, prepare_workers=1)
    )
    batch = batches(data)[0]
    paths = data.table["path"].iloc[batch["index"].tolist()]
    expected = np.stack([data.reader.read(path) for path in paths]).astype(np.float16)
    assert batch["sample"].dtype == torch.float16
    np.testing.assert_array_equal(batch["sample"].numpy(), expected)


@pytest.mark.parametrize("resident", ["host", "device"])
def test_where_the_arrays_live_changes_no_batch(tmp_path, resident):
    assert_equal_batches(batches(visits(tmp_path, resident=resident)), batches(visits(tmp_path)))


def test_a_loader_process_changes_no_batch(tmp_path):
    with_worker = visits(tmp_path, workers=1)
    expected = batches(visits(tmp_path))
    assert_equal_batches(batches(with_worker), expected)
    for name in ("sample", "index"):
        in_order = [batch[name].clone() for batch in with_worker.val_dataloader()]
        assert all(map(torch.equal, in_order, [batch[name] for batch in visits(tmp_path).val_dataloader()]))


def test_batches_that_are_still_in_use_are_not_written_over(tmp_path):
    """Lightning holds the batch of the step and the one it fetched ahead while the next is being read."""
    data = visits(tmp_path, batch_size=2)
    dataset = data.train_dataloader().dataset
    held: deque = deque(maxlen=2)
    for turn in range(12):
        batch = dataset.__getitems__([turn % 5, turn % 7])
        for earlier, as_it_was in held:
            assert torch.equal(earlier["sample"], as_it_was), f"batch {turn} went into the memory of an earlier one"
        held.append((batch, batch["sample"].clone()))


class Compares(L.LightningModule):
    """Trains nothing; notes whether a batch is still itself at the beginning and the end of its step."""

    def __init__(self, data: CohortDataModule) -> None:
        super().__init__()
        self.data, self.weight, self.steps = data, torch.nn.Parameter(torch.zeros(())), 0

    def check(self, batch) -> None:
        assert torch.equal(batch["sample"], torch.from_numpy(self.data.store.read(batch["index"].numpy())))

    def training_step(self, batch, batch_idx):
        self.check(batch)
        self.steps += 1
        return self.weight**2

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.check(batch)

    def validation_step(self, batch, batch_idx):
        self.check(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_sees_every_batch_whole(tmp_path):
    data = visits(tmp_path, batch_size=3)
    module = Compares(data)
    L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    ).fit(module, datamodule=data)  # fmt: skip
    assert module.steps == 3 * (len(data.rows("train")) // 3) > 6


def test_nobody_is_in_two_loaders_and_no_test_person_in_any(tmp_path):
    data = visits(tmp_path, val_fraction=0.4, batch_size=2)
    train = {index for batch in batches(data) for index in batch["index"].tolist()}
    val = [index for batch in data.val_dataloader() for index in batch["index"].tolist()]
    people = person_keys(data.table)
    assert set(data.table["split"].iloc[list(train)]) == {"train"}
    assert set(data.table["split"].iloc[val]) == {"val"}
    assert not set(people.iloc[list(train)]) & set(people.iloc[val])
    assert val == sorted(val)  # in the order of the store, at every validation alike


def test_every_person_is_whole_in_one_split(tmp_path):
    splits = visits(tmp_path, val_fraction=0.4).table.groupby("participant_id")["split"].nunique()
    assert splits.max() == 1


def test_validation_batches_are_of_one_size_but_for_one_scan_and_a_single_scan_is_none(tmp_path):
    data = visits(tmp_path, val_fraction=0.4, batch_size=4)
    scans = len(data.rows("val"))
    assert scans % 4  # or this shows nothing
    sizes = [len(batch["index"]) for batch in data.val_dataloader()]
    assert sum(sizes) == scans
    assert len(sizes) == scans // 4 + 1
    assert max(sizes) - min(sizes) <= 1
    assert visits(tmp_path, val_fraction=0.0).val_dataloader() == []


@pytest.mark.parametrize("batch_size", [2, 3, 4, 5, 50])
def test_no_training_batch_is_ragged(tmp_path, batch_size):
    """One scan left over would reach BatchNorm alone, which cannot normalise it."""
    data = visits(tmp_path, batch_size=batch_size)
    scans = len(data.rows("train"))
    assert {len(batch["index"]) for batch in data.train_dataloader()} == {min(batch_size, scans)}


def test_two_splits_share_one_store(tmp_path):
    one = visits(tmp_path)
    one.prepare()
    Visits.reads.clear()
    other = visits(tmp_path, split_seed=1, external_sites=["site0"])
    assert other.store.path == one.store.path
    assert Visits.reads == []
    assert one.table["split"].tolist() != other.table["split"].tolist()
    assert (other.table.loc[other.table["site"] == "site0", "split"] == "test_external").all()
    assert one.store.table["split"].isna().all()
    assert visits(tmp_path).table.equals(one.table)


def test_the_stores_folder_follows_from_where_the_cohort_lies_and_what_is_read_of_it(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()

    def path(root="a", **values):
        return visits(tmp_path / root, store="auto", **values).store_path

    assert path() == path(batch_size=9, split_seed=5, val_fraction=0.3, resident="host")
    assert path(limit=3) == path(limit=3, batch_size=9)
    others = [path("b"), path(limit=3), path(limit=4), path(limit=3, external_sites=["site0"]), path(spacing_mm=2.0)]
    assert len({path(), *others}) == 6
    assert path().name.startswith("visits_vbm_")


def test_the_seed_alone_decides_the_order(tmp_path):
    assert_equal_batches(batches(visits(tmp_path, seed=3)), batches(visits(tmp_path, seed=3)))
    orders = [[b["index"].tolist() for b in batches(visits(tmp_path, seed=seed))] for seed in (3, 4)]
    assert orders[0] != orders[1]


def test_overfitting_serves_the_first_batches_only(tmp_path):
    data = visits(tmp_path, overfit_batches=1)
    assert len(data.train_dataloader()) == 1
    assert batches(data)[0]["index"].tolist() == batches(visits(tmp_path))[0]["index"].tolist()


def test_waiting_for_batches_is_counted(tmp_path):
    data = visits(tmp_path)
    assert data.loader_wait_s() == 0.0
    batches(data)
    assert data.loader_wait_s() > 0.0


def test_the_plan_counts_people_scans_and_sites(tmp_path):
    data = visits(tmp_path)
    lines = data.describe()
    table = data.planned()
    external = table[table["split"] == "test_external"]
    assert lines["test_external"].startswith(
        f"{len(external)} scans of {external['participant_id'].nunique()} people at 1 site, ages "
    )
    assert "to be prepared" in lines["store"]
    data.prepare()
    assert "prepared)" in data.describe()["store"]


def test_one_training_scan_is_too_few(tmp_path):
    with pytest.raises(ConfigError, match="at least 2 scans, found 1"):
        visits(tmp_path, limit=1).train_dataloader()


def test_an_unknown_cohort_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'openbhb'"):
        CohortDataModule(DataConfig(cohort="openbbh", root=str(tmp_path)))


def test_people_without_a_scan_are_in_the_plan_and_not_among_the_dropped(tmp_path):
    data = visits(tmp_path)
    assert "absent" not in data.describe()
    data.reader.without_scan = lambda: [f"p{number}" for number in range(90, 95)]
    assert data.describe()["absent"] == "5 people of the cohort's tables have no vbm here: p90, p91, p92, ..."
    assert "dropped" not in data.describe()


def test_a_map_replaced_in_place_is_refused_by_the_store(simulated, tmp_path):
    root = shutil.copytree(simulated, tmp_path / "openbhb", ignore=shutil.ignore_patterns("*quasiraw*", "*freesurfer*"))
    config = DataConfig(root=str(root), modality="vbm", store=str(tmp_path / "store"), prepare_workers=1)
    path = CohortDataModule(config).store.table["path"][3]
    np.save(root / path, np.load(root / path) * 0.5)
    with pytest.raises(StoreError, match=f"{path} of scan .* holds other values now; delete the folder"):
        CohortDataModule(config).prepare()
