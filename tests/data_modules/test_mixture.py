"""Several cohorts as one: names, splits, stores that are reused, and one person in two of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainage.config import DataConfig, MemberConfig, from_plain, to_plain
from brainage.data.splits import seen_people, was_seen, write_split
from brainage.data.table import finish_table, scan_keys
from brainage.downstream.evaluate import evaluate
from brainage.errors import ConfigError, ContractError, DataError, LeakageError
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.run import pretrain
from data_modules import COHORTS
from data_modules.cohort import CohortDataModule
from tests.data_modules.reexported import Reexported, mixture, write_pair
from tests.data_modules.visits import Visits
from tests.scans import VectorCohort, small_experiment


@pytest.fixture(scope="module")
def again(tmp_path_factory):
    """OpenBHB with the study IXI, the same people as a cohort of their own, and a folder where stores are kept."""
    folder = tmp_path_factory.mktemp("again")
    return write_pair(folder), folder / "stores"


@pytest.fixture(autouse=True)
def known_cohorts(monkeypatch):
    for reader in (Reexported, VectorCohort, Visits, Others):
        monkeypatch.setitem(COHORTS, reader.name, reader)


def downloads(folder: Path, **values) -> CohortDataModule:
    """Two downloads of one cohort, `one` and `two`: 24 people, 32 scans, in each."""
    members = {
        name: MemberConfig(cohort="visits", root=str(folder), store=str(folder / name)) for name in ("one", "two")
    }
    config = {"cohort": "mixture", "members": members, "store": str(folder / "both"), "prepare_workers": 1} | values
    return CohortDataModule(DataConfig(batch_size=5, **config))


def test_every_planted_overlap_is_found_and_nobody_else(again):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn")
    data.prepare()
    pairs = data.overlaps.pairs
    assert dict(zip(pairs["other_participant_id"], pairs["participant_id"], strict=True)) == pair.truth
    assert set(pairs["verdict"]) == {"same"}
    assert set(pairs["rule"]) == {"content"}
    assert set(pairs["sexes"]) == {"equal"}
    assert (pairs["age_gap_years"] == 0).all()
    line = data.describe()
    assert "12 people in more than one cohort (12 by content)" in line["overlap"]
    assert "openbhb holds the study IXI (12 people), which is ixi" in line["contained"]
    assert (folder / "mixture" / "overlap.tsv").is_file()


def test_one_person_in_two_splits_is_refused_before_training_and_nothing_is_when_they_agree(again, tmp_path):
    pair, folder = again
    with pytest.raises(LeakageError, match=r"ixi/IXI\d+ \(\w+\) = openbhb/\d+ \(\w+\).*data.overlap=drop"):
        mixture(pair, folder).prepare()
    split = mixture(pair, folder, overlap="warn").split
    where = split.set_index(["cohort", "participant_id"])["split"]
    agreed = [where["openbhb", pair.truth.get(p, "")] if p in pair.truth else s for _, p, s in split.to_numpy()]
    write_split(split.assign(split=agreed), tmp_path / "agreed.tsv")
    data = mixture(pair, folder, split=str(tmp_path / "agreed.tsv"))
    data.prepare()
    assert len(data.table) == 156
    moved = split.assign(split=agreed)
    moved.loc[moved["participant_id"] == "IXI003", "split"] = "val"
    moved.loc[moved["participant_id"] == pair.truth["IXI003"], "split"] = "train"
    write_split(moved, tmp_path / "moved.tsv")
    with pytest.raises(
        LeakageError, match=rf"1 people .* ixi/IXI003 \(val\) = openbhb/{pair.truth['IXI003']} \(train\)"
    ):
        mixture(pair, folder, split=str(tmp_path / "moved.tsv")).prepare()


def test_drop_removes_exactly_the_second_scans_and_copies_no_store(again):
    pair, folder = again
    whole = mixture(pair, folder, overlap="warn")
    keys = set(scan_keys(whole.table))
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*/*.npy")}
    data = mixture(pair, folder, overlap="drop")
    assert keys - set(scan_keys(data.table)) == {f"ixi/{name}/1/" for name in pair.truth}
    reasons = data.dropped.set_index("participant_id")["reason"]
    assert reasons.to_dict() == {name: f"same person as openbhb/{person}" for name, person in pair.truth.items()}
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*/*.npy")} == before
    assert not list((folder / "mixture").glob("*.npy"))
    for row in (0, len(data.table) - 1):
        member = data.members[row > 0]
        sample = member.reader.read(data.table["path"].iloc[row]).astype(np.float16)
        np.testing.assert_array_equal(data.store.read([row])[0], sample)


def test_who_is_in_a_checkpoint_under_one_name_is_known_under_the_other(again):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn")
    ours = data.table[data.table["participant_id"].isin(pair.truth.values())]
    theirs = data.table[data.table["cohort"] == "ixi"]
    known = was_seen(theirs, seen_people(ours, "s"), "s")
    assert set(theirs["participant_id"][known]) == set(pair.truth)
    alone = CohortDataModule(DataConfig(root=str(pair.openbhb), store=str(folder / "openbhb"))).listed.table
    found = was_seen(alone, seen_people(theirs, "s"), "s")
    assert set(alone["participant_id"][found]) == set(pair.truth.values())


def test_what_was_compared_is_not_compared_again(again, monkeypatch):
    pair, folder = again
    first = mixture(pair, folder, overlap="warn")
    first.prepare()
    monkeypatch.setattr("data_modules.overlaps.find_duplicates", None)
    second = mixture(pair, folder, overlap="warn")
    second.prepare()
    pd.testing.assert_frame_equal(second.overlaps.pairs, first.overlaps.pairs)


def test_official_splits_are_honoured_and_the_other_members_drawn(again):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn")
    assert data.split_source == "openbhb official, ixi drawn"
    alone = CohortDataModule(DataConfig(root=str(pair.openbhb)))
    ours = data.split[data.split["cohort"] == "openbhb"]
    assert ours.reset_index(drop=True).equals(alone.split)
    assert {"train", "val", "test_internal"} <= set(data.split.loc[data.split["cohort"] == "ixi", "split"])


def test_sites_are_one_vocabulary_and_are_held_out_by_their_joined_names(again):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn", external_sites=["ixi:HH"])
    table = data.planned()
    assert {"ixi:HH", "ixi:Guys", "openbhb:0"} <= set(table["site"])
    assert set(table.loc[table["site"] == "ixi:HH", "split"]) == {"test_external"}
    with pytest.raises(DataError, match=r"external site 'HH': .*ixi:HH"):
        mixture(pair, folder, external_sites=["HH"])


def test_a_cohort_is_held_out_whole_even_against_its_official_split(again):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn", external_cohorts=["openbhb"])
    table = data.planned()
    assert set(table.loc[table["cohort"] == "openbhb", "split"]) == {"test_external"}
    assert data.split_source == "openbhb held out, ixi drawn"
    with pytest.raises(ConfigError, match="'openbbh' is no member; did you mean 'openbhb'"):
        mixture(pair, folder, external_cohorts=["openbbh"])
    with pytest.raises(DataError, match="0 people of all members are left for train"):
        mixture(pair, folder, external_cohorts=["openbhb", "ixi"])


def test_a_member_may_have_a_split_file_with_its_own_names(tmp_path):
    people = Visits(tmp_path, "vbm").table().table[["cohort", "participant_id"]].drop_duplicates()
    split = people.assign(split=["train", "val", "test_internal", "train"] * 6)
    write_split(split, tmp_path / "two.tsv")
    members = {
        "one": MemberConfig(cohort="visits", root=str(tmp_path)),
        "two": MemberConfig(cohort="visits", root=str(tmp_path), split=str(tmp_path / "two.tsv")),
    }
    data = downloads(tmp_path, members=members)
    assert data.split_source == "one drawn, two file"
    theirs = data.split[data.split["cohort"] == "two"].set_index("participant_id")["split"]
    assert theirs.to_dict() == split.set_index("participant_id")["split"].to_dict()
    with pytest.raises(ConfigError, match="two is held out whole by"):
        downloads(tmp_path, members=members, external_cohorts=["two"])
    write_split(split.assign(cohort="one"), tmp_path / "two.tsv")
    with pytest.raises(DataError, match=r"two.tsv: person one/p00 is of another cohort; expected people of two only"):
        downloads(tmp_path, members=members)


def test_mixing_moves_nobody_of_a_drawn_split(tmp_path):
    alone = DataConfig(cohort="vectors", root=str(tmp_path), external_sites=["site3"])
    members = {"vectors": MemberConfig(root=str(tmp_path)), "visits": MemberConfig(root=str(tmp_path))}
    both = DataConfig(cohort="mixture", members=members, external_sites=["vectors:site3"])
    with pytest.raises(
        ContractError, match="members vectors and visits are different kinds of input: modality: expected"
    ):
        CohortDataModule(both)
    twice = {"vectors": members["vectors"], "other": MemberConfig(cohort="vectors", root=str(tmp_path))}
    mixed = CohortDataModule(dataclasses.replace(both, members=twice, overlap="warn")).split
    ours = mixed[mixed["cohort"] == "vectors"].reset_index(drop=True)
    assert ours.equals(CohortDataModule(alone).split)


def test_the_same_cohort_under_two_roots_is_noticed_by_its_samples(tmp_path):
    data = downloads(tmp_path, overlap="drop")
    assert data.overlaps.pairs.empty  # nothing but p00 to go by
    data.prepare()
    assert data.overlaps.pairs["rule"].tolist() == ["identical"] * 24
    assert len(data.table) == 32
    assert set(data.table["cohort"]) == {"one"}
    assert data.dropped["reason"].iloc[0] == "same person as one/p00"
    assert data.table["person_elsewhere"].iloc[0] == "visits/p00;two/p00"
    batch = data.train_dataloader().dataset.__getitems__([0, 1])
    assert batch["sample"][:, 0].tolist() == data.table["path"].iloc[batch["index"]].astype(float).tolist()


def test_two_downloads_of_openbhb_are_known_by_their_ids_in_the_plan(again):
    pair, folder = again
    members = {
        name: MemberConfig(cohort="openbhb", root=str(pair.openbhb), store=str(folder / "openbhb")) for name in "ab"
    }
    agreeing = CohortDataModule(DataConfig(cohort="mixture", members=members, overlap="drop"))  # one official split
    assert "120 people in more than one cohort (120 by id)" in agreeing.describe()["overlap"]
    assert len(agreeing.planned()) == 120
    with pytest.raises(LeakageError, match="people are in two splits under two names"):
        CohortDataModule(DataConfig(cohort="mixture", members=members, external_cohorts=["b"]))


def test_a_limit_takes_people_of_all_members_and_its_own_stores(again, tmp_path):
    pair, folder = again
    data = mixture(pair, folder, overlap="warn", limit=3, members={
        "openbhb": MemberConfig(root=str(pair.openbhb), store=str(tmp_path / "a")),
        "ixi": MemberConfig(cohort="reexported", root=str(pair.ixi), store=str(tmp_path / "b")),
    }, store=str(tmp_path / "m"))  # fmt: skip
    assert data.planned()["split"].value_counts().to_dict() == dict.fromkeys(data.split["split"].unique(), 3)
    assert scan_keys(data.table).tolist() == scan_keys(data.planned()).tolist()
    assert "too few to find similar samples" in data.describe()["overlap"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"root": "x"}, r"data.root=x: without effect in a mixture, .*data.members.NAME.root"),
        ({"spacing_mm": 2.0}, "data.spacing_mm=2.0: without effect"),
        ({"modality": "head"}, "data.modality=head: without effect"),
        ({"members": {}}, "data.members: expected the cohorts of a mixture, two or more; found none"),
        ({"members": {"a/b": MemberConfig(), "c": MemberConfig()}}, "data.members.a/b: a member's name"),
        (
            {"members": {"ixy": MemberConfig(), "c": MemberConfig()}},
            "data.members.ixy.cohort=ixy: unknown; did you mean",
        ),
        (
            {"cohort": "ixi", "root": "x", "members": {"a": MemberConfig()}},
            "data.members: without effect, since data.cohort=ixi",
        ),
        ({"cohort": "ixi", "members": {}, "external_cohorts": ["a"]}, "data.external_cohorts: without effect"),
    ],
)
def test_keys_without_effect_or_sense_are_refused(tmp_path, values, said):
    with pytest.raises(ConfigError, match=said):
        downloads(tmp_path, **values)


class Others(Visits):
    """24 other people under the same ids, but for p05, who is the p05 of `Visits`."""

    name = "others"

    def table(self):
        table, dropped = super().table()
        ages = table["age_years"] + np.where(table["participant_id"] == "p05", 0.0, 10.0)
        return finish_table(table.assign(cohort="others", age_years=ages), source="others", dropped=dropped)

    def read(self, path):
        return super().read(path) + 1000 * (path[:-1] != "5") * np.array([1, 0.5, -1], np.float32)


def test_a_mixture_goes_the_real_road_and_its_checkpoint_has_seen_all_members(tmp_path):
    experiment = small_experiment(tmp_path / "runs", "trainer.epochs=1", "data.batch_size=8")
    members = {
        name: MemberConfig(root=str(tmp_path), store=str(tmp_path / name), split=str(tmp_path / f"{name}.tsv"))
        for name in ("visits", "others")
    }
    people = Visits(tmp_path, "vbm").table().table[["cohort", "participant_id"]].drop_duplicates()
    for name, tested in (("visits", "p23"), ("others", "p05")):
        where = ["test_internal" if person == tested else "train" for person in people["participant_id"]]
        write_split(people.assign(cohort=name, split=where), tmp_path / f"{name}.tsv")
    mixed = dataclasses.replace(
        experiment.data, cohort="mixture", members=members, overlap="warn", external_sites=[], val_fraction=0.0,
        store=str(tmp_path / "both"), prepare_workers=1,
    )  # fmt: skip
    scoring = dataclasses.replace(experiment.evaluate, baselines=["pca_ridge"], losses=[])
    experiment = dataclasses.replace(experiment, data=mixed, evaluate=scoring)
    data = CohortDataModule(experiment.data, seed=0)
    run = pretrain(experiment, data)
    module, payload = load_module(run.checkpoint)
    trained = data.table.iloc[data.rows("train")]
    assert trained["cohort"].value_counts().to_dict() == {"visits": 31, "others": 30}
    assert set(seen_people(trained, payload.salt)) == set(payload.seen)
    assert module.contract == data.contract
    assert from_plain(to_plain(payload.experiment)).data.members == members
    with pytest.raises(LeakageError, match="1 of 2 people were trained on"):
        evaluate(experiment, data, run.folder)  # others/p05 is tested, visits/p05 trained on
    allowed = dataclasses.replace(experiment, evaluate=dataclasses.replace(scoring, allow_seen=True))
    results = evaluate(allowed, data, run.folder)
    assert {"age", "site"} <= set(results["task"])
