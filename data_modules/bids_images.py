"""Which files of a BIDS tree hold a modality, and what stands beside them: sidecars and scans.tsv."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from brainage.errors import DataError
from data_modules.bids_files import COLUMNS, list_files
from data_modules.bids_options import AUTO, Options
from data_modules.sheet_dates import NO_YEAR, dates
from data_modules.sheets import read_sheet
from data_modules.volumes import NATIVE

# modality -> what its names hold, the first form of which there is a file; values as in data.options, datatype apart
FORMS: dict[str, tuple[dict[str, str], ...]] = {
    "head": ({"suffix": "T1w", "pipeline": "", "space": "", "desc": "", "ce": "", "part": "|mag"},),
    "brain": ({"suffix": "T1w", "space": "", "desc": "brain"},),
    "vbm": (
        {"suffix": "T1w", "prefix": "mwp1"},  # CAT12's own names
        {"suffix": "T1w", "preproc": "cat12vbm", "desc": "gm"},  # OpenBHB's
        {"suffix": "T1w", "space": "MNI152*", "desc": "gm"},
    ),
    "quasiraw": (
        {"suffix": "T1w", "preproc": "quasiraw"},
        {"suffix": "T1w", "desc": "quasiraw"},
        {"suffix": "T1w", "space": "MNI152*", "desc": "brain"},
    ),
}


def find_images(root: Path, modality: str, options: Options) -> pd.DataFrame:
    """The rows of `list_files` for a modality; DataError where there is none, or two pipelines made them."""
    said = {key: getattr(options, key) for key in ("suffix", "space", "desc", "pipeline")}
    said = {key: value for key, value in said.items() if value != AUTO} | options.entities
    extensions = (".nii.gz", ".nii") if modality in NATIVE else (".nii.gz", ".nii", ".npy")
    for form in FORMS[modality]:
        wanted = {key: value.split("|") for key, value in {**form, **said}.items()}
        (suffix,) = wanted.pop("suffix")
        files = list_files(
            root,
            suffix=suffix,
            extensions=extensions,
            datatype="anat" if modality == "head" else None,
            pipeline="" if wanted.get("pipeline") == [""] else wanted.pop("pipeline", None),
            prefix=wanted.pop("prefix", ""),
            entities=wanted,
        )
        if len(files):
            break
    else:
        raise DataError(f"{root}: no {modality} image; expected names with {_in_words(modality, said)}{_others(root)}")
    pipelines = sorted(files["pipeline"].unique())
    if len(pipelines) > 1:
        raise DataError(
            f"{root}: {modality} images of {len(pipelines)} pipelines ({', '.join(map(repr, pipelines))}), which "
            "are not alike: choose with data.options.pipeline"
        )
    return files


def distinct_images(files: pd.DataFrame) -> pd.DataFrame:
    """participant_id, session_id, run, path, and scan_reason for an image that is there in another format too.

    Where the run does not tell two images of a session apart, the other entities in which they differ join it.
    """
    stems = files["path"].str.removesuffix(".gz").str.replace(r"\.\w+$", "", regex=True)
    order = files["extension"].map({".nii.gz": 0, ".nii": 1}).fillna(2)
    first = files["path"][order.sort_values(kind="stable").index].groupby(stems).transform("first").sort_index()
    rows = files[["participant_id", "session_id", "run", "path"]].copy()
    reasons = "the same image as " + first + " in another format"
    rows["scan_reason"] = reasons.where(first != files["path"])
    alike = rows["scan_reason"].isna() & rows[rows["scan_reason"].isna()].duplicated(
        ["participant_id", "session_id", "run"], keep=False
    ).reindex(rows.index, fill_value=False)
    entities = files.columns.difference([*COLUMNS, "space", "desc"]).tolist()
    for _, group in files[alike].groupby(["participant_id", "session_id", "run"]):
        telling = [name for name in ["run", *entities] if name == "run" or group[name].nunique() > 1]
        for row in group.index:
            said = [f"{name}-{group.at[row, name]}" for name in telling if group.at[row, name]]
            rows.loc[row, "run"] = "_".join(said)
    return rows


def session_times(root: Path, sessions: pd.DataFrame) -> pd.Series:
    """acq_time (datetime64) of participant_id, session_id as files name them, from the scans.tsv of each; NaT: none.

    The earliest row of an anatomical image counts, or where there is none the earliest row.
    """
    times = [_scan_time(root, row.participant_id, row.session_id) for row in sessions.itertuples()]
    return pd.Series(times, index=sessions.index, dtype="datetime64[ns]")


def sidecar_facts(root: Path, path: str) -> dict[str, Any]:
    """site, manufacturer, field_tesla as an image's .json says, or the one that the dataset has for all of its kind."""
    stem = path.removesuffix(".gz").rpartition(".")[0]
    common = stem.rpartition("_")[2] + ".json"
    said: dict[str, Any] = {}
    for file in (root / common, root / f"{stem}.json"):
        if file.is_file():
            said |= _object(file)
    place = [str(said[name]) for name in ("InstitutionName", "Manufacturer") if said.get(name)]
    station = said.get("StationName") or said.get("DeviceSerialNumber")
    return {
        "site": " ".join([*place, str(station)] if station else place) or None,
        "manufacturer": said.get("Manufacturer"),
        "field_tesla": said.get("MagneticFieldStrength"),
    }


def _scan_time(root: Path, person: str, session: str) -> pd.Timestamp:
    labels = [f"sub-{person}", *([f"ses-{session}"] if session else [])]
    file = root.joinpath(*labels) / f"{'_'.join(labels)}_scans.tsv"
    if not file.is_file():
        return pd.NaT
    sheet = read_sheet(file)
    if not {"filename", "acq_time"} <= set(sheet):
        return pd.NaT
    anatomical = sheet["filename"].str.startswith("anat/").fillna(False)
    times = dates(sheet["acq_time"], file, placeholders=NO_YEAR)
    return times[anatomical].min() if times[anatomical].notna().any() else times.min()


def _object(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON ({error}); mend it or move it away") from error
    return found if isinstance(found, dict) else {}


def _in_words(modality: str, said: Mapping[str, str]) -> str:
    forms = ({**form, **said} for form in FORMS[modality])
    return " or ".join(" ".join(f"{key}={value!r}" for key, value in form.items()) for form in forms)


def _others(root: Path) -> str:
    found = list_files(root, suffix="T1w", prefix=None)["path"]
    return f"; there are, for example, {', '.join(found.iloc[:: max(1, len(found) // 3)][:3])}" if len(found) else ""
