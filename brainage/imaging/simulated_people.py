"""Simulated people: who they are, how old, where scanned, how fast they age. Nothing here makes an image.

Ages depend on the site, as in OpenBHB (mean 25, sd 15, range 6-88: many student samples, a few of children, of elderly
and of the whole adult life), so that a model can learn the site in place of age and fail on a site it has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainage.errors import ConfigError
from brainage.imaging.simulate import Scan, stream

AGE_RANGE_YEARS = (6.0, 88.0)
SEVERITY_OF_AD = 0.65  # an MCI whose severity passes this has converted
SEVERITY_A_YEAR = 0.08  # progression of MCI and AD
DISEASE_YEARS = 8.0  # biological age added at severity 1

# Samples of a site: share of sites, mean and sd of age in years.
_SAMPLES = {
    "students": (0.51, 20.5, 2.5),
    "elderly": (0.09, 63.0, 8.0),
    "children": (0.15, 11.5, 2.5),
    "lifespan": (0.10, 42.0, 17.0),
    "adults": (0.15, 29.0, 7.0),
}
_EXTERNAL_SAMPLES = ("lifespan", "students", "elderly", "children", "adults")
_MIN_SITE_PEOPLE = 10
_STUDIES = 10


@dataclass(frozen=True)
class Site:
    """One acquisition unit: a scanner setting of a hospital (OpenBHB: siteXacq)."""

    name: str  # unique
    people: int
    mean_age_years: float
    sd_age_years: float
    external: bool = False  # held out whole
    study: int = 0
    hospital: int = 0  # several acquisition units may share one
    acquisition: int = 1
    field_tesla: float = 3.0


def plan_sites(subjects: int, *, seed: int, external_share: float = 0.15, external_sites: int = 4) -> list[Site]:
    """Acquisition units of an OpenBHB-like cohort of `subjects` people, the external ones last.

    About 20 internal units up to 500 people, 64 for the published size; each has ten people or more.
    """
    external_people = max(round(subjects * external_share), 2)
    internal_people = subjects - external_people
    if internal_people < 2 * _MIN_SITE_PEOPLE:
        raise ConfigError(f"subjects={subjects}: expected 24 or more (two sites of ten people to train on)")
    most = internal_people // _MIN_SITE_PEOPLE
    internal = min(most, max(20, min(64, internal_people // 25)))
    external = max(min(external_sites, external_people // 4), 1)
    draw = stream(seed, "sites")
    people = [*_share_out(internal_people, internal, draw), *_share_out(external_people, external, draw)]
    sites: list[Site] = []
    for number, count in enumerate(people):
        held_out = number >= internal
        sample = _EXTERNAL_SAMPLES[(number - internal) % len(_EXTERNAL_SAMPLES)] if held_out else _sample_of(number)
        _, mean, sd = _SAMPLES[sample]
        second = not held_out and number % 5 == 4  # every fifth unit: another setting of the hospital before it
        sites.append(
            Site(
                name=str(number),
                people=count,
                mean_age_years=sites[-1].mean_age_years if second else mean + draw.normal(0, 0.08 * mean),
                sd_age_years=sites[-1].sd_age_years if second else sd,
                external=held_out,
                study=sites[-1].study if second else int(draw.integers(_STUDIES)),
                hospital=number - 1 if second else number,
                acquisition=2 if second else 1,
                field_tesla=float(draw.choice([1.5, 3.0], p=[0.25, 0.75])),
            )
        )
    return sites


def simulate_people(
    sites: Sequence[Site],
    *,
    seed: int,
    mci_rate: float = 0.0,
    ad_rate: float = 0.0,
    visits: int = 1,
    visit_gap_years: float = 1.0,
    acceleration_sd_years: float = 3.0,
) -> pd.DataFrame:
    """One row a scan, sorted by site: what a public table would hold, and the planted truth.

    Columns: participant_id (text of 12 digits), session_id ("1", "2", ...), site, study, hospital, acquisition,
    field_tesla, external, age_years, sex (F|M), diagnosis (CN|MCI|AD), visit_years, and as truth acceleration_years,
    disease_severity, biological_age_years = age + acceleration + 8 severity.
    """
    if min(mci_rate, ad_rate) < 0 or mci_rate + ad_rate > 1 or visits < 1:
        raise ConfigError(
            f"mci_rate={mci_rate}, ad_rate={ad_rate}, visits={visits}: expected rates of sum 1 at most, 1 visit or more"
        )
    rows = []
    for site in sites:
        for number in range(site.people):
            draw = stream(seed, "people", site.name, number)
            age = _age(site, draw)
            who = {
                "participant_id": str(draw.integers(10**11, 10**12)),
                "site": site.name,
                "study": site.study,
                "hospital": site.hospital,
                "acquisition": site.acquisition,
                "field_tesla": site.field_tesla,
                "external": site.external,
                "sex": "M" if draw.random() < 0.5 else "F",
            }
            acceleration = acceleration_sd_years * draw.standard_normal()
            onset = _severity_at_entry(draw, mci_rate, ad_rate)
            for visit in range(visits):
                rows.append(who | _visit(age, acceleration, onset, visit, visit * visit_gap_years))
    people = pd.DataFrame(rows)
    if people.drop_duplicates(["participant_id", "site"])["participant_id"].duplicated().any():
        raise ConfigError(f"seed={seed}: two people drew the same identifier; take another seed")
    return people


def scans(people: pd.DataFrame) -> list[Scan]:
    """The rows of `simulate_people` as the simulator wants them, in the same order."""
    return [Scan(*row) for row in people[list(Scan._fields)].itertuples(index=False)]


def _visit(age: float, acceleration: float, onset: float, visit: int, years: float) -> dict[str, object]:
    severity = min(onset + SEVERITY_A_YEAR * years, 1.0) if onset > 0 else 0.0
    return {
        "session_id": str(visit + 1),
        "visit_years": years,
        "age_years": age + years,
        "diagnosis": "CN" if severity == 0 else "MCI" if severity < SEVERITY_OF_AD else "AD",
        "acceleration_years": acceleration,
        "disease_severity": severity,
        "biological_age_years": max(age + years + acceleration, 1.0) + DISEASE_YEARS * severity,
    }


def _severity_at_entry(draw: np.random.Generator, mci_rate: float, ad_rate: float) -> float:
    group, within = draw.random(), draw.random()
    if group < ad_rate:
        return SEVERITY_OF_AD + 0.3 * within
    return 0.3 + 0.34 * within if group < ad_rate + mci_rate else 0.0


def _age(site: Site, draw: np.random.Generator) -> float:
    """Normal, redrawn until it lies in AGE_RANGE_YEARS; rounded to a hundredth, as tables are."""
    while True:
        age = draw.normal(site.mean_age_years, site.sd_age_years)
        if AGE_RANGE_YEARS[0] <= age <= AGE_RANGE_YEARS[1]:
            return round(float(age), 2)


def _sample_of(number: int) -> str:
    """Kind of the n-th site: a golden-ratio sequence, so that any first n sites have nearly the shares of _SAMPLES."""
    position = (0.8 + number * 0.6180339887498949) % 1.0
    for name, (share, _, _) in _SAMPLES.items():
        if position < share:
            return name
        position -= share
    return name


def _share_out(people: int, sites: int, draw: np.random.Generator) -> list[int]:
    """Unequal sizes that sum to `people`, each at least _MIN_SITE_PEOPLE where there are enough."""
    least = min(_MIN_SITE_PEOPLE, people // sites)
    weights = np.exp(0.5 * draw.standard_normal(sites))
    return (least + draw.multinomial(people - least * sites, weights / weights.sum())).tolist()
