"""The tables of OASIS-3: who took part, what the clinic found on which day, which scanner took which session.

A table is known by its columns, whatever its name and release; SPELLINGS is the one place where they are listed. Two
releases are read: OASIS3_demographics, OASIS3_UDSb4_cdr, OASIS3_UDSd1_diagnoses and OASIS3_MR_json (NITRC-IR, 2022 on),
and the exports of XNAT Central (subjects, "ADRC Clinical Data", MR sessions). Days count from a person's entry, d0000.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.errors import DataError
from data_modules.oasis3_diagnosis import FLAGS, QUALIFIERS, diagnose
from data_modules.sheets import ENDINGS, columns, header, numbers, read_sheet, refuse_months, sexes, years

SPELLINGS = {  # ours -> spellings, as sheets.plain compares them
    "person": ("OASISID", "OASIS_ID", "Subject", "subject_id", "participant_id"),
    "label": ("OASIS_session_label", "ADRC_ADRCCLINICALDATA ID", "MR ID", "label", "MR_session", "experiment_id"),
    "day": ("days_to_visit",),
    "age_entry": ("AgeatEntry", "age_at_entry"),
    "sex": ("GENDER", "M/F", "sex"),
    "education_years": ("EDUC", "education"),
    "apoe": ("APOE",),
    "cdr": ("CDRTOT", "cdr"),
    "mmse": ("MMSE",),
    "dx1": ("dx1",),
    **{name: (name,) for name in (*FLAGS, *QUALIFIERS.values())},
    "manufacturer": ("Manufacturer",),
    "model": ("ManufacturersModelName", "ManufacturerModelName"),
    "serial": ("DeviceSerialNumber",),
    "field": ("MagneticFieldStrength", "Scanner"),  # "3.0T" in older exports
    "category": ("scan category",),
}
CLINICAL = ("cdr", "dx1", "normcog", "demented")
SEX = {"1": "M", "2": "F"}
SAME_AGE_YEARS = 0.05  # two tables may round one age differently
DAYS_A_YEAR = 365.25
_PERSON = re.compile(r"^(?:sub-)?(OAS3\d{4})(?:_.*)?$", re.IGNORECASE)
_DAY = re.compile(r"_d(-?\d+)$", re.IGNORECASE)
_MR_LABEL = re.compile(r"^OAS3\d{4}_MR_d\d+$")
_GENOTYPES = ("22", "23", "24", "33", "34", "44")  # 0 and #N/A: not measured
_LEFT_OUT = ["participant_id", "path", "reason"]


class Sheet(NamedTuple):
    """A table, its columns that we know under our names (text), and its place below the root."""

    path: str
    file: Path
    rows: pd.DataFrame


def find_tables(root: Path) -> list[Sheet]:
    """Every table with a person or a session and a fact of one of the three kinds; image folders are not entered."""
    found = []
    for file in _table_files(root):
        try:
            names = header(file)
        except DataError:
            continue  # folders hold other files that end like tables
        known = columns(names, SPELLINGS, file)
        if {"person", "label"} & set(known) and {"age_entry", "sex", "field", "model", *CLINICAL} & set(known):
            sheet = read_sheet(file, usecols=list(known.values()))
            rows = sheet.rename(columns={theirs: ours for ours, theirs in known.items()})
            found.append(Sheet(file.relative_to(root).as_posix(), file, rows.assign(participant_id=_people(rows))))
    return found


def read_people(tables: list[Sheet], root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People, and the rows left out.

    First frame: participant_id, age_entry (years), age_reason (why a written age is none), sex, education_years,
    apoe4 (number of e4 alleles), one row a person. Second: participant_id, path and reason (no OASIS-3 number, repeated
    rows, people whose rows contradict each other). DataError where no table has ages at entry.
    """
    chosen = [table for table in tables if "age_entry" in table.rows]
    if not chosen:
        raise DataError(
            f"{root}: no readable table with ages at entry (columns like OASISID, AgeatEntry, GENDER) here or in "
            "folders of tables; download OASIS3_demographics.csv"
        )
    if not any("sex" in table.rows for table in chosen):  # XNAT Central: sex is in the table of subjects
        chosen += [table for table in tables if "sex" in table.rows and not {"day", *CLINICAL} & set(table.rows)]
    rows = pd.concat([_facts(table) for table in chosen], ignore_index=True)
    if rows.empty:
        raise DataError(f"{chosen[0].file}: holds no person; download it again")
    unknown = rows[rows["participant_id"].isna()]
    left_out = [unknown.assign(reason="'" + unknown["written"].fillna("") + "' is no OASIS-3 number")]
    rows = rows[rows["participant_id"].notna()]
    repeated = rows[rows["repeated"]]
    left_out.append(repeated.assign(reason="repeated row of " + repeated["participant_id"] + ", the first is kept"))
    by_person = rows.groupby("participant_id")
    span = by_person["age_entry"].max() - by_person["age_entry"].min()
    disputed = (span > SAME_AGE_YEARS) | (by_person["sex"].nunique() > 1)
    away = rows["participant_id"].map(disputed).astype(bool)
    for person, group in rows[away].groupby("participant_id"):
        what = "; ".join(
            f"{name} {' and '.join(map(str, group[name].dropna().unique()))}"
            for name in ("age_entry", "sex") if group[name].nunique() > 1
        )  # fmt: skip
        one = group.iloc[[0]].assign(participant_id=person, reason=f"rows of the demographic tables disagree: {what}")
        left_out.append(one)
    people = rows[~away].groupby("participant_id", as_index=False).first()  # of each column, what is there
    return people.drop(columns=["written", "path", "repeated"]), pd.concat(left_out)[_LEFT_OUT]


def read_visits(tables: list[Sheet]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clinical visits, and the rows left out.

    First frame: participant_id, day (from entry), cdr, mmse, diagnosis, diagnosis_detail (see `diagnose`), one row a
    day; forms of one day are one visit, and where they contradict each other the diagnosis is `other`. Second:
    participant_id, path and reason (no OASIS-3 number, no day, a day before entry).
    """
    sheets = [_visit_rows(table) for table in tables if set(CLINICAL) & set(table.rows)]
    values = ["cdr", "mmse", *FLAGS, *QUALIFIERS.values()]
    if not sheets:
        empty = pd.DataFrame(columns=["participant_id", "day", "cdr", "mmse", "diagnosis", "diagnosis_detail"])
        return empty.astype({"day": "float64", "cdr": "float64", "mmse": "float64"}), pd.DataFrame(columns=_LEFT_OUT)
    rows = pd.concat(sheets, ignore_index=True)
    left_out = rows[rows["reason"].notna()][_LEFT_OUT]
    rows = rows[rows["reason"].isna()].reindex(columns=["participant_id", "day", *values, "dx1"])
    by_day = rows.groupby(["participant_id", "day"])
    visits = by_day.first()
    disputed = by_day[["cdr", *FLAGS]].nunique().gt(1).any(axis=1)
    found = [diagnose(visit) for visit in visits.astype(object).where(visits.notna(), None).to_dict("records")]
    visits["diagnosis"] = pd.array([one.code for one in found], dtype="string")
    visits["diagnosis_detail"] = pd.array([one.detail for one in found], dtype="string")
    visits.loc[disputed, ["diagnosis", "diagnosis_detail"]] = ["other", "contradiction: two forms of one day differ"]
    return visits.reset_index()[["participant_id", "day", "cdr", "mmse", "diagnosis", "diagnosis_detail"]], left_out


def read_scanners(tables: list[Sheet]) -> pd.DataFrame:
    """manufacturer, model, serial (text) and field_tesla of each MR session, indexed by its label; first T1w row."""
    names = ["manufacturer", "model", "serial"]
    found = []
    for table in tables:
        rows = table.rows
        if "label" not in rows or not {"field", "model"} & set(rows):
            continue
        rows = rows.assign(label=rows["label"].str.upper().str.replace("_D", "_d"))
        mine = rows["label"].str.fullmatch(_MR_LABEL.pattern).fillna(False).astype(bool)
        if "category" in rows:
            mine &= rows["category"].str.lower().eq("t1w").fillna(False)
        rows = rows[mine].reindex(columns=["label", *names, "field"])
        tesla = numbers(rows["field"].str.extract(r"^([\d.,]+)\s*T?$", expand=False))
        found.append(rows.drop(columns="field").assign(field_tesla=tesla))
    if not found:
        return pd.DataFrame(columns=[*names, "field_tesla"], index=pd.Index([], name="label"))
    return pd.concat(found).groupby("label").first()


def _table_files(folder: Path) -> Iterator[Path]:
    """Tables below the folder in order; folders of a session or person, of derivatives and of truth are passed by."""
    for path in sorted(folder.iterdir()):
        name = path.name
        if path.is_file() and name.lower().endswith(ENDINGS):
            yield path
        elif path.is_dir() and not re.match(
            r"\.|OAS3\d{4}|sub-|derivatives$|simulation$|freesurfers?$", name, re.IGNORECASE
        ):
            yield from _table_files(path)


def _people(rows: pd.DataFrame) -> pd.Series:
    """OAS30001 of each row, by the person's column or the session's label; NA where neither holds one."""
    nothing = pd.Series(pd.NA, index=rows.index, dtype="string")
    by_column = rows["person"].str.extract(_PERSON, expand=False) if "person" in rows else nothing
    by_label = rows["label"].str.extract(_PERSON, expand=False) if "label" in rows else nothing
    return by_column.fillna(by_label).astype("string").str.upper()


def _facts(table: Sheet) -> pd.DataFrame:
    rows = table.rows
    nothing = pd.Series(pd.NA, index=rows.index, dtype="string")
    ages, reasons = years(rows.get("age_entry", nothing))
    refuse_months(ages, table.file)
    reasons = reasons.mask(ages <= 0, "age at entry " + ages.map("{:g}".format).astype("string") + " is not above 0")
    genotype = rows.get("apoe", nothing).str.removesuffix(".0")
    per_visit = "day" in rows or "label" in rows  # exports with one row a visit repeat a person by design
    return pd.DataFrame(
        {
            "participant_id": rows["participant_id"],
            "written": rows.get("person", nothing),
            "path": table.path,
            "repeated": False if per_visit else rows["participant_id"].notna() & rows.duplicated(),
            "age_entry": ages,
            "age_reason": reasons,
            "sex": sexes(rows["sex"], table.file, SEX) if "sex" in rows else nothing,
            "education_years": numbers(rows.get("education_years", nothing)),
            "apoe4": genotype.where(genotype.isin(_GENOTYPES)).str.count("4").astype("Float64").astype("float64"),
        }
    )


def _visit_rows(table: Sheet) -> pd.DataFrame:
    rows = table.rows
    nothing = pd.Series(pd.NA, index=rows.index, dtype="string")
    label = rows.get("label", nothing)
    day = numbers(rows.get("day", nothing)).fillna(numbers(label.str.extract(_DAY, expand=False)))
    out = pd.DataFrame(
        {"participant_id": rows["participant_id"], "path": table.path, "day": day, "dx1": rows.get("dx1")}
    )
    for name in ("cdr", "mmse", *FLAGS, *QUALIFIERS.values()):
        out[name] = numbers(rows[name]) if name in rows else np.nan
    out["cdr"] = out["cdr"].where(out["cdr"].isin([0, 0.5, 1, 2, 3]))
    out["mmse"] = out["mmse"].where(out["mmse"].between(0, 30))  # 88, 95 to 98: why it was not done
    for name in FLAGS:
        out[name] = out[name].where(out[name].isin([0, 1]))
    reason = pd.Series(pd.NA, index=rows.index, dtype="string")
    reason = reason.mask(day < 0, "clinical visit " + (-day).map("{:g}".format).astype("string") + " days before entry")
    reason = reason.mask(day.isna(), "clinical visit without a day: '" + rows.get("day", label).fillna("") + "'")
    out["reason"] = reason.mask(rows["participant_id"].isna(), "clinical visit of nobody: no OASIS-3 number")
    return out
