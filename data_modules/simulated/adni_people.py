"""Who is in the simulated ADNI: groups, planned visits, who comes, who converts when, and which images are taken."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.errors import ConfigError
from brainage.imaging.simulate import stream
from brainage.imaging.simulated_people import DISEASE_YEARS, SEVERITY_A_YEAR, SEVERITY_OF_AD, Site, simulate_people

MONTHS = (0, 6, 12, 24, 36, 48)
WINDOW_MONTHS = 36
DAYS_A_MONTH = 365.25 / 12
OLDEST_AT_ENTRY_YEARS = 85.0
_FIELDS = (1.5, 3.0)


class Fate(NamedTuple):
    group: str  # DX_bl
    severity: float  # at entry; 0: healthy
    last_month: int = 48
    well_again_month: int = 999  # MCI that is gone from then on


_A_YEAR = SEVERITY_A_YEAR
FATES = (  # shared out in turn, so that a dozen people hold each
    Fate("CN", 0.0), Fate("EMCI", SEVERITY_OF_AD - 1.5 * _A_YEAR), Fate("SMC", 0.0), Fate("EMCI", 0.25),
    Fate("AD", SEVERITY_OF_AD + 0.1), Fate("LMCI", SEVERITY_OF_AD - 3.5 * _A_YEAR), Fate("CN", 0.0),
    Fate("EMCI", 0.3, well_again_month=12), Fate("AD", SEVERITY_OF_AD + 0.2, last_month=24),
    Fate("LMCI", 0.35, last_month=12), Fate("CN", 0.0, last_month=36), Fate("LMCI", SEVERITY_OF_AD - 0.5 * _A_YEAR),
)  # fmt: skip


def plan_visits(subjects: int, *, seed: int) -> pd.DataFrame:
    """One row a visit that took place: participant_id (PTID), session_id (visit code), site, sex, age and its parts,
    diagnosis as recorded (NA where it was not), group, dates, test scores, scan_date (NaT: no scan), and the truth.

    visit_years are the years between the dates of the visit and the baseline; age_years the age at entry plus those.
    """
    if subjects < 2:
        raise ConfigError(f"subjects={subjects}: expected 2 or more")
    rows = []
    for number, person in enumerate(_people(subjects, seed)):
        draw = stream(seed, "adni visits", person["participant_id"])
        rows += _visits(person, draw, always=number < len(FATES))
    visits = pd.DataFrame(rows)
    return visits.assign(mci_outcome=_outcomes(visits))


def plan_images(visits: pd.DataFrame, *, seed: int) -> pd.DataFrame:
    """One row a planted image with the facts of its visit, image_id, description, has_file, in_search, and `fate`:
    table, or why it has to be left out (repeat, no file, nobody)."""
    images = []
    number = 13000
    for visit in visits.to_dict("records"):
        draw = stream(seed, "adni images", visit["participant_id"], visit["session_id"])
        if pd.isna(visit["scan_date"]):
            continue
        number += int(draw.integers(3, 40))
        lot = draw.random()
        first = visit | {"image_id": str(number), "description": "MP-RAGE", "has_file": lot > 0.06}
        first |= {"in_search": lot < 0.94, "fate": "table" if first["has_file"] else "no file", "scan": ""}
        images.append(first)
        if first["has_file"] and draw.random() < 0.2:
            number -= 1  # the better image has the higher number
            description = "MP-RAGE REPEAT" if draw.random() < 0.5 else "Accelerated SAG IR-SPGR"
            images.append(first | {"image_id": str(number), "description": description, "fate": "repeat", "scan": "b"})
            number += 1
    extra = [*_unplanned(visits, seed), _nobody(visits, seed)]
    return pd.DataFrame([*images, *extra])


def _people(subjects: int, seed: int) -> list[dict]:
    centres = max(2, min(20, subjects // 6))
    counts = [len(range(centre, subjects, centres)) for centre in range(centres)]
    sites = [Site(str(number), count, 73.0, 7.0) for number, count in enumerate(counts)]
    drawn = simulate_people(sites, seed=seed)
    order = stream(seed, "adni fates").permutation(len(FATES))
    mean = stream(seed, "adni centres").normal(73.0, 2.0, centres)
    people = []
    for number, row in enumerate(drawn.itertuples()):
        centre = int(row.site)
        draw = stream(seed, "adni person", number)
        age = 0.0
        while not 55.0 <= age <= OLDEST_AT_ENTRY_YEARS:
            age = round(float(draw.normal(mean[centre], 6.5)), 1)
        people.append(
            {
                "participant_id": f"{centre + 2:03d}_S_{number + 11:04d}", "rid": number + 11,
                "site": f"{centre + 2:03d}",
                "sex": row.sex, "baseline_age": age, "acceleration_years": row.acceleration_years,
                "fate": FATES[order[number % len(FATES)]], "field_tesla": _FIELDS[centre % 2],
                "apoe4": int(draw.integers(0, 3)), "education_years": int(draw.integers(8, 21)),
                "baseline_date": pd.Timestamp("2005-09-01") + pd.Timedelta(days=int(draw.integers(0, 3000))),
            }
        )  # fmt: skip
    return people


def _visits(person: dict, draw: np.random.Generator, *, always: bool) -> list[dict]:
    """The visits that took place; `always`: the first people miss none, so that each fate is seen through."""
    fate: Fate = person["fate"]
    facts = {name: value for name, value in person.items() if name != "fate"} | {"group": fate.group}
    rows = []
    for month in MONTHS:
        late_days, missed, scanned, recorded = draw.integers(-20, 21), draw.random(), draw.random(), draw.random()
        if month > fate.last_month or (month and not always and missed < 0.12):
            continue
        date = person["baseline_date"] + pd.Timedelta(days=round(month * DAYS_A_MONTH) + int(late_days) * (month > 0))
        years = (date - person["baseline_date"]).days / 365.25
        ill = fate.severity > 0 and month < fate.well_again_month
        severity = min(fate.severity + SEVERITY_A_YEAR * month / 12, 1.0) if ill else 0.0
        diagnosis = "CN" if severity == 0 else "MCI" if severity < SEVERITY_OF_AD else "AD"
        age = person["baseline_age"] + years
        rows.append(
            facts | {
                "session_id": "bl" if month == 0 else f"m{month:02d}", "month": month, "exam_date": date,
                "visit_years": years, "age_years": age, "disease_severity": severity,
                "diagnosis": diagnosis if always or recorded > 0.05 else None,
                "biological_age_years": age + person["acceleration_years"] + DISEASE_YEARS * severity,
                "mmse": max(10, round(29.5 - 12 * severity)),
                "cdr": 0.0 if severity == 0 else 0.5 + 0.5 * (severity > 0.8),
                "scan_date": date + pd.Timedelta(days=int(draw.integers(-30, 1 if month == 0 else 31)))
                if month == 0 or scanned > 0.12 else pd.NaT,
            }
        )  # fmt: skip
    return rows


def _outcomes(visits: pd.DataFrame) -> list[str | None]:
    """Stable, progressive or unknown of each visit with MCI, read off the recorded diagnoses one by one."""
    outcomes: list[str | None] = []
    for visit in visits.itertuples():
        person = visits[(visits["participant_id"] == visit.participant_id) & visits["diagnosis"].notna()]
        later = [(row.month - visit.month, row.diagnosis) for row in person.itertuples() if row.month > visit.month]
        if visit.diagnosis != "MCI":
            outcomes.append(None)
        elif any(label == "AD" and gap <= WINDOW_MONTHS for gap, label in later):
            outcomes.append("progressive")
        else:
            outcomes.append("stable" if any(gap >= WINDOW_MONTHS for gap, _ in later) else "unknown")
    return outcomes


def _unplanned(visits: pd.DataFrame, seed: int) -> list[dict]:
    """Scans of a few people half a year after their last visit: no clinical visit is near."""
    last = visits.groupby("participant_id").tail(1)
    rows = []
    for number, visit in enumerate(last.iloc[::7].to_dict("records")):
        date = visit["exam_date"] + pd.Timedelta(days=170 + int(stream(seed, "unplanned", number).integers(20)))
        years = (date - visit["baseline_date"]).days / 365.25
        age = visit["baseline_age"] + years
        rows.append(
            visit | {
                "session_id": date.strftime("%Y%m%d"), "scan_date": date, "visit_years": years, "age_years": age,
                "diagnosis": None, "mci_outcome": None, "image_id": str(900000 + number), "description": "MP-RAGE",
                "has_file": True, "in_search": True, "fate": "table", "scan": "",
                "biological_age_years": age + visit["acceleration_years"] + DISEASE_YEARS * visit["disease_severity"],
            }
        )  # fmt: skip
    return rows


def _nobody(visits: pd.DataFrame, seed: int) -> dict:
    """An image of a person whom the clinical tables do not know."""
    first = visits.iloc[0].to_dict()
    return first | {
        "participant_id": "941_S_9999", "scan_date": first["exam_date"], "image_id": "990000", "description": "MP-RAGE",
        "has_file": True, "in_search": False, "fate": "nobody", "scan": "", "site": "941",
    }  # fmt: skip
