"""Writes a simulated cohort in the layout of OASIS-3 (LaMontagne et al. 2019), with known truth apart.

    OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_run-01_T1w.nii.gz and .json       modality head
    derivatives/{skullstrip,cat12,quasiraw}/sub-OAS30001/ses-d0129/anat/...          brain, vbm, quasiraw
    OASIS3_data_files/OASIS3_{demographics,UDSb4_cdr,UDSd1_diagnoses,MR_json}.csv
    simulation/       parameters.json and truth.tsv, which no reader opens

OASIS-3 publishes heads; there is no simulator of skulls, so a head here is a skull-stripped brain in scanner space.
Oddities as in the real one: clinical visits on other days than scans, years without any, sessions with two runs, older
names with sess-, people without MR, cells left empty and the two codes of an APOE that was not measured, two versions
of the diagnostic form, one person scanned on two scanners.
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
from brainage.imaging.simulated_people import (
    DISEASE_YEARS,
    SEVERITY_A_YEAR,
    SEVERITY_OF_AD,
    Site,
    simulate_people,
)
from data_modules.simulated.native import AXES, save_native, save_prepared
from data_modules.simulated.writing import claim_folder, finish_folder, map_people, worker_count, write_text

MODALITIES = {
    "head": "{label}/anat{folder}/{name}_{ses}{run}_T1w.nii.gz",
    "brain": "derivatives/skullstrip/{name}/ses-{day}/anat/{name}_ses-{day}{run}_desc-brain_T1w.nii.gz",
    "vbm": "derivatives/cat12/{name}/ses-{day}/anat/mwp1{name}_ses-{day}{run}_T1w.nii.gz",
    "quasiraw": "derivatives/quasiraw/{name}/ses-{day}/anat/{name}_ses-{day}{run}_preproc-quasiraw_T1w.nii.gz",
}
SCANNERS = {  # name of the site that readers give -> manufacturer, model, serial number, field
    "TrioTim-35177": ("Siemens", "TrioTim", "35177", 3.0),
    "Biograph_mMR-51010": ("Siemens", "Biograph_mMR", "51010", 3.0),
    "Vision-21926": ("Siemens", "Vision", "21926", 1.494),
}
DAYS_A_YEAR = 365.25
CLINICAL_DAYS = 365  # farther visits say nothing about a scan
_TABLES = "OASIS3_data_files"


def write_oasis3(
    out: str | Path,
    *,
    subjects: int,
    seed: int,
    spacing_mm: float = 4.0,
    workers: int = 0,
    modalities: Sequence[str] = ("head",),
    site_effect: float = 1.0,
    on_progress: Callable[[int, int], None] | None = None,
    mci_rate: float = 0.15,
    ad_rate: float = 0.15,
    visits: int = 3,
) -> Path:
    """Write (or complete) the cohort in `out` and return it; a finished cohort of equal parameters is left as it is.

    `subjects` people with 1 to `visits` MR sessions one to three years apart; another tenth of them without any. See
    `write_openbhb` for what is promised. truth.tsv has one row a session: the columns of `simulate_people` (diagnosis:
    at the scan), days, two_runs, and what a reader should find: clinical_diagnosis and days_to_clinical.
    """
    out = Path(out)
    for modality in modalities:
        if modality not in MODALITIES:
            raise ConfigError(f"modality {modality!r}: unknown{nearest(modality, list(MODALITIES))}")
    if subjects < len(SCANNERS):
        raise ConfigError(f"subjects={subjects}: expected {len(SCANNERS)} or more, one for each scanner")
    grid(spacing_mm)  # refuses an impossible spacing before anything is written
    parameters = {
        "layout": "oasis3", "version": VERSION, "subjects": subjects, "seed": seed, "spacing_mm": spacing_mm,
        "modalities": sorted(modalities), "site_effect": site_effect, "mci_rate": mci_rate, "ad_rate": ad_rate,
        "visits": visits,
    }  # fmt: skip
    if claim_folder(out, parameters):
        return out
    people = simulate_entries(subjects, seed=seed, mci_rate=mci_rate, ad_rate=ad_rate)
    clinic = simulate_clinic(people, visits, seed=seed)
    sessions = with_answers(simulate_sessions(people[~people["without_mr"]], visits, seed=seed), clinic)
    brains = BrainSimulator(spacing_mm, seed, site_effect=site_effect)
    twice = frozenset((row.participant_id, row.session_id) for row in sessions.itertuples() if row.two_runs)
    write = partial(_write_sessions, out, tuple(modalities), twice)
    processes = worker_count(workers, len(sessions) * len(modalities), brains.shape)
    map_people(brains, write, sessions.assign(split=""), processes, on_progress)
    for name, table in clinical_tables(people, clinic, sessions, seed=seed).items():
        write_text(out / _TABLES / f"{name}.csv", table.to_csv(index=False))
    finish_folder(out, parameters, sessions)
    return out


def simulate_entries(subjects: int, *, seed: int, mci_rate: float, ad_rate: float) -> pd.DataFrame:
    """One row a person at entry, `simulate_people`'s columns under OASIS-3's numbers; the last tenth without_mr."""
    without = max(subjects // 10, 1)
    names = list(SCANNERS)
    counts = np.full(len(names), subjects // len(names)) + (np.arange(len(names)) < subjects % len(names))
    counts[-1] += without
    sites = [
        Site(name, int(count), mean_age_years=69.0, sd_age_years=8.0, field_tesla=SCANNERS[name][3])
        for name, count in zip(names, counts, strict=True)
    ]
    people = simulate_people(sites, seed=seed, mci_rate=mci_rate, ad_rate=ad_rate)
    numbers = [f"OAS3{number + 1:04d}" for number in range(len(people))]
    return people.assign(participant_id=numbers, without_mr=np.arange(len(people)) >= subjects)


def simulate_sessions(people: pd.DataFrame, visits: int, *, seed: int) -> pd.DataFrame:
    """One row an MR session, the columns of `simulate_people` at its day, with `days` and `two_runs`."""
    rows = []
    for number, person in enumerate(people.to_dict("records")):
        draw = stream(seed, "oasis3 sessions", person["participant_id"])
        days = int(draw.integers(0, 250))
        for visit in range(int(draw.integers(1, visits + 1))):
            site = person["site"] if visit < 2 else list(SCANNERS)[1]  # the newest scanner takes over
            scanner = {"site": site, "field_tesla": SCANNERS[site][3]}
            rows.append(_at(person, days) | scanner | {"two_runs": (number + visit) % 4 == 0})
            days += int(draw.integers(370, 1100))
    return pd.DataFrame(rows).drop(columns="without_mr")


def simulate_clinic(people: pd.DataFrame, visits: int, *, seed: int) -> pd.DataFrame:
    """One row a clinical visit: participant_id, days, age_years, diagnosis, severity; every seventh came once."""
    rows = []
    for number, person in enumerate(people.to_dict("records")):
        draw = stream(seed, "oasis3 clinic", person["participant_id"])
        days = 0
        for _ in range(1 if number % 7 == 6 else 4 * visits):
            rows.append(_at(person, days) | {"cdr": _cdr(_at(person, days)), "mmse": int(draw.integers(0, 3))})
            days += int(draw.integers(300, 430))
    table = pd.DataFrame(rows)
    table["mmse"] = (30 - table["mmse"] - (14 * table["disease_severity"]).round()).clip(0, 30).astype(int)
    return table[["participant_id", "days", "age_years", "diagnosis", "disease_severity", "cdr", "mmse"]]


def with_answers(sessions: pd.DataFrame, clinic: pd.DataFrame) -> pd.DataFrame:
    """Sessions with the diagnosis that their nearest clinical visit gave, and its distance in days."""
    by_person = {
        person: list(zip(rows["days"], rows["diagnosis"], strict=True))
        for person, rows in clinic.groupby("participant_id")
    }
    answers = []
    for row in sessions.itertuples():
        away, _, diagnosis = min((abs(day - row.days), day, found) for day, found in by_person[row.participant_id])
        answers.append((diagnosis, away) if away <= CLINICAL_DAYS else ("", np.nan))
    found = pd.DataFrame(answers, columns=["clinical_diagnosis", "days_to_clinical"], index=sessions.index)
    return sessions.join(found)


def clinical_tables(
    people: pd.DataFrame, clinic: pd.DataFrame, sessions: pd.DataFrame, *, seed: int
) -> dict[str, pd.DataFrame]:
    """The four published tables by name, with their column names and codes."""
    draws = [stream(seed, "oasis3 table", person) for person in people["participant_id"]]
    demographics = pd.DataFrame(
        {
            "OASISID": people["participant_id"],
            "Subject_accession": "",
            "AgeatEntry": people["age_years"],
            "AgeatDeath": "",
            "GENDER": people["sex"].map({"M": 1, "F": 2}),
            "EDUC": [int(draw.integers(8, 21)) for draw in draws],
            "APOE": [draw.choice(["33", "34", "23", "44", "24", "0", "#N/A"]) for draw in draws],
        }
    )
    labels = clinic["participant_id"] + "_{}_d" + clinic["days"].map("{:04d}".format)
    visit = pd.DataFrame(
        {"OASISID": clinic["participant_id"], "days_to_visit": clinic["days"], "age at visit": clinic["age_years"]}
    ).round(2)
    texts = clinic["diagnosis"].map({"CN": "Cognitively normal", "MCI": "uncertain dementia", "AD": "AD Dementia"})
    b4 = visit.assign(MMSE=clinic["mmse"], CDRTOT=clinic["cdr"], dx1=texts, dx2=".")
    b4.insert(1, "OASIS_session_label", labels.str.replace("{}", "UDSb4", regex=False))
    d1 = visit.assign(**_form_d1(clinic))
    d1.insert(1, "OASIS_session_label", labels.str.replace("{}", "UDSd1", regex=False))
    return {
        "OASIS3_demographics": demographics,
        "OASIS3_UDSb4_cdr": b4,
        "OASIS3_UDSd1_diagnoses": d1,
        "OASIS3_MR_json": _series_table(sessions),
    }


def _form_d1(clinic: pd.DataFrame) -> dict[str, pd.Series]:
    """Flags as text: 0 and 1, empty where the form skips a question; version 3 after the sixth year."""
    state, third = clinic["diagnosis"], clinic["days"] > 6 * DAYS_A_YEAR
    yes = (state == "AD").map({True: "1", False: ""})
    return {
        "NORMCOG": (state == "CN").astype(int).astype(str),
        "DEMENTED": (state == "AD").astype(int).astype(str).where(state != "CN", ""),
        "MCIAMEM": (state == "MCI").astype(int).astype(str).where(state != "CN", ""),
        "MCIAPLUS": pd.Series("0", index=clinic.index).where(state != "CN", ""),
        "MCINON1": pd.Series("", index=clinic.index),
        "MCINON2": pd.Series("", index=clinic.index),
        "IMPNOMCI": pd.Series("0", index=clinic.index).where(state != "CN", ""),
        "PROBAD": yes.where(~third, ""),
        "PROBADIF": yes.where(~third, ""),
        "POSSAD": pd.Series("", index=clinic.index),
        "alzdis": yes.where(third, ""),
        "alzdisif": yes.where(third, ""),
    }


def _series_table(sessions: pd.DataFrame) -> pd.DataFrame:
    """OASIS3_MR_json: one row a series, T2w ones among them."""
    scanner = pd.DataFrame([SCANNERS[site] for site in sessions["site"]], index=sessions.index)
    label = sessions["participant_id"] + "_MR_" + sessions["session_id"]
    table = pd.DataFrame(
        {
            "subject_id": sessions["participant_id"],
            "label": label,
            "filename": "sub-" + sessions["participant_id"] + "_ses-" + sessions["session_id"] + "_T1w.json",
            "scan category": "T1w",
            "Manufacturer": scanner[0],
            "ManufacturersModelName": scanner[1],
            "DeviceSerialNumber": scanner[2],
            "MagneticFieldStrength": scanner[3],
        }
    )
    other = table.assign(**{"scan category": "T2w", "filename": table["filename"].str.replace("T1w", "T2w")})
    return pd.concat([other, table], ignore_index=True).sort_values(["label", "filename"], ascending=[True, False])


def _at(person: dict, days: int) -> dict:
    """A person's row, some days after entry."""
    years = days / DAYS_A_YEAR
    onset, age = person["disease_severity"], person["age_years"] + years
    severity = min(onset + SEVERITY_A_YEAR * years, 1.0) if onset > 0 else 0.0
    ageing = max(age + person["acceleration_years"], 1.0)
    return person | {
        "session_id": f"d{days:04d}",
        "days": days,
        "visit_years": years,
        "age_years": age,
        "diagnosis": "CN" if severity == 0 else "MCI" if severity < SEVERITY_OF_AD else "AD",
        "disease_severity": severity,
        "biological_age_years": ageing + DISEASE_YEARS * severity,
    }


def _cdr(visit: dict) -> float:
    return {"CN": 0.0, "MCI": 0.5, "AD": 0.5 if visit["disease_severity"] < 0.75 else 1.0}[visit["diagnosis"]]


def _write_sessions(
    out: Path,
    modalities: tuple[str, ...],
    twice: frozenset[tuple[str, str]],
    brains: BrainSimulator,
    task: Sequence[tuple[Scan, str]],
) -> list[None]:
    for scan, _ in task:
        runs = ("_run-01", "_run-02") if (scan.participant_id, scan.session_id) in twice else ("",)
        for number, run in enumerate(runs):
            repeat = scan._replace(session_id=scan.session_id + run) if number else scan  # the same brain, other noise
            for modality in modalities:
                path = out / path_of(scan, modality, run, 2 + number)
                if not path.exists():
                    _write_volume(path, modality, brains, repeat)
                if modality == "head":
                    names = ("Manufacturer", "ManufacturersModelName", "DeviceSerialNumber", "MagneticFieldStrength")
                    facts = dict(zip(names, SCANNERS[scan.site], strict=True))
                    write_text(path.with_name(path.name.replace(".nii.gz", ".json")), json.dumps(facts, indent=1))
    return [None] * len(task)


def path_of(scan: Scan, modality: str, run: str = "", folder: int = 2) -> str:
    """Where a session's file lies below the cohort's root; `run` is empty or like _run-01."""
    older = int(scan.participant_id[-1]) % 3 == 0  # named sess- by the first release
    return MODALITIES[modality].format(
        label=f"{scan.participant_id}_MR_{scan.session_id}", folder=folder, name=f"sub-{scan.participant_id}",
        ses=f"{'sess' if older else 'ses'}-{scan.session_id}", day=scan.session_id, run=run,
    )  # fmt: skip


def _write_volume(path: Path, modality: str, brains: BrainSimulator, scan: Scan) -> None:
    if modality == "vbm":
        save_prepared(path, brains.grey_matter(scan), brains.affine)
    elif modality == "quasiraw":
        save_prepared(path, brains.t1(scan), brains.affine)
    else:
        draw = stream(brains.seed, "place", scan.participant_id, scan.session_id)
        shift = tuple(draw.uniform(-15, 15, 3).tolist())
        save_native(path, brains.t1(scan), brains.affine, axes=AXES[list(SCANNERS).index(scan.site)], shift_mm=shift)
