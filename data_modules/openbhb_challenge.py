"""OpenBHB's challenge form: one flat row of columns a person, in `<split>.npy` with a `<split>.tsv` beside it.

Columns are blocks: vbm | quasiraw | xhemi | vbm_roi | desikan | destrieux. The first two hold the voxels inside a mask
of `resource/`, in C order of the stored array (grey matter template > 0.05, brain template > 0). Where a file has one
row more than its table, its first row is a header (the challenge kit's concatenated test file) and is skipped.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from brainage.data.table import read_tsv
from brainage.errors import DataError
from data_modules.openbhb_layout import REGIONS, VOLUMES, canonical_rows, load_array, mask_of, require_columns

XHEMI_COLUMNS = 8 * 163842  # surface measures, not read here
FILES = {  # file stem -> published split, where the table has no split column
    "train": "train",
    "internal_train": "train",
    "internal_test": "internal_test",
    "test": "internal_test",
    "external_test": "external_test",
}


class Challenge:
    """The flat files of a root, seen through one modality. Opens nothing before it is asked."""

    def __init__(self, root: Path, modality: str) -> None:
        self.root = root
        self.modality = modality
        self.resource = root / "resource"

    @cached_property
    def files(self) -> list[Path]:
        """The .npy files that are there, in the root or in its `data/`; empty where this is no challenge folder."""
        for folder in (self.root, self.root / "data"):
            stems = [stem for stem in FILES if (folder / f"{stem}.npy").is_file()]
            if "internal_test" in stems and "test" in stems:
                stems.remove("test")  # the kit's concatenation of internal_test and external_test
            if stems:
                return [folder / f"{stem}.npy" for stem in stems]
        return []

    def rows(self) -> pd.DataFrame:
        """Canonical columns, `published_split` and `path` (`file.npy#row`); reads headers and tables only."""
        return pd.concat([self._rows_of(file) for file in self.files], ignore_index=True)

    def read(self, path: str) -> np.ndarray:
        """float32: the stored volume (three axes, 0 outside the mask), or the region values in their flat order."""
        name, _, row = path.rpartition("#")
        rows = load_array(self.root / name, mmap_mode="r")
        if rows.ndim != 2 or not row.isdecimal() or int(row) >= len(rows):
            raise DataError(f"{self.root / name}: expected a row {row} of values, found shape {rows.shape}")
        self._check_columns(self.root / name, rows.shape[1])
        start, stop = self.blocks[self.modality]
        values = np.array(rows[int(row), start:stop], dtype=np.float32)
        if self.modality in REGIONS:
            return values
        volume = np.zeros(self._mask.shape, np.float32)
        volume[self._mask] = values
        return volume

    @cached_property
    def blocks(self) -> dict[str, tuple[int, int]]:
        """First column and last column + 1 of each block, from the masks and the published region counts."""
        sizes = {name: self._voxels(name) for name in VOLUMES} | {"xhemi": XHEMI_COLUMNS}
        sizes |= {name: regions.measures * regions.regions for name, regions in REGIONS.items()}
        stops = np.cumsum(list(sizes.values())).tolist()
        return {name: (stop - sizes[name], stop) for name, stop in zip(sizes, stops, strict=True)}

    def check_columns(self) -> None:
        """Raise DataError naming the first file whose number of columns is not that of its blocks."""
        for file in self.files:
            self._check_columns(file, _shape_in_header(file)[1])

    def _rows_of(self, file: Path) -> pd.DataFrame:
        sheet_file = file.with_suffix(".tsv")
        sheet = read_tsv(sheet_file)
        require_columns(sheet, ("age", "site"), sheet_file)
        n, _ = _shape_in_header(file)
        if n not in (len(sheet), len(sheet) + 1):
            raise DataError(f"{file}: expected {len(sheet)} rows as in {sheet_file.name}, found {n}; download it again")
        if "participant_id" not in sheet:
            sheet["participant_id"] = [f"{file.stem}-{row:05d}" for row in range(len(sheet))]
        if "split" not in sheet:
            sheet["split"] = FILES[file.stem]
        sheet["split"] = sheet["split"].replace(FILES)
        name = file.relative_to(self.root).as_posix()
        first = n - len(sheet)
        return canonical_rows(sheet, sheet_file).assign(path=[f"{name}#{row + first}" for row in range(len(sheet))])

    def _check_columns(self, file: Path, columns: int) -> None:
        expected = max(stop for _, stop in self.blocks.values())
        if columns != expected:
            found = " + ".join(f"{name} {stop - start}" for name, (start, stop) in self.blocks.items())
            raise DataError(
                f"{file}: expected {expected} columns ({found}, masks of {self.resource}), found {columns}; "
                "are the templates those of this file?"
            )

    def _voxels(self, name: str) -> int:
        template = self.resource / VOLUMES[name].template
        return int(np.count_nonzero(mask_of(VOLUMES[name], template))) if template.is_file() else VOLUMES[name].voxels

    @cached_property
    def _mask(self) -> np.ndarray:
        template = self.resource / VOLUMES[self.modality].template
        if not template.is_file():
            raise DataError(f"{template}: not found; the flat {self.modality} columns cannot be unmasked without it")
        return mask_of(VOLUMES[self.modality], template)


def _shape_in_header(file: Path) -> tuple[int, int]:
    """Rows and columns from the first bytes of a .npy file; its values are not touched."""
    try:
        with open(file, "rb") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = header(stream)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{file}: damaged or no .npy file ({error}); download it again") from error
    if len(shape) != 2:
        raise DataError(f"{file}: expected rows of columns, found shape {shape}")
    return shape[0], shape[1]
