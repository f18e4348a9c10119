"""The tables that travel with IXI: demographic sheets in several spellings, and FreeSurfer's regional thickness.

Sheets are found by their columns, not by their names. COLUMNS is the one place where spellings are listed.
"""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.errors import DataError

COLUMNS = {  # ours -> spellings, compared in lower case without what stands in brackets: "SEX_ID (1=m, 2=f)" is sex_id
    "person": ("ixi_id", "participant_id", "subject_id", "mrid", "scan"),
    "age": ("age", "age_years"),
    "sex": ("sex_id", "sex", "gender"),
    "hospital": ("hospital", "site"),
    "scanner": ("scanner",),
}
SEX = {"1": "M", "2": "F", "1.0": "M", "2.0": "F", "m": "M", "f": "F", "male": "M", "female": "F"}
HOSPITALS = ("Guys", "HH", "IOP")
_PERSON = re.compile(r"^(?:sub-)?IXI(\d{1,3})(?:-(\w+)-\d+)?(?:-.*)?$")
_REGION = re.compile(r"^[lr]h_(?!MeanThickness)\w+_thickness$")
REGIONS = 68
SAME_AGE_YEARS = 0.05  # two sheets may round one age differently


def folders(root: Path) -> list[Path]:
    """The root and the folders in it: the cohort may be spread over several."""
    return [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]


def read_people(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People of all demographic sheets, and the rows left out.

    First frame: participant_id, age (as written), sex, hospital, scanner, one row a person. Second: participant_id and
    reason (repeated rows, rows that contradict each other, no IXI number). DataError where no sheet has an age.
    """
    sheets = []
    seen = []
    for file in _tables(root):
        columns = _columns(file)
        if "person" in columns and "age" in columns:
            sheets.append(_read_sheet(file, columns))
        elif "person" in columns:
            seen.append(file.name)
    sheets = [sheet for sheet in sheets if sheet["participant_id"].notna().any()]
    if not sheets:
        lacking = f"; no age column in {', '.join(seen)}" if seen else ""
        raise DataError(
            f"{root}: no IXI demographic sheet (CSV or TSV with columns like IXI_ID, SEX_ID, AGE) here or one folder "
            f"down{lacking}; export IXI.xls as CSV"
        )
    return _one_row_a_person(pd.concat(sheets, ignore_index=True))


def thickness_file(root: Path) -> Path:
    """The one table with 68 regional thickness columns; DataError where there is none or more than one."""
    files = [file for file in _tables(root) if sum(bool(_REGION.match(name)) for name in _header(file)) == REGIONS]
    if len(files) != 1:
        found = ", ".join(str(file.relative_to(root)) for file in files) or "none"
        raise DataError(
            f"{root}: expected one table with {REGIONS} columns like lh_bankssts_thickness here or one folder down, "
            f"found {found}"
        )
    return files[0]


def thickness_people(file: Path) -> list[str | None]:
    """IXI number of each row, None where there is none."""
    columns = _columns(file)
    if "person" not in columns:
        raise DataError(f"{file}: no column like {', '.join(COLUMNS['person'])}")
    return [_person(text)[0] for text in _read(file)[columns["person"]]]


def thickness_values(file: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the 68 regions (alphabetical, left before right) and float32 [rows, 68] in mm; NaN: no number."""
    return _thickness_values(str(file), file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _thickness_values(file: str, modified_ns: int) -> tuple[tuple[str, ...], np.ndarray]:
    sheet = _read(Path(file))
    names = sorted(name for name in sheet.columns if _REGION.match(name))
    values = sheet[names].apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    return tuple(name.removesuffix("_thickness") for name in names), values


def _one_row_a_person(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    unknown = rows[rows["participant_id"].isna()]
    left_out = [("", f"{row.file}: {row.written!r} is no IXI number") for row in unknown.itertuples()]
    known = rows[rows["participant_id"].notna()]
    people = known.assign(number=pd.to_numeric(known["age"], errors="coerce")).groupby("participant_id")
    differs = people["number"].max() - people["number"].min() > SAME_AGE_YEARS
    differs |= (people[["sex", "hospital"]].nunique() > 1).any(axis=1)
    disputed = known["participant_id"].map(differs).astype(bool)
    for person, group in known[disputed].groupby("participant_id"):
        left_out.append((str(person), f"rows of the demographic sheet disagree: {_contradiction(group)}"))
    kept = known[~disputed]
    for row in kept[kept.duplicated(["file", "participant_id"])].itertuples():
        left_out.append(
            (row.participant_id, f"{row.file}: repeated row of {row.participant_id}, its first one is kept")
        )
    first = kept.groupby("participant_id", as_index=False).first()  # of each column, the first value that is there
    return first, pd.DataFrame(left_out, columns=["participant_id", "reason"])


def _contradiction(group: pd.DataFrame) -> str:
    """What the rows of one person disagree on, in words."""
    values = {name: group[name].dropna().unique() for name in ("age", "sex", "hospital")}
    return "; ".join(f"{name} {' and '.join(found)}" for name, found in values.items() if len(found) > 1)


def _read_sheet(file: Path, columns: dict[str, str]) -> pd.DataFrame:
    sheet = _read(file)
    written = sheet[columns["person"]]
    people = [_person(text, bare=_plain(columns["person"]) == "ixi_id") for text in written]
    rows = pd.DataFrame(
        {"file": str(file), "written": written, "participant_id": [person for person, _ in people]}, dtype=object
    )
    for name in ("age", "sex", "hospital", "scanner"):
        rows[name] = sheet[columns[name]] if name in columns else None
        rows[name] = rows[name].where(rows[name] != "", None)
    rows["sex"] = [SEX.get(str(code).lower(), code) for code in rows["sex"]]
    from_name = pd.Series([hospital for _, hospital in people], index=rows.index, dtype=object)
    rows["hospital"] = rows["hospital"].where(rows["hospital"].notna(), from_name)
    return rows


def _person(text: str, *, bare: bool = False) -> tuple[str | None, str | None]:
    """('IXI012', 'HH') from IXI012-HH-1211, sub-IXI012 or, in a column of IXI numbers, 12."""
    match = _PERSON.match(text.strip())
    if match:
        return f"IXI{int(match[1]):03d}", match[2] if match[2] in HOSPITALS else None
    if bare and re.fullmatch(r"\d{1,3}(\.0)?", text.strip()):
        return f"IXI{int(float(text)):03d}", None
    return None, None


def _tables(root: Path) -> list[Path]:
    return [f for folder in folders(root) for f in sorted(folder.iterdir()) if f.suffix.lower() in (".csv", ".tsv")]


def _columns(file: Path) -> dict[str, str]:
    """Our name -> the column of this file, for those it has."""
    present = {_plain(name): name for name in reversed(_header(file))}
    found = {ours: [present[s] for s in spellings if s in present] for ours, spellings in COLUMNS.items()}
    return {ours: names[0] for ours, names in found.items() if names}


def _plain(name: str) -> str:
    return re.sub(r"\(.*?\)", "", name).strip().lower().replace(" ", "_")


def _header(file: Path) -> list[str]:
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        line = stream.readline().rstrip("\r\n")
    return [name.strip() for name in next(csv.reader([line], delimiter=_separator(line)), [])]


def _separator(line: str) -> str:
    return max(",;\t", key=line.count)


def _read(file: Path) -> pd.DataFrame:
    try:
        with open(file, encoding="utf-8-sig") as stream:
            separator = _separator(stream.readline())
        sheet = pd.read_csv(file, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except Exception as error:  # pandas and the decoder each have their own
        raise DataError(f"{file}: not readable as a table ({' '.join(str(error).split())[:160]})") from error
    return sheet.rename(columns=str.strip)
