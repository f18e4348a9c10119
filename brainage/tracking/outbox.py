"""What a run folder wants MLflow to have besides its metrics: `outbox.jsonl`, one message a line.

    run       {uri, experiment, run_name, token, run_id, params, tags}   written at each attempt of the run
    tags      {tags}
    dataset   {name, digest, context, profile}
    artifact  {path, to}                                                 path relative to the run folder
    status    {status}

Every message has `kind` and `time_ms`. Delivering one twice changes nothing, so a server that lost its memory is simply
sent all of them again.
"""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Any, NamedTuple

from brainage.tracking.lines import read_lines

OUTBOX = "outbox.jsonl"

# Files that hold no row of a single person. A name that is not here is refused: data use agreements often forbid
# sending per-person rows anywhere, so a new file has to be judged before it travels.
AGGREGATE_FILES = (
    "config.yaml", "evaluate.yaml", "evaluation.yaml", "finetune.yaml", "contract.json", "environment.json",
    "finished.json", "health.json", "metrics.jsonl", "report.html", "results.csv",
)  # fmt: skip
AGGREGATE_FOLDERS = {"figures": (".svg", ".png", ".pdf"), "tables": (".csv", ".tex")}


class Target(NamedTuple):
    """Where a run folder delivers to: the latest `run` message, with the token and the time of the first."""

    uri: str
    experiment: str
    run_name: str
    token: str
    run_id: str | None
    start_ms: int


def is_aggregate(path: PurePath) -> bool:
    """Whether a file, relative to its run folder, may leave the machine: it describes groups, not persons.

    >>> is_aggregate(PurePath("figures/age_scatter.svg")), is_aggregate(PurePath("predictions.parquet"))
    (True, False)
    """
    if len(path.parts) == 1:
        return path.name in AGGREGATE_FILES
    return path.suffix in AGGREGATE_FOLDERS.get(path.parts[0], ())


def read_target(run_folder: Path) -> Target | None:
    """None where the folder has never asked for tracking."""
    runs: list[dict[str, Any]] = [line for line, _ in read_lines(run_folder / OUTBOX) if line.get("kind") == "run"]
    if not runs:
        return None
    run_id = next((run["run_id"] for run in reversed(runs) if run["run_id"]), None)
    first, last = runs[0], runs[-1]
    return Target(last["uri"], last["experiment"], last["run_name"], first["token"], run_id, first["time_ms"])
