"""Scans of a BIDS dataset joined to the visits of its tables; every scan and visit that finds no other is listed."""

from __future__ import annotations

import pandas as pd

from data_modules.bids_people import KEYS, match_labels
from data_modules.bids_visits import natural


def with_table_ids(scans: pd.DataFrame, known: set[str]) -> pd.DataFrame:
    """`scans` with participant_id as the tables write it (NA: in no table) and `label` as its file names it."""
    labels = match_labels(set(scans["participant_id"]), known)
    return scans.assign(
        label=scans["participant_id"], participant_id=scans["participant_id"].map(labels).astype("string")
    )


def join_scans(scans: pd.DataFrame, visits: pd.DataFrame, *, one_run: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scans with the facts of their visit, and those left out together with the visits that have no scan.

    `scans`: participant_id, label, session_id, run, path, scan_reason; `visits` as `complete_visits` gives them.
    """
    scans = scans.assign(session_id=_sessions_as_written(scans, visits))
    rows = scans.merge(visits, on=KEYS, how="left", indicator="joined")
    reasons = rows["scan_reason"].fillna(_not_in_tables(rows, visits)).fillna(rows["reason"])
    if one_run:
        reasons = reasons.fillna(_second_runs(rows[reasons.isna()]))
    rows["participant_id"] = rows["participant_id"].fillna(rows["label"])
    left_out = rows.assign(reason=reasons)[reasons.notna()]
    return rows[reasons.isna()], pd.concat([left_out, _without_scan(visits, scans)], ignore_index=True)


def _sessions_as_written(scans: pd.DataFrame, visits: pd.DataFrame) -> pd.Series:
    """The session of each scan as the tables write it; as its file does where they have no such session.

    A scan whose name has no session is of the only visit of its person, where there is only one.
    """
    known: dict[str, set[str]] = {}
    for person, session in zip(visits["participant_id"], visits["session_id"], strict=True):
        known.setdefault(person, set()).add(session)
    seen: dict[str, set[str]] = {}
    named = scans["participant_id"].notna()
    for person, session in zip(scans.loc[named, "participant_id"], scans.loc[named, "session_id"], strict=True):
        seen.setdefault(person, set()).add(session)
    matches = {person: match_labels(sessions, known.get(person, ())) for person, sessions in seen.items()}
    for person, sessions in seen.items():
        if "" in sessions and len(known.get(person, ())) == 1:
            matches[person][""] = next(iter(known[person]))
    places = zip(scans["participant_id"].fillna(""), scans["session_id"], strict=True)
    written = [matches.get(person, {}).get(session, session) for person, session in places]
    return pd.Series(written, index=scans.index, dtype="string")


def _not_in_tables(rows: pd.DataFrame, visits: pd.DataFrame) -> pd.Series:
    reasons = pd.Series(pd.NA, index=rows.index, dtype="string")
    absent = rows["joined"] == "left_only"
    for row in rows.index[absent & rows["participant_id"].notna()]:
        theirs = visits.loc[visits["participant_id"] == rows.at[row, "participant_id"], "session_id"]
        known = ", ".join(sorted(theirs, key=natural))
        reasons[row] = f"session {rows.at[row, 'session_id']!r} is in no table; of this person they have {known}"
    return reasons.mask(rows["participant_id"].isna(), "no row in the table of people")


def _second_runs(rows: pd.DataFrame) -> pd.Series:
    """A reason for each scan but the first of its session, by the number of its run and then by its path."""
    order = sorted(rows.index, key=lambda row: (natural(rows.at[row, "run"]), natural(rows.at[row, "path"])))
    reasons = pd.Series("not the first scan of its session (data.options.one_run)", index=rows.index, dtype="string")
    return reasons.where(rows.loc[order].duplicated(KEYS).reindex(rows.index))


def _without_scan(visits: pd.DataFrame, scans: pd.DataFrame) -> pd.DataFrame:
    """Visits without a scan, of people who have others; people without any are `without_scan` of the reader."""
    scanned = set(zip(scans["participant_id"], scans["session_id"], strict=True))
    keys = zip(visits["participant_id"], visits["session_id"], strict=True)
    absent = pd.Series([key not in scanned for key in keys], index=visits.index, dtype=bool)
    lacking = visits[absent & visits["participant_id"].isin(scans["participant_id"])]
    return lacking[KEYS].assign(reason=lacking["reason"].fillna("in the tables, but there is no scan of this session"))
