"""Stable and progressive MCI: each rule on a person made for it, then any people against a plain-loop reading."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brainage.data.conversion import OUTCOMES, mci_outcome
from brainage.errors import ConfigError, DataError


def person(*visits, participant_id="a"):
    """Rows of one person: (month, diagnosis) each."""
    return pd.DataFrame(
        {
            "participant_id": participant_id,
            "visit_years": [month / 12 for month, _ in visits],
            "diagnosis": pd.array([label for _, label in visits], dtype="string"),
        }
    )


def at_baseline(*visits, months=36.0, **options):
    return mci_outcome(person(*visits), months, **options).iloc[0]


def test_conversion_within_the_window_is_progressive():
    assert at_baseline((0, "MCI"), (24, "AD")) == "progressive"
    assert at_baseline((0, "MCI"), (36, "AD")) == "progressive"


def test_conversion_beyond_the_window_is_stable_within_it():
    assert at_baseline((0, "MCI"), (24, "MCI"), (48, "AD")) == "stable"
    assert at_baseline((0, "MCI"), (24, "MCI"), (48, "AD"), months=48) == "progressive"


def test_follow_up_that_ends_early_is_unknown_and_one_that_ends_with_the_window_is_stable():
    assert at_baseline((0, "MCI"), (30, "MCI")) == "unknown"
    assert at_baseline((0, "MCI"), (36, "MCI")) == "stable"


def test_a_visit_without_a_diagnosis_is_no_follow_up():
    assert at_baseline((0, "MCI"), (36, None)) == "unknown"


def test_a_reverter_did_not_progress():
    assert at_baseline((0, "MCI"), (12, "CN"), (36, "CN")) == "stable"
    assert at_baseline((0, "MCI"), (12, "CN"), (24, "AD")) == "progressive"
    assert at_baseline((0, "MCI"), (12, "CN")) == "unknown"


def test_only_later_visits_count():
    outcome = mci_outcome(person((0, "AD"), (12, "MCI"), (48, "MCI")), 36)
    assert outcome.tolist()[1] == "stable"


def test_slack_takes_late_and_early_visits_for_the_planned_one():
    assert at_baseline((0, "MCI"), (35.6, "MCI")) == "unknown"
    assert at_baseline((0, "MCI"), (35.6, "MCI"), slack_months=1) == "stable"
    assert at_baseline((0, "MCI"), (36.4, "AD")) == "stable"
    assert at_baseline((0, "MCI"), (36.4, "AD"), slack_months=1) == "progressive"


def test_only_visits_with_mci_have_an_outcome():
    outcome = mci_outcome(person((0, "CN"), (12, None), (24, "AD"), (36, "other")), 36)
    assert outcome.isna().all()


def test_an_mci_visit_without_a_time_is_unknown():
    table = person((0, "MCI"), (12, "AD"))
    table.loc[0, "visit_years"] = float("nan")
    assert mci_outcome(table, 36)[0] == "unknown"


def test_equal_ids_of_two_cohorts_are_two_people():
    table = pd.concat([person((0, "MCI")), person((12, "AD"))])
    table["cohort"] = ["x", "y"]
    assert mci_outcome(table, 36).iloc[0] == "unknown"
    assert mci_outcome(table.assign(cohort="x"), 36).iloc[0] == "progressive"


def test_the_index_of_the_table_is_kept_even_where_it_repeats():
    table = pd.concat([person((0, "MCI"), (12, "AD")), person((0, "MCI"), participant_id="b")])
    outcome = mci_outcome(table, 36)
    assert outcome.index.tolist() == table.index.tolist() == [0, 1, 0]
    assert outcome.dropna().tolist() == ["progressive", "unknown"]


def test_missing_columns_and_impossible_windows_are_refused():
    with pytest.raises(DataError, match="column 'visit_years' missing; found participant_id, diagnosis"):
        mci_outcome(person((0, "MCI")).drop(columns="visit_years"), 36)
    with pytest.raises(ConfigError, match="conversion window of 0 months"):
        mci_outcome(person((0, "MCI")), 0)


def by_hand(visits, months):
    """The outcome of each (month, diagnosis) of one person, by the definition."""
    outcomes = []
    for start, label in visits:
        later = [(month - start, other) for month, other in visits if month > start and other]
        if label != "MCI":
            outcomes.append(None)
        elif any(other == "AD" and gap <= months for gap, other in later):
            outcomes.append("progressive")
        else:
            outcomes.append("stable" if any(gap >= months for gap, _ in later) else "unknown")
    return outcomes


VISITS = st.lists(
    st.tuples(st.integers(0, 20), st.sampled_from(["CN", "MCI", "MCI", "AD", "other", None])),
    min_size=1, max_size=8, unique_by=lambda visit: visit[0],
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(people=st.lists(VISITS, min_size=1, max_size=4), window=st.integers(1, 10), seed=st.integers(0, 99))
def test_any_people_in_any_order_agree_with_the_definition(people, window, seed):
    halves = [[(6 * half, label) for half, label in visits] for visits in people]
    table = pd.concat(
        [person(*visits, participant_id=str(number)) for number, visits in enumerate(halves)], ignore_index=True
    )
    expected = [outcome for visits in halves for outcome in by_hand(visits, 6 * window)]
    shuffled = table.sample(frac=1, random_state=seed)
    found = mci_outcome(shuffled, 6 * window).sort_index()
    assert [None if pd.isna(value) else value for value in found] == expected
    assert set(found.dropna()) <= set(OUTCOMES)


@settings(max_examples=40, deadline=None)
@given(visits=VISITS, window=st.integers(1, 8))
def test_a_wider_window_never_turns_progressive_into_anything_else(visits, window):
    table = person(*[(6 * half, label) for half, label in visits])
    narrow, wide = mci_outcome(table, 6 * window), mci_outcome(table, 6 * window + 6)
    assert (wide[narrow == "progressive"] == "progressive").all()
    assert not (wide[narrow == "unknown"] == "stable").any()
