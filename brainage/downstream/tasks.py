"""All downstream tasks of one readout, and the same of several seeds as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from brainage.config import EvaluateConfig, Experiment
from brainage.data.source import ScanSource
from brainage.downstream.diagnosis import NETWORKS, FitPredict, evaluate_diagnosis
from brainage.downstream.gap import evaluate_gap
from brainage.downstream.longitudinal import evaluate_longitudinal
from brainage.downstream.readout import Readout
from brainage.downstream.results import RESULT_COLUMNS, combine, parts_of, result_row, results_frame
from brainage.downstream.survival import evaluate_survival
from brainage.downstream.task import TaskResult, not_computed
from brainage.statistics.bootstrap import Interval

OF_READOUTS = ("gap", "diagnosis", "longitudinal")  # tasks that start from a readout


def networks_of(
    experiment: Experiment, checkpoint: Path | None, data: ScanSource, predictors: Sequence[str]
) -> dict[str, FitPredict]:
    """The networks among `predictors` that learn the diagnosis: from the checkpoint, and from fresh weights."""
    wanted = [name for name in NETWORKS if name in predictors]
    if not wanted or checkpoint is None:
        return {}
    from brainage.downstream.finetune import network_predictor

    return {name: network_predictor(experiment, checkpoint, data, pretrained=name == "finetuned") for name in wanted}


def without_networks(config: EvaluateConfig, networks: Mapping[str, FitPredict]) -> EvaluateConfig:
    """The same without the predictors that only the run's own network has: baselines are not fine-tuned."""
    predictors = [name for name in config.predictors if name not in NETWORKS or name in networks]
    return dataclasses.replace(config, predictors=predictors)


def run_tasks(
    readout: Readout, *, config: EvaluateConfig, seed: int, networks: Mapping[str, FitPredict] | None = None
) -> TaskResult:
    """Gap, diagnosis, trajectories and survival, as far as `config.tasks` asks for them.

    The last three read the gaps, so these are computed for any of them, and shown where `gap` is asked for.
    """
    asked = set(config.tasks) & set(OF_READOUTS)
    if not asked:
        return TaskResult(results_frame([]))
    gap = evaluate_gap(readout, config=config, seed=seed)
    done = [gap] if "gap" in asked else [TaskResult(results_frame([]), gap.frames)]
    gaps = gap.frames.get("gaps")
    if gaps is None:
        done = [TaskResult(gap.results)]  # why there are none, whether asked for or not
    if "diagnosis" in asked:  # embedding, age and sex need no gap
        known = pd.DataFrame() if gaps is None else gaps
        done.append(evaluate_diagnosis(readout, known, config=config, seed=seed, networks=networks))
    if "longitudinal" in asked:
        done += _over_years(readout, gaps, config, seed)
    return merge(done)


def _over_years(readout: Readout, gaps: pd.DataFrame | None, config: EvaluateConfig, seed: int) -> Iterator[TaskResult]:
    """Trajectories and survival of the corrected gap; of the raw one, with a word on it, where there is no other."""
    where = (readout.label, readout.cohort, readout.split)
    parts = (("longitudinal", "slope_years_per_year"), ("survival", "hazard_ratio"))
    if gaps is None:
        yield from (not_computed(*where, *part, "there are no gaps, see the rows of the task gap") for part in parts)
        return
    if gaps[f"gap_{config.correction}_years"].isna().all():
        reason = f"there is no gap corrected by {config.correction}, see the rows of the task gap; the raw one is read"
        yield from (not_computed(*where, *part, reason, f"correction={config.correction}") for part in parts)
        config = dataclasses.replace(config, correction="none")
    yield evaluate_longitudinal(readout, gaps, config=config, seed=seed)
    yield evaluate_survival(readout, gaps, config=config, seed=seed)


def merge(parts: Iterable[TaskResult]) -> TaskResult:
    """Several results about one network as one."""
    parts = list(parts)
    return TaskResult(combine(part.results for part in parts), frames_of(parts))


def frames_of(parts: Iterable[TaskResult]) -> dict[str, pd.DataFrame]:
    """Name -> the frames of that name under each other, of one network or many."""
    parts = list(parts)
    names = dict.fromkeys(name for part in parts for name in part.frames)
    return {
        name: pd.concat([part.frames[name] for part in parts if name in part.frames], ignore_index=True)
        for name in names
    }


def over_seeds(results: Sequence[pd.DataFrame], seeds: Sequence[int], *, asked: int) -> pd.DataFrame:
    """One row for each number: the mean of estimates and of interval ends over the seeds that have it, and how many
    of the `asked` ones those are.

    p values are left out: their mean is no p value. `results` are frames of one model, one a seed.
    """
    if not results:
        return results_frame([])
    rows = pd.concat([frame.assign(seed=seed) for frame, seed in zip(results, seeds, strict=True)], ignore_index=True)
    rows["parts"] = ["; ".join(map("=".join, parts_of(str(note)).items())) for note in rows["note"]]
    rows = rows[~rows["metric"].str.fullmatch("p|p_holm")]
    found = []
    for where, part in rows.groupby([*RESULT_COLUMNS[:5], "parts"], sort=False):
        run, cohort, split, task, metric, parts = (str(word) for word in where)
        known = part[part["estimate"].notna()]
        if known.empty:
            found.append(dict(part.iloc[0][RESULT_COLUMNS]))  # its note says why
            continue
        listed = ", ".join(map(str, known["seed"]))
        notes = [f"{len(known)} of {asked} seeds" if len(known) < asked else ""]
        if len(known) > 1:
            notes.append(f"seeds {listed}, sd over seeds {known['estimate'].std(ddof=1):.3g}")
        ends = known[["low", "high"]].mean(skipna=False)
        if len(known) > 1 and ends.notna().all():
            notes.append("interval ends are means over seeds")
        values = Interval(float(known["estimate"].mean()), *ends)
        n = int(known["n"].max())
        found.append(result_row(run, cohort, split, task, metric, values, n, parts, *notes))
    return results_frame(found)
