"""check_cohort: each check fails on a cohort that is broken its way; what passes is in `test_every_cohort` too."""

from __future__ import annotations

import itertools
import os
import shutil
import zipfile
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from brainage.data.table import CohortTable
from brainage.imaging.anatomy import axis_scores
from brainage.imaging.contract import InputContract
from data_modules import COHORTS
from data_modules.check import CHECKS, assert_cohort, check_cohort, format_checks, inspect_cohort, run_check
from data_modules.check_inspected import watched
from data_modules.openbhb import OpenBHB
from data_modules.simulated.openbhb_challenge import write_openbhb_challenge
from tests.data_modules import small_ixi


@pytest.mark.parametrize("modality", ["vbm", "desikan"])
def test_check_cohort_passes_on_the_simulated_challenge(tmp_path, modality):
    root = write_openbhb_challenge(tmp_path / "flat", subjects=24, seed=3, spacing_mm=8.0, workers=1)
    assert_cohort(OpenBHB(root, modality), tmp_path / "scratch", scans=2)


@pytest.mark.parametrize("modality", ["brain", "head", "thickness"])
def test_check_cohort_passes_on_ixi(tmp_path, modality):
    small_ixi.write_sheet(small_ixi.write_images(tmp_path / "ixi"))
    small_ixi.write_images(tmp_path / "ixi", "")
    small_ixi.thickness().to_csv(tmp_path / "ixi" / "aparc.csv", index=False)
    assert_cohort(COHORTS["ixi"](tmp_path / "ixi", modality, 6.0), tmp_path / "scratch")


@pytest.mark.real_data
@pytest.mark.skipif("BRAINAGE_REAL_DATA" not in os.environ, reason="BRAINAGE_REAL_DATA is not set")
@pytest.mark.parametrize("modality", ["brain", "head", "thickness"])
def test_check_cohort_passes_on_real_ixi(tmp_path, modality):
    assert_cohort(COHORTS["ixi"](os.environ["BRAINAGE_REAL_DATA"], modality, 4.0), tmp_path, scans=2)


# Cohorts broken on purpose


class UpsideDown(OpenBHB):
    def read(self, path):
        return super().read(path)[..., ::-1].copy()


class BlindToNewFiles(OpenBHB):
    def stamp(self, path):
        return super().stamp(path + ".gz")


class BackToFront(OpenBHB):
    def read(self, path):
        return super().read(path)[:, :, ::-1].copy()


class Permuted(OpenBHB):
    def read(self, path):
        return super().read(path).transpose(0, 3, 2, 1).copy()


class Scrambled(OpenBHB):
    """What an axis move followed by a raw reshape does."""

    def read(self, path):
        sample = super().read(path)
        return np.moveaxis(sample, 0, -1)[..., 0].transpose(2, 0, 1).reshape(sample.shape).copy()


class WrongOrigin(OpenBHB):
    def contract(self):
        values = super().contract().to_dict()
        return InputContract.from_dict({**values, "origin_mm": [0.0, 0.0, 0.0]})


class AgesInMonths(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(age_years=table["age_years"] * 12), dropped)


class TwiceTheSameScan(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(pd.concat([table, table.iloc[[0]].assign(age_years=50.0)], ignore_index=True), dropped)


class TwoScansOneFile(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(path=table["path"].where(table.index != 1, table["path"][0])), dropped)


class OutsideItsRoot(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(path="../" + table["path"]), dropped)


class Eager(OpenBHB):
    def table(self):
        finished = super().table()
        np.load(self.root / finished.table["path"][0])
        return finished


class ReadsZips(OpenBHB):
    def table(self):
        with zipfile.ZipFile(self.root / "bulk.zip") as archive:
            archive.read("T1.nii.gz")
        return super().table()


class OtherUnits(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(tiv_ml=table["tiv_ml"] * 1000), dropped)


class MiniMentalInWords(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(mmse=pd.array(["good"] * len(table), dtype="string")), dropped)


class ConvertedHealthy(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(mci_outcome=pd.array(["stable"] * len(table), dtype="string")), dropped)


class TwoVisits(OpenBHB):
    """The second person's scan as a second visit of the first, five years later."""

    changes: ClassVar[dict] = {}
    both: ClassVar[dict] = {"diagnosis": "MCI"}
    first: ClassVar[dict] = {"session_id": "m000", "sex": "F", "age_years": 60.0, "visit_years": 0.0}
    second: ClassVar[dict] = {"session_id": "m060", "sex": "F", "age_years": 65.0, "visit_years": 5.0}

    def table(self):
        table, dropped = super().table()
        table = table.copy()
        table.loc[1, "participant_id"] = table.loc[0, "participant_id"]
        for row, facts in enumerate((self.first, self.second | self.changes)):
            for name, value in (facts | self.both).items():
                table.loc[row, name] = value
        return CohortTable(table, dropped)


class ChangesSex(TwoVisits):
    changes: ClassVar = {"sex": "M"}


class AgesBesideYears(TwoVisits):
    changes: ClassVar = {"age_years": 68.0}


class YoungerLater(TwoVisits):
    changes: ClassVar = {"age_years": 59.5, "visit_years": np.nan}


class DroppedNobody(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table, pd.DataFrame([{"reason": "odd"}]).reindex(columns=dropped.columns).astype("string"))


class DroppedOutside(OpenBHB):
    def table(self):
        table, dropped = super().table()
        row = {"participant_id": "1", "path": "../elsewhere.npy", "reason": "odd"}
        return CohortTable(table, pd.DataFrame([row]).reindex(columns=dropped.columns).astype("string"))


class AbsentThoughScanned(OpenBHB):
    def without_scan(self):
        return [self.table().table["participant_id"][0]]


class OtherTableEachTime(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.assign(age_years=table["age_years"] + next(COUNT) / 1000), dropped)


class Untidy(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table.astype({"site": "object"}), dropped)


class SilentlySmaller(OpenBHB):
    def table(self):
        table, dropped = super().table()
        return CohortTable(table, table.iloc[:1].assign(reason="").reindex(columns=dropped.columns))


class InTwoSplits(OpenBHB):
    def official_split(self):
        split = super().official_split()
        return pd.concat([split, split.iloc[[0]].assign(split="test_external")])


class InNoSplit(OpenBHB):
    def official_split(self):
        return super().official_split().iloc[1:]


class DoublePrecision(OpenBHB):
    def read(self, path):
        return super().read(path).astype(np.float64)


class Empty(OpenBHB):
    def read(self, path):
        return super().read(path) * 0


class AllAlike(OpenBHB):
    def read(self, path):
        return super().read(self.table().table["path"][0])


class Restless(OpenBHB):
    """Another value each time it is read."""

    def read(self, path):
        return super().read(path) + np.float32(next(COUNT))


class RestlessVolumes(OpenBHB):
    """The same, of volumes."""

    def read(self, path):
        return super().read(path) * np.float32(1 + 0.01 * next(COUNT))


class Timestamped(OpenBHB):
    def contract(self):
        values = super().contract().to_dict()
        return InputContract.from_dict({**values, "preprocessing": {"run": str(next(COUNT))}})


class Unpicklable(OpenBHB):
    def __init__(self, *words):
        super().__init__(*words)
        self.callback = lambda: None


class HalfDamaged(OpenBHB):
    def read(self, path):
        if path == self.table().table["path"].iloc[-1] and next(COUNT):
            raise OSError("input/output error")
        return super().read(path)


COUNT = itertools.count(1)
MISREAD = (UpsideDown, BackToFront, Permuted, Scrambled, WrongOrigin)
BROKEN = {
    **{cohort: {"anatomy"} for cohort in MISREAD}, AgesInMonths: {"columns", "ages", "store", "again"},
    TwiceTheSameScan: {"columns", "unique", "people", "samples", "store", "again"}, TwoScansOneFile: {"unique"},
    OutsideItsRoot: {"columns", "samples", "store", "again", "travels"}, Eager: {"lazy"},
    Untidy: {"columns", "store", "again"}, SilentlySmaller: {"left out", "store", "again"},
    InTwoSplits: {"split"}, InNoSplit: {"split"}, DoublePrecision: {"samples"}, Empty: {"samples"},
    AllAlike: {"samples"}, Restless: {"store", "travels"}, Timestamped: {"again"}, Unpicklable: {"travels"},
    HalfDamaged: {"samples", "store"}, BlindToNewFiles: {"again"}, ReadsZips: {"lazy"}, OtherUnits: {"units"},
    MiniMentalInWords: {"units"}, ConvertedHealthy: {"units"}, ChangesSex: {"people"}, AgesBesideYears: {"people"},
    YoungerLater: {"people"}, DroppedNobody: {"left out"}, DroppedOutside: {"left out"},
    AbsentThoughScanned: {"left out"}, OtherTableEachTime: {"repeatable"},
    RestlessVolumes: {"store", "masked", "travels"},
}  # fmt: skip
VOLUMES = (*MISREAD, RestlessVolumes)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
def test_a_cohort_broken_on_purpose_fails_where_it_should(broken, simulated, tmp_path):
    root = simulated
    if broken is ReadsZips:
        root = tmp_path / "cohort"
        shutil.copytree(simulated, root, ignore=shutil.ignore_patterns("*T1w.npy", "*destrieux*", "*desikan*"))
        with zipfile.ZipFile(root / "bulk.zip", "w") as archive:
            archive.writestr("T1.nii.gz", b"0")
    reader = broken(root, "vbm" if broken in VOLUMES else "vbm_roi")  # vectors are quicker
    checks = check_cohort(reader, tmp_path / "scratch", scans=2)
    assert {check.name for check in checks if not check.passed} == BROKEN[broken], format_checks(checks)


def test_two_visits_that_agree_pass(simulated, tmp_path):
    checks = check_cohort(TwoVisits(simulated, "vbm_roi"), tmp_path, scans=2)
    assert {check.name for check in checks if not check.passed} == set()


def test_a_directory_of_a_zip_may_be_looked_at_and_a_member_may_not(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("T1/T1.nii.gz", b"0")
    with watched() as opened, zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["T1/T1.nii.gz"]
        assert opened == []
        archive.read("T1/T1.nii.gz")
    assert opened == [f"{tmp_path}/a.zip!T1/T1.nii.gz"]


def test_one_check_can_be_run_by_its_name(simulated, tmp_path):
    cohort = inspect_cohort(OpenBHB(simulated, "vbm_roi"), tmp_path, scans=2)
    assert run_check("unique", cohort).passed
    assert not run_check("split", cohort._replace(split=cohort.split.iloc[1:])).passed


def test_every_check_is_broken_by_some_cohort():
    assert set().union(*BROKEN.values()) == set(CHECKS)


def test_ages_written_in_months_are_noticed(simulated, tmp_path):
    sheet = pd.read_csv(simulated / "participants.tsv", sep="\t")
    (tmp_path / "cohort").mkdir()
    for name in ("train", "val", "resource"):
        (tmp_path / "cohort" / name).symlink_to(simulated / name)
    sheet.assign(age=sheet["age"] * 12).to_csv(tmp_path / "cohort" / "participants.tsv", sep="\t", index=False)
    checks = check_cohort(OpenBHB(tmp_path / "cohort", "vbm"), tmp_path / "scratch", scans=2)
    failed = {check.name: check.detail for check in checks if not check.passed}
    assert any("months" in text or "age_years" in text for text in failed.values()), failed


def test_a_cohort_without_a_table_fails_everything_and_raises_nothing(tmp_path):
    checks = check_cohort(OpenBHB(tmp_path, "vbm"), tmp_path / "scratch")
    assert not any(check.passed for check in checks)
    assert "participants.tsv: not found" in checks[0].detail


def test_assert_cohort_shows_the_whole_list(simulated, tmp_path):
    with pytest.raises(AssertionError, match=r"(?s)cohort openbhb, vbm:.*ok    ages.*WRONG anatomy .*'x y -z'"):
        assert_cohort(UpsideDown(simulated, "vbm"), tmp_path, scans=2)


def test_the_name_of_the_best_axes_says_how_to_undo_the_damage(simulated):
    reader = OpenBHB(simulated, "vbm")
    volume, affine = reader.read(reader.table().table["path"][0])[0], reader.contract().affine
    scores = axis_scores(volume.transpose(2, 1, 0)[:, ::-1], affine, "cat12vbm_gm")
    assert max(scores, key=scores.get).replace("-z", "z").replace("-x", "x") == "z -y x"
