"""Carries a run folder's metrics and messages to MLflow, in order and at least once.

`mlflow.json` remembers the byte offsets behind what the server has. MLflow drops a resent point whose timestamp is the
same, and the journal keeps the timestamps.
"""

from __future__ import annotations

import fcntl
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from brainage.runtime.console import warn
from brainage.runtime.files import write_json_atomic
from brainage.tracking.journal import JOURNAL
from brainage.tracking.lines import read_lines
from brainage.tracking.messages import SENDERS
from brainage.tracking.outbox import OUTBOX, Target, read_target
from brainage.tracking.store import find_or_create_experiment, find_or_create_run, is_active, open_client, reach

STATE = "mlflow.json"
LOCK = "mlflow.lock"
POINTS_PER_BATCH = 1000  # MLflow's limit


class BusyError(Exception):
    """Another process is delivering the same folder."""


class Delivered(NamedTuple):
    points: int
    messages: int


@dataclass
class State:
    """What the server has of a run folder."""

    uri: str = ""
    experiment_id: str = ""
    run_id: str = ""
    metrics_bytes: int = 0
    outbox_bytes: int = 0


def read_state(run_folder: Path) -> State:
    """The remembered state; an empty one where the file is absent or torn (the run is then found by its token)."""
    try:
        return State(**json.loads((run_folder / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return State()


class Courier:
    """Delivers one run folder; one for a process, since opening a store costs seconds."""

    def __init__(self, run_folder: Path) -> None:
        self.run_folder = Path(run_folder)
        self._client: Any = None
        self._client_uri = ""
        self._checked_run = ""

    def deliver(self) -> Delivered:
        """Send all that the server does not have yet.

        Raises BusyError while another process does so, ConnectionError when the server does not answer, and MLflow's or
        the system's errors for everything else that may be better in a minute.
        """
        target = read_target(self.run_folder)
        if target is None:
            return Delivered(0, 0)
        with _locked(self.run_folder / LOCK):
            state = read_state(self.run_folder)
            if self._has_all(target, state):
                return Delivered(0, 0)
            reach(target.uri)
            if self._client_uri != target.uri:
                self._client, self._client_uri, self._checked_run = open_client(target.uri), target.uri, ""
            state = self._find_run(target, state)
            return Delivered(self._send_metrics(state), self._send_outbox(state))

    def _has_all(self, target: Target, state: State) -> bool:
        metrics, outbox = (_size(self.run_folder / name) for name in (JOURNAL, OUTBOX))
        return (state.uri, state.metrics_bytes, state.outbox_bytes) == (target.uri, metrics, outbox)

    def _find_run(self, target: Target, state: State) -> State:
        """A state whose run is there: the remembered run, or another one that is sent everything again."""
        known = state.run_id if state.uri == target.uri else ""
        if known and (known == self._checked_run or is_active(self._client, known)):
            self._checked_run = known
            return state
        if known:
            warn(f"MLflow at {target.uri} no longer has run {known}: sending {self.run_folder} once more, as a new run")
        experiment_id = find_or_create_experiment(self._client, target.experiment, target.uri)
        state = State(target.uri, experiment_id, find_or_create_run(self._client, target, experiment_id))
        self._remember(state)
        self._checked_run = state.run_id
        return state

    def _send_metrics(self, state: State) -> int:
        from mlflow.entities import Metric

        sent = 0
        batch: list[Metric] = []
        end = state.metrics_bytes
        for line, behind in read_lines(self.run_folder / JOURNAL, state.metrics_bytes):
            values = line.get("metrics", {}).items()
            points = [Metric(_allowed(name), float(value), line["time_ms"], line["step"]) for name, value in values]
            if batch and len(batch) + len(points) > POINTS_PER_BATCH:
                sent += self._send_batch(state, batch, end)
                batch = []
            batch += points
            end = behind
        return sent + (self._send_batch(state, batch, end) if end > state.metrics_bytes else 0)

    def _send_batch(self, state: State, points: list[Any], behind: int) -> int:
        for start in range(0, len(points), POINTS_PER_BATCH):
            self._client.log_batch(state.run_id, metrics=points[start : start + POINTS_PER_BATCH])
        state.metrics_bytes = behind
        self._remember(state)
        return len(points)

    def _send_outbox(self, state: State) -> int:
        sent = 0
        for message, behind in read_lines(self.run_folder / OUTBOX, state.outbox_bytes):
            self._send_message(state, message)
            state.outbox_bytes = behind
            self._remember(state)
            sent += 1
        return sent

    def _send_message(self, state: State, message: dict[str, Any]) -> None:
        """One message; what MLflow will never take is left out with a warning, since all others wait behind it."""
        from mlflow.exceptions import MlflowException

        kind = message.get("kind")
        if kind not in SENDERS:  # a damaged line, or one of a newer brainage
            warn(f"{self.run_folder / OUTBOX}: a message of kind {kind!r} is unknown and was left out")
            return
        try:
            SENDERS[kind](self._client, state.run_id, self.run_folder, message)
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            warn(f"{self.run_folder}: MLflow refuses a {kind} message, left out: {error}")

    def _remember(self, state: State) -> None:
        write_json_atomic(self.run_folder / STATE, asdict(state), durable=False)  # a lost offset only sends twice


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system releases when the process dies; raises BusyError."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(path) from error
        except OSError:
            pass  # some cluster file systems know no locks; sending twice is harmless
        yield


def _allowed(name: str) -> str:
    """A metric name with MLflow's characters only."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
