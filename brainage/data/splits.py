"""Who may be learnt from and who is only tested: splits of whole people, drawn by hash, and refusals of any leak.

A split frame has the columns cohort, participant_id, split, one row a person, and is kept as a TSV file. The split of a
person is a pure function of (seed, cohort, participant_id), so adding or removing people never moves the others (but
from one test to the other, where a site of train comes or goes). The price is that shares are approximate: of n people,
a share f comes out as f plus or minus sqrt(f (1 - f) / n).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from brainage.config import nearest
from brainage.data.table import PERSON, SPLITS, person_keys, read_tsv, write_tsv
from brainage.errors import ConfigError, DataError, LeakageError

SPLIT_COLUMNS = [*PERSON, "split"]


def draw_split(
    table: pd.DataFrame, *, external_sites: Iterable[str], internal_fraction: float, seed: int
) -> pd.DataFrame:
    """A split frame: people of `external_sites` are test_external, a share of the others test_internal, the rest train.

    Somebody scanned both at an external and at another site is test_external with all scans, so that training sees
    neither that site nor that person. test_internal means sites that train has: who is drawn for it from a site of
    which nobody is left in train (a site of one or two people) is test_external as well. Raises DataError on a site
    that the table does not have, and when nobody is left to train on.
    """
    _refuse_share("data.internal_fraction", internal_fraction)
    external = list(external_sites)
    sites = sorted(table["site"].dropna().unique())
    for site in external:
        if site not in sites:
            raise DataError(
                f"external site {site!r}: no scan of this site in the table{nearest(site, sites)}; "
                "set data.external_sites to sites of this cohort"
            )
    people = table[PERSON].assign(external=table["site"].isin(external)).groupby(PERSON, as_index=False).any()
    people["split"] = "train"
    people.loc[_share(people, "internal", seed) < internal_fraction, "split"] = "test_internal"
    people.loc[people["external"], "split"] = "test_external"
    trained = people.merge(table[[*PERSON, "site"]], on=PERSON).query("split == 'train'")["site"]
    elsewhere = table.loc[table["site"].notna() & ~table["site"].isin(trained), PERSON]
    unseen = pd.MultiIndex.from_frame(people[PERSON]).isin(pd.MultiIndex.from_frame(elsewhere))
    people.loc[unseen & (people["split"] == "test_internal"), "split"] = "test_external"
    if not (people["split"] == "train").any():
        raise DataError(
            f"split: 0 of {len(people)} people are left for train; name fewer "
            f"data.external_sites ({', '.join(external)}) or a smaller data.internal_fraction ({internal_fraction})"
        )
    return _checked(people, "drawn split")


def carve_val(split: pd.DataFrame, *, fraction: float, seed: int) -> pd.DataFrame:
    """The same split frame with about `fraction` of its train people, whole, moved to val; the tests stay untouched."""
    _refuse_share("data.val_fraction", fraction)
    carved = _checked(split, "split")
    carved.loc[(carved["split"] == "train") & (_share(carved, "val", seed) < fraction), "split"] = "val"
    return carved


def apply_split(table: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """A copy of `table` whose `split` column comes from the split frame.

    Raises DataError when people of the table are absent from the frame, LeakageError when the frame has one twice.
    """
    of_person = _checked(split, "split").set_index(PERSON)["split"]
    keys = pd.MultiIndex.from_frame(table[PERSON])
    found = pd.Series(of_person.reindex(keys).to_numpy(), index=table.index, dtype="string")
    absent = person_keys(table)[found.isna()]
    if len(absent):
        raise DataError(
            f"split: {absent.nunique()} people of the table are not in the split, first {absent.iloc[0]}; "
            f"add them to the split file or remove the file to draw a new split"
        )
    return table.assign(split=found)


def refuse_leakage(table: pd.DataFrame) -> None:
    """Raise LeakageError naming a person who is in two splits; takes a table or a split frame."""
    splits = table[SPLIT_COLUMNS].dropna(subset="split").drop_duplicates()
    twice = splits[splits.duplicated(PERSON, keep=False)]
    if len(twice):
        person = person_keys(twice).iloc[0]
        where = " and ".join(sorted(twice.loc[person_keys(twice) == person, "split"]))
        people = len(twice[PERSON].drop_duplicates())
        raise LeakageError(
            f"person {person} is in {where} ({people} such people); expected one split a person: mend the split file"
        )


def split_hash(split: pd.DataFrame) -> str:
    """16 hex digits of who is where; independent of the order of the rows."""
    rows = sorted(_checked(split, "split").itertuples(index=False, name=None))
    return _digest(rows)


def read_split(path: str | Path) -> pd.DataFrame:
    """Read a split TSV; DataError or LeakageError naming the file, the column or the person."""
    return _checked(read_tsv(path), str(path))


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    """Write a split TSV, sorted by person."""
    write_tsv(_checked(split, "split"), path)


def seen_people(table: pd.DataFrame, salt: str) -> list[str]:
    """Sorted salted hashes (16 hex digits) of the people of the table: what a checkpoint keeps instead of their ids.

    They hide ids from a casual reader only: whoever has the checkpoint and a list of ids can test each of them.
    """
    people = table[PERSON].drop_duplicates().itertuples(index=False, name=None)
    return sorted({_digest([salt, *map(str, person)]) for person in people})


def refuse_seen(table: pd.DataFrame, seen: Iterable[str], salt: str, *, allow: bool, context: str) -> None:
    """Raise LeakageError with their number when people of `table` are among the hashes `seen`, unless `allow`."""
    people = seen_people(table, salt)
    known = set(people) & set(seen)
    if known and not allow:
        raise LeakageError(
            f"{context}: {len(known)} of {len(people)} people were trained on, which would flatter its scores; "
            f"score other people, or ask for these by name with evaluate.allow_seen=true"
        )


def age_histogram(table: pd.DataFrame) -> dict[str, int]:
    """Decade -> people, each counted once at the age of the first scan; empty decades are left out.

    >>> age_histogram(pd.DataFrame({"cohort": "a", "participant_id": ["1", "1", "2"], "age_years": [29.5, 31, 60]}))
    {'20-29': 1, '60-69': 1}
    """
    decades = table.groupby(PERSON)["age_years"].min() // 10
    return {f"{int(d) * 10}-{int(d) * 10 + 9}": int(n) for d, n in decades.value_counts().sort_index().items()}


def _checked(split: pd.DataFrame, source: str) -> pd.DataFrame:
    """The three columns as text, one row a person, sorted; refuses unknown names and people in two splits."""
    for name in SPLIT_COLUMNS:
        if name not in split:
            raise DataError(f"{source}: column {name!r} missing; expected {', '.join(SPLIT_COLUMNS)}")
    frame = split[SPLIT_COLUMNS].astype("string")
    unknown = frame[~frame["split"].isin(SPLITS)]
    if len(unknown):
        person, found = person_keys(unknown).iloc[0], unknown["split"].iloc[0]
        raise DataError(f"{source}: person {person}: split {found!r}: expected one of {', '.join(SPLITS)}")
    try:
        refuse_leakage(frame)
    except LeakageError as error:
        raise LeakageError(f"{source}: {error}") from None
    return frame.drop_duplicates().sort_values(PERSON, ignore_index=True)


def _share(people: pd.DataFrame, purpose: str, seed: int) -> pd.Series:
    """A number in [0, 1) of each person, uniform over people, independent between purposes and seeds."""
    digests = [_digest([purpose, seed, c, p]) for c, p in people[PERSON].itertuples(index=False, name=None)]
    return pd.Series([int(digest, 16) / 2**64 for digest in digests], index=people.index, dtype="float64")


def _digest(values: Iterable[object]) -> str:
    text = json.dumps(list(values), ensure_ascii=False)  # quoted, so that no two lists read alike
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _refuse_share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value}: expected a share of 0 or more and below 1")
