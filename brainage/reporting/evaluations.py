"""What a run folder holds on one cohort that was judged: its own, or one of RUN/evaluations; any piece may be absent.

A row of results belongs to one model and to parts (`pair=CN-AD`); each word of results.PARTS is a column here, empty
where a row says nothing of it. Frames of single people are those of the main network and never leave this module but
to be drawn without names or counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.config import EvaluateConfig, FinetuneConfig, from_plain
from brainage.data.table import PERSON, read_table, read_tsv
from brainage.downstream.results import PARTS, parts_of, read_results
from brainage.errors import DataError
from brainage.experiment_files import read_yaml
from brainage.reporting.page import Canvas
from brainage.reporting.run_folder import RunFolder, model_and_seed

NUMBER = ["cohort", "split", "task", "metric", *PARTS]  # what a row of one model is about
FRAMES = {  # columns that the report cannot do without
    "predictions": [*PERSON, "split", "age_years", "predicted_age_years", "model"],
    "gaps": [*PERSON, "age_years", "diagnosis", "mci_outcome", "healthy", "gap_none_years", "model", "seed"],
    "diagnosis": [
        *PERSON,
        "pair",
        "predictor",
        "folds",
        "labels",
        "truth",
        "score",
        "marker",
        "model",
        "seed",
    ],
    "trajectories": [*PERSON, "group", "visit_years", "gap_years", "model", "seed"],
    "survival": [*PERSON, "time_years", "event", "stratum", "model", "seed"],
}
NEEDS_TASKS = ("gap", "diagnosis", "age_interval", "fairness", "longitudinal", "survival", "mae_auc")


@dataclass(frozen=True)
class Evaluation:
    """`name` is empty for the run's own cohort; frames hold one network each and are None where there is none."""

    name: str
    path: Path
    cohort: str
    model: str  # the main network's, in results' `model`
    settings: EvaluateConfig
    finetune: FinetuneConfig
    results: pd.DataFrame | None  # RESULT_COLUMNS, model, seed and a text column for each of PARTS
    table: pd.DataFrame | None
    dropped: pd.DataFrame | None
    quality: pd.DataFrame | None
    frames: dict[str, pd.DataFrame]

    @property
    def own(self) -> bool:
        """Whether it is the cohort that the run was trained on."""
        return not self.name

    @cached_property
    def canvas(self) -> Canvas:
        """Where its figures and tables go: its own folder; one for all of its parts."""
        return Canvas(self.path)

    @property
    def anchor(self) -> str:
        """Start of every address on the page that is about it."""
        return "on-" + "".join(c if c.isalnum() else "-" for c in (self.name or self.cohort)).lower()

    def frame(self, name: str) -> pd.DataFrame | None:
        """Rows about single people of the main network, or None."""
        return self.frames.get(name)

    def rows(self, task: str, *metrics: str, model: str = "", network: int | None = None, **parts: str) -> pd.DataFrame:
        """Rows of a task of the main model or another, of all metrics or some, where the parts are as told
        (`correction="none"`).

        Several seeds: the row of all seeds where there is one, else that of the first. With `network`, rows of that
        seed alone where there are any.
        """
        if self.results is None:
            return pd.DataFrame(columns=[*NUMBER, "model", "seed", "estimate", "low", "high", "n", "note"])
        rows = self.results[(self.results["task"] == task) & (self.results["model"] == (model or self.model))]
        rows = rows[rows["metric"].isin(metrics)] if metrics else rows
        for word, name in parts.items():
            rows = rows[rows[word] == name]
        of_network = (rows["seed"] == network).fillna(False) if network is not None else pd.Series(dtype=bool)
        rows = rows[of_network] if of_network.any() else rows
        first = rows.sort_values("seed", na_position="first", kind="stable").drop_duplicates(NUMBER)
        return first.sort_index()

    def has(self, *tasks: str) -> bool:
        """Whether results tell anything of one of these tasks, be it why there is no number."""
        return self.results is not None and bool(self.results["task"].isin(tasks).any())


def whole(rows: pd.DataFrame, *but: str) -> pd.DataFrame:
    """Rows that are about no part of a split and no other way: those whose parts, `but` for some, are all empty."""
    return rows[(rows[[word for word in PARTS if word not in but]] == "").all(axis=1)]


def read_evaluations(run: RunFolder) -> list[Evaluation]:
    """The run's own cohort where a task beyond age and site was judged on it, then every folder of RUN/evaluations.

    Raises DataError naming a file that is torn or lacks columns.
    """
    folders = sorted(path for path in (run.path / "evaluations").glob("*") if path.is_dir())
    every = [read_evaluation(run, run.path, ""), *(read_evaluation(run, path, path.name) for path in folders)]
    return [one for one in every if not one.own or one.has(*NEEDS_TASKS) or one.frames.keys() - {"predictions"}]


def read_evaluation(run: RunFolder, folder: Path, name: str) -> Evaluation:
    """One folder's pieces."""
    results = _results(folder / "results.csv")
    table = _optional(folder / "table.parquet")
    model = _main_model(results, run.model)
    frames = {kind: _frame(folder / f"{kind}.parquet", columns, model, run) for kind, columns in FRAMES.items()}
    cohort = run.experiment.data.cohort if not name else _cohort(table, results, name)
    settings, finetune = _settings(run, folder, name)
    return Evaluation(
        name=name, path=folder, cohort=cohort, model=model, settings=settings, finetune=finetune, results=results,
        table=table, dropped=read_tsv(folder / "dropped.tsv") if (folder / "dropped.tsv").is_file() else None,
        quality=_optional(folder / "quality.parquet"),
        frames={kind: frame for kind, frame in frames.items() if frame is not None},
    )  # fmt: skip


def _results(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    frame = read_results(path)
    named = [model_and_seed(label) for label in frame["run"]]
    told = [parts_of(note) for note in frame["note"].fillna("")]
    words = {word: pd.array([parts.get(word, "") for parts in told], dtype="string") for word in PARTS}
    seeds = pd.array([seed for _, seed in named], dtype="Int64")
    return frame.assign(note=frame["note"].fillna(""), model=[model for model, _ in named], seed=seeds, **words)


def _main_model(results: pd.DataFrame | None, wanted: str) -> str:
    """The run's model; where others alone were judged (a table of embeddings), the one told most of."""
    if results is None or results.empty or (results["model"] == wanted).any():
        return wanted
    return str(results["model"].value_counts().index[0])


def _cohort(table: pd.DataFrame | None, results: pd.DataFrame | None, name: str) -> str:
    for frame in (table, results):
        if frame is not None and frame["cohort"].nunique() == 1:
            return str(frame["cohort"].iloc[0])
    return name


def _settings(run: RunFolder, folder: Path, name: str) -> tuple[EvaluateConfig, FinetuneConfig]:
    """What the evaluation was told, as it left it in evaluation.yaml; else the run's."""
    path = folder / "evaluation.yaml"
    told = read_yaml(path) if name and path.is_file() else {}
    here = from_plain({key: told[key] for key in ("evaluate", "finetune") if told.get(key)}, str(path))
    return (
        here.evaluate if told.get("evaluate") else run.experiment.evaluate,
        here.finetune if told.get("finetune") else run.experiment.finetune,
    )


def _frame(path: Path, columns: list[str], model: str, run: RunFolder) -> pd.DataFrame | None:
    """Rows of the main network, of the run's seed or else the first that is there."""
    frame = _optional(path)
    if frame is None:
        return None
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"{path}: missing columns {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")
    names = frame["model"].astype("string").map(lambda label: model_and_seed(label)[0])
    frame = frame[(names == model).fillna(False)]
    if "seed" in frame and len(frame):
        seeds = frame["seed"].astype("Int64")
        wanted = run.experiment.seed if (seeds == run.experiment.seed).any() else seeds.min()
        frame = frame[(seeds == wanted).fillna(False) | seeds.isna()]
    numbers = frame.select_dtypes("number").columns
    if len(frame) and np.isinf(frame[numbers].to_numpy(dtype=float, na_value=np.nan)).any():
        raise DataError(f"{path}: an infinite number; write the evaluation again")
    return frame.reset_index(drop=True) if len(frame) else None


def _optional(path: Path) -> pd.DataFrame | None:
    return read_table(path) if path.is_file() else None
