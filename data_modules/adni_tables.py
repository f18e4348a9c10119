"""ADNI's clinical tables, in the spellings of their releases, read cell by cell; `adni_visits` joins them.

COLUMNS is the one place where spellings are listed. Two families are read, by their columns, not by file names:

- ADNIMERGE: one row a visit with everything (PTID, VISCODE, AGE, DX, ...). Where it is there it is used alone.
- The newer tables of the archive, one file a subject matter, joined by person and visit: study entry (subject_id,
  entry_age, entry_research_group, entry_date), diagnostic summary (PTID, VISCODE2, EXAMDATE, DIAGNOSIS), demographics
  (PTGENDER, PTEDUCAT), MMSE (MMSCORE), CDR (CDGLOBAL, CDRSB), APOE (GENOTYPE, or APGEN1 and APGEN2).
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.errors import DataError
from data_modules.loni import image_ids
from data_modules.sheet_dates import dates
from data_modules.sheets import columns, find_sheets, header, numbers, read_sheet, refuse_months, sexes, years

COLUMNS = {
    "rid": ("RID",),
    "person": ("PTID", "subject_id", "Subject ID", "Subject"),
    "visit": ("VISCODE2", "VISCODE", "entry_visit"),  # VISCODE2 says m06 where ADNI 2 and 3 say v05
    "exam_date": ("EXAMDATE", "VISDATE"),
    "baseline_date": ("EXAMDATE_bl", "EXAMDATE.bl", "entry_date"),
    "baseline_age": ("AGE", "entry_age"),
    "years": ("Years_bl", "Years.bl"),
    "months": ("Month", "M"),  # planned month of the visit
    "diagnosis": ("DX", "DIAGNOSIS", "DXCHANGE"),
    "baseline_diagnosis": ("DX_bl", "DX.bl", "entry_research_group"),
    "sex": ("PTGENDER",),
    "site": ("SITE",),  # never SITEID, which numbers the centres differently
    "education_years": ("PTEDUCAT",),
    "apoe4": ("APOE4",),
    "genotype": ("GENOTYPE", "APOE_genotype"),
    "allele_1": ("APGEN1",),
    "allele_2": ("APGEN2",),
    "mmse": ("MMSE", "MMSCORE"),
    "cdr": ("CDGLOBAL",),
    "cdr_sum": ("CDRSB",),  # sum of boxes, another scale than cdr
    "field": ("FLDSTRENG",),  # "1.5 Tesla MRI"; empty in current exports
    "image_id": ("IMAGEUID",),
}
FAMILIES = {  # of the newer tables: what makes one, its columns of a visit, its columns of a person
    "study entry": (("person", "baseline_age"), (), ("baseline_age", "baseline_date", "baseline_diagnosis")),
    "diagnoses": (("person", "visit", "diagnosis"), ("exam_date", "diagnosis"), ()),
    "demographics": (("person", "sex"), (), ("sex", "education_years")),
    "mmse": (("person", "visit", "mmse"), ("mmse",), ()),
    "cdr": (("person", "visit", "cdr"), ("cdr", "cdr_sum"), ()),
    "apoe": (("person", "genotype"), (), ("genotype",)),
    "apoe alleles": (("person", "allele_1", "allele_2"), (), ("allele_1", "allele_2")),
}
MERGE = ("person", "visit", "baseline_age", "diagnosis", "baseline_diagnosis")
OF_PERSON = ("rid", "baseline_date", "baseline_age", "baseline_diagnosis", "sex", "site", "education_years", "apoe4",
             "genotype", "allele_1", "allele_2")  # fmt: skip
OF_VISIT = ("exam_date", "years", "months", "diagnosis", "mmse", "cdr", "cdr_sum", "field", "image_id")
DATES = ("exam_date", "baseline_date")
NUMBERS = ("baseline_age", "years", "months", "mmse", "cdr", "cdr_sum", "education_years", "apoe4", "field")
DIAGNOSES = {  # the one table of diagnoses: their word -> ours; "MCI to Dementia" counts as what follows "to"
    "cn": "CN", "nl": "CN", "smc": "CN", "emci": "MCI", "lmci": "MCI", "mci": "MCI", "dementia": "AD", "ad": "AD",
}  # fmt: skip
CODES = {"1": "CN", "2": "MCI", "3": "Dementia"}  # DIAGNOSIS; the same and more of DXCHANGE, where 5 is MCI to dementia
NO_DIAGNOSIS = "10"  # of DIAGNOSIS: the team gave none
CHANGES = {**CODES, "4": "MCI", "5": "Dementia", "6": "Dementia", "7": "CN", "8": "MCI", "9": "CN"}
SEX = {"1": "M", "2": "F"}
NO_VALUE = ("-1", "-4", "-1.0", "-4.0")  # ADNI's codes of a missing value
PTID = re.compile(r"\d{3}_S_\d{4,5}")


def visit_code(text: str) -> str:
    """One spelling of a visit code or a BIDS session label: bl, m06, m120; anything else in lower case.

    >>> [visit_code(text) for text in ("bl", "sc", "M00", "m6", "M012", "m120", "v05")]
    ['bl', 'sc', 'bl', 'm06', 'm12', 'm120', 'v05']
    """
    text = text.strip().lower()
    month = re.fullmatch(r"m0*(\d+)", text)
    if month:
        return "bl" if month[1] == "0" else f"m{int(month[1]):02d}"
    return {"screening": "sc", "scmri": "sc", "baseline": "bl"}.get(text, text)


def visit_month(code: str) -> float:
    """Planned month of a visit code, NaN where it says none.

    >>> [visit_month(code) for code in ("bl", "sc", "m36", "v05")]
    [0.0, 0.0, 36.0, nan]
    """
    month = re.fullmatch(r"m(\d+)", code)
    return float(month[1]) if month else 0.0 if code in ("bl", "sc") else np.nan


def read_tables(root: Path) -> pd.DataFrame:
    """Rows of ADNIMERGE, else of all newer tables below each other, under our names; `visit` and `exam_date` are NA in
    rows that speak of a person. DataError where neither is complete, naming what is missing."""
    rows = _merge_rows(root)
    rows = _newer_rows(root) if rows is None else rows
    types = {name: "datetime64[ns]" if name in DATES else "float64" if name in NUMBERS else "string"
             for name in ("person", "visit", "file", "age_reason", *OF_PERSON, *OF_VISIT)}  # fmt: skip
    return rows[rows["person"].notna()].reindex(columns=list(types)).astype(types)


def _merge_rows(root: Path) -> pd.DataFrame | None:
    files = [file for file in find_sheets(root, COLUMNS, MERGE) if "entry_age" not in header(file)]
    if not files:
        return None
    if len(files) > 1:
        raise DataError(
            f"{root}: {len(files)} tables like ADNIMERGE, expected one: {', '.join(str(file) for file in files)}"
        )
    return _rows(files[0], [*OF_PERSON, *OF_VISIT])


def _newer_rows(root: Path) -> pd.DataFrame:
    rows, absent = [], []
    for name, (required, of_visit, of_person) in FAMILIES.items():
        files = [file for file in find_sheets(root, COLUMNS, required) if _is_clinical(file)]
        read = [_rows(file, ["rid", *of_person, *of_visit], by_visit=bool(of_visit)) for file in files]
        rows += [_first_entry(table) for table in read] if name == "study entry" else read
        if not files and name in ("study entry", "diagnoses"):
            absent.append(
                f"{name} ({', '.join(COLUMNS[key][-1] if key != 'visit' else 'VISCODE2' for key in required)})"
            )
    if absent:
        raise DataError(
            f"{root}: no ADNIMERGE table (PTID, VISCODE, AGE, DX, DX_bl) here or one folder down, nor the newer ones: "
            f"no table of {' and none of '.join(absent)}; download them from the archive"
        )
    return pd.concat(rows, ignore_index=True)


def _first_entry(rows: pd.DataFrame) -> pd.DataFrame:
    """Who entered several phases of ADNI is counted from the first; rows without a date stay, to be compared."""
    if "baseline_date" not in rows:
        return rows
    return rows[
        rows["baseline_date"].isna()
        | (rows["baseline_date"] == rows.groupby("person")["baseline_date"].transform("min"))
    ]


def _is_clinical(file: Path) -> bool:
    """False for image tables, which name people and visits as well."""
    return not {"image_id", "Image Data ID"} & set(header(file))


def _rows(file: Path, wanted: list[str], *, by_visit: bool = True) -> pd.DataFrame:
    """Rows of one table under our names, values read; `visit` is NA in a table of people."""
    found = columns(header(file), COLUMNS, file, required=("person",))
    sheet = read_sheet(file, usecols={theirs for ours, theirs in found.items()})
    for name in sheet.columns:
        sheet[name] = sheet[name].mask(sheet[name].isin(NO_VALUE), pd.NA)
    cells = {ours: sheet[found[ours]] for ours in wanted if ours in found}
    rows = pd.DataFrame({"file": str(file), "person": sheet[found["person"]].str.upper()})
    rows["visit"] = (
        sheet[found["visit"]].map(visit_code, na_action="ignore") if by_visit and "visit" in found else pd.NA
    )
    for name, cell in cells.items():
        rows[name] = _read_cells(name, cell, found, file)
    if "baseline_age" in cells:
        rows["baseline_age"], rows["age_reason"] = years(cells["baseline_age"])
        refuse_months(rows["baseline_age"], file)
    return rows


def _read_cells(name: str, cell: pd.Series, found: dict[str, str], file: Path) -> pd.Series:
    if name in DATES:
        return dates(cell, file)
    if name == "field":
        return numbers(cell.str.extract(r"([\d.,]+)", expand=False))
    if name in NUMBERS:
        return numbers(cell)
    if name == "sex":
        return sexes(cell, file, SEX)
    if name == "image_id":
        return image_ids(cell)
    if name == "diagnosis":
        codes = CHANGES if found[name].upper() == "DXCHANGE" else CODES
        words = cell.str.removesuffix(".0")
        cell = words.map(codes).astype("string").fillna(words.mask(words == NO_DIAGNOSIS))
        _refuse_words(cell, file)
        return cell
    if name == "baseline_diagnosis":
        _refuse_words(cell, file)
    return cell


def diagnosis_of(words: pd.Series) -> pd.Series:
    """CN, MCI, AD or NA for ADNI's words.

    >>> diagnosis_of(pd.Series(["SMC", "EMCI", "Dementia", "MCI to Dementia", None])).tolist()
    ['CN', 'MCI', 'AD', 'AD', <NA>]
    """
    return plain_words(words).map(DIAGNOSES).astype("string")


def plain_words(words: pd.Series) -> pd.Series:
    text = words.astype("string").str.strip().str.lower()
    return text.str.replace(r"^.* to ", "", regex=True)


def _refuse_words(words: pd.Series, file: Path) -> None:
    text = plain_words(words)
    for row in text.index[text.notna() & ~text.isin(list(DIAGNOSES))]:
        raise DataError(
            f"{file}: row {row + 1}: diagnosis {words[row]!r}: expected one of {', '.join(DIAGNOSES)}, a code (1 CN, "
            "2 MCI, 3 dementia), or nothing"
        )
