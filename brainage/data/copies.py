"""One file under two names: people of one cohort who hold the same bytes, and what `data.overlap` does about them.

People of two cohorts of a mixture are the matter of `brainage.data.overlap`.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from brainage.data.overlap import OTHER, in_several_splits, same_people
from brainage.data.table import PERSON, person_keys
from brainage.errors import LeakageError


def leave_out_copies(
    tables: Sequence[pd.DataFrame], reasons: Sequence[pd.Series], split: pd.DataFrame, policy: str
) -> tuple[list[pd.Series], str]:
    """What `policy` (refuse, warn or drop) does about people of one cohort who hold the same bytes, as a file that was
    copied under another name does: the reasons why rows are left out, and a warning, empty where there is nobody.

    tables: of each store, with `digest`. reasons: of each of their rows, NA where it stays. Raises LeakageError under
    `refuse` when such people are in different splits. Under `drop` all scans of the later person are left out: they
    may be two names of one.
    """
    used = pd.concat([table.loc[why.isna(), [*PERSON, "digest"]] for table, why in zip(tables, reasons, strict=True)])
    groups = copied_people(used)
    if groups.empty:
        common = int(_of_most(used.drop_duplicates([*PERSON, "digest"])).sum())
        return list(reasons), f"{common} people of one cohort have the same samples: are they empty?" if common else ""
    torn = in_several_splits(groups, split)
    pair = _first_pair(groups if torn.empty else torn)
    said = f"{len(groups)} people of one cohort have the same samples as another of it, first {pair}"
    where = f"; {len(torn)} of them are in different splits" if len(torn) else ""
    if policy == "refuse" and len(torn):
        raise LeakageError(
            f"{said}{where}: one file under two names? expected samples of their own: find out whose they are and "
            'leave the others out (data.exclude: ["participant_id == ..."]), or keep the first of each: '
            "data.overlap=drop"
        )
    if policy != "drop":
        flatters = ", which flatters every score" if where else ""
        return list(reasons), f"{said}{where}{flatters}; data.overlap=drop keeps the first of each"
    again = _later_copies(groups)
    left = [why.fillna(_of_people(again, table)) for table, why in zip(tables, reasons, strict=True)]
    return left, f"{said}{where}; the scans of the first of each are kept"


def copied_people(table: pd.DataFrame) -> pd.DataFrame:
    """PERSON and `group` of people of one cohort who share the `digest` of a scan, in the order of the table.

    A sample that most people of a cohort have is no copy but empty, or made up.

    >>> rows = {"cohort": "a", "participant_id": ["p1", "p2", "p3"], "digest": ["x", "y", "x"]}
    >>> copied_people(pd.DataFrame(rows))["participant_id"].tolist()
    ['p1', 'p3']
    """
    scans = table.drop_duplicates([*PERSON, "digest"])
    scans = scans[~_of_most(scans)].reset_index(drop=True)
    first = scans.groupby(["cohort", "digest"])["participant_id"].transform("first")
    other = scans[PERSON].set_axis(OTHER, axis=1)
    pairs = scans[PERSON].assign(participant_id=first, verdict="same").join(other)
    groups = same_people(pairs[first != scans["participant_id"]])
    return table[PERSON].drop_duplicates().merge(groups, on=PERSON)


def _of_most(scans: pd.DataFrame) -> pd.Series:
    """Which scans (one a person and digest) are what more than half of a cohort's people have, and more than two."""
    people = scans.groupby("cohort")["participant_id"].transform("nunique")
    holders = scans.groupby(["cohort", "digest"])["participant_id"].transform("size")
    return (holders > 2) & (2 * holders > people)


def _first_pair(groups: pd.DataFrame) -> str:
    group = groups[groups["group"] == groups["group"].iloc[0]]
    if "split" not in group:
        return " = ".join(person_keys(group.head(2)))
    apart = group.drop_duplicates("split").head(2)
    return " = ".join(f"{person} ({where})" for person, where in zip(person_keys(apart), apart["split"], strict=True))


def _later_copies(groups: pd.DataFrame) -> pd.Series:
    """The reason of everybody but the first of each group, by PERSON."""
    keys = person_keys(groups)
    first = keys.groupby(groups["group"]).transform("first")
    reason = ("same samples as " + first).astype("string").set_axis(pd.MultiIndex.from_frame(groups[PERSON]))
    return reason[(keys != first).to_numpy()]


def _of_people(reason: pd.Series, table: pd.DataFrame) -> pd.Series:
    people = pd.MultiIndex.from_frame(table[PERSON])
    return pd.Series(reason.reindex(people).to_numpy(), index=table.index, dtype="string")
