"""A few ADNI people written by hand: tables in each release's columns, and a tree of tiny files."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PERSON = "027_S_0074"
FACTS = {"RID": "74", "PTID": PERSON, "SITE": "27", "DX_bl": "LMCI", "AGE": "71.5", "PTGENDER": "Female",
         "PTEDUCAT": "16", "APOE4": "1"}  # fmt: skip
VISITS = (  # code, exam date, DX, Years_bl, Month
    ("bl", "2006-05-02", "MCI", "0", "0"),
    ("m12", "2007-05-10", "MCI", "1.0212", "12"),
    ("m24", "2008-05-01", "Dementia", "1.9986", "24"),
)


def merge(*visits, **facts) -> pd.DataFrame:
    """Rows of ADNIMERGE of one person; a column is left out by giving None."""
    rows = [dict(zip(("VISCODE", "EXAMDATE", "DX", "Years_bl", "Month"), visit, strict=True)) for visit in visits]
    table = pd.DataFrame(rows or [dict(zip(("VISCODE", "EXAMDATE", "DX", "Years_bl", "Month"), v, strict=True))
                                  for v in VISITS], dtype=object)  # fmt: skip
    for name, value in (FACTS | facts).items():
        table[name] = value
    return table.drop(columns=[name for name, value in facts.items() if value is None])


def write(root: Path, table: pd.DataFrame | None = None, name: str = "ADNIMERGE.csv", **how) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (merge() if table is None else table).to_csv(root / name, index=False, **how)
    return root


def image(root: Path, number: int, date: str, series: str = "MP-RAGE", person: str = PERSON, ending: str = ".nii",
          time: str = "12_31_52.0") -> Path:  # fmt: skip
    """A file of the tree with no volume in it: tables open none."""
    folder = root / "ADNI" / person / series / f"{date}_{time}" / f"I{number}"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"ADNI_{person}_MR_{series}_I{number}{ending}"
    file.write_bytes(b"none")
    return file


def search(*rows: dict) -> pd.DataFrame:
    """An image-search CSV."""
    common = {"Subject": PERSON, "Group": "LMCI", "Sex": "F", "Age": "72", "Visit": "1", "Modality": "MRI",
              "Description": "MP-RAGE", "Type": "Original", "Acq Date": "5/02/2006"}  # fmt: skip
    return pd.DataFrame([common | row for row in rows])
