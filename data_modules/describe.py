"""A data module in the lines of a plan: what there is, who is in which split, what is left out, where it is stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from brainage.data.reasons import count_kinds
from brainage.data.table import SPLITS, person_keys

if TYPE_CHECKING:
    from data_modules.cohort import CohortDataModule


def describe(data: CohortDataModule) -> dict[str, str]:
    """Label -> line, before any scan is read."""
    table = data.planned()
    cohorts = [f"{member.label} {member.config.modality} at {member.reader.root}" for member in data.members]
    lines = {"cohort": cohorts[0] if len(cohorts) == 1 else f"{data.config.cohort} of " + "; ".join(cohorts)}
    for split in SPLITS:
        part = table[table["split"] == split]
        if len(part):
            lines[split] = _people(part) + (_by_cohort(part) if len(cohorts) > 1 else "")
    if data.overlaps:
        lines |= data.overlaps.lines(data.split)
    dropped = data.listed.dropped
    if len(dropped):
        kinds = count_kinds(dropped["reason"])
        shown = "; ".join(f"{kind} ({count})" for kind, count in kinds[:3])
        lines["dropped"] = f"{len(dropped)}: {shown}" + ("; ..." if len(kinds) > 3 else "")
    lines |= _excluded(data)
    absent = [person for member in data.members for person in member.reader.without_scan()]
    if absent:
        named = ", ".join(absent[:3]) + (", ..." if len(absent) > 3 else "")
        modalities = " or ".join(dict.fromkeys(member.config.modality for member in data.members))
        lines["absent"] = f"{len(absent)} people of the cohort's tables have no {modalities} here: {named}"
    notes = [note for member in data.members for note in member.reader.notes()]
    if notes:
        lines["note"] = "; ".join(notes)
    lines["sample"] = f"{tuple(data.contract.shape)} {data.contract.dtype}, {data.contract.modality}"
    lines["store"] = _stores(data)
    return lines


def _excluded(data: CohortDataModule) -> dict[str, str]:
    if not data.rules:
        return {}
    waiting = [str(rule) for rule in data.rules if rule.column not in data.listed.table]
    told = f"{data.excluded_by_table()} scans by data.exclude"
    return {"excluded": told + (f"; after preparation also by {', '.join(waiting)}" if waiting else "")}


def _people(part: pd.DataFrame) -> str:
    ages = part["age_years"]
    people, sites = person_keys(part).nunique(), part["site"].nunique()
    return (
        f"{len(part)} scans of {people} people at {sites} site{'s' * (sites != 1)}, "
        f"ages {ages.min():.1f}-{ages.max():.1f}"
    )


def _by_cohort(part: pd.DataFrame) -> str:
    scans = part["cohort"].value_counts(sort=False)
    return f" ({', '.join(f'{name} {count}' for name, count in scans.items())})"


def _stores(data: CohortDataModule) -> str:
    paths = [(path, "prepared" if path.is_dir() else "to be prepared") for path in data.member_paths()]
    size = f"{data.bytes_needed() / 2**30:.2f} GiB"
    if len(paths) == 1:
        return f"{paths[0][0]} ({size}, {paths[0][1]})"
    return f"{size}: " + "; ".join(f"{path} ({state})" for path, state in paths)
