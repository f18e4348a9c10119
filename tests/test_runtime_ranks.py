"""Which process is told by torchrun and srun, and by nothing else."""

from __future__ import annotations

import pytest

from brainage.runtime.ranks import Place, is_first, launched, place

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}
TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({}, Place(0, 1, 0)),
        (TORCHRUN, Place(2, 4, 0)),
        (SLURM, Place(3, 8, 1)),
        (SLURM | TORCHRUN, Place(2, 4, 0)),  # torchrun inside a step
        ({key: value for key, value in SLURM.items() if key != "SLURM_STEP_ID"}, Place(0, 1, 0)),  # a batch script
        (SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, Place(0, 1, 0)),  # an interactive step
        ({"RANK": "1"}, Place(0, 1, 0)),
    ],
)
def test_the_place_of_a_process_follows_from_its_environment(monkeypatch, found, expected):
    for name in [*SLURM, *TORCHRUN, "SLURM_STEP_NUM_TASKS"]:
        monkeypatch.delenv(name, raising=False)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert place() == expected
    assert launched() == (expected.ranks > 1)
    assert is_first() == (expected.rank == 0)
