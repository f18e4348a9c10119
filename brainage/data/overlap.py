"""The same person in two cohorts: found by ids, joined to groups, and kept from being in two splits.

A frame of pairs has PAIR_COLUMNS, one row a pair of people of two cohorts: `cohort` comes before `other_cohort` in the
mixture. `verdict` is `same` (acted upon) or `possible` (listed only). `rule` says what made them one:
- `id`          equal ids in one name space: IXI012, ADNI 027_S_0074, OASIS-3 OAS30001, or two downloads of one cohort
                that numbers its people for everybody (`SHARED_IDS`); only possible where the sexes differ;
- `elsewhere`   a table says so (column `person_elsewhere`: `cohort/participant_id` or `participant_id`, `;` between);
- `equal id`    equal ids otherwise, with sex and age agreeing: `same` for ids of ten characters or more, as OpenBHB's
                are, else only possible, since every BIDS data set has a sub-01;
- `identical`, `content`   equal or near-equal samples, see `brainage.data.duplicates`.
UK Biobank gives every project other ids, and OpenBHB renumbers the people of the studies it holds: there only content
can tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from brainage.data.table import PERSON, person_keys
from brainage.errors import LeakageError

ELSEWHERE = "person_elsewhere"
OTHER = [f"other_{name}" for name in PERSON]
PAIR_COLUMNS = [*PERSON, *OTHER, "rule", "verdict", "similarity", "correlation", "age_gap_years", "sexes"]
SHARED_IDS = ("openbhb", "ixi", "adni", "oasis3", "icbm")  # cohorts that have one id a person, for everybody
STUDIES = {  # studies inside OpenBHB -> cohort (Dufumier et al. 2022)
    "ABIDE": "abide", "CORR": "corr", "GSP": "gsp", "IXI": "ixi", "MPILEIPZIG": "mpi_leipzig", "NAR": "nar",
    "NPC": "npc", "RBP": "rbp", "LOCALIZER": "localizer",
}  # fmt: skip
MOST_AGE_GAP_YEARS = 1.0  # between equal ids that have nothing else in common
LONG_ID = 10  # characters of an id that two cohorts do not both have by chance
_KNOWN_IDS = (
    (re.compile(r"^(?:ADNI)?(\d{3})S(\d{4,5})(?!\d)"), "ADNI{0}S{1}"),
    (re.compile(r"^IXI(\d{1,3})(?!\d)"), "IXI{0:0>3}"),
    (re.compile(r"^(OAS3\d{4})(?!\d)"), "{0}"),
)


def plain_id(written: str) -> tuple[str, bool]:
    """An id without its spelling, and whether it can only be of one cohort.

    >>> plain_id("sub-ADNI027S0074"), plain_id("027_S_0074"), plain_id("IXI012-HH-1211"), plain_id("sub-007")
    (('ADNI027S0074', True), ('ADNI027S0074', True), ('IXI012', True), ('7', False))
    """
    bare = re.sub(r"[\s_.-]", "", re.sub(r"^sub[-_]", "", written.strip(), flags=re.IGNORECASE)).upper()
    for pattern, form in _KNOWN_IDS:
        if found := pattern.match(bare):
            return form.format(*found.groups()), True
    return bare.lstrip("0") or "0", False


def pairs_by_id(table: pd.DataFrame, readers: Mapping[str, str]) -> pd.DataFrame:
    """Pairs of people of different cohorts that ids or `person_elsewhere` make one.

    table: canonical, of all cohorts. readers: cohort in it -> the name of the reader it came through, in order.
    """
    people = people_of(table)
    plain = [plain_id(written) for written in people["participant_id"]]
    reader = people["cohort"].map(dict(readers))
    people = people.assign(
        plain=[text for text, _ in plain],
        space=["known" if known else name for (_, known), name in zip(plain, reader, strict=True)],
        order=_order(people["cohort"], readers),
    )
    named = people[people["space"].isin(["known", *SHARED_IDS])]
    alike = _alike(_meet(people, people, ["plain"]))
    long = alike["plain"].str.len() >= LONG_ID
    equal = _meet(named, named, ["space", "plain"])
    differ = (equal["sex"] != equal["other_sex"]).fillna(False).to_numpy(bool)
    found = [
        equal[~differ].assign(rule="id", verdict="same"),
        _elsewhere(people, table, readers).assign(rule="elsewhere", verdict="same"),
        alike.assign(rule="equal id", verdict=np.where(long, "same", "possible")),
        equal[differ].assign(rule="id", verdict="possible"),  # last: a table may say that they are one all the same
    ]
    return finish_pairs(pd.concat(found, ignore_index=True), people, readers)


def people_of(table: pd.DataFrame) -> pd.DataFrame:
    """One row a person: PERSON, `sex` and the ages of the first and last scan."""
    grouped = table.groupby(PERSON, sort=False)
    ages = grouped["age_years"]
    return pd.DataFrame({"sex": grouped["sex"].first(), "youngest": ages.min(), "oldest": ages.max()}).reset_index()


def finish_pairs(found: pd.DataFrame, people: pd.DataFrame, readers: Mapping[str, str]) -> pd.DataFrame:
    """PAIR_COLUMNS of pairs (PERSON, OTHER, rule, verdict), each pair once by its first rule, with ages and sexes."""
    found = found.reindex(columns=PAIR_COLUMNS)
    swapped = _order(found["cohort"], readers) > _order(found["other_cohort"], readers)
    found.loc[swapped, [*PERSON, *OTHER]] = found.loc[swapped, [*OTHER, *PERSON]].to_numpy()
    found = found.drop_duplicates([*PERSON, *OTHER]).reset_index(drop=True)
    known = people.drop_duplicates(PERSON).set_index(PERSON)
    ours = known.reindex(pd.MultiIndex.from_frame(found[PERSON])).reset_index(drop=True)
    theirs = known.reindex(pd.MultiIndex.from_frame(found[OTHER].set_axis(PERSON, axis=1))).reset_index(drop=True)
    apart = np.maximum(ours["youngest"] - theirs["oldest"], theirs["youngest"] - ours["oldest"]).clip(lower=0)
    sexes = np.where(ours["sex"].isna() | theirs["sex"].isna(), "unknown", "differ")
    sexes[(ours["sex"] == theirs["sex"]).fillna(False).to_numpy(bool)] = "equal"
    found = found.assign(age_gap_years=apart.round(2), sexes=sexes)
    text = [name for name in PAIR_COLUMNS if name not in ("similarity", "correlation", "age_gap_years")]
    return found.astype({**dict.fromkeys(text, "string"), "similarity": "float64", "correlation": "float64"})


def same_people(pairs: pd.DataFrame) -> pd.DataFrame:
    """PERSON and `group`: people that pairs with the verdict `same` make one person, directly or through others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    same = pairs[pairs["verdict"] == "same"]
    ours, theirs = same[PERSON], same[OTHER].set_axis(PERSON, axis=1)
    people = pd.concat([ours, theirs]).drop_duplicates(ignore_index=True)
    index = pd.MultiIndex.from_frame(people)
    ends = [index.get_indexer(pd.MultiIndex.from_frame(end)) for end in (ours, theirs)]
    links = coo_array((np.ones(len(same)), ends), shape=(len(people), len(people)))
    return people.assign(group=connected_components(links, directed=False)[1] if len(people) else [])


def in_several_splits(groups: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """The people of `groups` who are in another split than somebody they are one with: PERSON, group, split."""
    known = groups.merge(split[[*PERSON, "split"]], on=PERSON)
    return known[known.groupby("group")["split"].transform("nunique") > 1].sort_values(["group", *PERSON])


def refuse_split_people(groups: pd.DataFrame, split: pd.DataFrame) -> None:
    """Raise LeakageError naming the first people who are in two splits under two names."""
    torn = in_several_splits(groups, split)
    if torn.empty:
        return
    named = []
    for _, rows in list(torn.groupby("group"))[:3]:
        parts = zip(person_keys(rows), rows["split"], strict=True)
        named.append(" = ".join(f"{person} ({where})" for person, where in parts))
    raise LeakageError(
        f"overlap of cohorts: {torn['group'].nunique()} people are in two splits under two names, first "
        f"{'; '.join(named)}; expected one split a person: data.overlap=drop keeps the scans of the cohort named "
        "first, or give both the same split in a file (data.split)"
    )


def repeats(groups: pd.DataFrame, cohorts: Sequence[str]) -> pd.DataFrame:
    """PERSON and `reason` of everybody who is in an earlier cohort of `cohorts` too, in the words of a dropped row."""
    order = {name: place for place, name in enumerate(cohorts)}
    ranked = groups.assign(place=groups["cohort"].map(order)).sort_values(["group", "place", "participant_id"])
    first = ranked.groupby("group")[[*PERSON, "place"]].transform("first")
    later = ranked["place"] > first["place"]
    reason = "same person as " + first["cohort"] + "/" + first["participant_id"]
    return ranked.assign(reason=reason.astype("string"))[later][[*PERSON, "reason"]].reset_index(drop=True)


def held_studies(table: pd.DataFrame, readers: Mapping[str, str]) -> list[str]:
    """A sentence for each study inside one cohort that is another cohort of the mixture, by the `study` column."""
    if "study" not in table:
        return []
    said = []
    for (cohort, study), rows in table.dropna(subset="study").groupby(["cohort", "study"]):
        inside = STUDIES.get(re.sub(r"[^A-Z]", "", str(study).upper()))
        for other in (name for name, reader in readers.items() if name != cohort and inside in (name, reader)):
            people = len(rows.drop_duplicates(PERSON))
            said.append(
                f"{cohort} holds the study {study} ({people} people), which is {other}: ids cannot be compared, "
                "samples will be"
            )
    return said


def add_elsewhere(table: pd.DataFrame, identity: pd.Series) -> pd.DataFrame:
    """`table` with one more identity (`cohort/participant_id`) of each row's person in `person_elsewhere`."""
    known = table[ELSEWHERE] if ELSEWHERE in table else pd.Series(pd.NA, index=table.index, dtype="string")
    own = person_keys(table)
    added = [_with(k, i, o) for k, i, o in zip(known, identity, own, strict=True)]
    return table.assign(**{ELSEWHERE: pd.array(added, dtype="string")})


def add_groups(table: pd.DataFrame, groups: pd.DataFrame) -> pd.DataFrame:
    """`table` in which `person_elsewhere` names everybody a person is one with, and what those are called elsewhere."""
    if groups.empty:
        return table
    people = table.drop_duplicates(PERSON)
    also = dict(zip(person_keys(people), people.get(ELSEWHERE, pd.Series("", index=people.index)), strict=True))
    of_group: dict[int, list[str]] = {}
    for person, group in zip(person_keys(groups), groups["group"], strict=True):
        of_group.setdefault(group, []).extend([person, *_split(also.get(person))])
    every = {
        person: ";".join(of_group[group]) for person, group in zip(person_keys(groups), groups["group"], strict=True)
    }
    return add_elsewhere(table, person_keys(table).map(every))


def _order(cohorts: pd.Series, readers: Mapping[str, str]) -> pd.Series:
    return cohorts.map({name: place for place, name in enumerate(readers)}).astype("int64")


def _meet(left: pd.DataFrame, right: pd.DataFrame, on: list[str], *, both: bool = False) -> pd.DataFrame:
    """Pairs of people of different cohorts that agree in `on`, as PERSON and OTHER columns; each once, or with `both`
    whichever comes first."""
    names = ["order", *PERSON, "sex", "youngest", "oldest"]
    theirs = right[[*on, *names]].rename(columns={name: f"other_{name}" for name in names})
    met = left[[*on, *names]].merge(theirs, on=on)
    return met[met["order"] != met["other_order"]] if both else met[met["order"] < met["other_order"]]


def _alike(pairs: pd.DataFrame) -> pd.DataFrame:
    gap = np.maximum(pairs["youngest"] - pairs["other_oldest"], pairs["other_youngest"] - pairs["oldest"])
    return pairs[(gap <= MOST_AGE_GAP_YEARS) & (pairs["sex"] == pairs["other_sex"]).fillna(False)]


def _elsewhere(people: pd.DataFrame, table: pd.DataFrame, readers: Mapping[str, str]) -> pd.DataFrame:
    """Pairs that `person_elsewhere` makes: somebody named there, or two people who both name a third identity."""
    claims = []
    if ELSEWHERE in table:
        for person in table.dropna(subset=ELSEWHERE).drop_duplicates(PERSON).itertuples(index=False):
            for name in _split(person.person_elsewhere):
                cohort, _, written = name.rpartition("/")
                if cohort != readers[person.cohort]:  # a member under its own name: rule `id` judges that
                    claims.append((person.cohort, person.participant_id, f"{cohort}/{plain_id(written)[0]}"))
    claimed = pd.DataFrame(claims, columns=[*PERSON, "identity"], dtype="string").merge(people, on=PERSON)
    own = [people.assign(identity=prefix + "/" + people["plain"]) for prefix in (
        people["cohort"], people["cohort"].map(dict(readers)), pd.Series("", index=people.index),
    )]  # fmt: skip
    met = pd.concat([_meet(claimed, everybody, ["identity"], both=True) for everybody in (*own, claimed)])
    anybody = met["identity"].str.startswith("/")  # says no cohort, and may be a number that many have
    return met[~anybody | met["identity"].map(lambda name: plain_id(name[1:])[1] or len(name) > LONG_ID)]


def _with(known: Any, added: Any, own: str) -> str | None:
    names = dict.fromkeys([*_split(known), *_split(added)])
    names.pop(own, None)
    return ";".join(names) or None


def _split(names: Any) -> list[str]:
    return [] if pd.isna(names) else [name.strip() for name in str(names).split(";") if name.strip()]
