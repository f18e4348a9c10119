"""Writes a simulated ADNI in the layouts of its archive, with known truth apart.

form="merge": ADNIMERGE.csv, the image-search CSV, and ADNI/<PTID>/<series>/<date>/<I id>/*.nii.
form="loni":  the newer tables (Study_Entry, DXSUM, PTDEMOG, MMSE, CDR, APOERES, Key_MRI) and the same tree.
form="bids":  ADNIMERGE.csv and derivatives/sub-ADNI002S0011/ses-M000/*_T1w.nii.gz (vbm, quasiraw).

People of 55 to 90: healthy, with MCI (stable, converting within and after 36 months, well again, lost from sight) and
with Alzheimer's disease, at 0 to 48 months. As in the real one there are missed visits, visits without a scan or a
diagnosis, sessions with two T1s, rows without an image, images without a row, and an empty FLDSTRENG.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import VERSION, BrainSimulator, grid
from data_modules.simulated.adni_people import plan_images, plan_visits
from data_modules.simulated.loni_tree import DERIVATIVES, ENDINGS, archive_stem, write_derivatives, write_natives
from data_modules.simulated.writing import claim_folder, finish_folder, map_people, worker_count, write_text

FORMS = {"merge": ENDINGS, "loni": ENDINGS, "bids": DERIVATIVES}  # form -> modalities it can hold, the first by default
_CODES = {"CN": "1", "MCI": "2", "AD": "3"}
_WORDS = {"CN": "CN", "MCI": "MCI", "AD": "Dementia"}


def write_adni(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = (),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    form: Literal["merge", "loni", "bids"] = "merge",
) -> Path:
    """Write (or complete) the cohort in `out` and return it; promises of `write_openbhb`.

    `modalities`: head, brain (merge, loni) or vbm, quasiraw (bids); empty: the first of the form. A simulated head is a
    brain, since there is no skull to simulate. truth.tsv has one row a planted image: `fate` is table, or why the image
    has to be left out. Raises ConfigError on values that cannot be simulated, DataError where `out` holds other things.
    """
    out = Path(out)
    if form not in FORMS:
        raise ConfigError(f"form={form!r}: unknown{nearest(form, list(FORMS))}")
    kinds = tuple(modalities) or tuple(FORMS[form])[:1]
    for name in kinds:
        if name not in FORMS[form]:
            raise ConfigError(f"modality {name!r}: unknown in form {form}{nearest(name, list(FORMS[form]))}")
    grid(spacing_mm)
    visits = plan_visits(subjects, seed=seed)
    images = _placed(plan_images(visits, seed=seed), form)
    parameters = {"layout": "adni", "version": VERSION, "form": form, "subjects": subjects, "seed": seed,
                  "spacing_mm": spacing_mm, "site_effect": site_effect, "modalities": list(kinds)}  # fmt: skip
    if claim_folder(out, parameters):
        return out
    written = images[images["has_file"]]
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    scans = written.assign(session_id=written["session_id"] + written["scan"], split=written["path"])
    write = write_derivatives if form == "bids" else write_natives
    processes = worker_count(workers, len(scans) * len(kinds), brains.shape)
    map_people(brains, partial(write, out, kinds), scans, processes, on_progress)
    for name, table in _tables(visits, images, form).items():
        write_text(out / name, table.to_csv(index=False))
    finish_folder(out, parameters, images)
    return out


def _placed(images: pd.DataFrame, form: str) -> pd.DataFrame:
    """`path` without the ending; prepared copies hold neither second T1s nor strangers."""
    if form != "bids":
        names = ("participant_id", "description", "scan_date", "image_id")
        rows = images[[*names]].itertuples(index=False)
        return images.assign(run="", path=[archive_stem("ADNI", *row) for row in rows])
    images = images[images["fate"].isin(["table", "no file"])].reset_index(drop=True)
    label = "ADNI" + images["participant_id"].str.replace("_", "", regex=False)
    planned = images["session_id"].str.fullmatch("bl|m\\d+")
    session = images["session_id"].where(~planned, "M" + images["month"].astype(str).str.zfill(3))
    name = "sub-" + label + "/ses-" + session + "/sub-" + label + "_ses-" + session
    return images.assign(run="", path="derivatives/" + name)


def _tables(visits: pd.DataFrame, images: pd.DataFrame, form: str) -> dict[str, pd.DataFrame]:
    if form == "loni":
        return newer_tables(visits) | {"Key_MRI.csv": key_table(images)}
    tables = {"ADNIMERGE.csv": merge_table(visits, images)}
    return tables if form == "bids" else tables | {"ADNI_search.csv": search_table(images)}


def merge_table(visits: pd.DataFrame, images: pd.DataFrame) -> pd.DataFrame:
    """ADNIMERGE: every second visit names its image."""
    named = images[(images["fate"] == "table") & images["in_search"]].iloc[::2]
    image = dict(zip(named["participant_id"] + named["session_id"], named["image_id"], strict=True))
    return pd.DataFrame(
        {
            "RID": visits["rid"], "COLPROT": "ADNI2", "ORIGPROT": "ADNI1", "PTID": visits["participant_id"],
            "SITE": visits["site"].astype(int), "VISCODE": visits["session_id"],
            "EXAMDATE": visits["exam_date"].dt.strftime("%Y-%m-%d"), "DX_bl": visits["group"],
            "AGE": visits["baseline_age"], "PTGENDER": visits["sex"].map({"F": "Female", "M": "Male"}),
            "PTEDUCAT": visits["education_years"], "APOE4": visits["apoe4"], "CDRSB": (visits["cdr"] * 4).round(1),
            "MMSE": visits["mmse"], "FLDSTRENG": "", "DX": visits["diagnosis"].map(_WORDS),
            "IMAGEUID": (visits["participant_id"] + visits["session_id"]).map(image),
            "Years_bl": visits["visit_years"].round(6), "Month": visits["month"], "M": visits["month"],
        }
    )  # fmt: skip


def search_table(images: pd.DataFrame) -> pd.DataFrame:
    """The image-search CSV: rounded ages, the group at entry, dates month first."""
    rows = images[images["in_search"]]
    table = pd.DataFrame(
        {
            "Image Data ID": "I" + rows["image_id"], "Subject": rows["participant_id"], "Group": rows["group"],
            "Sex": rows["sex"], "Age": rows["age_years"].round().astype(int), "Visit": rows["session_id"],
            "Modality": "MRI", "Description": rows["description"], "Type": "Original",
            "Acq Date": [f"{date.month}/{date.day}/{date.year}" for date in rows["scan_date"]], "Format": "NiFTI",
            "Downloaded": "",
        }
    )  # fmt: skip
    flair = (
        table.head(3).assign(Description="Axial T2 FLAIR").assign(**{"Image Data ID": ["I1", "I2", "I3"][: len(table)]})
    )
    return pd.concat([table, flair], ignore_index=True)


def key_table(images: pd.DataFrame) -> pd.DataFrame:
    """The newer key table of MRI."""
    rows = images[images["in_search"]]
    fast = rows["description"].str.startswith("Accelerated")
    return pd.DataFrame(
        {
            "image_id": rows["image_id"], "subject_id": rows["participant_id"], "image_visit": rows["session_id"],
            "image_date": rows["scan_date"].dt.strftime("%Y-%m-%d"), "series_type": "T1w",
            "mri_protocol_phase": "ADNI2", "series_description": rows["description"],
            "acceleration": fast.map({True: "ACCELERATED", False: "UNACCELERATED"}),
            "scanner_manufacturer": "SIEMENS", "scanner_model": "Trio", "magnetic_field_strength": rows["field_tesla"],
        }
    )  # fmt: skip


def newer_tables(visits: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Study entry, diagnoses, demographics, MMSE, CDR, APOE, a file each."""
    entry = visits[visits["session_id"] == "bl"]
    at = pd.DataFrame({"PTID": visits["participant_id"], "RID": visits["rid"], "VISCODE": visits["session_id"],
                       "VISCODE2": visits["session_id"]})  # fmt: skip
    date = visits["exam_date"].dt.strftime("%Y-%m-%d")
    person = {"PTID": entry["participant_id"], "RID": entry["rid"], "VISCODE": "sc", "VISCODE2": "sc"}
    return {
        "Study_Entry.csv": pd.DataFrame(
            {
                "subject_id": entry["participant_id"], "entry_visit": "bl",
                "entry_date": entry["baseline_date"].dt.strftime("%Y-%m-%d"), "entry_age": entry["baseline_age"],
                "entry_research_group": entry["group"],
            }
        ),
        "DXSUM.csv": at.assign(EXAMDATE=date, DIAGNOSIS=visits["diagnosis"].map(_CODES), SITEID=107),
        "PTDEMOG.csv": pd.DataFrame(person | {"PTGENDER": entry["sex"].map({"M": 1, "F": 2}),
                                              "PTEDUCAT": entry["education_years"]}),
        "MMSE.csv": at.assign(VISDATE=date, MMSCORE=visits["mmse"]),
        "CDR.csv": at.assign(VISDATE=date, CDGLOBAL=visits["cdr"], CDRSB=(visits["cdr"] * 4).round(1)),
        "APOERES.csv": pd.DataFrame(person | {"GENOTYPE": entry["apoe4"].map({0: "3/3", 1: "3/4", 2: "4/4"})}),
    }  # fmt: skip
