"""tracking: the journal survives everything, MLflow gets all of it once, and training never waits."""

import functools
import json
import math
import os
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from brainage.config import TrackingConfig
from brainage.errors import ConfigError
from brainage.tracking import (
    MetricJournal,
    courier,
    is_aggregate,
    mlflow_run,
    read_journal,
    start_mlflow_run,
    store,
    sync_run,
)
from brainage.tracking.lines import LineFile, read_lines
from brainage.tracking.store import absolute_uri, reach

REPOSITORY = Path(__file__).parents[1]

# ---------------------------------------------------------------- the journal


def test_points_come_back_as_they_were_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    before_ms = time.time_ns() // 1_000_000
    with MetricJournal(path) as journal:
        journal.log(0, {"train/loss": 4.25, "epoch": 0})
        journal.log(20, {"train/loss": float("nan"), "a": float("inf"), "b": float("-inf")})
    frame = read_journal(path)
    assert list(frame.columns) == ["step", "time_ms", "name", "value"]
    points = {(name, step): value for name, step, value in zip(frame.name, frame.step, frame.value, strict=True)}
    assert points["train/loss", 0] == 4.25
    assert math.isnan(points["train/loss", 20])
    assert (points["a", 20], points["b", 20]) == (math.inf, -math.inf)
    assert frame.time_ms.between(before_ms, before_ms + 60_000).all()
    for line in path.read_text().splitlines():  # JSON of the standard, which has no NaN
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_an_absent_journal_has_no_rows(tmp_path):
    frame = read_journal(tmp_path / "metrics.jsonl")
    assert len(frame) == 0
    assert str(frame.dtypes["step"]) == "int64"


def test_replayed_steps_are_not_written_twice_and_keep_their_first_value(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricJournal(path) as journal:
        for step in range(5):
            journal.log(step, {"train/loss": step, "speed/images_per_s": 10.0})
    with MetricJournal(path) as resumed:  # from a checkpoint at step 2
        assert [resumed.log(step, {"train/loss": step, "speed/images_per_s": 99.0}) for step in (3, 4, 5)] == [0, 0, 2]
    frame = read_journal(path)
    assert frame[frame.name == "train/loss"].step.tolist() == [0, 1, 2, 3, 4, 5]
    assert frame[frame.name == "speed/images_per_s"].value.tolist() == [10.0] * 5 + [99.0]


def test_a_new_name_at_a_known_step_is_written(tmp_path):
    with MetricJournal(tmp_path / "m.jsonl") as journal:
        journal.log(3, {"train/loss": 1.0})
        assert journal.log(3, {"train/loss": 1.0, "val/loss": 2.0}) == 1


def test_a_repeated_evaluation_replaces_its_number_only_where_it_changed(tmp_path):
    path = tmp_path / "m.jsonl"
    with MetricJournal(path) as journal:
        journal.log(0, {"mae": 3.0, "r2": float("nan")}, revise=True)
        assert journal.log(0, {"mae": 3.0, "r2": float("nan")}, revise=True) == 0
        assert journal.log(0, {"mae": 2.5}, revise=True) == 1
    frame = read_journal(path)
    assert frame[frame.name == "mae"].value.tolist() == [2.5]


@pytest.mark.parametrize("torn", [b'{"step": 2, "time_ms": 1, "met', b"x" * 200_000])
def test_a_line_torn_by_kill_9_is_cut_off_and_its_step_is_logged_again(tmp_path, torn):
    path = tmp_path / "m.jsonl"
    with MetricJournal(path) as journal:
        journal.log(1, {"loss": 1.0})
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert read_journal(path).step.tolist() == [1]
    with MetricJournal(path) as journal:
        assert path.read_bytes() == whole
        assert journal.log(2, {"loss": 2.0}) == 1
    assert read_journal(path).step.tolist() == [1, 2]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step"')
    MetricJournal(path).close()
    assert path.read_bytes() == b""


def test_a_damaged_line_inside_is_named_and_skipped(tmp_path, capsys):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n\x00\x00\n[]\n{"step": 2}\n')
    assert [line for line, _ in read_lines(path)] == [{"step": 1}, {}, {}, {"step": 2}]
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert "the line at byte 12 is not readable" in warnings[0]


def test_a_full_disk_is_an_error_and_leaves_no_half_line(tmp_path, monkeypatch):
    lines = LineFile(tmp_path / "m.jsonl")
    lines.append({"step": 1})
    whole = lines.path.read_bytes()
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:4]))
    with pytest.raises(OSError, match="No space left"):
        lines.append({"step": 2})
    assert lines.path.read_bytes() == whole
    lines.close()


def test_a_killed_process_loses_no_point_that_was_logged(tmp_path):
    code = (
        "import sys; from brainage.tracking import MetricJournal\n"
        "journal = MetricJournal(sys.argv[1])\n"
        "for step in range(10**9): journal.log(step, {'loss': step}); print(step, flush=True)"
    )
    path = tmp_path / "m.jsonl"
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    for _ in range(50):
        last = process.stdout.readline()
    process.kill()
    last = ([last, *process.stdout.read().splitlines()])[-1]
    process.wait(10)
    logged = read_journal(path).step.tolist()
    assert logged == list(range(len(logged)))
    assert len(logged) > int(last)


# ---------------------------------------------------------------- what may leave the machine


@pytest.mark.parametrize(
    ("path", "may_leave"),
    [
        ("report.html", True),
        ("results.csv", True),
        ("figures/age.svg", True),
        ("tables/age.tex", True),
        ("predictions.parquet", False),
        ("table.parquet", False),
        ("split.tsv", False),
        ("dropped.tsv", False),
        ("embeddings/exp-seed0.parquet", False),
        ("checkpoints/step_00000012.ckpt", False),
        ("tables/people.parquet", False),
        ("a_new_file.csv", False),
    ],
)
def test_only_files_without_a_persons_row_may_leave(path, may_leave):
    assert is_aggregate(Path(path)) is may_leave


# ---------------------------------------------------------------- MLflow on a sqlite store


@pytest.fixture(scope="session")
def sqlite_uri(tmp_path_factory):
    """One store for all tests, since creating one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def run_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_run, "INTERVAL_S", 0.05)
    monkeypatch.setattr(mlflow_run, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(mlflow_run, "LAST_RETRY_S", 0.1)
    folder = tmp_path / "openbhb_exp-0123abcd"
    folder.mkdir()
    return folder


def _start(run_folder, uri, params=None, **options):
    tracking = TrackingConfig(uri=uri, log_individuals=options.pop("log_individuals", False))
    return start_mlflow_run(
        tracking, run_folder=run_folder, run_name="openbhb_exp", params=params or {"seed": 0}, **options
    )


def _client(uri):
    from mlflow import MlflowClient

    return MlflowClient(uri)


def _log(run_folder, steps, **more):
    with MetricJournal(run_folder / "metrics.jsonl") as journal:
        for step in steps:
            journal.log(step, {"train/loss": 1 / (step + 1), **more})


def test_a_run_arrives_with_params_points_cohort_files_and_status(run_folder, sqlite_uri):
    (run_folder / "report.html").write_text("<h1>report</h1>")
    (run_folder / "figures").mkdir()
    (run_folder / "figures" / "age.svg").write_text("<svg/>")
    with _start(run_folder, sqlite_uri, {"loss.sigma_years": 2.0}, tags={"git": "abc"}) as run:
        _log(run_folder, range(1500))  # more than one batch of 1000
        run.log_cohort("openbhb", "0123456789abcdef", profile={"train": {"people": 100}})
        run.log_artifacts(["report.html", "figures"])
        run.log_results({"age/test_internal/mae_years": 3.5, "age/test_external/r2": float("nan")})
        run.set_tags({"checkpoint": "last"})
        run.finish()
    client = _client(sqlite_uri)
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.data.params == {"loss.sigma_years": "2.0"}
    assert {key: stored.data.tags[key] for key in ("git", "checkpoint", "mlflow.runName")} == {
        "git": "abc",
        "checkpoint": "last",
        "mlflow.runName": "openbhb_exp",
    }
    history = client.get_metric_history(run.run_id, "train/loss")
    expected = read_journal(run_folder / "metrics.jsonl").query("name == 'train/loss'")
    assert [(point.step, point.value, point.timestamp) for point in history] == list(
        zip(expected.step, expected.value, expected.time_ms, strict=True)
    )
    assert stored.data.metrics["age/test_internal/mae_years"] == 3.5
    assert math.isnan(stored.data.metrics["age/test_external/r2"])
    (cohort,) = stored.inputs.dataset_inputs
    assert (cohort.dataset.name, cohort.dataset.digest) == ("openbhb", "0123456789abcdef")
    assert str(run_folder) not in cohort.dataset.source
    assert {file.path for file in client.list_artifacts(run.run_id)} == {"report.html", "figures"}
    assert [file.path for file in client.list_artifacts(run.run_id, "figures")] == ["figures/age.svg"]
    experiment = client.get_experiment(stored.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_a_resumed_run_stays_one_run_and_a_changed_param_becomes_a_tag(run_folder, sqlite_uri):
    with _start(run_folder, sqlite_uri, {"seed": 0, "trainer.devices": 1}) as first:
        _log(run_folder, range(5))
        first.finish("FAILED")
    with _start(run_folder, sqlite_uri, {"seed": 0, "trainer.devices": 4, "new": "x"}) as second:
        _log(run_folder, range(3, 8))  # 3 and 4 are replayed
    client = _client(sqlite_uri)
    assert second.run_id == first.run_id
    stored = client.get_run(first.run_id)
    assert stored.info.status == "RUNNING"
    assert stored.data.params == {"seed": "0", "trainer.devices": "1", "new": "x"}
    assert stored.data.tags["changed.trainer.devices"] == "4"
    assert "changed.seed" not in stored.data.tags
    assert [point.step for point in client.get_metric_history(first.run_id, "train/loss")] == list(range(8))


def test_a_lost_memory_of_what_was_sent_duplicates_neither_run_nor_points(run_folder, sqlite_uri):
    with _start(run_folder, sqlite_uri) as run:
        _log(run_folder, range(5))
    (run_folder / "mlflow.json").write_text('{"uri": "sqli')  # torn by a power cut
    delivered = sync_run(run_folder)
    assert delivered.points == 5
    again = json.loads((run_folder / "mlflow.json").read_text())
    assert again["run_id"] == run.run_id
    assert len(_client(sqlite_uri).get_metric_history(run.run_id, "train/loss")) == 5


def test_the_run_id_of_a_checkpoint_is_taken_up_by_a_bare_folder(run_folder, sqlite_uri, tmp_path):
    with _start(run_folder, sqlite_uri) as run:
        pass
    bare = tmp_path / "bare"
    bare.mkdir()
    with _start(bare, sqlite_uri, run_id=run.run_id) as adopted:
        pass
    assert adopted.run_id == run.run_id


def test_a_run_deleted_at_the_server_is_sent_again_as_a_new_one(run_folder, sqlite_uri, capsys):
    with _start(run_folder, sqlite_uri) as run:
        _log(run_folder, range(3))
    old = run.run_id
    _client(sqlite_uri).delete_run(old)
    _log(run_folder, [3])
    assert sync_run(run_folder).points == 4
    new = run.run_id
    assert new != old
    assert f"no longer has run {old}" in capsys.readouterr().err
    assert len(_client(sqlite_uri).get_metric_history(new, "train/loss")) == 4


def test_a_server_that_goes_away_costs_one_warning_and_gets_everything_when_it_is_back(
    run_folder, sqlite_uri, monkeypatch, capsys
):
    away = threading.Event()

    def flaky(uri, timeout_s=5.0):
        if away.is_set():
            raise ConnectionError("no route to host")

    monkeypatch.setattr(courier, "reach", flaky)
    run = _start(run_folder, sqlite_uri)
    _log(run_folder, range(3))
    _wait_for(lambda: run.run_id is not None and _points(sqlite_uri, run.run_id) == 3)
    away.set()
    _log(run_folder, range(3, 6))
    time.sleep(0.4)  # several retries
    assert _points(sqlite_uri, run.run_id) == 3
    away.clear()
    _wait_for(lambda: _points(sqlite_uri, run.run_id) == 6)
    assert run.close()
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "cannot be used now" in line]) == 1
    assert not any("brainage sync" in line for line in lines)


def test_a_run_that_never_saw_its_server_is_delivered_whole_by_sync(run_folder, sqlite_uri, monkeypatch, capsys):
    def nobody(uri, timeout_s=5.0):
        raise ConnectionError("no route to host")

    with monkeypatch.context() as patch:
        patch.setattr(courier, "reach", nobody)
        (run_folder / "report.html").write_text("<h1>report</h1>")
        with _start(run_folder, sqlite_uri, {"seed": 3}) as run:
            _log(run_folder, range(4))
            run.log_artifacts(["report.html"])
            run.finish()
        assert run.run_id is None
        assert f"brainage sync {run_folder}" in capsys.readouterr().err
        with pytest.raises(ConfigError, match="cannot be used now"):
            sync_run(run_folder)
    assert sync_run(run_folder) == (4, 3)
    assert sync_run(run_folder) == (0, 0)
    client = _client(sqlite_uri)
    stored = client.get_run(run.run_id)
    assert (stored.info.status, stored.data.params) == ("FINISHED", {"seed": "3"})
    assert stored.info.end_time >= stored.info.start_time
    assert len(client.list_artifacts(run.run_id)) == 1


def test_a_message_that_mlflow_refuses_is_named_and_does_not_hold_up_the_others(run_folder, sqlite_uri, capsys):
    with _start(run_folder, sqlite_uri) as run:
        run.log_cohort("openbhb", "far too long for a digest " * 3)
        run.set_tags({"after": "it"})
    assert run._all_sent
    assert "MLflow refuses a dataset message" in capsys.readouterr().err
    assert _client(sqlite_uri).get_run(run.run_id).data.tags["after"] == "it"


def test_damaged_lines_do_not_hold_up_the_others_and_are_told_once(run_folder, sqlite_uri, capsys):
    _log(run_folder, [0])
    with (run_folder / "metrics.jsonl").open("a") as file:
        file.write("\x00\x00\n")
    with _start(run_folder, sqlite_uri) as run:
        with (run_folder / "outbox.jsonl").open("a") as file:
            file.write('{"kind": "from the future"}\n')
        time.sleep(0.3)  # several rounds
        run.set_tags({"after": "it"})
    assert _client(sqlite_uri).get_run(run.run_id).data.tags["after"] == "it"
    err = capsys.readouterr().err
    assert err.count("is not readable") == 1
    assert err.count("a message of kind 'from the future' is unknown") == 1


def test_a_run_that_raises_is_marked_failed(run_folder, sqlite_uri):
    with pytest.raises(ValueError, match="boom"), _start(run_folder, sqlite_uri) as run:
        raise ValueError("boom")
    assert _client(sqlite_uri).get_run(run.run_id).info.status == "FAILED"


def test_a_relative_sqlite_path_is_the_same_store_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute_uri("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"


def test_files_with_persons_are_refused_unless_allowed(run_folder, sqlite_uri):
    (run_folder / "predictions.parquet").write_bytes(b"PAR1")
    (run_folder / "figures").mkdir()
    (run_folder / "figures" / "people.tsv").write_text("participant_id")
    outside = run_folder.parent / "report.html"
    outside.write_text("")
    with _start(run_folder, sqlite_uri) as run:
        for path in ("predictions.parquet", run_folder / "predictions.parquet", "figures"):
            with pytest.raises(ConfigError, match="rows of single persons"):
                run.log_artifacts([path])
        for path in ("absent.html", outside):
            with pytest.raises(ConfigError, match="expected a file or folder of the run folder"):
                run.log_artifacts([path])
    assert _client(sqlite_uri).list_artifacts(run.run_id) == []
    with _start(run_folder, sqlite_uri, log_individuals=True) as run:
        run.log_artifacts(["predictions.parquet"])
    assert [file.path for file in _client(sqlite_uri).list_artifacts(run.run_id)] == ["predictions.parquet"]


def test_two_processes_do_not_deliver_one_folder_at_once(run_folder, sqlite_uri):
    with _start(run_folder, sqlite_uri):
        pass
    with courier._locked(run_folder / courier.LOCK):
        with pytest.raises(courier.BusyError):
            courier.Courier(run_folder).deliver()
        with pytest.raises(ConfigError, match="another process is delivering it"):
            sync_run(run_folder, timeout_s=0.1)


# ---------------------------------------------------------------- no server, no tracking


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def refused_uri():
    return f"http://127.0.0.1:{_free_port()}"


@pytest.fixture
def silent_uri():
    """A server that accepts connections and never says a word."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("kind", ["refused_uri", "silent_uri"])
def test_a_dead_server_never_holds_up_training_or_the_end_of_it(kind, run_folder, request, monkeypatch, capsys):
    monkeypatch.setattr(courier, "reach", functools.partial(reach, timeout_s=2.0))
    start = time.monotonic()
    run = _start(run_folder, request.getfixturevalue(kind))
    _log(run_folder, range(100))
    assert time.monotonic() - start < 1.5
    _wait_for(lambda: run._warned)
    start = time.monotonic()
    assert not run.close(timeout_s=0.3)
    assert time.monotonic() - start < 1.5
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "the run goes on" in lines[0]
    assert f"brainage sync {run_folder}" in lines[1]
    assert len(read_journal(run_folder / "metrics.jsonl")) == 100


def test_a_server_of_our_own_is_reached_and_a_broken_gateway_is_not():
    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(401 if self.path == "/password/health" else 502 if "gateway" in self.path else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Health)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{server.server_port}"
    try:
        reach(uri)
        reach(f"{uri}/password")
        with pytest.raises(ConnectionError, match="502"):
            reach(f"{uri}/gateway")
    finally:
        server.shutdown()
        server.server_close()


def test_a_sqlite_store_in_an_absent_folder_is_not_reached(tmp_path):
    with pytest.raises(ConnectionError, match="absent or not writable"):
        reach(f"sqlite:///{tmp_path}/nowhere/mlflow.db")


def test_tracking_switched_off_leaves_nothing_behind(run_folder):
    run = start_mlflow_run(TrackingConfig(enabled=False), run_folder=run_folder, run_name="x", params={})
    run.log_artifacts(["predictions.parquet"])
    run.log_results({"mae": 1.0})
    run.finish()
    assert run.close() is False
    assert os.listdir(run_folder) == []
    with pytest.raises(ConfigError, match=r"nothing to deliver.*tracking\.enabled"):
        sync_run(run_folder)


def test_other_ranks_record_nothing(run_folder, monkeypatch, refused_uri):
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    _start(run_folder, refused_uri).close()
    assert os.listdir(run_folder) == []


def test_an_unknown_status_is_refused(run_folder):
    run = start_mlflow_run(TrackingConfig(enabled=False), run_folder=run_folder, run_name="x", params={})
    with pytest.raises(ConfigError, match="expected one of FINISHED"):
        run.finish("DONE")


def test_a_process_that_forgets_to_close_still_ends_within_seconds(run_folder, refused_uri):
    code = (
        "import sys; from pathlib import Path; from brainage.config import TrackingConfig\n"
        "from brainage.tracking import start_mlflow_run\n"
        "start_mlflow_run(TrackingConfig(uri=sys.argv[2]), run_folder=Path(sys.argv[1]), run_name='x', params={})"
    )
    environ = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, "-c", code, str(run_folder), refused_uri]
    done = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=30)
    assert done.returncode == 0
    assert "brainage sync" in done.stderr


def test_a_forked_child_neither_sends_nor_hangs(run_folder, refused_uri):
    run = _start(run_folder, refused_uri)
    child = os.fork()
    if child == 0:
        os._exit(0 if run.close() is False else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert run._thread is not None
    run.close()


def test_forking_waits_for_an_import_of_the_sender():
    held = threading.Event()

    def import_slowly():
        with store._importing:
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=import_slowly)
    thread.start()
    held.wait()
    start = time.monotonic()
    child = os.fork()
    if child == 0:  # the lock is free in the child, from any thread
        free = []
        waiter = threading.Thread(target=lambda: free.append(store._importing.acquire(timeout=1)))
        waiter.start()
        waiter.join()
        os._exit(0 if free == [True] else 1)
    assert time.monotonic() - start > 0.2
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    thread.join()


def _points(uri, run_id):
    return len(_client(uri).get_metric_history(run_id, "train/loss"))


def _wait_for(condition, timeout_s=90.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
