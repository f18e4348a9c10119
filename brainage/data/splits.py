"""Who may be learnt from and who is only tested: splits of whole people, and refusals of any leak.

A split frame has the columns cohort, participant_id, split, one row a person, and is kept as a TSV file. Unless it is
stratified or held out by site, the split of a person is a pure function of (seed, cohort, participant_id), so adding or
removing people never moves the others (but from one test to the other, where a site of train comes or goes). The price
is that shares are approximate: of n people, a share f comes out as f plus or minus sqrt(f (1 - f) / n).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from brainage.config import DataConfig, nearest
from brainage.data.drawing import STRATIFY, digest, draw_fold, draw_share, first_scans, group_fold
from brainage.data.table import PERSON, SPLITS, person_keys, read_tsv, write_tsv
from brainage.errors import ConfigError, DataError, LeakageError

SPLIT_COLUMNS = [*PERSON, "split"]
FOLDS_BY = ("person", "site", "cohort")


def draw_split(
    table: pd.DataFrame,
    *,
    external_sites: Iterable[str],
    internal_fraction: float,
    seed: int,
    external_cohorts: Iterable[str] = (),
    stratify: Sequence[str] = (),
    folds: int = 0,
    fold: int = 0,
    folds_by: str = "person",
) -> pd.DataFrame:
    """A split frame: people of `external_sites` or `external_cohorts` are test_external, a share of the others
    test_internal, the rest train.

    Somebody scanned both at an external and at another site is test_external with all scans, so that training sees
    neither that site nor that person. test_internal means sites that train has: who is drawn for it from a site of
    which nobody is left in train (a site of one or two people) is test_external as well.

    `stratify` (of age, sex, site): the share is kept in every age bin, sex and site as `draw_stratified` says, each
    person counted once, by the first scan.
    `folds`: one of k parts, alike in size, that hold everybody once (but who is held out by name). Folds by person:
    part `fold` is drawn for test_internal in place of a share. By site or cohort: test_external is part `fold` and
    nobody else, made of whole ones (`deal_groups`); `internal_fraction` is drawn from the others, where a site of which
    nobody would be left in train stays there.

    Raises ConfigError on keys that contradict each other, DataError on a site or cohort that the table does not have,
    on more folds than there is to hold out, and when nobody is left to train on.
    """
    external_sites, external_cohorts, stratify = list(external_sites), list(external_cohorts), list(stratify)
    _refuse_share("data.internal_fraction", internal_fraction)
    _refuse_stratify(stratify)
    _refuse_folds(folds, fold, folds_by, [*external_sites, *external_cohorts], internal_fraction)
    held_out = _named(table, "site", external_sites) | _named(table, "cohort", external_cohorts)
    people = table[PERSON].assign(external=held_out).groupby(PERSON, as_index=False).any()
    if folds and folds_by != "person":
        people["external"] = group_fold(table, folds_by, folds, fold, seed)
    people["split"] = "train"
    first = first_scans(table)[~people["external"]]
    if folds and folds_by == "person":
        internal = draw_fold(first, stratify, folds, fold, seed)
    else:
        internal = draw_share(first, stratify, internal_fraction, "internal", seed)
    people.loc[first.index[internal], "split"] = "test_internal"
    people.loc[people["external"], "split"] = "test_external"
    _move_unseen_sites(people, table, "train" if folds and folds_by != "person" else "test_external")
    if not (people["split"] == "train").any():
        raise DataError(
            f"split: 0 of {len(people)} people are left for train; name fewer data.external_sites "
            f"({', '.join(external_sites)}) or a smaller data.internal_fraction ({internal_fraction})"
        )
    return _checked(people, "drawn split")


def carve_val(
    split: pd.DataFrame, *, fraction: float, seed: int, table: pd.DataFrame | None = None, stratify: Sequence[str] = ()
) -> pd.DataFrame:
    """The same split frame with about `fraction` of its train people, whole, moved to val; the tests stay untouched.

    With `stratify`, the people of `table` are drawn as in `draw_split`; those of the frame that it lacks stay in train.
    Raises DataError when nobody would be left in train.
    """
    _refuse_share("data.val_fraction", fraction)
    _refuse_stratify(stratify)
    carved = _checked(split, "split")
    train = carved[carved["split"] == "train"]
    if stratify:
        assert table is not None, "stratify needs the ages, sexes and sites of a table"
        train = train.reset_index().merge(first_scans(table), on=PERSON).set_index("index")
    carved.loc[train.index[draw_share(train, stratify, fraction, "val", seed)], "split"] = "val"
    if len(train) and not (carved["split"] == "train").any():
        raise DataError(f"data.val_fraction={fraction}: val would be all {len(train)} people of train; make it smaller")
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
    return digest(rows)


def read_split(path: str | Path) -> pd.DataFrame:
    """Read a split TSV; DataError or LeakageError naming the file, the column or the person."""
    return _checked(read_tsv(path), str(path))


def write_split(split: pd.DataFrame, path: str | Path) -> None:
    """Write a split TSV, sorted by person."""
    write_tsv(_checked(split, "split"), path)


def seen_people(table: pd.DataFrame, salt: str) -> list[str]:
    """Sorted salted hashes (16 hex digits) of the people of the table: what a checkpoint keeps instead of their ids.

    Somebody known by other names (column `person_elsewhere`) has a hash for each. They hide ids from a casual reader
    only: whoever has the checkpoint and a list of ids can test each of them.
    """
    return sorted(set(_name_hashes(table, salt)["name_hash"]))


def was_seen(table: pd.DataFrame, seen: Iterable[str], salt: str) -> pd.Series:
    """bool of each row of `table`: is its person, under any name, among the hashes `seen`?"""
    known = _name_hashes(table, salt)
    known = known[known["name_hash"].isin(set(seen))]
    found = pd.MultiIndex.from_frame(table[PERSON]).isin(pd.MultiIndex.from_frame(known[PERSON]))
    return pd.Series(found, index=table.index)


def refuse_seen(table: pd.DataFrame, seen: Iterable[str], salt: str, *, allow: bool, context: str) -> None:
    """Raise LeakageError with their number when people of `table` are among the hashes `seen`, unless `allow`."""
    refuse_scoring(table, was_seen(table, seen, salt), allow=allow, context=context)


def refuse_scoring(table: pd.DataFrame, seen: pd.Series, *, allow: bool, context: str) -> None:
    """As `refuse_seen`, for rows (bool) already known to be of people an encoder was trained on."""
    if seen.any() and not allow:
        known, people = person_keys(table[seen]).nunique(), person_keys(table).nunique()
        raise LeakageError(
            f"{context}: {known} of {people} people were trained on, which would flatter its scores; "
            f"score other people, or ask for these by name with evaluate.allow_seen=true"
        )


def age_histogram(table: pd.DataFrame) -> dict[str, int]:
    """Decade -> people, each counted once at the age of the first scan; empty decades are left out.

    >>> age_histogram(pd.DataFrame({"cohort": "a", "participant_id": ["1", "1", "2"], "age_years": [29.5, 31, 60]}))
    {'20-29': 1, '60-69': 1}
    """
    decades = table.groupby(PERSON)["age_years"].min() // 10
    return {f"{int(d) * 10}-{int(d) * 10 + 9}": int(n) for d, n in decades.value_counts().sort_index().items()}


def _name_hashes(table: pd.DataFrame, salt: str) -> pd.DataFrame:
    """PERSON and `name_hash`: a row for each name of each person; other names are `<cohort>/<participant_id>;...`."""
    people = table[PERSON].drop_duplicates()
    names = people.assign(name=person_keys(people))
    if "person_elsewhere" in table:
        others = table[[*PERSON, "person_elsewhere"]].dropna().drop_duplicates()
        others = others.assign(name=others["person_elsewhere"].str.split(";")).explode("name")
        names = pd.concat([names, others.assign(name=others["name"].str.strip())])
        names = names[names["name"] != ""]
    hashes = [digest([salt, *name.split("/", 1)]) for name in names["name"]]
    return names[PERSON].assign(name_hash=hashes)


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


def _named(table: pd.DataFrame, column: str, names: list[str]) -> pd.Series:
    """Rows of the named sites or cohorts; DataError on a name that is nowhere."""
    known = sorted(table[column].dropna().unique())
    for name in names:
        if name not in known:
            raise DataError(
                f"external {column} {name!r}: no scan of this {column} in the table{nearest(name, known)}; "
                f"set data.external_{column}s to {column}s that are there"
            )
    return table[column].isin(names)


def _move_unseen_sites(people: pd.DataFrame, table: pd.DataFrame, to: str) -> None:
    """test_internal people with a scan at a site that train does not have go `to` another split."""
    trained = people.merge(table[[*PERSON, "site"]], on=PERSON).query("split == 'train'")["site"]
    elsewhere = table.loc[table["site"].notna() & ~table["site"].isin(trained), PERSON]
    unseen = pd.MultiIndex.from_frame(people[PERSON]).isin(pd.MultiIndex.from_frame(elsewhere))
    people.loc[unseen & (people["split"] == "test_internal"), "split"] = to


def _refuse_stratify(stratify: Sequence[str]) -> None:
    for name in stratify:
        if name not in STRATIFY:
            raise ConfigError(f"data.stratify: {name!r} is unknown{nearest(name, list(STRATIFY))}")


def _refuse_folds(folds: int, fold: int, folds_by: str, held_out: list[str], internal_fraction: float) -> None:
    """ConfigError on keys of folds that contradict each other or have no effect."""
    if folds_by not in FOLDS_BY:
        raise ConfigError(f"data.folds_by={folds_by}: unknown{nearest(folds_by, list(FOLDS_BY))}")
    if folds < 0 or folds == 1:
        raise ConfigError(f"data.folds={folds}: expected 2 or more, or 0 for a single split")
    if not folds and (fold or folds_by != "person"):
        raise ConfigError(
            f"data.fold={fold} data.folds_by={folds_by}: without effect, expected data.folds of 2 or more"
        )
    if folds and not 0 <= fold < folds:
        raise ConfigError(f"data.fold={fold}: expected 0 to {folds - 1}, since data.folds={folds}")
    if folds and folds_by != "person" and held_out:
        raise ConfigError(
            f"data.folds_by={folds_by} beside external {', '.join(held_out)}: both say who is test_external; expected "
            "no data.external_sites and data.external_cohorts, or data.folds_by=person"
        )
    if folds and folds_by == "person" and internal_fraction != DataConfig.internal_fraction:
        raise ConfigError(
            f"data.internal_fraction={internal_fraction}: without effect, since each of data.folds={folds} people is "
            f"test_internal in turn; expected data.internal_fraction={DataConfig.internal_fraction}"
        )


def _refuse_share(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{key}={value}: expected a share of 0 or more and below 1")
