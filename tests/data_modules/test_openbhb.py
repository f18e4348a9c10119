"""OpenBHB as downloaded: folder and challenge form, axes, masks, official split, quality, bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError, LeakageError
from data_modules import COHORTS
from data_modules.openbhb import OpenBHB
from data_modules.openbhb_challenge import Challenge
from data_modules.openbhb_layout import canonical_rows
from tests.data_modules import tiny_openbhb as tiny

VOLUMES, REGIONS = ("vbm", "quasiraw"), ("vbm_roi", "desikan", "destrieux")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("openbhb"))


@pytest.fixture(scope="module")
def challenge(tmp_path_factory):
    return tiny.write_challenge(tmp_path_factory.mktemp("challenge"))


def read_person(reader: OpenBHB, person: int) -> np.ndarray:
    table = reader.table().table
    return reader.read(table.loc[table["participant_id"] == str(person), "path"].item())


# Axes and grid


@pytest.mark.parametrize("modality", VOLUMES)
def test_the_first_axis_is_turned_so_that_x_grows_to_the_right(folders, modality):
    reader = OpenBHB(folders, modality)
    stored = tiny.array(103, modality)[0, 0]
    sample, contract = read_person(reader, 103), reader.contract()
    assert sample.dtype == np.float32
    assert sample.shape == contract.shape == (1, *tiny.SHAPE)
    for voxel in [(0, 0, 0), (3, 1, 2), (1, 4, 5)]:  # each value stays at its place in millimetres
        millimetres = tiny.LAS @ [*voxel, 1]
        i, j, k, _ = np.linalg.solve(contract.affine, millimetres).round().astype(int)
        assert sample[0, i, j, k] == stored[voxel]
    assert contract.spacing_mm == (3.0, 3.0, 3.0)
    assert contract.origin_mm == (81.0, -126.0, -72.0)


@pytest.mark.parametrize(
    ("modality", "shape", "spacing", "origin"),
    [
        ("vbm", (1, 121, 145, 121), 1.5, (-90.0, -126.0, -72.0)),
        ("quasiraw", (1, 182, 218, 182), 1.0, (-91.0, -126.0, -72.0)),
    ],
)
def test_without_templates_the_published_grid_is_assumed(tmp_path, modality, shape, spacing, origin):
    tiny.write_sheet(tmp_path)
    contract = OpenBHB(tmp_path, modality).contract()
    assert (contract.shape, contract.spacing_mm, contract.origin_mm) == (shape, (spacing,) * 3, origin)


def test_without_templates_an_array_of_another_size_is_refused(tmp_path):
    root = tiny.write_folders(tmp_path)
    (root / "resource" / tiny.TEMPLATES["vbm"]).unlink()
    with pytest.raises(
        DataError, match=r"expected shape \(1, 1, 121, 145, 121\) of the published grid.*found \(1, 1, 4"
    ):
        read_person(OpenBHB(root, "vbm"), 101)


def test_the_simulated_asymmetry_is_on_its_side(simulated):
    """Right frontal and left occipital grey matter is larger in every simulated brain; a mirrored reader swaps them."""
    reader = OpenBHB(simulated, "vbm")
    mean = np.mean([reader.read(path)[0] for path in reader.table().table["path"]], axis=0)
    y = reader.contract().affine[1, 1] * np.arange(mean.shape[1]) + reader.contract().affine[1, 3]
    asymmetry = (mean - mean[::-1])[mean.shape[0] // 2 + 1 :]  # right minus left
    assert asymmetry[:, y > 20].sum() > 0 > asymmetry[:, y < -60].sum()


# Regions


@pytest.mark.parametrize("modality", REGIONS)
def test_regions_are_flattened_measure_by_measure(folders, modality):
    reader = OpenBHB(folders, modality)
    sample, contract = read_person(reader, 102), reader.contract()
    np.testing.assert_array_equal(sample, tiny.array(102, modality).ravel())
    assert contract.shape == sample.shape == (len(contract.features),)
    assert len(set(contract.features)) == len(contract.features)


def test_region_names_come_from_the_label_list_when_there_is_one(tmp_path):
    root = tiny.write_folders(tmp_path)
    assert OpenBHB(root, "desikan").contract().features[68] == "grey_volume_region_001"
    labels = root / "resource" / "freesurfer_atlas-desikan_labels.txt"
    labels.write_text("\n".join(f"{side}-r{n}" for side in ("lh", "rh") for n in range(34)))
    assert OpenBHB(root, "desikan").contract().features[68 * 2 + 34] == "thickness_mean_rh-r0"
    labels.write_text("only\nthree\nnames")
    with pytest.raises(DataError, match=r"desikan_labels.txt: expected 68 region names, found 3"):
        OpenBHB(root, "desikan").contract()


# Table and split


def test_the_table_is_canonical(folders):
    table, dropped = OpenBHB(folders, "vbm").table()
    first = table.iloc[0]
    assert table["participant_id"].tolist() == ["101", "102", "103", "104"]
    assert (first["cohort"], first["session_id"], first["site"], first["sex"]) == ("openbhb", "1", "7", "M")
    assert (first["age_years"], first["diagnosis"], first["field_tesla"], first["tiv_ml"]) == (20.5, "CN", 3.0, 1500.0)
    assert first["path"] == "train/derivatives/sub-101/ses-1/sub-101_preproc-cat12vbm_desc-gm_T1w.npy"
    assert first["study"] == "IXI"
    assert table["split"].isna().all()
    assert dropped.empty


@pytest.mark.parametrize("form", ["folders", "challenge"])
def test_the_official_split_is_the_published_one(form, request):
    split = OpenBHB(request.getfixturevalue(form), "vbm").official_split()
    assert dict(zip(split["participant_id"], split["split"], strict=True)) == {
        "101": "train", "102": "train", "103": "test_internal", "104": "test_external",
    }  # fmt: skip


@pytest.mark.parametrize("form", ["folders", "challenge"])
def test_the_table_opens_no_array(form, request, monkeypatch):
    def refuse(*words, **options):
        raise AssertionError(f"opened {words[0]}")

    monkeypatch.setattr(np, "load", refuse)
    monkeypatch.setattr(np, "memmap", refuse)
    assert len(OpenBHB(request.getfixturevalue(form), "quasiraw").table().table) == 4


def test_a_listed_file_that_is_missing_is_dropped_with_its_reason(tmp_path):
    root = tiny.write_folders(tmp_path)
    gone = tiny.array_file(root, 102, "vbm")
    gone.unlink()
    table, dropped = OpenBHB(root, "vbm").table()
    assert table["participant_id"].tolist() == ["101", "103", "104"]
    assert dropped[["participant_id", "path", "reason"]].values.tolist() == [
        ["102", gone.relative_to(root).as_posix(), "file not found"]
    ]


def test_quality_is_joined_and_excludes_nobody(tmp_path):
    root = tiny.write_folders(tmp_path)
    quality = pd.DataFrame(
        {
            "participant_id": [104, 103, 102], "reconall-euler": [-216, -217, -20],
            "cat12vbm-ncr": [3.99, 2.0, 2.0], "cat12vbm-iqr": [3.99, 2.0, 2.0], "quasiraw-corr": [0.51, 0.8, 0.5],
        }
    )  # fmt: skip
    quality.to_csv(root / "qc.tsv", sep="\t", index=False)
    table = OpenBHB(root, "vbm").table().table.set_index("participant_id")
    assert len(table) == 4
    assert table.loc["104", ["qc_euler", "qc_pass"]].tolist() == [-216.0, 1.0]
    assert table.loc[["103", "102"], "qc_pass"].tolist() == [0.0, 0.0]  # Euler and correlation on their limits
    assert np.isnan(table.loc["101", "qc_pass"])


# Challenge form


@pytest.mark.parametrize("modality", VOLUMES)
def test_flat_rows_are_put_back_at_their_voxels(challenge, folders, modality):
    flat, whole = OpenBHB(challenge, modality), OpenBHB(folders, modality)
    mask = tiny.write_templates(challenge)[modality][::-1]
    for person in tiny.SPLITS:
        np.testing.assert_array_equal(read_person(flat, person)[0], read_person(whole, person)[0] * mask)
    assert flat.contract() == whole.contract()


@pytest.mark.parametrize("modality", REGIONS)
def test_flat_regions_equal_the_folder_form(challenge, folders, modality):
    flat, whole = OpenBHB(challenge, modality), OpenBHB(folders, modality)
    np.testing.assert_array_equal(read_person(flat, 104), read_person(whole, 104))


def test_the_unpacked_zip_and_its_header_rows_are_accepted(tmp_path, folders):
    reader = OpenBHB(tiny.write_challenge(tmp_path, "data", header=True), "desikan")
    table = reader.table().table.set_index("participant_id")
    assert table.loc["101", "path"] == "data/train.npy#1"
    assert table.loc["103", "path"] == "data/test.npy#1"
    np.testing.assert_array_equal(reader.read(table.loc["102", "path"]), tiny.array(102, "desikan").ravel())
    assert set(reader.official_split()["split"]) == {"train", "test_internal", "test_external"}


def test_people_without_an_id_are_numbered_by_file_and_row(tmp_path):
    root = tiny.write_challenge(tmp_path)
    for stem in ("train", "internal_test", "external_test"):
        sheet = pd.read_csv(root / f"{stem}.tsv", sep="\t").drop(columns="participant_id")
        sheet.to_csv(root / f"{stem}.tsv", sep="\t", index=False)
    assert OpenBHB(root, "vbm").table().table["participant_id"].tolist() == [
        "external_test-00000", "internal_test-00000", "train-00000", "train-00001",
    ]  # fmt: skip


def test_columns_that_do_not_fit_the_masks_are_refused(tmp_path):
    root = tiny.write_challenge(tmp_path)
    np.save(root / "train.npy", np.zeros((2, 3659572 // 1000), np.float32))
    with pytest.raises(DataError, match=r"train.npy: expected \d+ columns \(vbm \d+ \+ quasiraw .*found 3659"):
        OpenBHB(root, "vbm").contract()


def test_published_column_counts_are_known_without_templates():
    blocks = Challenge(Path("nowhere"), "vbm").blocks
    assert max(stop for _, stop in blocks.values()) == 3659572
    assert blocks["vbm_roi"] == (3657776, 3658060)


def test_a_flat_table_of_another_length_is_refused(tmp_path):
    root = tiny.write_challenge(tmp_path)
    pd.read_csv(root / "train.tsv", sep="\t").iloc[:0].to_csv(root / "train.tsv", sep="\t", index=False)
    with pytest.raises(DataError, match=r"train.npy: expected 0 rows as in train.tsv, found 2"):
        OpenBHB(root, "vbm").table()


def test_flat_volumes_without_their_mask_are_refused(tmp_path):
    np.lib.format.open_memmap(tmp_path / "train.npy", mode="w+", dtype=np.float32, shape=(1, 3659572))  # sparse
    with pytest.raises(DataError, match=r"gm_TPM.nii.gz: not found; the flat vbm columns cannot be unmasked"):
        OpenBHB(tmp_path, "vbm").read("train.npy#0")
    assert OpenBHB(tmp_path, "vbm_roi").read("train.npy#0").shape == (284,)


# Bad input


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"folder '.*nothing' not found"):
        OpenBHB(tmp_path / "nothing", "vbm")


def test_another_voxel_size_is_refused(folders):
    assert OpenBHB(folders, "vbm", 3.0).contract() == OpenBHB(folders, "vbm").contract()
    with pytest.raises(ConfigError, match=r"data.spacing_mm=2.0: .*its own grid of \[3.0, 3.0, 3.0\] mm"):
        OpenBHB(folders, "vbm", 2.0).contract()


def test_an_unknown_modality_gets_a_hint(tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'vbm_roi'"):
        COHORTS["openbhb"](tmp_path, "vbm-roi")


def test_a_folder_that_is_neither_form_is_named(tmp_path):
    with pytest.raises(DataError, match=r"participants.tsv: not found; .*neither"):
        OpenBHB(tmp_path, "vbm").table()


def test_a_folder_without_any_array_is_named(tmp_path):
    tiny.write_sheet(tmp_path)
    with pytest.raises(DataError, match=r"no vbm file found; expected for example train/derivatives/sub-101"):
        OpenBHB(tmp_path, "vbm").table()


@pytest.mark.parametrize("column", ["age", "siteXacq", "split", "sex", "participant_id"])
def test_a_missing_column_is_named(tmp_path, column):
    tiny.write_sheet(tmp_path, tiny.participants().drop(columns=column))
    with pytest.raises(DataError, match=rf"participants.tsv: column '{column}' missing"):
        OpenBHB(tmp_path, "vbm").table()


@pytest.mark.parametrize("age", [np.nan, -4, 999, "old"])
def test_an_impossible_age_is_dropped_with_its_reason(tmp_path, age):
    root = tiny.write_folders(tmp_path)
    sheet = tiny.participants().astype({"age": object})
    sheet.loc[1, "age"] = age
    tiny.write_sheet(root, sheet)
    table, dropped = OpenBHB(root, "vbm").table()
    assert table["participant_id"].tolist() == ["101", "103", "104"]
    assert dropped["participant_id"].tolist() == ["102"]
    assert "age_years" in dropped["reason"].item()


def test_a_repeated_row_is_dropped_and_a_contradiction_refused(tmp_path):
    root = tiny.write_folders(tmp_path)
    sheet = tiny.participants()
    tiny.write_sheet(root, pd.concat([sheet, sheet.iloc[:1]]))
    table, dropped = OpenBHB(root, "vbm").table()
    assert len(table) == 4
    assert dropped["reason"].tolist() == ["exact duplicate of scan openbhb/101/1/"]
    tiny.write_sheet(root, pd.concat([sheet, sheet.iloc[:1].assign(age=50.0)]))
    with pytest.raises(DataError, match=r"openbhb/101/1/ has 2 rows that differ in age_years"):
        OpenBHB(root, "vbm").table()


def test_a_person_in_two_published_splits_is_refused(tmp_path):
    sheet = tiny.participants()
    tiny.write_sheet(tmp_path, pd.concat([sheet, sheet.iloc[:1].assign(split="external_test")]))
    with pytest.raises(LeakageError, match="participant 101 is in two published splits"):
        OpenBHB(tmp_path, "vbm").official_split()


def test_an_unknown_split_is_named(tmp_path):
    tiny.write_sheet(tmp_path, tiny.participants().assign(split="validation"))
    with pytest.raises(DataError, match=r"participants.tsv: row 1: split 'validation': expected one of train"):
        OpenBHB(tmp_path, "vbm").official_split()


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", "half"])
def test_a_truncated_array_is_named(tmp_path, content):
    root = tiny.write_folders(tmp_path)
    file = tiny.array_file(root, 101, "vbm")
    file.write_bytes(file.read_bytes()[:300] if content == "half" else content)
    with pytest.raises(DataError, match=r"sub-101_preproc-cat12vbm_desc-gm_T1w.npy: damaged"):
        read_person(OpenBHB(root, "vbm"), 101)


def test_an_array_of_another_shape_names_the_file_and_its_template(tmp_path):
    root = tiny.write_folders(tmp_path)
    np.save(tiny.array_file(root, 101, "vbm"), np.zeros((1, 1, 5, 4, 6), np.float32))
    with pytest.raises(DataError, match=r"sub-101.*\(1, 1, 4, 5, 6\) of .*gm_TPM.nii.gz, found \(1, 1, 5, 4, 6\)"):
        read_person(OpenBHB(root, "vbm"), 101)


def test_a_damaged_template_is_named(tmp_path):
    root = tiny.write_folders(tmp_path)
    (root / "resource" / tiny.TEMPLATES["vbm"]).write_bytes(b"torn")
    with pytest.raises(DataError, match=r"gm_TPM.nii.gz: damaged template"):
        OpenBHB(root, "vbm").contract()


def test_a_missing_diagnosis_is_not_taken_for_a_control():
    text = {"participant_id": ["1", "2", "3"], "diagnosis": ["control", None, "asd"], "age": "30", "site": "1"}
    rows = canonical_rows(pd.DataFrame({**text, "split": "train"}, dtype="string"), Path("participants.tsv"))
    assert rows["diagnosis"].tolist() == ["CN", pd.NA, "other"]
