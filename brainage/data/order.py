"""What a call of `prepare_store` asks for, where, and whether what is there already is that."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from brainage.data import shards
from brainage.data.array_store import SCHEMA, ArrayStore, layout_of
from brainage.data.filling import Layout, Progress, Read, digest_of
from brainage.data.masking import Mask
from brainage.data.stamps import Sources
from brainage.data.table import KEY, finish_dropped, person_keys, scan_keys
from brainage.errors import StoreError
from brainage.imaging.contract import InputContract

_SLACK_BYTES = 2**20  # for the files beside the arrays


@dataclass(frozen=True)
class Order:
    """What is asked for, and where."""

    out: Path
    table: pd.DataFrame
    contract: InputContract
    dropped: pd.DataFrame | None
    read: Read
    workers: int
    on_progress: Progress | None
    sources: Sources
    mask: Mask | None
    shard: tuple[int, int] | None = None  # this part
    whole: Order | None = None  # of the parts

    @property
    def building(self) -> Path:
        return self.out.with_name(self.out.name + ".building")

    @property
    def layout(self) -> Layout:
        return layout_of(self.building, len(self.table), self.contract, self.mask)

    @property
    def locators(self) -> list[str]:
        return self.table["path"].tolist()

    @property
    def is_there(self) -> bool:
        """An empty folder counts as nothing."""
        return self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir()))

    @cached_property
    def identity(self) -> dict[str, Any]:
        identity = store_identity(self.table, self.contract)
        if self.shard is None or self.whole is None:
            return identity
        return {**identity, "shard": list(self.shard), "whole": self.whole.identity["fingerprint"]}

    @property
    def need(self) -> str:
        """Of the disk, in words."""
        layout = self.layout if self.whole is None else self.whole.layout
        need = f"{layout.n} samples of {layout.shape} {layout.dtype} need {layout.nbytes / 2**30:.2f} GiB"
        return need if self.whole is None else f"{need}, and as much again until its shards are merged"

    def all_dropped(self, damaged: dict[str, str]) -> pd.DataFrame:
        reasons = "damaged: " + scan_keys(self.table).map(damaged).astype("string")
        rows = self.table.assign(reason=reasons)[reasons.notna()]
        return finish_dropped(rows) if self.dropped is None else finish_dropped(rows, self.dropped)


def store_identity(table: pd.DataFrame, contract: InputContract) -> dict[str, Any]:
    """What a store is of: the part of contract.json that is known before anything is read.

    `table` holds every scan asked for, the damaged ones too, in the order of the readers.
    """
    scans = [scan_keys(table).tolist(), table["path"].tolist(), str(contract.dtype), SCHEMA]
    return {
        "schema": SCHEMA,
        "contract": contract.to_dict(),
        "scans": len(table),
        "fingerprint": digest_of(json.dumps(scans).encode()),
    }


def refuse_small_disk(order: Order) -> None:
    """A shard asks for the space of all shards and of their merge: what one job finds free, seven others will want."""
    if order.whole is None:
        path = order.layout.path
        needed, claimed = order.layout.nbytes, path.stat().st_blocks * 512 if path.exists() else 0
    else:
        needed, claimed = 2 * order.whole.layout.nbytes, shards.claimed_bytes(order.whole.out)
    free = shutil.disk_usage(order.building).free
    if needed - claimed + _SLACK_BYTES > free:
        raise StoreError(
            f"store {order.out}: {order.need}, {free / 2**30:.2f} GiB are free; name another disk with data.store=DIR"
        )


def refuse_differences(order: Order, store: ArrayStore) -> None:
    """StoreError in words unless the store is what is asked for; people who withdrew are named as such."""
    differs = differences(store.record, order.identity)
    if not differs:
        return
    advice = "name another folder with data.store=DIR, or delete this one"
    gone = _no_longer_listed(order, store) if order.whole is None else []
    if not gone:
        raise StoreError(f"store {store.path} is of something else: {differs}; {advice}")
    people = sorted({"/".join(key.split("/")[:2]) for key in gone})
    scans = f"{len(gone)} scan{'s' * (len(gone) != 1)} of {', '.join(people[:3])}" + ", ..." * (len(people) > 3)
    if _withdrew(order.dropped, gone):
        raise StoreError(
            f"store {store.path} still holds {scans}, who withdrew; take them out of it with "
            f"`brainage withdraw LIST --store {store.path}`"
        )
    raise StoreError(
        f"store {store.path} holds {scans} that the table no longer lists: {differs}; {advice}; "
        f"people who withdrew are taken out with `brainage withdraw LIST --store {store.path}`"
    )


def _no_longer_listed(order: Order, store: ArrayStore) -> list[str]:
    """Keys of the scans that the store was prepared from and the table leaves out, if that is all that differs."""
    damaged = store.dropped[scan_keys(store.dropped).isin(store.record["damaged"])]
    had = pd.concat([store.table[[*KEY, "path"]], damaged[[*KEY, "path"]]])
    before = dict(zip(scan_keys(had), had["path"], strict=True))
    now = dict(zip(scan_keys(order.table), order.locators, strict=True))
    same = store.contract == order.contract and all(before.get(key) == path for key, path in now.items())
    return [key for key in before if key not in now] if same else []


def _withdrew(dropped: pd.DataFrame | None, gone: list[str]) -> bool:
    """Whether the cohort's reader says of one of these people that they withdrew."""
    if dropped is None:
        return False
    named = dropped[dropped["reason"].str.contains("withdr", case=False)]
    return bool(person_keys(named).isin({"/".join(key.split("/")[:2]) for key in gone}).any())


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    """What distinguishes two identities, in words; empty when they are of the same store."""
    if found["schema"] != SCHEMA:
        return f"schema {found['schema']}, expected {SCHEMA}: begun by another brainage"
    expected, present = (InputContract.from_dict(identity["contract"]) for identity in (wanted, found))
    phrases = expected.differences(present)
    if _named(expected) == _named(present) and expected.mask.get("digest") != present.mask.get("digest"):
        phrases.append("the file of the mask was replaced after the store was prepared")
    if found["scans"] != wanted["scans"]:
        phrases.append(f"expected {wanted['scans']} scans, found {found['scans']}")
    elif found["fingerprint"] != wanted["fingerprint"]:
        phrases.append(f"its {found['scans']} scans have other keys, files or another order")
    if found.get("shard") != wanted.get("shard") or found.get("whole") != wanted.get("whole"):
        phrases.append("it is a shard of another table or division")
    return "; ".join(phrases)


def _named(contract: InputContract) -> tuple[Any, Any]:
    return contract.mask.get("name"), contract.mask.get("threshold")
