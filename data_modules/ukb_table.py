"""The tables and lists that travel with UK Biobank: field names in every export style, one row a person and visit.

A column is field, instance (the visit) and array index: `21003-2.0` (ukbconv csv), `f.21003.2.0` (ukbconv r),
`x21003_2_0` (scripts), `n_21003_2_0` (Stata), `p21003_i2` (Research Analysis Platform, with or without
`participant.`). Only the columns of FIELDS are read. Codes and words ("Male", "Cheadle (imaging)", "May") are known.
"""

from __future__ import annotations

import calendar
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.errors import DataError
from data_modules.sheet_dates import dates
from data_modules.sheets import header, numbers, read_sheet, refuse_months, sexes, years
from data_modules.ukb_files import is_withdrawal

FIELDS = {  # ours -> field of the UK Biobank showcase
    "sex": 31, "birth_year": 34, "birth_month": 52, "age_years": 21003, "visit_date": 53, "site": 54,
    "tiv_mm3": 26521, "gm_mm3": 25006, "wm_mm3": 25008, "head_scaling": 25000,
}  # fmt: skip
OF_A_PERSON = ("sex", "birth_year", "birth_month")  # recorded once, as instance 0
FIRST_IMAGING = 2  # instances 0 and 1 were visits without a scanner
CENTRES = {"11025": "Cheadle", "11026": "Reading", "11027": "Newcastle", "11028": "Bristol"}
MONTHS = {name.lower(): number for number, name in enumerate(calendar.month_name) if name}
AGES_YEARS = (37.0, 100.0)  # recruits were 37 to 73 in 2006-2010, and scans began in 2014
ABOVE_WHOLE_YEARS = (-0.1, 1.1)  # exact age minus 21003 (completed years): 0 to 1, born in the middle of the month
ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".csv.gz", ".tsv.gz", ".tab.gz", ".txt.gz")
PEOPLE_COLUMNS = [
    "participant_id", "session_id", "age_years", "sex", "site", "visit_years", "tiv_ml", "gm_ml", "wm_ml",
    "head_scaling", "reason",
]  # fmt: skip
_COLUMN = re.compile(
    r"(?:participant\.)?(?:p(\d+)(?:_i(\d+))?(?:_a(\d+))?|(?:f[._]|x|[ns]_|ts_)?(\d+)[-._](\d+)[._](\d+))"
)
_PERSON = re.compile(r"(?:participant\.|f[._]|x|n_)?eid")
_OURS = {field: ours for ours, field in FIELDS.items()}


def column_of(name: str) -> tuple[str, int] | None:
    """Our name and the instance of a table's column; None for columns that are not read.

    >>> column_of("f.21003.2.0"), column_of("participant.p31"), column_of("x54_3_0"), column_of("eid")
    (('age_years', 2), ('sex', 0), ('site', 3), ('participant_id', 0))
    >>> column_of("21003-2.1") is None, column_of("20001-0.0") is None
    (True, True)
    """
    if _PERSON.fullmatch(name):
        return "participant_id", 0
    match = _COLUMN.fullmatch(name)
    if match is None:
        return None
    field, instance, array = (int(part or 0) for part in (match.groups()[:3] if match[1] else match.groups()[3:]))
    ours = _OURS.get(field)
    wanted = ours is not None and array == 0 and (instance == 0 if ours in OF_A_PERSON else instance >= FIRST_IMAGING)
    return (ours, instance) if wanted and ours else None


def find_tables(root: Path, named: Sequence[str] = ()) -> list[Path]:
    """Tables with an eid column and one of FIELDS, in the root or one folder down; or those that are named.

    DataError where there is none, naming what else was looked at.
    """
    if named:
        return [root / name for name in named]
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]
    found, others = [], []
    for file in (file for folder in folders for file in sorted(folder.iterdir())):
        if not file.name.lower().endswith(ENDINGS) or is_withdrawal(file.name) or file.name.startswith("."):
            continue
        try:
            known = {ours[0] for name in header(file) if (ours := column_of(name))}
        except DataError as error:
            others.append(str(error))
            continue
        if "participant_id" in known and len(known) > 1:
            found.append(file)
        else:
            others.append(f"{file.relative_to(root)}: no UK Biobank columns")
    if not found:
        seen = f"; {'; '.join(others[:3])}" if others else ""
        raise DataError(
            f"{root}: no UK Biobank table (CSV or TSV with eid and columns like 21003-2.0, f.21003.2.0 or p21003_i2) "
            f"here or one folder down{seen}"
        )
    return found


def plain_eid(words: pd.Series) -> pd.Series:
    """1000001 of 01000001 and 1000001.0, so that tables, lists and zips name one person alike."""
    return words.str.removesuffix(".0").str.replace(r"^0+(?=\d)", "", regex=True)


def read_people(files: Sequence[Path]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """PEOPLE_COLUMNS, one row a person and imaging visit of all tables joined; and rows of no person (with a reason).

    `reason` says why a row cannot be used, else NA; `visit_years` is since the person's first imaging visit, by dates
    where they are known, else by ages. `age_years` is the age at the visit to the day, from the middle of the month of
    birth, where year and month of birth and the date of the visit are known; else field 21003, in whole years.

    Raises DataError naming file, row and value of an unknown sex, or where no table has ages or no row is left.
    """
    found = []
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: file not found; it is named in data.options.tables")
        found.append((str(file), file.stat().st_mtime_ns))
    people, nobody = _read_people(tuple(found))
    return people.copy(), nobody.copy()


@lru_cache(maxsize=2)
def _read_people(files: tuple[tuple[str, int], ...]) -> tuple[pd.DataFrame, pd.DataFrame]:
    sheets = [_read_table(Path(file)) for file, _ in files]
    names = {name for sheet in sheets for name in sheet.columns}
    instances = sorted({name[1] for name in names if name[1]})
    if not instances or not {"age_years", "visit_date"} & {name[0] for name in names}:
        raise DataError(
            f"{', '.join(file for file, _ in files)}: no age at an imaging visit (field 21003, instance 2 or 3), "
            "nor a date of one (field 53)"
        )
    wide = pd.concat(sheets, ignore_index=True)
    person = plain_eid(wide[("participant_id", 0)])
    known = person.str.fullmatch(r"\d+").fillna(False).astype(bool)
    reasons = "row without a usable eid: '" + person[~known].fillna("") + "'"
    nobody = pd.DataFrame({"participant_id": "", "reason": reasons}, dtype="string").drop_duplicates(ignore_index=True)
    wide = wide[known].drop(columns=[("participant_id", 0)])
    wide, disputed = _one_row_a_person(wide, person[known])
    if wide.empty:
        raise DataError(f"{', '.join(file for file, _ in files)}: no row with an eid")
    return _visits(wide, disputed, instances), nobody


def _read_table(file: Path) -> pd.DataFrame:
    """The wanted columns of one table under (ours, instance), in the types of the canonical table."""
    sheet = read_sheet(file, usecols=lambda name: column_of(name) is not None)
    names = {name: column_of(name) for name in sheet.columns}
    twice = pd.Series(list(names.values())).duplicated()
    if twice.any():
        both = [name for name, ours in names.items() if ours == list(names.values())[int(twice.argmax())]]
        raise DataError(f"{file}: columns {' and '.join(both)} are the same field; keep one")
    if ("participant_id", 0) not in names.values():
        raise DataError(f"{file}: no column eid; found {', '.join(map(str, header(file)[:5]))}, ...")
    columns = {}
    for name, ours in names.items():
        assert ours is not None
        if ours[0] == "age_years":
            columns[ours], columns[("age_reason", ours[1])] = years(sheet[name])
            refuse_months(columns[ours], file)
        else:
            columns[ours] = _typed(sheet[name], ours[0], file)
    return pd.DataFrame(columns)


def _typed(column: pd.Series, ours: str, file: Path) -> pd.Series:
    if ours == "participant_id":
        return column
    if ours == "sex":
        return sexes(column, file, {"0": "F", "1": "M"})
    if ours == "site":
        text = column.str.removesuffix(".0")
        return text.map(CENTRES).astype("string").fillna(text.str.removesuffix(" (imaging)"))
    if ours == "birth_month":
        return column.str.lower().map(MONTHS).astype("float64").fillna(numbers(column))
    if ours == "visit_date":
        return dates(column, file)
    return numbers(column)


def _one_row_a_person(wide: pd.DataFrame, person: pd.Series) -> tuple[pd.DataFrame, pd.Series]:
    """Rows of one person become one, of each column the value that is there; and why rows that differ cannot."""
    repeated = person.duplicated(keep=False)
    single = wide[~repeated].set_axis(pd.Index(person[~repeated]), axis=0)
    if not repeated.any():
        return single, pd.Series(dtype="string")
    groups = wide[repeated].groupby(person[repeated].to_numpy())
    differs = groups.nunique() > 1
    disputed = {}
    for who in differs.index[differs.any(axis=1)]:
        column = differs.columns[differs.loc[who]][0]
        values = wide.loc[person.index[person == who], [column]].iloc[:, 0].dropna().unique()[:3]
        shown = " and ".join(str(value)[:10] for value in values)
        disputed[who] = f"rows of the tables disagree: {column[0]} {shown}"
    return pd.concat([single, groups.first()]), pd.Series(disputed, dtype="string")


def _visits(wide: pd.DataFrame, disputed: pd.Series, instances: list[int]) -> pd.DataFrame:
    """One row a person and instance at which the person was seen; see `read_people`."""
    parts = []
    for instance in instances:
        visit = {ours: _cell(wide, ours, 0 if ours in OF_A_PERSON else instance) for ours in FIELDS}
        written = _cell(wide, "age_reason", instance)
        rows = pd.DataFrame(visit).assign(age_reason=written, session_id=str(instance))
        seen = rows["age_years"].notna() | rows["visit_date"].notna() | rows["age_reason"].notna()
        parts.append(rows[seen].rename_axis("participant_id").reset_index())
    rows = pd.concat(parts, ignore_index=True)
    rows = rows.sort_values(["participant_id", "session_id"], ignore_index=True)
    rows["age_years"], rows["reason"] = _ages(rows)
    rows["visit_years"], backwards = _since_first(rows)
    rows["reason"] = rows["reason"].fillna(backwards)
    rows["reason"] = rows["participant_id"].map(disputed).astype("string").fillna(rows["reason"])
    for name in ("tiv", "gm", "wm"):
        rows[f"{name}_ml"] = rows[f"{name}_mm3"] / 1000
    return rows[PEOPLE_COLUMNS]


def _cell(wide: pd.DataFrame, ours: str, instance: int) -> pd.Series:
    if (ours, instance) in wide.columns:
        return wide[(ours, instance)]
    if ours == "visit_date":
        return pd.Series(pd.NaT, index=wide.index, dtype="datetime64[ns]")
    text = ours in ("sex", "site", "age_reason")
    return pd.Series(pd.NA if text else np.nan, index=wide.index, dtype="string" if text else "float64")


def _ages(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """The better age of each row, and why none can be believed."""
    month = rows["birth_month"].where(rows["birth_month"].between(1, 12))
    born = pd.to_datetime(
        pd.DataFrame(
            {"year": rows["birth_year"].where(rows["birth_year"].between(1900, 2100)), "month": month, "day": 15}
        ),
        errors="coerce",
    )
    exact = (rows["visit_date"] - born).dt.days / 365.25
    whole = rows["age_years"]
    age = exact.fillna(whole).astype("float64").round(3)
    shown, between = age.map("{:.1f}".format), " to ".join(f"{edge:g}" for edge in AGES_YEARS)
    reason = rows["age_reason"].astype("string")
    apart = (exact - whole).notna() & ~(exact - whole).between(*ABOVE_WHOLE_YEARS)
    differ = "age " + whole.map("{:g}".format) + " (field 21003) is not " + shown + " by birth and visit (34, 52, 53)"
    reason = reason.fillna(differ.astype("string").where(apart))
    outside = age.notna() & ~age.between(*AGES_YEARS)
    unlikely = "age " + shown + f" is outside {between} years: UK Biobank scanned nobody of that age"
    return age, reason.fillna(unlikely.astype("string").where(outside))


def _since_first(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Years since the first imaging visit of the person (rows are sorted), and a reason where they are below 0."""
    first = rows.drop_duplicates("participant_id").set_index("participant_id")
    first = first.loc[rows["participant_id"]].set_axis(rows.index)
    by_date = ((rows["visit_date"] - first["visit_date"]).dt.days / 365.25).astype("float64")
    since = by_date.fillna((rows["age_years"] - first["age_years"]).astype("float64")).round(3)
    early = since < 0
    reason = pd.Series(pd.NA, index=rows.index, dtype="string")
    reason[early] = "visit " + rows["session_id"] + " lies before the first imaging visit"
    return since.mask(early), reason
