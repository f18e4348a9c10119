"""Who of the cohorts of a data module is trained on, and who tested: split files, official splits, drawn ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from brainage.config import DataConfig, nearest
from brainage.data.splits import carve_val, draw_split, read_split
from brainage.data.table import PERSON, person_keys
from brainage.errors import ConfigError, DataError
from data_modules.mixture import MIXTURE, Member

DRAWN_ONLY = ("external_sites", "internal_fraction", "folds", "fold", "folds_by")
CARVED_ONLY = ("val_fraction", "stratify")


def choose_split(config: DataConfig, members: Sequence[Member], table: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """A split frame of everybody in `table` (all members joined), and where it comes from: file, official or drawn; in
    a mixture whose members differ, `<member> <source>` of each.

    `data.split` rules all. Else each member has its split file (which may use the cohort's own name or the member's),
    or is held out whole by `data.external_cohorts`, or has its official split; people of the others are drawn together,
    each by a hash of its own, so that mixing moves nobody whose cohort is called as before. Folds by cohort are drawn
    over all members, official split or not. val is carved out of the train people of whoever has no val yet.

    Raises ConfigError on keys that have no effect, and what reading or drawing raises.
    """
    if config.split:
        return _file(config, table), "file"
    _refuse_unknown_cohorts(config, members)
    by_cohort = config.folds > 0 and config.folds_by == "cohort"
    frames, sources, undecided = [], {}, []
    for member in members:
        held_out = member.label in config.external_cohorts
        if member.config.split:
            frames.append(_member_file(config, member, held_out, table))
            sources[member.label] = "file"
        elif held_out:
            people = table.loc[table["cohort"] == member.label, PERSON].drop_duplicates()
            frames.append(people.assign(split="test_external"))
            sources[member.label] = "held out"
        elif not by_cohort and (official := member.reader.official_split()) is not None:
            frames.append(_carved(config, member.named(official), table))
            sources[member.label] = "official"
        else:
            undecided.append(member)
            sources[member.label] = "drawn"
    if undecided:
        frames.append(_drawn(config, undecided, table))
    elif config.cohort == MIXTURE:
        _refuse_without_effect(
            config, DRAWN_ONLY, "files and official splits of the members, and those held out whole,"
        )
    else:
        _refuse_without_effect(config, DRAWN_ONLY, f"the official split of {config.cohort}")
    split = pd.concat(frames, ignore_index=True)
    if not (split["split"] == "train").any():
        raise DataError("split: 0 people of all members are left for train; hold out fewer of data.external_cohorts")
    return split, _source(sources)


def _drawn(config: DataConfig, members: Sequence[Member], table: pd.DataFrame) -> pd.DataFrame:
    drawn_from = table[table["cohort"].isin([m.label for m in members])] if config.cohort == MIXTURE else table
    split = draw_split(
        drawn_from,
        external_sites=config.external_sites,
        internal_fraction=config.internal_fraction,
        seed=config.split_seed,
        stratify=config.stratify,
        folds=config.folds,
        fold=config.fold,
        folds_by=config.folds_by,
    )
    return _carved(config, split, table)


def _carved(config: DataConfig, split: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    return carve_val(split, fraction=config.val_fraction, seed=config.split_seed, table=table, stratify=config.stratify)


def _member_file(config: DataConfig, member: Member, held_out: bool, table: pd.DataFrame) -> pd.DataFrame:
    file = Path(member.config.split)
    key = f"data.members.{member.name}.split={file}"
    if held_out:
        raise ConfigError(f"{key}: {member.name} is held out whole by data.external_cohorts; expected one of the two")
    split = read_split(file)
    other = split[~split["cohort"].isin({member.name, *member.listed.table["cohort"]})]
    if len(other):
        raise DataError(
            f"{file}: person {person_keys(other).iloc[0]} is of another cohort; expected people of {member.name} only"
        )
    split = member.named(split)
    return split if (split["split"] == "val").any() else _carved(config, split, table)


def _file(config: DataConfig, table: pd.DataFrame) -> pd.DataFrame:
    split = read_split(Path(config.split))
    has_val = bool((split["split"] == "val").any())
    of_no_use = [*DRAWN_ONLY, "external_cohorts", *(CARVED_ONLY if has_val else [])]
    _refuse_without_effect(config, of_no_use, f"data.split={config.split}")
    return split if has_val else _carved(config, split, table)


def _source(sources: dict[str, str]) -> str:
    found = set(sources.values())
    return found.pop() if len(found) == 1 else ", ".join(f"{name} {source}" for name, source in sources.items())


def _refuse_unknown_cohorts(config: DataConfig, members: Sequence[Member]) -> None:
    names = [member.label for member in members]
    for name in config.external_cohorts:
        if name not in names:
            raise ConfigError(f"data.external_cohorts: {name!r} is no member{nearest(name, names)}")


def _refuse_without_effect(config: DataConfig, keys: Sequence[str], ruling: str) -> None:
    default = DataConfig()
    given = [key for key in keys if getattr(config, key) != getattr(default, key)]
    if given:
        found = ", ".join(f"data.{key}={getattr(config, key)}" for key in given)
        back = " ".join(f"data.{key}={getattr(default, key)}" for key in given)
        verb = "say" if ruling.endswith(",") else "says"
        raise ConfigError(
            f"{found}: without effect, since {ruling} {verb} who is in which split; expected {back}, or another "
            "split as a file, named with data.split"
        )
