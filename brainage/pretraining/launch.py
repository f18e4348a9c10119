"""One training in several processes of this machine (or of a Slurm allocation), and what became of them as one result.

The starting process trains nothing: it writes the experiment into a file, starts one process a device under torch's
elastic launcher (what `torchrun` is made of), and waits. A rank that fails says why in a file; the launcher ends the
others, and the first reason is raised here, once.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import brainage.errors
from brainage.config import Experiment, run_folder, save_experiment
from brainage.data.source import ScanSource
from brainage.errors import BrainageError, ConfigError
from brainage.pretraining.folder import COMMAND, command_line
from brainage.pretraining.group import wanted_ranks
from brainage.runtime.ranks import rank
from brainage.runtime.signals import CODES, Stopped, heed

ENTRY = ("-m", "brainage.cli", "train-rank")  # followed by the experiment's file and the options of `as_rank`
_ENDED_BY_US = {signal.SIGTERM, signal.SIGINT}


class RankLostError(BrainageError):
    """A process of the training ended without a word."""


def launch(experiment: Experiment, *, label: str, parent: Path | None) -> None:
    """Train in `trainer.devices` processes (on each of `trainer.nodes`) and wait for them.

    Raises what the first rank that failed has raised; RankLostError where one was killed.
    """
    runs = run_folder(experiment).parent
    runs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".launch_", dir=runs) as folder:  # where the other machines can read it
        scratch = Path(folder)
        save_experiment(experiment, scratch / "config.yaml")
        os.environ[COMMAND] = command_line()
        words = [*ENTRY, str(scratch / "config.yaml"), "--label", label, "--errors", folder]
        words += ["--parent", str(parent)] if parent else []
        lost = _with_srun(experiment, words) if experiment.trainer.nodes > 1 else _with_torch(experiment, words, folder)
        if lost is not None:
            raise _first_reason(scratch, lost)


def as_rank(
    experiment: Experiment, open_data: Callable[[], ScanSource], *, label: str, parent: Path | None, errors: Path
) -> None:
    """What a started process does: train, or leave the reason in `errors` and exit with code 1."""
    from brainage.pretraining.run import pretrain

    heed()
    try:
        pretrain(experiment, open_data(), label=label, parent=parent)
    except Stopped:
        raise
    except BaseException as error:
        reason = {
            "time": time.time(),
            "rank": rank(),
            "kind": type(error).__name__,
            "message": str(error),
            "traceback": traceback.format_exc(),
        }
        draft = errors / f"rank{rank()}.draft"
        draft.write_text(json.dumps(reason), encoding="utf-8")
        draft.rename(errors / f"rank{rank()}.json")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # threads and peers may wait for ever; the journal and the checkpoints are on the disk


def _with_torch(experiment: Experiment, words: list[str], folder: str) -> dict[int, int] | None:
    """None when all ranks finished, else the exit code of each that failed by itself."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the reason is told once, by us
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "60")  # after a signal ranks save and MLflow is closed
    settings = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=experiment.trainer.devices, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost", run_id=Path(folder).name,
        logs_specs=DefaultLogsSpecs(log_dir=folder), signals_to_handle="SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1",
    )  # fmt: skip
    with _signals_as_before():
        try:
            elastic_launch(settings, sys.executable)(*words)
        except ChildFailedError as failed:
            return {number: failure.exitcode for number, failure in failed.failures.items()}
        except SignalException as stopped:  # the launcher has passed it on to the ranks and waited for them
            if stopped.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise Stopped(int(stopped.sigval)) from None
    return None


def _with_srun(experiment: Experiment, words: list[str]) -> dict[int, int] | None:
    trainer = experiment.trainer
    if "SLURM_JOB_ID" not in os.environ or not shutil.which("srun"):
        raise ConfigError(
            f"trainer.nodes={trainer.nodes}: several machines are started by Slurm (`brainage slurm pretrain`), or by "
            f"`torchrun --nnodes={trainer.nodes} --nproc-per-node={trainer.devices} ... -m brainage.cli pretrain ...` "
            "on each of them"
        )
    # All of it said, since this process may be a task of its own, whose one task and many cores srun would take over.
    tasks = [f"--nodes={trainer.nodes}", f"--ntasks={wanted_ranks(experiment)}", f"--ntasks-per-node={trainer.devices}"]
    if cores := int(os.environ.get("SLURM_CPUS_ON_NODE", "0")) // trainer.devices:
        tasks.append(f"--cpus-per-task={cores}")
    code = subprocess.run(
        ["srun", "--overlap", *tasks, "--kill-on-bad-exit=1", sys.executable, *words], check=False
    ).returncode
    return None if code == 0 else {0: code} if code in CODES else {}


def _first_reason(folder: Path, lost: dict[int, int]) -> BaseException:
    """The error that ended the training: a rank's own words, before those of ranks that only missed another one."""
    reasons = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("rank*.json")]
    reasons.sort(key=lambda reason: reason["time"])
    told = [CODES.get(code, -code) for code in lost.values() if code in CODES or -code in CODES.values()]
    killed = {number: -code for number, code in lost.items() if code < 0 and -code not in {*_ENDED_BY_US, *told}}
    for reason in reasons:
        kind = getattr(brainage.errors, reason["kind"], None)
        if isinstance(kind, type) and issubclass(kind, BrainageError):
            return kind(reason["message"])
    if killed:
        number, code = min(killed.items())
        return RankLostError(
            f"rank {number} was killed ({signal.Signals(code).name}) and the others were ended; where memory ran out "
            "lower data.batch_size or trainer.chunk_samples. The same command continues from the last checkpoint"
        )
    if told and not reasons:
        return Stopped(min(told))  # SIGUSR1 before SIGTERM, with which the launcher ends those that are left
    if reasons:
        return RuntimeError(f"rank {reasons[0]['rank']} failed:\n{reasons[0]['traceback']}")
    codes = ", ".join(f"rank {number}: exit code {code}" for number, code in sorted(lost.items()))
    return RankLostError(f"a process of the training ended without giving a reason ({codes or 'srun says which'})")


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """The launcher sets handlers of its own and leaves them."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
    before: list[Any] = [signal.getsignal(number) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
