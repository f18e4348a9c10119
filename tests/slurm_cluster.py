"""A real Slurm for tests: munged, slurmctld and two slurmd of this machine, with folders and ports of their own.

Debian's packages `slurmctld slurmd slurm-client munge` are enough; nothing of them needs to run or be configured. The
nodes claim more cores than there are, so that several jobs run at once.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd_%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd_%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,bf_interval=1,sched_interval=1
SlurmdParameters=config_overrides
"""
NODE = "NodeName=n{number} NodeAddr=127.0.0.1 NodeHostname={host} Port={port} CPUs=16 RealMemory=8000\n"
PARTITION = "PartitionName=main Nodes=n1,n2 Default=YES State=UP MaxTime=INFINITE\n"


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    absent = [name for name in PROGRAMS if not shutil.which(name)]
    if absent:
        return f"no {', '.join(absent)} (Debian: slurmctld slurmd slurm-client munge)"
    return "" if os.geteuid() == 0 else "slurmd needs root"


class Cluster:
    """Start it with `with`; commands of Slurm find it through `environment`."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm_"))  # short: paths of sockets have 107 characters at most
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> Cluster:
        try:
            self._configure()
            munge = self.folder / "munge"
            files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
            self._start("munged", "--foreground", "--force", *(f"--{k}={munge / v}" for k, v in files.items()))
            until(lambda: (munge / "socket").exists(), 20, "munged", self.told)
            self._start("slurmctld", "-D", "-f", self.environment["SLURM_CONF"])
            for node in ("n1", "n2"):
                self._start("slurmd", "-D", "-N", node, "-f", self.environment["SLURM_CONF"])
            until(lambda: self._states() == ["idle", "idle"], 40, "both nodes", self.told)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if len(self._daemons) > 1:
            self.try_command("scancel", "--me")
            time.sleep(0.5)
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def command(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = self.try_command(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def try_command(self, *words: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, **self.environment}
        return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, check=False)

    def job(self, number: str) -> dict[str, str]:
        """What `scontrol show job` says of a job."""
        words = self.command("scontrol", "--oneliner", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def see_requeued(self, number: str, log: Path, seconds: float = 60, *changes: str) -> None:
        """Wait until a job is back in the queue, and change what it asks for. Slurm starts it two minutes later; one
        that is started by hand before is now and then ended by the end of its own first go."""
        until(
            lambda: self.job(number)["Restarts"] != "0" and self.job(number)["JobState"] == "PENDING",
            seconds, f"requeue of job {number}", lambda: read(log) + self.told(),
        )  # fmt: skip
        if changes:
            self.command("scontrol", "update", f"JobId={number}", *changes)

    def wait(self, number: str, log: Path, seconds: float = 120) -> str:
        """Final state of a job."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        until(lambda: self.job(number)["JobState"] in over, seconds, f"job {number}", lambda: read(log) + self.told())
        return self.job(number)["JobState"]

    def told(self) -> str:
        """The last lines of all daemons."""
        logs = sorted(self.folder.glob("*.log")) + sorted(self.folder.glob("*.out"))
        return "\n".join(f"{log.name}: {line}" for log in logs for line in read(log).splitlines()[-5:])

    def _configure(self) -> None:
        munge = self.folder / "munge"
        for path in (munge, self.folder / "state", self.folder / "spool_n1", self.folder / "spool_n2"):
            path.mkdir(mode=0o700)
        (munge / "key").write_bytes(os.urandom(128))
        (munge / "key").chmod(0o600)
        host = socket.gethostname().split(".")[0]
        ports = free_ports(3)
        text = CONFIGURATION.format(host=host, port=ports[0], folder=self.folder)
        text += "".join(NODE.format(number=n, host=host, port=ports[n]) for n in (1, 2)) + PARTITION
        Path(self.environment["SLURM_CONF"]).write_text(text)

    def _start(self, *words: str) -> None:
        with (self.folder / f"{words[0]}{len(self._daemons)}.out").open("w") as out:
            environment = {**os.environ, **self.environment}
            self._daemons.append(
                subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
            )

    def _states(self) -> list[str]:
        return self.try_command("sinfo", "--noheader", "--Node", "--format=%T").stdout.split()


def until(condition: Callable[[], bool], seconds: float, what: str, told: Callable[[], str]) -> None:
    """Wait for a condition, or fail with what was told until then."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds} s\n{told()}")
        time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return ports


def read(file: Path) -> str:
    return file.read_text(errors="replace") if file.is_file() else ""
