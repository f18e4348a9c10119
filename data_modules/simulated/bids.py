"""Writes a simulated cohort as a BIDS dataset (bids-specification.readthedocs.io), with known truth apart.

    dataset_description.json  participants.tsv  participants.json
    sub-0001/sub-0001_sessions.tsv                                                   (wide: columns of participants.tsv)
    sub-0001/ses-1/anat/sub-0001_ses-1[_run-1]_T1w.nii.gz and .json                  modality head
    derivatives/skullstrip/sub-0001/ses-1/anat/..._desc-brain_T1w.nii.gz             brain
    derivatives/cat12/sub-0001/ses-1/anat/mwp1sub-0001_ses-1_T1w.nii                 vbm
    derivatives/quasiraw/sub-0001/ses-1/anat/..._space-MNI152_desc-quasiraw_T1w...   quasiraw
    derivatives/regions.tsv                                                          roi, 284 volumes of CAT12's
    simulation/                parameters.json and truth.tsv, which no reader opens

There is no simulator of skulls: a head here is a skull-stripped brain in scanner space. Oddities as in shared datasets:
sessions with two runs, missed visits, a person who was never scanned, one with images but no row, an empty column.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.errors import ConfigError
from brainage.imaging.simulate import VERSION, BrainSimulator, Scan, grid, stream
from brainage.imaging.simulated_people import Site, simulate_people
from brainage.imaging.simulated_regions import RegionSimulator, region_names
from data_modules.simulated.native import AXES, save_native, save_prepared
from data_modules.simulated.writing import claim_folder, finish_folder, map_people, worker_count, write_text

MODALITIES = {
    "head": "{sub}/{ses}/anat/{sub}_{ses}{run}_T1w.nii.gz",
    "brain": "derivatives/skullstrip/{sub}/{ses}/anat/{sub}_{ses}{run}_desc-brain_T1w.nii.gz",
    "vbm": "derivatives/cat12/{sub}/{ses}/anat/mwp1{sub}_{ses}{run}_T1w.nii",
    "quasiraw": "derivatives/quasiraw/{sub}/{ses}/anat/{sub}_{ses}{run}_space-MNI152_desc-quasiraw_T1w.nii.gz",
    "roi": "derivatives/regions.tsv",
}
SITES = {  # name -> manufacturer, field, mean age of its people
    "Northtown": ("Siemens", 3.0, 45.0),
    "Southport": ("GE", 1.5, 62.0),
    "Westbridge": ("Philips", 3.0, 30.0),
}
LEAST_SUBJECTS = 8
DAYS_A_YEAR = 365.25


def write_bids(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("head",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    visits: int = 2,
    mci_rate: float = 0.15,
    ad_rate: float = 0.15,
    wide: bool = False,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; a finished cohort of equal parameters is left as it is.

    `subjects` people are scanned at three sites, up to `visits` times a year apart; one more is in the tables alone.
    The last of the scanned has no row in any table. `wide`: waves as columns of participants.tsv (`wide_sessions` is
    what `data.options.sessions` has to be) in place of sessions.tsv. truth.tsv has one row a visit with two_runs,
    in_tables and scanned. See `write_openbhb` for what else is promised.
    """
    out = Path(out)
    for modality in modalities:
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MODALITIES))}")
    if subjects < LEAST_SUBJECTS:
        raise ConfigError(f"subjects={subjects}: expected {LEAST_SUBJECTS} or more, so that every oddity is there")
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "bids", "version": VERSION, "subjects": subjects, "seed": seed, "spacing_mm": spacing_mm,
        "modalities": sorted(modalities), "site_effect": site_effect, "visits": visits, "mci_rate": mci_rate,
        "ad_rate": ad_rate, "wide": wide,
    }  # fmt: skip
    if claim_folder(out, parameters):
        return out
    people = simulate_visits(subjects, visits, seed=seed, mci_rate=mci_rate, ad_rate=ad_rate)
    sampler = Sampler(BrainSimulator(spacing_mm, seed, site_effect=site_effect), modalities)
    scanned = people[people["scanned"]].assign(split="")
    twice = frozenset((row.participant_id, row.session_id) for row in scanned.itertuples() if row.two_runs)
    write = partial(_write_sessions, out, tuple(modalities), twice)
    processes = worker_count(workers, len(scanned) * len(modalities), sampler.brains.shape)
    measured = [row for rows in map_people(sampler, write, scanned, processes, on_progress) for row in rows]
    if measured:
        table = pd.DataFrame(measured, columns=["participant_id", "session_id", *region_names("vbm_roi")])
        write_text(out / MODALITIES["roi"], table.round(5).to_csv(sep="\t", index=False))
    for name, text in tables(people, wide=wide).items():
        write_text(out / name, text)
    finish_folder(out, parameters, people)
    return out


def simulate_visits(subjects: int, visits: int, *, seed: int, mci_rate: float, ad_rate: float) -> pd.DataFrame:
    """One row a visit, the columns of `simulate_people` under labels 0001.., with acq_time, mmse and the oddities."""
    names = list(SITES)
    counts = [(subjects + 1 + place) // len(names) for place in range(len(names))]
    sites = [
        Site(name, count, mean_age_years=SITES[name][2], sd_age_years=10.0, field_tesla=SITES[name][1])
        for name, count in zip(names, counts, strict=True)
    ]
    people = simulate_people(sites, seed=seed, mci_rate=mci_rate, ad_rate=ad_rate, visits=visits)
    number = people.groupby("participant_id", sort=False).ngroup()
    visit = people["session_id"].astype(int) - 1
    start = [stream(seed, "bids", person).integers(0, 2000) for person in people["participant_id"]]
    days = pd.to_timedelta(np.round(start + people["visit_years"] * DAYS_A_YEAR), unit="D")
    return people.assign(
        participant_id=[f"{n + 1:04d}" for n in number],
        age_years=people["age_years"].round(2),
        acq_time=(pd.Timestamp("2009-03-01") + days).dt.strftime("%Y-%m-%dT10:00:00"),
        mmse=(29 - 14 * people["disease_severity"]).round().astype(int),
        two_runs=(number + visit) % 4 == 0,
        in_tables=number != subjects - 1,
        scanned=(number != subjects) & ~((visit > 0) & ((number + visit) % 5 == 0)),
    )


def tables(people: pd.DataFrame, *, wide: bool) -> dict[str, str]:
    """The text files of the dataset by their path: long form (a sessions.tsv a person), or `wide` (waves as columns).

    Of a missed visit the long form keeps the row, the wide one its columns.
    """
    rows = people[people["in_tables"]]
    first = rows.drop_duplicates("participant_id").set_index("participant_id")
    sheet = pd.DataFrame({"age": first["age_years"], "sex": first["sex"], "site": first["site"], "handedness": "n/a"})
    described = {"Name": "Simulated BIDS", "BIDSVersion": "1.9.0", "DatasetType": "raw"}
    said = {"age": {"Units": "years"}, "sex": {"Levels": {"F": "female", "M": "male"}}}
    files = {
        "dataset_description.json": json.dumps(described, indent=1),
        "participants.json": json.dumps(said, indent=1),
    }
    facts = ["age_years", "acq_time", "diagnosis", "mmse"]
    if wide:
        for session, group in rows.groupby("session_id"):
            sheet = sheet.join(group.set_index("participant_id")[facts].add_suffix(f"_W{session}"))
        sheet = sheet.drop(columns="age")
    else:
        for person, group in rows.groupby("participant_id"):
            visits = group[facts].rename(columns={"age_years": "age"})
            visits.insert(0, "session_id", "ses-" + group["session_id"])
            files[f"sub-{person}/sub-{person}_sessions.tsv"] = visits.to_csv(sep="\t", index=False, na_rep="n/a")
    sheet.index = "sub-" + sheet.index
    files["participants.tsv"] = sheet.to_csv(sep="\t", na_rep="n/a", index_label="participant_id")
    return files


def wide_sessions(visits: int) -> dict[str, dict[str, str]]:
    """`data.options.sessions` for the wide form."""
    facts = ("age_years", "acq_time", "diagnosis", "mmse")
    return {str(visit): {fact: f"{fact}_W{visit}" for fact in facts} for visit in range(1, visits + 1)}


class Sampler:
    """Brains, and regions where they are asked for; picklable, one for each worker process."""

    def __init__(self, brains: BrainSimulator, modalities: Sequence[str]) -> None:
        self.brains = brains
        self.regions = RegionSimulator(brains) if "roi" in modalities else None


def _write_sessions(
    out: Path,
    modalities: tuple[str, ...],
    twice: frozenset[tuple[str, str]],
    sampler: Sampler,
    task: Sequence[tuple[Scan, str]],
) -> list[list[list[object]]]:
    """Writes the images of some sessions; returns the rows of regions.tsv of each."""
    measured = []
    for scan, _ in task:
        runs = ("_run-1", "_run-2") if (scan.participant_id, scan.session_id) in twice else ("",)
        rows: list[list[object]] = []
        for number, run in enumerate(runs):
            repeat = scan._replace(session_id=scan.session_id + run) if number else scan  # the same brain, other noise
            for modality in modalities:
                path = out / path_of(scan, modality, run)
                if modality != "roi" and not path.exists():
                    _write_volume(path, modality, sampler.brains, repeat)
                if modality == "head":
                    _write_sidecar(path, scan)
        if sampler.regions is not None:
            values = sampler.regions.vbm(scan, sampler.brains.grey_matter(scan))
            rows.append([f"sub-{scan.participant_id}", f"ses-{scan.session_id}", *values.tolist()])
        measured.append(rows)
    return measured


def path_of(scan: Scan, modality: str, run: str = "") -> str:
    """Where a session's file lies below the cohort's root; `run` is empty or like _run-1."""
    return MODALITIES[modality].format(sub=f"sub-{scan.participant_id}", ses=f"ses-{scan.session_id}", run=run)


def _write_sidecar(path: Path, scan: Scan) -> None:
    manufacturer, field_tesla, _ = SITES[scan.site]
    facts = {
        "InstitutionName": scan.site,
        "Manufacturer": manufacturer,
        "StationName": f"{manufacturer.upper()}1",
        "MagneticFieldStrength": field_tesla,
    }
    write_text(path.with_name(path.name.replace(".nii.gz", ".json")), json.dumps(facts, indent=1))


def _write_volume(path: Path, modality: str, brains: BrainSimulator, scan: Scan) -> None:
    if modality == "vbm":
        save_prepared(path, brains.grey_matter(scan), brains.affine)
    elif modality == "quasiraw":
        save_prepared(path, brains.t1(scan), brains.affine)
    else:
        x, y, z = stream(brains.seed, "place", scan.participant_id, scan.session_id).uniform(-15, 15, 3).tolist()
        axes = AXES[list(SITES).index(scan.site)]
        save_native(path, brains.t1(scan), brains.affine, axes=axes, shift_mm=(x, y, z))
