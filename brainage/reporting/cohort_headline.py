"""The table at the head of a cohort's section: every model that was judged on it, side by side."""

from __future__ import annotations

from typing import Any

import pandas as pd

from brainage.downstream.results import CHANCE, MEAN_PREDICTOR, SCORED
from brainage.reporting.evaluations import Evaluation, whole
from brainage.reporting.page import Block
from brainage.reporting.style import SPLIT_NAMES
from brainage.reporting.tables import BASELINES, Cell, Estimate, Table, model_name
from brainage.reporting.task_tables import CORRECTIONS, own_phrases

WHOLE = ("", "1", "1.0")  # `labels=` of a fit on all labels
READ = {"probe": "probe", "gap": "gap"}  # predictors that every model has -> their words in a column's head
CONTRAST = "AD-CN"
Found = tuple[str, Estimate, Cell]  # name of the columns of numbers, the number, how it is shown


def cohort_headline(evaluation: Evaluation) -> list[Block]:
    """Age error, site, AUC of each pair and contrast of the gap, of the main model, its siblings and baselines.

    Of the run's own cohort only where groups were compared: its headline table has the rest.
    """
    columns = _columns(evaluation)
    names = _models(evaluation)
    if not names or (evaluation.own and not any(column.startswith(("AUC", "Gap")) for column in columns)):
        return []
    data: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for model in [*names, MEAN_PREDICTOR]:
        found = {header: column(model) for header, column in columns.items()}
        if not any(estimate for _, estimate, _ in found.values()):
            continue
        numbers: dict[str, Any] = {"model": model}
        for name, estimate, _ in found.values():
            numbers |= {**estimate.columns(name), f"{name}_n": estimate.n if estimate else pd.NA}
        data.append(numbers)
        shown.append({"Model": model_name(model), **{header: cell for header, (_, _, cell) in found.items()}})
    strong = tuple(i for i, row in enumerate(data) if row["model"] == evaluation.model)
    caption = f"Models on {evaluation.cohort}"
    return [evaluation.canvas.table(
        Table("headline_cohort" if evaluation.own else "headline", caption, pd.DataFrame(data), pd.DataFrame(shown),
              _note(evaluation, list(columns)), strong=strong)
    )]  # fmt: skip


def group_auc(evaluation: Evaluation, model: str, pair: str, predictor: str) -> Estimate:
    """AUC of a pair by a model's predictor: fits on all labels, folds of people."""
    rows = evaluation.rows("diagnosis", "auc", model=model, pair=pair, predictor=predictor)
    rows = whole(rows[rows["labels"].isin(WHOLE)], "pair", "predictor", "labels")
    return _estimate(rows)


def _models(evaluation: Evaluation) -> list[str]:
    """The main model, then siblings, then baselines; not what is no model."""
    rows = evaluation.results
    if rows is None:
        return []
    rows = rows[rows["task"].isin(["age", "diagnosis", "site"]) & rows["metric"].isin(["mae_years", "auc"])]
    names = list(dict.fromkeys(rows["model"][~rows["model"].isin([MEAN_PREDICTOR, CHANCE])]))
    order = {evaluation.model: -1, **{name: place for place, name in enumerate(BASELINES, start=1)}}
    return sorted(names, key=lambda name: order.get(name, 0))


def _columns(evaluation: Evaluation) -> dict[str, Any]:
    """Head of a column -> what it shows of a model; columns that no row is about are left out."""
    columns: dict[str, Any] = {}
    for split in SCORED:
        if len(whole(evaluation.rows("age", "mae_years", split=split))):
            where = f" {SPLIT_NAMES[split].removesuffix(' test')}" if evaluation.own else ""
            columns[f"MAE{where} (years)"] = lambda model, split=split: _mae(evaluation, model, split)
    if evaluation.rows("site", "balanced_accuracy")["estimate"].notna().any():
        columns["Site BAcc (%)"] = lambda model: _site(evaluation, model)
    aucs = evaluation.rows("diagnosis", "auc").dropna(subset=["estimate"])
    for pair in dict.fromkeys(aucs["pair"]):
        for predictor, word in READ.items():
            if (aucs["predictor"] == predictor).any():
                columns[f"AUC {pair}, {word}"] = lambda model, where=(pair, predictor): _auc(evaluation, model, *where)
    contrast = evaluation.rows("gap_contrast", "difference_years", contrast=CONTRAST)
    if contrast["estimate"].notna().any():
        columns[f"Gap {CONTRAST.replace('-', ' − ')} (years)"] = lambda model: _contrast(evaluation, model)
    return columns


def _mae(evaluation: Evaluation, model: str, split: str) -> Found:
    found = _estimate(whole(evaluation.rows("age", "mae_years", model=model, split=split)))
    return f"mae_years_{split}", found, found.cell(2, found.seeds_line(2), _n(found))


def _auc(evaluation: Evaluation, model: str, pair: str, predictor: str) -> Found:
    found = group_auc(evaluation, model, pair, predictor)
    return f"auc_{pair}_{predictor}", found, found.cell(2, found.seeds_line(2), _n(found))


def _contrast(evaluation: Evaluation, model: str) -> Found:
    rows = evaluation.rows("gap_contrast", model=model, contrast=CONTRAST, correction=evaluation.settings.correction)
    rows = whole(rows, "contrast", "correction")
    years, g = (_estimate(rows[rows["metric"] == metric]) for metric in ("difference_years", "hedges_g"))
    size = (f"g {g.estimate:.2f}", g.interval(2)) if g else ()
    cell = years.cell(2, *size, _n(years))
    return f"gap_{CONTRAST}_years", years, Cell(f"{years.estimate:+.2f}", cell.small) if years else cell


def _site(evaluation: Evaluation, model: str) -> Found:
    found = _estimate(whole(evaluation.rows("site", "balanced_accuracy", model=model)))
    shuffled = _estimate(whole(evaluation.rows("site", "chance_balanced_accuracy", model=model)))
    chance = shuffled or _estimate(whole(evaluation.rows("site", "balanced_accuracy", model=CHANCE)))
    told = f"chance {100 * chance.estimate:.1f}" if chance and found else ""
    return "site_bacc", found, found.cell(1, told, _n(found), scale=100)


def _estimate(rows: pd.DataFrame) -> Estimate:
    rows = rows.dropna(subset=["estimate"])
    if rows.empty:
        return Estimate()
    row = rows.iloc[0]
    return Estimate(float(row["estimate"]), float(row["low"]), float(row["high"]), int(row["n"]))


def _n(found: Estimate) -> str:
    return f"n {found.n}" if found else ""


def _note(evaluation: Evaluation, headers: list[str]) -> str:
    told = ["Brackets: 95 % intervals; n counts people."]
    if any(header.startswith("AUC") for header in headers):
        told.append(
            "Probe: on features of a model that was not trained further. AUC of the gap: of the brain-age gap alone."
        )
    if any(header.startswith("Gap") for header in headers):
        chosen = evaluation.settings.correction
        told.append(
            f"Gap AD − CN: patients minus healthy, bias correction {CORRECTIONS.get(chosen, chosen)}, with Hedges' g."
        )
    rows = evaluation.rows("diagnosis", "auc", predictor="probe")
    if len(rows) and any("sd over seeds" in phrase for note in rows["note"] for phrase in own_phrases(note)):
        told.append("Of several seeds, means of estimates and of interval ends.")
    told.append("Lower is better for the age error and the site, higher for AUC.")
    return " ".join(told)
