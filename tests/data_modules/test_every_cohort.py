"""Every simulated layout, read through every modality that it was written with, passes every check."""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pandas as pd
import pytest

from brainage.data.table import read_tsv
from data_modules import COHORTS
from data_modules.check import CHECKS, inspect_cohort, run_check
from data_modules.simulated import LAYOUTS

SUBJECTS, SPACING_MM = 24, 8.0
SCANS = 3


def modalities_of(layout: str) -> list[str]:
    """Those that the writer can write and the reader can read; by default the writer's default ones."""
    write = LAYOUTS[layout]
    default = inspect.signature(write).parameters["modalities"].default
    written = getattr(sys.modules[write.__module__], "MODALITIES", default)
    return [modality for modality in COHORTS[layout].modalities if modality in written]


CASES = [
    pytest.param(layout, modality, id=f"{layout}-{modality}")
    for layout in LAYOUTS
    for modality in modalities_of(layout)
]
every_case = pytest.mark.parametrize(("layout", "modality"), CASES)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Folder of a layout with all its modalities, written when first asked for."""
    folder, done = tmp_path_factory.mktemp("every_cohort"), {}

    def write(layout):
        if layout not in done:
            done[layout] = LAYOUTS[layout](
                folder / layout, subjects=SUBJECTS, seed=7, spacing_mm=SPACING_MM, workers=1,
                modalities=tuple(modalities_of(layout)),
            )  # fmt: skip
        return done[layout]

    return write


@pytest.fixture(scope="session")
def inspected(written, tmp_path_factory):
    """A layout seen through a modality, as the checks look at it."""
    done = {}

    def look(layout, modality):
        if (layout, modality) not in done:
            native = modality in ("brain", "head")
            reader = COHORTS[layout](written(layout), modality, SPACING_MM if native else 0.0)
            scratch = tmp_path_factory.mktemp(f"{layout}_{modality}")
            done[layout, modality] = inspect_cohort(reader, scratch, scans=SCANS)
        return done[layout, modality]

    return look


def test_every_layout_has_a_reader_and_something_to_read():
    assert set(LAYOUTS) <= set(COHORTS)
    assert {case.values[0] for case in CASES} == set(LAYOUTS)


@every_case
@pytest.mark.parametrize("name", CHECKS)
def test_check_cohort(name, layout, modality, inspected):
    check = run_check(name, inspected(layout, modality))
    assert check.passed, f"{layout}, {modality}: {check.detail}"


@every_case
def test_what_is_read_is_what_was_planted(layout, modality, inspected, written):
    truth = read_tsv(written(layout) / "simulation" / "truth.tsv").set_index(["participant_id", "session_id"])
    table = inspected(layout, modality).table.table
    assert table["participant_id"].nunique() >= SUBJECTS // 2
    planted = truth.loc[list(zip(table["participant_id"], table["session_id"], strict=True))]
    ages = pd.to_numeric(planted["age_years"]).to_numpy(dtype=float)
    assert np.abs(table["age_years"].to_numpy() - ages).max() <= 1.0  # some tables hold whole years
    assert table["sex"].tolist() == planted["sex"].tolist()
    assert not table["path"].str.contains("simulation/").any()
