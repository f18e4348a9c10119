"""BIDS datasets as people share them: ages of scans, ids that differ, tables that contradict, images that lack."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from brainage.errors import ConfigError, DataError
from data_modules.bids import BIDS
from tests.data_modules.tiny_bids import image_path, tiny_bids

PEOPLE = "participant_id age sex\n sub-01 30.5 F\n sub-02 60 M"
VISITS = {"01": "session_id age\n ses-1 30.5\n ses-2 33"}


def read(root, **options):
    return BIDS(root, "head", options=options)


def ages(reader):
    """{(participant, session): age} of the table, missing sessions as ''."""
    rows = reader.table().table
    return {(row.participant_id, "" if pd.isna(row.session_id) else row.session_id): row.age_years
            for row in rows.itertuples()}  # fmt: skip


def reasons(result):
    """{participant/session: reason} of what was left out."""
    dropped = result.dropped.fillna("")
    return dict(zip(dropped["participant_id"] + "/" + dropped["session_id"], dropped["reason"], strict=True))


def test_a_plain_dataset_needs_no_option(tmp_path):
    root = tiny_bids(
        tmp_path, PEOPLE, images=["01", "02"], described={"dataset_description": '{"Name": "The Köln Study, 2nd wave"}'}
    )
    table, dropped = read(root).table()
    assert len(dropped) == 0
    assert table["age_years"].tolist() == [30.5, 60.0]
    assert table["sex"].tolist() == ["F", "M"]
    assert table["visit_years"].tolist() == [0.0, 0.0]
    assert set(table["cohort"]) == set(table["site"]) == {"the_k_ln_study_2nd_wave"}  # one site: the dataset's name
    assert table["path"].tolist() == [image_path("01"), image_path("02")]
    assert set(read(root, cohort_name="DLBS").table().table["cohort"]) == {"dlbs"}


def test_the_age_in_sessions_tsv_wins_over_that_of_participants_tsv(tmp_path):
    reader = read(tiny_bids(tmp_path, PEOPLE, sessions=VISITS, images=["01/1", "01/2", "02/1"]))
    assert ages(reader) == {("01", "1"): 30.5, ("01", "2"): 33.0, ("02", "1"): 60.0}
    assert reader.table().table["visit_years"].tolist() == [0.0, 2.5, 0.0]


def test_one_age_of_several_sessions_is_not_given_to_all_of_them_in_silence(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE, images=["01/2", "01/10", "02"])
    assert ages(read(root)) == {("02", ""): 60.0}
    assert reasons(read(root).table())["01/10"].startswith("one age but 2 sessions without acq_time")
    assert ages(read(root, one_age="first")) == {("01", "2"): 30.5, ("02", ""): 60.0}  # 2 comes before 10
    same = read(root, one_age="all")
    assert ages(same) == {("01", "2"): 30.5, ("01", "10"): 30.5, ("02", ""): 60.0}
    assert same.table().table.set_index("participant_id").loc["01", "visit_years"].isna().all()


def test_times_of_sessions_give_the_later_ages(tmp_path):
    times = {"01": "session_id acq_time\n ses-1 2010-01-01T09:00:00\n ses-2 2012-07-02T09:00:00"}
    root = tiny_bids(tmp_path, PEOPLE, sessions=times, images=["01/1", "01/2"])
    assert ages(read(root)) == pytest.approx({("01", "1"): 30.5, ("01", "2"): 30.5 + 913 / 365.25})
    assert read(root).table().table["visit_years"].tolist() == pytest.approx([0.0, 913 / 365.25])


def test_times_of_scans_tsv_serve_where_no_table_has_sessions(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE, images=["01/1", "01/2"])
    for session, day in (("1", "2010-01-01"), ("2", "2011-01-01")):
        lines = f"filename\tacq_time\nfunc/x.nii.gz\t1999-01-01\nanat/sub-01_ses-{session}_T1w.nii.gz\t{day}T00:00:00\n"
        (root / f"sub-01/ses-{session}/sub-01_ses-{session}_scans.tsv").write_text(lines)
    assert ages(read(root)) == pytest.approx({("01", "1"): 30.5, ("01", "2"): 30.5 + 365 / 365.25})


def test_an_age_that_is_missing_at_one_session_follows_from_another_and_the_times(tmp_path):
    visits = {"01": "session_id age acq_time\n 1 30.5 2010-01-01\n 2 n/a 2011-01-01\n 3 32 n/a\n 4 n/a n/a"}
    reader = read(tiny_bids(tmp_path, PEOPLE, sessions=visits, images=[f"01/{n}" for n in "1234"]))
    expected = {("01", "1"): 30.5, ("01", "2"): 30.5 + 365 / 365.25, ("01", "3"): 32.0}
    assert ages(reader) == pytest.approx(expected)
    assert reasons(reader.table())["01/4"] == "no age of this session"


@pytest.mark.parametrize(
    ("visits", "reason"),
    [
        ("session_id age\n 1 45\n 2 46", "age 30.5 in the table of people, 45 to 46 in its sessions"),
        ("session_id age sex\n 1 30 M\n 2 31 M", "the tables say both sexes"),
        ("session_id age acq_time\n 1 30 2001-01-01\n 2 31 2010-01-01", "ages and acq_time of this person's sessions"),
    ],
)
def test_tables_that_contradict_each_other_give_no_scan_of_that_person(tmp_path, visits, reason):
    root = tiny_bids(tmp_path, PEOPLE, sessions={"01": visits}, images=["01/1", "01/2", "02"])
    found = read(root).table()
    assert set(found.table["participant_id"]) == {"02"}
    assert [text.startswith(reason) for text in reasons(found).values()] == [True, True]


def test_rows_of_one_person_that_disagree_are_listed_and_equal_ones_counted_once(tmp_path):
    people = "participant_id age sex\n sub-01 30 F\n sub-01 31 F\n sub-02 60 M\n sub-02 60 M\n n/a 50 F"
    found = read(tiny_bids(tmp_path, people, images=["01", "02"])).table()
    assert found.table["participant_id"].tolist() == ["02"]
    said = reasons(found)
    assert said["01/"] == "rows of the tables disagree: age_years 30.0 and 31.0"
    assert said["02/"] == "participants.tsv#3: repeated row, its first one is kept"
    assert said["/"] == "participants.tsv#4: row without a participant"


def test_ids_may_differ_in_case_prefix_and_zeros_but_never_be_guessed(tmp_path):
    people = "participant_id age\n SUB-a1 30\n 7 40\n sub-x 50\n sub-X 51\n sub-05 55"
    images = ["A1", "007", "x", "X", "5", "05", "y"]
    reader = read(tiny_bids(tmp_path, people, images=images))
    assert ages(reader) == {("a1", ""): 30, ("7", ""): 40, ("x", ""): 50, ("X", ""): 51, ("05", ""): 55}
    assert reasons(reader.table()) == {"5/": "no row in the table of people", "y/": "no row in the table of people"}


def test_sessions_without_an_image_images_without_a_session_and_people_without_either_are_named(tmp_path):
    people = PEOPLE + "\n sub-03 70 M"
    reader = read(tiny_bids(tmp_path, people, sessions=VISITS, images=["01/1", "01/9", "02", "04"]))
    assert reasons(reader.table()) == {
        "01/2": "in the tables, but there is no scan of this session",
        "01/9": "session '9' is in no table; of this person they have 1, 2",
        "04/": "no row in the table of people",
    }
    assert reader.without_scan() == ["03"]


def test_an_image_without_a_session_is_of_the_only_visit_and_of_none_where_there_are_two(tmp_path):
    visits = {**VISITS, "02": "session_id age\n ses-base 61"}
    found = read(tiny_bids(tmp_path, PEOPLE, sessions=visits, images=["01", "02"])).table()
    assert found.table[["participant_id", "session_id", "age_years"]].values.tolist() == [["02", "base", 61.0]]
    assert reasons(found)["01/"] == "session '' is in no table; of this person they have 1, 2"


def test_one_run_of_a_session_is_kept_unless_all_are_wanted(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE, images=["01//10", "01//2", "02"])
    (root / "sub-02/anat/sub-02_T1w.nii").touch()
    (root / "sub-02/anat/sub-02_acq-fast_T1w.nii.gz").touch()
    found = read(root).table()
    assert found.table["run"].fillna("").tolist() == ["2", ""]
    listed = dict(zip(found.dropped["path"], found.dropped["reason"], strict=True))
    assert listed["sub-01/anat/sub-01_run-10_T1w.nii.gz"] == "not the first scan of its session (data.options.one_run)"
    assert listed["sub-02/anat/sub-02_T1w.nii"].startswith("the same image as sub-02/anat/sub-02_T1w.nii.gz")
    every = read(root, one_run=False).table()
    assert every.table["run"].fillna("").tolist() == ["10", "2", "", "acq-fast"]
    assert len(every.dropped) == 1
    chosen = read(root, entities={"acq": "fast"}).table().table
    assert chosen["path"].tolist() == ["sub-02/anat/sub-02_acq-fast_T1w.nii.gz"]


def test_two_pipelines_are_not_mixed(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE)
    for pipeline in ("cat12.7", "cat12.8"):
        (root / "derivatives" / pipeline / "sub-01").mkdir(parents=True)
        (root / "derivatives" / pipeline / "sub-01" / "mwp1sub-01_T1w.nii").touch()
    with pytest.raises(DataError, match=r"2 pipelines \('cat12.7', 'cat12.8'\)"):
        BIDS(root, "vbm").table()
    assert len(BIDS(root, "vbm", options={"pipeline": "cat12.8"}).table().table) == 1


def test_the_folder_of_a_derivative_takes_the_people_of_its_dataset(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE) / "derivatives" / "cat12"
    (root / "sub-01").mkdir(parents=True)
    (root / "sub-01" / "mwp1sub-01_T1w.nii").touch()
    with pytest.raises(DataError, match="participants_file"):
        BIDS(root, "vbm").table()
    table = BIDS(root, "vbm", options={"participants_file": "../../participants.tsv"}).table().table
    assert table["path"].tolist() == ["sub-01/mwp1sub-01_T1w.nii"]


def test_sites_come_from_the_table_or_from_sidecars_when_asked(tmp_path):
    image = ["01", "02"]
    facts = {"InstitutionName": "Clinic", "Manufacturer": "GE", "StationName": "MR2", "MagneticFieldStrength": 3}
    root = tiny_bids(tmp_path / "a", PEOPLE, images=image, described={"dataset_description": '{"Name": "a"}'})
    (root / "T1w.json").write_text(json.dumps({"Manufacturer": "Siemens"}))
    (root / image_path("01").replace(".nii.gz", ".json")).write_text(json.dumps(facts))
    assert read(root).table().table["site"].tolist() == ["a", "a"]
    table = read(root, sidecars=True).table().table
    assert table["site"].tolist() == ["Clinic GE MR2", "Siemens"]
    assert table["field_tesla"].fillna(0).tolist() == [3.0, 0.0]
    people = "participant_id age institution\n sub-01 30 north\n sub-02 31 n/a"
    table = read(tiny_bids(tmp_path / "b", people, images=image)).table().table
    assert table["site"].fillna("missing").tolist() == ["north", "missing"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"colums": {}}, "did you mean 'columns'"),
        ({"one_age": "most"}, "one_age"),
        ({"diagnosis_codes": {"1": "healthy"}}, "expected one of CN, MCI"),
        ({"columns": {"path": "age"}}, "no column that a table may fill"),
        ({"sessions": {"1": {"session_id": "age"}}}, "no column that a table may fill"),
        ({"same_age_years": -1.0}, "0 or more"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path, options, words):
    root = tiny_bids(tmp_path, PEOPLE, images=["01"])
    with pytest.raises(ConfigError, match=words):
        read(root, **options).table()


@pytest.mark.parametrize("modality", ["head", "vbm"])
def test_a_dataset_without_such_images_says_what_was_looked_for(tmp_path, modality):
    root = tiny_bids(tmp_path, PEOPLE)
    (root / "sub-01").mkdir()
    (root / "sub-01" / "sub-01_desc-defaced_T1w.nii.gz").touch()
    with pytest.raises(DataError, match=f"no {modality} image; expected .*there are.*desc-defaced"):
        BIDS(root, modality).table()


def grey(root, name, *, affine=None, shape=(11, 13, 11)):
    """A map of which some voxels tell the axes apart, LAS as CAT12 writes it."""
    affine = np.diag([-15.0, 15, 15, 1]) if affine is None else affine
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    path = root / "derivatives" / "cat12" / name.split("_")[0] / f"mwp1{name}_T1w.nii"
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code="mni")
    nib.save(image, path)
    return path


def test_a_prepared_map_with_swapped_axes_or_another_place_is_refused(tmp_path):
    root = tiny_bids(tmp_path, "participant_id age\n" + "\n".join(f"sub-0{n} {30 + n}" for n in range(1, 6)))
    for number in range(1, 4):
        grey(root, f"sub-0{number}")
    swapped = grey(root, "sub-04", shape=(13, 11, 11))
    shifted = np.diag([-15.0, 15, 15, 1])
    shifted[0, 3] = 30
    moved = grey(root, "sub-05", affine=shifted)
    reader = BIDS(root, "vbm")
    assert reader.contract().shape == (1, 11, 13, 11)
    good = reader.read("derivatives/cat12/sub-01/mwp1sub-01_T1w.nii")[0]
    np.testing.assert_array_equal(good[::-1].ravel(), np.arange(11 * 13 * 11))  # LAS on disk, RAS when read
    for path, words in ((swapped, "shape"), (moved, "origin_mm")):
        with pytest.raises(DataError, match=f"{path.name}.*{words}"):
            reader.read(path.relative_to(root).as_posix())


def test_damaged_files_are_named(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE)
    for number in (1, 2):
        whole = grey(root, f"sub-0{number}")
    whole.write_bytes(whole.read_bytes()[:1000])
    reader = BIDS(root, "vbm")
    with pytest.raises(DataError, match=r"mwp1sub-02_T1w\.nii: damaged"):
        reader.read("derivatives/cat12/sub-02/mwp1sub-02_T1w.nii")
    assert reader.read("derivatives/cat12/sub-01/mwp1sub-01_T1w.nii").shape == (1, 11, 13, 11)


def test_npy_maps_lie_on_the_grid_of_the_template(tmp_path):
    root = tiny_bids(tmp_path / "data", PEOPLE)
    template = grey(tmp_path / "elsewhere", "sub-00")
    folder = root / "derivatives" / "openbhb" / "sub-01"
    folder.mkdir(parents=True)
    values = np.random.default_rng(0).random((1, 1, 11, 13, 11), dtype=np.float32)
    names = {kind: f"sub-0{kind}_preproc-cat12vbm_desc-gm_T1w.npy" for kind in (1, 2, 3)}
    np.save(folder / names[1], values)
    np.save(folder.parent / names[3], values.swapaxes(2, 3))
    (folder.parent / names[2]).write_bytes((folder / names[1]).read_bytes()[:900])
    reader = BIDS(root, "vbm", options={"template_file": str(template)})
    assert len(reader.table().table) == 2
    np.testing.assert_array_equal(reader.read(f"derivatives/openbhb/sub-01/{names[1]}")[0], values[0, 0, ::-1])
    for damaged in (names[2], names[3]):
        with pytest.raises(DataError, match=f"{damaged}: damaged"):
            reader.read(f"derivatives/openbhb/{damaged}")
    assert BIDS(root, "vbm").contract().shape == (1, 121, 145, 121)  # the published grid, without a template


def test_a_spacing_that_is_not_that_of_prepared_maps_is_refused(tmp_path):
    root = tiny_bids(tmp_path, PEOPLE)
    grey(root, "sub-01")
    with pytest.raises(ConfigError, match="its own grid"):
        BIDS(root, "vbm", 2.0).contract()
    assert BIDS(root, "vbm", 15.0).contract().spacing_mm == (15.0, 15.0, 15.0)
