"""Tables of BIDS datasets: every way to write the same people, and what cannot be read."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from brainage.errors import DataError
from data_modules.bids import BIDS
from tests.data_modules.tiny_bids import image_path, table, tiny_bids

IMAGES = ("01", "02", "03")


def rows(root, **options):
    reader = BIDS(root, "head", options=options)
    found, dropped = reader.table()
    return found.set_index("participant_id"), dict(zip(dropped["participant_id"], dropped["reason"], strict=True))


@pytest.mark.parametrize(
    "written",
    [
        b"\xef\xbb\xbfparticipant_id\tage\tsex\nsub-01\t30.5\tF\nsub-02\t60\tM\n",
        b"participant_id\tage\tsex\rsub-01\t30.5\tF\rsub-02\t60\tM\r",
        b"participant_id\tage\tsex\r\nsub-01\t30,5\tfemale\r\nsub-02\t60\tMALE\r\n",
        b"age;participant_id;sex\n30,5;sub-01;f\n60;sub-02;m\n",
    ],
)
def test_marks_line_ends_separators_and_commas_change_nothing(tmp_path, written):
    found, _ = rows(tiny_bids(tmp_path, written, images=IMAGES[:2]))
    assert found["age_years"].tolist() == [30.5, 60.0]
    assert found["sex"].tolist() == ["F", "M"]


def test_ages_that_are_none_are_listed_with_what_was_written(tmp_path):
    people = "participant_id age\n sub-01 60-65\n sub-02 89+\n sub-03 n/a\n sub-04 44"
    found, reasons = rows(tiny_bids(tmp_path, people, images=[*IMAGES, "04"]))
    assert found["age_years"].to_dict() == {"04": 44.0}
    assert reasons == {
        "01": "age '60-65' is a range", "02": "age '89+' is a bound", "03": "no age of this session"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "described"), [({"age_unit": "months"}, ""), ({}, "months"), ({}, "Months of life")]
)
def test_months_are_converted_where_the_dataset_or_the_user_says_so(tmp_path, options, described):
    people = "participant_id age\n sub-01 366\n sub-02 720\n sub-03 61years"
    said = {"participants": json.dumps({"age": {"Units": described}})} if described else {}
    root = tiny_bids(tmp_path, people, images=IMAGES, described=said)
    assert rows(root, **options)[0]["age_years"].tolist() == [30.5, 60.0, 61.0]  # the last one names its own unit


def test_months_that_nobody_mentions_are_refused(tmp_path):
    root = tiny_bids(tmp_path, "participant_id age\n sub-01 366\n sub-02 720", images=IMAGES[:2])
    with pytest.raises(DataError, match="median age is 543"):
        rows(root)


def test_sex_codes_come_from_words_from_participants_json_or_from_options(tmp_path):
    people = "participant_id age sex\n sub-01 30 1\n sub-02 31 2\n sub-03 32 o"
    root = tiny_bids(tmp_path / "a", people, images=IMAGES)
    with pytest.raises(DataError, match="row 1: sex '1'"):
        rows(root)
    assert rows(root, sex_codes={"1": "M", "2": "F"})[0]["sex"].fillna("").tolist() == ["M", "F", ""]
    levels = json.dumps({"sex": {"Levels": {"1": "Female", "2": "male"}}})
    root = tiny_bids(tmp_path / "b", people, images=IMAGES, described={"participants": levels})
    assert rows(root)[0]["sex"].fillna("").tolist() == ["F", "M", ""]
    assert rows(root, sex_codes={"2": "NA"})[0]["sex"].fillna("").tolist() == ["F", "", ""]


def test_diagnoses_that_are_known_are_coded_and_the_own_word_is_kept(tmp_path):
    people = "participant_id age diagnosis\n sub-01 30 HC\n sub-02 31 FTD\n sub-03 32 n/a"
    root = tiny_bids(tmp_path, people, images=IMAGES)
    found, _ = rows(root)
    assert found["diagnosis"].fillna("").tolist() == ["CN", "other", ""]
    assert found["diagnosis_detail"].fillna("").tolist() == ["HC", "FTD", ""]
    assert rows(root, diagnosis_codes={"ftd": "AD"})[0]["diagnosis"].fillna("").tolist() == ["CN", "AD", ""]
    tiny_bids(tmp_path, people.replace("HC", "1"))
    with pytest.raises(DataError, match="diagnosis '1': a number says nothing"):
        rows(root)


def test_mapped_columns_take_the_place_of_spelled_ones_and_may_add_others(tmp_path):
    people = "participant_id age AgeMRI hospital Moca\n sub-01 30 31 A 28\n sub-02 60 62 B n/a"
    root = tiny_bids(tmp_path, people, images=IMAGES[:2])
    found, _ = rows(root, columns={"age_years": "AgeMRI", "site": "hospital", "moca": "Moca"})
    assert found["age_years"].tolist() == [31.0, 62.0]
    assert found["site"].tolist() == ["A", "B"]
    assert found["moca"].fillna(-1).tolist() == [28.0, -1.0]
    with pytest.raises(DataError, match=r"'AgeMR' .*is in no table; did you mean 'AgeMRI'"):
        rows(root, columns={"age_years": "AgeMR"})
    with pytest.raises(DataError, match="'AgeMR' of wave '2' missing; did you mean 'AgeMRI'"):
        rows(root, sessions={"2": {"age_years": "AgeMR"}})


@pytest.mark.parametrize(
    ("people", "words"),
    [(None, "not found"), ("", "is empty"), (b"\xff\xfe\x00", "UTF-8"), ("name age\n a 3", "'participant_id' missing"),
     ("participant_id age age\n sub-01 3 4", "2 times"), ("participant_id age", "no usable scan")],
)  # fmt: skip
def test_a_participants_file_that_is_missing_empty_or_no_table_is_one_clear_error(tmp_path, people, words):
    root = tiny_bids(tmp_path, people, images=IMAGES)
    with pytest.raises(DataError, match=words):
        rows(root)


def test_a_sessions_file_without_sessions_and_a_torn_json_are_named(tmp_path):
    root = tiny_bids(tmp_path, "participant_id age\n sub-01 3", sessions={"01": "age\n 3"}, images=["01"])
    with pytest.raises(DataError, match=r"sub-01_sessions\.tsv: column session_id missing"):
        rows(root)
    (root / "sub-01" / "sub-01_sessions.tsv").unlink()
    (root / "participants.json").write_text("{")
    with pytest.raises(DataError, match=r"participants\.json: not readable"):
        rows(root)


def test_a_participants_file_may_be_long(tmp_path):
    people = "participant_id session_id age sex\n sub-01 ses-1 30 F\n sub-01 ses-2 32 n/a\n sub-02 ses-1 60 M"
    root = tiny_bids(tmp_path, people, images=["01/1", "01/2", "02/1"])
    found, _ = rows(root)
    assert found["age_years"].tolist() == [30.0, 32.0, 60.0]
    assert found["sex"].tolist() == ["F", "F", "M"]  # a person's sex holds for every visit
    assert found["visit_years"].tolist() == [0.0, 2.0, 0.0]


def test_what_is_said_of_a_person_is_not_taken_for_a_later_visit(tmp_path):
    people = "participant_id age sex site diagnosis mmse\n sub-01 30 F A MCI 27\n sub-02 40 M B MCI 28"
    visits = {"01": "session_id age diagnosis\n 1 30 MCI\n 2 33 n/a", "02": "session_id age\n 1 40"}
    root = tiny_bids(tmp_path, people, sessions=visits, images=["01/1", "01/2", "02/1"])
    found = BIDS(root, "head").table().table
    assert found["diagnosis"].fillna("").tolist() == ["MCI", "", "MCI"]  # who had MCI may have AD three years later
    assert found["mmse"].fillna(-1).tolist() == [-1, -1, 28]
    assert found["site"].tolist() == ["A", "A", "B"]


LABEL = st.text("abc123", min_size=1, max_size=3)
VISIT = st.fixed_dictionaries(
    {
        "age": st.floats(5, 95).map(lambda age: round(age, 1)) | st.sampled_from([None, "60-65"]),
        "mmse": st.integers(0, 30) | st.none(),
        "dx": st.sampled_from(["HC", "MCI", "AD", None]),
    }
)
PEOPLE = st.dictionaries(
    LABEL,
    st.tuples(st.sampled_from("FM"), st.dictionaries(st.sampled_from(["1", "2", "w3"]), VISIT, min_size=1)),
    min_size=1,
    max_size=4,
).filter(
    lambda people: (
        len({who.lstrip("0") for who in people}) == len(people)
        and any(isinstance(v["age"], float) for _, visits in people.values() for v in visits.values())
        and all(
            any(value is not None for value in v.values()) for _, visits in people.values() for v in visits.values()
        )
    )
)


def people_table(root, **options):
    reader = BIDS(root, "head", options={"cohort_name": "same", **options})
    found, dropped = reader.people()
    return found.drop(columns="path"), dropped


def written(value):
    return "n/a" if value is None else str(value)


def write_long(root, people):
    lines = "participant_id sex\n" + "\n".join(f"sub-{who} {sex}" for who, (sex, _) in people.items())
    header = "session_id age mmse diagnosis\n"
    sessions = {
        who: header
        + "\n".join(
            f"ses-{name} {' '.join(written(visit[fact]) for fact in ('age', 'mmse', 'dx'))}"
            for name, visit in visits.items()
        )
        for who, (_, visits) in people.items()
    }
    return tiny_bids(root, lines, sessions=sessions)


def write_wide(root, people, order, own_words):
    cells = []
    for who, (sex, visits) in people.items():
        row = {"participant_id": who, "Gender": {"F": "Female", "M": "Male"}[sex]}
        for name in ("1", "2", "w3"):
            visit = visits.get(name, {})
            row |= {f"{fact}_{name}": written(visit.get(fact)) for fact in ("age", "mmse", "dx")}
        cells.append(row | {"Height": "170"})
    sheet = pd.DataFrame(cells)
    sheet = sheet[np.random.default_rng(order).permutation(list(sheet.columns))]
    text = sheet.to_csv(sep="\t", index=False)
    root.mkdir(parents=True, exist_ok=True)
    (root / "participants.tsv").write_text(text.replace(".", ",") if own_words else text)
    return root


@settings(max_examples=8, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(PEOPLE, st.integers(0, 9), st.booleans())
def test_wide_and_long_tables_of_the_same_people_in_any_order_of_columns_are_the_same(people, order, commas):
    with tempfile.TemporaryDirectory() as folder:
        waves = {name: {"age_years": f"age_{name}", "mmse": f"mmse_{name}", "diagnosis": f"dx_{name}"}
                 for name in ("1", "2", "w3")}  # fmt: skip
        long, left_out = people_table(write_long(Path(folder) / "long", people))
        wide, also = people_table(write_wide(Path(folder) / "wide", people, order, commas), sessions=waves)
    for column in set(long) ^ set(wide):  # an optional column that is nowhere filled
        assert (long if column in long else wide)[column].isna().all()
    both = [column for column in long if column in wide]
    pd.testing.assert_frame_equal(long[both], wide[both], check_dtype=False)
    assert left_out["participant_id"].tolist() == also["participant_id"].tolist()
    known = {(who, name): visit["age"] for who, (_, visits) in people.items() for name, visit in visits.items()}
    ages = dict(zip(zip(long["participant_id"], long["session_id"], strict=True), long["age_years"], strict=True))
    assert ages == {key: age for key, age in known.items() if isinstance(age, float)}
    assert len(left_out) == len(known) - len(ages)


def roi_dataset(root, text):
    root = tiny_bids(root, "participant_id age\n sub-01 30\n sub-02 60\n IXI012-HH-1211 40")
    (root / "regions.csv").write_text(text)
    return root


def test_a_table_of_regions_is_read_by_ids_of_many_kinds(tmp_path):
    header = "Measure:volume,Left-Hippocampus,eTIV,note,age"
    text = f'{header}\nsub-01_T1w,3.5,1500,x,9\n02,"4,5",1600,y,9\nIXI012-HH-1211,5,1,z,9\n'
    reader = BIDS(roi_dataset(tmp_path, text), "roi", options={"table_file": "regions.csv"})
    assert reader.contract().features == ("Left-Hippocampus", "eTIV")  # not the note, not the age
    found = reader.table().table
    assert found["age_years"].tolist() == [30.0, 60.0, 40.0]
    assert found["participant_id"].tolist() == ["01", "02", "IXI012-HH-1211"]
    assert [reader.read(path).tolist() for path in found["path"]] == [[3.5, 1500.0], [4.5, 1600.0], [5.0, 1.0]]
    chosen = BIDS(tmp_path, "roi", options={"table_file": "regions.csv", "features": ["Left-.*"]})
    assert chosen.contract().features == ("Left-Hippocampus",)


def test_region_rows_that_lack_a_value_or_repeat_a_scan_are_listed(tmp_path):
    text = "id,ses,a,b\n01,,1,\n02,,1,2\n02,,3,4\nIXI012-HH-1211,,5,6\n99,,1,1\n"
    options = {"table_file": "regions.csv", "table_id": "id", "table_session": "ses"}
    reader = BIDS(roi_dataset(tmp_path, text), "roi", options=options)
    found = reader.table()
    assert found.table["path"].tolist() == ["regions.csv#1", "regions.csv#3"]
    assert dict(zip(found.dropped["path"], found.dropped["reason"], strict=True)) == {
        "regions.csv#0": "value of b is missing or no number",
        "regions.csv#2": "not the first scan of its session (data.options.one_run)",
        "regions.csv#4": "no row in the table of people",
    }
    for row in ("regions.csv#0", "regions.csv#9"):
        with pytest.raises(DataError, match="regions"):
            reader.read(row)


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "name the table"), ({"table_file": "../regions.csv"}, "inside data.root"),
     ({"table_file": "none.csv"}, "file not found"), ({"table_file": "regions.csv", "table_id": "Id"}, "'Id' missing"),
     ({"table_file": "regions.csv", "features": ["x.*"]}, "no column is or matches 'x"),
     ({"table_file": "regions.csv", "features": ["("]}, "no regular expression")],
)  # fmt: skip
def test_a_table_of_regions_that_cannot_be_used_says_why(tmp_path, options, words):
    root = roi_dataset(tmp_path / "data", "id,a\n01,1\n")
    with pytest.raises(Exception, match=words):
        BIDS(root, "roi", options=options).table()


def test_tables_of_the_tiny_dataset_are_as_meant():
    assert table("a b\n 1 2") == "a\tb\n1\t2\n"
    assert image_path("01//2") == "sub-01/anat/sub-01_run-2_T1w.nii.gz"


@pytest.mark.parametrize(
    ("said", "age"),
    [({"Units": "weeks"}, 10.0), ({"Units": "wk"}, 10.0), ({"Unit": "mo"}, 43.5), ({"Units": "month(s)"}, 43.5),
     ({"Description": "Age in completed months"}, 43.5), ({"Description": "age (days)"}, 1.429),
     ({"Description": "age on the day of the scan"}, 522), ({"Units": "yrs", "Description": "age in months"}, 522)],
)  # fmt: skip
def test_a_unit_is_understood_by_any_of_its_names(tmp_path, said, age):
    people = "participant_id age\n sub-01 522\n sub-02 20\n sub-03 20"
    root = tiny_bids(tmp_path, people, images=IMAGES, described={"participants": json.dumps({"age": said})})
    found = BIDS(root, "head").people()
    ages = {**dict(zip(found.table["participant_id"], found.table["age_years"], strict=True))}
    reasons = " ".join(found.dropped["reason"])
    assert ages.get("01", 522) == pytest.approx(age, abs=0.01), reasons


@pytest.mark.parametrize(
    ("said", "message"),
    [({"Units": "fortnights"}, r"Units of 'age' are 'fortnights': expected years, months, weeks or days"),
     ({"Description": "in years (months)"}, r"Description of 'age' names months and years: which is it")],
)  # fmt: skip
def test_a_unit_that_is_not_known_is_refused(tmp_path, said, message):
    described = {"participants": json.dumps({"age": said})}
    root = tiny_bids(tmp_path, "participant_id age\n sub-01 30", images=IMAGES[:1], described=described)
    with pytest.raises(DataError, match=message):
        BIDS(root, "head").table()
    assert len(BIDS(root, "head", options={"age_unit": "years"}).table().table) == 1


def test_the_one_diagnosis_of_a_person_is_that_of_the_first_visit_unless_told_otherwise(tmp_path):
    people = "participant_id sex diagnosis\n sub-01 F MCI\n sub-02 M MCI"
    visits = {"01": "session_id age\n pre 30\n post 33", "02": "session_id age\n pre 40"}
    root = tiny_bids(tmp_path, people, sessions=visits, images=["01/pre", "01/post", "02/pre"])
    for option, said in (({}, {"pre": "MCI", "post": ""}), ({"one_diagnosis": "all"}, {"pre": "MCI", "post": "MCI"})):
        reader = BIDS(root, "head", options=option)
        found = reader.table().table.set_index(["participant_id", "session_id"])["diagnosis"].fillna("")
        assert found["01"].to_dict() == said
        assert found["02"].to_dict() == {"pre": "MCI"}
        (note,) = reader.notes()
        assert note.startswith("1 later sessions of people with one diagnosis")
