"""Members of zip files, read without unpacking anything to a disk.

Nothing is ever extracted, so no name can lead out of a folder; a zip whose names try to is refused all the same, since
no published download holds one. What is read is bounded twice: by the size that the directory declares and by the bytes
that really come out.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

from brainage.errors import DataError

MOST_BYTES = 2**30  # of one member, unpacked: a head of 256^3 voxels in float64 has 134 million
MOST_RATIO = 200.0  # unpacked over packed; images reach 10, deflate can reach 1032
_END, _ENTRY = b"PK\x05\x06", b"PK\x01\x02"
_END_BYTES, _ENTRY_BYTES = 22, 46
_TAILS_BYTES = (2**14, 2**16 + _END_BYTES)  # most directories; the end record and the longest comment behind it
_CHUNK_BYTES = 2**20
_DRIVE = re.compile(r"^[A-Za-z]:")
_ENCRYPTED = 0x1


def split_locator(path: str) -> tuple[str, str]:
    """File and member of a locator.

    >>> split_locator("bulk/1000011_20252_2_0.zip!T1/T1.nii.gz")
    ('bulk/1000011_20252_2_0.zip', 'T1/T1.nii.gz')
    """
    file, mark, member = path.partition("!")
    if not mark or not member:
        raise DataError(f"{path}: expected a locator like file.zip!member")
    return file, member


def has_member(file: Path, member: str) -> bool:
    """Whether the directory at the end of a zip names `member`: one read of 16 KB, some 50 microseconds.

    For listing many zips: nothing else is checked, `read_member` does that. Raises DataError when there is no directory
    (a download that was cut off, or no zip) or the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            directory = _directory(stream)
        if directory is None:
            with zipfile.ZipFile(file) as archive:  # zip64, which is rare, or no zip at all
                return member in archive.namelist()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror or error})") from error
    except Exception as error:
        raise DataError(f"{file}: no zip file, or truncated: its directory is missing; download it again") from error
    name, start = member.encode(), 0
    while (place := directory.find(name, start)) >= 0:
        entry = place - _ENTRY_BYTES
        if entry >= 0 and directory[entry : entry + 4] == _ENTRY:
            (length,) = struct.unpack_from("<H", directory, entry + 28)
            if length == len(name):
                return True
        start = place + 1
    return False


def read_member(file: Path, member: str, *, most_bytes: int = MOST_BYTES, most_ratio: float = MOST_RATIO) -> bytes:
    """The bytes of one member; their checksum is compared with the directory's.

    Raises DataError naming file and member when the zip is absent, truncated or damaged; a name in it is absolute,
    holds `..` or a drive letter; the member is missing, there twice, a folder, a link, encrypted, or larger than
    `most_bytes` or than `most_ratio` times its packed size, by its declaration or in truth.
    """
    name = f"{file}!{member}"
    if not file.is_file():
        raise DataError(f"{file}: file not found")
    try:
        with zipfile.ZipFile(file) as archive:
            entry = _entry(archive, member, file)
            _refuse_entry(entry, name, most_bytes, most_ratio)
            with archive.open(entry) as stream:
                data = stream.read(entry.file_size + 1)
    except DataError:
        raise
    except Exception as error:  # zipfile, zlib, lzma and struct each have their own for a torn file
        raise DataError(
            f"{name}: damaged or truncated ({' '.join(f'{type(error).__name__}: {error}'.split())[:160]}); "
            "download the zip again"
        ) from error
    if len(data) != entry.file_size:
        raise DataError(f"{name}: damaged: {entry.file_size} bytes declared, {len(data)} found; download the zip again")
    return data


def gunzip(data: bytes, name: str, *, most_bytes: int = MOST_BYTES) -> bytes:
    """Unpack gzip, at most `most_bytes` of it; DataError naming `name` where there is more, or it is torn."""
    if not data:
        raise DataError(f"{name}: damaged or truncated gzip (0 bytes); download it again")
    parts, size = [], 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
            while part := stream.read(_CHUNK_BYTES):
                parts.append(part)
                size += len(part)
                if size > most_bytes:
                    raise DataError(f"{name}: refused: unpacks to more than {most_bytes} bytes: no image does")
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: damaged or truncated gzip ({error}); download it again") from error
    return b"".join(parts)


def _directory(stream: BinaryIO) -> bytes | None:
    """The central directory, None where it is not found at once."""
    size = stream.seek(0, io.SEEK_END)
    for tail_bytes in _TAILS_BYTES:
        stream.seek(max(size - tail_bytes, 0))
        tail = stream.read()
        end = tail.rfind(_END)
        if 0 <= end <= len(tail) - _END_BYTES:
            break
    else:
        return None
    (length,) = struct.unpack_from("<I", tail, end + 12)
    if length <= end:
        return tail[end - length : end]
    begin = size - len(tail) + end - length
    if begin < 0:
        return None
    stream.seek(begin)
    return stream.read(length)


def _entry(archive: zipfile.ZipFile, member: str, file: Path) -> zipfile.ZipInfo:
    entries = archive.infolist()
    for entry in entries:
        if _leads_out(entry.filename):
            raise DataError(f"{file}: refused: its member {entry.filename!r} leads out of the folder it belongs to")
    found = [entry for entry in entries if entry.filename == member]
    if not found:
        raise DataError(f"{file}!{member}: no such member; the zip has {len(entries)} others")
    if len(found) > 1:
        raise DataError(f"{file}!{member}: refused: the zip holds {len(found)} members of this name")
    return found[0]


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or ".." in parts or bool(_DRIVE.match(name))


def _refuse_entry(entry: zipfile.ZipInfo, name: str, most_bytes: int, most_ratio: float) -> None:
    if entry.is_dir():
        raise DataError(f"{name}: refused: a folder, expected a file")
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise DataError(f"{name}: refused: a link, expected a file")
    if entry.flag_bits & _ENCRYPTED:
        raise DataError(f"{name}: encrypted; decrypt the download first")
    if entry.file_size > most_bytes:
        raise DataError(f"{name}: refused: {entry.file_size} bytes declared, at most {most_bytes} are read")
    if entry.file_size > most_ratio * max(entry.compress_size, 1):
        raise DataError(
            f"{name}: refused: {entry.compress_size} bytes would unpack to {entry.file_size}, more than {most_ratio:g} "
            "times as many: no image does"
        )
