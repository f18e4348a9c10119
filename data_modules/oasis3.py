"""OASIS-3 (LaMontagne et al. 2019): ageing and Alzheimer's disease at Washington University, days in place of dates.

`root` holds the scans, in any form that the public download scripts give them, and the tables (`oasis3_tables`):
    OAS30001_MR_d0129/anat2/[NIFTI/]sub-OAS30001_ses-d0129_run-01_T1w.nii.gz     (older files say sess-d0129)
    sub-OAS30001/ses-d0129/anat/sub-OAS30001_ses-d0129_T1w.nii.gz
    derivatives/<pipeline>/...   the same names with desc-brain, CAT12's mwp1 ... (`bids_images.FORMS`)
Scan age = age at entry + days / 365.25, and visit_years = days / 365.25: day 0 is the person's first visit. A scan has
the diagnosis of the nearest clinical visit that says anything (`oasis3_diagnosis`), within `clinical_days`; of two
equally near ones the earlier. Sessions without one keep their row with the diagnosis missing, counted in `notes`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd

from brainage.data.conversion import mci_outcome
from brainage.data.table import CohortTable, finish_table
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from data_modules.bids_images import find_images
from data_modules.bids_options import Options as BIDSOptions
from data_modules.oasis3_tables import DAYS_A_YEAR, find_tables, read_people, read_scanners, read_visits
from data_modules.reader import CohortReader
from data_modules.volumes import (
    NATIVE,
    PREPARED,
    common_contract,
    native_contract,
    read_native,
    read_prepared,
    refuse_spacing,
)

_FILE = ["participant_id", "session_id", "run", "path"]
_SESSION = re.compile(r"^d(\d{4,5})$")
_PERSON = re.compile(r"^OAS3\d{4}$")
_FOLDER = re.compile(r"(?:^|/)(OAS3[^/_]*)_MR_([^/]*)/", re.IGNORECASE)


@dataclass(frozen=True)
class OASIS3Options:
    clinical_days: float = 365.0  # farthest clinical visit whose diagnosis a scan takes
    one_run: str = "first"  # of several T1 in a session: first | last by run number, or all; the choice is by name only
    conversion_months: float = 36.0  # an MCI visit is progressive where AD follows within it: mci_outcome
    conversion_slack_months: float = 3.0  # visits are yearly to within some weeks: how late the one of month 36 may be
    sidecars: bool = True  # read the JSON files beside images for the scanner, where OASIS3_MR_json.csv is absent


class _Files(NamedTuple):
    scans: pd.DataFrame  # participant_id, session_id, run, path
    left_out: pd.DataFrame  # the same with a reason


class OASIS3(CohortReader):
    """One modality of OASIS-3.

    Extra columns: mmse, cdr, days_to_clinical (distance to the clinical visit whose facts these are), diagnosis_detail
    (its own words, or what contradicts what), mci_outcome (of visits with MCI, by the later clinical visits), apoe4 (e4
    alleles), education_years, scanner, manufacturer, field_tesla.
    It is one centre with several scanners: `site` is the scanner (model and serial number, else model and field, else
    field) where the tables or sidecars know it, "OASIS3" where they do not. OASIS-3 publishes no split.
    """

    name: ClassVar[str] = "oasis3"
    modalities: ClassVar[dict[str, str]] = {**NATIVE, **{name: kind.help for name, kind in PREPARED.items()}}
    Options: ClassVar[type] = OASIS3Options

    def table(self) -> CohortTable:
        tables = find_tables(self.root)
        people, odd_people = read_people(tables, self.root)
        visits, odd_visits = read_visits(tables)
        visits["mci_outcome"] = mci_outcome(
            visits.assign(visit_years=visits["day"] / DAYS_A_YEAR),
            self.options.conversion_months,
            slack_months=self.options.conversion_slack_months,
        )
        scans, odd_scans = self._files()
        rows = scans.merge(people, on="participant_id", how="left", indicator="known")
        unknown = rows["known"] == "left_only"
        ageless = ~unknown & rows["age_reason"].notna()
        dropped = [
            odd_people,
            odd_visits,
            odd_scans,
            rows[unknown].assign(reason="no usable row in the demographic tables"),
            rows[ageless].assign(reason=rows.loc[ageless, "age_reason"]),
        ]
        rows = rows[~unknown & ~ageless]
        days = numbers_of(rows["session_id"])
        rows = rows.assign(day=days, visit_years=days / DAYS_A_YEAR, age_years=rows["age_entry"] + days / DAYS_A_YEAR)
        rows = self._with_scanners(join_visits(rows, visits, self.options.clinical_days), read_scanners(tables))
        listed = pd.concat(dropped, ignore_index=True).assign(cohort=self.name)
        extra = ["known", "day", "age_entry", "age_reason"]
        return finish_table(rows.drop(columns=extra).assign(cohort=self.name), source=str(self.root), dropped=listed)

    def without_scan(self) -> list[str]:
        """People of the demographic tables of whom no T1 of this modality is there."""
        people, odd = read_people(find_tables(self.root), self.root)
        scans, left_out = self._files()
        named = {*people["participant_id"], *odd["participant_id"].dropna()}
        return sorted(named - {*scans["participant_id"], *left_out["participant_id"].dropna()})

    def notes(self) -> list[str]:
        table = self.table().table
        alone = int(table["days_to_clinical"].isna().sum()) if "days_to_clinical" in table else 0
        if not alone:
            return []
        days = f"{self.options.clinical_days:g}"
        return [f"{alone} of {len(table)} sessions have no clinical visit within {days} days: diagnosis missing"]

    def contract(self) -> InputContract:
        return native_contract(self.modality, self.spacing_mm) if self.modality in NATIVE else self._prepared_contract

    def read(self, path: str) -> np.ndarray:
        if self.modality in NATIVE:
            return read_native(self.root / path, self.spacing_mm)
        return read_prepared(self.root / path, self._prepared_contract)

    @cached_property
    def _prepared_contract(self) -> InputContract:
        contract = common_contract(self.modality, [self.root / path for path in self._files().scans["path"]])
        refuse_spacing(self.spacing_mm, contract)
        return contract

    def _files(self) -> _Files:
        """T1 files of this modality: one a session, and the others with their reason; lists folders, opens nothing."""
        if self.options.one_run not in ("first", "last", "all"):
            raise ConfigError(f"data.options.one_run={self.options.one_run}: expected first, last or all")
        found = find_images(self.root, self.modality, BIDSOptions())
        bare = found[found["extension"] == ".npy"].assign(reason="array without a header: only NIfTI is read here")
        found = found[found["extension"] != ".npy"]
        if "sess" in found:
            found = found.assign(session_id=found["session_id"].where(found["session_id"] != "", found["sess"]))
        found = found[_FILE].assign(
            participant_id=found["participant_id"].str.upper(), session_id=found["session_id"].str.lower()
        )
        wrong = _unreadable_labels(found)
        left_out = [bare[[*_FILE, "reason"]], found[wrong.notna()].assign(reason=wrong.dropna())]
        found = found[wrong.isna()].assign(order=lambda rows: numbers_of(rows["run"]).fillna(0))
        found = found.sort_values(
            ["participant_id", "session_id", "order", "path"],
            ascending=[True, True, self.options.one_run != "last", True],
        )
        key = ["participant_id", "session_id", *(["run"] if self.options.one_run == "all" else [])]
        second = found.duplicated(key)
        why = f"another T1 of the session is used (data.options.one_run={self.options.one_run})"
        left_out.append(found[second].assign(reason=why))
        return _Files(found[~second].drop(columns="order"), pd.concat(left_out, ignore_index=True))

    def _with_scanners(self, rows: pd.DataFrame, scanners: pd.DataFrame) -> pd.DataFrame:
        labels = rows["participant_id"] + "_MR_" + rows["session_id"]
        if scanners.empty and self.options.sidecars:
            found = pd.DataFrame([_sidecar(self.root / path) for path in rows["path"]], index=rows.index)
        else:
            found = scanners.reindex(labels).set_axis(rows.index)
        found = found.reindex(columns=["manufacturer", "model", "serial", "field_tesla"])
        field = found["field_tesla"].astype("float64")
        model = found["model"].astype("string")
        tesla = field.map("{:g}T".format, na_action="ignore").astype("string")
        serial = found["serial"].astype("string")
        site = (model + "-" + serial).fillna(model + "-" + tesla).fillna(model).fillna(tesla).fillna("OASIS3")
        return rows.assign(
            site=site.str.replace(r"\s+", "_", regex=True),
            scanner=model,
            manufacturer=found["manufacturer"].astype("string"),
            field_tesla=field,
        )


def join_visits(scans: pd.DataFrame, visits: pd.DataFrame, clinical_days: float) -> pd.DataFrame:
    """Scans (participant_id, session_id, run, day, ...) with the facts of their nearest clinical visit.

    Visits (participant_id, day, diagnosis and other facts) without a diagnosis are no candidates; of two equally near
    ones the earlier is taken. days_to_clinical is the distance, NaN where none is within clinical_days.
    """
    key = ["participant_id", "session_id", "run"]
    said = visits[visits["diagnosis"].notna()].rename(columns={"day": "clinical_day"})
    pairs = scans[[*key, "day"]].merge(said, on="participant_id")
    pairs["days_to_clinical"] = (pairs["clinical_day"] - pairs["day"]).abs()
    pairs = pairs[pairs["days_to_clinical"] <= clinical_days].sort_values(["days_to_clinical", "clinical_day"])
    nearest = pairs.drop_duplicates(key).drop(columns=["day", "clinical_day"])
    return scans.merge(nearest, on=key, how="left")


def numbers_of(labels: pd.Series) -> pd.Series:
    """The number in d0129 or 01, NaN where there is none."""
    return pd.to_numeric(labels.str.extract(r"(\d+)$", expand=False)).astype("float64")


def _unreadable_labels(found: pd.DataFrame) -> pd.Series:
    """Why a file cannot be told a person and a day, NA where it can: by its name, which its folder may not belie."""
    reason = pd.Series(pd.NA, index=found.index, dtype="string")
    folder = found["path"].str.extract(_FOLDER)
    folder = pd.DataFrame({0: folder[0].str.upper(), 1: folder[1].str.lower()})
    belied = folder[0].notna() & ((folder[0] != found["participant_id"]) | (folder[1] != found["session_id"]))
    said = (
        "folder says " + folder[0] + " " + folder[1] + ", file " + found["participant_id"] + " " + found["session_id"]
    )
    reason = reason.mask(belied, said)
    no_day = ~found["session_id"].str.fullmatch(_SESSION.pattern)
    reason = reason.mask(no_day, "session label '" + found["session_id"] + "' does not parse, expected one like d0129")
    nobody = ~found["participant_id"].str.fullmatch(_PERSON.pattern)
    return reason.mask(nobody, "'" + found["participant_id"] + "' is no OASIS-3 number like OAS30001")


def _sidecar(image: Path) -> dict[str, Any]:
    """Scanner of an image by the JSON file of its name beside it, or in the BIDS folder beside its own."""
    name = re.sub(r"\.nii(\.gz)?$", ".json", image.name)
    for file in (image.with_name(name), image.parent.parent / "BIDS" / name):
        try:
            said = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(said, dict):
            return {
                "manufacturer": said.get("Manufacturer"),
                "model": said.get("ManufacturersModelName"),
                "serial": str(said["DeviceSerialNumber"]) if said.get("DeviceSerialNumber") else None,
                "field_tesla": pd.to_numeric(said.get("MagneticFieldStrength"), errors="coerce"),
            }
    return {}
