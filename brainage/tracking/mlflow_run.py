"""One pretraining run as training sees it: everything is appended to the run folder, a thread delivers it to MLflow."""

from __future__ import annotations

import atexit
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brainage.errors import ConfigError
from brainage.runtime.console import console, warn
from brainage.runtime.ranks import is_first
from brainage.runtime.signals import Stopped
from brainage.tracking.courier import BusyError, Courier, Delivered, read_state
from brainage.tracking.journal import JOURNAL, MetricJournal
from brainage.tracking.lines import LineFile
from brainage.tracking.outbox import OUTBOX, is_aggregate, read_target
from brainage.tracking.store import SQLITE, absolute_uri, is_kept_for_later

if TYPE_CHECKING:
    from brainage.config import TrackingConfig

INTERVAL_S = 5.0  # between two deliveries
FIRST_RETRY_S, LAST_RETRY_S = 2.0, 60.0
SERVER_CLOSE_S = 20.0
# A local store answers surely, but creating it can take a minute on a busy machine, and leaving in the middle of its
# migrations would break the database.
LOCAL_CLOSE_S = 180.0
STATUSES = ("FINISHED", "FAILED", "KILLED")


def start_mlflow_run(
    tracking: TrackingConfig,
    *,
    run_folder: Path,
    run_name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str] | None = None,
    run_id: str | None = None,
) -> MlflowRun:
    """Start, or continue, the folder's MLflow run; returns at once, whatever the server does.

    Call it once torch and lightning are imported: the thread imports MLflow, and two imports at once slow each other.

    However often a folder is resumed or evaluated, it stays one MLflow run: the id is in its mlflow.json, or `run_id`
    (a checkpoint's) where that file is gone. Params are sent once; one that differs later becomes a tag. With
    `tracking.enabled=false`, and on every rank but zero, nothing is recorded and every method does nothing.
    """
    run = MlflowRun(run_folder, tracking)
    if run.enabled:
        known = read_target(run.run_folder)
        run._put(
            "run",
            uri=absolute_uri(tracking.uri),
            experiment=tracking.experiment,
            run_name=run_name,
            token=known.token if known else uuid.uuid4().hex,
            run_id=run_id,
            params={key: str(value) for key, value in params.items()},
            tags={key: str(value) for key, value in (tags or {}).items()},
        )
        run._start()
    return run


class MlflowRun:
    """Use `start_mlflow_run`. Close it, or use `with` (which marks a run that raises FAILED or KILLED, and leaves one
    running that stops before a time limit and continues)."""

    def __init__(self, run_folder: Path, tracking: TrackingConfig) -> None:
        self.run_folder = Path(run_folder)
        self.tracking = tracking
        self.enabled = tracking.enabled and is_first()
        self._process = os.getpid()
        self._stop = threading.Event()
        self._all_sent = False
        self._warned = False
        self._thread: threading.Thread | None = None

    @property
    def run_id(self) -> str | None:
        """The run's id at the server; None until the server was reached for the first time."""
        return read_state(self.run_folder).run_id or None

    @property
    def address(self) -> str:
        """Where a person can look at the run: a web address, or the store that `make ui` shows."""
        state = read_state(self.run_folder)
        if not state.uri.startswith("http") or not state.run_id:
            return self.tracking.uri
        return f"{state.uri}/#/experiments/{state.experiment_id}/runs/{state.run_id}"

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set tags; a later value replaces an earlier one."""
        self._put("tags", tags={key: str(value) for key, value in tags.items()})

    def log_results(self, metrics: Mapping[str, Any], step: int = 0) -> None:
        """Final numbers such as `age/test_internal/mae_years`; a repeated evaluation replaces them."""
        if self.enabled:
            with MetricJournal(self.run_folder / JOURNAL) as journal:
                journal.log(step, metrics, revise=True)

    def log_cohort(self, name: str, split_hash: str, *, context: str = "training", profile: Any = None) -> None:
        """Say what the run saw: a cohort's name, the hash of its split, counts of groups (`profile`); no persons."""
        self._put("dataset", name=name, digest=split_hash, context=context, profile=profile or {})

    def log_artifacts(self, paths: Iterable[Path | str]) -> None:
        """Send files, and all files of folders, of the run folder (`report.html`, `figures`); folders keep their names.

        Raises ConfigError for a path that is absent or outside the run folder, and for files with per-person rows
        unless `tracking.log_individuals` allows them.
        """
        if not self.enabled:
            return
        files = [file for path in paths for file in self._files(Path(path))]
        for file in files:
            if not (self.tracking.log_individuals or is_aggregate(file)):
                raise ConfigError(
                    f"{self.run_folder / file}: may hold rows of single persons, which do not go to MLflow;"
                    " tracking.log_individuals=true sends them where the data use agreement allows it"
                )
        for file in files:
            self._put("artifact", path=file.as_posix(), to="" if file.parent == Path() else file.parent.as_posix())

    def finish(self, status: str = "FINISHED") -> None:
        """Mark the run as FINISHED, FAILED or KILLED (a later attempt makes it running again)."""
        if status not in STATUSES:
            raise ConfigError(f"status {status!r}: expected one of {', '.join(STATUSES)}")
        self._put("status", status=status)

    def close(self, timeout_s: float | None = None) -> bool:
        """Deliver what is left and stop; True when the server has everything.

        Waits `timeout_s` at most (default: 20 s for a server, 180 s for a local store, which must not be left half
        created). Otherwise says how to deliver later. Safe to call twice, and in a forked child.
        """
        if self._thread is None or os.getpid() != self._process:
            return self._all_sent
        if timeout_s is None:
            timeout_s = LOCAL_CLOSE_S if self.tracking.uri.startswith(SQLITE) else SERVER_CLOSE_S
        self._stop.set()
        self._thread.join(timeout_s)
        self._thread = None
        atexit.unregister(self.close)
        if not self._all_sent:
            console(stderr=True).print(
                f"MLflow does not have all of this run yet; `brainage sync {self.run_folder}` delivers it later",
                soft_wrap=True,
                markup=False,
            )
        return self._all_sent

    def __enter__(self) -> MlflowRun:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if kind is not None and not (isinstance(error, Stopped) and error.continues):
            self.finish("FAILED" if issubclass(kind, Exception) else "KILLED")
        self.close()

    def _put(self, kind: str, **values: Any) -> None:
        if not self.enabled:
            return
        outbox = LineFile(self.run_folder / OUTBOX)
        try:
            outbox.append({"kind": kind, "time_ms": time.time_ns() // 1_000_000, **values})
        finally:
            outbox.close()

    def _files(self, path: Path) -> list[Path]:
        """The files of a path, relative to the run folder."""
        inside = path if path.is_absolute() else self.run_folder / path
        inside = inside.resolve()
        folder = self.run_folder.resolve()
        if not inside.exists() or not inside.is_relative_to(folder):
            raise ConfigError(f"{path}: expected a file or folder of the run folder {self.run_folder}")
        found = [inside] if inside.is_file() else sorted(file for file in inside.rglob("*") if file.is_file())
        return [file.relative_to(folder) for file in found]

    def _start(self) -> None:
        if is_kept_for_later(self.tracking.uri):
            return
        self._thread = threading.Thread(target=self._work, name="mlflow-sender", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def _work(self) -> None:
        courier = Courier(self.run_folder)
        failures = 0
        while True:
            stopping = self._stop.is_set()  # read first: what was appended before `close` is delivered below
            try:
                courier.deliver()
                self._all_sent, failures, wait_s = stopping, 0, INTERVAL_S
                if stopping:
                    return
            except BusyError:
                wait_s = 1.0
            except Exception as error:
                self._complain(error)
                wait_s = min(FIRST_RETRY_S * 2**failures, LAST_RETRY_S)
                failures += 1
                if stopping:
                    return
            self._stop.wait(wait_s)

    def _complain(self, error: Exception) -> None:
        """One line in a process's life; the journal has everything, so there is nothing to do at once."""
        if not self._warned:
            reason = (str(error).splitlines() or [""])[0]
            warn(
                f"MLflow at {self.tracking.uri} cannot be used now ({type(error).__name__}: {reason[:300]});"
                " the run goes on, its metrics wait in the run folder"
            )
        self._warned = True


def sync_run(run_folder: Path, timeout_s: float = 60.0) -> Delivered:
    """Deliver all that MLflow does not have of a run folder yet: the run, its params, metrics and files.

    Gives the number of points and messages sent. Raises ConfigError when the folder never asked for tracking, when
    MLflow cannot be used, and when another process is still delivering the folder after `timeout_s`.
    """
    run_folder = Path(run_folder)
    target = read_target(run_folder)
    if target is None:
        raise ConfigError(f"{run_folder}: nothing to deliver, since there is no {OUTBOX} (tracking.enabled was false?)")
    courier = Courier(run_folder)
    end = time.monotonic() + timeout_s
    while True:
        try:
            return courier.deliver()
        except BusyError as error:
            if time.monotonic() > end:
                raise ConfigError(f"{run_folder}: another process is delivering it; try again once it ends") from error
            time.sleep(0.2)
        except Exception as error:
            raise ConfigError(f"tracking.uri={target.uri}: MLflow cannot be used now ({error})") from error
