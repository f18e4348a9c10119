"""What a reader must know before the numbers: every reason to distrust them, worst first."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from brainage.data.table import PERSON
from brainage.downstream.results import EDGE, SCORED
from brainage.losses.names import CONTRASTIVE_NAMES
from brainage.reporting.evaluations import Evaluation
from brainage.reporting.run_folder import RunFolder
from brainage.reporting.style import SPLIT_NAMES
from brainage.reporting.tables import (
    MAE,
    MAE_STANDARDISED,
    SITE_BACC,
    Estimate,
    estimate,
    mean_predictor,
    model_name,
    models,
)
from brainage.reporting.task_findings import task_findings

SMALL_TEST = 30  # people
LARGE_DROPPED_SHARE = 0.05
LAST_LOOKS = 3


@dataclass
class Finding:
    """`severe`: the numbers must not be used; `caution`: read them with it in mind."""

    level: Literal["severe", "caution"]
    title: str
    text: str


def findings(run: RunFolder, evaluations: Sequence[Evaluation] = ()) -> list[Finding]:
    """All findings of a run and of the cohorts that it was judged on, severe ones first."""
    every = [finding for check in CHECKS for finding in check(run)]
    every += [Finding(*found) for evaluation in evaluations for found in task_findings(run, evaluation)]
    return sorted(every, key=lambda finding: finding.level != "severe")


def _leaks(run: RunFolder) -> Iterator[Finding]:
    for source, frame in (("table.parquet", run.table), ("split.tsv", run.split)):
        if frame is None:
            continue
        people = frame.dropna(subset=["split"]).drop_duplicates([*PERSON, "split"])
        count = int((people.groupby(PERSON, observed=True).size() > 1).sum())
        if count:
            text = (
                f"{count} people are in more than one split of {source}. No number below is an estimate for new people."
            )
            yield Finding("severe", "Leak between splits", text)
            return


def _seen(run: RunFolder) -> Iterator[Finding]:
    if run.evaluated is None or run.split is None:
        return
    trained = run.split[run.split["split"].isin(["train", "val"])]
    scored = run.evaluated.drop_duplicates(PERSON)
    both = scored.merge(trained[PERSON].drop_duplicates(), on=PERSON)
    if len(both):
        text = f"{len(both)} of the {len(scored)} people scored were in the encoder's training or validation split."
        yield Finding("severe", "People seen in training were scored", text)
    elif run.experiment.evaluate.allow_seen:
        text = "evaluate.allow_seen is on: nothing refused to score people whom the encoder was trained on."
        yield Finding("caution", "Scoring of seen people was allowed", text)


def _collapse(run: RunFolder) -> Iterator[Finding]:
    health = run.experiment.health
    share, rank = run.series("health/loss_over_collapse"), run.series("health/effective_rank")
    advice = "Try encoder.head=mlp_bn, a higher loss.temperature or a lower optim.lr."
    last, ranks = share["value"].tail(LAST_LOOKS), rank["value"].tail(LAST_LOOKS)
    low_rank = run.model in CONTRASTIVE_NAMES and len(ranks) and (ranks < health.min_effective_rank).all()
    if len(last) and ((last - 1).abs() < health.collapse_margin).all():
        text = f"At the end the loss stood at {last.iloc[-1]:.3f} of its value on a constant embedding. {advice}"
        yield Finding("severe", "The embedding collapsed", text)
    elif low_rank:
        text = f"At the end the effective rank was {ranks.iloc[-1]:.2f}. {advice}"
        yield Finding("severe", "The embedding collapsed", text)
    elif len(last) and (last > 1 - health.collapse_margin).all():
        told = f", with an effective rank of {ranks.iloc[-1]:.1f}" if len(ranks) else ""
        text = (
            f"At the end it stood at {last.iloc[-1]:.3f} of it{told}: undertrained or overfitted, look at the curves."
        )
        yield Finding("caution", "The loss is worse than that of a constant embedding", text)
    if not np.isfinite(run.series("train/loss")["value"].tail(1)).all():
        yield Finding("severe", "The loss is not a number", "The last training loss in the journal is not finite.")


def _stopped(run: RunFolder) -> Iterator[Finding]:
    if run.health.get("status", "ok") != "ok":
        yield Finding("severe", "Training was stopped", str(run.health.get("message", "health.json gives no reason.")))


def _unfinished(run: RunFolder) -> Iterator[Finding]:
    if run.finished is None:
        text = (
            "There is no finished.json: the network was read before the end of its training, or training was stopped."
        )
        yield Finding("caution", "Training has not finished", text)


def _trial(run: RunFolder) -> Iterator[Finding]:
    values = run.experiment
    short = [
        word
        for word, on in {
            "trainer.fast_dev_run": values.trainer.fast_dev_run,
            f"trainer.overfit_batches={values.trainer.overfit_batches}": values.trainer.overfit_batches > 0,
            f"data.limit={values.data.limit}": values.data.limit > 0,
        }.items()
        if on
    ]
    if short:
        yield Finding("severe", "A trial run", f"{', '.join(short)}: it shows that the road works, not how well.")


def _worse_than_guessing(run: RunFolder) -> Iterator[Finding]:
    for cohort, model in models(run):
        for split in SCORED:
            mae, guess = _mae(run, cohort, model, split), mean_predictor(run, cohort, split)
            if not (mae and guess):
                continue
            name = f"{model_name(model)}, {SPLIT_NAMES[split]}"
            numbers = f"MAE {mae.estimate:.2f} years; predicting the mean age gives {guess.estimate:.2f}."
            if mae.estimate >= guess.estimate:
                level: Literal["severe", "caution"] = "severe" if model == run.model else "caution"
                yield Finding(level, f"No better than the mean age ({name})", numbers)
            elif mae.high >= guess.estimate and model == run.model:
                text = f"{numbers} The interval {mae.interval(2)} reaches it."
                yield Finding("caution", f"Not clearly better than the mean age ({name})", text)


def _no_better_than_untrained(run: RunFolder) -> Iterator[Finding]:
    cohort = run.experiment.data.cohort
    for split in SCORED:
        mae, bar = _mae(run, cohort, run.model, split), _mae(run, cohort, "untrained", split)
        if mae and bar and mae.estimate >= bar.estimate:
            text = f"MAE {mae.estimate:.2f} years; the same encoder without any training reaches {bar.estimate:.2f}."
            yield Finding("caution", f"No better than an untrained encoder ({SPLIT_NAMES[split]})", text)


def _outside_train_ages(run: RunFolder) -> Iterator[Finding]:
    if run.table is None:
        return
    ages = run.table.loc[run.table["split"] == "train", "age_years"]
    scored = run.evaluated if run.evaluated is not None else run.table[run.table["split"].isin(SCORED)]
    if ages.empty or scored.empty:
        return
    outside = scored[(scored["age_years"] < ages.min()) | (scored["age_years"] > ages.max())]
    if len(outside):
        found = outside["age_years"]
        text = (
            f"{len(outside)} of {len(scored)} test scans are outside the ages trained on ({ages.min():.0f} to "
            f"{ages.max():.0f} years); test ages reach from {min(found.min(), scored['age_years'].min()):.0f} to "
            f"{max(found.max(), scored['age_years'].max()):.0f}. Their predictions are extrapolation."
        )
        yield Finding("caution", "Test ages outside the training range", text)


def _dropped(run: RunFolder) -> Iterator[Finding]:
    if run.dropped is None or run.table is None or run.dropped.empty:
        return
    share = len(run.dropped) / (len(run.dropped) + len(run.table))
    if share > LARGE_DROPPED_SHARE:
        text = f"{len(run.dropped)} scans ({100 * share:.1f} %) were left out; the data sheet below counts the reasons."
        yield Finding("caution", "Many scans were dropped", text)


def _site_probe(run: RunFolder) -> Iterator[Finding]:
    if run.results is None:
        return
    rows = run.results[run.results["task"] == SITE_BACC[0]]
    found = rows["note"].str.contains(r"not converge|unconverged|no convergence", flags=re.IGNORECASE, regex=True)
    labels = list(dict.fromkeys(model_name(model) for model in rows.loc[found, "model"]))
    if labels:
        text = f"{', '.join(labels)}: site accuracy may be too low, which would flatter L_c."
        yield Finding("caution", "A site probe did not converge", text)


def _penalty_at_edge(run: RunFolder) -> Iterator[Finding]:
    """A penalty on unscaled features is no fair choice when the grid ends before the best one, for some or for all."""
    if run.results is None:
        return
    whole = run.results[(run.results["part_kind"] == "") & run.results["estimate"].notna()]
    for task, word in ((MAE[0], "alpha"), (SITE_BACC[0], "C")):
        rows = whole[(whole["task"] == task) & whole["note"].str.contains(rf"\b{word} [\d.e+-]+")]
        at_edge = rows["note"].str.contains(EDGE, regex=False).groupby(rows["model"], sort=False).any()
        edge, inside = (list(at_edge.index[at_edge == there]) for there in (True, False))
        if not edge or not (run.model in edge or inside):
            continue
        text = f"{word} ends at the edge of its grid for {'; '.join(map(model_name, edge))}"
        text += f" (and not for {'; '.join(map(model_name, inside))})" if inside else ""
        text += ". The grid is the published one and features are not scaled, so the comparison depends on their scale"
        text += "; `age_standardised` in the full table does not." if task == MAE[0] else "."
        yield Finding("caution", f"Penalty of the {task} probe at the edge of its grid", text)


def _scale_decides(run: RunFolder) -> Iterator[Finding]:
    cohort, found = run.experiment.data.cohort, []
    for split in SCORED:
        for model in [model for place, model in models(run) if place == cohort]:
            mae, check = (estimate(run, cohort, model, split, *what) for what in (MAE, MAE_STANDARDISED))
            if abs(check.estimate - mae.estimate) > (mae.high - mae.low) / 2:
                name = f"{model_name(model)}, {SPLIT_NAMES[split]}"
                found.append(f"{name}: MAE {mae.estimate:.2f} years, {check.estimate:.2f} with standardised features")
    if found:
        text = f"{'; '.join(found)}. That is more than half the width of the interval."
        yield Finding("caution", "The age error depends on the scale of the features", text)


def _small_tests(run: RunFolder) -> Iterator[Finding]:
    if run.evaluated is None:
        return
    people = run.evaluated.drop_duplicates([*PERSON, "split"])["split"].value_counts()
    for split in SCORED:
        count = int(people.get(split, 0))
        if count == 0:
            yield Finding("caution", f"No {SPLIT_NAMES[split]}", f"Nobody of the {SPLIT_NAMES[split]} was scored.")
        elif count < SMALL_TEST:
            text = f"{count} people: differences between models are mostly chance."
            yield Finding("caution", f"Small {SPLIT_NAMES[split]}", text)


def _mae(run: RunFolder, cohort: str, model: str, split: str) -> Estimate:
    return estimate(run, cohort, model, split, *MAE)


CHECKS: list[Callable[[RunFolder], Iterator[Finding]]] = [
    _leaks, _seen, _collapse, _stopped, _trial, _worse_than_guessing, _unfinished, _no_better_than_untrained,
    _outside_train_ages, _small_tests, _site_probe, _penalty_at_edge, _scale_decides, _dropped,
]  # fmt: skip
