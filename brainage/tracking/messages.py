"""How each message of the outbox is sent: kind -> function(client, run_id, run_folder, message). All are repeatable."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brainage.runtime.console import warn

PER_BATCH = 100  # MLflow's limit for params and tags
LONGEST_PARAM = 6000  # characters, MLflow's limit
LONGEST_TAG = 8000


def send_run(client: Any, run_id: str, run_folder: Path, message: dict[str, Any]) -> None:
    """An attempt starts: its params, its tags, and the run is running again.

    MLflow refuses to change a param, so a value that differs from an earlier attempt's becomes a tag `changed.<key>`.
    """
    known = client.get_run(run_id).data.params
    wanted = {key: str(value)[:LONGEST_PARAM] for key, value in message["params"].items()}
    fresh = {key: value for key, value in wanted.items() if key not in known}
    changed = {f"changed.{key}": value for key, value in wanted.items() if key in known and known[key] != value}
    _send_params(client, run_id, fresh)
    _send_tags(client, run_id, {**changed, **message["tags"]})
    client.update_run(run_id, status="RUNNING")


def send_tags(client: Any, run_id: str, run_folder: Path, message: dict[str, Any]) -> None:
    _send_tags(client, run_id, message["tags"])


def send_dataset(client: Any, run_id: str, run_folder: Path, message: dict[str, Any]) -> None:
    """A cohort by its name, the hash of its split and group counts; where it lies stays at home."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=message["name"],
        digest=message["digest"],
        source_type="brainage",
        source=json.dumps({"cohort": message["name"]}),
        profile=json.dumps(message["profile"]),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", message["context"])])])


def send_artifact(client: Any, run_id: str, run_folder: Path, message: dict[str, Any]) -> None:
    path = run_folder / message["path"]
    if path.is_file():
        client.log_artifact(run_id, str(path), message["to"] or None)
    else:
        warn(f"{path}: was to go to MLflow but is no longer there; not sent")


def send_status(client: Any, run_id: str, run_folder: Path, message: dict[str, Any]) -> None:
    client.set_terminated(run_id, message["status"], message["time_ms"])


SENDERS: dict[str, Callable[[Any, str, Path, dict[str, Any]], None]] = {
    "run": send_run,
    "tags": send_tags,
    "dataset": send_dataset,
    "artifact": send_artifact,
    "status": send_status,
}


def _send_params(client: Any, run_id: str, params: dict[str, str]) -> None:
    from mlflow.entities import Param

    entities = [Param(key, value) for key, value in params.items()]
    for start in range(0, len(entities), PER_BATCH):
        client.log_batch(run_id, params=entities[start : start + PER_BATCH])


def _send_tags(client: Any, run_id: str, tags: dict[str, Any]) -> None:
    from mlflow.entities import RunTag

    entities = [RunTag(key, str(value)[:LONGEST_TAG]) for key, value in tags.items()]
    for start in range(0, len(entities), PER_BATCH):
        client.log_batch(run_id, tags=entities[start : start + PER_BATCH])
