"""The files of a study: results.csv, its summary and comparisons (CSV, LaTeX), figures, and study.html with it all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from brainage import __version__
from brainage.data.table import write_atomically
from brainage.reporting.page import Block, Canvas, Drawn
from brainage.reporting.style import ACCENT, MUTED
from brainage.reporting.tables import Cell, Table
from brainage.studies.comparison import NETWORK, Gathered, arm_name
from brainage.studies.figures import against_size, arms_over_seeds
from brainage.studies.mae_auc_page import mae_auc_blocks
from brainage.studies.metrics import Metric
from brainage.studies.study import Form
from brainage.studies.subsets import Subset

NAMES = {
    "age/test_external/mae_years": "MAE external (years)",
    "age/test_internal/mae_years": "MAE internal (years)",
    "site/test_internal/balanced_accuracy": "Site BAcc",
    "challenge/test_internal+test_external/challenge_score": "L_c",
}
INTERVALS = (
    "Intervals are 95 %. Over seeds: Student's t of the seeds trained, each arm paired with the reference by seed; "
    "p by the paired t test, Holm-corrected over the arms of a metric. Over people: resamples of the people scored, "
    "each arm averaged over its seeds; not corrected. With one seed nothing is known of the spread over seeds."
)


def write_study(folder: Path, form: Form, gathered: Gathered, subsets: dict[str, Subset]) -> Path:
    """Write everything into `folder`; gives study.html. `subsets`: what each arm trains on."""
    from brainage.reporting.report import page_environment

    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "results.csv", lambda path: gathered.long.to_csv(path, index=False))
    canvas = Canvas(folder)
    blocks = [Block("text", f"{form.description}. {_counts(form, gathered)} {_people(form, gathered.long)}")]
    if gathered.unfinished:
        again = f"brainage study {form.name.removesuffix('_small')}{' --small' if form.simulate else ''}"
        blocks.append(Block("missing", (_unfinished(gathered), again)))
    if len(gathered.summary):
        blocks += [canvas.table(summary_table(form, gathered.summary)), Block("text", INTERVALS)]
        blocks.append(Block("figures", _figures(canvas, form, gathered, subsets)))
    if len(gathered.comparisons):
        blocks.append(canvas.table(comparison_table(form, gathered.comparisons)))
    blocks += mae_auc_blocks(canvas, form, gathered.points)
    template = page_environment().get_template("study.html.j2")
    text = template.render(title=form.name, reference=form.reference, blocks=blocks, version=__version__)
    path = folder / "study.html"
    write_atomically(path, lambda draft: draft.write_text(text, encoding="utf-8"))
    return path


def summary_table(form: Form, summary: pd.DataFrame) -> Table:
    """A row an arm or baseline, a column a metric: mean over seeds, interval, sd over seeds."""
    names = list(dict.fromkeys(summary["arm"]))
    shown = []
    for name in names:
        row: dict[str, object] = {"arm": name, "seeds": str(summary.loc[summary["arm"] == name, "seeds"].max())}
        for metric in form.compare:
            found = summary[(summary["arm"] == name) & (summary["metric"] == metric)]
            row[metric_name(metric)] = _mean_cell(found.iloc[0]) if len(found) else Cell("–")
        shown.append(row)
    return Table(
        "summary", "Every arm: mean over seeds", summary, pd.DataFrame(shown),
        note="In brackets the t interval over seeds; sd is over seeds. Baselines without seeds stand once.",
        strong=tuple(n for n, name in enumerate(names) if name == form.reference),
    )  # fmt: skip


def comparison_table(form: Form, comparisons: pd.DataFrame) -> Table:
    """A row an arm and metric: the paired difference, both intervals, p."""
    shown = [
        {
            "arm": row.arm,
            "metric": metric_name(str(row.metric)),
            "difference": _number(row.difference, sign=True),
            "over seeds": _interval(row.low, row.high),
            "p (Holm)": f"{row.p:.3f} ({row.p_holm:.3f})" if np.isfinite(row.p) else "–",
            "over people": _interval(row.people_low, row.people_high),
            "lower in": f"{row.lower} seeds" if row.lower else "–",
            "note": row.note,
        }
        for row in comparisons.itertuples()
    ]
    return Table(
        "comparisons", f"Every arm minus {form.reference}, seed by seed (below 0: lower than the reference)",
        comparisons, pd.DataFrame(shown), words=("metric", "note"),
    )  # fmt: skip


def metric_name(metric: str) -> str:
    """
    >>> metric_name("age/test_external/mae_years"), metric_name("age/test_external/r2")
    ('MAE external (years)', 'age/test_external/r2')
    >>> metric_name("on:diagnosis/test_external/auc pair=CN-AD predictor=probe")
    'AUC CN-AD probe'
    """
    of = Metric.of(metric)
    if of.on and of.name == "auc":
        return " ".join(["AUC", *(name for _, name in of.parts)])
    if of.on and of.name == "mae_years":
        return " ".join(["MAE on the other cohort (years)", *(name for _, name in of.parts)])
    return NAMES.get(metric, metric)


def _figures(canvas: Canvas, form: Form, gathered: Gathered, subsets: dict[str, Subset]) -> list[Drawn]:
    drawn = []
    for metric in form.compare:
        means = gathered.summary[gathered.summary["metric"] == metric]
        if means["estimate"].notna().sum() == 0:
            continue
        seeds = gathered.long[gathered.long["metric"] == metric]
        points = [seeds.loc[_is(seeds, name), "estimate"].to_numpy(float) for name in means["arm"]]
        colours = [ACCENT if name in form.arms else MUTED for name in means["arm"]]
        said = "; ".join(f"{row.arm} {row.estimate:.3g}" for row in means.itertuples())
        figure = arms_over_seeds(
            means, points, xlabel=metric_name(metric), title=metric_name(metric).split(" (")[0], colours=colours,
            reference=float(means.loc[means["arm"] == form.reference, "estimate"].mean()),
        )  # fmt: skip
        stem = re.sub(r"[^\w+]+", "_", metric)
        drawn.append(canvas.draw(stem, figure, alt=f"{metric_name(metric)}, mean over seeds: {said}."))
        if (lines := _by_size(means, subsets, seeds)) is not None:
            sizes = against_size(lines, ylabel=metric_name(metric))
            drawn.append(canvas.draw(f"{stem}_by_size", sizes, alt=f"{metric_name(metric)} against training size."))
    return drawn


def _is(rows: pd.DataFrame, name: str) -> pd.Series:
    """Rows of the long table that a name of the summary stands for; none of a baseline, which has no seeds to show."""
    return pd.Series(
        [arm_name(arm, model) == name for arm, model in zip(rows["arm"], rows["model"], strict=True)],
        index=rows.index, dtype=bool,
    )  # fmt: skip


def _by_size(means: pd.DataFrame, subsets: dict[str, Subset], seeds: pd.DataFrame) -> pd.DataFrame | None:
    """Columns axis (people | sites), size, estimate, low, high of the arms that are subsets; None without two."""
    rows = [
        {"axis": "sites" if subsets[row.arm].sites else "people",
         "size": subsets[row.arm].sites or subsets[row.arm].people, **row._asdict()}
        for row in means.itertuples()
        if subsets.get(str(row.arm))
    ]  # fmt: skip
    return pd.DataFrame(rows) if len(rows) > 1 else None


def _counts(form: Form, gathered: Gathered) -> str:
    asked = len(form.arms) * len(form.seeds)
    seeds = f"{len(form.seeds)} seeds ({', '.join(map(str, form.seeds))})" if len(form.seeds) > 1 else "one seed"
    return (
        f"{len(form.arms)} arms, {seeds}, {asked - len(gathered.unfinished)} of {asked} networks. "
        f"The reference is {form.reference}."
    )


def _people(form: Form, long: pd.DataFrame) -> str:
    """Who was scored, for each age metric: people, scans and ages, as the reference's results say it."""
    told = []
    for metric in form.compare:
        rows = long[(long["metric"] == metric) & (long["arm"] == form.reference) & (long["model"] == NETWORK)]
        if metric.startswith("age/") and len(rows):
            extent = "; ".join(str(rows["note"].iloc[0]).split("; ")[:2])  # scans; ages
            told.append(f"{metric_name(metric)}: {rows['n'].iloc[0]} people, {extent}.")
    return " ".join(told)


def _unfinished(gathered: Gathered) -> str:
    """Cells that are not in it, by what they wait for."""
    by_reason: dict[str, list[str]] = {}
    for cell, reason in gathered.unfinished.items():
        by_reason.setdefault(reason, []).append(cell)
    listed = "; ".join(f"{', '.join(cells)}: {reason}" for reason, cells in by_reason.items())
    return f"{len(gathered.unfinished)} networks are not in it. {listed}."


def _mean_cell(row: pd.Series) -> Cell:
    small = [_interval(row["low"], row["high"])] if np.isfinite(row["low"]) else []
    small += [f"sd {_number(row['seed_sd'])}"] if np.isfinite(row["seed_sd"]) else []
    return Cell(_number(row["estimate"]), tuple(small))


def _interval(low: float, high: float) -> str:
    return f"[{_number(low)}, {_number(high)}]" if np.isfinite(low) and np.isfinite(high) else "–"


def _number(value: float, *, sign: bool = False) -> str:
    """
    >>> _number(4.1234), _number(0.051234), _number(float("nan")), _number(-0.2, sign=True)
    ('4.12', '0.051', '–', '-0.200')
    """
    if not np.isfinite(value):
        return "–"
    return f"{value:{'+' if sign else ''}.{2 if abs(value) >= 1 else 3}f}"
