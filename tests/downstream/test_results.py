"""The results table: what it refuses, and that its file brings every digit back."""

import numpy as np
import pandas as pd
import pytest

from brainage.downstream.results import (
    RESULT_COLUMNS,
    combine,
    missing_row,
    read_results,
    result_row,
    results_frame,
    write_results,
)
from brainage.errors import DataError
from brainage.statistics.bootstrap import Interval


def row(**changes):
    found = Interval(3.123456789012345, 2.1, 4.2)
    return {**result_row("exp", "openbhb", "test_external", "age", "mae_years", found, 12, "13 scans"), **changes}


def test_a_file_brings_every_digit_and_every_missing_value_back(tmp_path):
    frame = results_frame(
        [row(), row(run="NA", note=""), missing_row("exp", "openbhb", "test_internal", "site", "b", "one site")]
    )
    write_results(frame, tmp_path / "results.csv")
    pd.testing.assert_frame_equal(read_results(tmp_path / "results.csv"), frame)
    assert (tmp_path / "results.csv").read_text().splitlines()[0] == ",".join(RESULT_COLUMNS)
    assert [path.name for path in tmp_path.iterdir()] == ["results.csv"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": ""}, "run is empty"),
        ({"metric": None}, "metric is empty"),
        ({"split": "test"}, "expected a split of train"),
        ({"low": 5.0}, "expected low <= high, found 5.0 and 4.2"),
        ({"low": np.nan}, "expected low <= high, found nan and 4.2"),
        ({"estimate": np.nan, "note": ""}, "needs a note"),
        ({"n": -1}, "n of 0 or more"),
    ],
)
def test_an_impossible_row_is_refused_by_name(changes, message):
    with pytest.raises(DataError, match=message):
        results_frame([row(**changes)])


def test_a_row_about_both_tests_names_both():
    assert len(results_frame([row(split="test_internal+test_external")])) == 1


def test_equal_rows_are_kept_once_and_contradicting_ones_refused():
    shared, other = row(run="mean_predictor"), row(run="l1")
    again = row(run="mean_predictor", estimate=shared["estimate"] + 1e-13)
    whole = combine([results_frame([shared, row()]), results_frame([again, other])])
    assert whole["run"].tolist() == ["mean_predictor", "exp", "l1"]
    with pytest.raises(DataError, match="two different rows of exp/openbhb/test_external/age/mae_years"):
        combine([results_frame([row()]), results_frame([row(estimate=3.0)])])


def test_the_reason_of_a_missing_row_names_no_scan_and_no_path():
    reason = "features 'exp' (seed 0): 2 of 9 scans have no vector, first ixi/IXI012-HH/1/1; see /home/jane/x.parquet"
    note = missing_row("exp", "ixi", "test_internal", "age", "mae_years", reason)["note"]
    assert note == "not computed: features 'exp' (seed 0): 2 of 9 scans have no vector, first … see …"


def test_rows_of_two_sites_are_two_rows():
    assert len(results_frame([row(note="site=Guys; 3 scans"), row(note="site=HH; 3 scans"), row()])) == 3


def test_a_file_that_is_no_results_table_is_refused_by_name(tmp_path):
    with pytest.raises(DataError, match=r"gone\.csv: file not found"):
        read_results(tmp_path / "gone.csv")
    (tmp_path / "torn.csv").write_text("run,cohort\nexp")
    with pytest.raises(DataError, match=r"torn\.csv"):
        read_results(tmp_path / "torn.csv")
