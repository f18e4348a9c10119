"""The quality of a cohort's scans as a table: what the cohort brings and what was computed, with limits and counts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.downstream.results import FEWEST_PEOPLE
from brainage.imaging.quality import unjudged
from brainage.imaging.quality_limits import PUBLISHED, Limit, computed_limits
from brainage.reporting.tables import Cell, Table

NAMES = {
    "qc_coverage": "Coverage of the brain mask", "qc_outside": "Signal outside the mask",
    "qc_level": "Mean in the mask", "qc_spread": "Intensity spread", "qc_asymmetry": "Right minus left",
    "qc_mean_corr": "Correlation with the others", "qc_side_corr": "Asymmetry as the others'",
    "qc_level_z": "Mean given age and sex (z)",
    "qc_age_z": "Age in the image given age and sex (z)", "qc_duplicates": "Scans of the same bytes",
    "qc_iqr": "CAT12 image quality rating", "qc_ncr": "CAT12 noise-contrast ratio", "qc_euler": "Euler number",
    "qc_corr": "Quasi-raw correlation", "qc_pass": "Passes the cohort's own control",
}  # fmt: skip


def quality_sheet(table: pd.DataFrame, quality: pd.DataFrame | None) -> Table | None:
    """Median, middle 90 %, limits and flagged scans of every quality measure of one cohort; None without any."""
    rows = [_row(name, table[name], _published(name)) for name in table if _is_measure(table, name)]
    if quality is not None and len(quality):
        limits = {limit.column: limit for limit in computed_limits(quality)}
        limits["qc_duplicates"] = Limit("qc_duplicates", "duplicate", -np.inf, 0.5, "another scan has the same bytes")
        names = [name for name in quality if _is_measure(quality, name) and name not in (*table, "qc_flag_count")]
        rows += [_row(name, quality[name], limits.get(name)) for name in names]
    rows = [row for row in rows if row["scans"]]
    if not rows:
        return None
    data = pd.DataFrame(rows)
    shown = pd.DataFrame({
        "Measure": [Cell(name, (column,)) for name, column in zip(data["name"], data["column"], strict=True)],
        "Scans": data["scans"].map(str),
        "Median": data["median"].map(_number), "5–95 %": [
            f"{_number(low)} to {_number(high)}" if np.isfinite(low) else "–"
            for low, high in zip(data["p05"], data["p95"], strict=True)
        ],
        "Accepted": [_accepted(low, high) for low, high in zip(data["low"], data["high"], strict=True)],
        "Beyond": ["–" if pd.isna(n) else f"{n:.0f}" for n in data["flagged"]],
    })  # fmt: skip
    return Table("quality", "Quality of the scans", data, shown, _note(quality))


def _note(quality: pd.DataFrame | None) -> str:
    note = "Beyond: scans outside what is accepted. Nobody is left out for it but by a rule of `data.exclude`."
    if quality is None:
        return note + " Nothing was computed from the images."
    flagged = int(quality["qc_flags"].notna().sum())
    small = "".join(f" {line}." for line in unjudged(quality))
    return (
        f"{note}{small} {flagged} of {len(quality)} scans have a computed flag; computed limits are robust ones of this"
        " cohort. An implausible age can be a wrong table or a patient: look before excluding by it."
    )


def _row(column: str, values: pd.Series, limit: Limit | None) -> dict[str, object]:
    found = values.dropna().to_numpy(float)
    told = len(found) >= FEWEST_PEOPLE
    middle = np.percentile(found, [50, 5, 95]) if told else [np.nan] * 3
    low, high = (limit.low, limit.high) if limit else (np.nan, np.nan)
    inside = (found > low) & (found < high) if limit in PUBLISHED else (found >= low) & (found <= high)
    beyond = float((~inside).sum()) if limit else np.nan
    return {
        "column": column, "name": NAMES.get(column, column.removeprefix("qc_").replace("_", " ")), "scans": len(found),
        "median": middle[0], "p05": middle[1], "p95": middle[2], "low": low, "high": high, "flagged": beyond,
        "why": limit.why if limit else "",
    }  # fmt: skip


def _published(column: str) -> Limit | None:
    if column == "qc_pass":
        return Limit("qc_pass", "pass", 0.5, np.inf, "the cohort's own control")
    return next((limit for limit in PUBLISHED if limit.column == column), None)


def _is_measure(frame: pd.DataFrame, name: str) -> bool:
    return name.startswith("qc_") and pd.api.types.is_numeric_dtype(frame[name].dtype)


def _number(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.3g}"


def _accepted(low: float, high: float) -> str:
    if pd.isna(low):
        return "–"
    if np.isfinite(low) and np.isfinite(high):
        return f"{_number(low)} to {_number(high)}"
    return f"above {_number(low)}" if np.isfinite(low) else f"below {_number(high)}" if np.isfinite(high) else "–"
