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

MOST_NAMED = 6  # lines of a table that a reason names
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
        return [Block("text", f"{caption}: {_lower(' '.join(table.reasons))}")]
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

    A key with one value is left out but for the first. `data` holds every line; `shown` those with a number, `reasons`
    why others have none. None where there is no row.
    """
    wanted = [column for column in columns if (rows["metric"] == column.metric).any()]
    rows = rows[rows["metric"].isin([column.metric for column in wanted])]
    if rows.empty:
        return None
    keys = {"split": "People", **keys} if rows["split"].nunique() > 1 else dict(keys)
    keys = _telling(rows, keys)
    groups = list(rows.groupby(list(keys), sort=False, dropna=False))
    tell: dict[str, Callable[[str], str]] = {"split": split_name, "correction": _correction, **(names or {})}
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
    told = " ".join(filter(None, [note, *_common(rows), _seeds(rows)]))
    why = reasons(rows, {key: tell.get(key, str) for key in keys}, {one.metric: one.header for one in wanted})
    return Table(name, caption, pd.DataFrame(data), pd.DataFrame(shown), told, words=tuple(keys.values()), reasons=why)


def _correction(name: str) -> str:
    return CORRECTIONS.get(name, name)


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


def reasons(
    rows: pd.DataFrame, tell: Mapping[str, Callable[[str], str]], headers: Mapping[str, str]
) -> tuple[str, ...]:
    """Why numbers are missing: each reason once, with the rows that it is about and, where their other numbers are
    there, which of them.

    `tell`: the columns of `rows` that name a line -> how its values are told; `headers`: metric -> its name.
    """
    missing = rows[rows["estimate"].isna()]
    lines = missing[list(tell)].apply(lambda row: ", ".join(filter(None, map(_told(tell), row.items()))), axis=1)
    known = rows.loc[rows["estimate"].notna(), list(tell)].drop_duplicates()
    partly = missing[list(tell)].merge(known, how="left", indicator=True)["_merge"].eq("both").to_numpy(dtype=bool)
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for line, metric, note, some in zip(lines, missing["metric"], missing["note"], partly, strict=True):
        places, metrics = found.setdefault(_reason(note), ({}, {}))
        places[line] = None
        metrics |= {headers[metric]: None} if some else {}
    every = len(rows[list(tell)].drop_duplicates())
    return tuple(_sentence(reason, list(places), list(metrics), every) for reason, (places, metrics) in found.items())


def _told(tell: Mapping[str, Callable[[str], str]]) -> Callable[[tuple[Any, Any]], str]:
    return lambda item: tell[item[0]](str(item[1])) if item[1] else ""


def _sentence(reason: str, places: list[str], metrics: list[str], every: int) -> str:
    """A reason with where it holds; of many lines the first, and how many more."""
    listed = "; ".join(filter(None, places[:MOST_NAMED]))
    listed += f" and {len(places) - MOST_NAMED} more" if len(places) > MOST_NAMED else ""
    where = "" if len(places) == every and not metrics else listed
    told = ": ".join(filter(None, [", ".join(metrics), where]))
    return f"{reason[:1].upper()}{reason[1:]}{f' ({told})' if told else ''}."


def _reason(note: str) -> str:
    """Of a row without a number why not, without what its note says of the way.

    >>> _reason("pair=CN-AD; Wald interval; not computed: no spread; 42 CN and 37 AD; 5 folds")
    'not computed: no spread'
    """
    said = own_phrases(note)
    return next((phrase for phrase in said if phrase.startswith("not ")), "; ".join(said))


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


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _common(rows: pd.DataFrame) -> list[str]:
    """Phrases that stand in every row with a number, but for counts: how the intervals were made."""
    notes = [own_phrases(note) for note in rows.loc[rows["estimate"].notna(), "note"]]
    if not notes:
        return []
    shared = [phrase for phrase in dict.fromkeys(notes[0]) if all(phrase in other for other in notes)]
    told = [phrase for phrase in shared if not phrase.split(" ")[0].isdigit()]
    text = "; ".join(told)
    return [f"{text[:1].upper()}{text[1:]}."] if text else []
