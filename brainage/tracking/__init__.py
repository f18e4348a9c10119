"""Metrics on disk first, MLflow second: a run's folder holds everything, a background sender delivers it.

lines     append-only JSON lines that survive kill -9        journal   metrics.jsonl
courier   what a folder wants on the server -> MLflow        mlflow_run   the run as training sees it, and `sync`

Files in the run folder: metrics.jsonl (measured points), outbox.jsonl (everything else that MLflow shall have),
mlflow.json (run id and how many bytes of both files the server has). Training only ever appends to the first two, so it
never waits for a server; importing this package loads neither MLflow nor torch.
"""

from brainage.tracking.journal import MetricJournal, read_journal
from brainage.tracking.mlflow_run import MlflowRun, start_mlflow_run, sync_run
from brainage.tracking.outbox import is_aggregate

__all__ = ["MetricJournal", "MlflowRun", "is_aggregate", "read_journal", "start_mlflow_run", "sync_run"]
