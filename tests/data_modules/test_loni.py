"""The archive's image-search sheets and download tree, as ADNI and ICBM share them."""

from __future__ import annotations

import itertools
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.loni import describe_images, find_images, is_t1, one_each, read_search, without_file
from tests.data_modules import small_adni as small


def is_person(name):
    return bool(re.fullmatch(r"\d{3}_S_\d{4}", name))


def searched(root, table, name="search.csv", **how):
    table.to_csv(root / name, index=False, **how)
    return read_search(root)


# Sheets


def test_both_spellings_of_the_sheet_are_read_alike(tmp_path):
    old, _ = searched(tmp_path, small.search({"Image Data ID": "I35", "Visit": "m12"}))
    key = pd.DataFrame([{"image_id": "35", "subject_id": small.PERSON, "image_visit": "m12", "image_date": "2006-05-02",
                         "series_description": "MP-RAGE", "magnetic_field_strength": "3.0"}])  # fmt: skip
    new, _ = searched(tmp_path, key)
    columns = ["image_id", "participant_id", "date", "description", "visit"]
    pd.testing.assert_frame_equal(old[columns], new[columns])
    assert old["age_years"].tolist() == [72.0]
    assert new["field_tesla"].tolist() == [3.0]


def test_rows_of_several_sheets_are_one_an_image_and_disagreement_is_told(tmp_path):
    searched(tmp_path, small.search({"Image Data ID": "I1"}, {"Image Data ID": "I2"}), "one.csv")
    rows, left_out = searched(
        tmp_path,
        small.search({"Image Data ID": "1"}, {"Image Data ID": "I2", "Age": "80"}, {"Image Data ID": ""}),
        "two.csv",
    )
    assert rows["image_id"].tolist() == ["1", "2"]
    told = rows["disputed"].fillna("").tolist()
    assert told == ["", "image-search rows of image I2 disagree: age_years 72.0 and 80.0"]
    assert left_out["reason"].tolist() == [f"{tmp_path / 'two.csv'}: row without an image id or a subject"]


def test_without_a_sheet_there_are_no_rows(tmp_path):
    rows, left_out = read_search(tmp_path)
    assert rows.empty and left_out.empty  # noqa: PT018
    (tmp_path / "empty.csv").write_text("")
    assert read_search(tmp_path)[0].empty


def test_unknown_sexes_and_columns_of_months_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"search.csv: row 1: sex 'Q': expected one of"):
        searched(tmp_path, small.search({"Image Data ID": "I1", "Sex": "Q"}))
    with pytest.raises(DataError, match=r"search.csv: median age is 864: expected years"):
        searched(tmp_path, small.search({"Image Data ID": "I1", "Age": "864"}))


def test_a_person_is_one_in_any_letter_case(tmp_path):
    rows, _ = searched(tmp_path, small.search({"Image Data ID": "I7", "Subject": small.PERSON.lower()}))
    small.image(tmp_path, 7, "2006-05-02", person=small.PERSON.lower())
    images, _ = find_images(tmp_path, is_person)
    assert rows["participant_id"].tolist() == images["participant_id"].tolist() == [small.PERSON]


def test_a_folder_that_is_no_date_is_listed(tmp_path):
    small.image(tmp_path, 7, "2006-13-02")
    images, left_out = find_images(tmp_path, is_person)
    assert images.empty
    assert left_out["reason"].tolist() == ["folder 2006-13-02_12_31_52.0 is no date"]


# Tree


def test_the_tree_is_found_with_or_without_enclosing_folders(tmp_path):
    for place in (tmp_path, tmp_path / "part_1", tmp_path / "download" / "part_2"):
        small.image(place, 7, "2006-05-02")
    (tmp_path / "ADNI" / small.PERSON).rename(tmp_path / small.PERSON)
    images, left_out = find_images(tmp_path, is_person)
    assert images["path"].str.count("/").tolist() == [4, 7, 6]
    assert set(images["participant_id"]) == {small.PERSON}
    assert set(images["date"]) == {pd.Timestamp("2006-05-02")}
    assert left_out.empty


def test_file_names_tell_brains_heads_and_masks_apart(tmp_path):
    for ending in (".nii", "_brain.nii.gz", "_brain_mask.nii.gz", "_b.nii"):
        small.image(tmp_path, 7, "2006-05-02", ending=ending)
    images, left_out = find_images(tmp_path, is_person)
    assert sorted(images["shows"]) == ["brain", "head", "labels"]
    assert left_out["reason"].tolist() == ["second head file of image I7"]


def test_what_is_not_in_the_published_folders_is_listed(tmp_path):
    folder = tmp_path / "ADNI" / small.PERSON
    folder.mkdir(parents=True)
    (folder / "T1.nii").write_bytes(b"none")
    odd = folder / "MP-RAGE" / "2006-05-02_12_31_52.0" / "unknown"
    odd.mkdir(parents=True)
    (odd / "T1.nii.gz").write_bytes(b"none")
    images, left_out = find_images(tmp_path, is_person)
    assert images.empty
    assert left_out["reason"].tolist() == [
        "not in folders of series, date and time, and image id", "no image id in folder 'unknown' or file name",
    ]  # fmt: skip
    assert left_out["path"][0] == f"ADNI/{small.PERSON}/T1.nii"


def test_the_image_id_may_be_in_the_file_name_alone(tmp_path):
    folder = tmp_path / small.PERSON / "MP-RAGE" / "2006-05-02_12_31_52.0" / "S12345"
    folder.mkdir(parents=True)
    (folder / "ADNI_027_S_0074_MR_MP-RAGE_S12345_I678.nii").write_bytes(b"none")
    assert find_images(tmp_path, is_person)[0]["image_id"].tolist() == ["678"]


# Sheet and tree together


def test_disputed_images_and_rows_without_a_file_are_listed(tmp_path):
    small.image(tmp_path, 2, "2006-05-02")
    rows = [{"Image Data ID": "I2"}, {"Image Data ID": "I3"}, {"Image Data ID": "I4", "Description": "Axial T2 FLAIR"}]
    search, _ = searched(tmp_path, pd.concat([small.search(*rows), small.search({"Image Data ID": "I2", "Age": "9"})]))
    images, _ = find_images(tmp_path, is_person)
    kept, left_out = describe_images(images, search)
    assert kept.empty
    assert left_out["reason"].tolist() == ["image-search rows of image I2 disagree: age_years 72.0 and 9.0"]
    assert without_file(search, images)["reason"].tolist() == ["image I3 of the image-search sheet has no file here"]


@pytest.mark.parametrize(
    ("series", "expected"),
    [("MPR; ; N3; Scaled_2", True), ("MT1; GradWarp; N3m", True), ("SAG 3D FSPGR", True), ("3D T1", True),
     ("t1_mprage_sag", True), ("Axial rsfMRI (Eyes Open)", False), ("T2_TSE", False), ("Hippocampal Mask", False),
     ("ADNI Brain PET: Raw", False), ("3 Plane Localizer", False), ("B1-Calibration Body", False),
     ("Forest_MPRAGE", True), ("MPRAGE repetition 2", True), ("T1 pre-contrast", True), ("resting T1", False),
     ("T1_rest", False), ("T1 map", False), ("T1map_MOLLI", False), ("MPRAGE_MAPS", False), ("T1 post gad", False),
     ("MPRAGE_GAD", False), ("T1 +C", False), ("SPGR post-contrast", False), ("T1_SE_sag", False), ("AX T1 TSE", False),
     ("MPRAGE SENSE2", True), ("T1 spin echo", False)],
)  # fmt: skip
def test_series_are_t1_by_their_words(series, expected):
    assert is_t1(pd.Series([series])).tolist() == [expected]


def shown(*rows):
    return pd.DataFrame(rows, columns=["image_id", "description", "acceleration"]).assign(
        participant_id="p", session_id="s"
    )


def test_acceleration_by_its_own_column_counts_and_unaccelerated_is_not_accelerated():
    images = shown(
        ("1", "Sag MPRAGE", "ACCELERATED"), ("2", "Sag MPRAGE", "UNACCELERATED"), ("3", "Non-Accel MPRAGE", None)
    )
    kept, left_out = one_each(images, ["participant_id", "session_id"], "after")
    assert kept["image_id"].tolist() == ["2"]
    assert left_out["reason"].tolist() == [
        "after I2, which is preferred (not accelerated)", "after I2, which is preferred (the lower image id)",
    ]  # fmt: skip


WORDS = [" ".join(words).strip() for words in itertools.product(["MP-RAGE", "IR-SPGR"], ["", "Repeat"], ["", "Accel"])]


@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 9), st.sampled_from(WORDS), st.sampled_from("ab")), min_size=1, max_size=7,
                  unique_by=lambda row: row[0]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_one_image_of_each_session_is_kept_whatever_the_order(rows, seed):
    images = pd.DataFrame(rows, columns=["image_id", "description", "session_id"]).astype("string")
    images = images.assign(participant_id="p", acceleration=pd.NA)
    by = ["participant_id", "session_id"]
    kept, left_out = one_each(images, by, "after")
    shuffled, _ = one_each(images.sample(frac=1, random_state=seed), by, "after")
    assert set(kept["image_id"]) == set(shuffled["image_id"])
    assert kept["session_id"].is_unique
    assert sorted([*kept["image_id"], *left_out["image_id"]]) == sorted(images["image_id"])
    for row in kept.itertuples():
        rivals = images[images["session_id"] == row.session_id]["description"]
        assert ("Repeat" not in row.description) or rivals.str.contains("Repeat").all()
