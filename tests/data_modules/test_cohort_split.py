"""Who a cohort's experiment trains on: split files, official splits, drawn ones, and limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from brainage.config import DataConfig
from brainage.data.splits import read_split, write_split
from brainage.data.table import CohortTable, scan_keys
from brainage.errors import ConfigError, DataError, LeakageError
from data_modules.cohort import CohortDataModule
from tests.data_modules.visits import Visits, visits


def test_official_splits_are_kept_and_val_is_carved_out_of_train_only(simulated, tmp_path):
    config = DataConfig(root=str(simulated), modality="vbm_roi", store=str(tmp_path / "s"), prepare_workers=1)
    table = CohortDataModule(config).table.set_index("participant_id")
    sheet = pd.read_csv(simulated / "participants.tsv", sep="\t", dtype=str).set_index("participant_id")["split"]
    official = {"internal_test": "test_internal", "external_test": "test_external", "train": "train"}
    found = table["split"].replace({"val": "train"})
    assert found.to_dict() == sheet.map(official).to_dict()
    assert 0 < (table["split"] == "val").sum() < (table["split"] == "train").sum()


def in_quarters(folder: Path, *splits: str) -> str:
    """A split file of everybody, person by person in turn."""
    split = visits(folder).split.assign(split=list(splits) * (24 // len(splits)))
    write_split(split, folder / "split.tsv")
    return str(folder / "split.tsv")


def test_a_split_file_with_val_is_taken_as_it_is(tmp_path):
    path = in_quarters(tmp_path, "train", "val", "test_internal", "test_external")
    data = visits(tmp_path, split=path, external_sites=[])
    assert data.split.equals(read_split(path))
    assert data.split_hash != visits(tmp_path).split_hash


def test_val_is_carved_out_of_the_train_people_of_a_split_file_without_one(tmp_path):
    path = in_quarters(tmp_path, "train", "train", "train", "test_internal")
    found = visits(tmp_path, split=path, external_sites=[], val_fraction=0.4).split["split"]
    given = read_split(path)["split"]
    assert 0 < (found == "val").sum() < (given == "train").sum()
    assert found.mask(found == "val", "train").equals(given)
    assert visits(tmp_path, split=path, external_sites=[], val_fraction=0.0).split["split"].equals(given)


@pytest.mark.parametrize(
    ("values", "found", "expected"),
    [
        ({"external_sites": ["site2"]}, "data.external_sites=['site2']", "data.external_sites=[]"),
        ({"internal_fraction": 0.3}, "data.internal_fraction=0.3", "data.internal_fraction=0.2"),
        ({"val_fraction": 0.3}, "data.val_fraction=0.3", "data.val_fraction=0.1"),
    ],
)
def test_keys_that_a_split_file_leaves_without_effect_are_refused(tmp_path, values, found, expected):
    path = in_quarters(tmp_path, "train", "val")
    with pytest.raises(ConfigError) as refusal:
        visits(tmp_path, split=path, **{"external_sites": []} | values)
    line = str(refusal.value)
    assert line.startswith(f"{found}: without effect, since data.split={path} says")
    assert f"expected {expected}, or another split" in line


def test_keys_that_an_official_split_leaves_without_effect_are_refused(simulated):
    config = DataConfig(root=str(simulated), modality="vbm_roi", external_sites=["3"], internal_fraction=0.5)
    with pytest.raises(
        ConfigError, match=r"external_sites=\['3'\], data.internal_fraction=0.5: .*official split of open"
    ):
        CohortDataModule(config)
    CohortDataModule(DataConfig(root=str(simulated), modality="vbm_roi", val_fraction=0.3))


def test_a_subject_in_two_splits_is_refused(tmp_path):
    drawn = visits(tmp_path).split
    twice = pd.concat([drawn, drawn.iloc[:1].assign(split="test_external")])
    twice.loc[twice.index[0], "split"] = ["train", "test_external"]
    twice.to_csv(tmp_path / "split.tsv", sep="\t", index=False)
    with pytest.raises(LeakageError, match=r"split\.tsv: person visits/p00 is in test_external and train"):
        visits(tmp_path, split=str(tmp_path / "split.tsv"), external_sites=[])


def test_a_person_whom_the_split_file_does_not_know_is_said(tmp_path):
    write_split(visits(tmp_path).split.iloc[1:], tmp_path / "split.tsv")
    with pytest.raises(DataError, match="1 people of the table are not in the split, first visits/p00"):
        visits(tmp_path, split=str(tmp_path / "split.tsv"), external_sites=[]).planned()


def test_a_limit_takes_that_many_scans_of_each_split_in_the_order_of_the_table(tmp_path):
    whole, limited = visits(tmp_path).planned(), visits(tmp_path, limit=3, store=str(tmp_path / "b"))
    for split, rows in whole.groupby("split"):
        found = limited.table[limited.table["split"] == split]
        assert len(found) == min(3, len(rows))
        assert set(scan_keys(found)) <= set(scan_keys(rows))
    keys = scan_keys(limited.table).tolist()
    assert keys == sorted(keys)
    assert len(limited.store) == len(limited.planned()) == len(limited.table)
    assert visits(tmp_path, limit=1).planned()["split"].value_counts().max() == 1
    assert visits(tmp_path, limit=99).planned().equals(whole)


class SortedBySite(Visits):
    """Ids in the order of sites, as where studies were joined one after the other."""

    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(site="site" + (table.index // 4).astype("string")), dropped)


def test_a_limit_mixes_sites_keeps_persons_together_and_grows_without_exchanging_anybody(tmp_path):
    config = DataConfig(cohort="visits", root=str(tmp_path), store=str(tmp_path / "s"), internal_fraction=0.0, limit=10)
    planned = {
        limit: CohortDataModule(replace(config, limit=limit), reader=SortedBySite(tmp_path, "vbm")).planned()
        for limit in range(1, 30)
    }
    train = {limit: table[table["split"] == "train"] for limit, table in planned.items()}
    assert train[10]["site"].nunique() >= 4  # the first ten rows are of three
    scans = Visits(tmp_path, "vbm").table().table.groupby("participant_id").size()
    for limit, table in train.items():
        assert set(scan_keys(table)) <= set(scan_keys(train.get(limit + 1, table)))
        cut = table.groupby("participant_id").size()
        assert (cut != scans[cut.index]).sum() <= 1, "only the last person may be cut"
