"""An MLflow store: is it there, and which experiment and run in it belong to a run folder.

A dead server is noticed by asking its /health page first, which takes seconds; MLflow itself would retry for minutes.
"""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from brainage.tracking.outbox import Target

PROBE_S = 5.0
TOKEN_TAG = "brainage.token"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # else its page hides the training view
SQLITE = "sqlite:///"

# For a server that dies in the middle; a person's own settings stay.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

# A process forked while another thread imports inherits locks that nobody will release and half-imported modules:
# loader workers would hang. So forking waits for the end of the import.
_importing = threading.RLock()
os.register_at_fork(before=_importing.acquire, after_in_parent=_importing.release, after_in_child=_importing.release)


def absolute_uri(uri: str) -> str:
    """The same store from any working directory: a relative sqlite path is made absolute.

    >>> absolute_uri("sqlite:////data/mlflow.db"), absolute_uri("http://server:5000/")
    ('sqlite:////data/mlflow.db', 'http://server:5000')
    """
    if uri.startswith(SQLITE):
        return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri.rstrip("/")


def is_kept_for_later(uri: str) -> bool:
    """Whether a process only writes down what the store shall have: the members of a job array would share one sqlite
    file, which on a network disk breaks it. `brainage sync` delivers their runs, one process after the array."""
    return uri.startswith(SQLITE) and "SLURM_ARRAY_TASK_ID" in os.environ


def reach(uri: str, timeout_s: float = PROBE_S) -> None:
    """Raise ConnectionError, with the reason, unless the store can be used; never takes longer than `timeout_s`.

    Any answer of a web server below 500 counts, also that it wants a password. MLflow is not imported.
    """
    if uri.startswith(SQLITE):
        folder = Path(uri.removeprefix(SQLITE)).parent
        if not os.access(folder, os.W_OK):
            raise ConnectionError(f"folder {folder} is absent or not writable")
    elif uri.startswith(("http://", "https://")):
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=timeout_s).close()
        except urllib.error.HTTPError as error:
            if error.code >= 500:
                raise ConnectionError(f"the server answers {error.code} {error.reason}") from error
        except urllib.error.URLError as error:
            raise ConnectionError(str(error.reason)) from error
        except OSError as error:  # answers too slowly, or with something that is not HTTP
            raise ConnectionError(str(error) or type(error).__name__) from error


def open_client(uri: str) -> Any:
    """An MlflowClient of the store. Takes 3 to 5 s, and 7 s more when it has to create a sqlite store."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    with _importing:
        from mlflow import MlflowClient

        if uri.startswith(SQLITE):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401  (else imported below, without the lock)
    for name in ("mlflow", "alembic"):  # "Creating initial MLflow database tables ..." into a progress bar
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri)


def is_active(client: Any, run_id: str) -> bool:
    """Whether the store has this run, not deleted."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).info.lifecycle_stage == "active"
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise


def find_or_create_experiment(client: Any, name: str, uri: str) -> str:
    """Id of the experiment, tagged so that MLflow's page shows its runs."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        # Beside the database, not in whatever folder the process was started from.
        beside = Path(uri.removeprefix(SQLITE)).parent / "mlartifacts" if uri.startswith(SQLITE) else None
        try:
            return client.create_experiment(name, beside and beside.as_uri(), EXPERIMENT_TAGS)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)  # another run was faster
    for key, value in EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return experiment.experiment_id


def find_or_create_run(client: Any, target: Target, experiment_id: str) -> str:
    """Id of the folder's run: the one a checkpoint remembered, the one with the folder's token, or a new one.

    (The token finds a run that was created when the answer got lost on the way.)
    """
    if target.run_id and is_active(client, target.run_id):
        return target.run_id
    found = client.search_runs([experiment_id], f"tags.`{TOKEN_TAG}` = '{target.token}'", max_results=1)
    if found:
        return found[0].info.run_id
    run = client.create_run(experiment_id, target.start_ms, {TOKEN_TAG: target.token}, target.run_name)
    return run.info.run_id
