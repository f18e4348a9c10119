"""What a run folder holds, read once for the report; every piece but config.yaml may not be there yet."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from brainage.config import Experiment, from_plain, read_experiment
from brainage.data.table import KEY, read_table, read_tsv
from brainage.downstream.results import SCORED, part_of, read_results
from brainage.errors import DataError
from brainage.experiment_files import read_yaml
from brainage.losses.names import SUPERVISED_NAMES

PREDICTION_COLUMNS = [*KEY, "split", "site", "age_years", "model", "predicted_age_years"]
JOURNAL_COLUMNS = ["step", "time_ms", "name", "value"]
SEED = re.compile(r"^(?P<model>.+?)[-_]seed[-_]?(?P<seed>\d+)$")


@dataclass
class RunFolder:
    """Frames are None where their file is not there (yet); `journal` is long: step, time_ms, name, value."""

    path: Path
    experiment: Experiment
    table: pd.DataFrame | None
    split: pd.DataFrame | None
    dropped: pd.DataFrame | None
    quality: pd.DataFrame | None  # computed, see brainage.imaging.quality
    journal: pd.DataFrame
    results: pd.DataFrame | None  # RESULT_COLUMNS, model and seed (of `run`), part_kind and part_name (of `note`)
    predictions: pd.DataFrame | None  # one row a scan and network, with `label` as in results' `run`
    embeddings: dict[str, Path]
    contract: dict[str, Any]
    environment: dict[str, Any]
    health: dict[str, Any]
    finished: dict[str, Any] | None

    @property
    def model(self) -> str:
        """Name of the loss that the experiment trains."""
        return self.experiment.loss.name

    @property
    def label(self) -> str:
        """Label of the network that the run folder is about, in results, predictions and embeddings."""
        return f"{self.model}-seed{self.experiment.seed}"

    @property
    def features(self) -> str:
        """What was read of the main network: `trunk`, or `head` (which of a supervised network is an age)."""
        return "trunk" if self.model in SUPERVISED_NAMES else self.experiment.evaluate.features

    @property
    def evaluated(self) -> pd.DataFrame | None:
        """Predictions of the main network on people of the test splits."""
        if self.predictions is None:
            return None
        rows = self.predictions
        rows = rows[rows["label"].isin([self.label, self.model]) & rows["split"].isin(SCORED)]
        return rows if len(rows) else None

    def series(self, name: str) -> pd.DataFrame:
        """Columns step, value of one journal metric, sorted by step; a replayed step counts once, the last time."""
        rows = self.journal[self.journal["name"] == name]
        return rows.drop_duplicates("step", keep="last").sort_values("step")[["step", "value"]].reset_index(drop=True)


def read_run(folder: str | Path) -> RunFolder:
    """Read everything the report needs; raises DataError when the folder or config.yaml is absent or a file is torn."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"run folder {folder}: not found; expected the folder that `brainage pretrain` printed")
    return RunFolder(
        path=folder,
        experiment=_experiment(folder),
        table=_optional(folder / "table.parquet", read_table),
        split=_optional(folder / "split.tsv", read_tsv),
        dropped=_optional(folder / "dropped.tsv", read_tsv),
        quality=_optional(folder / "quality.parquet", read_table),
        journal=read_journal(folder / "metrics.jsonl"),
        results=_optional(folder / "results.csv", _results),
        predictions=_optional(folder / "predictions.parquet", _predictions),
        embeddings={path.stem: path for path in sorted((folder / "embeddings").glob("*.parquet"))},
        contract=_json(folder / "contract.json") or {},
        environment=_json(folder / "environment.json") or {},
        health=_json(folder / "health.json") or {},
        finished=_json(folder / "finished.json"),
    )


def read_journal(path: Path) -> pd.DataFrame:
    """Long frame of `metrics.jsonl`. A torn last line (the process was killed while writing) is left out.

    Raises DataError naming the line where any other one is not readable.
    """
    rows: list[tuple[int, int, str, float]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step, time_ms = int(entry["step"]), int(entry.get("time_ms", 0))
            rows += [
                (step, time_ms, name, float(value)) for name, value in entry["metrics"].items() if value is not None
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number < len(lines):
                raise DataError(f"{path}: line {number} is not a journal entry ({error}); remove that line") from error
    return pd.DataFrame(rows, columns=JOURNAL_COLUMNS).astype({"step": "int64", "time_ms": "int64", "value": "float64"})


def model_and_seed(label: str) -> tuple[str, int | None]:
    """Split a label into the name of the model and its seed.

    >>> model_and_seed("exp-seed0"), model_and_seed("pca_ridge")
    (('exp', 0), ('pca_ridge', None))
    """
    match = SEED.match(label)
    return (match["model"], int(match["seed"])) if match else (label, None)


def _experiment(folder: Path) -> Experiment:
    """config.yaml is from the training; an evaluation with other values leaves those that it used in evaluate.yaml and
    finetune.yaml."""
    experiment = _read_config(folder / "config.yaml")
    for section in ("evaluate", "finetune"):
        used = folder / f"{section}.yaml"
        if used.is_file():
            values = getattr(from_plain({section: read_yaml(used)}, str(used)), section)
            experiment = dataclasses.replace(experiment, **{section: values})
    return experiment


def _read_config(path: Path) -> Experiment:
    if not path.is_file():
        raise DataError(
            f"{path}: not found; expected a run folder of `brainage pretrain`, which always holds config.yaml"
        )
    return read_experiment(path)


def _optional(path: Path, read: Callable[[Path], pd.DataFrame]) -> pd.DataFrame | None:
    return read(path) if path.is_file() else None


def _results(path: Path) -> pd.DataFrame:
    frame = read_results(path)
    frame["note"] = frame["note"].fillna("")
    names = [model_and_seed(label) for label in frame["run"]]
    places = [part_of(note) for note in frame["note"]]
    return frame.assign(
        model=[model for model, _ in names], seed=pd.array([seed for _, seed in names], dtype="Int64"),
        part_kind=[kind for kind, _ in places], part_name=[name for _, name in places],
    )  # fmt: skip


def _predictions(path: Path) -> pd.DataFrame:
    frame = read_table(path)
    _refuse_missing(frame, PREDICTION_COLUMNS, path)
    seeds = frame["seed"] if "seed" in frame else pd.Series(pd.NA, index=frame.index)
    named = frame["model"].map(lambda name: model_and_seed(name)[1] is not None)
    trained = ~named & seeds.notna()
    suffix = "-seed" + pd.to_numeric(seeds, errors="coerce").astype("Int64").astype("string")
    return frame.assign(label=frame["model"].mask(trained, frame["model"] + suffix).astype("string"))


def _refuse_missing(frame: pd.DataFrame, columns: list[str], path: Path) -> None:
    missing = [name for name in columns if name not in frame]
    if missing:
        raise DataError(f"{path}: missing columns {', '.join(missing)}; found {', '.join(map(str, frame.columns))}")


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}); remove it and write the report again") from error
    return values if isinstance(values, dict) else {"value": values}
