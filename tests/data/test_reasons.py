"""Reasons why scans are left out, as kinds that can be counted."""

from __future__ import annotations

import pandas as pd
import pytest

from brainage.data.reasons import count_kinds, kind_of, other_images
from brainage.data.table import finish_dropped


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("image I13301 of the sheet has no file here", "image … of the sheet has no file here"),
        ("age_years 999 is outside 0 to 120 years", "age_years … is outside … to … years"),
        ("age_years '60-65 or so' is a range", "age_years … is a range"),
        ("the person's age is missing", "the person's age is missing"),
        ("same person as ixi/alice", "same person as …"),
        ("rows of the tables disagree: sex F and M", "rows of the tables disagree"),
        ("/my data/IXI.csv: repeated row of IXI010", "repeated row of …"),
        ("excluded by data.exclude: qc_pass == 0 (qc_pass 0)", "excluded by data.exclude: qc_pass == 0"),
        ("a/b", "…"),
        ("", "…"),
    ],
)  # fmt: skip
def test_a_kind_has_nothing_of_one_scan(reason, kind):
    assert kind_of(reason) == kind


def test_the_most_frequent_kind_comes_first_and_equal_reasons_are_told_in_full():
    reasons = ["zip without T1/T1_brain.nii.gz"] * 2 + [f"no row of p{number}" for number in range(3)]
    assert count_kinds(reasons) == [("no row of …", 3), ("zip without T1/T1_brain.nii.gz", 2)]
    assert count_kinds([]) == []


def test_a_damaged_scan_is_named_where_another_image_of_its_session_was_left_out():
    second = "not the first scan of its session"
    rows = [
        ("p1", "1", "a", "damaged: a: truncated"), ("p1", "1", "b", second), ("p1", "2", "c", second),
        ("p2", None, "d", "damaged: d: truncated"), ("p2", None, "e", second), ("p2", None, "f", second),
        ("p3", "1", "g", "damaged: g: truncated"), ("p3", "1", None, "image I1 has no file here"),
        ("p4", "1", "h", "damaged: h"), ("p4", "1", "i", "damaged: i"), ("p5", "1", "j", second),
        ("p6", "1", "k", "damaged: k"), ("p6", "1", "l", "excluded by data.exclude: site == A (site A)"),
    ]  # fmt: skip
    dropped = pd.DataFrame(rows, columns=["participant_id", "session_id", "path", "reason"]).assign(cohort="c")
    found = other_images(finish_dropped(dropped))
    assert found[["path", "other_path"]].to_numpy().tolist() == [["a", "b"], ["d", "e"]]


def test_preparation_says_the_most_frequent_kind_and_that_a_damaged_scan_has_another_image(tmp_path, capsys):
    from brainage.stages import prepare_stage

    second = [(f"p{number}", "1", f"{number}b", f"second T1 of this session, after I{number}") for number in range(3)]
    rows = [*second, ("p0", "1", "0a", "damaged: 0a: truncated"), ("p9", "1", "9", "age_years missing")]
    dropped = pd.DataFrame(rows, columns=["participant_id", "session_id", "path", "reason"]).assign(cohort="c")

    class Prepared:
        path, dropped, nbytes = tmp_path, None, 0

        def __len__(self):
            return 7

    class Source:
        def planned(self):
            return []

        def prepare(self, advance):
            return store

    store = Prepared()
    store.dropped = finish_dropped(dropped)
    prepare_stage(Source())
    said = " ".join("".join(capsys.readouterr()).split())
    assert "5 scans left out (1 damaged, 0 by data.exclude, 4 not usable by the cohort's tables, most of them: " in said
    assert "second T1 of this session, after … (3))" in said
    assert "damaged scans of whose session another image was left out: 1, for example 0a: 0b" in said
