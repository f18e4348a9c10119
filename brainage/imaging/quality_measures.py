"""What can be measured of one scan, and what it is compared with: pure functions on arrays.

Legend: V voxels of the grid in C order; M of them inside the reference mask; C cells of CELL_MM into which the mask is
pooled; P pairs of mirrored cells; n scans.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from brainage.imaging.contract import InputContract
from brainage.statistics.robust import NORMAL, limits

CELL_MM = 12.0  # edge of a pooled cell; about 1,000 of them cover a brain
SIGNAL = 0.05  # share of a scan's bright value above which a voxel has signal
BRIGHT_PERCENTILE = 98.0  # of the positive voxels
MASK_GREY = 0.05  # of the grey matter template: the threshold of the OpenBHB challenge mask
_EVERY = 7  # percentiles look at every 7th voxel: no grid axis is a multiple of it for long
_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(np.float32)
PENALTIES = 10.0 ** np.arange(-5, 1)  # of the ridge that reads a crude age, over the largest eigenvalue


@dataclass(frozen=True)
class Reference:
    """A mask on a grid, with its pooled cells."""

    inside: np.ndarray  # [M] voxel numbers, ascending
    cell_of: np.ndarray  # [M] cell of each; the last one, C, takes the voxels of no cell
    weight: np.ndarray  # [C] one over the voxels of a cell
    right: np.ndarray  # [P] cells with x > 0
    left: np.ndarray  # [P] their mirror images

    @property
    def cells(self) -> int:
        return len(self.weight)

    def pool(self, values: np.ndarray) -> np.ndarray:
        """[C] means of values [M]."""
        return np.bincount(self.cell_of, values, self.cells + 1)[: self.cells] * self.weight


def as_float(volume: np.ndarray, out: np.ndarray) -> np.ndarray:
    """A contiguous fp16 (or any) array as float32 [V], written to `out`; the table is 3 to 7 times a plain cast."""
    flat = volume.reshape(-1)
    if flat.dtype == np.float16:
        return np.take(_HALF, flat.view(np.uint16), out=out, mode="clip")
    out[:] = flat
    return out


def bright_value(values: np.ndarray) -> float:
    """BRIGHT_PERCENTILE of the positive values (of every 7th voxel); 0 where none is positive."""
    some = values[::_EVERY] if values.size > 10_000 else values
    some = some[some > 0]
    return float(np.percentile(some, BRIGHT_PERCENTILE)) if some.size else 0.0


def template_mask(contract: InputContract) -> np.ndarray | None:
    """bool [V]: where the MNI152 template has grey matter (for maps of it) or brain; None outside MNI spaces."""
    if not contract.space.startswith("MNI"):
        return None
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template  # slow to import

    grey = "gm" in contract.modality or "grey" in contract.modality
    image = (load_mni152_gm_template if grey else load_mni152_template)(resolution=1)
    values = np.asarray(image.dataobj, dtype=np.float32)
    values = values if grey else (values > 0).astype(np.float32)
    spacing = np.array(contract.spacing_mm)
    blurred = ndimage.gaussian_filter(values, np.where(spacing > 1, spacing / 2.355, 0), truncate=2.5)
    offset = np.array(contract.origin_mm) - image.affine[:3, 3]  # the template is RAS with 1 mm voxels
    there = ndimage.affine_transform(blurred, spacing, offset, output_shape=contract.shape[1:], order=1)
    return (there > (MASK_GREY if grey else 0.5)).reshape(-1)


def reference_of(mask: np.ndarray, contract: InputContract) -> Reference:
    """Cells of a mask (bool [V]): edges of CELL_MM counted from the midline x = 0, so that each has a mirror image."""
    inside = np.flatnonzero(mask)
    voxel = np.stack(np.unravel_index(inside, contract.shape[1:]))
    mm = voxel * np.array(contract.spacing_mm)[:, None] + np.array(contract.origin_mm)[:, None]
    step = np.floor(np.vstack([np.abs(mm[:1]), mm[1:]]) / CELL_MM).astype(np.int64)
    step -= step.min(axis=1, keepdims=True, initial=0)
    side = np.sign(np.round(mm[0], 3)).astype(np.int64)  # 0 on the midline: of no cell
    extent = step.max(axis=1, initial=0) + 1
    half = np.ravel_multi_index(tuple(step), tuple(extent)) if len(inside) else np.zeros(0, np.int64)
    full = int(np.prod(extent))
    number = np.where(side > 0, half, half + full)
    voxels = np.bincount(number[side != 0], minlength=2 * full)
    enough = voxels >= 0.25 * np.prod(CELL_MM / np.array(contract.spacing_mm))
    cells = int(enough.sum())
    place = np.full(2 * full, cells)
    place[enough] = np.arange(cells)
    paired = np.flatnonzero(enough[:full] & enough[full:])
    cell_of = np.where(side != 0, place[number], cells)
    return Reference(inside, cell_of, 1 / voxels[enough], place[paired], place[paired + full])


def centred(total: np.ndarray) -> np.ndarray:
    """float32 [M]: the sum of all scans without its mean, what each is correlated with."""
    return (total - total.mean()).astype(np.float32)


def mean_correlation(values: np.ndarray, total: np.ndarray, total_ss: float) -> float:
    """Pearson correlation of one scan [M] with the mean of the others, given the centred sum of all (`centred`).

    With x the scan and S the sum, both centred, r = (x.S - x.x) / (|x| |S - x|), since the others sum to S - x: two
    passes over the data whatever the number of scans. NaN where one of the two is constant.

    >>> scans = np.array([[1.0, 2, 3], [1, 2, 4], [3, 2, 2]], dtype=np.float32)
    >>> total = centred(scans.sum(0))
    >>> found = mean_correlation(scans[0], total, float(total @ total))
    >>> bool(np.isclose(found, np.corrcoef(scans[0], scans[1:].mean(0))[0, 1]))
    True
    """
    x = values - values.mean(dtype=np.float64).astype(np.float32)
    own, cross = float(np.dot(x, x)), float(np.dot(x, total))
    others = total_ss - 2 * cross + own
    product = own * others
    return (cross - own) / float(np.sqrt(product)) if own > 1e-12 and others > 1e-9 * max(own, 1e-30) else np.nan


def measure_volume(volume: np.ndarray, reference: Reference, bright: float) -> tuple[dict[str, float], np.ndarray]:
    """Coverage, outside, level, spread and asymmetry of one volume (float32 [V]), and its values [M] over `bright`.

    qc_coverage  share of the reference mask with signal (above SIGNAL of the scan's own bright value)
    qc_outside   share of all signal that lies outside the mask
    qc_level     mean of the stored values in the mask (grey matter maps: proportional to its volume)
    qc_spread    (90th - 10th percentile) / median of the voxels with signal in the mask
    qc_asymmetry (right - left) / (right + left) of the signal, cells with a mirror image only
    """
    inside = volume[reference.inside]
    threshold = SIGNAL * bright
    signal = inside > threshold if bright > 0 else np.zeros(inside.shape, bool)
    everywhere = float(volume[volume > threshold].sum(dtype=np.float64)) if bright > 0 else 0.0
    within = float(inside[signal].sum(dtype=np.float64))
    low, middle, high = np.percentile(inside[signal], [10, 50, 90]) if signal.any() else (0.0, 0.0, 0.0)
    scaled = inside / np.float32(bright) if bright > 0 else np.zeros_like(inside)
    pooled = reference.pool(scaled)
    right, left = pooled[reference.right].sum(), pooled[reference.left].sum()
    return {
        "qc_coverage": float(signal.mean()) if signal.size else 0.0,
        "qc_outside": max(0.0, 1 - within / everywhere) if everywhere > 0 else np.nan,
        "qc_level": float(inside.mean(dtype=np.float64)) if inside.size else 0.0,
        "qc_spread": float((high - low) / middle) if middle > 0 else 0.0,
        "qc_asymmetry": float((right - left) / (right + left)) if right + left > 0 else np.nan,
    }, scaled


def side_correlations(pooled: np.ndarray, reference: Reference) -> np.ndarray:
    """[n] correlation of each scan's asymmetries [n, P], (right - left) / (right + left), with the mean of the others'.

    Brains are not symmetric (petalia: right frontal and left occipital lobes protrude), and all in the same way: a
    volume stored as its mirror image correlates below 0. NaN with fewer than three scans or pairs.
    """
    right, left = pooled[:, reference.right], pooled[:, reference.left]
    if min(right.shape) < 3:
        return np.full(len(right), np.nan)
    sides = (right - left) / np.maximum(right + left, 0.1 * np.median(right + left) + 1e-12)
    sides = sides - sides.mean(axis=1, keepdims=True)
    length = np.linalg.norm(sides, axis=1, keepdims=True)
    unit = np.divide(sides, length, out=np.zeros_like(sides), where=length > 0)
    others = unit.sum(0) - unit
    norm = np.linalg.norm(others - others.mean(1, keepdims=True), axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(length[:, 0] > 0, (unit * others).sum(1) / norm, np.nan)


def crude_age(features: np.ndarray, age_years: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[n] age read from pooled images (or any features [n, C]) by ridge regression, of each without itself.

    Fitted on `rows` (bool [n]) after winsorising features at 5 robust scales; the penalty, of PENALTIES, is the one of
    the smallest median error of people left out (by the identity e / (1 - h), so in one fit). Ages further than 3
    robust scales from what the image says are drawn in, so that a wrong one hardly speaks for others and not at all for
    itself. NaN where features are missing.
    """
    known = np.isfinite(features).all(axis=1)
    rows = rows & known & np.isfinite(age_years)
    if rows.sum() < 3:
        return np.full(len(features), np.nan)
    x = np.where(known[:, None], features, 0.0)
    ends = np.array([limits(column, 5.0) for column in x[rows].T]).T
    x = np.clip(x, ends[0], ends[1])
    x = x - x[rows].mean(0)
    power, axes = np.linalg.eigh(x[rows].T @ x[rows])
    kept = power > 1e-10 * power.max(initial=1e-30)
    scores, power = x @ axes[:, kept], power[kept]
    ages = np.where(np.isfinite(age_years), age_years, 0.0)
    if not len(power):
        return np.where(known, ages[rows].mean(), np.nan)
    tried = [_left_out(scores, power, share * power.max(), ages, rows) for share in PENALTIES]
    best = min(tried, key=lambda read: float(np.median(np.abs(ages - read)[rows])))
    return np.where(known, best, np.nan)


def _left_out(scores: np.ndarray, power: np.ndarray, penalty: float, ages: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[n] fitted ages, of `rows` without themselves."""
    own = scores[rows]
    leverage = np.clip((own**2 / (power + penalty)).sum(1) + 1 / rows.sum(), 0, 0.999)
    truth = target = ages[rows]
    for _ in range(3):
        middle = target.mean()
        weights = own.T @ (target - middle) / (power + penalty)
        without = target - (target - middle - own @ weights) / (1 - leverage)
        reach = 3 * NORMAL * np.median(np.abs(truth - without)) + 1e-9
        target = np.clip(truth, without - reach, without + reach)
    read = middle + scores @ weights
    read[rows] = without
    return read
