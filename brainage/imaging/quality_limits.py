"""Every threshold of quality control in one place: those that cohorts publish, and those computed from the cohort.

A published limit is a number of the literature. A computed one is robust: median -/+ k scales of the scans of
one cohort (see `brainage.statistics.robust.limits`), because no number fits every scanner, grid and modality. A flag
asks somebody to look; it leaves nobody out (that takes a rule of `data.exclude`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from brainage.statistics.robust import limits

K = 6.0  # scales from the median: measures are skewed and sites differ, so fewer would flag whole sites
K_SIDES = 4.0  # of the correlation of asymmetries, which is bounded: a mirrored brain is twice its median away
K_Z = 3.5  # of a score given age and sex: Iglewicz and Hoaglin 1993
FEWEST_SCANS = 20  # of a cohort, below which a median and its spread say too little: only fixed limits are used
EMPTY_SHARE = 0.01  # of the reference mask with signal, at or below which a volume counts as empty


class Limit(NamedTuple):
    """Values outside [low, high] are flagged; `why` says where the limits come from."""

    column: str
    flag: str
    low: float
    high: float
    why: str


class _Rule(NamedTuple):
    flag: str
    k: float
    side: str  # low | high | both: which end is suspicious
    least_scale: float  # on the scale that `forward` gives
    forward: Callable[[np.ndarray], np.ndarray]
    back: Callable[[float], float]


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _log(x: np.ndarray) -> np.ndarray:
    return np.log(np.where(x > 0, x, np.nan))


# What the cohorts publish. OpenBHB: Dufumier et al. 2022 (CAT12 image quality rating and noise-contrast ratio below 4,
# FreeSurfer's Euler number above -217, correlation with the others' quasi-raw images above 0.5).
PUBLISHED: tuple[Limit, ...] = (
    Limit("qc_iqr", "iqr", -np.inf, 4.0, "Dufumier et al. 2022: CAT12 image quality rating below 4"),
    Limit("qc_ncr", "ncr", -np.inf, 4.0, "Dufumier et al. 2022: CAT12 noise-contrast ratio below 4"),
    Limit("qc_euler", "euler", -217.0, np.inf, "Dufumier et al. 2022: Euler number above -217"),
    Limit("qc_corr", "corr", 0.5, np.inf, "Dufumier et al. 2022: quasi-raw mean correlation above 0.5"),
)

COMPUTED: dict[str, _Rule] = {
    "qc_coverage": _Rule("coverage", K, "low", 0.01, _same, float),
    "qc_outside": _Rule("outside", K, "high", 0.005, _same, float),
    "qc_spread": _Rule("spread", K, "both", 0.05, _log, np.exp),
    "qc_mean_corr": _Rule("mean_corr", K, "low", 0.01, _same, float),
    "qc_asymmetry": _Rule("asymmetry", K, "both", 0.01, _same, float),
    "qc_side_corr": _Rule("mirrored", K_SIDES, "low", 0.05, _same, float),
}
Z_SCORES = {"qc_level_z": "level", "qc_age_z": "age"}  # already in robust scales: flagged beyond K either way


def computed_limits(measures: pd.DataFrame) -> list[Limit]:
    """The limits of one cohort's computed measures; scans without signal take no part in them."""
    found = []
    seen = measures[~is_empty(measures)]
    for column, rule in COMPUTED.items():
        values = rule.forward(seen[column].to_numpy(float)) if column in seen else np.array([])
        if np.isfinite(values).sum() < FEWEST_SCANS:
            continue
        low, high = limits(values, rule.k, rule.least_scale)
        low, high = (float(rule.back(end)) for end in (low, high))
        if rule.flag == "mirrored":
            low = min(low, 0.0)  # a weak asymmetry is no mirrored one
        low, high = (-np.inf if rule.side == "high" else low), (np.inf if rule.side == "low" else high)
        found.append(Limit(column, rule.flag, low, high, f"median -/+ {rule.k:g} robust scales of this cohort"))
    for column, flag in Z_SCORES.items():
        if column in seen and seen[column].notna().any():
            found.append(Limit(column, flag, -K_Z, K_Z, f"{K_Z:g} robust scales from what age and sex lead to expect"))
    return found


def is_empty(measures: pd.DataFrame) -> pd.Series:
    """Near-empty (EMPTY_SHARE of the mask or less has signal) or constant."""
    return (measures["qc_coverage"] <= EMPTY_SHARE) | ~(measures["qc_spread"] > 0)


def flags(measures: pd.DataFrame) -> pd.Series:
    """Names of what is suspicious about each scan of one cohort, as `coverage, mean_corr`; NA where nothing is.

    >>> rows = pd.DataFrame({"qc_coverage": [0.9] * 20 + [0.3, 0.0], "qc_spread": [1.0] * 21 + [0.0]})
    >>> flags(rows).iloc[-3:].tolist()
    [<NA>, 'coverage', 'empty']
    """
    found: list[list[str]] = [[] for _ in range(len(measures))]
    empty = is_empty(measures).to_numpy()
    for limit in computed_limits(measures):
        values = measures[limit.column].to_numpy(float)
        for row in np.flatnonzero(((values < limit.low) | (values > limit.high)) & ~empty):
            found[row].append(limit.flag)
    for row in np.flatnonzero(empty):
        found[row] = ["empty"]
    if "qc_duplicates" in measures:
        for row in np.flatnonzero(measures["qc_duplicates"].to_numpy(float) > 0):
            found[row].append("duplicate")
    texts = [", ".join(names) or pd.NA for names in found]
    return pd.Series(texts, index=measures.index, dtype="string")
