"""Figures of the gap and of diagnosis: one panel each, in the one style, without any knowledge of run folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainage.reporting.figures import thin
from brainage.reporting.style import HEIGHT, MUTED, PALETTE, WIDTH, names, plain, styled
from brainage.statistics.roc import CurveBand, ReliabilityBin

Line = tuple[np.ndarray, np.ndarray]  # x and y of a curve as observed, at every threshold

GROUP_COLOURS = {
    "CN": "#0072B2", "MCI": "#E69F00", "AD": "#D55E00", "other": "#8a949e",
    "sMCI": "#56B4E9", "pMCI": "#CC79A7", "stable": "#56B4E9", "progressive": "#CC79A7",
}  # fmt: skip
PREDICTOR_COLOURS = {
    "age_sex": "#66727f", "gap": "#E69F00", "probe": "#0072B2", "finetuned": "#009E73", "scratch": "#CC79A7",
}  # fmt: skip
PREDICTOR_NAMES = {
    "age_sex": "age and sex", "gap": "brain-age gap", "probe": "probe on the embedding", "age": "age alone",
    "finetuned": "fine-tuned encoder", "scratch": "encoder from scratch",
}  # fmt: skip
MOST_WITH_INTERVALS = 2  # curves whose intervals do not hide each other
DASHED = (0, (4, 3))
_UNIT_SQUARE: dict[str, Any] = {"aspect": "equal", "xlim": (-0.01, 1.01), "ylim": (-0.01, 1.02)}


def group_colour(group: str) -> str:
    """The colour of a diagnosis, or a steady one for any other name."""
    return GROUP_COLOURS.get(group, PALETTE[sum(map(ord, group)) % len(PALETTE)])


def predictor_name(predictor: str) -> str:
    """
    >>> predictor_name("gap"), predictor_name("my_table")
    ('brain-age gap', 'my_table')
    """
    return PREDICTOR_NAMES.get(predictor, predictor)


def predictor_colour(predictor: str) -> str:
    """The colour of a predictor, one for all that are not known."""
    return PREDICTOR_COLOURS.get(predictor, PALETTE[-1])


def panel(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure of one column with one pair of axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


@styled
def values_by_group(
    values: Mapping[str, np.ndarray],
    means: pd.DataFrame,
    *,
    most: int,
    ylabel: str,
    title: str,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """A violin, the points (at most `most` in all) and the mean with its interval for each group.

    `means`: columns group, estimate, low, high; groups without a row have no mean drawn.
    """
    figure, axes = panel()
    axes.axhline(0, color=MUTED, linewidth=1)
    total = sum(map(len, values.values()))
    rng = np.random.default_rng(0)
    for place, (group, found) in enumerate(values.items()):
        colour = group_colour(group)
        if np.ptp(found) > 0:
            body: Any = axes.violinplot(found, [place], widths=0.8, showextrema=False)["bodies"]
            body[0].set(facecolor=colour, alpha=0.18, edgecolor="none")
        kept = found[thin(len(found), int(max(1, most * len(found) / max(total, 1))))]
        axes.scatter(
            place + rng.uniform(-0.16, 0.16, len(kept)), kept, s=float(np.clip(2500 / max(total, 1), 3, 14)),
            color=colour, alpha=0.45, linewidths=0, rasterized=True,
        )  # fmt: skip
        for row in means[means["group"] == group].itertuples():
            axes.errorbar(
                place + 0.3, row.estimate, yerr=[[row.estimate - row.low], [row.high - row.estimate]], fmt="D",
                color="black", markersize=4.5, elinewidth=1.6, capsize=3,
            )  # fmt: skip
    axes.set_xticks(range(len(values)), [f"{plain(name)}\n(n = {len(found)})" for name, found in values.items()])
    axes.set(ylabel=ylabel, xlim=(-0.6, len(values) - 0.4), ylim=limits)
    axes.grid(axis="x", visible=False)
    axes.set_title(names(title))
    return figure


@styled
def gap_against_age(
    age_years: np.ndarray, gaps: Mapping[str, np.ndarray], *, most: int, ylabel: str, title: str
) -> Figure:
    """Gaps of the same scans, one colour a correction, each with its least-squares line."""
    figure, axes = panel()
    axes.axhline(0, color=MUTED, linewidth=1)
    kept = thin(len(age_years), max(1, most // max(len(gaps), 1)))
    for number, (name, gap) in enumerate(gaps.items()):
        colour = ["#8a949e", "#0072B2"][number % 2]
        axes.scatter(
            age_years[kept], gap[kept], s=float(np.clip(3000 / max(len(kept), 1), 4, 16)), color=colour, alpha=0.4,
            linewidths=0, rasterized=True,
        )  # fmt: skip
        ends = np.array([age_years.min(), age_years.max()])
        slope, start = np.polyfit(age_years, gap, 1)
        axes.plot(ends, start + slope * ends, color=colour, linewidth=2.2, label=f"{name}: {slope:+.2f} a year")
    axes.set(xlabel="chronological age (years)", ylabel=ylabel)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


@styled
def roc(curves: Mapping[str, Line], bands: Mapping[str, CurveBand], *, aucs: Mapping[str, str], title: str) -> Figure:
    """ROC of each predictor, the area under which is its AUC, with its 95 % band of resampled people."""
    figure, axes = panel(4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHED)
    for predictor, curve in curves.items():
        told = aucs.get(predictor)
        label = predictor_name(predictor) + (f": AUC {told}" if told else "")
        _curve(axes, predictor, curve, CurveBand(*(np.append(0.0, part) for part in bands[predictor])), label)
    axes.set(xlabel="false positives (1 − specificity)", ylabel="true positives (sensitivity)", **_UNIT_SQUARE)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


@styled
def precision_recall(
    curves: Mapping[str, Line], bands: Mapping[str, CurveBand], *, title: str, prevalence: float
) -> Figure:
    """Precision against recall of each predictor in steps, the area under which is its average precision; dashed: the
    share of patients, which guessing reaches."""
    figure, axes = panel(4.2)
    axes.axhline(prevalence, color=MUTED, linewidth=1, linestyle=DASHED)
    for predictor, curve in curves.items():
        _curve(axes, predictor, curve, bands[predictor], predictor_name(predictor), drawstyle="steps-pre")
    axes.set(xlabel="recall (sensitivity)", ylabel="precision", **_UNIT_SQUARE)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


@styled
def reliability(bins: Mapping[str, Sequence[ReliabilityBin]], *, title: str) -> Figure:
    """Share of patients against the predicted probability in bins of equal size; intervals where curves are few."""
    figure, axes = panel(4.2)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=DASHED)
    for predictor, found in bins.items():
        rows = pd.DataFrame(found)
        spread = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["observed"].to_numpy(float))
        axes.errorbar(
            rows["predicted"], rows["observed"], yerr=spread if len(bins) <= MOST_WITH_INTERVALS else None, fmt="-o",
            markersize=4.5, linewidth=1.2, elinewidth=0.9, color=predictor_colour(predictor), alpha=0.9,
            label=predictor_name(predictor),
        )  # fmt: skip
    axes.set(xlabel="predicted probability", ylabel="share of patients", **_UNIT_SQUARE)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


def _curve(axes: Axes, predictor: str, curve: Line, band: CurveBand, label: str, drawstyle: Any = "default") -> None:
    colour = predictor_colour(predictor)
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.12, linewidth=0)
    axes.plot(*curve, color=colour, label=label, drawstyle=drawstyle)


@styled
def curves_with_bands(
    rows: pd.DataFrame, *, xlabel: str, ylabel: str, title: str, reference: float, ticks: Sequence[float] = ()
) -> Figure:
    """One line a predictor with its interval at each x; columns predictor, x, estimate, low, high."""
    figure, axes = panel()
    axes.axhline(reference, color=MUTED, linewidth=1, linestyle=DASHED)
    for predictor, part in rows.groupby("predictor", sort=False):
        part, colour = part.sort_values("x"), predictor_colour(str(predictor))
        axes.fill_between(part["x"], part["low"], part["high"], color=colour, alpha=0.13, linewidth=0)
        axes.plot(part["x"], part["estimate"], color=colour, marker="o", label=predictor_name(str(predictor)))
    axes.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axes.set_xticks(list(ticks), [f"{tick:g}" for tick in ticks], minor=False)
    axes.set_xticks([], minor=True)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


@styled
def two_numbers(rows: pd.DataFrame, *, xlabel: str, ylabel: str, title: str) -> Figure:
    """One point a network; columns x, y, kind (its colour)."""
    figure, axes = panel()
    for number, (kind, part) in enumerate(rows.groupby("kind", sort=False)):
        axes.scatter(
            part["x"], part["y"], s=34, color=PALETTE[number % len(PALETTE)], label=names(str(kind)), linewidths=0
        )
    axes.set(xlabel=xlabel, ylabel=ylabel)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


def legend_under(figure: Figure, axes: Axes) -> None:
    """The legend under the axes, where no curve can lie below it."""
    entries, labels = axes.get_legend_handles_labels()
    if entries:
        columns = 1 if max(map(len, labels)) > 28 else 2
        figure.legend(entries, labels, loc="outside lower left", ncols=columns, handlelength=1.5, columnspacing=1.2)
