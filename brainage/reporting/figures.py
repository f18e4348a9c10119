"""Figures of the report: one panel each, so that a page can set them side by side or one under the other.

Every function gives a matplotlib Figure in the one style of brainage.reporting.style and knows nothing of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from brainage.reporting.style import HEIGHT, MUTED, PALETTE, SPLIT_COLOURS, SPLIT_NAMES, WIDTH, names, plain, styled

MOST_SITES_NAMED = 8


def thin(n: int, most: int, seed: int = 0) -> np.ndarray:
    """Sorted indices of at most `most` of n points, drawn without replacement.

    >>> thin(3, 5).tolist(), len(thin(5000, 2000))
    ([0, 1, 2], 2000)
    """
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(seed).choice(n, most, replace=False))


@styled
def age_scatter(
    age_years: np.ndarray,
    predicted_years: np.ndarray,
    *,
    split: str,
    most: int,
    limits: tuple[float, float],
    title: str,
) -> Figure:
    """Predicted against chronological age with the identity line; draws at most `most` points."""
    figure, axes = _panel(height=4.0)
    low, high = limits
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    kept = thin(len(age_years), most)
    size = float(np.clip(5000 / max(len(kept), 1), 7, 26))
    axes.scatter(
        age_years[kept], predicted_years[kept], s=size, color=SPLIT_COLOURS[split], alpha=0.6, linewidths=0,
        rasterized=True, zorder=2,
    )  # fmt: skip
    axes.set(
        xlim=limits, ylim=limits, xlabel="chronological age (years)", ylabel="predicted age (years)", aspect="equal"
    )
    axes.set_title(names(title))
    return figure


@styled
def error_by_band(bands: pd.DataFrame, *, ylabel: str, title: str, zero_line: bool) -> Figure:
    """Estimate and interval of an error for each decade of age; columns split, part, estimate, low, high."""
    figure, axes = _panel()
    order = bands.sort_values("part", key=band_start)["part"].drop_duplicates().to_list()
    if zero_line:
        axes.axhline(0, color=MUTED, linewidth=1)
    splits = [split for split in SPLIT_COLOURS if split in set(bands["split"])]
    for number, split in enumerate(splits):
        rows = bands[bands["split"] == split]
        x = np.array([order.index(band) for band in rows["part"]]) + (number - (len(splits) - 1) / 2) * 0.22
        spread = np.abs(rows[["low", "high"]].to_numpy(float).T - rows["estimate"].to_numpy(float))
        axes.errorbar(
            x, rows["estimate"], yerr=spread, fmt="os"[number % 2], color=SPLIT_COLOURS[split], markersize=5,
            elinewidth=1.4, label=SPLIT_NAMES[split],
        )  # fmt: skip
    axes.set_xticks(range(len(order)), order)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="chronological age (years)", ylabel=ylabel, xlim=(-0.6, len(order) - 0.4))
    if not zero_line:
        axes.set_ylim(bottom=0)
    _title_and_legend(axes, title, len(splits))
    return figure


@styled
def dots_with_intervals(
    rows: pd.DataFrame,
    *,
    xlabel: str,
    title: str,
    colours: list[str],
    reference: float = np.nan,
    reference_name: str = "",
    from_zero: bool = True,
) -> Figure:
    """One dot and interval a row, first row on top; columns name, estimate, low, high."""
    figure, axes = _panel(height=1.25 + 0.24 * max(len(rows), 3))
    y = np.arange(len(rows))[::-1]
    if np.isfinite(reference):
        axes.axvline(reference, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            reference_name, (reference, 1), xycoords=("data", "axes fraction"), xytext=(-4, -2),
            textcoords="offset points", ha="right", va="top", color=MUTED, fontsize=8.5,
        )  # fmt: skip
    axes.hlines(y, rows["low"], rows["high"], colors=colours, linewidth=1.6)
    axes.scatter(rows["estimate"], y, s=28, c=colours, zorder=3, linewidths=0)
    axes.set_yticks(y, [names(name) for name in rows["name"]])
    axes.set(xlabel=xlabel, ylim=(-0.7, len(rows) - 0.3 + 0.5 * bool(reference_name)))
    if from_zero:
        axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.set_title(names(title))
    return figure


@styled
def map_by_age(points: np.ndarray, age_years: np.ndarray, *, labels: tuple[str, str], title: str) -> Figure:
    """Two-dimensional embedding [n, 2], each point coloured by its age."""
    figure, axes = _map_panel(points, labels, title)
    drawn = axes.scatter(
        points[:, 0], points[:, 1], c=age_years, s=_map_size(points), alpha=0.85, linewidths=0, rasterized=True
    )
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.05, pad=0.02, aspect=40)
    bar.set_label("age (years)")
    bar.outline.set_visible(False)
    return figure


@styled
def map_by_site(points: np.ndarray, site: pd.Series, *, labels: tuple[str, str], title: str) -> Figure:
    """The same map coloured by site; with many sites the largest have their own colour and the others share grey."""
    figure, axes = _map_panel(points, labels, title)
    site = site.astype("string").fillna("unknown").reset_index(drop=True)
    counts = site.value_counts()
    counts = counts[sorted(counts.index, key=lambda name: (-counts[name], name))]
    named = list(counts.index[:MOST_SITES_NAMED])
    others = ~site.isin(named).to_numpy()
    size = _map_size(points)
    if others.any():
        label = f"{len(counts) - len(named)} other sites ({others.sum()})"
        axes.scatter(
            points[others, 0], points[others, 1], s=size, color="#c3cad1", linewidths=0, label=label, rasterized=True
        )
    for number, name in enumerate(named):
        kept = (site == name).to_numpy()
        marker = "o^sD"[number // 4 + 2 * (number % 2)]
        axes.scatter(
            points[kept, 0], points[kept, 1], s=1.4 * size, color=PALETTE[number], marker=marker, alpha=0.8,
            linewidths=0, label=f"{plain(name)} ({kept.sum()})", rasterized=True,
        )  # fmt: skip
    legend = figure.legend(loc="outside lower center", ncols=2 if len(named) > 3 else max(len(named), 1))
    for handle in legend.legend_handles:
        handle.set_sizes([24])  # type: ignore[union-attr]
    return figure


@styled
def curve(series: Mapping[str, pd.DataFrame], *, title: str, ylabel: str = "", from_zero: bool = False) -> Figure:
    """Named curves over the training step (columns step, value); dense ones as a running mean over their own spread."""
    figure, axes = _panel(height=2.9)
    for number, (name, points) in enumerate(series.items()):
        constant = name.startswith("collapse")
        colour = MUTED if constant else PALETTE[[0, 4, 2, 3][number % 4]]
        line = _binned(points)
        if len(points) > len(line):
            axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
        marker = "o" if len(line) <= 12 and not constant else None
        style = (0, (4, 3)) if constant else "-"
        axes.plot(line["step"], line["value"], color=colour, label=name, linestyle=style, marker=marker, markersize=3.5)
    if from_zero:
        axes.set_ylim(bottom=0)
    axes.set(xlabel="training step", ylabel=ylabel)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useMathText=True)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _title_and_legend(axes, title, len(series))
    return figure


@styled
def age_histogram(
    ages: Mapping[str, np.ndarray], *, names: Mapping[str, str] = SPLIT_NAMES, colours: Mapping[str, str] | None = None
) -> Figure:
    """Scans by age in five-year bins, one row a group of `names` (code -> name) with the same age axis."""
    colours = SPLIT_COLOURS if names is SPLIT_NAMES else colours or dict(zip(names, cycle(PALETTE), strict=False))
    groups = [group for group in names if len(ages.get(group, ()))]
    figure = Figure(figsize=(WIDTH, 0.9 + 0.95 * len(groups)), layout="constrained")
    panels = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True))
    bins = five_years(np.concatenate([ages[group] for group in groups]))
    for axes, group in zip(panels, groups, strict=True):
        axes.hist(ages[group], bins=bins, color=colours[group], rwidth=0.92)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        axes.set_title(f"{plain(names[group], 32)} ({len(ages[group])} scans)", fontsize=8.5, pad=3)
    panels[-1].set_xlabel("age (years)")
    figure.supylabel("scans", fontsize=9)
    return figure


@styled
def age_strips(ages: Mapping[str, np.ndarray], *, title: str) -> Figure:
    """One strip a group (name -> ages), first on top: the share of its scans in each five-year bin, as darkness."""
    bins = five_years(np.concatenate(list(ages.values())))
    shares = np.stack([np.histogram(years, bins)[0] / len(years) for years in ages.values()])
    figure, axes = _panel(height=1.6 + 0.2 * max(len(ages), 3))
    rows = np.arange(len(ages) + 1)[::-1] - 0.5
    drawn = axes.pcolormesh(bins, rows, 100 * shares, cmap="Blues", vmin=0, edgecolors="white", linewidth=0.4)
    axes.set_yticks(rows[1:] + 0.5, [f"{plain(name)} ({len(years)})" for name, years in ages.items()])
    axes.set(xlabel="age (years)")
    axes.grid(visible=False)
    axes.set_title(title)
    bar = figure.colorbar(drawn, ax=axes, orientation="horizontal", fraction=0.05, pad=0.02, aspect=40)
    bar.set_label("% of the group's scans")
    bar.outline.set_visible(False)
    return figure


def five_years(ages: np.ndarray) -> np.ndarray:
    """Edges of five-year bins that hold all ages.

    >>> five_years(np.array([21.0, 33.0])).tolist()
    [20.0, 25.0, 30.0, 35.0]
    """
    return np.arange(5 * np.floor(ages.min() / 5), ages.max() + 5.001, 5)


def band_start(bands: pd.Series) -> pd.Series:
    """First year of bands such as 20-29, to sort by."""
    return bands.astype("string").str.extract(r"(\d+)")[0].astype(float)


def with_count(names: pd.Series, counts: pd.Series) -> list[str]:
    """Names of sites with their counts in parentheses, long ones shortened."""
    return [f"{plain(name)} ({count})" for name, count in zip(names, counts, strict=True)]


def _title_and_legend(axes: Axes, title: str, entries: int) -> None:
    """The legend to the right of the title, where no point can lie under it."""
    axes.set_title(title)
    if entries > 1:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=entries, borderaxespad=0.3, handlelength=1.5,
            columnspacing=1.0, handletextpad=0.5,
        )  # fmt: skip


def _panel(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _map_panel(points: np.ndarray, labels: tuple[str, str], title: str) -> tuple[Figure, Axes]:
    figure, axes = _panel(height=4.3)
    axes.set(xlabel=labels[0], ylabel=labels[1], xticks=[], yticks=[])
    axes.set_title(title)
    span = np.ptp(points, axis=0) * 0.05 + 1e-9
    axes.set_xlim(points[:, 0].min() - span[0], points[:, 0].max() + span[0])
    axes.set_ylim(points[:, 1].min() - span[1], points[:, 1].max() + span[1])
    return figure, axes


def _map_size(points: np.ndarray) -> float:
    return float(np.clip(6000 / max(len(points), 1), 6, 24))


def _binned(points: pd.DataFrame, most: int = 160) -> pd.DataFrame:
    """Mean, minimum and maximum over neighbouring steps where there are more than `most` points."""
    if len(points) <= most:
        return points.assign(low=points["value"], high=points["value"])
    group = np.arange(len(points)) * most // len(points)
    grouped = points.groupby(group)
    value = grouped["value"]
    return pd.DataFrame(
        {"step": grouped["step"].mean(), "value": value.mean(), "low": value.min(), "high": value.max()}
    )
