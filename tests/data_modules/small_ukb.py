"""UK Biobank cohorts of a few lines: a table as text, and zips that hold the names of their members only."""

from __future__ import annotations

import zipfile
from pathlib import Path

from data_modules.ukb import MEMBERS, UKBiobank

TABLE = "eid,31-0.0,21003-2.0,54-2.0\n1000001,0,61,11025\n1000002,1,72,11026\n"


def zips(root: Path, *visits: str, members: tuple[str, ...] = tuple(MEMBERS.values())) -> Path:
    """`visits` like 1000001_2, or folder/1000001_2."""
    for visit in visits:
        path = root / f"{visit.replace('_2', '_20252_2').replace('_3', '_20252_3')}_0.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            for member in members:
                archive.writestr(member, b"")
    return root


def cohort(
    root: Path, table: str | bytes = TABLE, *visits: str, name: str = "ukb1.csv", **options: list[str]
) -> UKBiobank:
    zips(root, *(visits or ("1000001_2", "1000002_2")))
    (root / name).write_bytes(table if isinstance(table, bytes) else table.encode())
    return UKBiobank(root, "brain_mni", options=options)
