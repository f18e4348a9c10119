"""Sheets of flagged scans, three slices each, for somebody to look at before a rule leaves anybody out.

They show single persons: they are written beside the store (`thumbnails_1.png` ...), are in no report, and MLflow's
list of aggregate files (`brainage.tracking.outbox`) does not know them, so that they never leave the machine.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brainage.data.table import scan_keys, write_atomically
from brainage.errors import DataError
from brainage.imaging.quality import Samples
from brainage.imaging.quality_limits import PUBLISHED
from brainage.reporting.style import INK, MUTED, plain, styled

MOST_A_SHEET = 24  # scans
MOST_SHEETS = 5  # the scans with most flags first; all are in quality.parquet
UNFLAGGED = 4  # scans without a flag on each sheet, to compare with
COLUMNS = 4  # scans side by side
SHEET = "thumbnails_{number}.png"
_FLAG_INK = "#9b1c1c"


class Slices(NamedTuple):
    """Planes of a volume (X, Y, Z) in RAS as they are looked at: the top of an image is up or front, left is left."""

    axial: np.ndarray
    coronal: np.ndarray
    sagittal: np.ndarray


def write_thumbnails(
    store: Samples,
    quality: pd.DataFrame,
    folder: Path | None = None,
    *,
    a_sheet: int = MOST_A_SHEET,
    sheets: int = MOST_SHEETS,
    seed: int = 0,
) -> list[Path]:
    """Write the flagged scans as sheets into `folder` (the store's own by default), and remove older sheets there.

    `quality` has the order of the store (`write_quality`). Of more than `a_sheet` x `sheets` scans those with most
    flags are shown, and the title says how many there are; without a flagged scan, or for vectors, nothing is written.
    A scan that the cohort's own limits do not accept (qc_iqr, ... of the table) counts as flagged too.
    """
    folder = Path(store.path) if folder is None else Path(folder)
    if len(quality) != len(store.table):
        raise DataError(f"{store.path}: {len(store.table)} scans, but a quality of {len(quality)}; compute it again")
    for stale in folder.glob(SHEET.format(number="*")):
        stale.unlink()
    if store.contract.kind != "volume":
        return []
    words = flag_words(store.table, quality)
    flagged = [row for row in np.argsort(-np.array([len(w) for w in words]), kind="stable") if words[row]]
    others = np.flatnonzero([not w for w in words])
    draw = np.random.default_rng(seed)
    paths: list[Path] = []
    room = max(a_sheet - UNFLAGGED, 1)
    for start in range(0, min(len(flagged), room * sheets), room):
        beside = np.sort(draw.permutation(others)[: a_sheet - room]) if len(others) else others
        rows = [*flagged[start : start + room], *beside]
        last = min(start + room, len(flagged))
        title = f"Flagged scans {start + 1} to {last} of {len(flagged)} ({len(words)} scans in all)"
        title += f"; then {len(beside)} without a flag" if len(beside) else ""
        figure = sheet(store, rows, words, title)
        paths.append(_write(figure, folder / SHEET.format(number=len(paths) + 1)))
    return paths


def flag_words(table: pd.DataFrame, quality: pd.DataFrame) -> list[list[str]]:
    """The computed flags of each scan, and the cohort's own measures that miss their published limit.

    Slices are as bright as their scan, so that a wrong scale is told in words: `level x 4.0` of the cohort's median.
    """
    words = [text.split(", ") if isinstance(text, str) else [] for text in quality["qc_flags"]]
    times = quality["qc_level"] / quality.groupby("cohort")["qc_level"].transform("median")
    words = [
        [f"level x {ratio:.2g}" if w == "level" else w for w in row] for row, ratio in zip(words, times, strict=True)
    ]
    for limit in PUBLISHED:
        if limit.column in table:
            values = table[limit.column].to_numpy(float)
            good = (values > limit.low) & (values < limit.high)
            for row in np.flatnonzero(~good & np.isfinite(values)):
                words[row].append(f"{limit.flag} {values[row]:g}")
    return words


def middle_slices(volume: np.ndarray, centre: Sequence[float]) -> Slices:
    """The planes of a volume (X, Y, Z) through a voxel: axial and coronal with the person's left at the left."""
    x, y, z = (int(np.clip(round(place), 0, size - 1)) for place, size in zip(centre, volume.shape, strict=True))
    return Slices(volume[:, :, z].T[::-1], volume[:, y, :].T[::-1], volume[x, :, :].T[::-1])


@styled
def sheet(store: Samples, rows: Sequence[int], words: Sequence[Sequence[str]], title: str) -> Figure:
    """One figure of some rows of the store: key, age, flags, and three slices of each."""
    lines = -(-len(rows) // COLUMNS)
    figure = Figure(figsize=(3.3 * COLUMNS, 0.5 + 1.75 * lines))
    height = figure.get_size_inches()[1]
    figure.suptitle(title, x=0.01, y=1 - 0.1 / height, ha="left", va="top", fontsize=11, fontweight="bold")
    note = "Left, middle, right: axial, coronal, sagittal through the middle. Left of the image: the person's left."
    figure.text(0.01, 1 - 0.3 / height, note, ha="left", va="top", fontsize=8, color=MUTED)
    top = 1 - 0.5 / height
    cell_width, cell_height = 1 / COLUMNS, top / lines
    sample = np.empty((1, *store.contract.shape), store.contract.dtype)
    for place, row in enumerate(rows):
        left, upper = (place % COLUMNS) * cell_width, top - (place // COLUMNS) * cell_height
        box = (left + 0.004, upper - cell_height + 0.02 / lines, cell_width - 0.008, cell_height * 0.72)
        volume = store.read([row], out=sample)[0, 0].astype(np.float32)
        _draw(figure.add_axes(box), volume, store.contract.origin_mm, store.contract.spacing_mm)
        _caption(figure, left + 0.006, upper, store.table.iloc[[row]], words[row], height)
    return figure


def _draw(axes: Axes, volume: np.ndarray, origin_mm: Sequence[float], spacing_mm: Sequence[float]) -> None:
    """Three slices beside each other, as bright as the scan itself is; with a point of 0 mm where the grid has one."""
    middle = [(size - 1) / 2 for size in volume.shape]
    middle[0] = -origin_mm[0] / spacing_mm[0] + 4 / spacing_mm[0]  # beside the falx, where a sagittal slice has brain
    planes = middle_slices(volume, middle)
    tall = max(plane.shape[0] for plane in planes)
    padded = [_centred(plane, tall) for plane in planes]
    image = np.concatenate(padded, axis=1)
    positive = volume[volume > 0]
    bright = float(np.percentile(positive[:: max(1, positive.size // 50_000)], 99.5)) if positive.size else 1.0
    axes.imshow(image, cmap="gray", vmin=0, vmax=bright or 1.0, interpolation="nearest", aspect="equal")
    axes.set_axis_off()


def _centred(plane: np.ndarray, tall: int) -> np.ndarray:
    above = (tall - plane.shape[0]) // 2
    return np.pad(plane, ((above, tall - plane.shape[0] - above), (1, 1)))


def _caption(figure: Figure, x: float, y: float, row: pd.DataFrame, flags: Sequence[str], height: float) -> None:
    scan = row.iloc[0]
    sex = scan["sex"] if isinstance(scan["sex"], str) else "sex unknown"
    who = f"{plain(scan_keys(row).iloc[0].strip('/'), 46)}"
    figure.text(x, y - 0.02 / height, who, fontsize=7.5, color=INK, va="top")
    found = ", ".join(flags)
    text = found if len(found) <= 52 else found[:51] + "…"
    what = f"{scan['age_years']:.1f} years, {sex}" + ("" if flags else ", no flag")
    figure.text(x, y - 0.16 / height, what, fontsize=7.5, color=MUTED, va="top")
    figure.text(x, y - 0.30 / height, text, fontsize=7.5, color=_FLAG_INK, fontweight="bold", va="top")


def _write(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getvalue()))
    return path
