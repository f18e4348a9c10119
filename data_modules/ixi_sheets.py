"""The tables that travel with IXI: demographic sheets in several spellings, and regions measured by FreeSurfer, DLMUSE.

Sheets are found by their columns, not by their names. COLUMNS is the one place where spellings are listed.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.errors import DataError
from data_modules.sheets import columns, find_sheets, header, numbers, plain, read_sheet, refuse_months, sexes, years

COLUMNS = {  # ours -> spellings; what stands in brackets is not compared: "SEX_ID (1=m, 2=f)" is sex_id
    "person": ("ixi_id", "participant_id", "subject_id", "mrid", "scan"),
    "age": ("age", "age_years"),
    "sex": ("sex_id", "sex", "gender"),
    "hospital": ("hospital", "site"),
    "scanner": ("scanner",),
}
SEX = {"1": "M", "2": "F"}
HOSPITALS = ("Guys", "HH", "IOP")
SAME_AGE_YEARS = 0.05  # two sheets may round one age differently
_PERSON = re.compile(r"^(?:sub-)?IXI(\d{1,3})(?:-(\w+)-\d+)?(?:-.*)?$")


class Regions(NamedTuple):
    """A table with one row a scan and one column a region."""

    column: re.Pattern[str]  # its first group is the region
    least: int  # columns of regions that make a table one of these
    most: int
    name: str  # InputContract.modality
    unit: str
    what: str
    example: str


REGIONS = {
    "thickness": Regions(
        re.compile(r"^([lr]h_(?!MeanThickness)\w+)_thickness$"), 68, 68,
        "freesurfer_thickness", "mm", "thickness", "lh_bankssts_thickness",
    ),
    "dlmuse": Regions(  # codes of the MUSE atlas: 4 to 207 single regions, 300 to 702 sums of them
        re.compile(r"^(?:(?:DL)?_?MUSE_(?:Volume_)?)?(\d{1,3})$"), 100, 300,
        "dlmuse_volumes", "mm3", "volume", "47 (right hippocampus)",
    ),
}  # fmt: skip


def folders(root: Path) -> list[Path]:
    """The root and the folders in it: the cohort may be spread over several."""
    return [root, *sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))]


def read_people(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """People of all demographic sheets, and the rows left out.

    First frame: participant_id, age (years), age_reason (why a written age is none), sex, hospital, scanner, one row a
    person. Second: participant_id, path and reason (repeated rows, rows that contradict each other, no IXI number).
    DataError where no sheet has an age.
    """
    files = _sheets(root, ["person", "age"])
    sheets = [sheet for file in files if (sheet := _read_people(file, root)) is not None]
    if not sheets:
        seen = [file.name for file in _sheets(root, ["person"]) if file not in files]
        lacking = f"; no age column in {', '.join(seen)}" if seen else ""
        raise DataError(
            f"{root}: no IXI demographic sheet (CSV or TSV with columns like IXI_ID, SEX_ID, AGE) here or one folder "
            f"down{lacking}; export IXI.xls as CSV"
        )
    return _one_row_a_person(pd.concat(sheets, ignore_index=True))


def region_file(root: Path, kind: str) -> Path:
    """The one table with the regions of that kind; DataError where there is none or more than one."""
    regions = REGIONS[kind]
    files = [
        file for file in _sheets(root, ["person"]) if regions.least <= len(_region_columns(file, kind)) <= regions.most
    ]
    if len(files) != 1:
        found = ", ".join(str(file.relative_to(root)) for file in files) or "none"
        least = regions.least if regions.least == regions.most else f"{regions.least} or more"
        raise DataError(
            f"{root}: expected one table with {least} columns like {regions.example} here or one folder down, "
            f"found {found}"
        )
    return files[0]


def region_people(file: Path) -> list[tuple[str | None, str | None]]:
    """IXI number and hospital of each row, None where there is none or the row does not name it."""
    column = columns(header(file), COLUMNS, file, required=["person"])["person"]
    return [_person(text) for text in read_sheet(file)[column].fillna("")]


def region_values(file: Path, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the regions and float32 [rows, regions]; NaN: no number.

    thickness: 68 regions, mm, alphabetical, left before right. dlmuse: by the number of their code, mm3.
    """
    return _region_values(str(file), file.stat().st_mtime_ns, kind)


@lru_cache(maxsize=4)
def _region_values(file: str, modified_ns: int, kind: str) -> tuple[tuple[str, ...], np.ndarray]:
    chosen = _region_columns(Path(file), kind)
    sheet = read_sheet(Path(file))  # whole, so that its rows are those of region_people
    values = np.stack([numbers(sheet[column]).to_numpy(np.float32) for column in chosen.values()], axis=1)
    return tuple(chosen), values


def _region_columns(file: Path, kind: str) -> dict[str, str]:
    """Region -> column, in the order of the vectors."""
    found = {match[1]: name for name in header(file) if (match := REGIONS[kind].column.match(name))}
    if kind == "dlmuse":
        return {f"muse_{code}": found[code] for code in sorted(found, key=int)}
    return dict(sorted(found.items()))


def _sheets(root: Path, required: list[str]) -> list[Path]:
    """Tables with those columns; the truth of a simulated cohort is none of them."""
    return [file for file in find_sheets(root, COLUMNS, required) if file.parent.name != "simulation"]


def _one_row_a_person(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    unknown = rows[rows["participant_id"].isna()]
    left_out = [("", row.path, f"{row.file}: {row.written!r} is no IXI number") for row in unknown.itertuples()]
    known = rows[rows["participant_id"].notna()]
    people = known.groupby("participant_id")
    differs = people["age"].max() - people["age"].min() > SAME_AGE_YEARS
    differs |= (people[["sex", "hospital"]].nunique() > 1).any(axis=1)
    disputed = known["participant_id"].map(differs).astype(bool)
    for person, group in known[disputed].groupby("participant_id"):
        why = f"rows of the demographic sheet disagree: {_contradiction(group)}"
        left_out.append((str(person), group["path"].iloc[0], why))
    kept = known[~disputed]
    for row in kept[kept.duplicated(["file", "participant_id"])].itertuples():
        why = f"{row.file}: repeated row of {row.participant_id}, its first one is kept"
        left_out.append((row.participant_id, row.path, why))
    first = kept.groupby("participant_id", as_index=False).first()  # of each column, the first value that is there
    return first.drop(columns=["written", "path"]), pd.DataFrame(left_out, columns=["participant_id", "path", "reason"])


def _contradiction(group: pd.DataFrame) -> str:
    """What the rows of one person disagree on, in words."""
    values = {name: group[name].dropna().unique() for name in ("age", "sex", "hospital")}
    return "; ".join(f"{name} {' and '.join(map(str, found))}" for name, found in values.items() if len(found) > 1)


def _read_people(file: Path, root: Path) -> pd.DataFrame | None:
    """Rows of one sheet; None where nobody in it has an IXI number: a sheet of another study."""
    known = columns(header(file), COLUMNS, file)
    sheet = read_sheet(file, usecols=list(known.values()))
    written = sheet[known["person"]]
    people = [_person(text, bare=plain(known["person"]) == "ixi_id") for text in written.fillna("")]
    numbered = pd.array([person for person, _ in people], dtype="string")
    if numbered.isna().all():
        return None
    ages, reasons = years(sheet[known["age"]])
    refuse_months(ages, file)
    nothing = pd.Series(pd.NA, index=sheet.index, dtype="string")
    from_name = pd.Series([hospital for _, hospital in people], index=sheet.index, dtype="string")
    return pd.DataFrame(
        {
            "file": str(file),
            "path": file.relative_to(root).as_posix(),
            "written": written,
            "participant_id": numbered,
            "age": ages,
            "age_reason": reasons,
            "sex": sexes(sheet[known["sex"]], file, SEX) if "sex" in known else nothing,
            "hospital": (sheet[known["hospital"]] if "hospital" in known else nothing).fillna(from_name),
            "scanner": sheet[known["scanner"]] if "scanner" in known else nothing,
        }
    )


def _person(text: str, *, bare: bool = False) -> tuple[str | None, str | None]:
    """('IXI012', 'HH') from IXI012-HH-1211, sub-IXI012 or, in a column of IXI numbers, 12."""
    match = _PERSON.match(text.strip())
    if match:
        return f"IXI{int(match[1]):03d}", match[2] if match[2] in HOSPITALS else None
    if bare and re.fullmatch(r"\d{1,3}(\.0)?", text.strip()):
        return f"IXI{int(float(text)):03d}", None
    return None, None
