"""ADNI (adni.loni.usc.edu): older people, healthy, with mild cognitive impairment or Alzheimer's, over years.

`root` holds clinical tables (ADNIMERGE, or the newer ones: see `adni_tables`) here or one folder down, and images:

- brain, head: the download tree [ADNI/]<PTID>/<series>/<date and time>/<I id>/*.nii[.gz] (`loni`), with the
  image-search CSV where it is there. Files that end in _brain are brains, the others heads.
- vbm, quasiraw: BIDS derivatives, .../sub-ADNI027S0074/ses-M012/*_T1w.nii[.gz] or .npy (`loni_reader.BIDS_NAMES`);
  sessions are months from baseline (M012, bl) or dates of the scan (20110602).

A scan belongs to the clinical visit that names its image (IMAGEUID), else to the person's visit nearest in time within
`visit_window_days`, else, where one of the two has no date, to the visit of the same code. A scan without such a visit
keeps its age (age at baseline plus the years between the dates) and its date as session; it has no diagnosis.

`age_years` is the age at baseline plus the years to the visit (`adni_visits`). `diagnosis` is that of the visit (DX);
DX_bl counts for the baseline alone, where DX is empty. A visit without DX has none: it is never taken from another one.
`mci_outcome` follows every clinical visit of the person, with or without a scan, by planned months (`conversion`).
One T1 a session, see `loni.one_each`. ADNI publishes no split.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import pandas as pd

from brainage.data.conversion import mci_outcome
from brainage.data.table import DROPPED_COLUMNS, CohortTable, finish_table
from brainage.errors import DataError
from data_modules.adni_tables import PTID, visit_code
from data_modules.adni_visits import join_visits, read_visits
from data_modules.loni import describe_images, find_images, read_search, without_file
from data_modules.loni_reader import LoniReader
from data_modules.sheet_dates import label_dates
from data_modules.volumes import NATIVE

EXTRA_COLUMNS = ("diagnosis_detail", "mci_outcome", "mmse", "cdr", "cdr_sum", "apoe4", "education_years", "field_tesla",
                 "manufacturer", "scanner", "days_to_clinical")  # fmt: skip
_LABEL = re.compile(r"^(?:ADNI)?(\d{3})_?S_?(\d{4,5})$", re.IGNORECASE)


@dataclass(frozen=True)
class AdniOptions:
    """`data.options` of ADNI."""

    conversion_months: float = 36.0  # window of mci_outcome
    visit_window_days: float = 91.0  # between a scan and its clinical visit: half of the six months between visits


class _Found(NamedTuple):
    scans: pd.DataFrame  # with session_id, age_years and the facts of their visit
    dropped: pd.DataFrame
    people: set[str]  # of the clinical tables


class ADNI(LoniReader):
    """One modality of ADNI. participant_id: PTID; session_id: visit code, or the date of a scan without a visit.

    Extra columns: EXTRA_COLUMNS. `cdr` is the global score, `cdr_sum` the sum of boxes.
    """

    name: ClassVar[str] = "adni"
    Options: ClassVar[type] = AdniOptions
    person: ClassVar[re.Pattern[str]] = PTID

    def table(self) -> CohortTable:
        found = self._found()
        rows = found.scans.assign(cohort="adni", run="")
        for name in EXTRA_COLUMNS:
            rows[name] = rows.get(name, pd.NA)
        rows["sex"] = rows["sex"].fillna(rows.get("sex_searched", pd.NA))
        rows["field_tesla"] = rows.get("field_searched", rows["field_tesla"]).fillna(rows["field_tesla"])
        rows = rows[["cohort", "participant_id", "session_id", "run", "site", "age_years", "sex", "diagnosis",
                     "visit_years", "path", *EXTRA_COLUMNS]]  # fmt: skip
        return finish_table(rows, source=str(self.root), dropped=found.dropped)

    def without_scan(self) -> list[str]:
        """People of the clinical tables of whom no scan of this modality is there, kept or left out."""
        found = self._found()
        return sorted(found.people - {*found.scans["participant_id"], *found.dropped["participant_id"].dropna()})

    def notes(self) -> list[str]:
        """Counts that a person should know: scans without a diagnosis or a visit, MCI of unknown outcome."""
        table = self.table().table
        mci = table[table["diagnosis"] == "MCI"]
        counts = {
            "scans have no diagnosis at their visit": int(table["diagnosis"].isna().sum()),
            "scans have no clinical visit near their date": int(table["session_id"].str.fullmatch(r"\d{8}").sum()),
            f"scans with MCI are not followed for {self.options.conversion_months:g} months": int(
                (mci["mci_outcome"] == "unknown").sum()
            ),
        }
        return [f"{count} {what}" for what, count in counts.items() if count]

    def _found(self) -> _Found:
        visits = read_visits(self.root)
        visits["mci_outcome"] = self._outcomes(visits)
        scans, dropped = self._images() if self.modality in NATIVE else self._derivatives()
        scans = join_visits(scans, visits, self.options.visit_window_days)
        left_out = scans["reason"].notna()
        dropped = [dropped, scans[left_out]]
        scans, again = self.one_a_session(scans[~left_out])
        dropped += again
        return _Found(scans, _together(*dropped).assign(cohort="adni"), set(visits["participant_id"]))

    def _outcomes(self, visits: pd.DataFrame) -> pd.Series:
        """By planned months where they are known, since visits are some weeks early or late; usable visits only."""
        time = (visits["months"] / 12).fillna(visits["visit_years"])
        usable = visits["reason"].isna()
        diagnosis = visits["diagnosis"].where(usable)
        return mci_outcome(visits.assign(visit_years=time, diagnosis=diagnosis), self.options.conversion_months)

    def _images(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Images of the tree that show this modality, and the rows left out."""
        search, nameless = read_search(self.root)
        images, strays = find_images(self.root, lambda name: bool(self.person.fullmatch(name)))
        if images.empty:
            raise DataError(
                f"{self.root}: no NIfTI image found; expected for example ADNI/027_S_0074/MP-RAGE/"
                "2006-05-02_12_31_52.0/I13722/*.nii"
            )
        missing = without_file(search, images)
        images, no_t1 = describe_images(images[images["shows"] == self.modality].reset_index(drop=True), search)
        images["code"] = images["visit"].map(visit_code, na_action="ignore").astype("string")
        # the clinical tables know age and sex better: the archive rounds ages
        images = images.rename(columns={"sex": "sex_searched", "field_tesla": "field_searched"})
        images = images.drop(columns=["age_years", "age_reason"])
        return images, _together(nameless, strays, missing, no_t1)

    def _derivatives(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Prepared files with the person and the visit code or date that their labels say, and those left out."""
        files = self.prepared_files()
        parts = files["label"].str.extract(_LABEL)
        files["participant_id"] = parts[0] + "_S_" + parts[1]
        files["date"] = label_dates(files["session"])
        files["code"] = files["session"].map(visit_code).where(files["date"].isna()).astype("string")
        nobody = files["participant_id"].isna()
        words = "sub-" + files["label"] + " is no ADNI subject like sub-ADNI027S0074"
        strangers = files.assign(reason=words)[nobody]
        files = files[~nobody].reset_index(drop=True)
        return files.assign(image_id=pd.Series(pd.NA, index=files.index, dtype="string")), strangers


def _together(*frames: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame.reindex(columns=DROPPED_COLUMNS).astype(object) for frame in frames], ignore_index=True)
