"""Part of a cohort's section: whether networks that tell age better tell patients better."""

from __future__ import annotations

import pandas as pd

from brainage.reporting import clinical_figures
from brainage.reporting.clinical_figures import predictor_name
from brainage.reporting.evaluations import Evaluation, whole
from brainage.reporting.page import Block, Drawn
from brainage.reporting.tables import model_name
from brainage.reporting.task_tables import Column, table_blocks

FEWEST_NETWORKS = 3
LEARNT = ("probe", "gap", "finetuned")  # predictors that depend on the network, the first that is there is drawn


def mae_auc(evaluation: Evaluation) -> list[Block]:
    """A scatter over networks (losses, seeds, checkpoints) for each pair, and the correlation."""
    drawn = [figure for pair in _pairs(evaluation) if (figure := _scatter(evaluation, pair))]
    blocks = [Block("figures", drawn)] if drawn else []
    if evaluation.results is not None and evaluation.has("mae_auc"):
        rows = evaluation.results[evaluation.results["task"] == "mae_auc"]
        blocks += table_blocks(
            evaluation.canvas, "mae_auc", "Age error against diagnosis, over networks", rows,
            {"pair": "Pair", "predictor": "Predictor", "group": "Of"},
            [Column("pearson_r", "Pearson r"), Column("spearman_r", "Spearman r")],
            note="Below 0: networks that err less in age tell the groups apart better. n counts networks.",
            names={"predictor": predictor_name},
        )  # fmt: skip
    return blocks


def networks(evaluation: Evaluation, pair: str) -> pd.DataFrame:
    """One row a network with an age MAE and an AUC: x (MAE), y (AUC), kind (its model), predictor."""
    rows = evaluation.results
    none = pd.DataFrame(columns=["x", "y", "kind", "predictor"])
    if rows is None:
        return none
    ages = rows[(rows["task"] == "age") & (rows["metric"] == "mae_years")]
    ages = whole(ages, "ages").dropna(subset=["estimate"]).sort_values("split", kind="stable").drop_duplicates("run")
    aucs = rows[(rows["task"] == "diagnosis") & (rows["metric"] == "auc") & (rows["pair"] == pair)]
    aucs = aucs[(aucs["folds"] == "") & aucs["labels"].isin(["", "1", "1.0"])].dropna(subset=["estimate"])
    there = [predictor for predictor in LEARNT if (aucs["predictor"] == predictor).any()]
    if not there:
        return none
    both = ages.merge(aucs[aucs["predictor"] == there[0]], on="run", suffixes=("", "_auc"))
    several = both["model"].isin(both.loc[both["seed"].notna(), "model"]) & both["seed"].isna()  # means over seeds
    both = both[~several]
    return pd.DataFrame(
        {"x": both["estimate"], "y": both["estimate_auc"], "kind": both["model"], "predictor": there[0]}
    )


def _pairs(evaluation: Evaluation) -> list[str]:
    rows = evaluation.results
    if rows is None:
        return []
    return list(dict.fromkeys(rows.loc[(rows["task"] == "diagnosis") & (rows["pair"] != ""), "pair"]))


def _scatter(evaluation: Evaluation, pair: str) -> Drawn | None:
    points = networks(evaluation, pair)
    if len(points) < FEWEST_NETWORKS:
        return None
    told = predictor_name(str(points["predictor"].iloc[0]))
    figure = clinical_figures.two_numbers(
        points.assign(kind=points["kind"].map(model_name)), xlabel=f"MAE on {evaluation.cohort} (years)",
        ylabel=f"AUC of the {told}", title=f"{pair}: age error against AUC",
    )  # fmt: skip
    r = points["x"].corr(points["y"])
    alt = f"AUC of {pair} ({told}) against age error of {len(points)} networks; Pearson correlation {r:+.2f}."
    caption = "One dot a network (losses, seeds). Few networks make no law: see the interval of the correlation."
    return evaluation.canvas.draw(f"mae_auc_{pair.replace('-', '_')}", figure, alt=alt, caption=caption)
