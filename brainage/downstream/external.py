"""Features of any tool judged by the code that judges the project's own networks.

What is judged is `Features`: nothing of the tool is run and no image is read. Scans of the cohort without a vector are
left out; how many is in the note of every row and in dropped.tsv, and too many of them are refused, since whoever is
left would be another cohort.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd

from brainage.config import Experiment
from brainage.data.source import ScanSource
from brainage.data.table import PERSON, finish_dropped
from brainage.downstream.evaluate_cohort import Judging
from brainage.downstream.feature_table import covered, read_feature_table
from brainage.downstream.features import Features
from brainage.downstream.kept import write_evaluation
from brainage.downstream.predictions import PREDICTION_COLUMNS
from brainage.downstream.results import CHANCE, MEAN_PREDICTOR, combine, results_frame
from brainage.downstream.scoring import Scoring
from brainage.downstream.tasks import frames_of
from brainage.errors import ConfigError, DataError
from brainage.runtime import console

__all__ = ["judge_features", "judge_stage", "read_feature_table"]

LEAST_COVERED = 0.5  # of the scans of each split: below, the scans with a vector are another cohort
UNKNOWN_TRAINING = "nobody knows whom this tool was trained on: people scored here may be among them"
NO_VECTOR = "no vector in the features that were judged"
_LABEL = re.compile(r"[\w.+-]+")


def judge_stage(experiment: Experiment, data: ScanSource, path: Path, label: str, out: Path) -> pd.DataFrame:
    """Read a table of features, judge it, print the headline; gives the results."""
    from brainage.headline import print_headline, print_tasks

    refuse_label(label)
    features = read_feature_table(path, data.planned(), label=label)
    results = judge_features(experiment, data, features, out)
    print_headline(results, label)
    print_tasks(results, label, experiment.evaluate.correction)
    console().print(f"results: {out / 'results.csv'}", soft_wrap=True)
    return results


def judge_features(experiment: Experiment, data: ScanSource, features: Features, out: Path) -> pd.DataFrame:
    """Every task of `experiment.evaluate` on features, and an evaluation folder in `out`; gives the results.

    Protocol: that of a run's own cohort (fitted on `evaluate.fit_splits`, scored on the tests), or with
    `evaluate.age_fitted_on=cohort` that of another cohort (everybody is judged, ages cross-fitted on the healthy).
    Of `data` only the table is looked at (`planned`, before a scan is read), never a sample. Raises DataError when
    less than LEAST_COVERED of the scans of a split have a vector, or nothing could be computed, ConfigError when `out`
    is a run folder.
    """
    refuse_label(features.label)
    if (out / "config.yaml").is_file():
        raise ConfigError(f"{out}: a run folder, whose results this would replace; name another folder")
    source = _Covered(data, features)
    notes = {features.label: [*source.notes, *([UNKNOWN_TRAINING] if features.seen is None else [])]}
    as_cohort = experiment.evaluate.age_fitted_on == "cohort"
    judge = _as_other_cohort if as_cohort else _as_own_cohort
    return judge(experiment, cast(ScanSource, source), features, out, _Notes(notes, source.notes))


def refuse_label(label: str) -> None:
    """Raise ConfigError on a name that results or files cannot bear, or that stands for something else in them."""
    taken = label in (MEAN_PREDICTOR, CHANCE) or re.search(r"[-_]seed[-_]?\d+$", label)
    if taken or not _LABEL.fullmatch(label):
        raise ConfigError(
            f"--label {label!r}: expected letters, digits, '_', '.', '+' or '-', not {MEAN_PREDICTOR}, {CHANCE} or "
            "an ending like -seed0"
        )


class _Covered:
    """The scans of a source that have a vector: as much of a ScanSource as judging looks at."""

    def __init__(self, data: ScanSource, features: Features) -> None:
        whole = data.planned().reset_index(drop=True)
        there = covered(features, whole)
        self.notes = _coverage_notes(whole, there)
        self.table = whole[there].reset_index(drop=True)
        self.dropped = finish_dropped(whole[~there].assign(reason=NO_VECTOR))
        _refuse_little(whole, there, features.label)


class _Notes:
    """Adds phrases to rows: those of a model to its own, those of the table to every row."""

    def __init__(self, of_model: dict[str, list[str]], of_all: Sequence[str]) -> None:
        self.of_model, self.of_all = of_model, list(of_all)

    def __call__(self, results: pd.DataFrame) -> pd.DataFrame:
        added = ["; ".join(self.of_model.get(str(run), self.of_all)) for run in results["run"]]
        notes = [f"{note}; {more}" if note and more else note or more for note, more in
                 zip(results["note"].fillna(""), added, strict=True)]  # fmt: skip
        return results.assign(note=pd.array(notes, dtype="string"))


def _as_own_cohort(
    experiment: Experiment, data: ScanSource, features: Features, out: Path, noted: _Notes
) -> pd.DataFrame:
    scoring = Scoring(experiment, data)
    judged = scoring.judge(features.label, [features.seed], lambda _: features)
    if not judged:
        raise scoring.errors[0]
    results = noted(combine([results_frame(scoring.lost), *map(scoring.results, judged)]))
    frames = frames_of(task for one in judged for task in one.tasks)
    frames["predictions"] = pd.concat([one.predictions for one in judged])[PREDICTION_COLUMNS]
    write_evaluation(out, experiment, data.table, data.dropped, frames, results)
    return results


def _as_other_cohort(
    experiment: Experiment, data: ScanSource, features: Features, out: Path, noted: _Notes
) -> pd.DataFrame:
    judging = Judging(experiment, data, out, out)
    judging.model(features.label, [features.seed], lambda _: (features, {}))
    if not judging.tasks:
        raise judging.errors[0]
    judging.results = [noted(frame) for frame in judging.results]
    return judging.write()


def _coverage_notes(table: pd.DataFrame, there: np.ndarray) -> list[str]:
    lost = int((~there).sum())
    if not lost:
        return []
    people = table.loc[~there, PERSON].drop_duplicates()
    gone = len(people.merge(table.loc[there, PERSON].drop_duplicates(), how="left", indicator=True).query(
        "_merge == 'left_only'"))  # fmt: skip
    return [f"{lost} of {len(table)} scans have no vector and are left out, {gone} people with them"]


def _refuse_little(table: pd.DataFrame, there: np.ndarray, label: str) -> None:
    split = table["split"].fillna("no split")
    counts: Any = (
        pd.DataFrame({"split": split, "there": there}).groupby("split", sort=False)["there"].agg(["sum", "size"])
    )
    for name, row in counts.iterrows():
        if row["sum"] < LEAST_COVERED * row["size"]:
            raise DataError(
                f"{label}: {row['sum']} of the {row['size']} scans in {name} have a vector; expected "
                f"{LEAST_COVERED:.0%} or more, since whoever is left would be another cohort"
            )
