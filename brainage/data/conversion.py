"""Which people with mild cognitive impairment go on to Alzheimer's disease within a window, with censoring."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import PERSON
from brainage.errors import ConfigError, DataError

OUTCOMES = ("stable", "progressive", "unknown")
_ROUNDING_MONTHS = 1e-6


def mci_outcome(table: pd.DataFrame, months: float = 36.0, *, slack_months: float = 0.0) -> pd.Series:
    """`stable`, `progressive` or `unknown` for each row whose diagnosis is MCI, NA for the others.

    `table` has participant_id, visit_years, diagnosis and, where several cohorts meet, cohort: one row a clinical
    visit. Give it every visit, not only those with a scan: the follow-up is what decides. The rows' own order and index
    do not matter. For an MCI visit at time t, in months, with t' the times of that person's later visits:

    - progressive: AD at some t' <= t + months + slack_months;
    - else stable: a diagnosis of any kind at some t' >= t + months - slack_months. AD beyond the window is stable
      within it, and so is a return to CN (a reverter did not progress);
    - else unknown: the follow-up ends before the window does. So is an MCI visit without a time.

    A visit without a diagnosis is no follow-up. Only later visits count: an MCI visit after one with AD is judged by
    what follows it. `slack_months` is for cohorts with exact dates, where the visit of month 36 may fall on month 35.6
    or 36.4; planned months need none. Raises DataError naming a missing column, ConfigError on a window of 0 or less.

    >>> visits = pd.DataFrame({"participant_id": list("aabb"), "visit_years": [0.0, 2.0, 0.0, 2.0],
    ...                        "diagnosis": ["MCI", "AD", "MCI", "MCI"]})
    >>> mci_outcome(visits, 36).tolist(), mci_outcome(visits, 24).tolist()
    (['progressive', <NA>, 'unknown', 'unknown'], ['progressive', <NA>, 'stable', 'unknown'])
    """
    if not months > 0 or slack_months < 0:
        raise ConfigError(
            f"conversion window of {months} months, slack of {slack_months}: expected above 0, and 0 or more"
        )
    for name in ("participant_id", "visit_years", "diagnosis"):
        if name not in table:
            raise DataError(f"conversion of MCI: column {name!r} missing; found {', '.join(map(str, table.columns))}")
    visits = table.reset_index(drop=True)
    outcome = pd.Series(pd.NA, index=visits.index, dtype="string")
    outcome[(visits["diagnosis"] == "MCI").fillna(False).to_numpy(dtype=bool)] = "unknown"
    known = visits[visits["diagnosis"].notna() & visits["visit_years"].notna()]
    window, slack = float(months), slack_months + _ROUNDING_MONTHS
    for _, person in known.groupby([name for name in PERSON if name in known], sort=False):
        time = 12.0 * person["visit_years"].to_numpy(dtype="float64")
        label = person["diagnosis"].to_numpy(dtype=object)
        converted = time[label == "AD"]
        for row in np.flatnonzero(label == "MCI"):
            since = converted[converted > time[row]] - time[row]
            if (since <= window + slack).any():
                outcome[person.index[row]] = "progressive"
            elif time.max() - time[row] >= window - slack:
                outcome[person.index[row]] = "stable"
    return outcome.set_axis(table.index)
