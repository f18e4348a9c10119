"""The brain-age gap: raw and corrected, by group, adjusted between groups, and scanned twice.

n scans, R resamples. The gap is predicted minus chronological age in years. Raw and corrected always stand side by
side: a corrected age holds the chronological one, so that its accuracy alone says little of the model. Tables of groups
count every person once, by the first scored scan that has a diagnosis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig
from brainage.data.table import person_keys
from brainage.downstream.gap_contrasts import contrast_rows
from brainage.downstream.gap_resamples import METRICS, GapResamples
from brainage.downstream.probes import people
from brainage.downstream.readout import NOBODY_DIAGNOSED, READOUT_COLUMNS, Readout, healthy
from brainage.downstream.results import FEWEST_PEOPLE, missing_row, result_row, results_frame, too_few_row
from brainage.downstream.task import TaskResult, not_computed
from brainage.errors import DataError
from brainage.statistics.agreement import agreement
from brainage.statistics.bias import CORRECTIONS, Scans
from brainage.statistics.cross_fit import CrossFit, cross_fit
from brainage.statistics.refit import Refits

NAMES = ("none", *CORRECTIONS)  # of corrections, as in config.correction
GAPS = [f"gap_{name}_years" for name in NAMES]
GAP_COLUMNS = [
    *READOUT_COLUMNS, "mci_outcome", "healthy", "model", "seed", "predicted_age_years", *GAPS, "corrected_by",
]  # fmt: skip
EVERYBODY = "everybody"  # the group of a cohort in which nobody has a diagnosis
REPEAT_YEARS = 90 / 365.25  # scans of a person closer than this are repeats of one measurement
INFLATED = (
    "a corrected age holds chronological age: its accuracy alone is inflated (Butler 2021; de Lange 2022), see "
    "correction=none"
)
_LEAST_SPREAD_YEARS = 1e-6


class _Gaps(NamedTuple):
    """For each correction there is either a note and the whole fit, or the reason why it was refused."""

    frame: pd.DataFrame  # GAP_COLUMNS
    notes: dict[str, str]
    refusals: dict[str, str]
    fitted: dict[str, CrossFit]


def evaluate_gap(readout: Readout, *, config: EvaluateConfig, seed: int) -> TaskResult:
    """Tasks gap, gap_contrast and gap_repeat, and the frame `gaps` of GAP_COLUMNS, one row a scored scan.

    `seed` deals the people of a cross-fit into folds and draws the resamples. Intervals: of a group's numbers by
    bootstrap of its people with the corrections refitted (`GapResamples`), of contrasts by t (`adjusted_contrast`), of
    repeats by F and chi square (`agreement`). A correction that cannot be fitted has NaN in the frame and rows that say
    why; the raw gap does not need one. Raises DataError when people whom the corrections are to be fitted on are not
    healthy.
    """
    ill = readout.correct & ~healthy(readout.table)
    if ill.any():
        raise DataError(
            f"bias correction of {readout.label!r}: {len(np.unique(readout.persons[ill]))} people to fit on are not "
            f"healthy, first {readout.persons[ill][0]}; it is fitted on people whose every diagnosis is CN"
        )
    where = (readout.label, readout.cohort, readout.split)
    if not readout.score.any():
        return not_computed(*where, "gap", "mean_years", "no scan is scored")
    if np.ptp(readout.predicted_age_years[readout.score]) < _LEAST_SPREAD_YEARS and readout.score.sum() > 1:
        reason = "every scored scan is predicted the same age: the gap would be age with its sign changed"
        return not_computed(*where, "gap", "mean_years", reason)
    gaps, notes, refusals, fitted = _gaps(readout, seed)
    correct = Scans.of(readout.table[readout.correct])
    fits = {name: Refits(fit, correct, readout.predicted_age_years[readout.correct]) for name, fit in fitted.items()}
    resamples = GapResamples(fits, config.bootstrap, seed)
    first, left_out = first_scans(gaps)
    groups = groups_of(first)
    if EVERYBODY in groups:
        reason = f"no groups: {NOBODY_DIAGNOSED}"
        contrasts: Iterable[dict[str, Any]] = [missing_row(*where, "gap_contrast", "difference_years", reason)]
    else:
        contrasts = contrast_rows(where, first, groups, NAMES, refusals, {k: fit.whole for k, fit in fitted.items()})
    rows = [
        *_group_rows(where, first, groups, notes, refusals, left_out, resamples),
        *contrasts,
        *_repeat_rows(where, gaps, refusals),
    ]
    return TaskResult(results_frame(rows), {"gaps": gaps})


def groups_of(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Group -> bool [n] of the rows of `table`, groups with somebody in them only: CN, MCI, AD by the diagnosis of the
    visit, sMCI and pMCI by the outcome of MCI (MCI of unknown outcome is in neither), or EVERYBODY.
    """
    diagnosis = table["diagnosis"].fillna("").to_numpy(dtype=str)
    if len(table) and not (diagnosis != "").any():
        return {EVERYBODY: np.ones(len(table), dtype=bool)}
    outcome = table["mci_outcome"].fillna("").to_numpy(dtype=str)
    groups = {name: diagnosis == name for name in ("CN", "MCI", "AD")}
    groups |= {"sMCI": groups["MCI"] & (outcome == "stable"), "pMCI": groups["MCI"] & (outcome == "progressive")}
    return {name: rows for name, rows in groups.items() if rows.any()}


def first_scans(gaps: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """(one row a person, the phrase on who was left out): the first scan in time that has a diagnosis of a group."""
    everybody = gaps["diagnosis"].isna().all() and gaps["healthy"].all()  # nobody of the whole cohort has a diagnosis
    known = gaps["diagnosis"].isin(["CN", "MCI", "AD"]) | everybody
    first = _in_time(gaps[known])
    first = first[~person_keys(first).duplicated()].reset_index(drop=True)
    lost = person_keys(gaps).nunique() - len(first)
    return first, f"{lost} people without a diagnosis of CN, MCI or AD left out" if lost else ""


def _gaps(readout: Readout, seed: int) -> _Gaps:
    table, score = readout.table, readout.score
    frame = table.reindex(columns=[*READOUT_COLUMNS, "mci_outcome"])
    frame["mci_outcome"] = frame["mci_outcome"].astype("string")
    frame = frame.assign(
        healthy=healthy(table), model=readout.label, seed=readout.seed,
        predicted_age_years=readout.predicted_age_years, gap_none_years=readout.gap_years, corrected_by=-1,
    )  # fmt: skip
    scans = Scans.of(table)
    notes: dict[str, str] = {"none": ""}
    refusals: dict[str, str] = {}
    fitted: dict[str, CrossFit] = {}
    for name, kind in CORRECTIONS.items():
        frame[f"gap_{name}_years"] = np.nan
        try:
            found = cross_fit(kind(), scans, readout.predicted_age_years, readout.correct, score, seed=seed)
        except DataError as error:
            refusals[name] = str(error)
            continue
        frame[f"gap_{name}_years"], frame["corrected_by"], notes[name] = found.gap_years, found.fold, found.note
        fitted[name] = found
    frame = frame.astype({"model": "string", "seed": "int64", "corrected_by": "int64"})
    notes = {name: "; ".join(filter(None, (note, readout.note))) for name, note in notes.items()}
    return _Gaps(frame.loc[score, GAP_COLUMNS].reset_index(drop=True), notes, refusals, fitted)


def _group_rows(
    where: tuple[str, str, str],
    first: pd.DataFrame,
    groups: dict[str, np.ndarray],
    notes: dict[str, str],
    refusals: dict[str, str],
    left_out: str,
    resamples: GapResamples,
) -> Iterator[dict[str, Any]]:
    if not groups:
        yield missing_row(*where, "gap", "mean_years", "no scored scan has a diagnosis of CN, MCI or AD")
    for group, rows in groups.items():
        part = first[rows]
        ages = f"{len(part)} people, first scan each; ages {part['age_years'].min():.0f}-{part['age_years'].max():.0f}"
        changed = int((~part["healthy"]).sum()) if group == "CN" else 0
        extent = (
            f"{ages} years",
            NOBODY_DIAGNOSED if group == EVERYBODY else left_out,
            f"{changed} of them have another diagnosis at other visits" if changed else "",
        )
        found = resamples.intervals(part) if len(part) >= FEWEST_PEOPLE else {}
        for name in NAMES:
            parts = (f"group={group}", f"correction={name}")
            for metric in METRICS:
                if name in refusals:
                    yield missing_row(*where, "gap", metric, refusals[name], *parts)
                elif len(part) < FEWEST_PEOPLE:
                    yield too_few_row(*where, "gap", metric, len(part), "; ".join(parts))
                else:
                    warning = INFLATED if metric == "mae_years" and name != "none" else ""
                    value = found[name][metric]
                    undefined = "not computed: needs people of different ages" if np.isnan(value.estimate) else ""
                    phrases = (*parts, *extent, warning, undefined, resamples.note(name, value), notes[name])
                    yield result_row(*where, "gap", metric, value, len(part), *phrases)


def _repeat_rows(where: tuple[str, str, str], gaps: pd.DataFrame, refusals: dict[str, str]) -> Iterator[dict[str, Any]]:
    first, second = _repeats(gaps)
    if len(first) < FEWEST_PEOPLE:
        reason = f"{len(first)} people were scanned twice within 90 days, fewer than {FEWEST_PEOPLE}"
        yield missing_row(*where, "gap_repeat", "icc", reason)
        return
    for name in NAMES:
        part, column = f"correction={name}", f"gap_{name}_years"
        if name in refusals:
            yield missing_row(*where, "gap_repeat", "icc", refusals[name], part)
            continue
        try:
            found = agreement(np.column_stack([first[column], second[column]]))
        except DataError as error:
            yield missing_row(*where, "gap_repeat", "icc", str(error), part)
            continue
        oneway = found.icc_oneway
        way = "ICC(A,1), McGraw and Wong 1996, two scans of a person within 90 days"
        order = f"ICC(1,1) {oneway.estimate:.3f} ({oneway.low:.3f} to {oneway.high:.3f})"
        yield result_row(*where, "gap_repeat", "icc", found.icc_agreement, len(first), part, way, order)
        about = "sd of one scan about the person's mean, interval by chi square"
        yield result_row(*where, "gap_repeat", "sd_years", found.sd_within, len(first), part, about)


def _repeats(gaps: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The first two scans in a row of each person less than REPEAT_YEARS apart.

    Where a year is unknown: of one session, which must be known unless the years of both are unknown.
    """
    ordered = _in_time(gaps)
    persons, session = people(ordered), ordered["session_id"].fillna("").to_numpy(dtype=str)
    years = ordered["visit_years"].to_numpy(dtype=np.float64)
    apart, undated = np.abs(years[1:] - years[:-1]), np.isnan(years)
    neither = undated[1:] & undated[:-1]
    one_session = (session[1:] == session[:-1]) & ((session[1:] != "") | neither)
    pair = (persons[1:] == persons[:-1]) & ((apart < REPEAT_YEARS) | one_session)
    start = np.flatnonzero(pair)
    start = start[np.unique(persons[start], return_index=True)[1]]
    return ordered.iloc[start], ordered.iloc[start + 1]


def _in_time(gaps: pd.DataFrame) -> pd.DataFrame:
    """Scans sorted by person, then by time."""
    return gaps.sort_values(
        ["cohort", "participant_id", "visit_years", "age_years", "session_id", "run"], kind="stable"
    )
