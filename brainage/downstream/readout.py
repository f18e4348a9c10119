"""What one network says of the scans of a cohort: the one thing that the downstream tasks start from.

n scans, D features. A readout holds an age for every scan that is to be judged, and every age in it is honest: the age
model was fitted on other people. Tasks read readouts and tables, never images and never a network.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from brainage.data.table import KEY, person_keys, scan_keys
from brainage.downstream.probes import people
from brainage.errors import DataError, LeakageError

READOUT_COLUMNS = [*KEY, "split", "site", "age_years", "sex", "diagnosis", "visit_years"]
NOBODY_DIAGNOSED = "no scan of this cohort has a diagnosis: everybody counts as healthy"


@dataclass(frozen=True)
class Readout:
    """One row a scan, all arrays in the order of `table`."""

    label: str  # the model, as in results' `run`
    seed: int
    cohort: str
    table: pd.DataFrame  # n rows: READOUT_COLUMNS and whatever else the cohort knows (mci_outcome, tiv_ml, mmse, ...)
    features: np.ndarray  # float32 [n, D]
    predicted_age_years: np.ndarray  # float64 [n]; NaN where there is no honest one
    correct: np.ndarray  # bool [n]: healthy people with honest ages, whom a bias correction may be fitted on
    score: np.ndarray  # bool [n]: who is judged
    note: str = ""  # how the ages came about, for the notes of results

    def __post_init__(self) -> None:
        name, n = f"readout of {self.label!r} (seed {self.seed})", len(self.table)
        for field in ("features", "predicted_age_years", "correct", "score"):
            if len(getattr(self, field)) != n:
                raise DataError(f"{name}: expected {n} rows of {field}, found {len(getattr(self, field))}")
        keys = scan_keys(self.table)
        if keys.duplicated().any():
            raise DataError(f"{name}: scan {keys[keys.duplicated()].iloc[0]} is there more than once")
        lost = self.score & ~np.isfinite(self.predicted_age_years)
        if lost.any():
            raise DataError(f"{name}: {int(lost.sum())} scored scans have no predicted age, first {keys[lost].iloc[0]}")
        if (self.correct & ~np.isfinite(self.predicted_age_years)).any():
            raise DataError(f"{name}: people of the bias correction without a predicted age")

    @property
    def persons(self) -> np.ndarray:
        """[n] text: the person behind each scan."""
        return people(self.table)

    @property
    def gap_years(self) -> np.ndarray:
        """[n] predicted minus chronological age, uncorrected."""
        return self.predicted_age_years - self.table["age_years"].to_numpy(dtype=np.float64)

    @property
    def split(self) -> str:
        """The splits that are scored, as results name them (`test_internal+test_external`)."""
        present = set(self.table.loc[self.score, "split"])
        return "+".join(name for name in ("test_internal", "test_external") if name in present) or "test_external"


def healthy(table: pd.DataFrame) -> np.ndarray:
    """bool [n]: scans of people whose every known diagnosis in `table` is CN.

    Where nobody has any diagnosis everybody counts as healthy (say so: NOBODY_DIAGNOSED); where some have, a person
    without one does not.
    """
    if "diagnosis" not in table:
        raise DataError("table without a column `diagnosis`: expected one, empty where nothing is known")
    diagnosis = table["diagnosis"]
    if diagnosis.isna().all():
        return np.ones(len(table), dtype=bool)
    persons = person_keys(table)
    sick = persons.isin(persons[diagnosis.notna() & (diagnosis != "CN")])
    return (persons.isin(persons[diagnosis == "CN"]) & ~sick).to_numpy(dtype=bool)


def refuse_same_people(fitted: pd.DataFrame, judged: pd.DataFrame, what: str) -> None:
    """Raise LeakageError naming a person who is in both tables."""
    both = person_keys(judged)[person_keys(judged).isin(person_keys(fitted))]
    if len(both):
        raise LeakageError(
            f"{what}: {both.nunique()} people are fitted on and judged too, first {both.iloc[0]}; fit on other people, "
            "or cross-fit"
        )
