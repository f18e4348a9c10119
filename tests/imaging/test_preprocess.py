"""Volumes on the model grid: against nilearn's resampling, planted anatomy, and real heads where they are at hand."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from brainage.errors import ConfigError, DataError
from brainage.imaging.anatomy import axis_scores
from brainage.imaging.contract import InputContract
from brainage.imaging.preprocess import (
    centre_mm,
    load_nifti,
    model_grid,
    resample_to_grid,
    scale_foreground,
    to_ras,
)

OBLIQUE = nib.affines.from_matvec(
    np.array([[0.96, -0.2, 0.19], [0.22, 0.97, -0.08], [-0.17, 0.12, 0.98]]) * 2.0, [-30.0, -40.0, -25.0]
)


def head(axes: str = "RAS", spacing_mm: float = 2.0) -> nib.Nifti1Image:
    """An egg with a bright spot in its left front upper part, stored in the given order of axes."""
    x, y, z = np.meshgrid(*(np.arange(n) * spacing_mm for n in (40, 48, 44)), indexing="ij")
    egg = ((x - 40) / 30) ** 2 + ((y - 46) / 38) ** 2 + ((z - 44) / 33) ** 2 < 1
    values = egg * 100.0
    values[12:15, 32:35, 28:31] = 200.0
    affine = nib.affines.from_matvec(np.eye(3) * spacing_mm, [-45.0, -50.0, -20.0])
    image = nib.Nifti1Image(values.astype(np.float32), affine)
    order = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(axes)))
    return image.as_reoriented(order)


def saved(tmp_path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path = tmp_path / "IXI999.nii.gz"
    image = nib.Nifti1Image(values, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, code="scanner")
    nib.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR", "LPI", "SRA"])
def test_the_order_in_which_a_volume_is_stored_changes_nothing(axes):
    shape, _ = model_grid(3.0)
    reference = resample_to_grid(head(), shape, 3.0)
    assert np.abs(resample_to_grid(head(axes), shape, 3.0) - reference).max() < 1e-3


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR"])
def test_a_spot_on_the_left_in_front_above_stays_there(axes):
    spot = np.argwhere(resample_to_grid(head(axes), (40, 48, 40), 2.0) > 150).mean(axis=0)
    centre = (np.array((40, 48, 40)) - 1) / 2
    # planted at voxel (13, 33, 29) of 2 mm; the egg's own centre is at voxel (20, 23, 22)
    np.testing.assert_allclose((spot - centre) * 2, [-14.0, 20.0, 14.0], atol=1.0)


@pytest.mark.parametrize("affine", [None, OBLIQUE])
def test_resampling_agrees_with_nilearn(affine):
    from nilearn.image import resample_img

    rng = np.random.default_rng(0)
    values = ndimage.gaussian_filter(rng.random((30, 34, 28)), 1.5).astype(np.float32)
    image = nib.Nifti1Image(values, np.diag([-2.0, 2.0, 2.0, 1.0]) if affine is None else affine)
    shape, spacing, centre = (20, 24, 22), 2.0, np.array([3.0, -4.0, 5.0])
    target = np.diag([spacing] * 3 + [1.0])
    target[:3, 3] = centre - spacing * (np.array(shape) - 1) / 2
    reference = resample_img(
        image, target, shape, interpolation="linear", force_resample=True, copy_header=True
    ).get_fdata()
    inner = (slice(2, -2),) * 3  # at the border of the image the two pad differently
    result = resample_to_grid(image, shape, spacing, centre=centre)
    np.testing.assert_allclose(result[inner], reference[inner], atol=1e-4)


def test_the_brain_is_placed_in_the_middle_of_the_grid():
    volume = resample_to_grid(head("PSR"), (60, 72, 60), 2.0)
    mass = np.array(ndimage.center_of_mass(volume > 50))
    np.testing.assert_allclose(mass, (np.array((60, 72, 60)) - 1) / 2, atol=0.25)


def test_how_much_neck_was_scanned_does_not_move_a_head():
    def with_neck(length_mm: int) -> nib.Nifti1Image:
        values = np.zeros((60, 60, 60 + length_mm // 3), np.float32)
        values[15:45, 10:50, -50:-4] = 100  # 138 mm high
        values[22:38, 20:36, :-50] = 100
        return nib.Nifti1Image(values, np.diag([3.0, 3.0, 3.0, 1.0]))

    centres = [centre_mm(with_neck(length))[2] - 3.0 * (length // 3) for length in (0, 60, 120)]
    assert np.ptp(centres) < 1e-6


def test_fine_texture_is_averaged_not_sampled():
    chess = (np.indices((64, 64, 64)).sum(axis=0) % 2).astype(np.float32)
    volume = resample_to_grid(
        nib.Nifti1Image(chess, np.eye(4)), (10, 10, 10), 4.0, centre=np.full(3, 31.0)
    )  # samples lie on voxels
    np.testing.assert_allclose(volume, 0.5, atol=0.02)


def test_labels_are_not_mixed():
    labels = np.zeros((20, 20, 20), np.float32)
    labels[4:10], labels[10:16] = 47, 60
    found = resample_to_grid(nib.Nifti1Image(labels, np.eye(4)), (9, 9, 9), 1.7, labels=True)
    assert set(np.unique(found)) == {0.0, 47.0, 60.0}


def test_stored_scaling_is_applied(tmp_path):
    image = nib.Nifti1Image(np.arange(27, dtype=np.uint8).reshape(3, 3, 3), np.eye(4))
    image.header.set_slope_inter(2.5, -10.0)
    image.set_sform(np.eye(4), code="scanner")
    path = tmp_path / "scaled.nii.gz"
    nib.save(image, path)
    raw = gzip.decompress(path.read_bytes())
    slope, intercept = np.frombuffer(raw[112:120], "<f4")
    stored = np.frombuffer(raw[352:], np.uint8, 27).reshape(3, 3, 3, order="F")
    np.testing.assert_allclose(load_nifti(path).get_fdata(), stored * slope + intercept)


def test_a_fourth_axis_of_length_one_is_dropped_and_a_longer_one_refused(tmp_path):
    assert load_nifti(saved(tmp_path, np.arange(60, dtype=np.float32).reshape(3, 4, 5, 1))).shape == (3, 4, 5)
    with pytest.raises(DataError, match=r"IXI999.nii.gz: expected one volume.*\(3, 4, 5, 2\)"):
        load_nifti(saved(tmp_path, np.ones((3, 4, 5, 2), np.float32)))


def test_a_truncated_file_is_named(tmp_path):
    path = saved(tmp_path, np.random.default_rng(0).random((20, 20, 20)).astype(np.float32))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"IXI999.nii.gz: damaged"):
        load_nifti(path)


@pytest.mark.parametrize("content", [b"", b"no image at all", gzip.compress(b"neither", mtime=0)])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "IXI998.nii.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"IXI998.nii.gz: damaged or no NIfTI"):
        load_nifti(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone.nii.gz: file not found"):
        load_nifti(tmp_path / "gone.nii.gz")


def test_voxels_that_are_not_finite_are_counted(tmp_path):
    values = np.ones((3, 3, 3), np.float32)
    values[0, 0, :2] = np.nan, np.inf
    with pytest.raises(DataError, match=r"IXI999.nii.gz: 2 of 27 voxels are not finite"):
        load_nifti(saved(tmp_path, values))


def test_a_header_without_orientation_is_refused(tmp_path):
    image = nib.Nifti1Image(np.ones((3, 3, 3), np.float32), None)
    nib.save(image, tmp_path / "sides.nii.gz")
    with pytest.raises(DataError, match="sides are unknown"):
        load_nifti(tmp_path / "sides.nii.gz")


def test_an_affine_that_cannot_be_inverted_is_refused(tmp_path):
    raw = bytearray(gzip.decompress(saved(tmp_path, np.ones((3, 3, 3), np.float32)).read_bytes()))
    raw[312:328] = bytes(16)  # the third row of the header's affine
    (tmp_path / "flat.nii").write_bytes(raw)
    with pytest.raises(DataError, match=r"flat.nii: the affine of its header cannot be inverted"):
        load_nifti(tmp_path / "flat.nii")


def test_an_empty_image_is_refused():
    with pytest.raises(DataError, match="positive voxels"):
        centre_mm(nib.Nifti1Image(np.zeros((4, 4, 4), np.float32), np.eye(4)))


def test_scanner_units_vanish():
    brain = np.random.default_rng(0).random((8, 8, 8)).astype(np.float32)
    np.testing.assert_allclose(scale_foreground(brain * 3e6), scale_foreground(brain * 1e-6), rtol=1e-5)


def test_reorienting_moves_no_anatomy():
    image = head("PSR")
    ras = to_ras(image)
    assert nib.aff2axcodes(ras.affine) == ("R", "A", "S")
    spots = [nib.affines.apply_affine(i.affine, np.argwhere(i.get_fdata() > 150)).mean(axis=0) for i in (image, ras)]
    np.testing.assert_allclose(*spots)


def test_a_grid_needs_a_voxel_size():
    with pytest.raises(ConfigError, match="spacing_mm=0"):
        model_grid(0)


# Real scans

needs_real_data = pytest.mark.skipif("BRAINAGE_REAL_DATA" not in os.environ, reason="BRAINAGE_REAL_DATA is not set")
LEFT, RIGHT = (48, 60), (47, 59)  # hippocampus and thalamus in the region maps
GRID = model_grid(2.0)
CONTRACT = InputContract("brain", "volume", (1, *GRID[0]), "native_centred", (2.0,) * 3, GRID[1], "RAS")


def real(pattern: str) -> list[Path]:
    files = sorted(Path(os.environ["BRAINAGE_REAL_DATA"]).glob(pattern))
    assert files, f"no {pattern} in BRAINAGE_REAL_DATA"
    return files


@pytest.mark.real_data
@needs_real_data
def test_left_regions_of_real_heads_land_on_the_left():
    for file in real("ixi_2mm/*_DLMUSE.nii.gz"):
        scan = load_nifti(file.with_name(file.name.replace("_DLMUSE", "")))
        regions = resample_to_grid(load_nifti(file), GRID[0], 2.0, centre=centre_mm(scan), labels=True)
        for label in LEFT + RIGHT:
            x_mm = nib.affines.apply_affine(CONTRACT.affine, np.argwhere(regions == label))[:, 0]
            assert len(x_mm) > 100, (file.name, label)
            side = x_mm < 0 if label in LEFT else x_mm > 0
            assert side.mean() > 0.85, (file.name, label, x_mm.mean())  # a thalamus touches the midline


@pytest.mark.real_data
@needs_real_data
def test_real_heads_masked_by_their_regions_stand_upright():
    for file in real("ixi_2mm/*_DLMUSE.nii.gz")[:4]:
        scan = load_nifti(file.with_name(file.name.replace("_DLMUSE", "")))
        brain = nib.Nifti1Image(scan.get_fdata() * (load_nifti(file).get_fdata() > 0), scan.affine)
        assert_upright(resample_to_grid(brain, GRID[0], 2.0))


@pytest.mark.real_data
@needs_real_data
def test_real_brains_stand_upright():
    for file in real("ixi_1mm/*_brain.nii.gz"):
        assert_upright(resample_to_grid(load_nifti(file), GRID[0], 2.0))


def assert_upright(volume: np.ndarray) -> None:
    scores = axis_scores(volume, CONTRACT.affine)
    best = max(scores, key=scores.get)
    assert best in ("x y z", "-x y z"), scores


@pytest.mark.parametrize("unit_mm", [1e-3, 1e3], ids=["metres", "microns"])
def test_an_affine_in_another_unit_is_refused(tmp_path, unit_mm):
    values = np.random.default_rng(0).random((20, 24, 20), dtype=np.float32)
    image = nib.Nifti1Image(values, np.diag([8 * unit_mm, 8 * unit_mm, 8 * unit_mm, 1]))
    image.set_sform(image.affine, code="scanner")
    nib.save(image, tmp_path / "scan.nii.gz")
    with pytest.raises(DataError, match=r"scan\.nii\.gz: its header gives a field of view of .* another unit than mm"):
        load_nifti(tmp_path / "scan.nii.gz")


def test_a_constant_volume_is_refused(tmp_path):
    image = nib.Nifti1Image(np.full((20, 24, 20), 7, np.float32), np.diag([8.0, 8, 8, 1]))
    image.set_sform(image.affine, code="scanner")
    nib.save(image, tmp_path / "flat.nii.gz")
    with pytest.raises(DataError, match=r"flat\.nii\.gz: every voxel is 7"):
        load_nifti(tmp_path / "flat.nii.gz")
