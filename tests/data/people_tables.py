"""Random cohorts for the tests of splits: sites of any size, people with several scans, things unknown."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import PERSON, finish_table


def random_table(seed: int, people: int = 120, sites: int = 6, cohorts: int = 1, movers: float = 0.1) -> pd.DataFrame:
    """`movers`: share of people scanned a second time, years later, at any site of their cohort; ages follow sites."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(sites, 0.7))
    rows = []
    for person in range(people):
        cohort, site = f"c{rng.integers(cohorts)}", rng.choice(sites, p=weights)
        age = float(np.clip(rng.normal(20 + 8 * site, 9), 5, 95))
        sex = rng.choice(["F", "M", "NA"], p=[0.55, 0.4, 0.05])
        rows.append((cohort, f"p{person:04d}", "1", _site(rng, cohort, site), age, sex))
        if rng.random() < movers:
            rows.append((cohort, f"p{person:04d}", "2", _site(rng, cohort, rng.integers(sites)), age + 7, sex))
    names = ["cohort", "participant_id", "session_id", "site", "age_years", "sex"]
    raw = pd.DataFrame(rows, columns=names).assign(path=[str(number) for number in range(len(rows))])
    return finish_table(raw.sample(frac=1, random_state=seed), source="test").table


def _site(rng: np.random.Generator, cohort: str, site: int) -> str | None:
    return None if rng.random() < 0.04 else f"{cohort}:s{site}"


def firsts(table: pd.DataFrame) -> pd.DataFrame:
    """One row a person, of the youngest age: by another way than the library's."""
    youngest = table.loc[table.groupby(PERSON)["age_years"].idxmin()]
    return youngest.assign(sex=youngest["sex"].fillna("?"), site=youngest["site"].fillna("?"))


def drawn(table: pd.DataFrame, split: pd.DataFrame, *names: str) -> pd.Series:
    """bool of each person of `firsts`: in one of the named splits."""
    of = split.set_index(PERSON)["split"]
    return of.loc[pd.MultiIndex.from_frame(firsts(table)[PERSON])].isin(names).to_numpy()
