"""One file under two names: people of one cohort whose samples are equal, and what `data.overlap` does about them."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from brainage.config import DataConfig
from brainage.data.copies import copied_people, leave_out_copies
from brainage.data.table import read_tsv
from brainage.errors import LeakageError
from data_modules.cohort import CohortDataModule
from tests.data_modules.visits import Visits


class Copied(Visits):
    """Scans that hold the bytes of another one: `copies`, locator -> locator."""

    copies: ClassVar[dict[str, str]] = {}

    def read(self, path):
        return super().read(self.copies.get(path, path))


ACROSS = {"201": "01"}  # p20 is of the external site, p00 is not
WITHIN = {"201": "171"}  # both are external
ITSELF = {"02": "01"}  # two visits of p00


def cohort(monkeypatch, folder: Path, copies: dict[str, str], **values) -> CohortDataModule:
    monkeypatch.setattr(Copied, "copies", copies)
    config = DataConfig(
        cohort="visits", root=str(folder), store=str(folder / "store"), prepare_workers=1, external_sites=["site2"],
        **values,
    )  # fmt: skip
    return CohortDataModule(config, reader=Copied(config.root, "vbm"))


def test_people_of_two_splits_who_hold_one_file_are_refused(tmp_path, monkeypatch):
    message = (
        r"2 people of one cohort have the same samples .* first visits/p00 \(\w+\) = visits/p20 \(test_external\)"
        r"; 2 of them are in different splits.*data\.overlap=drop"
    )
    with pytest.raises(LeakageError, match=message):
        cohort(monkeypatch, tmp_path, ACROSS).prepare()
    assert len(cohort(monkeypatch, tmp_path, ACROSS, exclude=["participant_id == p20"]).prepare()) == 31


def test_with_warn_they_stay_and_are_named(tmp_path, monkeypatch, capsys):
    assert len(cohort(monkeypatch, tmp_path, ACROSS, overlap="warn").prepare()) == 32
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("have the same samples") == 1
    assert "visits/p20 (test_external); 2 of them are in different splits, which flatters every score" in said


def test_with_drop_the_first_keeps_its_scans_and_the_other_is_listed(tmp_path, monkeypatch):
    data = cohort(monkeypatch, tmp_path, {"11": "201"}, overlap="drop")  # p01 comes first, whatever was read first
    store = data.prepare()
    assert len(store) == 31
    assert "p20" not in set(data.table["participant_id"])
    for dropped in (data.dropped, read_tsv(store.path / "dropped.tsv")):
        assert dropped["participant_id"].tolist() == ["p20"]
        assert dropped["reason"].tolist() == ["same samples as visits/p01"]


def test_within_one_split_it_is_only_said(tmp_path, monkeypatch, capsys):
    assert len(cohort(monkeypatch, tmp_path, WITHIN).prepare()) == 32
    said = " ".join("".join(capsys.readouterr()).split())
    assert "2 people of one cohort have the same samples as another of it, first visits/p17 = visits/p20" in said


def test_equal_visits_of_one_person_and_no_copies_are_no_matter(tmp_path, monkeypatch, capsys):
    store = cohort(monkeypatch, tmp_path, ITSELF).prepare()
    assert store.path == tmp_path / "store"
    assert "same samples" not in "".join(capsys.readouterr())


def table(*rows: tuple[str, str, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["cohort", "participant_id", "digest"], dtype="string")


def test_copies_join_people_through_others_and_stay_within_a_cohort():
    rows = table(("a", "p3", "x"), ("a", "p1", "x"), ("a", "p1", "y"), ("a", "p2", "y"), ("a", "p4", "z"),
                 ("b", "p4", "x"), ("b", "p5", "w"), ("b", "p6", "w"))  # fmt: skip
    found = copied_people(rows)
    assert found.groupby("group", sort=False)["participant_id"].agg(list).tolist() == [["p3", "p1", "p2"], ["p5", "p6"]]
    assert found["cohort"].tolist() == ["a"] * 3 + ["b"] * 2


def test_all_scans_of_the_later_person_go_and_what_is_left_out_already_counts_no_more():
    rows = table(("a", "p1", "x"), ("a", "p2", "x"), ("a", "p2", "own"), ("a", "p3", "x"))
    split = rows[["cohort", "participant_id"]].drop_duplicates().assign(split=["train", "train", "val"])
    reasons = pd.Series([pd.NA, pd.NA, pd.NA, "excluded"], dtype="string")  # two people are left: no majority
    (left,), said = leave_out_copies([rows], [reasons], split, "drop")
    assert left.fillna("stays").tolist() == ["stays", "same samples as a/p1", "same samples as a/p1", "excluded"]
    assert "first a/p1 = a/p2" in said
    assert "different splits" not in said
    (left,), _ = leave_out_copies([rows], [reasons], split, "refuse")  # p3, who is in val, is out already
    assert left.isna().tolist() == [True, True, True, False]
    assert np.array_equal(reasons.isna(), [True, True, True, False])


def test_a_sample_that_most_people_have_is_called_empty_and_refuses_nobody():
    rows = table(*(("a", f"p{number}", "x") for number in range(5)), ("a", "p5", "y"), ("a", "p6", "y"))
    split = rows[["cohort", "participant_id"]].assign(split=["train", "val", "train", "val", "train", "train", "train"])
    none = pd.Series(pd.NA, index=rows.index, dtype="string")
    assert copied_people(rows)["participant_id"].tolist() == ["p5", "p6"]
    (left,), said = leave_out_copies([rows[:5]], [none[:5]], split, "refuse")
    assert "5 people of one cohort have the same samples: are they empty?" in said
    assert left.isna().all()
