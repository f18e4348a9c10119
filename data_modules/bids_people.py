"""The tables of a BIDS dataset as people and visits: participants.tsv (long or wide), sessions.tsv, participants.json.

What is said of a visit wins over what is said of the person. Ages are completed, and images joined, by `bids_visits`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from brainage.config import nearest
from brainage.errors import DataError
from data_modules.bids_options import Options
from data_modules.sheet_dates import NO_YEAR, dates
from data_modules.sheets import MISSING, columns, numbers, read_sheet, refuse_months, sexes, years

SPELLINGS = {
    "participant_id": ("participant_id", "subject_id", "participant", "subject", "mrid", "ptid", "id"),
    "session_id": ("session_id",),
    "age_years": ("age", "age_years", "age_at_scan", "age_at_mri", "scan_age"),
    "sex": ("sex", "gender"),
    "site": ("site", "site_id", "institution", "centre", "center", "scanner"),
    "diagnosis": ("diagnosis", "dx"),
    "acq_time": ("acq_time",),
    "visit_years": ("visit_years",),
    "mmse": ("mmse",),
    "cdr": ("cdr",),
    "apoe4": ("apoe4",),
    "education_years": ("education_years",),
    "scanner": ("scanner",),
    "manufacturer": ("manufacturer",),
    "field_tesla": ("field_tesla", "magnetic_field_strength", "MagneticFieldStrength"),
}
SEX_NOT_KNOWN = ("o", "other", "u", "unknown", "x", "not reported")
DIAGNOSES = {
    "cn": "CN", "hc": "CN", "nc": "CN", "control": "CN", "controls": "CN", "healthy": "CN", "healthy control": "CN",
    "healthy controls": "CN", "normal": "CN", "cognitively normal": "CN", "mci": "MCI", "emci": "MCI", "lmci": "MCI",
    "mild cognitive impairment": "MCI", "ad": "AD", "alzheimer": "AD", "alzheimer's disease": "AD",
    "alzheimers disease": "AD", "alzheimer disease": "AD", "other": "other",
}  # fmt: skip
KEYS = ["participant_id", "session_id"]
_PREFIX = {"participant_id": re.compile(r"^sub-", re.IGNORECASE), "session_id": re.compile(r"^ses-", re.IGNORECASE)}
FACTS = {
    **dict.fromkeys(KEYS, "string"), "age_years": "float64", "age_reason": "string", "sex": "string",
    "diagnosis": "string", "acq_time": "string", "visit_years": "string", "source": "string", "reason": "string",
}  # fmt: skip
_UNITS = {"years": 1.0, "months": 12.0, "weeks": 365.25 / 7, "days": 365.25}
_WORDS = {"y": "years", "yr": "years", "yrs": "years", "year": "years", "mo": "months", "mos": "months",
          "mth": "months", "month": "months", "wk": "weeks", "wks": "weeks", "week": "weeks", "d": "days",
          "day": "days", "a": "years"} | {unit: unit for unit in _UNITS}  # fmt: skip
_IN_UNITS = (
    re.compile(  # of a Description: "age in months", "age (weeks)", "days of age"; not "age on the day of the scan"
        r"\bin\s+(?:(?:completed?|whole|full|decimal|rounded)\s+)?(years|months|weeks|days)\b"
        r"|[(\[](years?|months?|weeks?|days?)[)\]]|\b(years|months|weeks|days)\s+(?:of age|old)\b",
        re.IGNORECASE,
    )
)


class Tables(NamedTuple):
    """What the tables say; in `people` session_id is NA.

    Both frames: KEYS, age_years, age_reason (why an age is none), sex, diagnosis, acq_time, visit_years, source
    (`file#row`), reason (why the row cannot be used), and where a table has it site and extra columns, text as written.
    """

    people: pd.DataFrame  # one row a person, where a table has rows of people
    visits: pd.DataFrame  # one row a visit that a table names; not every person has one
    left_out: pd.DataFrame  # KEYS and reason: rows that repeat others or name nobody
    has_site: bool


def read_tables(root: Path, options: Options) -> Tables:
    """Everything the tables say; DataError where there is no participants file, or a mapped column is nowhere."""
    file = root / options.participants_file
    if not file.is_file():
        raise DataError(
            f"{file}: not found; name the table of people with data.options.participants_file (that of a derivative is "
            "often ../../participants.tsv)"
        )
    sheet = read_sheet(file)
    reading = _Reading(root, options, {**_sidecar(root / "sessions.json"), **_sidecar(file.with_suffix(".json"))})
    rows = reading.facts(sheet, file)
    waves = [reading.wave(sheet, file, name, mapping) for name, mapping in options.sessions.items()]
    visits = pd.concat([*reading.sessions(), *waves, rows[rows["session_id"].notna()]], ignore_index=True)
    reading.refuse_unused()
    people = rows[rows["session_id"].isna()].reset_index(drop=True)
    labels = match_labels(set(visits["participant_id"]), set(people["participant_id"]))
    visits["participant_id"] = visits["participant_id"].replace(labels)
    visits = visits.groupby(KEYS, as_index=False).first()
    return Tables(people, visits, pd.concat(reading.left_out), reading.has_site)


def match_labels(found: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """How labels of file names are written in a table: as they are, else in other letter case, else without zeros.

    Only where exactly one on each side is meant; labels that cannot be matched are left out.

    >>> match_labels(["01", "A2", "a3", "A3"], ["1", "a2", "A3"])
    {'A3': 'A3', 'A2': 'a2', '01': '1'}
    """
    free, missing = set(known), set(found)
    matches: dict[str, str] = {}
    alike: tuple[Callable[[str], str], ...] = (str, str.casefold, lambda label: label.casefold().lstrip("0"))
    for plain in alike:
        theirs, ours = _by(plain, free), _by(plain, missing)
        pairs = {ours[key][0]: theirs[key][0] for key in ours if len(ours[key]) == len(theirs.get(key, ())) == 1}
        matches |= dict(sorted(pairs.items()))
        free, missing = free - set(pairs.values()), missing - set(pairs)
    return matches


def _by(plain: Callable[[str], str], labels: set[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(plain(label), []).append(label)
    return groups


class _Reading:
    """Turns sheets into facts, and remembers what was seen on the way."""

    def __init__(self, root: Path, options: Options, described: dict[str, Any]) -> None:
        self.root, self.options, self.described = root, options, described
        self.seen: set[str] = set()  # columns of all sheets
        self.left_out = [pd.DataFrame(columns=[*KEYS, "reason"], dtype="string")]
        self.has_site = False

    def facts(self, sheet: pd.DataFrame, file: Path, rows: pd.Series | None = None) -> pd.DataFrame:
        """One row a person or visit; `rows` says where each came from, where `file` is several."""
        chosen = {ours for ours, theirs in self.options.columns.items() if theirs in sheet}
        names = columns(sheet.columns, {ours: words for ours, words in SPELLINGS.items() if ours not in chosen}, file)
        names |= {ours: theirs for ours, theirs in self.options.columns.items() if theirs in sheet}
        if "participant_id" not in names:
            raise DataError(f"{file}: column 'participant_id' missing{nearest('participant_id', list(sheet.columns))}")
        self.seen |= set(sheet.columns)
        return self._one_row_each(self._canonical(sheet, names, file, rows))

    def wave(self, sheet: pd.DataFrame, file: Path, name: str, mapping: Mapping[str, str]) -> pd.DataFrame:
        """The visits of one wave of a wide table: people for whom any of its columns is filled."""
        for theirs in mapping.values():
            if theirs not in sheet:
                raise DataError(f"{file}: column {theirs!r} of wave {name!r} missing{nearest(theirs, list(sheet))}")
        names = columns(sheet.columns, {"participant_id": SPELLINGS["participant_id"]}, file)
        names |= {ours: theirs for ours, theirs in self.options.columns.items() if ours == "participant_id"}
        there = sheet[sheet[list(mapping.values())].notna().any(axis=1)].assign(wave=name)
        return self._one_row_each(self._canonical(there, {**names, **mapping, "session_id": "wave"}, file, None))

    def sessions(self) -> list[pd.DataFrame]:
        """The visits of every sessions.tsv; equal headers are read as one table, for there may be thousands."""
        groups: dict[tuple[str, ...], list[pd.DataFrame]] = {}
        for file, person in _session_files(self.root):
            sheet = read_sheet(file)
            columns(sheet.columns, SPELLINGS, file, required=("session_id",))
            source = file.relative_to(self.root).as_posix()
            sheet = sheet.assign(source=[f"{source}#{row}" for row in range(len(sheet))])
            groups.setdefault(tuple(sheet), []).append(sheet.assign(participant_id=person) if person else sheet)
        pattern = self.root / "sub-*_sessions.tsv"
        frames = [pd.concat(sheets, ignore_index=True) for sheets in groups.values()]
        return [self.facts(frame.drop(columns="source"), pattern, frame["source"]) for frame in frames]

    def refuse_unused(self) -> None:
        """DataError for a column of `data.options.columns` that no table has."""
        for ours, theirs in self.options.columns.items():
            if theirs not in self.seen:
                raise DataError(
                    f"{self.root}: column {theirs!r} (data.options.columns.{ours}) is in no table"
                    f"{nearest(theirs, sorted(self.seen))}"
                )

    def _canonical(
        self, sheet: pd.DataFrame, names: Mapping[str, str], file: Path, source: pd.Series | None
    ) -> pd.DataFrame:
        facts = pd.DataFrame({name: pd.Series(None, index=sheet.index, dtype=kind) for name, kind in FACTS.items()})
        for ours, theirs in names.items():
            facts[ours] = sheet[theirs].astype("string")
        self.has_site |= "site" in names
        for key, prefix in _PREFIX.items():
            facts[key] = facts[key].str.replace(prefix, "", regex=True).replace("", pd.NA)
        if "age_years" in names:
            facts["age_years"], facts["age_reason"] = self._ages(sheet[names["age_years"]], file)
        if "sex" in names:
            facts["sex"] = self._sexes(sheet[names["sex"]], file)
        if "diagnosis" in names:
            facts["diagnosis"], facts["diagnosis_detail"] = self._diagnoses(sheet[names["diagnosis"]], file)
        facts["acq_time"] = dates(facts["acq_time"], file, placeholders=NO_YEAR)
        facts["visit_years"] = numbers(facts["visit_years"])
        there = os.path.relpath(file, self.root).replace(os.sep, "/")
        rows = [f"{there}#{row}" for row in sheet.index]
        facts["source"] = pd.Series(rows, index=sheet.index, dtype="string") if source is None else source
        return facts

    def _ages(self, column: pd.Series, file: Path) -> tuple[pd.Series, pd.Series]:
        unit: str = self.options.age_unit or self._age_unit(column, file)
        ages, reasons = years(column)
        if unit == "years":
            refuse_months(ages, file)
        bare = numbers(column)  # where a cell names its own unit, it is converted already
        return (bare / _UNITS[unit]).fillna(ages), reasons

    def _age_unit(self, column: pd.Series, file: Path) -> str:
        """The unit that participants.json gives: of Units (or Unit), else the one that the Description names."""
        written = str(self._said_of(column, "Units") or self._said_of(column, "Unit")).strip()
        written = "" if written in MISSING else written
        named = [_WORDS[word] for word in re.findall(r"[a-z]+", written.lower()) if word in _WORDS and word != "a"]
        unit = _WORDS.get(written.lower()) or next(iter(named), "")
        if written and not unit:
            raise DataError(
                f"{file.with_suffix('.json')}: Units of {column.name!r} are {written!r}: expected years, months, weeks "
                "or days; name them with data.options.age_unit"
            )
        found = _IN_UNITS.findall(str(self._said_of(column, "Description")))
        said = {_WORDS[word.lower()] for words in found for word in words if word}
        if len(said) > 1 and not unit:
            raise DataError(
                f"{file.with_suffix('.json')}: the Description of {column.name!r} names {' and '.join(sorted(said))}: "
                "which is it? Name it with data.options.age_unit"
            )
        return unit or next(iter(said), "years")

    def _sexes(self, column: pd.Series, file: Path) -> pd.Series:
        codes = {code.lower(): sex for code, sex in self.options.sex_codes.items()}
        words = {"female": "F", "male": "M", "f": "F", "m": "M"}
        for code, word in self._levels(column).items():
            if word in words:
                codes.setdefault(code, words[word])
        text = column.astype("string").str.strip().str.lower().str.removesuffix(".0")
        unknown = {*SEX_NOT_KNOWN, *(code for code, sex in codes.items() if sex == "NA")} - {
            code for code, sex in codes.items() if sex != "NA"
        }
        return sexes(column.mask(text.isin(unknown)), file, {c: sex for c, sex in codes.items() if sex != "NA"})

    def _diagnoses(self, column: pd.Series, file: Path) -> tuple[pd.Series, pd.Series]:
        """Canonical code, and the dataset's own word. A word that is not known is `other`; a number is refused."""
        levels = {code: DIAGNOSES[word] for code, word in self._levels(column).items() if word in DIAGNOSES}
        codes = {word.lower(): code for word, code in self.options.diagnosis_codes.items()}
        text = column.astype("string").str.strip().str.lower().str.removesuffix(".0")
        found = text.map({**DIAGNOSES, **levels, **codes}).astype("string")
        for row in text.index[text.notna() & found.isna() & numbers(text).notna()]:
            raise DataError(
                f"{file}: row {row + 1}: diagnosis {column[row]!r}: a number says nothing; name what it means with "
                f"data.options.diagnosis_codes: {{'{text[row]}': CN}}"
            )
        return found.fillna("other").where(text.notna()).replace("NA", pd.NA), column

    def _said_of(self, column: pd.Series, what: str) -> Any:
        described = self.described.get(str(column.name))
        return described.get(what, "") if isinstance(described, dict) else ""

    def _levels(self, column: pd.Series) -> dict[str, str]:
        """Code -> word, both in lower case, as participants.json describes them."""
        levels = self._said_of(column, "Levels")
        return {str(c).lower(): str(w).strip().lower() for c, w in levels.items()} if isinstance(levels, dict) else {}

    def _one_row_each(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Rows that name somebody, each once; the others go to `left_out`."""
        nobody = rows["participant_id"].isna()
        self._leave_out(rows[nobody], rows["source"] + ": row without a participant")
        rows = rows[~nobody]
        said = rows.drop(columns="source")
        again = said.duplicated()
        self._leave_out(rows[again], rows["source"] + ": repeated row, its first one is kept")
        rows = rows[~again].copy()
        differing = rows.duplicated(KEYS, keep=False)
        for _, group in rows[differing].groupby(KEYS, dropna=False):
            rows.loc[group.index, "reason"] = f"rows of the tables disagree: {_contradiction(group)}"
        return rows.drop_duplicates(KEYS)

    def _leave_out(self, rows: pd.DataFrame, reason: pd.Series | str) -> None:
        if len(rows):
            self.left_out.append(rows[KEYS].assign(reason=reason))


def _contradiction(group: pd.DataFrame) -> str:
    values = {name: group[name].dropna().unique() for name in group.columns if name not in (*KEYS, "source")}
    return "; ".join(f"{name} {' and '.join(map(str, v))}" for name, v in values.items() if len(v) > 1) or "cells empty"


def _session_files(root: Path) -> list[tuple[Path, str]]:
    """sub-<label>/sub-<label>_sessions.tsv with its label, and a sessions.tsv of all people with none."""
    files = [(root / "sessions.tsv", "")] if (root / "sessions.tsv").is_file() else []
    for folder in sorted(root.glob("sub-*")):
        file = folder / f"{folder.name}_sessions.tsv"
        if file.is_file():
            files.append((file, folder.name.removeprefix("sub-")))
    return files


def _sidecar(file: Path) -> dict[str, Any]:
    """The JSON object in a file, {} where there is none."""
    if not file.is_file() or file.suffix != ".json":
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file}: not readable as JSON ({error}); mend it or move it away") from error
    return found if isinstance(found, dict) else {}
