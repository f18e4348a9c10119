"""Tables of a task's rows: one line for each combination of parts, one column for each metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.downstream.results import FEWEST_PEOPLE, PARTS
from brainage.reporting.page import Block, Canvas
from brainage.reporting.style import SPLIT_NAMES
from brainage.reporting.tables import Cell, Estimate, Table

CORRECTIONS = {
    "none": "none", "beheshti": "Beheshti", "cole": "Cole, de Lange", "conditional": "conditional on age", "": "–",
}  # fmt: skip


class Column(NamedTuple):
    """A metric as a column; `kind` is number, p for a p value, or interval for the interval alone."""

    metric: str
    header: str
    digits: int = 2
    scale: float = 1
    kind: str = "number"
    sign: bool = False


def table_blocks(
    canvas: Canvas, name: str, caption: str, rows: pd.DataFrame, *told: Any, folded: bool = False, **more: Any
) -> list[Block]:
    """`parts_table` on the page; where no number could be computed, why, in words."""
    table = parts_table(name, caption, rows, *told, **more)
    if table is None:
        return []
    if table.shown.empty:
        canvas.write(table)
        return [Block("text", f"{caption}: {table.note[:1].lower()}{table.note[1:]}")]
    return [canvas.table(table, folded=folded)]


def parts_table(
    name: str,
    caption: str,
    rows: pd.DataFrame,
    keys: Mapping[str, str],
    columns: Sequence[Column],
    *,
    note: str = "",
    names: Mapping[str, Callable[[str], str]] | None = None,
) -> Table | None:
    """Table of results' rows; `keys`: column of `rows` -> header, `names`: column -> how its values are told.

    A key with one value is left out but for the first. `data` holds every line; `shown` those with a number, and the
    note why others have none: where no line has, the note is that alone. None where there is no row.
    """
    wanted = [column for column in columns if (rows["metric"] == column.metric).any()]
    rows = rows[rows["metric"].isin([column.metric for column in wanted])]
    if rows.empty:
        return None
    keys = {"split": "People", **keys} if rows["split"].nunique() > 1 else dict(keys)
    keys = _telling(rows, keys)
    groups = list(rows.groupby(list(keys), sort=False, dropna=False))
    tell = {"split": split_name, "correction": lambda one: CORRECTIONS.get(one, one), **(names or {})}
    data, shown = [], []
    for values, group in groups:
        texts = [str(value) for value in values]
        found = {column.metric: _first(group, column.metric) for column in wanted}
        data.append(_numbers(dict(zip(keys, texts, strict=True)), found, group))
        if group["estimate"].isna().all():
            continue
        shown.append({
            **{header: tell.get(key, str)(text) for (key, header), text in zip(keys.items(), texts, strict=True)},
            **{column.header: _cell(column, found[column.metric]) for column in wanted},
            "n": str(int(group["n"].max())),
        })  # fmt: skip
    said = [note, *_common(rows), _seeds(rows)] if shown else []
    told = " ".join(filter(None, [*said, reasons(rows)]))
    return Table(name, caption, pd.DataFrame(data), pd.DataFrame(shown), told, words=tuple(keys.values()))


def split_name(split: str) -> str:
    """
    >>> split_name("test_internal+test_external")
    'internal + external test'
    """
    every = [SPLIT_NAMES.get(one, one) for one in split.split("+")]
    return " + ".join([name.removesuffix(" test") for name in every[:-1]] + every[-1:])


def p_text(p: float) -> str:
    """A p value as papers print it.

    >>> p_text(0.00004), p_text(0.0312), p_text(0.52)
    ('< 0.001', '0.031', '0.52')
    """
    if not np.isfinite(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def reasons(rows: pd.DataFrame) -> str:
    """Why numbers are missing, each reason once; empty where none is."""
    missing = [own_phrases(note) for note in rows.loc[rows["estimate"].isna(), "note"]]
    starts = [next((i for i, one in enumerate(said) if one.startswith("not ")), 0) for said in missing]
    told = dict.fromkeys("; ".join(said[start:]) for said, start in zip(missing, starts, strict=True) if said)
    return "".join(f" {reason[:1].upper()}{reason[1:]}." for reason in told).strip()


def own_phrases(note: str) -> list[str]:
    """The phrases of a note that are no parts.

    >>> own_phrases("pair=CN-AD; 80 people; DeLong")
    ['80 people', 'DeLong']
    """
    phrases = note.split("; ")
    return [phrase for phrase in phrases if phrase and phrase.partition("=")[0] not in PARTS]


def enough(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with a number about FEWEST_PEOPLE people or more."""
    return rows[rows["estimate"].notna() & (rows["n"] >= FEWEST_PEOPLE)]


def _telling(rows: pd.DataFrame, keys: Mapping[str, str]) -> dict[str, str]:
    """The first key and those with several values."""
    several = {key: header for key, header in keys.items() if rows[key].nunique(dropna=False) > 1}
    return several or dict(list(keys.items())[:1])


def _first(group: pd.DataFrame, metric: str) -> pd.Series | None:
    found = group[group["metric"] == metric]
    return found.iloc[0] if len(found) else None


def _numbers(keys: dict[str, str], found: Mapping[str, pd.Series | None], group: pd.DataFrame) -> dict[str, Any]:
    values: dict[str, Any] = dict(keys)
    for metric, row in found.items():
        if row is not None:
            values |= Estimate(row["estimate"], row["low"], row["high"]).columns(metric)
    notes = dict.fromkeys(str(row["note"]) for row in found.values() if row is not None)
    return values | {"n": int(group["n"].max()), "note": " | ".join(notes)}


def _cell(column: Column, row: pd.Series | None) -> Cell:
    if row is None or pd.isna(row["estimate"]):
        return Cell("–")
    if column.kind == "p":
        return Cell(p_text(float(row["estimate"])))
    found = Estimate(float(row["estimate"]), float(row["low"]), float(row["high"]))
    if column.kind == "interval":
        return Cell(found.interval(column.digits, column.scale) or "–")
    cell = found.cell(column.digits, scale=column.scale)
    return Cell(f"{found.estimate * column.scale:+.{column.digits}f}", cell.small) if column.sign else cell


def _seeds(rows: pd.DataFrame) -> str:
    """Of several seeds numbers are means; a p value has none."""
    if "seed" not in rows or not rows["note"].str.contains("sd over seeds").any():
        return ""
    single = rows["metric"].isin(["p", "p_holm"]) & rows["seed"].notna()
    alone = " p values are those of the first seed." if single.any() else ""
    return f"Means over seeds, of estimates and of interval ends.{alone}"


def _common(rows: pd.DataFrame) -> list[str]:
    """Phrases that stand in every row with a number, but for counts: how the intervals were made."""
    notes = [own_phrases(note) for note in rows.loc[rows["estimate"].notna(), "note"]]
    if not notes:
        return []
    shared = [phrase for phrase in dict.fromkeys(notes[0]) if all(phrase in other for other in notes)]
    told = [phrase for phrase in shared if not phrase.split(" ")[0].isdigit()]
    text = "; ".join(told)
    return [f"{text[:1].upper()}{text[1:]}."] if text else []
