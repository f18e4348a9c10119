"""Brains with a known answer: grey-matter maps and T1-like volumes in which age, disease, sex and site are planted.

    modulated grey matter = template x exp(log J)
    log J = ageing maps x biological age + disease maps x severity + head size + sex
            + a smooth random field per person (+ a small one per scan) + smooth field and gain per site
    image = that, at the site's sharpness, plus the site's noise

The template is the MNI ICBM 2009a nonlinear symmetric grey/white matter pair that ships inside nilearn: nothing is
downloaded. Every brain carries the same known asymmetry (right frontal and left occipital petalia), since the template
has none and a mirrored reader must be noticed.

Shape legend: X Y Z voxels in RAS (x grows to the right), millimetres of MNI152 space.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from brainage.errors import ConfigError

VERSION = 1  # raise it when equal seeds give other images: cohorts on disk are then not taken for finished
REFERENCE_AGE_YEARS = 25.0  # age at which the ageing maps leave the template as it is
PETALIA_LOG = 0.10  # log volume added to the right frontal and left occipital grey matter of every brain
SEX_LOG_HEAD = 0.11  # log head volume of men minus women
HEAD_LOG_SD = 0.06  # spread of log head volume within a sex
TIV_FEMALE_ML = 1400.0  # average intracranial volume of women; MNI152 heads are larger

# Field of view of the published OpenBHB grey-matter grid: 121 x 145 x 121 voxels of 1.5 mm.
_FIELD_OF_VIEW_MM = (180.0, 216.0, 180.0)
_ORIGIN_MM = (0.0, -126.0, -72.0)  # y and z of the first voxel; x is centred on the midline
_COARSE_MM, _FINE_MM = 36.0, 18.0  # node distances of the random fields
_PERSON_SD = (0.025, 0.04)  # of the coarse and fine field
_SCAN_SD = 0.01
_SITE_SD = 0.035


class Scan(NamedTuple):
    """What decides a simulated image; a row of `simulated_people.simulate_people` holds it."""

    participant_id: str
    session_id: str
    site: str  # the acquisition unit whose effect the image carries
    sex: str  # F | M
    biological_age_years: float
    disease_severity: float = 0.0  # 0 healthy .. 1 Alzheimer's disease


class SiteEffect(NamedTuple):
    """How one acquisition unit distorts its images."""

    field: np.ndarray  # coarse spline coefficients, log units
    log_gain: float
    sharpness: float  # share of the template's detail added (+) or lost (-)
    noise_sd: float  # of the image, relative to its local value
    contrast: float  # grey-white contrast of T1, 1 = nominal
    scanner_units: float  # arbitrary intensity scale of T1


class Templates(NamedTuple):
    """Tissue maps on one grid, each [X, Y, Z] float32 in RAS."""

    grey: np.ndarray  # share of grey matter, 0 outside the brain
    white: np.ndarray
    t1: np.ndarray  # T1 template inside the brain, 0 outside
    brain: np.ndarray  # bool


def stream(seed: int, *words: object) -> np.random.Generator:
    """Random numbers that depend on (seed, words) alone, so on no order of calls and no number of workers."""
    text = "/".join(map(str, (seed, *words)))
    key = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=16).digest(), dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def grid(spacing_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and RAS affine of the grid of that spacing over the OpenBHB field of view.

    >>> grid(1.5)[0]
    (121, 145, 121)
    >>> grid(1.5)[1][:3, 3].tolist()
    [-90.0, -126.0, -72.0]
    """
    if not 1.0 <= spacing_mm <= 12.0:
        raise ConfigError(f"spacing_mm={spacing_mm}: expected between 1 and 12 mm (the templates have 1 mm)")
    x, y, z = (int(extent / spacing_mm + 1e-6) + 1 for extent in _FIELD_OF_VIEW_MM)
    affine = np.diag([spacing_mm, spacing_mm, spacing_mm, 1.0])
    affine[:3, 3] = (-spacing_mm * (x - 1) / 2, *_ORIGIN_MM[1:])
    return (x, y, z), affine


@lru_cache(maxsize=4)
def templates(spacing_mm: float) -> Templates:
    """The MNI152 2009a symmetric maps of nilearn, low-passed and resampled to `grid(spacing_mm)`."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    shape, affine = grid(spacing_mm)

    def resample(data: np.ndarray, source: np.ndarray) -> np.ndarray:
        if spacing_mm > 1:
            data = ndimage.gaussian_filter(data, spacing_mm / 2.355, truncate=2.5)  # FWHM of one new voxel
        offset = affine[:3, 3] - source[:3, 3]  # source voxels are 1 mm and RAS
        return ndimage.affine_transform(data, np.full(3, spacing_mm), offset, output_shape=shape, order=1)

    images = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template, load_mni152_template)]
    grey, white, t1 = (np.asarray(image.dataobj, dtype=np.float32) for image in images)
    source = images[0].affine
    brain = resample((t1 > 0).astype(np.float32), source) > 0.5
    grey, white, t1 = (np.where(brain, resample(data, source), 0).astype(np.float32) for data in (grey, white, t1))
    grey[grey < 0.01] = 0
    return Templates(grey, white, np.where(brain, np.maximum(t1, 1e-3), 0).astype(np.float32), brain)


class BrainSimulator:
    """Images of simulated people on one grid; every image is a pure function of (seed, scan)."""

    def __init__(self, spacing_mm: float, seed: int, *, site_effect: float = 1.0) -> None:
        """`site_effect` scales every distortion a site makes (0: none but the noise)."""
        self.spacing_mm, self.seed, self.site_effect = float(spacing_mm), seed, site_effect
        self.shape, self.affine = grid(spacing_mm)
        self.templates = templates(self.spacing_mm)
        self.voxel_ml = spacing_mm**3 / 1000.0
        self._axes = [self.affine[d, 3] + spacing_mm * np.arange(n) for d, n in enumerate(self.shape)]
        self._maps = anatomical_maps(*np.meshgrid(*self._axes, indexing="ij", sparse=True))
        self._splines = {node: [_spline_basis(axis, node) for axis in self._axes] for node in (_COARSE_MM, _FINE_MM)}
        grey = self.templates.grey
        self._detail = grey - ndimage.gaussian_filter(grey, 8.0 / self.spacing_mm)
        self._sites: dict[str, SiteEffect] = {}

    def grey_matter(self, scan: Scan) -> np.ndarray:
        """Modulated grey matter [X, Y, Z] float32, RAS; sum x voxel_ml is the grey matter volume in ml."""
        site, grey = self.site(scan.site), self.templates.grey
        sharp = np.maximum(grey + site.sharpness * self._detail, 0)
        sharp[grey == 0] = 0
        image = sharp * np.exp(self.log_jacobian(scan) + np.float32(site.log_gain))
        noise = stream(self.seed, "noise", scan.participant_id, scan.session_id, "grey")
        image *= 1 + np.float32(site.noise_sd) * noise.standard_normal(self.shape, dtype=np.float32)
        return np.maximum(image, 0, out=image)

    def t1(self, scan: Scan) -> np.ndarray:
        """T1-like intensities [X, Y, Z] float32, RAS: skull-stripped, positive in the brain and 0 outside.

        Arbitrary units, as from a scanner: each site has its own scale, contrast and bias field.
        """
        site, tissue = self.site(scan.site), self.templates
        log_j = self._biology(scan) + self._person_field(scan, np.zeros_like(site.field))
        grey = np.minimum(tissue.grey * np.exp(log_j), 1)
        white = np.minimum(tissue.white * np.exp(np.float32(0.3) * log_j), 1 - grey)
        image = 0.25 + (0.7 - 0.25) * grey + (0.7 + 0.4 * site.contrast - 0.25) * white  # the rest is CSF
        image *= np.exp(self._field(0.5 * site.field, _COARSE_MM))
        noise = stream(self.seed, "noise", scan.participant_id, scan.session_id, "t1")
        image *= 1 + np.float32(site.noise_sd) * noise.standard_normal(self.shape, dtype=np.float32)
        image = np.maximum(image, np.float32(1e-3)) * np.float32(site.scanner_units)
        return np.where(tissue.brain, image, np.float32(0))

    def log_jacobian(self, scan: Scan) -> np.ndarray:
        """log J of biology, head size, person and the site's smooth field, [X, Y, Z] float32."""
        log_j = self._biology(scan) + self._person_field(scan, self.site(scan.site).field)
        return log_j + np.float32(self.log_head(scan))

    def log_head(self, scan: Scan) -> float:
        """Log of head volume relative to the template's, part of log J since modulation keeps native volumes."""
        return float(np.log(self.tiv_ml(scan) / (self.templates.brain.sum() * self.voxel_ml)))

    def tiv_ml(self, scan: Scan) -> float:
        """Intracranial volume; a person's own, equal at every visit."""
        spread = stream(self.seed, "head", scan.participant_id).standard_normal() * HEAD_LOG_SD
        return float(TIV_FEMALE_ML * np.exp(spread + SEX_LOG_HEAD * (scan.sex == "M")))

    def tissue_ml(self, scan: Scan, grey: np.ndarray) -> dict[str, float]:
        """Volumes in ml of tiv, csfv, gmv, wmv, given the scan's grey-matter map."""
        tiv, gmv = self.tiv_ml(scan), float(grey.sum(dtype=np.float64)) * self.voxel_ml
        share = self.templates.white.sum() / self.templates.brain.sum()
        wmv = tiv * share * float(np.exp(-0.001 * max(scan.biological_age_years - 40, 0)))
        return {"tiv": tiv, "csfv": max(tiv - gmv - wmv, 0.0), "gmv": gmv, "wmv": wmv}

    def site(self, name: str) -> SiteEffect:
        """The distortion of an acquisition unit, a pure function of (seed, name)."""
        if name not in self._sites:
            draw = stream(self.seed, "site", name)
            nodes = [basis.shape[1] for basis in self._splines[_COARSE_MM]]
            strength = self.site_effect
            self._sites[name] = SiteEffect(
                field=strength * _SITE_SD * draw.standard_normal(nodes),
                log_gain=strength * 0.04 * draw.standard_normal(),
                sharpness=strength * 0.12 * draw.standard_normal(),
                noise_sd=float(0.05 * np.exp(0.3 * draw.standard_normal())),
                contrast=float(np.exp(strength * 0.08 * draw.standard_normal())),
                scanner_units=float(300 * np.exp(strength * 0.5 * draw.standard_normal())),
            )
        return self._sites[name]

    def _biology(self, scan: Scan) -> np.ndarray:
        weights = map_weights(scan.biological_age_years, scan.disease_severity, scan.sex)
        log_j = np.zeros(self.shape, np.float32)
        for name, weight in weights.items():
            log_j += np.float32(weight) * self._maps[name]
        return log_j

    def _person_field(self, scan: Scan, coarse: np.ndarray) -> np.ndarray:
        """The person's random field, with the site's coarse coefficients added before the one interpolation."""
        person = stream(self.seed, "person", scan.participant_id)
        visit = stream(self.seed, "scan", scan.participant_id, scan.session_id)
        fine_nodes = [basis.shape[1] for basis in self._splines[_FINE_MM]]
        coarse = coarse + _PERSON_SD[0] * person.standard_normal(coarse.shape)
        fine = _PERSON_SD[1] * person.standard_normal(fine_nodes) + _SCAN_SD * visit.standard_normal(fine_nodes)
        return self._field(coarse, _COARSE_MM) + self._field(fine, _FINE_MM)

    def _field(self, coefficients: np.ndarray, node_mm: float) -> np.ndarray:
        """Smooth field [X, Y, Z] float32 of tensor-product cubic B-splines with those coefficients."""
        x, y, z = self._splines[node_mm]
        field = np.tensordot(coefficients.astype(np.float32), z, axes=(2, 1))  # a b Z
        field = np.tensordot(y, field, axes=(1, 1))  # Y a Z
        return np.tensordot(x, field, axes=(1, 1))  # X Y Z


def map_weights(biological_age_years: float, disease_severity: float, sex: str) -> dict[str, float]:
    """Log volume change per anatomical map: the planted truth.

    Adults lose 0.2 % grey matter a year everywhere and more in frontal (+0.35 %), temporal (+0.3 %) and
    periventricular (+0.5 %) regions; the hippocampus loses another 1 % a year beyond about 50; parietal cortex thins
    by 1 % a year until 20. Disease takes 20 % (log) of the hippocampus and 10 % of temporal cortex at severity 1.
    """
    years = biological_age_years - REFERENCE_AGE_YEARS
    beyond_midlife = 5.0 * np.logaddexp(0.0, (biological_age_years - 50.0) / 5.0)
    return {
        "global": -0.0020 * years,
        "frontal": -0.0035 * years,
        "temporal": -0.0030 * years - 0.10 * disease_severity,
        "periventricular": -0.0050 * years,
        "hippocampal": -0.010 * float(beyond_midlife) - 0.20 * disease_severity,
        "parietal": 0.010 * max(20.0 - biological_age_years, 0.0),
        "amygdala": 0.03 * (sex == "M"),
        "petalia": PETALIA_LOG,
    }


def anatomical_maps(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> dict[str, np.ndarray]:
    """Smooth maps in [0, 1] over MNI152 millimetres (coordinates broadcast together), float32."""

    def blob(centre: tuple[float, float, float], width: tuple[float, float, float]) -> np.ndarray:
        distance = sum(((c - m) / w) ** 2 for c, m, w in zip((abs(x), y, z), centre, width, strict=True))
        return np.exp(-0.5 * distance)

    def rise(coordinate: np.ndarray, centre: float, width: float) -> np.ndarray:
        return 1 / (1 + np.exp(-(coordinate - centre) / width))

    everywhere = np.ones(np.broadcast(x, y, z).shape)
    frontal = rise(y, 10, 8) * rise(z, -30, 6) * everywhere
    occipital = rise(-y, 70, 8) * everywhere
    maps = {
        "global": everywhere,
        "frontal": frontal,
        "temporal": blob((52, -20, -18), (16, 28, 16)),
        "periventricular": blob((10, 0, 14), (12, 24, 14)),
        "hippocampal": blob((27, -22, -16), (8, 13, 8)),
        "parietal": blob((35, -55, 50), (25, 20, 20)),
        "amygdala": blob((24, -3, -20), (8, 8, 8)),
        "petalia": frontal * rise(x, 6, 2) + occipital * rise(-x, 6, 2),
    }
    return {name: values.astype(np.float32) for name, values in maps.items()}


def _spline_basis(axis_mm: np.ndarray, node_mm: float) -> np.ndarray:
    """Cubic B-spline weights [positions, nodes], scaled: unit normal coefficients give unit variance on average."""
    first = np.floor(axis_mm[0] / node_mm) - 1
    count = int(np.ceil(axis_mm[-1] / node_mm) - first) + 2
    t = np.abs(axis_mm[:, None] / node_mm - (first + np.arange(count))[None])
    near, far = 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6
    weights = np.where(t < 1, near, far)
    return (weights / np.sqrt((weights**2).sum(1).mean())).astype(np.float32)
