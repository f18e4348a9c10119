"""ADNI as its archive gives it: every form of a simulated cohort against its truth, and faults one by one."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from data_modules.adni import ADNI
from data_modules.adni_visits import join_visits, read_visits
from data_modules.check import assert_cohort
from data_modules.ixi import IXI
from data_modules.simulated.adni import write_adni
from tests.data_modules import small_adni as small

SMALL = {"subjects": 20, "seed": 4, "spacing_mm": 8.0}
FORMS = {"merge": ("head", "brain"), "loni": ("head",), "bids": ("vbm", "quasiraw")}


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adni")
    return {form: write_adni(folder / form, form=form, modalities=kinds, **SMALL) for form, kinds in FORMS.items()}


def truth_of(root):
    text = dict.fromkeys(("participant_id", "session_id", "site", "image_id"), str)
    return pd.read_csv(root / "simulation" / "truth.tsv", sep="\t", dtype=text, keep_default_na=True)


def dropped_for(root, modality="head", **options):
    """Reasons of the rows left out."""
    return ADNI(root, modality, options=options).table().dropped["reason"].tolist()


# Known answers


@pytest.mark.parametrize("form", FORMS)
def test_the_table_is_the_planted_truth(cohorts, form):
    table = ADNI(cohorts[form], FORMS[form][0]).table().table
    truth = truth_of(cohorts[form]).query("fate == 'table'")
    both = truth.merge(table, on=["participant_id", "session_id"], how="outer", suffixes=("_true", ""), indicator=True)
    assert (both["_merge"] == "both").all()
    assert len(both) == len(table)
    for name in ("age_years", "visit_years"):
        np.testing.assert_allclose(both[name], both[f"{name}_true"], atol=1e-5)
    for name in ("diagnosis", "mci_outcome", "sex", "site"):
        same = (both[name] == both[f"{name}_true"]) | (both[name].isna() & both[f"{name}_true"].isna())
        assert same.fillna(False).all(), name
    assert (both["mmse"] == both["mmse_true"])[both["diagnosis"].notna()].all()
    assert (both["apoe4"] == both["apoe4_true"]).all()
    assert set(both["mci_outcome"].dropna()) == {"stable", "progressive", "unknown"}
    assert {"CN", "MCI", "AD"} == set(both["diagnosis"].dropna())
    assert both["diagnosis"].isna().any()


@pytest.mark.parametrize("form", FORMS)
def test_every_planted_scan_is_in_the_table_or_left_out_with_a_reason(cohorts, form):
    table, dropped = ADNI(cohorts[form], FORMS[form][0]).table()
    truth = truth_of(cohorts[form])
    listed = " ".join([*table["path"], *dropped["path"].dropna(), *dropped["reason"]])
    for row in truth[truth["has_file"]].itertuples():
        assert row.path in listed, row
    for row in truth[~truth["has_file"] & truth["in_search"]].itertuples():
        assert form == "bids" or f"image I{row.image_id} of the image-search sheet has no file here" in listed
    reasons = dropped["reason"].str
    kinds = {"repeat": "second T1 of this session, after I", "nobody": "person is not in the clinical tables"}
    for fate, words in kinds.items():
        assert reasons.contains(words).sum() == (truth["fate"] == fate).sum()


@pytest.mark.parametrize(("form", "modality"), [(form, name) for form, names in FORMS.items() for name in names])
def test_every_form_and_modality_passes_the_battery(cohorts, form, modality, tmp_path):
    spacing_mm = 0.0 if form == "bids" else 8.0
    assert_cohort(ADNI(cohorts[form], modality, spacing_mm), tmp_path, scans=3)


def test_brains_fit_encoders_of_ixi_and_grids_of_prepared_maps_are_the_cohorts_own(cohorts):
    assert ADNI(cohorts["merge"], "brain", 4.0).contract() == IXI(cohorts["merge"], "brain", 4.0).contract()
    contract = ADNI(cohorts["bids"], "vbm").contract()
    assert (contract.modality, contract.space, contract.spacing_mm) == ("cat12vbm_gm", "MNI152", (8.0, 8.0, 8.0))
    with pytest.raises(ConfigError, match=r"data.spacing_mm=2.0: cat12vbm_gm has its own grid of \[8.0"):
        ADNI(cohorts["bids"], "vbm", 2.0).contract()


def test_newer_tables_bring_what_adnimerge_has_not(cohorts):
    table = ADNI(cohorts["loni"], "head").table().table
    known = table[table["diagnosis"].notna()]
    assert known["cdr"].notna().all()
    assert (known["cdr_sum"] == (known["cdr"] * 4).round(1)).all()
    in_key = table[table["manufacturer"].notna()]
    assert set(in_key["manufacturer"]) == {"SIEMENS"}
    assert set(in_key["field_tesla"]) == {1.5, 3.0}
    assert ADNI(cohorts["merge"], "head").table().table["field_tesla"].isna().all()


def test_notes_count_what_has_no_diagnosis(cohorts):
    reader = ADNI(cohorts["merge"], "head")
    table = reader.table().table
    notes = reader.notes()
    assert f"{table['diagnosis'].isna().sum()} scans have no diagnosis at their visit" in notes
    assert f"{(table['mci_outcome'] == 'unknown').sum()} scans with MCI are not followed for 36 months" in notes


def test_the_conversion_window_is_an_option(cohorts):
    narrow = ADNI(cohorts["merge"], "head", options={"conversion_months": 12}).table().table
    wide = ADNI(cohorts["merge"], "head").table().table
    assert (narrow["mci_outcome"] == "progressive").sum() < (wide["mci_outcome"] == "progressive").sum()
    with pytest.raises(ConfigError, match=r"data.options.conversion_month: unknown for cohort adni.*conversion_months"):
        ADNI(cohorts["merge"], "head", options={"conversion_month": 12})


# From scan to visit


def test_an_image_that_adnimerge_names_belongs_to_that_visit(tmp_path):
    small.image(small.write(tmp_path, small.merge().assign(IMAGEUID=[None, "500.0", None])), 500, "2006-05-03")
    table = ADNI(tmp_path, "head").table().table
    assert table[["session_id", "age_years"]].values.tolist() == [["m12", 71.5 + 1.0212]]
    assert table["days_to_clinical"].tolist() == [372.0]


def test_other_images_belong_to_the_nearest_visit_within_the_window(tmp_path):
    small.image(small.write(tmp_path), 1, "2007-03-01")  # 70 days before m12
    small.image(tmp_path, 2, "2006-08-20")  # 110 days after bl, nearest all the same
    table = ADNI(tmp_path, "head").table().table.set_index("session_id")
    assert table.loc["m12", ["diagnosis", "days_to_clinical"]].tolist() == ["MCI", 70.0]
    alone = table.loc["20060820"]
    assert pd.isna(alone["diagnosis"])
    assert alone["age_years"] == pytest.approx(71.5 + 110 / 365.25)
    assert alone["visit_years"] == pytest.approx(110 / 365.25)
    assert (alone["sex"], alone["site"]) == ("F", "027")
    wide = ADNI(tmp_path, "head", options={"visit_window_days": 120}).table().table
    assert wide["session_id"].tolist() == ["bl", "m12"]
    widest = ADNI(tmp_path, "head", options={"visit_window_days": 400}).table().table  # both visits are within it
    assert widest["days_to_clinical"].tolist() == [110.0, 70.0]


def test_the_diagnosis_is_that_of_the_visit_and_dx_bl_counts_for_the_baseline_alone(tmp_path):
    visits = (("bl", "2006-05-02", None, "0", "0"), ("m12", "2007-05-10", None, "1.02", "12"))
    small.write(tmp_path, small.merge(*visits, DX_bl="SMC"))
    for number, date in enumerate(("2006-05-02", "2007-05-10"), start=1):
        small.image(tmp_path, number, date)
    reader = ADNI(tmp_path, "head")
    table = reader.table().table
    assert table["diagnosis"].fillna("").tolist() == ["CN", ""]
    assert table["diagnosis_detail"].fillna("").tolist() == ["SMC", ""]
    assert reader.notes() == ["1 scans have no diagnosis at their visit"]


def test_dx_goes_before_a_dx_bl_that_says_otherwise(tmp_path):
    small.image(small.write(tmp_path, small.merge(("bl", "2006-05-02", "CN", "0", "0"))), 1, "2006-05-02")
    table = ADNI(tmp_path, "head").table().table
    assert table[["diagnosis", "diagnosis_detail"]].values.tolist() == [["CN", "CN"]]


def test_visits_without_a_scan_are_follow_up_all_the_same(tmp_path):
    small.image(small.write(tmp_path), 1, "2006-05-02")
    assert ADNI(tmp_path, "head").table().table["mci_outcome"].tolist() == ["progressive"]


def test_one_t1_a_session_by_the_documented_preference(tmp_path):
    small.write(tmp_path)
    series = {9: "MP-RAGE", 3: "MP-RAGE_REPEAT", 4: "Accelerated_Sag_MPRAGE", 5: "IR-SPGR", 6: "MPR__GradWarp__N3"}
    series[12] = "MP-RAGE"
    for number, name in series.items():
        small.image(tmp_path, number, "2006-05-02", name, time=f"12_31_{number:02d}.0")
    small.image(tmp_path, 20, "2006-05-02", "Axial_T2_FLAIR")
    table, dropped = ADNI(tmp_path, "head").table()
    assert table["path"].str.contains("/I9/").tolist() == [True]
    why = dict(zip(dropped["path"].str.extract(r"/(I\d+)/")[0], dropped["reason"], strict=True))
    after = "second T1 of this session, after I9, which is preferred"
    assert why == {
        "I3": f"{after} (no repeat)", "I4": f"{after} (not accelerated)", "I5": f"{after} (MPRAGE)",
        "I6": f"{after} (as it was scanned)", "I12": f"{after} (the lower image id)",
        "I20": "series 'Axial_T2_FLAIR' is no T1",
    }  # fmt: skip


# Faults of scans


def test_a_scan_under_two_image_ids_counts_once(tmp_path):
    small.write(tmp_path, small.merge().assign(IMAGEUID=["1", "2", None]))
    small.image(tmp_path, 1, "2006-05-02")
    small.image(tmp_path, 2, "2006-05-02")  # the same second; the table names it for another visit
    table, dropped = ADNI(tmp_path, "head").table()
    assert table["session_id"].tolist() == ["bl"]
    assert dropped["reason"].tolist() == ["same acquisition as I1, which is preferred (the lower image id)"]


def test_an_image_id_that_is_there_twice_counts_once(tmp_path):
    small.image(small.write(tmp_path), 1, "2006-05-02")
    small.image(tmp_path / "part2", 1, "2006-05-02")
    table, dropped = ADNI(tmp_path, "head").table()
    assert len(table) == 1
    assert "image I1 is there twice, first as ADNI/027_S_0074/MP-RAGE/" in dropped["reason"][0]


def test_a_visit_before_the_baseline_is_left_out_with_its_reason(tmp_path):
    early = (("bl", "2006-05-02", "MCI", "0", "0"), ("m06", "2005-11-01", "MCI", "-0.4983", "6"))
    small.write(tmp_path, small.merge(*early))
    small.image(tmp_path, 1, "2006-05-02")
    small.image(tmp_path, 2, "2005-11-01")
    small.image(tmp_path, 3, "2004-01-01")
    table, dropped = ADNI(tmp_path, "head").table()
    assert table["session_id"].tolist() == ["bl"]
    assert sorted(dropped["reason"]) == [
        "scan of 2004-01-01 is 2.33 years before the baseline", "visit m06 is 0.5 years before the baseline",
    ]  # fmt: skip


def test_contradictory_diagnoses_of_a_visit_are_left_out(tmp_path):
    twice = pd.concat([small.merge(), small.merge(("m12", "2007-05-10", "CN", "1.0212", "12"))])
    small.image(small.write(tmp_path, twice), 1, "2006-05-02")
    small.image(tmp_path, 2, "2007-05-10")
    table, dropped = ADNI(tmp_path, "head").table()
    assert table["session_id"].tolist() == ["bl"]
    assert dropped["reason"].tolist() == ["rows of visit m12 in the clinical tables disagree: diagnosis CN and MCI"]


def test_people_in_contradiction_are_left_out_with_all_their_scans(tmp_path):
    small.image(small.write(tmp_path, small.merge(RID="75")), 1, "2006-05-02")
    small.image(tmp_path, 2, "2006-11-20")
    with pytest.raises(DataError, match="no usable scan: 0 rows kept, 2 dropped; first reason: RID 75 is not that of"):
        ADNI(tmp_path, "head").table()
    mixed = small.merge()
    mixed.loc[1, "PTGENDER"] = "Male"
    small.write(tmp_path, mixed)
    with pytest.raises(DataError, match=r"rows of person 027_S_0074 .* disagree: sex .*F and M"):
        ADNI(tmp_path, "head").table()


def test_an_image_of_another_person_is_left_out(tmp_path):
    small.write(tmp_path)
    small.image(tmp_path, 1, "2006-05-02")
    small.image(tmp_path, 7, "2006-05-02")
    small.search({"Image Data ID": "I7", "Subject": "011_S_0002"}).to_csv(tmp_path / "search.csv", index=False)
    table, dropped = ADNI(tmp_path, "head").table()
    assert len(table) == 1
    assert dropped["reason"].tolist() == ["image I7 belongs to 011_S_0002 in the image-search sheet"]


def test_ages_as_ranges_are_no_ages_and_months_are_refused(tmp_path):
    small.image(small.write(tmp_path, small.merge(AGE="60-65")), 1, "2006-05-02")
    with pytest.raises(DataError, match="first reason: age '60-65' is a range"):
        ADNI(tmp_path, "head").table()
    small.write(tmp_path, small.merge(AGE="858"))
    with pytest.raises(DataError, match=r"ADNIMERGE.csv: median age is 858: expected years; are these months or days"):
        ADNI(tmp_path, "head").table()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no ADNIMERGE table .*no table of study entry .* none of diagnoses"):
        ADNI(tmp_path, "head").table()
    small.write(tmp_path)
    with pytest.raises(DataError, match=r"no NIfTI image found; expected for example ADNI/027_S_0074/MP-RAGE/"):
        ADNI(tmp_path, "head").table()
    with pytest.raises(DataError, match=r"no vbm file found; expected for example derivatives/sub-<id>/ses-M012"):
        ADNI(tmp_path, "vbm").table()
    folder = tmp_path / "ADNI" / small.PERSON / "MP-RAGE" / "2006-05-02_12_31_52.0" / "I3"
    folder.mkdir(parents=True)
    (folder / "0001.dcm").write_bytes(b"dicom")
    small.image(tmp_path, 1, "2006-05-02")
    assert dropped_for(tmp_path) == ["no NIfTI file among its 1; download or convert it"]


def test_people_without_an_image_are_told_apart_from_dropped_scans(tmp_path):
    other = small.merge(PTID="011_S_0002", RID="2", SITE="11")
    small.image(small.write(tmp_path, pd.concat([small.merge(), other])), 1, "2006-05-02")
    reader = ADNI(tmp_path, "head")
    assert reader.without_scan() == ["011_S_0002"]
    assert reader.table().dropped.empty


# Faults of volumes


def test_a_truncated_scan_is_named(cohorts, tmp_path):
    small.write(tmp_path)
    source = ADNI(cohorts["merge"], "head")
    whole = (source.root / source.table().table["path"][0]).read_bytes()
    file = small.image(tmp_path, 1, "2006-05-02")
    file.write_bytes(whole[: len(whole) // 2])
    packed = small.image(tmp_path, 2, "2007-05-10", ending=".nii.gz")
    packed.write_bytes(gzip.compress(whole)[:3000])
    reader = ADNI(tmp_path, "head", 8.0)
    for path in reader.table().table["path"]:
        with pytest.raises(DataError, match=f"{path.rsplit('/')[-1]}: damaged or no NIfTI file"):
            reader.read(path)


def test_swapped_axes_and_a_wrong_affine_of_a_prepared_map_are_refused(cohorts, tmp_path):
    reader = ADNI(cohorts["bids"], "vbm")
    image = nib.load(reader.root / reader.table().table["path"][0])
    spoiled = {
        "swapped": nib.Nifti1Image(np.swapaxes(np.asarray(image.dataobj), 0, 1), image.affine),
        "shifted": nib.Nifti1Image(np.asarray(image.dataobj), image.affine + _moved(9)),
    }
    words = {"swapped": "shape: expected", "shifted": "origin_mm: expected"}
    for name, wrong in spoiled.items():
        nib.save(wrong, tmp_path / f"{name}.nii.gz")
        with pytest.raises(DataError, match=rf"{name}.nii.gz: not on the grid of the other volumes: .*{words[name]}"):
            reader.read(str(tmp_path / f"{name}.nii.gz"))


def _moved(mm):
    shift = np.zeros((4, 4))
    shift[0, 3] = mm
    return shift


def test_one_wrong_header_does_not_decide_on_the_grid(cohorts, tmp_path):
    source = ADNI(cohorts["bids"], "vbm")
    small.write(tmp_path)
    for number, path in enumerate(source.table().table["path"].head(3)):
        image = nib.load(source.root / path)
        image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine + _moved(9.0 * (number == 0)))
        label = ("bl", "M12", "M024")[number]
        folder = tmp_path / "derivatives" / "sub-ADNI027S0074" / f"ses-{label}"
        folder.mkdir(parents=True)
        nib.save(image, folder / f"sub-ADNI027S0074_ses-{label}_desc-gm_T1w.nii.gz")
    reader = ADNI(tmp_path, "vbm")
    assert reader.contract() == source.contract()
    paths = reader.table().table.set_index("session_id")["path"]
    assert list(paths.index) == ["bl", "m12", "m24"]
    reader.read(paths["m24"])
    with pytest.raises(DataError, match="not on the grid of the other volumes"):
        reader.read(paths["bl"])


def test_prepared_arrays_without_a_header_lie_on_the_template_or_the_published_grid(cohorts, tmp_path):
    source = ADNI(cohorts["bids"], "vbm")
    path = source.table().table["path"][0]
    image = nib.load(source.root / path)
    small.write(tmp_path)
    folder = tmp_path / "derivatives" / "sub-ADNI027S0074" / "ses-M012"
    folder.mkdir(parents=True)
    array = folder / "sub-ADNI027S0074_ses-M012_preproc-cat12vbm_desc-gm_T1w.npy"
    np.save(array, np.asarray(image.dataobj)[None, None])
    assert ADNI(tmp_path, "vbm").contract().shape == (1, 121, 145, 121)
    with pytest.raises(DataError, match=r"T1w.npy: damaged: expected shape \(1, 1, 121, 145, 121\)"):
        ADNI(tmp_path, "vbm").read(str(array.relative_to(tmp_path)))
    (tmp_path / "resource").mkdir()
    nib.save(image, tmp_path / "resource" / "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz")
    reader = ADNI(tmp_path, "vbm")
    np.testing.assert_array_equal(reader.read(reader.table().table["path"][0]), source.read(path))


def test_prepared_files_of_no_person_and_of_no_visit_are_listed(cohorts, tmp_path):
    small.write(tmp_path)
    for label, session in (("ADNI027S0074", "M012"), ("ADNI027S0074", "M060"), ("pilot7", "M000")):
        folder = tmp_path / "derivatives" / f"sub-{label}" / f"ses-{session}"
        folder.mkdir(parents=True)
        (folder / f"sub-{label}_ses-{session}_desc-gm_T1w.nii.gz").write_bytes(b"none")
    second = tmp_path / "derivatives/cat12/sub-ADNI027S0074/ses-M012"
    second.mkdir(parents=True)
    (second / "mwp1sub-ADNI027S0074_ses-M012_T1w.nii").write_bytes(b"none")
    table, dropped = ADNI(tmp_path, "vbm").table()
    assert table["session_id"].tolist() == ["m12"]
    reasons = sorted(dropped["reason"])
    assert reasons[0] == "no clinical visit 'm60' of this person, and no date"
    assert reasons[1].startswith("second vbm of this session, after derivatives/")
    assert reasons[2] == "sub-pilot7 is no ADNI subject like sub-ADNI027S0074"


def test_a_scan_without_a_visit_code_is_not_taken_for_the_baseline(tmp_path):
    visits = read_visits(small.write(tmp_path, small.merge(("bl", None, "MCI", "0", "0"))))
    scans = pd.DataFrame({"participant_id": small.PERSON, "image_id": ["1", "2"], "code": [None, "sc"]}, dtype="string")
    found = join_visits(scans.assign(date=pd.Series(pd.NaT, index=scans.index)), visits, 91.0)
    assert found["age_years"].fillna(0).tolist() == [0.0, 71.5]
    assert found["diagnosis"].tolist() == [pd.NA, "MCI"]
    assert found["reason"].tolist() == ["no clinical visit '' of this person, and no date", pd.NA]
