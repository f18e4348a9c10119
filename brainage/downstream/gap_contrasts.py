"""Differences of the gap between groups, adjusted for age, sex and site: the rows of the task gap_contrast.

n people, one scan each. The error of the correction itself, fitted on some of the people: what Beheshti's takes off is
linear in age, which every contrast is adjusted for, so that it cancels (difference and p are those of the raw gap, but
for the folds of a cross-fit). Cole's division scales the difference, which its interval holds (`Scale`), and leaves p.
The curve of `Conditional` cancels but for its bend, whose error is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from brainage.data.table import person_numbers
from brainage.downstream.results import FEWEST_PEOPLE, missing_row, result_row
from brainage.errors import DataError
from brainage.statistics.bias import Cole, Correction
from brainage.statistics.bootstrap import Interval
from brainage.statistics.contrasts import Contrast, adjusted_contrast
from brainage.statistics.seeds import holm

CONTRASTS = (("AD", "CN"), ("MCI", "CN"), ("AD", "MCI"), ("pMCI", "sMCI"))
_METRICS = ("difference_years", "hedges_g", "p", "p_holm")


class _Pair(NamedTuple):
    found: dict[str, Contrast]  # by correction
    refused: str  # why there is none, for all corrections
    people: int
    about: str


def contrast_rows(
    where: tuple[str, str, str],
    first: pd.DataFrame,
    groups: Mapping[str, np.ndarray],
    names: Sequence[str],
    refusals: Mapping[str, str],
    fitted: Mapping[str, Correction],
) -> Iterator[dict[str, Any]]:
    """Four rows, or one that says why not, for each of CONTRASTS and corrections `names`.

    Holm's correction runs over the contrasts of one. `where` is (run, cohort, split); `first` has one row a person with
    the columns of gaps, `groups` bool [n] each;
    `refusals` says why a correction could not be fitted, `fitted` holds the fitted ones.
    """
    known = [name for name in names if name not in refusals]
    nobody = np.zeros(len(first), dtype=bool)
    pairs = {
        (one, other): _pair(first, (one, other), (groups.get(one, nobody), groups.get(other, nobody)), known, fitted)
        for one, other in CONTRASTS
    }
    for name in names:
        p_values = holm([pair.found[name].p if name in pair.found else np.nan for pair in pairs.values()])
        holm_phrase = f"Holm over {int(np.isfinite(p_values).sum())} contrasts"
        for ((one, other), pair), p_holm in zip(pairs.items(), p_values, strict=True):
            parts = (f"contrast={one}-{other}", f"correction={name}")
            if name not in pair.found:
                reason = refusals.get(name) or pair.refused
                yield missing_row(*where, "gap_contrast", _METRICS[0], reason, *parts)
                continue
            found = pair.found[name]
            values = (
                found.difference,
                found.hedges_g,
                *(Interval(p, np.nan, np.nan) for p in (found.p, float(p_holm))),
            )
            method = f"HC2 and t with {found.df:.1f} df; residual sd {found.sd:.3g} years"
            for metric, value in zip(_METRICS, values, strict=True):
                over = holm_phrase if metric == "p_holm" else ""
                yield result_row(*where, "gap_contrast", metric, value, pair.people, *parts, over, pair.about, method)


def _pair(
    first: pd.DataFrame,
    names: tuple[str, str],
    rows: tuple[np.ndarray, np.ndarray],
    known: Sequence[str],
    fitted: Mapping[str, Correction],
) -> _Pair:
    counts = [int(group.sum()) for group in rows]
    few = [f"{n} people of {name}" for n, name in zip(counts, names, strict=True) if n < FEWEST_PEOPLE]
    if few:
        return _Pair({}, f"{' and '.join(few)}, fewer than {FEWEST_PEOPLE}", sum(counts), "")
    both = rows[0] | rows[1]
    part, is_first = first[both], rows[0][both]
    sex = part["sex"].fillna("").to_numpy(dtype=str)
    covariates = np.column_stack([part["age_years"].to_numpy(dtype=np.float64), sex == "M", sex == ""])
    values = part[[f"gap_{name}_years" for name in known]].to_numpy(dtype=np.float64)
    factors = {k: fitted[name] for k, name in enumerate(known) if name in fitted}
    persons = person_numbers(part)
    scales = {k: factor.scale(persons) for k, factor in factors.items() if isinstance(factor, Cole)}
    try:
        found = adjusted_contrast(values, is_first, covariates, part["site"].fillna("").to_numpy(dtype=str), scales)
    except DataError as error:
        return _Pair({}, str(error), sum(counts), "")
    sizes = f"{counts[0]} {names[0]} and {counts[1]} {names[1]} people, first scan each"
    return _Pair(dict(zip(known, found, strict=True)), "", sum(counts), f"{sizes}; {_adjusted(part, is_first)}")


def _adjusted(part: pd.DataFrame, is_first: np.ndarray) -> str:
    """The phrase on what a contrast is adjusted for, and on what could not be."""
    site, sex = part["site"].fillna(""), part["sex"].fillna("unknown")
    shared = len(set(site[is_first]) & set(site[~is_first]))
    text = f"adjusted for age, sex and site; {shared} of {site.nunique()} sites hold both groups"
    if site.nunique() == 1:
        text += "; one site: no term of site"
    if sex.nunique() == 1:
        text += f"; all of sex {sex.iloc[0]}: no term of sex"
    return text
