"""Parts of a cohort's section: how much of the site is left, and whether errors are the same for everybody."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from brainage.downstream.results import CHANCE
from brainage.reporting import figures
from brainage.reporting.evaluations import NUMBER, Evaluation, whole
from brainage.reporting.page import Block, Drawn
from brainage.reporting.style import ACCENT, MUTED, plain
from brainage.reporting.task_tables import Column, enough, split_name, table_blocks

AFTER = {
    "combat": "after ComBat", "residual": "after removing site means", "nuisance": "after removing nuisance variables",
    "": "as it is",
}  # fmt: skip
SUBSETS = {"age_matched": "age-matched people", "same_pairs": "the same pairs of sites, unmatched", "": ""}
BEFORE = re.compile(r"before, on the same scans: (?P<number>[\d.e+-]+)(; )?")
READ_FROM = {"age": "age alone", "": "embedding"}
KINDS = {"sex": "Sex", "band": "Age band", "site": "Site"}
MOST_ROWS_DRAWN = 30


def site(evaluation: Evaluation) -> list[Block]:
    """What the site is read from and how well, with chance; and what harmonisation costs in age error."""
    rows = evaluation.rows("site")
    canvas = evaluation.canvas
    if evaluation.own and not _controlled(rows):
        return []  # the headline table says it all
    blocks = []
    drawn = _site_figure(evaluation, rows)
    if drawn:
        blocks.append(Block("figures", [drawn]))
    blocks += table_blocks(
        canvas, "site", "Reading the site", with_before(rows),
        {"predictor": "Read from", "after": "Harmonised", "subset": "People", "probe": "Probe", "term": "Removed"},
        [
            Column("balanced_accuracy", "Balanced accuracy (%)", 1, 100),
            Column("before", "Before, on the same scans (%)", 1, 100),
            Column("chance_balanced_accuracy", "Sites shuffled (%)", 1, 100), Column("p", "p", kind="p"),
        ],
        note="Lower is better, down to chance. Age alone shows how far sites differ in who came to them. Shuffled "
        "sites: what the same predictions reach by chance, with the p value of that.",
        names={
            "predictor": lambda name: READ_FROM.get(name, name), "after": lambda name: AFTER.get(name, name),
            "subset": lambda name: SUBSETS.get(name, name) or "all", "term": lambda name: name or "nothing",
            "probe": lambda name: name or "converged",
        },
    )  # fmt: skip
    ages = whole(evaluation.rows("age", "mae_years"), "after", "term")
    changed = ages["after"] != ""
    if not changed.any():
        return blocks
    people = [tuple(pair) for pair in ages.loc[changed, ["split", "n"]].to_numpy()]
    same = np.array(
        [pair in people for pair in zip(ages["split"], ages["n"], strict=True)]
    )  # others cannot be compared
    ways = " or ".join(AFTER.get(name, name) for name in dict.fromkeys(ages.loc[changed, "after"]))
    return blocks + table_blocks(
        canvas, "age_after", "Age error after harmonisation", with_before(ages[changed | same]),
        {"after": "Harmonised", "term": "Removed"},
        [Column("mae_years", "MAE (years)"), Column("before", "Before, on the same scans (years)")],
        note=f"By a probe fitted anew {ways}; compare with what the unchanged features gave on the same scans.",
        names={"after": lambda name: AFTER.get(name, name), "term": lambda name: name or "nothing"},
    )  # fmt: skip


def with_before(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows and, of those whose note tells it, what the unchanged features gave on the same scans: rows of a metric
    `before`."""
    told = rows["note"].str.extract(BEFORE)["number"].astype(float)
    rows = rows.assign(note=rows["note"].str.replace(BEFORE, "", regex=True))
    more = rows.assign(metric="before", estimate=told, low=np.nan, high=np.nan)[told.notna() & rows["estimate"].notna()]
    return pd.concat([rows, more]) if len(more) else rows


def chance_rows(evaluation: Evaluation) -> pd.DataFrame:
    """The rows of guessing the site, of the whole cohort first."""
    if evaluation.results is None:
        return pd.DataFrame(columns=[*NUMBER, "estimate", "low", "high", "n", "note", "model"])
    rows = evaluation.results
    rows = rows[(rows["task"] == "site") & (rows["model"] == CHANCE) & rows["estimate"].notna()]
    return rows.sort_values("subset", kind="stable")


def _controlled(rows: pd.DataFrame) -> bool:
    return bool((rows[["predictor", "after", "subset", "term", "probe"]] != "").any(axis=None))


def _site_figure(evaluation: Evaluation, rows: pd.DataFrame) -> Drawn | None:
    rows = enough(rows[rows["metric"] == "balanced_accuracy"]).dropna(subset=["low", "high"])
    if rows.empty:
        return None
    names = [_named(row, several=rows["split"].nunique() > 1) for row in rows.to_dict("records")]
    colours = [MUTED if predictor == "age" else ACCENT for predictor in rows["predictor"]]
    dots = _scaled(rows.assign(name=names))
    chance = chance_rows(evaluation)
    even = float(100 * chance["estimate"].iloc[0]) if len(chance) else np.nan
    shuffled = whole(evaluation.rows("site", "chance_balanced_accuracy")).dropna(subset=["estimate", "low"])
    if len(shuffled):
        dots = pd.concat([dots, _scaled(shuffled.head(1).assign(name="sites shuffled"))], ignore_index=True)
        colours.append(MUTED)
    figure = figures.dots_with_intervals(
        dots, xlabel="BAcc (%), 95 % interval", title="Reading the site", colours=colours,
        reference=even, reference_name="chance" if np.isfinite(even) else "",
    )  # fmt: skip
    told = "; ".join(f"{name} {value:.0f} %" for name, value in zip(dots["name"], dots["estimate"], strict=True))
    against = f" Chance is {even:.0f} %." if np.isfinite(even) else ""
    return evaluation.canvas.draw(
        "site_accuracy", figure, alt=f"Balanced accuracy of reading the site: {told}.{against}"
    )


def _named(row: dict[str, str], *, several: bool) -> str:
    told = [
        READ_FROM.get(row["predictor"], row["predictor"]),
        AFTER.get(row["after"], row["after"]) if row["after"] else "",
        SUBSETS.get(row["subset"], row["subset"]), f"{row['probe']} probe" if row["probe"] else "",
        f"without {row['term']}" if row["term"] else "", split_name(row["split"]) if several else "",
    ]  # fmt: skip
    return "\n".join(filter(None, [told[0], ", ".join(filter(None, told[1:]))]))


def _scaled(rows: pd.DataFrame) -> pd.DataFrame:
    found = rows[["name", "estimate", "low", "high"]].copy()
    found[["estimate", "low", "high"]] *= 100
    return found


def fairness(evaluation: Evaluation) -> list[Block]:
    """Errors by sex, age and site, and how far the best and the worst served are apart."""
    rows, canvas = evaluation.rows("fairness"), evaluation.canvas
    if rows.empty:
        return []
    rows = rows.assign(kind="", part="")
    for kind, name in KINDS.items():
        there = rows[kind] != ""
        rows.loc[there, "kind"], rows.loc[there, "part"] = name, rows.loc[there, kind]
    drawn = [figure for kind in KINDS.values() if (figure := _fair_figure(evaluation, rows, kind))]
    blocks = [Block("figures", drawn)] if drawn else []
    blocks += table_blocks(
        canvas, "fairness_gap", "Largest minus smallest MAE", rows[rows["contrast"] != ""], {"contrast": "Between"},
        [
            Column("mae_gap_years", "Difference (years)"), Column("chance_mae_gap_years", "Of shuffled people (years)"),
            Column("p", "p", kind="p"),
        ],
        note="Noise alone makes the largest and the smallest differ: compare with shuffled people.",
        names={"contrast": lambda name: KINDS.get(name, name)},
    )  # fmt: skip
    return blocks + table_blocks(
        canvas, "fairness", "Errors by subgroup", rows[rows["part"] != ""], {"kind": "By", "part": "Subgroup"},
        [Column("mae_years", "MAE (years)"), Column("bias_years", "Mean error (years)", sign=True)], folded=True,
    )  # fmt: skip


def _fair_figure(evaluation: Evaluation, rows: pd.DataFrame, kind: str) -> Drawn | None:
    found = enough(rows[(rows["kind"] == kind) & (rows["metric"] == "mae_years")]).dropna(subset=["low", "high"])
    found = found[found["split"] == found["split"].iloc[0]] if len(found) else found
    if len(found) < 2:
        return None
    drawn = found.sort_values("n", ascending=False, kind="stable").head(MOST_ROWS_DRAWN)
    drawn = drawn.sort_values("part", kind="stable")
    drawn = drawn.assign(name=[f"{plain(str(row.part))} ({row.n})" for row in drawn.itertuples()])
    title = f"MAE by {kind.lower()} (people)"
    figure = figures.dots_with_intervals(drawn, xlabel="MAE (years)", title=title, colours=[ACCENT] * len(drawn))
    alt = f"{title}: from {found['estimate'].min():.1f} to {found['estimate'].max():.1f} years."
    more = f"The {len(drawn)} largest of {len(found)}." if len(drawn) < len(found) else ""
    caption = " ".join(filter(None, [f"{split_name(str(found['split'].iloc[0])).capitalize()}.", more]))
    return evaluation.canvas.draw(f"fairness_{kind.lower().replace(' ', '_')}", figure, alt=alt, caption=caption)
