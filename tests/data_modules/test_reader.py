"""Stamps: what tells a store that the file behind a locator was replaced."""

from __future__ import annotations

import os

import pytest

from tests.data_modules.visits import Visits


@pytest.mark.parametrize("locator", ["a/scan.npy", "a/scan.npy#7", "a/scan.npy!inside/of.it"])
def test_a_stamp_is_size_and_time_of_the_file_behind_any_locator(tmp_path, locator):
    reader = Visits(tmp_path, "vbm")
    assert reader.stamp(locator) == "absent"
    (tmp_path / "a").mkdir()
    file = tmp_path / "a" / "scan.npy"
    file.write_bytes(b"12345")
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    assert reader.stamp(locator) == "5:1700000000123456789"


def test_a_reader_notices_a_file_that_is_replaced_while_it_lives(tmp_path):
    reader = Visits(tmp_path, "vbm")
    (tmp_path / "scan").write_bytes(b"old")
    before = reader.stamp("scan")
    (tmp_path / "new").write_bytes(b"new")
    os.utime(tmp_path / "new", ns=(1, 1))
    os.replace(tmp_path / "new", tmp_path / "scan")
    assert reader.stamp("scan") != before
