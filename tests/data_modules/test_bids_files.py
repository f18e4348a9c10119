"""Names of files in a BIDS tree, compared with a plain search of the whole tree."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.bids_files import list_files, parse_name
from data_modules.bids_people import match_labels

RAW = "sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_T1w.nii.gz"
CAT12 = "derivatives/cat12/sub-{0}/ses-{1}/anat/mwp1sub-{0}_ses-{1}_T1w.nii"
MNI = "derivatives/raw2mni/sub-{0}/ses-{1}/anat/sub-{0}_ses-{1}_space-MNI152NLin6Asym_desc-brain_T1w.nii.gz"


def grow(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


@pytest.fixture
def tree(tmp_path):
    many = [form.format(who, session) for form in (RAW, CAT12, MNI) for who in ("02", "01") for session in ("1", "2")]
    return grow(
        tmp_path,
        *many,
        "sub-03/anat/sub-03_acq-mprage_run-1_T1w.nii.gz",
        "sub-03/anat/sub-03_acq-mprage_run-1_T1w.json",
        "sub-03/anat/sub-03_T2w.nii.gz",
        "sub-03/func/sub-03_task-rest_bold.nii.gz",
        "sub-03/func/sub-03_T1w.nii.gz",
        "sourcedata/sub-09/anat/sub-09_T1w.nii.gz",
        ".git/sub-09/anat/sub-09_T1w.nii.gz",
        "participants.tsv",
    )


def paths(tree, **wanted):
    return list_files(tree, suffix="T1w", **wanted)["path"].tolist()


def test_raw_and_derivatives_are_told_apart(tree):
    raw = paths(tree, pipeline="", datatype="anat")
    assert raw == [RAW.format(who, session) for who in ("01", "02") for session in ("1", "2")] + [
        "sub-03/anat/sub-03_acq-mprage_run-1_T1w.nii.gz"
    ]
    assert paths(tree, prefix="mwp1") == [CAT12.format(who, s) for who in ("01", "02") for s in ("1", "2")]
    assert paths(tree, space="MNI152*") == paths(tree, pipeline="raw2mni") == paths(tree, space=("MNI152*", "T1w"))
    assert not {*paths(tree, pipeline="")} & {*paths(tree, pipeline="raw2mni")}
    assert {*paths(tree, space="", desc="")} == {*raw, "sub-03/func/sub-03_T1w.nii.gz"}


def test_what_a_name_says_is_in_the_columns(tree):
    row = list_files(tree, suffix="T1w", entities={"acq": "mprage"}).iloc[0]
    assert (row["participant_id"], row["session_id"], row["run"], row["acq"]) == ("03", "", "1", "mprage")
    row = list_files(tree, suffix="T1w", prefix="mwp1").iloc[0]
    assert (row["session_id"], row["pipeline"], row["datatype"], row["extension"]) == ("1", "cat12", "anat", ".nii")


def test_a_pipeline_may_be_the_root_and_a_session_may_be_named_by_its_folder_alone(tree):
    assert len(list_files(tree / "derivatives", suffix="T1w")) == 4
    assert len(list_files(tree / "derivatives" / "cat12", suffix="T1w", prefix=None)) == 4
    grow(tree, "sub-04/ses-x/anat/sub-04_T1w.nii")
    found = list_files(tree, suffix="T1w", pipeline="").set_index("participant_id")
    assert found.loc["04", "session_id"] == "x"


@pytest.mark.parametrize("path", ["sub-01/ses-1/anat/sub-02_ses-1_T1w.nii", "sub-01/ses-1/anat/sub-01_ses-2_T1w.nii"])
def test_a_file_in_the_folder_of_another_person_or_session_is_refused(tree, path):
    grow(tree, path)
    with pytest.raises(DataError, match=r"in the folder of (sub-01|ses-1)"):
        list_files(tree, suffix="T1w")


def test_a_link_that_leads_upwards_is_not_followed_and_a_broken_one_is_a_file(tree):
    (tree / "sub-03" / "anat" / "again").symlink_to(tree)
    (tree / "sub-03" / "anat" / "sub-03_run-2_T1w.nii.gz").symlink_to("nowhere")  # git-annex without content
    assert sum("sub-03" in path for path in paths(tree, pipeline="", datatype="anat")) == 2


def test_no_folder_and_no_file(tmp_path):
    with pytest.raises(DataError, match="found nothing"):
        list_files(tmp_path / "none", suffix="T1w")
    none = list_files(tmp_path, suffix="T1w")
    assert len(none) == 0
    assert {"participant_id", "session_id", "run", "path"} <= set(none)


def test_two_labels_that_could_mean_the_same_person_are_matched_to_nobody():
    assert match_labels(["07", "007"], ["7"]) == {}
    assert match_labels(["A"], ["a", "0a"]) == {"A": "a"}
    assert match_labels(["5"], ["05", "005"]) == {}


LABEL = st.text("abcXYZ019", min_size=1, max_size=4)


@given(st.dictionaries(st.sampled_from(["ses", "acq", "run", "space", "desc"]), LABEL), LABEL)
def test_a_name_is_read_back_as_it_was_made(entities, subject):
    name = "_".join([f"sub-{subject}", *(f"{key}-{value}" for key, value in entities.items()), "T1w.nii.gz"])
    assert parse_name(name, ".nii.gz") == {
        "prefix": "", "suffix": "T1w", "extension": ".nii.gz", "sub": subject, **entities
    }  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(LABEL, st.sampled_from(["", "1", "2"])), unique=True, min_size=1, max_size=6))
def test_the_listing_is_that_of_a_search_of_every_file(tmp_path_factory, scans):
    root = tmp_path_factory.mktemp("tree")
    for who, session in scans:
        folder = f"sub-{who}/" + (f"ses-{session}/" if session else "")
        grow(root, f"{folder}anat/sub-{who}{f'_ses-{session}' if session else ''}_T1w.nii.gz")
    pattern = re.compile(r"sub-(\w+?)(?:_ses-(\w+?))?_T1w\.nii\.gz")
    expected = sorted((m[1], m[2] or "") for f in root.rglob("*_T1w.nii.gz") if (m := pattern.fullmatch(f.name)))
    found = list_files(root, suffix="T1w")
    assert list(zip(found["participant_id"], found["session_id"], strict=True)) == expected
