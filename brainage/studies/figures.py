"""Figures of a study: arms with the dots of their seeds, a metric against the size of the training set, and age error
against AUC."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from brainage.reporting.clinical_figures import legend_under
from brainage.reporting.style import HEIGHT, MUTED, PALETTE, WIDTH, names, styled


@styled
def arms_over_seeds(
    means: pd.DataFrame,
    seeds: Sequence[np.ndarray],
    *,
    xlabel: str,
    title: str,
    colours: Sequence[str],
    reference: float,
) -> Figure:
    """One line an arm, the first on top: a small dot a seed, a large one for their mean with its interval.

    means: columns arm, estimate, low, high. seeds: the seeds' values of each row. A dashed line is at `reference`.
    """
    figure = Figure(figsize=(WIDTH, 1.25 + 0.26 * max(len(means), 3)), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(means))[::-1]
    if np.isfinite(reference):
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.hlines(places, means["low"], means["high"], colors=list(colours), linewidth=1.6)
    axes.scatter(means["estimate"], places, s=30, c=list(colours), zorder=3, linewidths=0)
    for place, values in zip(places, seeds, strict=True):
        axes.scatter(values, np.full(len(values), place + 0.24), s=9, color=MUTED, zorder=2, linewidths=0)
    axes.set_yticks(places, [names(str(name)) for name in means["arm"]])
    axes.set(xlabel=names(xlabel), ylim=(-0.7, len(means) - 0.3))
    axes.grid(axis="y", visible=False)
    axes.set_title(names(title))
    return figure


@styled
def against_size(rows: pd.DataFrame, *, ylabel: str) -> Figure:
    """A metric against people (sites fixed) and against sites (people fixed), side by side; the size is on a log axis.

    rows: columns axis (people | sites), size, estimate, low, high.
    """
    axes_there = [axis for axis in ("people", "sites") if (rows["axis"] == axis).any()]
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(axes_there), sharey=True))
    for number, (axis, axes) in enumerate(zip(axes_there, panels, strict=True)):
        line = rows[rows["axis"] == axis].sort_values("size")
        spread = np.abs(line[["low", "high"]].to_numpy(float).T - line["estimate"].to_numpy(float))
        axes.errorbar(line["size"], line["estimate"], yerr=spread, fmt="o-", color=PALETTE[number], markersize=5)
        axes.set_xscale("log")
        axes.set_xticks(line["size"].to_numpy(float), line["size"].astype(str))
        axes.minorticks_off()
        axes.set(xlabel=f"{axis} in train", ylabel=names(ylabel) if number == 0 else "")
    return figure


@styled
def mae_against_auc(rows: pd.DataFrame, *, pair: str) -> Figure:
    """AUC against the age error on seen and on unseen sites, side by side; a colour an arm, one dot a network.

    rows: columns arm, last (a finished network: a large dot; a checkpoint before: a small one), mae_internal_years,
    mae_external_years, auc; of one pair.
    """
    figure = Figure(figsize=(WIDTH, HEIGHT + 0.5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for number, (arm, part) in enumerate(rows.groupby("arm", sort=False)):
        sizes, colour = np.where(part["last"], 30, 7), PALETTE[number % len(PALETTE)]
        for axes, sites in zip(panels, ("internal", "external"), strict=True):
            label = names(str(arm)) if sites == "internal" else ""
            axes.scatter(part[f"mae_{sites}_years"], part["auc"], s=sizes, color=colour, linewidths=0, label=label)
    for axes, sites in zip(panels, ("internal", "external"), strict=True):
        axes.set(xlabel=f"MAE {sites} (years)", ylabel=f"AUC {names(pair)}" if sites == "internal" else "")
    legend_under(figure, panels[0])
    return figure
