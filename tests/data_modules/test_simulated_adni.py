"""The written ADNI and ICBM layouts, as somebody who knows only the published description would check them."""

from __future__ import annotations

import re

import nibabel as nib
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from data_modules.simulated.adni import write_adni
from data_modules.simulated.adni_people import plan_images, plan_visits
from data_modules.simulated.icbm import write_icbm

SMALL = {"subjects": 6, "seed": 9, "spacing_mm": 12.0}
PLACE = re.compile(r"ADNI/\d{3}_S_\d{4}/[^/]+/\d{4}-\d\d-\d\d_\d\d_\d\d_\d\d\.0/I\d+/[^/]+_I\d+\.nii")


@pytest.fixture(scope="module")
def merge(tmp_path_factory):
    return write_adni(tmp_path_factory.mktemp("adni") / "merge", **SMALL)


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_the_tree_and_the_tables_have_the_published_form(merge):
    files = [path.relative_to(merge).as_posix() for path in merge.rglob("*.nii")]
    assert files
    assert all(PLACE.fullmatch(file) for file in files)
    table = pd.read_csv(merge / "ADNIMERGE.csv", dtype=str)
    assert {"RID", "PTID", "VISCODE", "EXAMDATE", "DX_bl", "DX", "AGE", "PTGENDER", "IMAGEUID", "Years_bl"} <= set(
        table
    )
    assert table["FLDSTRENG"].isna().all()
    assert set(table["DX"].dropna()) <= {"CN", "MCI", "Dementia"}
    assert (table["RID"].astype(int) == table["PTID"].str[-4:].astype(int)).all()
    search = pd.read_csv(merge / "ADNI_search.csv")
    assert list(search)[:5] == ["Image Data ID", "Subject", "Group", "Sex", "Age"]
    assert search["Description"].eq("Axial T2 FLAIR").sum() == 3


def test_images_lie_in_various_axes_off_centre(merge):
    headers = [nib.load(path).affine for path in merge.rglob("*.nii")]
    assert len({nib.aff2axcodes(affine) for affine in headers}) > 2
    assert len({tuple(affine[:3, 3]) for affine in headers}) > 3


def test_equal_seeds_give_equal_files_whatever_the_workers_and_a_rerun_changes_nothing(merge, tmp_path):
    again = write_adni(tmp_path / "again", workers=1, **SMALL)
    before = contents(again)
    assert before == contents(merge)
    lost = next(again.rglob("*.nii"))
    lost.unlink()
    (again / "simulation" / "parameters.json").write_text(
        (again / "simulation" / "parameters.json").read_text().replace("true", "false")
    )
    write_adni(again, **SMALL)
    assert contents(again) == before
    with pytest.raises(DataError, match=r"holds a simulated cohort of other parameters .*seed: asked 1, found 9"):
        write_adni(again, **{**SMALL, "seed": 1})


def test_every_fate_is_planted():
    visits = plan_visits(40, seed=0)
    images = plan_images(visits, seed=0)
    ages = visits["age_years"]
    assert ages.min() >= 55
    assert ages.max() <= 90
    assert visits["session_id"].value_counts().index[0] == "bl"
    assert set(visits["group"]) == {"CN", "SMC", "EMCI", "LMCI", "AD"}
    assert set(visits["mci_outcome"].dropna()) == {"stable", "progressive", "unknown"}
    by_month = visits.pivot_table(index="participant_id", columns="month", values="diagnosis", aggfunc="first")
    late = (by_month[[0, 36]].eq("MCI").all(axis=1)) & (by_month[48] == "AD")
    well = (by_month[0] == "MCI") & (by_month[24] == "CN")
    assert late.any()
    assert well.any()
    assert by_month[12].isna().any()
    assert (visits["diagnosis"].isna()).any()
    assert set(images["fate"]) == {"table", "repeat", "no file", "nobody"}
    assert visits["scan_date"].isna().any()
    assert (~images["in_search"] & images["has_file"]).any()
    assert not images["image_id"].duplicated().any()


def test_what_cannot_be_simulated_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"form='merged': unknown.*merge"):
        write_adni(tmp_path / "a", form="merged", **SMALL)
    with pytest.raises(ConfigError, match=r"modality 'vbm': unknown in form merge"):
        write_adni(tmp_path / "a", modalities=("vbm",), **SMALL)
    with pytest.raises(ConfigError, match=r"modality 'vbm': unknown"):
        write_icbm(tmp_path / "b", modalities=("vbm",), **SMALL)
    with pytest.raises(ConfigError, match=r"subjects=2: expected 3 or more"):
        write_icbm(tmp_path / "b", **{**SMALL, "subjects": 2})
    assert not list(tmp_path.iterdir())
