"""Readouts: honest ages beside features and tables, and who is healthy."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from brainage.downstream.readout import READOUT_COLUMNS, Readout, healthy, refuse_same_people
from brainage.errors import DataError, LeakageError


def people_of(diagnosis: list[str | None], persons: list[str]) -> pd.DataFrame:
    n = len(persons)
    return pd.DataFrame(
        {
            "cohort": "c", "participant_id": persons, "session_id": [str(i) for i in range(n)], "run": "1",
            "split": "test_external", "site": "s", "age_years": np.linspace(60, 80, n), "sex": "F",
            "diagnosis": pd.array(diagnosis, dtype="string"), "visit_years": 0.0,
        }
    )[READOUT_COLUMNS]  # fmt: skip


def readout(table: pd.DataFrame) -> Readout:
    n = len(table)
    ages = table["age_years"].to_numpy() + 1
    return Readout("exp", 0, "c", table, np.zeros((n, 2), np.float32), ages, healthy(table), np.ones(n, dtype=bool))


def test_a_person_who_falls_ill_later_is_not_healthy_at_the_first_visit():
    table = people_of(["CN", "MCI", "CN", "CN", None], ["a", "a", "b", "b", "b"])
    assert healthy(table).tolist() == [False, False, True, True, True]


def test_without_a_diagnosis_somebody_is_not_healthy_where_others_have_one():
    assert healthy(people_of([None, "CN"], ["a", "b"])).tolist() == [False, True]
    assert healthy(people_of([None, None], ["a", "b"])).tolist() == [True, True]


def test_a_scored_scan_without_an_age_and_a_scan_that_is_there_twice_are_refused():
    good = readout(people_of(["CN", "AD"], ["a", "b"]))
    assert good.gap_years.tolist() == [1.0, 1.0]
    with pytest.raises(DataError, match="1 scored scans have no predicted age, first c/b"):
        dataclasses.replace(good, predicted_age_years=np.array([1.0, np.nan]))
    with pytest.raises(DataError, match="more than once"):
        dataclasses.replace(good, table=good.table.assign(participant_id="a", session_id="1"))
    with pytest.raises(DataError, match="expected 2 rows of features, found 1"):
        dataclasses.replace(good, features=good.features[:1])


def test_people_who_are_fitted_on_and_judged_are_named():
    table = people_of(["CN", "AD", "CN"], ["a", "b", "c"])
    refuse_same_people(table[:1], table[1:], "bias correction")
    with pytest.raises(LeakageError, match=r"bias correction: 1 people .* first c/b"):
        refuse_same_people(table[:2], table[1:], "bias correction")
