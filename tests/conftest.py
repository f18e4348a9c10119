"""A simulated OpenBHB cohort shared by the tests that start from files."""

from __future__ import annotations

import pytest

from data_modules.simulated.openbhb import write_openbhb


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """36 people at 8 mm in folder form, all modalities."""
    return write_openbhb(
        tmp_path_factory.mktemp("simulated") / "openbhb", subjects=36, seed=3, spacing_mm=8.0, workers=1,
        modalities=("vbm", "quasiraw", "vbm_roi", "desikan", "destrieux"),
    )  # fmt: skip
