"""Region tables of simulated brains: the same planted anatomy, measured over fixed parcels.

Parcels are points spread evenly over the template's grey matter, each with the voxels nearest to it, mirrored on the
right; they stand in for the published atlases by number, order and unit, not by border, and are named so. Only the
first parcel is an anatomical one: it is centred on the hippocampus.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from brainage.imaging.simulate import BrainSimulator, Scan, grid, stream, templates

HIPPOCAMPUS_MM = (-27.0, -22.0, -16.0)  # left; parcel 1
ATLASES = {"vbm_roi": 71, "desikan": 34, "destrieux": 74}  # parcels a hemisphere
MEASURES = (
    "surface_area_mm^2", "gray_matter_volume_mm^3", "average_thickness_mm", "thickness_stddev_mm",
    "mean_curvature_mm^-1", "gaussian_curvature_mm^-2", "intrinsic_curvature_index",
)  # fmt: skip
_HEMISPHERE_MM2 = 90_000.0  # cortical area of an average woman
_NOISE = np.array([0.02, 0.02, 0.02, 0.04, 0.03, 0.08, 0.10])  # relative, per region and scan, by measure
_SITE = np.array([0.01, 0.02, 0.02, 0.04, 0.03, 0.06, 0.06])  # relative, all regions of a site, by measure


class RegionSimulator:
    """Region vectors of simulated people, from the images of one `BrainSimulator`."""

    def __init__(self, brains: BrainSimulator) -> None:
        self.brains = brains
        self._labels = {atlas: parcel_labels(brains, count) for atlas, count in ATLASES.items()}

    def vbm(self, scan: Scan, grey: np.ndarray) -> np.ndarray:
        """[284] float32, ml: grey matter of 71 parcels (left, right, left, ...), then CSF of the same.

        `grey` is the scan's grey-matter map. CSF is what grey and white matter leave of the parcel's head volume.
        """
        maps, voxel_ml, head = self.brains.templates, self.brains.voxel_ml, np.exp(self.brains.log_head(scan))
        gm = self._sum("vbm_roi", grey) * voxel_ml
        rest = self._sum("vbm_roi", maps.brain - maps.white) * voxel_ml * head
        csf = np.maximum(rest - gm, 0.01)
        # parcels are numbered left hemisphere first; the published vector alternates left and right
        return np.concatenate([values.reshape(2, -1).T.ravel() for values in (gm, csf)]).astype(np.float32)

    def cortex(self, scan: Scan, atlas: str) -> np.ndarray:
        """[7, regions] float32: MEASURES by left then right parcels of `desikan` or `destrieux`.

        Thickness follows the mean log J of the parcel, area follows head size; volume is their product.
        """
        count, seed = ATLASES[atlas], self.brains.seed
        weight = self.brains.templates.grey
        head = self.brains.log_head(scan)
        log_j = self._sum(atlas, weight * self.brains.log_jacobian(scan)) / self._sum(atlas, weight) - head
        region = stream(0, "atlas", atlas)  # the same in every cohort
        usual_mm, share = (np.tile(region.uniform(*limits, count), 2) for limits in ((2.1, 3.0), (0.4, 1.6)))
        area = _HEMISPHERE_MM2 / count * share * np.exp(2 / 3 * head + 0.3 * log_j)
        thickness = usual_mm * np.exp(0.6 * log_j)
        rows = [area, area * thickness, thickness, 0.22 * thickness, 0.34 / thickness, 0.06 / thickness, area / 450]
        site = self.brains.site_effect * _SITE * stream(seed, "surface", scan.site).standard_normal(7)
        noise = stream(seed, "surface", atlas, scan.participant_id, scan.session_id).standard_normal((7, 2 * count))
        return (np.stack(rows) * np.exp(site[:, None] + _NOISE[:, None] * noise)).astype(np.float32)

    def _sum(self, atlas: str, volume: np.ndarray) -> np.ndarray:
        """Sum over each parcel, left hemisphere first."""
        labels = self._labels[atlas]
        return np.bincount(labels.ravel(), volume.ravel(), minlength=2 * ATLASES[atlas] + 1)[1:]


def region_names(atlas: str) -> list[str]:
    """Names in the order of the vectors of `RegionSimulator` (for the cortex: of one measure).

    >>> region_names("vbm_roi")[:3], len(region_names("vbm_roi"))
    (['lHip_GM_Vol', 'rHip_GM_Vol', 'lParcel02_GM_Vol'], 284)
    >>> region_names("desikan")[34]
    'rh-parcel01'
    """
    numbers = range(1, ATLASES[atlas] + 1)
    if atlas != "vbm_roi":
        return [f"{side}h-parcel{number:02d}" for side in "lr" for number in numbers]
    parcels = ["Hip" if number == 1 else f"Parcel{number:02d}" for number in numbers]
    return [f"{side}{parcel}_{tissue}_Vol" for tissue in ("GM", "CSF") for parcel in parcels for side in "lr"]


def parcel_labels(brains: BrainSimulator, count: int) -> np.ndarray:
    """[X, Y, Z] int: 1..count in the left hemisphere of the brain, count+1..2 count mirrored in the right, else 0.

    Voxels of the midline belong to no parcel, so that both sides have equally many.
    """
    i, j, k = np.nonzero(brains.templates.brain)
    mm = np.stack([i, j, k], 1) * brains.spacing_mm + brains.affine[:3, 3]
    left_mm = np.column_stack([-np.abs(mm[:, 0]), mm[:, 1:]])
    _, nearest = cKDTree(parcel_centres(count)).query(left_mm)
    side = np.sign(np.round(mm[:, 0], 6))
    labels = np.zeros(brains.shape, dtype=np.int64)
    labels[i, j, k] = np.where(side == 0, 0, nearest + 1 + count * (side > 0))
    return labels


def parcel_centres(count: int) -> np.ndarray:
    """[count, 3] mm in the left hemisphere: each the grey-matter point farthest from those before it."""
    grey, (_, affine) = templates(8.0).grey, grid(8.0)
    points = np.argwhere(grey > 0.2) * 8.0 + affine[:3, 3]
    points = points[points[:, 0] < -4]
    centres = [np.array(HIPPOCAMPUS_MM)]
    distance = np.full(len(points), np.inf)
    for _ in range(count - 1):
        distance = np.minimum(distance, np.linalg.norm(points - centres[-1], axis=1))
        centres.append(points[np.argmax(distance)])
    return np.array(centres)
