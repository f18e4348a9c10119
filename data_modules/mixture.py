"""The cohorts of a data module: one, or several as one pre-training set (`data.cohort: mixture`, `data.members`).

A member keeps its own table, store and names on disk, so that a store is prepared once, whichever runs and mixtures use
it. What a mixture changes is how things are called in the joined table:
- `cohort` is the member's name under `data.members`, so two downloads of one cohort class stay two cohorts;
- `site` is `<member>:<site>`: two cohorts may both have a site "3". One vocabulary for site probe, reports and
  `data.external_sites`;
- `person_elsewhere` holds every other identity of a person, `<cohort>/<participant_id>`, separated by `;`: the one in
  the cohort on its own, where the member has another name, and those that the overlap check finds. Checkpoints count
  all of them as seen.
A cohort on its own is a list of one member, of which nothing is changed.

Members must have equal contracts, the wording of `preprocessing` included: what was prepared otherwise is another kind
of input, see SCIENCE on nonsense predictions. Where two wordings are known to mean one thing, the reader that words it
is the place to say so.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import DataConfig, MemberConfig, nearest
from brainage.data.joined import join_tables
from brainage.data.overlap import add_elsewhere
from brainage.data.table import CohortTable, finish_dropped, validate
from brainage.errors import ConfigError, ContractError
from brainage.imaging.contract import InputContract
from data_modules import COHORTS
from data_modules.reader import CohortReader

MIXTURE = "mixture"


@dataclasses.dataclass(frozen=True)
class Member:
    """One cohort of a data module."""

    name: str  # what the joined table calls its cohort; empty: what its reader does
    config: MemberConfig
    reader: CohortReader

    @cached_property
    def contract(self) -> InputContract:
        return self.reader.contract()

    @cached_property
    def listed(self) -> CohortTable:
        """As the reader gives it, under the cohort's own names."""
        return self.reader.table()

    @property
    def label(self) -> str:
        """What messages and reports call it."""
        return self.name or self.config.cohort

    def named(self, frame: pd.DataFrame) -> pd.DataFrame:
        """A table, split or list of dropped scans of this cohort with the names of the joined table."""
        if not self.name:
            return frame
        renamed = frame.assign(cohort=pd.array([self.name] * len(frame), dtype="string"))
        if "site" in frame:
            renamed["site"] = (self.name + ":" + frame["site"]).astype("string")
        if "age_years" in frame:
            renamed = add_elsewhere(renamed, frame["cohort"] + "/" + frame["participant_id"])
        return renamed

    def store_path(self, limit: int = 0, split_hash: str = "", mask: str = "") -> Path:
        """`store` of its configuration, or a folder named after the cohort, the modality and where the cohort lies.

        A store of `limit` scans a split depends on the split; one inside a mask on the mask (its digest).
        """
        if self.config.store != "auto":
            return Path(self.config.store)
        identity = f"{self.reader.root.resolve()}|{self.config.spacing_mm}|{limit}"
        identity += f"|people by hash|{split_hash}" if limit else ""
        identity += f"|mask {mask}" if mask else ""
        digest = hashlib.blake2b(identity.encode(), digest_size=4).hexdigest()
        return Path("stores") / f"{self.config.cohort}_{self.config.modality}_{digest}"


def open_reader(config: DataConfig | MemberConfig, key: str = "data") -> CohortReader:
    """The reader of the configured cohort; ConfigError on an unknown cohort, option or modality, DataError on the root.

    `key` is what messages call the section.
    """
    if config.cohort not in COHORTS:
        raise ConfigError(f"{key}.cohort={config.cohort}: unknown{nearest(config.cohort, [*COHORTS, MIXTURE])}")
    return COHORTS[config.cohort](config.root, config.modality, config.spacing_mm, config.options)


def open_members(config: DataConfig, reader: CohortReader | None = None) -> list[Member]:
    """The cohorts of `config`: its own (`reader` where one is given), or the members of a mixture in their order.

    Raises ConfigError on keys that have no effect and on a mixture of fewer than two, ContractError when two members
    are different kinds of input, and what opening a reader raises.
    """
    if config.cohort != MIXTURE:
        _refuse_members(config)
        own = MemberConfig(**{f.name: getattr(config, f.name) for f in dataclasses.fields(MemberConfig)})
        return [Member("", own, reader or open_reader(config))]
    _refuse_keys_of_one_cohort(config)
    members = []
    for name, given in config.members.items():
        if not name or "/" in name or ":" in name or ";" in name:
            raise ConfigError(f"data.members.{name}: a member's name becomes its cohort: expected no '/', ':' or ';'")
        own = dataclasses.replace(given, cohort=given.cohort or name)
        members.append(Member(name, own, open_reader(own, f"data.members.{name}")))
    for member in members[1:]:
        _refuse_other_input(members[0], member)
    return members


def join_listings(members: Sequence[Member]) -> CohortTable:
    """What all members list, member by member, under the names of the joined table."""
    if len(members) == 1 and not members[0].name:
        return members[0].listed
    table = join_tables([member.named(member.listed.table) for member in members])
    validate(table, "table of the mixture")
    return CohortTable(table, finish_dropped(*(member.named(member.listed.dropped) for member in members)))


def rows_by_member(members: Sequence[Member], rows: np.ndarray) -> list[np.ndarray]:
    """Ascending rows of `join_listings` as rows of each member's own listing."""
    ends = np.cumsum([len(member.listed.table) for member in members])
    parts = np.split(rows, np.searchsorted(rows, ends[:-1]))
    return [part - start for part, start in zip(parts, [0, *ends[:-1]], strict=True)]


def _refuse_other_input(first: Member, other: Member) -> None:
    phrases = first.contract.differences(other.contract)
    if phrases:
        raise ContractError(
            f"mixture: members {first.name} and {other.name} are different kinds of input: {'; '.join(phrases)} "
            f"(expected: {first.name}, found: {other.name}); one encoder needs one kind: choose modality and "
            "spacing_mm of the members alike, or prepare one of them as the other was"
        )


def _refuse_members(config: DataConfig) -> None:
    for key in ("members", "external_cohorts"):
        if getattr(config, key):
            raise ConfigError(
                f"data.{key}: without effect, since data.cohort={config.cohort} is no mixture; expected "
                "data.cohort=mixture"
            )


def _refuse_keys_of_one_cohort(config: DataConfig) -> None:
    if len(config.members) < 2:
        raise ConfigError(
            f"data.members: expected the cohorts of a mixture, two or more; found "
            f"{', '.join(config.members) or 'none'}; for example data.members.ixi.root=DIR"
        )
    default = DataConfig()
    modalities = {default.modality, *(member.modality for member in config.members.values())}
    given = [key for key in ("root", "spacing_mm", "options") if getattr(config, key) != getattr(default, key)]
    given += ["modality"] if config.modality not in modalities else []
    given += ["split"] if config.split and any(member.split for member in config.members.values()) else []
    if given:
        found = ", ".join(f"data.{key}={getattr(config, key)}" for key in given)
        beside = "some members have a split file of their own" if given == ["split"] else "each member has its own"
        raise ConfigError(f"{found}: without effect in a mixture, since {beside}: data.members.NAME.{given[0]}")
