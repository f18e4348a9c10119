"""Reasons to distrust what was found on a cohort: (level, title, text), for brainage.reporting.findings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pandas as pd

from brainage.data.table import PERSON, person_keys
from brainage.downstream.results import FEWEST_PEOPLE
from brainage.reporting.clinical_figures import predictor_name
from brainage.reporting.cohort_headline import group_auc
from brainage.reporting.evaluations import Evaluation, whole
from brainage.reporting.run_folder import RunFolder
from brainage.reporting.tables import BASELINES, model_name

Found = tuple[Literal["severe", "caution"], str, str]
AGE_SEPARATES = 0.7  # AUC of age and sex alone
FEW_EVENTS = 30  # of a survival model with one or two terms
LARGE_SHARE = 0.05  # of scans outside the ages of the people that something was fitted on
LEARNT = ("gap", "probe", "finetuned", "scratch")
FALLBACK = re.compile(r"fall(s|en)? ?back|without a random slope|random intercept only|not converge|singular", re.I)
UNCONVERGED = re.compile(r"not converge|unconverged|no convergence", re.I)


def task_findings(run: RunFolder, evaluation: Evaluation) -> list[Found]:
    """All of one cohort."""
    return [found for check in CHECKS for found in check(run, evaluation)]


def _of(evaluation: Evaluation) -> str:
    return evaluation.name or evaluation.cohort


def _seen(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """People of another cohort's table who were trained on."""
    if evaluation.own or evaluation.table is None or run.split is None:
        return
    trained = run.split[run.split["split"].isin(["train", "val"])]
    both = evaluation.table[PERSON].drop_duplicates().merge(trained[PERSON].drop_duplicates(), on=PERSON)
    if len(both):
        text = f"{len(both)} people of this cohort were in the encoder's training or validation split."
        yield "severe", f"People seen in training were judged ({_of(evaluation)})", text


def _ages(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    if evaluation.own or evaluation.table is None or run.table is None:
        return
    trained = run.table.loc[run.table["split"] == "train", "age_years"].dropna()
    ages = evaluation.table["age_years"].dropna()
    if trained.empty or ages.empty:
        return
    outside = (ages < trained.min()) | (ages > trained.max())
    if outside.any():
        text = (
            f"{int(outside.sum())} of {len(ages)} scans are outside the ages trained on ({trained.min():.0f} to "
            f"{trained.max():.0f} years). Their predictions are extrapolation."
        )
        yield "caution", f"Ages outside the training range ({_of(evaluation)})", text


def _corrected_outside(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """A correction is a line through healthy people's ages; beyond them it is a guess."""
    del run
    gaps = evaluation.frame("gaps")
    if gaps is None or evaluation.settings.correction == "none":
        return
    healthy = _fitted_ages(evaluation, gaps)
    ages = gaps["age_years"].dropna()
    if len(healthy) < FEWEST_PEOPLE or ages.empty:
        return
    outside = (ages < healthy.min()) | (ages > healthy.max())
    if outside.mean() > LARGE_SHARE:
        text = (
            f"{int(outside.sum())} of {len(ages)} scans are of ages that no healthy person of the correction has "
            f"({healthy.min():.0f} to {healthy.max():.0f} years): their corrected gap is extrapolated."
        )
        yield "caution", f"Bias correction outside its ages ({_of(evaluation)})", text


def _fitted_ages(evaluation: Evaluation, gaps: pd.DataFrame) -> pd.Series:
    """Ages that the correction knows: healthy people of the gaps when it was cross-fitted, else those of correct_on."""
    well = gaps[gaps["healthy"].astype(bool)]
    if "corrected_by" in gaps and (gaps["corrected_by"] >= 0).any():
        return well["age_years"].dropna()
    table = evaluation.table
    if table is None:
        return pd.Series(dtype=float)
    rows = table[table["split"].isin(evaluation.settings.correct_on)]
    known = rows["diagnosis"].notna()
    return (rows[rows["diagnosis"] == "CN"] if known.any() else rows)["age_years"].dropna()


def _corrected_slope(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """Whether the gap of healthy people still depends on age."""
    del run
    chosen = evaluation.settings.correction
    rows = evaluation.rows("gap", "age_slope", correction=chosen)
    rows = rows[rows["group"].isin(["CN", "everybody"])].dropna(subset=["low"])
    for row in rows.head(1).itertuples():
        if chosen != "none" and (row.low > 0 or row.high < 0):
            text = f"{row.estimate:+.3f} years a year [{row.low:.3f}, {row.high:.3f}] in the healthy people judged."
            yield "caution", f"The corrected gap still depends on age ({_of(evaluation)})", text


def _age_separates(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    del run
    rows = _aucs(evaluation)
    for row in rows[(rows["predictor"] == "age_sex") & (rows["estimate"] > AGE_SEPARATES)].itertuples():
        text = f"Age and sex alone reach an AUC of {row.estimate:.2f}: any predictor that knows age gets that for free."
        yield "caution", f"Age tells the groups apart ({row.pair}, {_of(evaluation)})", text


def _no_better_than_guessing(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    del run
    rows = _aucs(evaluation)
    rows = rows[rows["predictor"].isin(LEARNT) & (rows["low"] <= 0.5) & (rows["high"] >= 0.5)]
    for pair, part in rows.groupby("pair", sort=False):
        told = "; ".join(
            f"{predictor_name(row.predictor)} {row.estimate:.2f} [{row.low:.2f}, {row.high:.2f}]"
            for row in part.itertuples()
        )
        yield (
            "caution",
            f"Not clearly better than guessing ({pair}, {_of(evaluation)})",
            f"The interval holds 0.5: {told}.",
        )


def _no_better_than_a_baseline(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """A linear probe on what was never trained tells the groups apart better than one on the main network."""
    del run
    pairs = list(dict.fromkeys(evaluation.rows("diagnosis", "auc")["pair"]))
    for baseline in BASELINES:
        both = {pair: [group_auc(evaluation, model, pair, "probe") for model in (evaluation.model, baseline)]
                for pair in pairs if baseline != evaluation.model}  # fmt: skip
        told = "; ".join(
            f"{pair} {bar.estimate:.2f} {bar.interval(2)} against {own.estimate:.2f} {own.interval(2)}"
            for pair, (own, bar) in both.items()
            if own and bar and bar.estimate >= own.estimate
        )
        if told:
            name = model_name(baseline)
            text = (
                f"AUC of a probe on {name} against one on {model_name(evaluation.model)}, on the same people: {told}."
            )
            yield "caution", f"No better than {baseline} ({_of(evaluation)})", text


def _every(evaluation: Evaluation, task: str) -> pd.DataFrame:
    """Rows of every seed of the main model: those of all seeds together do not repeat what went wrong in one."""
    rows = evaluation.results
    if rows is None:
        return evaluation.rows(task)
    return rows[(rows["task"] == task) & (rows["model"] == evaluation.model)]


def _aucs(evaluation: Evaluation) -> pd.DataFrame:
    rows = evaluation.rows("diagnosis", "auc", folds="")
    return rows[rows["labels"].isin(["", "1", "1.0"]) & rows["estimate"].notna()].drop_duplicates(["pair", "predictor"])


def _site_probe(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """Of another cohort; the run's own is checked with its results."""
    del run
    if evaluation.own:
        return
    rows = _every(evaluation, "site")
    if any(UNCONVERGED.search(note) for note in rows["note"]):
        text = "Site accuracy may be too low, which would flatter the features."
        yield "caution", f"A site probe did not converge ({_of(evaluation)})", text


def _fallback(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    del run
    rows = _every(evaluation, "longitudinal")
    notes = [phrase for note in rows["note"] for phrase in note.split("; ") if FALLBACK.search(phrase)]
    if notes:
        yield "caution", f"The mixed model fell back ({_of(evaluation)})", f"{'; '.join(dict.fromkeys(notes))}."


def _events(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    del run
    frame = evaluation.frame("survival")
    if frame is None:
        return
    each = frame.assign(person=person_keys(frame)).groupby("person")["event"].max()
    events = int(each.sum())
    if events < FEW_EVENTS:
        text = f"{events} of {len(each)} people converted: hazard ratios are unstable below {FEW_EVENTS} events."
        yield "caution", f"Few events ({_of(evaluation)})", text


def _worse_than_the_mean(run: RunFolder, evaluation: Evaluation) -> Iterator[Found]:
    """Of another cohort: an MAE that answering the mean age would reach."""
    if evaluation.own or evaluation.results is None:
        return
    every = evaluation.results
    guess = every[(every["task"] == "age") & (every["metric"] == "mae_years") & (every["model"] == "mean_predictor")]
    rows = whole(evaluation.rows("age", "mae_years"))
    for row in rows.itertuples():
        bar = guess.loc[guess["split"] == row.split, "estimate"].mean()
        if np.isfinite(bar) and row.estimate >= bar:
            text = f"MAE {row.estimate:.2f} years; predicting the mean age gives {bar:.2f}."
            level: Literal["severe", "caution"] = "severe" if evaluation.model == run.model else "caution"
            yield level, f"No better than the mean age ({_of(evaluation)})", text


CHECKS: list[Callable[[RunFolder, Evaluation], Iterator[Found]]] = [
    _seen, _worse_than_the_mean, _ages, _corrected_outside, _corrected_slope, _age_separates, _no_better_than_guessing,
    _no_better_than_a_baseline, _site_probe, _fallback, _events,
]  # fmt: skip
