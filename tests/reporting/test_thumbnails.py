"""The sheet of flagged scans: who is on it, which way round, and that it stays where the store is."""

from __future__ import annotations

from pathlib import PurePath

import numpy as np
import pandas as pd
import pytest

from brainage.errors import DataError
from brainage.imaging.quality import assess_store
from brainage.reporting import thumbnails
from brainage.reporting.thumbnails import flag_words, middle_slices, sheet, write_thumbnails
from brainage.tracking.outbox import is_aggregate
from tests.imaging.planted import planted_store


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    faults = ("half", "noise", "empty", "scale", "upside_down")
    return planted_store(tmp_path_factory.mktemp("shown"), people=60, seed=1, spacing_mm=8.0, faults=faults)


@pytest.fixture(scope="module")
def quality(planted):
    return assess_store(planted.store)


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_every_flagged_scan_is_shown_with_key_age_and_flags(planted, quality):
    words = flag_words(planted.store.table, quality)
    flagged = [row for row in range(60) if words[row]]
    assert set(planted.faults) <= set(flagged)
    shown = texts(sheet(planted.store, flagged, words, "title"))
    for row in flagged:
        scan = planted.store.table.iloc[row]
        assert any(scan["participant_id"] in text for text in shown)
        assert f"{scan['age_years']:.1f} years, {scan['sex']}" in shown
        assert any(text and ", ".join(words[row]).startswith(text.rstrip("…")) for text in shown)


def test_a_wrong_scale_which_no_picture_shows_is_told_in_words(planted, quality):
    row = planted.rows("scale")[0]
    assert any(word.startswith("level x ") for word in flag_words(planted.store.table, quality)[row])


def test_sheets_hold_no_more_than_they_say_and_older_ones_go(planted, quality, tmp_path, monkeypatch):
    on_sheets = []
    drawn = thumbnails.sheet

    def counted(store, rows, words, title):
        on_sheets.append((len(rows), title))
        return drawn(store, rows[:1], words, title)

    monkeypatch.setattr(thumbnails, "sheet", counted)
    many = quality.assign(qc_flags=pd.array(["mean_corr"] * 40 + [pd.NA] * 20, dtype="string"))
    paths = write_thumbnails(planted.store, many, tmp_path, a_sheet=12, sheets=3)
    assert [path.name for path in paths] == ["thumbnails_1.png", "thumbnails_2.png", "thumbnails_3.png"]
    assert [count for count, _ in on_sheets] == [12, 12, 12]
    assert "9 to 16 of 40 (60 scans in all); then 4 without a flag" in on_sheets[1][1]
    paths = write_thumbnails(planted.store, quality, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in paths] == ["thumbnails_1.png"]
    clean = quality.assign(qc_flags=pd.array([pd.NA] * 60, dtype="string"))
    assert write_thumbnails(planted.store, clean, tmp_path) == []
    assert not list(tmp_path.iterdir())


def test_the_sheet_is_a_picture_beside_the_store_that_tracking_does_not_send(planted, quality):
    (path,) = write_thumbnails(planted.store, quality)
    assert path.parent == planted.store.path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not is_aggregate(PurePath(path.name))
    assert not is_aggregate(PurePath("quality.parquet"))


def test_slices_are_the_right_way_up_with_left_at_the_left():
    volume = np.zeros((5, 6, 7))
    volume[4, 5, 6] = 1  # right, front, top
    slices = middle_slices(volume, (4, 5, 6))
    assert slices.axial.shape == (6, 5)
    assert slices.axial[0, 4] == 1  # front is up, right is right
    assert slices.coronal[0, 4] == 1  # top is up
    assert slices.sagittal[0, 5] == 1  # top is up, front is right


def test_measures_of_the_cohort_beyond_their_published_limit_count_as_flags(quality):
    table = pd.DataFrame({"qc_iqr": [4.5, 3.0, np.nan], "qc_euler": [-100.0, -300.0, -100.0]})
    clean = quality.iloc[:3].assign(qc_flags=pd.array([pd.NA] * 3, dtype="string"))
    assert flag_words(table, clean) == [["iqr 4.5"], ["euler -300"], []]


def test_a_quality_of_other_scans_is_refused(planted, quality):
    with pytest.raises(DataError, match="60 scans, but a quality of 59"):
        write_thumbnails(planted.store, quality.iloc[1:])
