"""The command trains on several devices what it trains on one: volumes, BatchNorm synchronised, from the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from brainage.pretraining.folder import read_finished
from data_modules.simulated.openbhb import write_openbhb
from tests.pretraining.test_resume import final_weights

KEYS = (
    "trainer.epochs=1", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.threads=1",
    "trainer.progress=false", "encoder.width=0.125", "data.batch_size=8", "data.workers=0", "data.prepare_workers=1",
    "optim.name=sgd", "tracking.enabled=false",
)  # fmt: skip


def pretrain(root: Path, devices: int) -> tuple[Path, str]:
    """The run folder that the command left, and what it said."""
    runs = root.parent / f"runs{devices}"
    words = [f"data.root={root}", f"data.store={root.parent / 'store'}", f"runs={runs}", f"trainer.devices={devices}"]
    command = [sys.executable, "-m", "brainage.cli", "pretrain", "openbhb_exp", *KEYS, *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    folders = [path.parent for path in runs.glob("*/finished.json")]
    assert len(folders) == 1, said
    return folders[0], said


@pytest.mark.slow
def test_the_command_on_two_devices_ends_with_the_weights_of_one(tmp_path):
    root = write_openbhb(tmp_path / "openbhb", subjects=40, seed=5, spacing_mm=12.0, workers=1, modalities=("vbm",))
    (one, _), (two, said) = pretrain(root, 1), pretrain(root, 2)
    assert "devices: 2 (2 on each of 1 nodes), 4 scans each" in said
    assert "BatchNorm over all devices" in said
    assert one.name == two.name  # devices are no part of what is learnt
    assert read_finished(two) is not None
    expected, found = final_weights(one), final_weights(two)
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        off = (found[name].double() - weights.double()).norm() / weights.double().norm().clamp_min(1e-12)
        assert off < 1e-4, f"{name}: {off:.1e}"
