"""Figures of visits over time and of survival: one panel each (a Kaplan-Meier curve has its numbers under it)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainage.data.table import PERSON
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting.clinical_figures import DASHED, group_colour, legend_under, panel
from brainage.reporting.style import MUTED, PALETTE, WIDTH, names, plain, styled

BIN_YEARS = 1.0  # width of the steps of time over which means are drawn


@styled
def trajectories(rows: pd.DataFrame, *, people: int, ylabel: str, title: str) -> Figure:
    """Gap over the years since the first visit: thin lines of at most `people` people, thick the mean by year.

    Columns PERSON, group, visit_years, gap_years. A year of fewer than FEWEST_PEOPLE people has no mean.
    """
    figure, axes = panel(3.8)
    axes.axhline(0, color=MUTED, linewidth=1)
    share = min(1.0, people / max(len(rows.drop_duplicates(PERSON)), 1))
    for group, part in rows.groupby("group", sort=False):
        colour = group_colour(str(group))
        everyone = [one.sort_values("visit_years") for _, one in part.groupby(PERSON)]
        keep = np.random.default_rng(0).permutation(len(everyone))[: int(np.ceil(share * len(everyone)))]
        for one in (everyone[i] for i in sorted(keep)):
            axes.plot(one["visit_years"], one["gap_years"], color=colour, alpha=0.16, linewidth=0.7, rasterized=True)
        mean = mean_by_year(part)
        axes.errorbar(
            mean["years"], mean["estimate"], yerr=mean["half"], color=colour, marker="o", markersize=4, linewidth=2.2,
            elinewidth=1.3, label=f"{plain(str(group))} ({len(everyone)} people)", zorder=5,
        )  # fmt: skip
    axes.set(xlabel="years since the first visit", ylabel=ylabel)
    legend_under(figure, axes)
    axes.set_title(names(title))
    return figure


def mean_by_year(rows: pd.DataFrame, column: str = "visit_years", value: str = "gap_years") -> pd.DataFrame:
    """Mean of a value over people in steps of one year: years, estimate, half (1.96 standard errors), people.

    Several visits of a person in one step count once, as their mean.
    """
    steps = (rows[column] / BIN_YEARS).round() * BIN_YEARS
    each = rows.groupby([steps.rename("years"), *[rows[name] for name in PERSON]])[value].mean().reset_index()
    grouped = each.groupby("years")[value]
    found = pd.DataFrame({"estimate": grouped.mean(), "half": 1.96 * grouped.sem(), "people": grouped.size()})
    return found[found["people"] >= FEWEST_PEOPLE].reset_index()


@styled
def to_conversion(rows: pd.DataFrame, *, ylabel: str, title: str) -> Figure:
    """Mean gap of converters by the years to their conversion, a line at the conversion."""
    figure, axes = panel()
    mean = mean_by_year(rows, "years_to_conversion")
    axes.axvline(0, color=MUTED, linewidth=1, linestyle=DASHED)
    axes.errorbar(
        -mean["years"], mean["estimate"], yerr=mean["half"], color=group_colour("pMCI"), marker="o", markersize=5,
        linewidth=1.8,
    )  # fmt: skip
    axes.set(xlabel="years from the conversion (before it: negative)", ylabel=ylabel)
    axes.set_title(names(title))
    return figure


class Curve:
    """Kaplan and Meier's estimate of one stratum, cut where fewer than FEWEST_PEOPLE are left."""

    def __init__(self, time_years: np.ndarray, event: np.ndarray) -> None:
        times = np.unique(time_years[event])
        self.time_years = time_years
        at_risk = np.array([(time_years >= t).sum() for t in times])
        died = np.array([((time_years == t) & event).sum() for t in times])
        kept = at_risk >= FEWEST_PEOPLE
        self.steps = np.append(0.0, times[kept])
        with np.errstate(divide="ignore", invalid="ignore"):
            hazard = np.append(0.0, (died / at_risk)[kept])
            greenwood = np.cumsum(np.append(0.0, (died / (at_risk * (at_risk - died)))[kept]))
            self.survival = np.cumprod(1 - hazard)
            log = np.log(self.survival)
            spread = 1.96 * np.sqrt(greenwood) / np.abs(log)  # on the log-log scale (Kalbfleisch and Prentice)
        self.low, self.high = (
            np.where(np.isfinite(spread) & (self.survival < 1), self.survival ** np.exp(side * spread), self.survival)
            for side in (1, -1)
        )
        enough = np.sort(time_years)[::-1]
        self.end = float(enough[FEWEST_PEOPLE - 1]) if len(enough) >= FEWEST_PEOPLE else 0.0

    def at_risk(self, years: float) -> int:
        """People still watched at a time."""
        return int((self.time_years >= years).sum())


@styled
def kaplan_meier(curves: Mapping[str, Curve], *, ylabel: str, title: str) -> Figure:
    """Share without the event over time with its 95 % band, and under it the people at risk."""
    figure = Figure(figsize=(WIDTH, 3.5 + 0.2 * len(curves)), layout="constrained")
    axes, below = figure.subplots(2, 1, height_ratios=[3, 0.28 * len(curves) + 0.2], sharex=True)
    end = max(curve.end for curve in curves.values())
    ticks = np.arange(0, end + 1e-9, max(1, round(end / 5)) if end >= 2 else 0.5)
    for number, (name, curve) in enumerate(curves.items()):
        colour = PALETTE[number % len(PALETTE)]
        x = np.append(curve.steps, max(curve.end, curve.steps[-1]))
        low, high, middle = (np.append(y, y[-1]) for y in (curve.low, curve.high, curve.survival))
        axes.fill_between(x, low, high, step="post", color=colour, alpha=0.15, linewidth=0)
        axes.step(x, middle, where="post", color=colour, label=plain(name, 34))
        for tick in ticks:
            left = curve.at_risk(tick)
            told = f"{left}" if left >= FEWEST_PEOPLE or left == 0 else f"<{FEWEST_PEOPLE}"
            below.text(tick, -number, told, ha="center", va="center", fontsize=8, color=colour)
    axes.set(ylabel=ylabel, ylim=(0, 1.03), xlim=(-0.03 * end, end * 1.04))
    axes.set_title(names(title))
    below.set(ylim=(-len(curves) + 0.4, 0.6), yticks=[], xlabel="years since the first visit", xticks=ticks)
    below.grid(visible=False)
    below.spines[["left"]].set_visible(False)
    below.set_title("people at risk", fontsize=8, pad=2, fontweight="normal", color=MUTED)
    legend_under(figure, axes)
    return figure
