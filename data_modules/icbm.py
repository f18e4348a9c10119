"""ICBM (LONI archive): healthy adults; an image-search CSV and the download tree, prepared volumes beside it as BIDS.

    [ICBM/]<subject>/<series>/<date and time>/<I id>/*.nii[.gz]        subject like MNI_0579
    .../sub-MNI0579/[ses-20060914/]*_T1w.nii[.gz] or .npy              vbm, quasiraw

The CSV says who, how old at that image, and of which sex; an image that it does not list has no age and is left out.
`session_id` is the date of the scan, `site` the letters of the subject (MNI), and everybody is CN: ICBM took healthy
volunteers only (another word in Group is kept as `other`). One T1 a session, see `loni.one_each`. No published split.
"""

from __future__ import annotations

import re
from typing import ClassVar

import pandas as pd

from brainage.data.table import DROPPED_COLUMNS, CohortTable, finish_table
from brainage.errors import DataError
from data_modules.loni import describe_images, find_images, read_search, without_file
from data_modules.loni_reader import LoniReader
from data_modules.sheet_dates import label_dates
from data_modules.volumes import NATIVE

HEALTHY = ("control", "controls", "normal", "healthy", "healthy control", "cn", "hc", "nc")
EXTRA_COLUMNS = ("diagnosis_detail", "field_tesla", "manufacturer", "scanner")


class ICBM(LoniReader):
    """One modality of ICBM. Extra columns: EXTRA_COLUMNS."""

    name: ClassVar[str] = "icbm"
    person: ClassVar[re.Pattern[str]] = re.compile(r"[A-Za-z]+_\d{3,}")

    def table(self) -> CohortTable:
        scans, dropped, _ = self._found()
        group = scans["group"].astype("string")
        healthy = group.isna() | group.str.lower().isin(HEALTHY)
        first = scans.groupby("participant_id")["date"].transform("min")
        rows = pd.DataFrame(
            {
                "cohort": "icbm",
                "participant_id": scans["participant_id"],
                "session_id": scans["session_id"],
                "run": "",
                "site": scans["participant_id"].str.extract(r"^([A-Za-z]+)_", expand=False),
                "age_years": scans["age_years"],
                "sex": scans["sex"],
                "diagnosis": pd.Series("CN", index=scans.index, dtype="string").where(healthy, "other"),
                "visit_years": (scans["date"] - first).dt.days / 365.25,
                "path": scans["path"],
                "diagnosis_detail": group,
                "field_tesla": scans["field_tesla"],
                "manufacturer": scans["manufacturer"],
                "scanner": scans["scanner"],
            }
        )
        return finish_table(rows, source=str(self.root), dropped=dropped)

    def without_scan(self) -> list[str]:
        """People of the image-search CSV of whom no scan of this modality is there, kept or left out."""
        scans, dropped, people = self._found()
        return sorted(people - {*scans["participant_id"], *dropped["participant_id"].dropna()})

    def _found(self) -> tuple[pd.DataFrame, pd.DataFrame, set[str]]:
        """Scans with what the CSV says of them, rows left out, and the people of the CSV."""
        search, nameless = read_search(self.root)
        if search.empty:
            raise DataError(
                f"{self.root}: no image-search CSV (Image Data ID, Subject, Sex, Age, Description, Acq Date) with a "
                "row here or one folder down; download it with the images"
            )
        people = set(search["participant_id"])
        scans, *dropped = self._images(search) if self.modality in NATIVE else self._derivatives(search)
        scans["session_id"] = scans["date"].dt.strftime("%Y%m%d").astype("string")
        reason = scans["age_reason"].astype("string")
        reason = reason.mask(~scans["in_search"], "image I" + scans["image_id"] + " has no row in the image-search CSV")
        reason = reason.mask(~scans["participant_id"].isin(people), "person is not in the image-search CSV")
        dropped += [nameless, scans.assign(reason=reason)[reason.notna()]]
        scans, again = self.one_a_session(scans[reason.isna()])
        dropped += again
        every = pd.concat([frame.reindex(columns=DROPPED_COLUMNS).astype(object) for frame in dropped])
        return scans.reset_index(drop=True), every.assign(cohort="icbm"), people

    def _images(self, search: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
        known = set(search["participant_id"])
        images, strays = find_images(self.root, lambda name: name in known or bool(self.person.fullmatch(name)))
        if images.empty:
            raise DataError(
                f"{self.root}: no NIfTI image found; expected for example "
                "ICBM/MNI_0579/T1/2006-09-14_14_11_40.0/I59582/*.nii"
            )
        missing = without_file(search, images)
        images, no_t1 = describe_images(images[images["shows"] == self.modality].reset_index(drop=True), search)
        return images, strays, missing, no_t1

    def _derivatives(self, search: pd.DataFrame) -> tuple[pd.DataFrame, ...]:
        """Prepared files with the T1 row of the CSV of their person and date; without a date, of the person's only
        date."""
        files = self.prepared_files()
        labels = search["participant_id"].drop_duplicates()
        people = dict(zip(labels.str.replace("_", "", regex=False), labels, strict=True))
        files["participant_id"] = files["label"].str.upper().map(people).astype("string").fillna(files["label"])
        said = search[search["disputed"].isna()].drop(columns="image_id").sort_values(["participant_id", "date"])
        said = said.drop_duplicates(["participant_id", "date"])
        only = said[~said["participant_id"].duplicated(keep=False)].set_index("participant_id")["date"]
        files["date"] = label_dates(files["session"]).fillna(files["participant_id"].map(only))
        scans = files.merge(said, on=["participant_id", "date"], how="left", indicator="said")
        scans["in_search"] = scans["said"] == "both"
        unknown = ~scans["in_search"] & scans["participant_id"].isin(people.values())
        words = "session '" + scans["session"] + "' is no date at which the image-search CSV has this person"
        scans["image_id"] = pd.Series(pd.NA, index=scans.index, dtype="string")
        return scans[~unknown].reset_index(drop=True), scans.assign(reason=words)[unknown]
