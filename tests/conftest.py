"""What tests of several folders share: a simulated OpenBHB cohort on disk, a finished run, the command line."""

from __future__ import annotations

import os
import signal
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two test processes with two threads each would fight

import pytest

from brainage import cli
from brainage.runtime import console
from brainage.runtime.signals import LISTENED
from data_modules.simulated.openbhb import write_openbhb
from tests.command import Done
from tests.scans import SimulatedScans, small_experiment


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """36 people at 8 mm in folder form, all modalities."""
    return write_openbhb(
        tmp_path_factory.mktemp("simulated") / "openbhb", subjects=36, seed=3, spacing_mm=8.0, workers=1,
        modalities=("vbm", "quasiraw", "vbm_roi", "desikan", "destrieux"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(experiment, scans, run) of 12 steps on the vector cohort; to be read only."""
    from brainage.pretraining.run import pretrain

    experiment = small_experiment(tmp_path_factory.mktemp("finished"))
    data = SimulatedScans(experiment)
    return experiment, data, pretrain(experiment, data)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`command("prepare", "demo")` runs it in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    console.cache_clear()

    def run(*words) -> Done:
        monkeypatch.setattr(sys, "argv", ["brainage", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code or 0
        return Done(code, *capsys.readouterr())

    before = {number: signal.getsignal(number) for number in LISTENED}
    yield run
    console.cache_clear()
    for number, handler in before.items():  # the command line listens from its start
        signal.signal(number, handler)
