"""A few people in the layout of OASIS-3, written by hand: empty image files (tables open none) and tables."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

SESSIONS = {"OAS30001": ("d0129", "d0757"), "OAS30002": ("d0000",), "OAS30003": ("d1000",)}


def demographics() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "OASISID": ["OAS30001", "OAS30002", "OAS30003", "OAS30004"],
            "Subject_accession": "",
            "AgeatEntry": [65.15, 67.21, 58.79, 70.5],
            "AgeatDeath": ["", "", "", "81.2"],
            "GENDER": [2, 1, 2, 1],
            "EDUC": [12, 18, "", 16],
            "APOE": ["23", "34", "#N/A", "0"],
        }
    ).astype(str)


def visits(rows: dict[str, list]) -> pd.DataFrame:
    """Rows (person, days, value...) as a clinical table; `rows` maps the columns after the label to their values."""
    table = pd.DataFrame(rows)
    table.insert(1, "OASIS_session_label", table["OASISID"] + "_UDS_d" + table["days_to_visit"].map("{:04d}".format))
    return table


def form_b4() -> pd.DataFrame:
    return visits(
        {
            "OASISID": ["OAS30001", "OAS30001", "OAS30002", "OAS30003"], "days_to_visit": [0, 700, 10, 100],
            "age at visit": [65.15, 67.07, 67.24, 59.06], "MMSE": [29, 26, 88, 28], "CDRTOT": [0, 0.5, 1, 0],
            "dx1": ["Cognitively normal", "uncertain dementia", "AD Dementia", "Cognitively normal"],
        }
    )  # fmt: skip


def form_d1() -> pd.DataFrame:
    return visits(
        {
            "OASISID": ["OAS30001", "OAS30001", "OAS30002", "OAS30003"], "days_to_visit": [0, 700, 10, 100],
            "NORMCOG": [1, 0, 0, 1], "DEMENTED": ["", 0, 1, ""], "MCIAMEM": ["", 1, "", ""],
            "IMPNOMCI": ["", 0, "", ""],
            "PROBAD": ["", "", 1, ""], "PROBADIF": ["", "", 1, ""],
        }
    )  # fmt: skip


def write_images(root: Path, sessions: dict[str, tuple[str, ...]] = SESSIONS, runs: tuple[str, ...] = ("",)) -> Path:
    for person, days in sessions.items():
        for day in days:
            for number, run in enumerate(runs):
                touch(root / f"{person}_MR_{day}" / f"anat{2 + number}" / f"sub-{person}_ses-{day}{run}_T1w.nii.gz")
    return root


def touch(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    return file


def write_tables(root: Path, **replaced: pd.DataFrame) -> Path:
    """demographics, form_b4 and form_d1 under their published names; a replaced one that is None is left away."""
    tables = {"demographics": demographics(), "UDSb4_cdr": form_b4(), "UDSd1_diagnoses": form_d1()} | replaced
    root.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        if table is not None:
            table.to_csv(root / f"OASIS3_{name}.csv", index=False)
    return root


def write_cohort(root: Path, **replaced: pd.DataFrame) -> Path:
    return write_tables(write_images(root), **replaced)
