"""Leaving scans out by rule, and only by rule: `data.exclude: ["qc_pass == 0", "site in [A, 'B 2']"]`.

    rule    column operator value
    column  a column of the canonical table or of the computed quality (brainage.imaging.quality)
    operator  == != < <= > >= in
    value   a number, a word, 'text' or "text"; after `in` a list of them in brackets: [a, 'b c', 3]

Nothing is evaluated: a rule is taken apart by the grammar above. Columns of numbers are compared as numbers, columns of
text as text, letter by letter (`participant_id == 007` is not 7), and only by == != in. A scan whose value is missing
matches no rule, `!=` included: what is not known is no reason to leave somebody out.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.config import nearest
from brainage.data.table import KEY
from brainage.errors import ConfigError

REASON = "excluded by data.exclude: "
MANY = 0.5  # share of the scans above which a rule is probably not what was meant
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_EXPECTED = 'expected COLUMN OPERATOR VALUE, such as "qc_pass == 0" or "site in [A, \'B 2\']"'
_RULE = re.compile(
    r"\s*(?P<column>[^\W\d][\w.-]*)\s*(?:(?P<sign>==|!=|<=|>=|<|>)|(?P<among>\bin\b))(?P<value>.*)", re.S
)
_ITEM = re.compile(r"""\s*(?:'(?P<single>[^']*)'|"(?P<double>[^"]*)"|(?P<bare>[^\s'",\[\]()=<>!]+))\s*""")


@dataclass(frozen=True)
class Rule:
    """A scan is left out when its value in `column` stands in the relation `operator` to `values` (several: `in`)."""

    column: str
    operator: str  # == != < <= > >= in
    values: tuple[str, ...]  # as written, without quotes

    def __str__(self) -> str:
        written = ", ".join(_quoted(value) for value in self.values)
        return f"{self.column} {self.operator} " + (f"[{written}]" if self.operator == "in" else written)


class Excluded(NamedTuple):
    """What `exclude` finds."""

    reasons: pd.Series  # why each scan is left out; NA: it is kept
    remarks: list[str]  # lines for people, see `remarks`


def exclude(table: pd.DataFrame, rules: Sequence[str], quality: Callable[[], pd.DataFrame] | None = None) -> Excluded:
    """Which scans of a table the rules leave out, and why.

    `quality` gives the computed quality (`brainage.imaging.quality.write_quality`) by KEY; it is called only where a
    rule names a column that the table does not have. Raises ConfigError as `parse_rule` and `apply_rules` do.
    """
    parsed = [parse_rule(text) for text in rules]
    judged = table
    if quality is not None and any(rule.column not in table for rule in parsed):
        found = quality()
        new = [name for name in found.columns if name not in table]
        judged = table.merge(found[[*KEY, *new]], on=KEY, how="left", validate="one_to_one").set_axis(table.index)
    return Excluded(apply_rules(judged, parsed), remarks(judged, parsed))


def parse_rule(text: str) -> Rule:
    """Take a rule apart; ConfigError with what was expected where it is none.

    >>> parse_rule("qc_mean_corr<0.5")
    Rule(column='qc_mean_corr', operator='<', values=('0.5',))
    >>> str(parse_rule("site in [A, 'B 2']"))
    "site in [A, 'B 2']"
    """
    found = _RULE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise ConfigError(f"data.exclude: {text!r} is no rule: {_EXPECTED}")
    if found["sign"]:
        values, rest = _items(found["value"], text)
        if len(values) != 1 or rest:
            raise ConfigError(f"data.exclude: {text!r}: expected one value after {found['sign']}; {_EXPECTED}")
        return Rule(found["column"], found["sign"], values)
    inner = re.fullmatch(r"\s*(?:\[(.*)\]|\((.*)\))\s*", found["value"], re.S)
    values, rest = _items(inner[1] or inner[2] or "", text) if inner else ((), "")
    if not values or rest:
        raise ConfigError(f"data.exclude: {text!r}: expected a list in brackets after in; {_EXPECTED}")
    return Rule(found["column"], "in", values)


def apply_rules(table: pd.DataFrame, rules: Sequence[Rule]) -> pd.Series:
    """Why each scan is left out, NA where it is kept; every rule that it matches is named, with its value.

    >>> table = pd.DataFrame({"qc_pass": [1.0, 0.0, float("nan")]})
    >>> apply_rules(table, [parse_rule("qc_pass == 0")]).tolist()
    [<NA>, 'excluded by data.exclude: qc_pass == 0 (qc_pass 0)', <NA>]

    Raises ConfigError on a column that is not there (with the nearest that is), a word compared with numbers, and < or
    > on text.
    """
    found: list[list[str]] = [[] for _ in range(len(table))]
    for rule in rules:
        column = table[_known(rule, table)]
        for row in np.flatnonzero(_matches(column, rule)):
            found[row].append(f"{rule} ({rule.column} {_shown(column.iloc[row])})")
    reasons = [REASON + "; ".join(matched) if matched else pd.NA for matched in found]
    return pd.Series(reasons, index=table.index, dtype="string")


def remarks(table: pd.DataFrame, rules: Sequence[Rule]) -> list[str]:
    """A line for every rule that matches no scan, or more than half of them."""
    lines = []
    for rule in rules:
        column = table[_known(rule, table)]
        count, n = int(_matches(column, rule).sum()), len(table)
        if not count:
            lines.append(f"data.exclude: {rule} matches none of {n} scans{_hint(column, rule)}")
        elif count > MANY * n:
            lines.append(f"data.exclude: {rule} matches {count} of {n} scans, more than half: is it what you meant?")
    return lines


def rule_of(reason: str) -> str:
    """The rules of a reason without the values that matched, which belong to a person; empty for another reason.

    >>> rule_of("excluded by data.exclude: qc_pass == 0 (qc_pass 0); site == X (site X)")
    'excluded by data.exclude: qc_pass == 0; site == X'
    >>> rule_of("excluded by data.exclude: participant_id == p1 (participant_id p1)")
    'excluded by data.exclude: a rule about participant_id'
    """
    if not reason.startswith(REASON):
        return ""
    rules = []
    for part in reason.removeprefix(REASON).split("); "):
        text = part.rsplit(f" ({part.split(' ', 1)[0]} ", 1)[0]
        column = text.split(" ", 1)[0]
        rules.append(f"a rule about {column}" if column in (*KEY, "path", "digest") else text)
    return REASON + "; ".join(rules)


def _items(text: str, rule: str) -> tuple[tuple[str, ...], str]:
    """The comma-separated values of a text, and what follows them."""
    values: list[str] = []
    while found := _ITEM.match(text):
        value = next(part for part in found.group("single", "double", "bare") if part is not None)
        if not value.strip() or value.lower() in ("na", "nan", "<na>"):
            raise ConfigError(
                f"data.exclude: {rule!r}: {value!r} is no value: a scan whose value is missing matches no rule"
            )
        values.append(value)
        text = text[found.end() :]
        if not text.startswith(","):
            break
        text = text[1:]
    else:
        return (), text or "nothing after the comma"
    return tuple(values), text


def _known(rule: Rule, table: pd.DataFrame) -> str:
    if rule.column not in table:
        raise ConfigError(
            f"data.exclude: {rule}: the table has no column {rule.column!r}"
            f"{nearest(rule.column, [str(name) for name in table.columns])}"
        )
    return rule.column


def _matches(column: pd.Series, rule: Rule) -> np.ndarray:
    """bool [n]; missing values match nothing."""
    there = column.notna().to_numpy(bool)
    if pd.api.types.is_numeric_dtype(column.dtype):
        numbers = column.to_numpy("float64", na_value=np.nan)
        wanted = [_number(value, rule) for value in rule.values]
        matched = np.isin(numbers, wanted) if rule.operator == "in" else _COMPARE[rule.operator](numbers, wanted[0])
    elif rule.operator in ("==", "!=", "in"):
        matched = column.isin(list(rule.values)).to_numpy(bool) ^ (rule.operator == "!=")
    else:
        raise ConfigError(
            f"data.exclude: {rule}: {rule.column} holds text, which has no {rule.operator}; expected == != or in"
        )
    return np.asarray(matched, bool) & there


def _number(value: str, rule: Rule) -> float:
    try:
        number = math.nan if "_" in value else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"data.exclude: {rule}: {rule.column} holds numbers, found {value!r}")
    return number


def _hint(column: pd.Series, rule: Rule) -> str:
    """The nearest value that is there, where a word was misspelt."""
    if pd.api.types.is_numeric_dtype(column.dtype) or rule.column in (*KEY, "path", "digest"):
        return ""
    hint = nearest(rule.values[0], sorted(column.dropna().astype(str).unique()))
    return hint if "did you mean" in hint else ""


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def _quoted(value: str) -> str:
    """As it can be read again: in quotes unless it is a plain word or number."""
    if re.fullmatch(r"[^\s'\",\[\]()=<>!]+", value):
        return value
    return f'"{value}"' if "'" in value else f"'{value}'"
