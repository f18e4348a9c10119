"""The LONI Image & Data Archive, as ADNI and ICBM come from it: an image-search sheet, and a tree of images.

    [ADNI/]<person>/<series>/<YYYY-MM-DD_hh_mm_ss.0>/<I image id>/*.nii[.gz]

Sheet and tree are joined by image id. SEARCH lists the spellings of the sheet: the search page's CSV (Image Data ID,
Subject, ...) and ADNI's newer key table of MRI (image_id, subject_id, series_description, ...).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.data.table import DROPPED_COLUMNS
from data_modules.sheet_dates import dates, label_dates
from data_modules.sheets import columns, find_sheets, header, numbers, read_sheet, refuse_months, sexes, years

SEARCH = {
    "image_id": ("Image Data ID", "Image ID", "image_id", "imageID"),
    "person": ("Subject", "Subject ID", "subject_id", "PTID"),
    "group": ("Group", "Research Group"),
    "sex": ("Sex", "Gender"),
    "age": ("Age",),
    "visit": ("Visit", "image_visit"),
    "description": ("Description", "series_description", "image_description"),
    "date": ("Acq Date", "Study Date", "image_date"),
    "acceleration": ("acceleration",),
    "field": ("magnetic_field_strength", "Field Strength"),
    "manufacturer": ("scanner_manufacturer", "Manufacturer"),
    "scanner": ("scanner_model", "Mfg Model"),
}
TEXT = ("visit", "description", "acceleration", "manufacturer", "scanner", "group")
NOT_PEOPLE = ("derivatives", "simulation", "resource", "sourcedata")
_DATE_FOLDER = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}_\d{2}_\d{2}\.\d+")
_IMAGE_ID = r"^[IiSsDd]?(\d+)(?:\.0)?$"
_NAMED_ID = re.compile(r"_I(\d+)(?=[_.])")
_LABELS = re.compile(r"_(mask|seg|labels?|aseg|DLMUSE)$", re.IGNORECASE)
_IS_T1 = re.compile(r"MP-?[ _]?RAGE|MPR|SPGR|(?<![A-Za-z0-9])M?T1(?!\d)", re.IGNORECASE)
_IS_OTHER = re.compile(
    r"FLAIR|T2|DTI|DWI|(?<!re)PET|BOLD|f-?MRI|(?<![A-Za-z])rest(?:ing)?(?![A-Za-z])|locali[sz]er|scout|ASL|perfusion"
    r"|calibration|mask|segment|field.?map|T1[ _-]?map|(?<![A-Za-z])(?:maps?|MOLLI|post|gd|ce)(?![A-Za-z])"
    r"|(?<![A-Za-z])gad|\+C(?![A-Za-z])|(?<!pre)(?<!pre.)(?<!non)(?<!non.)(?<!without.)contrast",
    re.IGNORECASE,
)
_IS_SPIN_ECHO = re.compile(  # its T1 has another contrast than the gradient echoes that are read here
    r"^(?!.*(?:MP-?[ _]?RAGE|MPR|SPGR)).*(?:(?<![A-Za-z])[TF]?SE(?![A-Za-z])|spin.?echo)", re.IGNORECASE
)
PREFERENCES: dict[str, str] = {  # the T1 of a session, first difference decides; a match of the pattern is worse
    "no repeat": r"repeat|MPR-R(?![a-z])|[ _-]rep(?![a-z])",
    "not accelerated": r"(?<!un)(?<!non)(?<!non.)accel|GRAPPA|SENSE",
    "MPRAGE": r"^(?!.*(?:MP-?[ _]?RAGE|MPR))",
    "as it was scanned": r"GradWarp|N3|B1[ _]Correction|Scaled",
}


def image_ids(column: pd.Series) -> pd.Series:
    """Digits of an image id: 'I123', '123' and '123.0' are one image.

    >>> image_ids(pd.Series(["I123", "123.0", "S9", "none", None])).tolist()
    ['123', '123', '9', <NA>, <NA>]
    """
    return column.astype("string").str.strip().str.extract(_IMAGE_ID, expand=False)


def read_search(root: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row an image of every image-search sheet in `root` or one folder down, and the rows left out.

    Columns: image_id (digits), participant_id, date, age_years, age_reason, sex, field_tesla, TEXT, file, and
    disputed: what the rows of one image disagree on (person, date, age), else NA. No rows where there is no sheet.
    """
    sheets = [_search_rows(file) for file in find_sheets(root, SEARCH, ("image_id", "person", "description"))]
    if not sheets:
        nothing = _search_frame(pd.DataFrame(index=pd.RangeIndex(0)), {}, root)
        return nothing.assign(disputed=pd.Series(dtype="string")), _left_out()
    rows = pd.concat(sheets, ignore_index=True)
    nameless = rows["image_id"].isna() | rows["participant_id"].isna()
    left_out = [(p, None, f"{f}: row without an image id or a subject") for p, f in
                rows.loc[nameless, ["participant_id", "file"]].itertuples(index=False)]  # fmt: skip
    rows = rows[~nameless]
    differs = rows.groupby("image_id")[["participant_id", "date", "age_years"]].transform("nunique") > 1
    rows["disputed"] = pd.Series(pd.NA, index=rows.index, dtype="string")
    for image, group in rows[differs.any(axis=1)].groupby("image_id"):
        found = [name for name in differs if differs.loc[group.index[0], name]]
        words = "; ".join(f"{name} {' and '.join(sorted(map(str, group[name].dropna().unique())))}" for name in found)
        rows.loc[group.index, "disputed"] = f"image-search rows of image I{image} disagree: {words}"
    rows = rows.sort_values(list(rows.columns), ignore_index=True)  # so that the order of the file decides nothing
    return rows.groupby("image_id", as_index=False).first(), _left_out(left_out)


def find_images(root: Path, is_person: Callable[[str], bool]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Files of the tree below `root`, up to three folders above the people's own, and what is left out.

    Columns: participant_id (capitals), image_id (digits), series, acquired (the date folder), date, shows (head,
    brain, labels: by the end of the file name, _brain or _mask), path. Folders are listed, no file is opened.
    """
    rows: list[tuple] = []
    left_out: list[tuple] = []
    for folder in _people(root, is_person, depth=3):
        person = folder.name.upper()  # tables and folders differ in letter case
        for place, names in _folders_with_files(folder):
            where = place.relative_to(root).as_posix()
            files = sorted(name for name in names if name.endswith((".nii", ".nii.gz")))
            parts = place.relative_to(folder).parts
            if not files:
                left_out.append((person, where, f"no NIfTI file among its {len(names)}; download or convert it"))
            elif len(parts) != 3 or not _DATE_FOLDER.fullmatch(parts[1]):
                reason = "not in folders of series, date and time, and image id"
                left_out += [(person, f"{where}/{name}", reason) for name in files]
            else:
                rows += _image_rows(person, parts, where, files, left_out)
    names = ["participant_id", "image_id", "series", "acquired", "shows", "path"]
    images = pd.DataFrame(rows, columns=names, dtype="string")
    images["date"] = label_dates(images["acquired"].str.slice(0, 10))
    dateless = images[images["date"].isna()]
    reasons = "folder " + dateless["acquired"] + " is no date"
    left_out += zip(dateless["participant_id"], dateless["path"], reasons, strict=True)
    return images[images["date"].notna()].reset_index(drop=True), _left_out(left_out)


def describe_images(images: pd.DataFrame, search: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`images` with what the sheet says of them (description: the series where it says nothing) and `in_search`; left
    out are what is no T1, images whose subject is another one there, disputed ones, and copies of an image id."""
    said = search.drop(columns="date").rename(columns={"participant_id": "subject"})
    rows = images.merge(said, on="image_id", how="left")
    rows["in_search"] = rows["subject"].notna()
    rows["description"] = rows["description"].fillna(rows["series"])
    reason = pd.Series(pd.NA, index=rows.index, dtype="string")
    reason[~is_t1(rows["description"])] = "series '" + rows["description"] + "' is no T1"
    again = rows.duplicated("image_id")
    first = rows[~again].set_index("image_id")["path"]
    reason[again] = "image I" + rows["image_id"] + " is there twice, first as " + rows["image_id"].map(first)
    other = (rows["subject"] != rows["participant_id"]).fillna(False)
    reason[other] = "image I" + rows["image_id"] + " belongs to " + rows["subject"] + " in the image-search sheet"
    reason = rows["disputed"].astype("string").fillna(reason)
    return rows[reason.isna()].reset_index(drop=True), rows.assign(reason=reason)[reason.notna()]


def without_file(search: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """Dropped rows for the T1 images of the sheet that are not in the tree."""
    absent = search[~search["image_id"].isin(images["image_id"]) & is_t1(search["description"])]
    return absent.assign(reason="image I" + absent["image_id"] + " of the image-search sheet has no file here")


def is_t1(description: pd.Series) -> pd.Series:
    """Whether the words of a series mean a T1-weighted anatomical image: a gradient echo, no contrast agent, no map.

    >>> words = ["MP-RAGE REPEAT", "Accelerated_Sag_IR-FSPGR", "MT1; GradWarp; N3m", "Sag_T1", "Axial T2 FLAIR", "DTI"]
    >>> is_t1(pd.Series(words)).tolist()
    [True, True, True, True, False, False]
    """
    text = description.astype("string").fillna("")
    other = text.str.contains(_IS_OTHER.pattern, flags=re.I) | text.str.contains(_IS_SPIN_ECHO.pattern, flags=re.I)
    return text.str.contains(_IS_T1.pattern, flags=re.I) & ~other


def one_each(images: pd.DataFrame, by: list[str], what: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The preferred image of each group of `by`, and the others with `what` and which one won, why.

    In this order: the image that the clinical table names for its visit (`named`, where there is that column), then
    PREFERENCES by description and acceleration, last the lowest image id.
    """
    words = images["description"].fillna("") + " " + images["acceleration"].fillna("")
    ranks = pd.DataFrame(index=images.index)
    ranks["named by the clinical table"] = ~images["named"] if "named" in images else False
    for name, worse in PREFERENCES.items():
        ranks[name] = words.str.contains(worse, flags=re.I, regex=True).astype(bool)
    number = images["image_id"].astype("int64").rename("the lower image id")
    order = pd.concat([images[by], ranks, number], axis=1)
    first = order.sort_values([*by, *ranks, number.name], kind="stable").groupby(by, dropna=False).head(1)
    winner = order[by].merge(first.assign(winner=first.index), on=by, how="left").set_axis(order.index)
    lost = winner["winner"] != order.index
    why = pd.Series(number.name, index=order.index, dtype="string")
    for name in reversed([*ranks]):
        why[(ranks[name].astype(bool) & ~winner[name].astype(bool)).to_numpy()] = name
    reason = f"{what} I" + winner[number.name].astype("string") + ", which is preferred (" + why + ")"
    return images[~lost], images[lost].assign(reason=reason[lost])


def _search_rows(file: Path) -> pd.DataFrame:
    found = columns(header(file), SEARCH, file, required=("image_id", "person"))
    return _search_frame(read_sheet(file, usecols=set(found.values())), found, file)


def _search_frame(sheet: pd.DataFrame, found: dict[str, str], file: Path) -> pd.DataFrame:
    nothing = pd.Series(pd.NA, index=sheet.index, dtype="string")
    cell = {ours: sheet[found[ours]] if ours in found else nothing for ours in SEARCH}
    ages, reasons = years(cell["age"])
    refuse_months(ages, file)
    rows = pd.DataFrame({"image_id": image_ids(cell["image_id"]), "participant_id": cell["person"].str.upper()})
    rows = rows.assign(
        date=dates(cell["date"], file), age_years=ages, age_reason=reasons, sex=sexes(cell["sex"], file, {})
    )
    field = cell["field"].str.extract(r"([\d.,]+)", expand=False)
    return rows.assign(field_tesla=numbers(field), **{name: cell[name] for name in TEXT}, file=str(file))


def _people(root: Path, is_person: Callable[[str], bool], depth: int) -> list[Path]:
    found = []
    with os.scandir(root) as listing:
        names = sorted(entry.name for entry in listing if entry.is_dir() and not entry.name.startswith("."))
    for name in names:
        if is_person(name.upper()):
            found.append(root / name)
        elif depth and name not in NOT_PEOPLE:
            found += _people(root / name, is_person, depth - 1)
    return found


def _folders_with_files(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    for place, below, files in os.walk(folder):
        below.sort()
        shown = [name for name in files if not name.startswith(".")]
        if shown:
            yield Path(place), shown


def _image_rows(
    person: str, parts: tuple[str, ...], where: str, files: list[str], left_out: list[tuple]
) -> Iterator[tuple]:
    """Rows of one image folder: a file a kind of image, the others are left out."""
    series, acquired, folder = parts
    seen: dict[str, str] = {}
    for name in files:
        stem = name.removesuffix(".gz").removesuffix(".nii")
        shows = "labels" if _LABELS.search(stem) else "brain" if stem.endswith("_brain") else "head"
        written = re.match(r"I(\d+)$", folder) or _NAMED_ID.search(name) or re.match(r"\D?(\d+)$", folder)
        if written is None:
            left_out.append((person, f"{where}/{name}", f"no image id in folder {folder!r} or file name"))
        elif shows in seen:
            left_out.append((person, f"{where}/{name}", f"second {shows} file of image I{written[1]}"))
        else:
            seen[shows] = name
            yield person, written[1], series, acquired, shows, f"{where}/{name}"


def _left_out(rows: list[tuple] | None = None) -> pd.DataFrame:
    frame = pd.DataFrame(rows or [], columns=["participant_id", "path", "reason"], dtype=object)
    return frame.reindex(columns=DROPPED_COLUMNS).replace({np.nan: None})
