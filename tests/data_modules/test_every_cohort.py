"""Every simulated layout, read through every modality that it was written with, passes every check."""

from __future__ import annotations

import sys
from functools import cache

import numpy as np
import pandas as pd
import pytest

from brainage.data.reasons import count_kinds, kind_of, other_images
from brainage.data.table import finish_dropped, read_tsv
from data_modules import COHORTS
from data_modules.check import CHECKS, inspect_cohort, run_check
from data_modules.simulated import LAYOUTS
from data_modules.volumes import NATIVE

SUBJECTS, SPACING_MM = 12, 8.0
MORE_SUBJECTS = {"openbhb": 24}  # the fewest that its writer takes
SCANS = 2
FORMS = {  # layouts that one call does not write whole: form -> what to ask the writer for, and its modalities
    "adni": {
        "merge": ({"form": "merge"}, ("head", "brain")),
        "loni": ({"form": "loni"}, ("brain",)),
        "bids": ({"form": "bids"}, ("vbm", "quasiraw")),
    },
    "icbm": {"": ({}, ("brain", "head"))},
}
OPTIONS = {("bids", "roi"): {"table_file": "derivatives/regions.tsv"}}  # what a reader cannot know by itself


def forms_of(layout: str) -> dict[str, tuple[dict, tuple[str, ...]]]:
    """By default the one form, with all modalities that the writer can write and the reader can read."""
    if layout in FORMS:
        return FORMS[layout]
    readable = COHORTS[layout].modalities
    written = getattr(sys.modules[LAYOUTS[layout].__module__], "MODALITIES", readable)
    return {"": ({}, tuple(modality for modality in readable if modality in written))}


CASES = [
    pytest.param(layout, form, modality, id="-".join(filter(None, (layout, form, modality))))
    for layout in LAYOUTS
    for form, (_, modalities) in forms_of(layout).items()
    for modality in modalities
]
every_case = pytest.mark.parametrize(("layout", "form", "modality"), CASES)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Folder of a layout with all modalities of a form, written when first asked for."""
    folder = tmp_path_factory.mktemp("every_cohort")

    @cache
    def write(layout, form):
        keywords, modalities = forms_of(layout)[form]
        return LAYOUTS[layout](
            folder / f"{layout}_{form}", subjects=MORE_SUBJECTS.get(layout, SUBJECTS), seed=7, spacing_mm=SPACING_MM,
            workers=1, modalities=modalities, **keywords,
        )  # fmt: skip

    return write


@pytest.fixture(scope="session")
def inspected(written, tmp_path_factory):
    """A layout seen through a modality, as the checks look at it."""

    @cache
    def look(layout, form, modality):
        spacing_mm = SPACING_MM if modality in NATIVE else 0.0  # prepared volumes keep their own grid
        options = OPTIONS.get((layout, modality))
        reader = COHORTS[layout](written(layout, form), modality, spacing_mm, options)
        return inspect_cohort(reader, tmp_path_factory.mktemp("scratch"), scans=SCANS)

    return look


@every_case
def test_scans_are_left_out_for_reasons_of_few_kinds_and_no_kind_names_one_of_them(layout, form, modality, inspected):
    dropped = inspected(layout, form, modality).table.dropped
    counts = count_kinds(dropped["reason"])
    assert sum(count for _, count in counts) == len(dropped)
    assert len(counts) < 10
    assert len(counts) == dropped["reason"].map(kind_of).nunique()
    ids = {name for column in ("participant_id", "path") for name in dropped[column].dropna()}
    for kind in dropped["reason"].map(kind_of):
        assert not any(word.strip(".,:") in ids or word.startswith("/") for word in kind.split()), kind


@pytest.mark.parametrize(
    ("layout", "form", "modality"),
    [("adni", "merge", "brain"), ("adni", "loni", "brain"), ("oasis3", "", "vbm"), ("icbm", "", "head"),
     ("bids", "", "vbm")],
)  # fmt: skip
def test_where_the_used_image_is_damaged_the_other_of_its_session_can_be_named(layout, form, modality, inspected):
    table, dropped = inspected(layout, form, modality).table
    second = dropped[dropped["reason"].str.contains("second T1 of this|another T1|not the first scan")]
    assert len(second)
    found = other_images(finish_dropped(table.assign(reason="damaged: truncated"), dropped))
    used = found.set_index(["participant_id", "session_id"])["other_path"]
    assert set(used.index) >= set(second.set_index(["participant_id", "session_id"]).index)
    assert not set(found["other_path"]) & set(table["path"])


def test_every_layout_has_a_reader_and_something_to_read():
    assert set(LAYOUTS) <= set(COHORTS)
    assert {case.values[0] for case in CASES} == set(LAYOUTS)


@every_case
@pytest.mark.parametrize("name", CHECKS)
def test_check_cohort(name, layout, form, modality, inspected):
    check = run_check(name, inspected(layout, form, modality))
    assert check.passed, check.detail


@every_case
def test_what_is_read_is_what_was_planted(layout, form, modality, inspected, written):
    truth = read_tsv(written(layout, form) / "simulation" / "truth.tsv")
    truth = truth.drop_duplicates(["participant_id", "session_id"]).set_index(["participant_id", "session_id"])
    table = inspected(layout, form, modality).table.table
    assert table["participant_id"].nunique() >= SUBJECTS // 2
    planted = truth.loc[list(zip(table["participant_id"], table["session_id"], strict=True))]
    ages = pd.to_numeric(planted["age_years"]).to_numpy(dtype=float)
    assert np.abs(table["age_years"].to_numpy() - ages).max() <= 1.0  # some tables hold whole years
    assert table["sex"].tolist() == planted["sex"].tolist()
    assert not table["path"].str.contains("simulation/").any()


@every_case
def test_no_reader_opens_the_planted_truth(layout, form, modality, inspected, written, tmp_path):
    cohort = inspected(layout, form, modality)
    truth = written(layout, form) / "simulation"
    truth.rename(tmp_path / "hidden")
    try:
        again = cohort.reader.table()
    finally:
        (tmp_path / "hidden").rename(truth)
    assert again.table.equals(cohort.table.table)
    assert again.dropped.equals(cohort.table.dropped)
