"""Members of zips are read without unpacking, or refused with file and member."""

from __future__ import annotations

import gzip
import os
import stat
import struct
import zipfile

import pytest

from brainage.errors import DataError
from data_modules.zips import gunzip, has_member, read_member, split_locator

NAME = "T1/T1.nii.gz"
IMAGE = os.urandom(5000)


def _zip(tmp_path, members, **options):
    file = tmp_path / "1000011_20252_2_0.zip"
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return file


@pytest.fixture
def good(tmp_path):
    return _zip(tmp_path, [("T1/", b""), (f"old/{NAME}", b"no"), (NAME, IMAGE)], compression=zipfile.ZIP_DEFLATED)


def test_a_member_is_read_to_the_byte_and_nothing_is_written(good, tmp_path):
    assert read_member(good, NAME) == IMAGE
    assert [path.name for path in tmp_path.iterdir()] == [good.name]


def test_a_locator_without_a_member_is_refused():
    for path in ("a.zip", "a.zip!"):
        with pytest.raises(DataError, match=r"file\.zip!member"):
            split_locator(path)


@pytest.mark.parametrize("comment", [b"", b"x" * 60000])
@pytest.mark.parametrize("others", [0, 2000])  # a directory that is longer than the tail of the file
def test_listing_agrees_with_zipfile(tmp_path, comment, others):
    members = [(f"T1/transforms/some_quite_long_name_{place}.mat", b"") for place in range(others)]
    file = _zip(tmp_path, [*members, (NAME, IMAGE), ("deep/" + NAME + ".json", b"{}")])
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = comment
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
    for name in (NAME, "deep/" + NAME + ".json", "deep/" + NAME, "T1/T1.nii", "1.nii.gz"):
        assert has_member(file, name) == (name in names), name


def test_a_name_inside_a_comment_or_a_longer_name_is_no_member(tmp_path):
    file = _zip(tmp_path, [("other/" + NAME, b"1"), (NAME + "x", b"2")])
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = b"PK\x01\x02 " + NAME.encode()
    assert not has_member(file, NAME)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_zip_is_named(good, share):
    good.write_bytes(good.read_bytes()[: int(good.stat().st_size * share)])
    with pytest.raises(DataError, match=r"1000011_20252_2_0\.zip.*truncated"):
        has_member(good, NAME)
    with pytest.raises(DataError, match=rf"1000011_20252_2_0\.zip!{NAME}.*truncated"):
        read_member(good, NAME)


def test_an_absent_zip_and_an_absent_member_are_named(good):
    for call in (has_member, read_member):
        with pytest.raises(DataError, match=r"absent\.zip"):
            call(good.with_name("absent.zip"), NAME)
    with pytest.raises(DataError, match=r"!T1/T1_brain\.nii\.gz: no such member"):
        read_member(good, "T1/T1_brain.nii.gz")


def test_one_flipped_bit_fails_the_checksum(tmp_path):
    file = _zip(tmp_path, [(NAME, IMAGE)])  # stored, so that nothing but the checksum can notice
    data = bytearray(file.read_bytes())
    data[data.find(IMAGE) + 100] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=f"!{NAME}: damaged.*CRC"):
        read_member(file, NAME)


@pytest.mark.parametrize("name", ["../evil.nii", "T1/../../evil.nii", "/etc/evil", "C:/evil", "..\\evil", "\\evil"])
def test_a_zip_with_a_name_that_leads_out_is_refused(tmp_path, name):
    file = _zip(tmp_path, [(NAME, IMAGE), (name, b"evil")])
    with pytest.raises(DataError, match="leads out"):
        read_member(file, NAME)


def test_dots_within_a_name_are_harmless(tmp_path):
    file = _zip(tmp_path, [(NAME, IMAGE), ("T1/a..b.txt", b"")])
    assert read_member(file, NAME) == IMAGE


def test_a_link_is_refused_but_another_members_link_is_not_followed(tmp_path):
    link = zipfile.ZipInfo("T1/T1_brain.nii.gz")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    file = _zip(tmp_path, [(NAME, IMAGE), (link, b"/etc/passwd")])
    assert read_member(file, NAME) == IMAGE
    with pytest.raises(DataError, match="a link"):
        read_member(file, "T1/T1_brain.nii.gz")


def test_a_folder_is_refused(good):
    with pytest.raises(DataError, match="a folder"):
        read_member(good, "T1/")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_is_there_twice_is_refused(tmp_path):
    file = _zip(tmp_path, [(NAME, IMAGE), (NAME, b"another")])
    with pytest.raises(DataError, match="2 members of this name"):
        read_member(file, NAME)


def test_an_encrypted_member_is_refused(tmp_path):
    file = _zip(tmp_path, [(NAME, IMAGE)])
    data = bytearray(file.read_bytes())
    for signature, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.find(signature) + place] |= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match="encrypted"):
        read_member(file, NAME)


def test_a_bomb_is_refused_by_size_and_by_ratio_before_it_is_unpacked(tmp_path):
    file = _zip(tmp_path, [(NAME, bytes(10_000_000))], compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match="more than 200 times"):
        read_member(file, NAME)
    with pytest.raises(DataError, match="at most 9999999 are read"):
        read_member(file, NAME, most_bytes=9_999_999, most_ratio=1e9)
    assert len(read_member(file, NAME, most_bytes=10_000_000, most_ratio=1e9)) == 10_000_000


def test_a_bomb_that_declares_a_small_size_is_not_unpacked_beyond_it(tmp_path):
    file = _zip(tmp_path, [(NAME, bytes(10_000_000))], compression=zipfile.ZIP_DEFLATED)
    data = file.read_bytes()
    file.write_bytes(data.replace(struct.pack("<I", 10_000_000), struct.pack("<I", 1000)))
    with pytest.raises(DataError, match=f"!{NAME}: damaged"):
        read_member(file, NAME)


def test_gzip_is_unpacked_up_to_a_limit():
    data = gzip.compress(IMAGE) + gzip.compress(IMAGE)  # two members, as bgzip writes them
    assert gunzip(data, NAME) == IMAGE + IMAGE
    assert gunzip(data, NAME, most_bytes=10000) == IMAGE + IMAGE
    with pytest.raises(DataError, match=f"{NAME}: refused: unpacks to more than 9999"):
        gunzip(data, NAME, most_bytes=9999)


@pytest.mark.parametrize(
    "torn",
    [b"", b"no gzip at all", gzip.compress(IMAGE)[:-9], gzip.compress(IMAGE)[:200]],
    ids=["empty", "no gzip", "end cut off", "beginning only"],  # the bytes hold the time of day
)
def test_torn_gzip_is_named(torn):
    with pytest.raises(DataError, match=f"{NAME}: damaged or truncated gzip"):
        gunzip(torn, NAME)
