"""Part of a cohort's section: who is told from whom, by which predictor, and how sure that is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from brainage.data.table import person_keys
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting import clinical_figures
from brainage.reporting.clinical_figures import PREDICTOR_NAMES, Line, predictor_name
from brainage.reporting.cohort_headline import WHOLE
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.page import Block, Canvas, Drawn
from brainage.reporting.task_tables import Column, enough, table_blocks
from brainage.statistics.roc import (
    CurveBand,
    CurvePoints,
    ReliabilityBin,
    curve_band,
    pr_points,
    reliability,
    roc_points,
)

BY_PEOPLE, BY_SITE = "people", "site"  # folds: of people, or of whole sites held out
FEWEST_BINS, MOST_BINS = 3, 10
RESAMPLES = 500  # behind a drawn band


def diagnosis(evaluation: Evaluation) -> list[Block]:
    """For each pair: ROC, precision and recall, reliability; then tables and the low-data curve."""
    canvas, rows = evaluation.canvas, evaluation.rows("diagnosis")
    whole = rows[rows["labels"].isin(WHOLE)]
    drawn = [figure for pair, curves in _curves(evaluation).items() for figure in _figures(evaluation, pair, curves)]
    drawn += _low_data(evaluation, rows)
    tables = _scores(canvas, whole[whole["folds"] != BY_SITE], "diagnosis", "Telling groups apart, by predictor")
    by_site = whole[whole["folds"] == BY_SITE]
    tables += _scores(canvas, by_site, "diagnosis_by_site", "The same with whole sites held out in turn")
    tables += table_blocks(
        canvas, "diagnosis_paired", "Differences between predictors, on the same people",
        evaluation.rows("diagnosis_paired"),
        {"pair": "Pair", "contrast": "Predictors", "folds": "Folds"},
        [Column("auc_difference", "AUC difference", 3, sign=True), Column("p", "p", kind="p"),
         Column("p_holm", "p, Holm", kind="p")],
        note="Above 0: the first predictor tells the groups apart better.",
        names={"contrast": contrast_name, "folds": lambda name: "whole sites" if name == BY_SITE else "people"},
    )  # fmt: skip
    return ([Block("figures", drawn)] if drawn else []) + tables


def _scores(canvas: Canvas, rows: pd.DataFrame, name: str, caption: str) -> list[Block]:
    return table_blocks(
        canvas, name, caption, rows, {"pair": "Pair", "predictor": "Predictor"},
        [
            Column("auc", "AUC", 3), Column("auc_delong", "by DeLong", 3, kind="interval"),
            Column("average_precision", "Average precision", 3),
            Column("balanced_accuracy", "Balanced accuracy (%)", 1, 100), Column("brier", "Brier", 3),
            Column("calibration_slope", "Calibration slope"),
        ],
        note="Everybody was judged by a fit on other people.", names={"predictor": predictor_name},
    )  # fmt: skip


def contrast_name(contrast: str) -> str:
    """
    >>> contrast_name("probe-age_sex")
    'probe on the embedding − age and sex'
    """
    return " − ".join(PREDICTOR_NAMES.get(name, name) for name in contrast.split("-"))


def _curves(evaluation: Evaluation) -> dict[str, dict[str, pd.DataFrame]]:
    """pair -> predictor -> rows person, truth, marker (what people are ranked by), score (a probability), seed, of the
    fits on all labels with people in folds; few people: none."""
    frame = evaluation.frame("diagnosis")
    if frame is None:
        return {}
    frame = frame[(frame["labels"] == 1) & (frame["folds"] == BY_PEOPLE)]
    frame = frame.dropna(subset=["marker", "truth"]).assign(truth=lambda rows: rows["truth"].astype(int))
    found: dict[str, dict[str, pd.DataFrame]] = {}
    for (pair, predictor), rows in frame.groupby(["pair", "predictor"], sort=False):
        rows = rows.assign(person=person_keys(rows))
        if rows.groupby("truth")["person"].nunique().reindex([0, 1]).fillna(0).min() >= FEWEST_PEOPLE:
            found.setdefault(str(pair), {})[str(predictor)] = rows[["person", "truth", "marker", "score", "seed"]]
    return found


def _figures(evaluation: Evaluation, pair: str, curves: dict[str, pd.DataFrame]) -> list[Drawn]:
    one = next(iter(curves.values()))
    network = None if one["seed"].isna().all() else int(one["seed"].min())  # of one seed, as the curve is
    rows = enough(evaluation.rows("diagnosis", "auc", network=network, pair=pair, folds=""))
    rows = rows[rows["labels"].isin(WHOLE)].drop_duplicates("predictor")
    aucs = {row.predictor: f"{row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]" for row in rows.itertuples()}
    sizes = f"{int((one['truth'] == 1).sum())} against {int((one['truth'] == 0).sum())} scans"
    slug, told = pair.replace("-", "_"), "; ".join(f"{predictor_name(name)} {auc}" for name, auc in aucs.items())
    prevalence = float(one["truth"].mean())
    pooled = {"finetuned", "scratch"} & set(curves)
    apart = " Areas of networks are over people of one fold, their curves over all folds." if pooled else ""
    drawn = [
        evaluation.canvas.draw(
            f"roc_{slug}",
            clinical_figures.roc(
                {name: _roc(rows) for name, rows in curves.items()}, _bands(roc_points, curves), aucs=aucs,
                title=f"{pair}: ROC",
            ),
            alt=f"ROC curves of {pair}, {sizes}; areas: {told or 'not computed'}.",
            caption=f"{sizes}; bands: 95 % of resamples of people. Dashed: guessing.{apart}",
        ),
        evaluation.canvas.draw(
            f"precision_{slug}",
            clinical_figures.precision_recall(
                {name: _precision(rows) for name, rows in curves.items()}, _bands(pr_points, curves),
                title=f"{pair}: precision and recall", prevalence=prevalence,
            ),
            alt=f"Precision against recall of {pair}; {100 * prevalence:.0f} % of the scans are patients'.",
            caption="Dashed: the share of patients, which guessing reaches.",
        ),
    ]  # fmt: skip
    known = {name: rows.dropna(subset=["score"]) for name, rows in curves.items()}
    bins = {name: _bins(rows) for name, rows in known.items() if rows["score"].between(0, 1).all()}
    bins = {name: found for name, found in bins.items() if len(found) >= FEWEST_BINS}
    if bins:
        figure = clinical_figures.reliability(bins, title=f"{pair}: reliability")
        alt = f"Share of patients against the predicted probability of {pair}: {', '.join(map(predictor_name, bins))}."
        caption = "Bins of equal size. On the dashed line a probability means what it says."
        drawn.append(evaluation.canvas.draw(f"reliability_{slug}", figure, alt=alt, caption=caption))
    return drawn


def _roc(rows: pd.DataFrame) -> Line:
    """False-positive rate and sensitivity at every threshold of the marker."""
    from sklearn.metrics import roc_curve

    x, y, _ = roc_curve(rows["truth"], rows["marker"], drop_intermediate=False)
    return x, y


def _precision(rows: pd.DataFrame) -> Line:
    """Each recall and the precision at the highest threshold that reaches it, which holds from the recall before."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(rows["truth"], rows["marker"])
    x, first = np.unique(recall[::-1], return_index=True)
    y = precision[::-1][first]
    y[0] = y[1]  # not the precision of nobody, which is 1 by definition
    return x, y


def _bands(points: CurvePoints, curves: dict[str, pd.DataFrame]) -> dict[str, CurveBand]:
    return {
        name: curve_band(
            points, rows["truth"].to_numpy(), rows["marker"].to_numpy(float), rows["person"].to_numpy(dtype=str),
            resamples=RESAMPLES, seed=0,
        )
        for name, rows in curves.items()
    }  # fmt: skip


def _bins(rows: pd.DataFrame) -> list[ReliabilityBin]:
    """At most MOST_BINS of at least twice FEWEST_PEOPLE scans each."""
    count = max(1, min(MOST_BINS, len(rows) // (4 * FEWEST_PEOPLE)))
    return reliability(rows["truth"].to_numpy(), rows["score"].to_numpy(float), count, 2 * FEWEST_PEOPLE)


def _low_data(evaluation: Evaluation, rows: pd.DataFrame) -> list[Drawn]:
    """AUC over the share of labels fitted on, of each pair with several shares."""
    rows = enough(rows[(rows["metric"] == "auc") & (rows["folds"] == "")])
    rows = rows.assign(x=pd.to_numeric(rows["labels"], errors="coerce").fillna(1.0) * 100)
    rows = rows.sort_values("labels", kind="stable").drop_duplicates(["pair", "predictor", "x"])
    drawn = []
    for pair, part in rows.groupby("pair", sort=False):
        if part["x"].nunique() < 2:
            continue
        learns = part.groupby("predictor")["x"].transform("nunique") > 1
        part = part[learns]
        figure = clinical_figures.curves_with_bands(
            part, xlabel="labels fitted on (%)", ylabel="AUC", title=f"{pair}: with fewer labels", reference=0.5,
            ticks=sorted(part["x"].unique()),
        )  # fmt: skip
        least = part["x"].min()
        told = "; ".join(
            f"{predictor_name(row.predictor)} {row.estimate:.2f}" for row in part[part["x"] == least].itertuples()
        )
        alt = f"AUC of {pair} against the share of labels fitted on; with {least:g} % of them: {told}."
        drawn.append(evaluation.canvas.draw(f"labels_{str(pair).replace('-', '_')}", figure, alt=alt))
    return drawn
