"""Volumes of every cohort: equal preparation gives equal contracts; a wrong grid or a mirrored header is noticed."""

from __future__ import annotations

import gzip

import nibabel as nib
import numpy as np
import pytest

from brainage.errors import DataError
from brainage.imaging.preprocess import load_nifti, load_nifti_bytes
from data_modules.openbhb import OpenBHB
from data_modules.volumes import contract_like, native_contract, read_native, read_prepared

SHAPE = (9, 11, 7)
AFFINE = np.array([[-8.0, 0, 0, 40], [0, 8.0, 0, -60], [0, 0, 8.0, -30], [0, 0, 0, 1]])  # LAS


def volume() -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 1, SHAPE).astype(np.float32)


def save(path, values: np.ndarray, affine: np.ndarray = AFFINE):
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code="mni")
    nib.save(image, path)
    return path


@pytest.mark.parametrize("axes", ["LAS", "RAS", "PIR", "ASL"])
def test_a_prepared_volume_in_any_storage_order_is_the_same_sample(tmp_path, axes):
    values = volume()
    first = save(tmp_path / "first.nii.gz", values)
    contract = contract_like("vbm", first)
    image = nib.Nifti1Image(values, AFFINE)
    order = nib.orientations.ornt_transform(nib.io_orientation(AFFINE), nib.orientations.axcodes2ornt(tuple(axes)))
    turned = image.as_reoriented(order)
    other = save(tmp_path / "other.nii.gz", np.asarray(turned.dataobj), turned.affine)
    assert np.array_equal(read_prepared(other, contract), values[::-1][None])
    assert contract_like("vbm", other) == contract


def test_grey_matter_of_another_cohort_has_the_contract_of_openbhb(simulated):
    template = simulated / "resource" / "cat12vbm_space-MNI152_desc-gm_TPM.nii.gz"
    assert contract_like("vbm", template) == OpenBHB(simulated, "vbm").contract()
    assert contract_like("quasiraw", template) == OpenBHB(simulated, "quasiraw").contract()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, a: (v.transpose(1, 0, 2), a), r"shape: expected \(1, 9, 11, 7\), found \(1, 11, 9, 7\)"),
        (lambda v, a: (v, a @ np.diag([1.1, 1, 1, 1])), "spacing_mm: expected .*, found "),
        (lambda v, a: (v, a + np.eye(4)[3] * 4), "origin_mm: expected .*, found "),
        (lambda v, a: (v[:-1], a), "shape: expected"),
    ],
)
def test_a_prepared_volume_on_another_grid_is_refused_with_what_differs(tmp_path, change, message):
    contract = contract_like("vbm", save(tmp_path / "first.nii.gz", volume()))
    values, affine = change(volume(), AFFINE.copy())
    affine[3] = [0, 0, 0, 1]
    odd = save(tmp_path / "odd.nii.gz", values, affine)
    with pytest.raises(DataError, match=rf"odd\.nii\.gz: not on the grid of the other volumes: .*{message}"):
        read_prepared(odd, contract)


def test_an_oblique_prepared_volume_is_refused(tmp_path):
    tilted = AFFINE.copy()
    tilted[:3, :3] = tilted[:3, :3] @ nib.eulerangles.euler2mat(0.2, 0, 0)
    with pytest.raises(DataError, match=r"tilted\.nii\.gz: expected axes along left-right, back-front and down-up"):
        contract_like("vbm", save(tmp_path / "tilted.nii.gz", volume(), tilted))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_bytes_of_a_file_read_like_the_file(tmp_path, packed, kind):
    path = tmp_path / ("a.nii.gz" if packed else "a.nii")
    image = kind((volume() * 1000).astype(np.int16), AFFINE)
    image.header.set_slope_inter(0.5, 3)
    image.set_sform(AFFINE, code="mni")
    nib.save(image, path)
    from_file, from_bytes = load_nifti(path), load_nifti_bytes(path.read_bytes(), "zip!a")
    assert np.array_equal(from_file.get_fdata(), from_bytes.get_fdata())
    assert np.array_equal(from_file.affine, from_bytes.affine)


@pytest.mark.parametrize("data", [b"", b"\x1f\x8b rubbish", b"x" * 400, gzip.compress(b"x" * 400, mtime=0)])
def test_bytes_that_are_no_volume_name_the_member(data):
    with pytest.raises(DataError, match=r"1\.zip!T1/T1\.nii\.gz: damaged or no NIfTI file"):
        load_nifti_bytes(data, "1.zip!T1/T1.nii.gz")


def test_a_truncated_file_of_bytes_is_damaged(tmp_path):
    path = save(tmp_path / "a.nii.gz", volume())
    with pytest.raises(DataError, match="member: damaged or no NIfTI file"):
        load_nifti_bytes(path.read_bytes()[:-50], "member")


def test_native_volumes_of_every_cohort_have_one_contract_and_follow_their_header(tmp_path):
    values = np.zeros((40, 50, 30), np.float32)
    values[10:30, 20:40, 5:25] = 7
    values[10:15, 20:40, 5:25] = 21  # the low end of the first axis is bright
    left_bright, right_bright = np.diag([4.0, 4, 4, 1]), np.diag([-4.0, 4, 4, 1])
    contract = native_contract("brain", 8.0)
    for affine, bright in ((left_bright, slice(0, 11)), (right_bright, slice(12, 23))):
        sample = read_native(save(tmp_path / "n.nii.gz", values, affine), 8.0)
        assert sample.shape == contract.shape
        assert sample[0, bright].sum() > 1.5 * (sample.sum() - sample[0, bright].sum())
