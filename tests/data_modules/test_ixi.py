"""IXI as downloaded: images in odd axes, sheets in several spellings, thickness rows, and the real files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from data_modules.ixi import IXI
from tests.data_modules import small_ixi as small


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    return small.write_sheet(small.write_images(tmp_path_factory.mktemp("ixi")))


@pytest.fixture
def thickness(tmp_path):
    small.write_sheet(tmp_path)
    small.thickness().to_csv(tmp_path / "aparc.csv", index=False)
    return tmp_path


# Images


def test_the_official_layout_is_read(brains):
    table, dropped = IXI(brains, "brain").table()
    assert table["participant_id"].tolist() == ["IXI012", "IXI013", "IXI014", "IXI015"]
    assert table["site"].tolist() == ["HH", "Guys", "IOP", "HH"]
    assert table["age_years"].tolist() == list(small.AGES.values())
    assert table["sex"].tolist() == ["M", "M", "F", "M"]
    assert table["path"][0] == "IXI012-HH-1211-T1_brain.nii.gz"
    assert dropped.empty
    assert IXI(brains, "brain").official_split() is None


def test_brains_stored_in_any_axes_come_out_alike(brains):
    reader = IXI(brains, "brain", 6.0)
    contract = reader.contract()
    samples = [reader.read(path) for path in reader.table().table["path"]]
    assert {sample.shape for sample in samples} == {contract.shape}
    assert {sample.dtype for sample in samples} == {np.dtype(np.float32)}
    for sample in samples[1:]:  # they differ by a slope along y of a few percent, not by an axis
        assert np.corrcoef(sample.ravel(), samples[0].ravel())[0, 1] > 0.995


def test_the_spacing_of_the_experiment_picks_the_grid(brains):
    assert IXI(brains, "brain").contract().shape == (1, 91, 109, 91)
    contract = IXI(brains, "brain", 4.0).contract()
    assert contract.shape == (1, 46, 55, 46)
    assert contract.space == "native_centred"
    assert contract.spacing_mm == (4.0, 4.0, 4.0)
    centre = contract.affine @ [*(np.array(contract.shape[1:]) - 1) / 2, 1]
    np.testing.assert_allclose(centre[:3], 0)


def test_brains_and_heads_are_two_contracts(tmp_path):
    small.write_sheet(small.write_images(tmp_path, "_brain"))
    small.write_images(tmp_path, "")
    brain, head = IXI(tmp_path, "brain"), IXI(tmp_path, "head")
    assert head.table().table["path"][0] == "IXI012-HH-1211-T1.nii.gz"
    assert brain.contract().differences(head.contract()) == ["modality: expected 'brain', found 'head'"]


def test_files_and_sheets_may_lie_one_folder_down(tmp_path):
    small.write_images(tmp_path / "images")
    small.write_sheet(tmp_path / "tables", name="sheet.tsv", sep="\t")
    assert IXI(tmp_path, "brain").table().table["path"][0] == "images/IXI012-HH-1211-T1_brain.nii.gz"


def test_masks_are_no_scans_and_unknown_endings_are_listed(tmp_path):
    small.write_sheet(small.write_images(tmp_path))
    first = tmp_path / "IXI012-HH-1211-T1_brain.nii.gz"
    for ending in ("_brain_mask", "_odd"):
        (tmp_path / f"IXI013-Guys-1212-T1{ending}.nii.gz").write_bytes(first.read_bytes())
    table, dropped = IXI(tmp_path, "brain").table()
    assert len(table) == 4
    assert dropped["path"].tolist() == ["IXI013-Guys-1212-T1_odd.nii.gz"]
    assert "neither head nor brain" in dropped["reason"].item()


def test_a_second_image_of_a_person_is_listed(tmp_path):
    small.write_sheet(small.write_images(tmp_path / "a"))
    small.write_images(tmp_path / "b")
    table, dropped = IXI(tmp_path, "brain").table()
    assert table["path"].str.startswith("a/").all()
    assert dropped["path"].str.startswith("b/").sum() == 4
    assert dropped["reason"].str.contains("second brain of this person, after a/").all()


def test_an_image_without_a_row_is_dropped_and_a_row_without_an_image_is_a_person_without_scan(tmp_path):
    sheet = small.official_sheet()
    sheet.loc[0, "IXI_ID"] = 99
    small.write_sheet(small.write_images(tmp_path), sheet)
    reader = IXI(tmp_path, "brain")
    table, dropped = reader.table()
    assert len(table) == 3
    assert dict(zip(dropped["participant_id"], dropped["reason"], strict=True)) == {
        "IXI012": "no usable row in the demographic sheets",
    }
    assert reader.without_scan() == ["IXI099"]


def test_nobody_of_the_sheets_or_images_is_passed_over_in_silence(tmp_path):
    """In the table, dropped, or without scan: each person is in one of them, odd rows of the sheet or not."""
    sheet = small.official_sheet()
    more = pd.DataFrame({"IXI_ID": [98, 99, 99], "SEX_ID (1=m, 2=f)": 1, "AGE": [30, 40, 50]})  # 99 contradicts itself
    small.write_sheet(small.write_images(tmp_path), pd.concat([sheet.iloc[1:], sheet.iloc[[1]], more]))
    odd = tmp_path / "IXI098-HH-1299-T1_odd.nii.gz"
    odd.write_bytes((tmp_path / "IXI012-HH-1211-T1_brain.nii.gz").read_bytes())
    reader = IXI(tmp_path, "brain")
    table, dropped = reader.table()
    assert table["participant_id"].tolist() == ["IXI013", "IXI014", "IXI015"]
    assert set(dropped["participant_id"]) == {"IXI012", "IXI013", "IXI098"}  # no row, a repeated row, an odd name
    assert reader.without_scan() == ["IXI099"]


# Sheets


@pytest.mark.parametrize(
    ("columns", "people", "sexes"),
    [
        (("IXI_ID", "SEX_ID", "AGE"), ["12", "13", "14", "15"], [1, 1, 2, 1]),
        (("MRID", "Sex", "Age"), list(small.PEOPLE), ["M", "M", "F", "M"]),
        (("participant_id", "gender", "age"), [f"sub-IXI0{n}" for n in small.AGES], ["male", "male", "Female", "m"]),
    ],
)
def test_sheets_are_known_by_their_columns(tmp_path, columns, people, sexes):
    person, sex, age = columns
    sheet = pd.DataFrame({age: list(small.AGES.values()), sex: sexes, person: people})
    table = IXI(small.write_sheet(small.write_images(tmp_path), sheet, sep=";"), "brain").table().table
    assert table["sex"].tolist() == ["M", "M", "F", "M"]
    assert table["age_years"].tolist() == list(small.AGES.values())


def test_repeated_rows_are_listed_and_contradictions_drop_the_person(tmp_path):
    sheet = small.official_sheet()
    contradiction = sheet.iloc[[1]].assign(AGE=50.1)
    small.write_sheet(small.write_images(tmp_path), pd.concat([sheet, sheet.iloc[[0]], contradiction]))
    table, dropped = IXI(tmp_path, "brain").table()
    assert table["participant_id"].tolist() == ["IXI012", "IXI014", "IXI015"]
    reasons = dropped.groupby("participant_id")["reason"].agg("; ".join)
    assert "IXI.csv: repeated row of IXI012, its first one is kept" in reasons["IXI012"]
    assert "disagree: age 46.71 and 50.1" in reasons["IXI013"]


def test_sheets_of_several_folders_are_joined(tmp_path):
    small.write_images(tmp_path)
    small.write_sheet(tmp_path / "a", small.official_sheet().iloc[:3])
    scanners = pd.DataFrame({"scan": list(small.PEOPLE), "age": [38.8, 46.7, 34.2, 24.28], "scanner": "Philips 1.5T"})
    small.write_sheet(tmp_path / "b", scanners)
    table, dropped = IXI(tmp_path, "brain").table()
    assert table["age_years"].tolist() == [38.78, 46.71, 34.24, 24.28]  # the first sheet's, which rounds less
    assert table["field_tesla"].tolist() == [1.5] * 4
    assert dropped.empty


def test_other_tables_in_the_folder_are_left_alone(tmp_path):
    small.write_sheet(small.write_images(tmp_path))
    pd.DataFrame({"participant_id": ["sub-01"], "age": [70]}).to_csv(tmp_path / "participants.tsv", sep="\t")
    (tmp_path / "notes.csv").write_bytes(b"\xff\xfe\x00 no table")
    assert len(IXI(tmp_path, "brain").table().table) == 4


@pytest.mark.parametrize("age", [np.nan, -4, 999])
def test_an_impossible_age_is_dropped_with_its_reason(tmp_path, age):
    sheet = small.official_sheet()
    sheet.loc[2, "AGE"] = age
    table, dropped = IXI(small.write_sheet(small.write_images(tmp_path), sheet), "brain").table()
    assert len(table) == 3
    assert dropped["participant_id"].tolist() == ["IXI014"]
    assert "age_years" in dropped["reason"].item()


def test_a_sheet_without_ages_is_named(tmp_path):
    small.write_sheet(small.write_images(tmp_path), small.official_sheet().drop(columns="AGE"))
    with pytest.raises(DataError, match=r"no IXI demographic sheet .*no age column in IXI.csv"):
        IXI(tmp_path, "brain").table()


# Thickness


def test_thickness_rows_follow_the_names_not_the_order_of_columns(thickness):
    reader = IXI(thickness, "thickness")
    contract = reader.contract()
    assert contract.features == tuple(name.removesuffix("_thickness") for name in sorted(small.REGIONS))
    table = reader.table().table
    sheet = small.thickness()
    for row, path in enumerate(table["path"]):
        assert path == f"aparc.csv#{row}"
        expected = sheet.loc[row, sorted(small.REGIONS)].to_numpy(np.float32)
        np.testing.assert_array_equal(reader.read(path), expected)


def test_the_hospital_comes_from_file_names_when_no_sheet_has_it(thickness):
    assert IXI(thickness, "thickness").table().table["site"].isna().all()
    for scan in small.PEOPLE:
        (thickness / f"{scan}-T1.nii.gz").touch()
    assert IXI(thickness, "thickness").table().table["site"].tolist() == ["HH", "Guys", "IOP", "HH"]


def test_a_sample_is_a_copy(thickness):
    reader = IXI(thickness, "thickness")
    reader.read("aparc.csv#0")[:] = 0
    assert reader.read("aparc.csv#0").min() > 1


def test_a_changed_table_is_read_anew(thickness):
    before = IXI(thickness, "thickness").read("aparc.csv#0")
    changed = small.thickness()
    changed[small.REGIONS] += 1
    changed.to_csv(thickness / "aparc.csv", index=False)
    os.utime(thickness / "aparc.csv", (1, 1))
    np.testing.assert_allclose(IXI(thickness, "thickness").read("aparc.csv#0"), before + 1, rtol=1e-6)


def test_a_missing_value_names_the_region(thickness):
    sheet = small.thickness()
    sheet.loc[1, "rh_region07_thickness"] = np.nan
    sheet.to_csv(thickness / "aparc.csv", index=False)
    with pytest.raises(DataError, match=r"aparc.csv: row 2: thickness of rh_region07 is missing"):
        IXI(thickness, "thickness").read("aparc.csv#1")


def test_a_table_with_a_missing_region_is_refused(thickness):
    small.thickness().drop(columns="lh_region00_thickness").to_csv(thickness / "aparc.csv", index=False)
    with pytest.raises(DataError, match=r"expected one table with 68 columns.*found none"):
        IXI(thickness, "thickness").table()


def test_thickness_of_a_person_twice_or_of_nobody_is_listed(thickness):
    sheet = small.thickness()
    sheet = pd.concat([sheet, sheet.iloc[[0]], sheet.iloc[[1]].assign(participant_id="average")])
    sheet.to_csv(thickness / "aparc.csv", index=False)
    table, dropped = IXI(thickness, "thickness").table()
    assert len(table) == 4
    assert dict(zip(dropped["path"], dropped["reason"], strict=True)) == {
        "aparc.csv#4": "second row of this person, the first one is kept",
        "aparc.csv#5": "row without an IXI number",
    }


# DLMUSE


@pytest.fixture
def dlmuse(tmp_path):
    small.write_sheet(tmp_path)
    codes = [702, 601, *range(4, 120)]
    values = np.arange(4 * len(codes)).reshape(4, -1) + 1000.0
    table = pd.DataFrame(values, columns=[str(code) for code in codes])
    table.insert(0, "MRID", list(small.PEOPLE))
    table.to_csv(tmp_path / "volumes.csv", index=False)
    return tmp_path


def test_dlmuse_volumes_are_ordered_by_their_code_and_named_by_it(dlmuse):
    reader = IXI(dlmuse, "dlmuse")
    contract = reader.contract()
    assert (contract.modality, contract.intensity, contract.shape) == ("dlmuse_volumes", "mm3", (118,))
    assert contract.features[:2] == ("muse_4", "muse_5")
    assert contract.features[-2:] == ("muse_601", "muse_702")
    table = reader.table().table
    assert table["path"].tolist() == [f"volumes.csv#{row}" for row in range(4)]
    assert table["site"].tolist() == ["HH", "Guys", "IOP", "HH"]  # by the names of the scans in its first column
    np.testing.assert_array_equal(reader.read("volumes.csv#1")[[0, -1]], [1000 + 118 + 2, 1000 + 118])


@pytest.mark.parametrize("spelling", ["MUSE_Volume_{}", "DL_MUSE_Volume_{}", "DLMUSE_{}"])
def test_other_spellings_of_dlmuse_codes_are_read(dlmuse, spelling):
    sheet = pd.read_csv(dlmuse / "volumes.csv")
    before = IXI(dlmuse, "dlmuse").read("volumes.csv#0")
    sheet.columns = ["MRID", *(spelling.format(code) for code in sheet.columns[1:])]
    sheet.to_csv(dlmuse / "volumes.csv", index=False)
    os.utime(dlmuse / "volumes.csv", (1, 1))
    reader = IXI(dlmuse, "dlmuse")
    assert reader.contract().features[0] == "muse_4"
    np.testing.assert_array_equal(reader.read("volumes.csv#0"), before)


def test_a_missing_volume_names_the_region(dlmuse):
    sheet = pd.read_csv(dlmuse / "volumes.csv")
    sheet.loc[2, "47"] = np.nan
    sheet.to_csv(dlmuse / "volumes.csv", index=False)
    with pytest.raises(DataError, match=r"volumes.csv: row 3: volume of muse_47 is missing"):
        IXI(dlmuse, "dlmuse").read("volumes.csv#2")


def test_without_a_table_of_regions_the_columns_are_named(tmp_path):
    small.write_sheet(tmp_path)
    with pytest.raises(DataError, match=r"expected one table with 100 or more columns like 47 \(right hippocampus\)"):
        IXI(tmp_path, "dlmuse").table()


# Bad input


@pytest.mark.parametrize(("age", "reason"), [("30-35", "age '30-35' is a range"), ("86+", "age '86+' is a bound")])
def test_an_age_that_is_a_range_is_dropped_with_its_reason(tmp_path, age, reason):
    sheet = small.official_sheet().astype(object)
    sheet.loc[0, "AGE"] = age
    table, dropped = IXI(small.write_sheet(small.write_images(tmp_path), sheet), "brain").table()
    assert len(table) == 3
    assert dropped[["participant_id", "reason"]].values.tolist() == [["IXI012", reason]]


def test_ages_in_months_and_unknown_sexes_are_refused(tmp_path):
    sheet = small.official_sheet()
    small.write_sheet(small.write_images(tmp_path), sheet.assign(AGE=sheet["AGE"] * 12))
    with pytest.raises(DataError, match="months or days"):
        IXI(tmp_path, "brain").table()
    small.write_sheet(tmp_path, sheet.rename(columns={"SEX_ID (1=m, 2=f)": "SEX_ID"}).assign(SEX_ID=[1, 2, 3, 1]))
    with pytest.raises(DataError, match=r"IXI.csv: row 3: sex '3'"):
        IXI(tmp_path, "brain").table()


def test_decimal_commas_a_byte_order_mark_and_carriage_returns_change_nothing(tmp_path):
    text = small.official_sheet().to_csv(index=False, sep=";", decimal=",", lineterminator="\r")
    small.write_images(tmp_path)
    (tmp_path / "IXI.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert IXI(tmp_path, "brain").table().table["age_years"].tolist() == list(small.AGES.values())


def test_a_row_of_nobody_names_its_sheet(tmp_path):
    sheet = small.official_sheet().astype(object)
    sheet.loc[4] = ["mean", 1, 36.0]
    dropped = IXI(small.write_sheet(small.write_images(tmp_path), sheet), "brain").table().dropped
    assert dropped["path"].tolist() == ["IXI.csv"]
    assert "'mean' is no IXI number" in dropped["reason"].item()


def test_missing_images_name_what_was_expected(tmp_path):
    small.write_sheet(tmp_path)
    with pytest.raises(DataError, match=r"no brain image .*IXI012-HH-1211-T1_brain.nii.gz"):
        IXI(tmp_path, "brain").table()


def test_a_missing_folder_and_an_unknown_modality_are_named(tmp_path):
    with pytest.raises(DataError, match="not found"):
        IXI(tmp_path / "gone", "brain")
    with pytest.raises(ConfigError, match="did you mean 'brain'"):
        IXI(tmp_path, "brains")


def test_a_truncated_image_is_named(tmp_path):
    small.write_sheet(small.write_images(tmp_path))
    file = tmp_path / "IXI012-HH-1211-T1_brain.nii.gz"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"IXI012-HH-1211-T1_brain.nii.gz: damaged"):
        IXI(tmp_path, "brain").read(file.name)


def test_an_empty_image_is_named(tmp_path, monkeypatch):
    small.write_sheet(small.write_images(tmp_path))
    import nibabel as nib

    image = nib.Nifti1Image(np.zeros((9, 9, 9), np.float32), np.eye(4))
    image.set_sform(np.eye(4), code="scanner")
    nib.save(image, tmp_path / "IXI012-HH-1211-T1_brain.nii.gz")
    with pytest.raises(DataError, match=r"IXI012-HH-1211-T1_brain.nii.gz: every voxel is 0"):
        IXI(tmp_path, "brain").read("IXI012-HH-1211-T1_brain.nii.gz")


# The real files

real = pytest.mark.skipif("BRAINAGE_REAL_DATA" not in os.environ, reason="BRAINAGE_REAL_DATA is not set")


def real_root() -> Path:
    return Path(os.environ["BRAINAGE_REAL_DATA"])


@pytest.mark.real_data
@real
def test_real_thickness_joins_558_people():
    for root in (real_root(), real_root() / "ixi_tables"):
        table, dropped = IXI(root, "thickness").table()
        assert table["site"].value_counts().to_dict() == {"Guys": 311, "HH": 180, "IOP": 67}
        assert (table["age_years"].min() > 19, table["age_years"].max() < 87) == (True, True)
        assert dropped["path"].notna().sum() == 576 - 558
        assert len(dropped) < 30
    sheet = pd.read_csv(real_root() / "ixi_tables" / "pcn_IXI_aparc_thickness.csv")
    reader = IXI(real_root() / "ixi_tables", "thickness")
    chosen = table[table["participant_id"] == "IXI148"].iloc[0]
    row = sheet[sheet["participant_id"] == "sub-IXI148"].iloc[0]
    features = dict(zip(reader.contract().features, reader.read(chosen["path"]), strict=True))
    assert len(features) == 68
    for name in ("lh_bankssts", "rh_insula"):
        assert features[name] == np.float32(row[f"{name}_thickness"])


@pytest.mark.real_data
@real
def test_real_images_of_both_folders_are_found():
    brain, head = (IXI(real_root(), modality).table().table for modality in ("brain", "head"))
    assert brain["site"].value_counts().to_dict() == {"Guys": 3, "HH": 2, "IOP": 1}
    assert len(head) == 12
    assert len(IXI(real_root(), "brain").table().dropped) < 10
    assert len(IXI(real_root(), "brain").without_scan()) > 500
    assert "IXI013" in set(brain["participant_id"]) & set(head["participant_id"])  # one person, two modalities


@pytest.mark.real_data
@real
def test_real_1_mm_and_2_mm_heads_of_unlike_axes_look_alike():
    reader = IXI(real_root(), "head", 4.0)
    table = reader.table().table
    chosen = [table.loc[table["path"].str.contains(name), "path"].iloc[0] for name in ("IXI148.*_head", "IXI013.*_ds")]
    fine, coarse = (reader.read(path)[0] for path in chosen)
    scores = {flips: np.corrcoef(fine.ravel(), np.flip(coarse, flips).ravel())[0, 1] for flips in ((), 1, 2, (1, 2))}
    assert max(scores, key=scores.get) == (), scores


@pytest.mark.real_data
@real
def test_every_real_image_agrees_with_the_sheet_on_person_and_hospital():
    """Read from the file names and the sheet by plain means, without the reader; then the reader says the same."""
    sheet = pd.read_csv(real_root() / "ixi_tables" / "IXI_demographics_min.csv").set_index("scan")
    images = sorted(real_root().glob("ixi_*mm/IXI*-T1*.nii.gz"))
    assert len(images) == 28
    people = {}
    for image in images:
        scan = image.name.partition("-T1")[0]
        assert scan.split("-")[1] == sheet.loc[scan, "hospital"], image.name
        assert int(scan[3:6]) == sheet.loc[scan, "IXI_ID"], image.name
        people.setdefault(scan[:6], set()).add(scan)
    assert all(len(scans) == 1 for scans in people.values())  # brains and heads of one person bear one scan's name
    for modality in ("brain", "head"):
        for row in IXI(real_root(), modality).table().table.itertuples():
            scan = Path(row.path).name.partition("-T1")[0]
            said = sheet.loc[scan]
            assert (row.participant_id, row.site, row.sex) == (scan[:6], said["hospital"], said["sex"])
            assert row.age_years == pytest.approx(said["age"], abs=0.01)
            assert row.scanner == said["scanner"]


@pytest.mark.real_data
@real
def test_real_dlmuse_volumes_are_those_of_the_table_and_of_the_maps():
    import nibabel as nib

    reader = IXI(real_root(), "dlmuse")
    table, _ = reader.table()
    assert len(table) == 10
    names = reader.contract().features
    lines = (real_root() / "ixi_2mm" / "IXI_dlmuse_n10.csv").read_text().splitlines()
    header, rows = lines[0].split(","), {line.split(",")[0]: line.split(",") for line in lines[1:]}
    assert len(names) == len(header) - 1 == 260
    for row in table.itertuples():
        sample = dict(zip(names, reader.read(row.path), strict=True))
        scan = next(name for name in rows if name.startswith(row.participant_id))
        for code, value in zip(header[1:], rows[scan][1:], strict=True):
            assert sample[f"muse_{code}"] == np.float32(value), (scan, code)
        image = nib.load(real_root() / "ixi_2mm" / f"{scan}-T1_ds_DLMUSE.nii.gz")
        if row.Index < 2:  # the hippocampi, counted in the map of 2 mm voxels
            voxels = np.bincount(np.asarray(image.dataobj).astype(int).ravel(), minlength=208)
            for code in (47, 48):
                counted = voxels[code] * np.prod(image.header.get_zooms())
                assert counted == pytest.approx(sample[f"muse_{code}"], rel=0.1), (scan, code)
