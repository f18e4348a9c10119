"""UK Biobank: tables in every export style, bulk zips, visits, ages, and people who withdrew."""

from __future__ import annotations

import gzip
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from brainage.errors import ConfigError, DataError
from brainage.imaging.contract import InputContract
from data_modules import ukb
from data_modules.ixi import IXI
from data_modules.simulated.ukb import STYLES, people_table, simulate_visits
from data_modules.ukb import MEMBERS, UKBiobank
from data_modules.ukb_table import column_of
from tests.data_modules.small_ukb import TABLE, cohort, zips

PLANTED = simulate_visits(24, seed=5, repeat_share=0.4, odd_share=0.05).assign(tiv_ml=1400.5)
SCANNED = PLANTED[PLANTED["fate"] == "scan"].reset_index(drop=True)


def reasons(reader: UKBiobank) -> list[str]:
    return reader.table().dropped["reason"].tolist()


@pytest.fixture(scope="module")
def planted_zips(tmp_path_factory):
    """A root with a zip for every scan that is used, and no table."""
    visits = (SCANNED["participant_id"] + "_" + SCANNED["session_id"]).tolist()
    return zips(tmp_path_factory.mktemp("planted"), *visits)


@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("style", STYLES)
def test_the_table_of_every_export_style_is_the_planted_one(planted_zips, style, words):
    table = people_table(PLANTED, seed=5, style=style, words=words, columns=3)
    separator, ending = STYLES[style][2:]
    file = planted_zips / f"ukb1.{ending}"
    file.write_text(table.to_csv(sep=separator, index=False))
    try:
        found = UKBiobank(planted_zips, "brain_mni").table()
    finally:
        file.unlink()
    assert_planted(found.table)
    assert found.dropped.empty


def assert_planted(table: pd.DataFrame) -> None:
    for name in ("participant_id", "session_id", "site", "sex"):
        assert table[name].tolist() == SCANNED[name].tolist(), name
    np.testing.assert_allclose(table["age_years"], SCANNED["age_years"], atol=17 / 365.25)  # of birth: month only
    np.testing.assert_allclose(table["visit_years"], SCANNED["visit_years"], atol=1.1 / 365.25)
    assert (table["tiv_ml"] == 1400.5).all()
    assert table["diagnosis"].isna().all()


@given(data=st.data())
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_style_encoding_and_other_columns_never_change_the_table(planted_zips, data):
    draw = data.draw
    style, words = draw(st.sampled_from(list(STYLES))), draw(st.booleans())
    table = people_table(
        PLANTED, seed=draw(st.integers(0, 9)), style=style, words=words, columns=draw(st.integers(0, 4))
    )
    table = table[draw(st.permutations(list(table.columns)))]
    separator, line = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    missing = draw(st.sampled_from(["", "NA"]))
    text = table.to_csv(sep=separator, index=False, lineterminator=line, na_rep=missing)
    encoded = text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig"])))
    packed = draw(st.booleans())
    file = planted_zips / f"a_name.csv{'.gz' * packed}"
    file.write_bytes(gzip.compress(encoded) if packed else encoded)
    try:
        assert_planted(UKBiobank(planted_zips, "brain_mni").table().table)
    finally:
        file.unlink()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n_21003_3_0", ("age_years", 3)),
        ("ts_53_2_0", ("visit_date", 2)),
        ("p54_i2", ("site", 2)),
        ("p26521_i2", ("tiv_mm3", 2)),
        ("n_eid", ("participant_id", 0)),
        ("participant.eid", ("participant_id", 0)),
        ("21003-0.0", None),  # recruitment
        ("p21003_i1", None),
        ("54-2.1", None),
        ("p31_i0_a1", None),
        ("131-0.0", None),
        ("seid", None),
        ("31", None),
    ],
)
def test_a_column_is_known_by_field_instance_and_array(name, expected):
    assert column_of(name) == expected


def test_only_the_columns_that_are_needed_are_read(tmp_path, monkeypatch):
    seen = []
    read = ukb.read_people.__globals__["read_sheet"]

    def watched(file, *, usecols):
        sheet = read(file, usecols=usecols)
        seen.extend(sheet.columns)
        return sheet

    monkeypatch.setitem(ukb.read_people.__globals__, "read_sheet", watched)
    table = TABLE.replace("eid", "eid,30000-0.0").replace("1000001", "1000001,5").replace("1000002", "1000002,6")
    assert len(cohort(tmp_path, table).table().table) == 2
    assert seen == ["eid", "31-0.0", "21003-2.0", "54-2.0"]


def test_whole_years_are_kept_where_birth_or_visit_is_unknown(tmp_path):
    text = (
        "eid,21003-2.0,34-0.0,52-0.0,53-2.0\n"
        "1000001,61,1955,6,2016-09-15\n"
        "1000002,61,1955,,2016-09-15\n"
        "1000003,61,1955,6,\n"
        "1000004,,1955,6,2016-09-15\n"
    )
    table = cohort(tmp_path, text, *(f"100000{n}_2" for n in range(1, 5))).table().table
    exact = (pd.Timestamp("2016-09-15") - pd.Timestamp("1955-06-15")).days / 365.25
    assert table["age_years"].tolist() == pytest.approx([exact, 61, 61, exact], abs=5e-4)


@pytest.mark.parametrize(("whole", "kept"), [("61", True), ("60", False), ("62", False), ("63", False)])
def test_an_age_that_contradicts_birth_and_visit_is_listed(tmp_path, whole, kept):
    text = f"eid,21003-2.0,34-0.0,52-0.0,53-2.0\n1000001,{whole},1955,6,2016-09-15\n1000002,61,1955,6,2016-09-15\n"
    reader = cohort(tmp_path, text)
    assert len(reader.table().table) == 1 + kept
    expected = [] if kept else [f"age {whole} (field 21003) is not 61.3 by birth and visit (34, 52, 53)"]
    assert reasons(reader) == expected


def test_years_between_visits_come_from_dates_else_from_ages(tmp_path):
    text = (
        "eid,21003-2.0,21003-3.0,53-2.0,53-3.0\n"
        "1000001,61,63,2016-01-01,2018-07-01\n"
        "1000002,61,64,,2018-07-01\n"
        "1000003,,64,,2018-07-01\n"
    )
    visits = ["1000001_2", "1000001_3", "1000002_2", "1000002_3", "1000003_3"]
    table = cohort(tmp_path, text, *visits).table().table
    assert table["session_id"].tolist() == ["2", "3", "2", "3", "3"]
    assert table["visit_years"].tolist() == pytest.approx([0, 912 / 365.25, 0, 3, 0], abs=5e-4)


def test_a_repeat_visit_before_the_first_is_listed(tmp_path):
    text = "eid,21003-2.0,21003-3.0,53-2.0,53-3.0\n1000001,61,63,2018-01-01,2016-07-01\n"
    reader = cohort(tmp_path, text, "1000001_2", "1000001_3")
    assert reader.table().table["session_id"].tolist() == ["2"]
    assert reasons(reader) == ["visit 3 lies before the first imaging visit"]


@pytest.mark.parametrize(
    ("age", "reason"),
    [
        ("60-65", "age '60-65' is a range"),
        ("12", "age 12.0 is outside 37 to 100 years: UK Biobank scanned nobody of that age"),
        ("101", "age 101.0 is outside 37 to 100 years: UK Biobank scanned nobody of that age"),
        ("-3", "age -3.0 is outside 37 to 100 years: UK Biobank scanned nobody of that age"),
    ],
)
def test_an_age_that_cannot_be_is_listed(tmp_path, age, reason):
    reader = cohort(tmp_path, TABLE.replace("61", age))
    assert reader.table().table["participant_id"].tolist() == ["1000002"]
    assert reasons(reader) == [reason]


def test_ages_in_months_are_refused_as_a_whole(tmp_path):
    with pytest.raises(DataError, match="months or days"):
        cohort(tmp_path, TABLE.replace("61", "732").replace("72,", "864,")).table()


def test_decimal_commas_and_windows_files_are_understood(tmp_path):
    text = "\ufeff" + TABLE.replace(",", ";").replace("61", '"61,5"').replace("\n", "\r")
    assert cohort(tmp_path, text).table().table["age_years"].tolist() == [61.5, 72.0]


def test_an_unknown_sex_names_row_and_value(tmp_path):
    with pytest.raises(DataError, match=r"ukb1\.csv: row 2: sex '9'"):
        cohort(tmp_path, TABLE.replace("1000002,1", "1000002,9")).table()


def test_a_missing_centre_is_missing_and_an_unknown_one_keeps_its_code(tmp_path):
    reader = cohort(tmp_path, TABLE.replace("11025", "").replace("11026", "11024"))
    assert reader.table().table["site"].fillna("none").tolist() == ["none", "11024"]


def test_rows_that_contradict_each_other_are_listed_and_equal_ones_are_one(tmp_path):
    text = TABLE + "1000001,0,64,11025\n1000002,Male,72,Reading (imaging)\n"
    reader = cohort(tmp_path, text)
    assert reader.table().table["participant_id"].tolist() == ["1000002"]
    assert reasons(reader) == ["rows of the tables disagree: age_years 61.0 and 64.0"]


def test_several_tables_are_joined_by_person(tmp_path):
    (tmp_path / "basket2").mkdir()
    (tmp_path / "basket2" / "later.tab").write_text("f.eid\tf.26521.2.0\n1000001\t1500000\n1000009\t1\n")
    table = cohort(tmp_path).table().table
    assert table["tiv_ml"].tolist()[0] == 1500.0
    assert table["sex"].tolist() == ["F", "M"]
    assert "gm_ml" not in table


def test_tables_may_be_named_and_others_are_then_not_looked_at(tmp_path):
    (tmp_path / "old.csv").write_text(TABLE.replace("61", "50"))
    assert reasons(cohort(tmp_path)) == ["rows of the tables disagree: age_years 50.0 and 61.0"]
    assert reasons(cohort(tmp_path, tables=["ukb1.csv"])) == []
    with pytest.raises(DataError, match=r"absent\.csv: file not found"):
        cohort(tmp_path, tables=["absent.csv"]).table()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no UK Biobank table.*ukb1.csv: is empty"),
        ("name,age\na,50\n", "no UK Biobank table.*ukb1.csv: no UK Biobank columns"),
        ("eid,31-0.0,21003-2.0\n", "no row with an eid"),
        ("eid,31-0.0,21003-0.0\n1000001,0,50\n", "no age at an imaging visit"),
        ("eid,31-0.0,p31,21003-2.0\n1000001,0,0,50\n", "31-0.0 and p31 are the same field"),
        ("eid,31-0.0,21003-2.0\n5000001,0,50\n", "no usable scan.*no row of this person and visit"),
    ],
)
def test_tables_of_no_use_say_why(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        cohort(tmp_path, text).table()


def test_a_row_without_a_usable_eid_is_listed(tmp_path):
    found = cohort(tmp_path, TABLE + "-7,0,50,11025\n").table().dropped
    assert found["reason"].tolist() == ["row without a usable eid: '-7'"]


def test_zips_are_found_in_any_folder_and_the_second_of_a_visit_is_listed(tmp_path):
    reader = cohort(tmp_path, TABLE, "a/b/1000001_2", "z/1000001_2", "1000002_2")
    assert reader.table().table["path"].tolist() == [
        f"a/b/1000001_20252_2_0.zip!{MEMBERS['brain_mni']}", f"1000002_20252_2_0.zip!{MEMBERS['brain_mni']}",
    ]  # fmt: skip
    assert reasons(reader) == ["second zip of this person and visit, after a/b/1000001_20252_2_0.zip"]


def test_other_fields_other_indices_and_hidden_files_are_no_scans(tmp_path):
    reader = cohort(tmp_path)
    good = (tmp_path / "1000001_20252_2_0.zip").read_bytes()
    for name in ("1000001_20253_2_0.zip", ".1000002_20252_3_0.zip", "1000002_20252_2_0.zip.part"):
        (tmp_path / name).write_bytes(good)
    assert reasons(reader) == []
    (tmp_path / "1000002_20252_2_1.zip").write_bytes(good)
    assert reasons(reader) == ["array index 1: expected 0, one scan a visit"]
    (tmp_path / "a#b").mkdir()
    (tmp_path / "a#b" / "1000002_20252_3_0.zip").write_bytes(good)
    assert any("rename the folder" in reason for reason in reasons(reader))


def test_zips_that_lack_the_member_or_are_truncated_are_listed_and_never_fatal(tmp_path):
    reader = cohort(tmp_path, TABLE + "1000003,0,55,11025\n1000004,0,55,11025\n", "1000001_2", "1000002_2", "1000004_2")
    zips(tmp_path, "1000003_2", members=("T1/T1.nii.gz",))
    torn = tmp_path / "1000002_20252_2_0.zip"
    torn.write_bytes(torn.read_bytes()[:100])
    (tmp_path / "1000004_20252_2_0.zip").write_bytes(b"")
    assert reader.table().table["participant_id"].tolist() == ["1000001"]
    truncated = "no zip file, or truncated: its directory is missing; download it again"
    assert reasons(reader) == [truncated, "zip without T1/T1_brain_to_MNI.nii.gz", truncated]
    assert UKBiobank(tmp_path, "head").table().table["participant_id"].tolist() == ["1000001", "1000003"]


def test_people_without_a_zip_are_named_and_those_never_scanned_are_not(tmp_path):
    reader = cohort(tmp_path, TABLE + "1000003,0,55,11025\n1000004,0,,\n")
    assert reader.without_scan() == ["1000003"]


def test_an_empty_root_says_what_is_expected(tmp_path):
    (tmp_path / "ukb1.csv").write_text(TABLE)
    with pytest.raises(DataError, match=r"expected names like 1000011_20252_2_0\.zip"):
        UKBiobank(tmp_path, "head").table()


@pytest.mark.parametrize(
    "name",
    [
        "w12345_20250101.csv", "w12345.txt", "lists/withdraw12345_7_2024.txt", "12345_withdrawals.csv",
        "participant_withdrawals.txt", "w12345.tsv", "w12345_20240101", "a/b/c/W12345.dat",
    ],
)  # fmt: skip
def test_who_withdrew_is_listed_and_the_zip_is_not_opened(tmp_path, name, monkeypatch):
    reader = cohort(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("1000001\n4999999\n")
    assert reader.notes() == [f"withdrawal lists read: {name} (2)"]
    opened = []

    def watched(file, member):
        opened.append(file.name)
        return True

    monkeypatch.setattr(ukb, "has_member", watched)
    found = reader.table()
    assert found.table["participant_id"].tolist() == ["1000002"]
    assert found.dropped[["participant_id", "session_id", "reason"]].to_numpy().tolist() == [
        ["1000001", "2", "withdrawn"]
    ]
    assert opened == ["1000002_20252_2_0.zip"]
    assert reader.without_scan() == []


def test_a_root_without_a_list_or_with_one_in_another_form_says_so(tmp_path):
    reader = cohort(tmp_path)
    none = f"no withdrawal list found below {tmp_path}: name it with data.options.withdrawn"
    assert reader.notes() == [none]
    (tmp_path / "withdrawals.xlsx").write_bytes(b"PK")
    assert reader.notes() == [none, "called like a withdrawal list, not read: withdrawals.xlsx; save it as CSV"]


def test_ids_with_zeros_in_front_and_zips_in_capitals_are_the_same_people(tmp_path):
    (tmp_path / "w123.csv").write_text("01000003\n")
    reader = cohort(tmp_path, TABLE.replace("1000001", "01000001") + "1000003,0,55,11025\n", "01000002_2", "1000003_2")
    zips(tmp_path, "1000001_2")
    (tmp_path / "1000001_20252_2_0.zip").rename(tmp_path / "1000001_20252_2_0.ZIP")
    assert reader.table().table["participant_id"].tolist() == ["1000001", "1000002"]
    assert reasons(reader) == ["withdrawn"]


def test_all_lists_are_honoured_and_named_ones_must_be_there(tmp_path):
    table = TABLE + "1000003,0,55,11025\n"
    visits = ("1000001_2", "1000002_2", "1000003_2")
    (tmp_path / "w1_2024.csv").write_text("1000001\n")
    (tmp_path / "mine.lst").write_text("eid\n1000002\n")
    reader = cohort(tmp_path, table, *visits, withdrawn=["mine.lst"])
    assert reader.table().table["participant_id"].tolist() == ["1000003"]
    with pytest.raises(DataError, match=r"absent\.csv: withdrawal list not found"):
        cohort(tmp_path, table, *visits, withdrawn=["absent.csv"]).table()


@pytest.mark.parametrize(("text", "message"), [("", "is empty"), ("1000001\nunknown\n", "'unknown': expected one eid")])
def test_a_withdrawal_list_that_cannot_be_read_stops_everything(tmp_path, text, message):
    (tmp_path / "w1_2.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        cohort(tmp_path).table()


def test_a_name_that_leads_out_and_a_bomb_are_damaged_scans(tmp_path):
    reader = cohort(tmp_path)
    member = MEMBERS["brain_mni"]
    for name, data, message in (("../../evil", b"x", "leads out"), (member, bytes(10**7), "more than 200 times")):
        with zipfile.ZipFile(tmp_path / "1000001_20252_2_0.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, data)
        with pytest.raises(DataError, match=f"1000001_20252_2_0.zip.*{message}"):
            reader.read(f"1000001_20252_2_0.zip!{member}")


def test_native_volumes_share_the_contract_of_every_cohort(tmp_path):
    for modality in ("brain", "head"):
        ours, theirs = (kind(tmp_path, modality, 3.0).contract() for kind in (UKBiobank, IXI))
        assert ours == theirs


def test_brain_mni_is_not_taken_for_quasiraw_and_has_its_own_grid(tmp_path, monkeypatch):
    grid = InputContract("m", "volume", (1, 2, 2, 2), "MNI152", (1.0,) * 3, (0.0,) * 3, "RAS")
    monkeypatch.setattr(UKBiobank, "_find_grid", lambda self: grid)
    assert "99th percentile" in UKBiobank(tmp_path, "brain_mni").contract().intensity
    with pytest.raises(ConfigError, match=r"data\.spacing_mm=2\.0: m has its own grid"):
        UKBiobank(tmp_path, "brain_mni", 2.0).contract()


def test_a_cohort_without_a_readable_volume_names_the_last_fault(tmp_path):
    with pytest.raises(DataError, match=r"one readable T1/T1_brain_to_MNI\.nii\.gz among 2 zips; last: .*0 bytes"):
        cohort(tmp_path).contract()
