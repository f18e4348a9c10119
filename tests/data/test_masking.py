"""In-mask storage: what is kept, what is refused, and that everybody else still gets volumes."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
import torch

from brainage.data.array_store import ArrayStore
from brainage.data.masking import Mask, gathered, load_mask, unmask
from brainage.data.store import estimate_bytes, prepare_store
from brainage.downstream.features import pca_features
from brainage.errors import ContractError, StoreError
from brainage.imaging.contract import InputContract
from tests.data.odd_cohort import MASK, VECTOR, VOLUME, Cohort, build, contents, people, sample_of

GRID = InputContract(
    "gm", "volume", (1, 6, 7, 8), spacing_mm=(2.0, 2.0, 3.0), origin_mm=(-10.0, -20.0, -5.0), axes="RAS"
)
INSIDE = np.random.default_rng(1).random((6, 7, 8)) > 0.6


def mask_file(folder, values=None, affine=GRID.affine, axes="RAS", name="mask.nii.gz"):
    """A NIfTI file of the grid whose array is stored in other axes, as scanners and packages do."""
    image = nib.Nifti1Image((0.9 * INSIDE if values is None else values).astype(np.float32), affine)
    turn = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(turn), folder / name)
    return folder / name


def test_a_masked_store_keeps_the_voxels_inside_and_reads_as_the_whole_store_with_zeros_outside(tmp_path):
    whole, masked = build(tmp_path, "whole"), build(tmp_path, "masked", mask=MASK)
    expected = np.where(MASK.inside, whole.read(range(12)), np.float16(0))
    assert 0 < MASK.voxels < MASK.inside.size / 2
    np.testing.assert_array_equal(masked.read([3, 0, 3]), expected[[3, 0, 3]])
    np.testing.assert_array_equal(masked.read_stored([5]), expected[5, 0][MASK.inside][None])
    np.testing.assert_array_equal(np.load(masked.path / "arrays.npy"), masked.stored)
    assert masked.stored.shape == (12, MASK.voxels)
    assert masked.nbytes == 12 * 2 * MASK.voxels
    assert (masked.path / "arrays.npy").stat().st_size == estimate_bytes(12, masked.contract) == 128 + masked.nbytes
    assert masked.contract.shape == whole.contract.shape == VOLUME.shape
    assert masked.verify() == []


def test_reading_into_a_used_buffer_leaves_nothing_of_the_batch_before(tmp_path):
    store = build(tmp_path, mask=MASK)
    out = np.full((2, *VOLUME.shape), np.float16(7))
    assert store.read([1, 2], out) is out
    assert not out[:, 0][:, ~MASK.inside].any()
    with pytest.raises(ValueError, match=rf"out: expected float16 \(2, {MASK.voxels}\)"):
        store.read_stored([1, 2], out)


def test_the_contract_names_the_mask_its_threshold_its_voxels_and_their_order(tmp_path):
    store = build(tmp_path, mask=MASK)
    written = json.loads((store.path / "contract.json").read_text())["contract"]["mask"]
    assert written == {
        "name": "ball.nii.gz",
        "threshold": 0.5,
        "voxels": MASK.voxels,
        "order": "C order of the sample (1, X, Y, Z)",
        "digest": MASK.digest,
    }
    assert InputContract.from_dict(json.loads(json.dumps(store.contract.to_dict()))) == store.contract
    assert Mask("other", 0.1, MASK.inside).digest == MASK.digest
    assert Mask("ball.nii.gz", 0.5, ~MASK.inside).digest != MASK.digest


def test_a_store_from_before_masks_opens_and_is_not_read_again(tmp_path):
    store = build(tmp_path)
    record = json.loads((store.path / "contract.json").read_text())
    assert record["contract"].pop("mask") == {}
    (store.path / "contract.json").write_text(json.dumps(record))
    before = contents(store.path)
    assert build(tmp_path).contract == VOLUME
    assert contents(store.path) == before
    assert len(Cohort(tmp_path).reads()) == 12


def test_rows_in_a_mask_serve_whoever_wants_an_array(tmp_path):
    store = build(tmp_path, mask=MASK)
    volumes = store.read(range(12))
    rows = store.arrays
    assert (rows.shape, rows.dtype, rows.ndim, len(rows), rows.size) == ((12, *VOLUME.shape), "f2", 5, 12, volumes.size)
    for index in (3, np.int64(4), slice(2, 5), [7, 1], (2, 0, 5)):
        np.testing.assert_array_equal(rows[index], volumes[index])
    np.testing.assert_array_equal(np.asarray(rows, dtype=np.float32), volumes)
    flat = rows.reshape(12, -1)
    assert flat.shape == (12, VOLUME.shape[1] * VOLUME.shape[2] * VOLUME.shape[3])
    for columns in (slice(0, 100), slice(100, 4000), slice(8000, 9000)):
        np.testing.assert_array_equal(flat[:, columns], volumes.reshape(12, -1)[:, columns])
    np.testing.assert_array_equal(np.stack(list(flat)), volumes.reshape(12, -1))
    with pytest.raises(ValueError, match=r"reshape\(12, -1\)"):
        rows.reshape(-1, 12)


@pytest.mark.parametrize("rule", ["none", "zscore", "standardise"])
def test_principal_components_do_not_know_how_volumes_are_stored(tmp_path, rule):
    store = build(tmp_path, mask=MASK)
    found = pca_features(store.arrays, store.table, np.arange(8), intensity=rule)
    expected = pca_features(store.read(range(12)), store.table, np.arange(8), intensity=rule)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-6)


def test_the_device_makes_the_volumes_that_the_host_makes(tmp_path):
    store = build(tmp_path, mask=MASK)
    values = torch.from_numpy(store.read_stored([2, 9]))
    volumes = unmask(values, torch.from_numpy(store.mask.index), store.contract.shape)
    assert volumes.dtype == torch.float16
    np.testing.assert_array_equal(volumes.numpy(), store.read([2, 9]))
    as_on_a_gpu = gathered(values, torch.from_numpy(store.mask.index), MASK.inside.size)
    assert torch.equal(as_on_a_gpu.view_as(volumes), volumes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_makes_them_too(tmp_path):
    store = build(tmp_path, mask=MASK)
    values, index = torch.from_numpy(store.read_stored([2, 9])).cuda(), torch.from_numpy(store.mask.index).cuda()
    np.testing.assert_array_equal(unmask(values, index, store.contract.shape).cpu().numpy(), store.read([2, 9]))


def test_with_a_mask_or_without_the_same_scans_are_damaged(tmp_path):
    trouble = {"p99": "nan", "p97": "shape", "p95": "large"}  # the value that is wrong lies outside the mask
    assert not MASK.inside.flat[1]
    whole, masked = build(tmp_path, "whole", **trouble), build(tmp_path, "masked", mask=MASK, **trouble)
    assert len(masked) == 9
    assert whole.dropped.equals(masked.dropped)


def test_a_mask_that_takes_much_of_the_signal_warns_with_how_much(tmp_path, caplog):
    store = build(tmp_path, mask=MASK)
    samples = np.abs(np.stack([sample_of(path) for path in store.table["path"]]).astype(np.float64))
    share = 1 - samples[:, 0][:, MASK.inside].sum(1) / samples.sum((1, 2, 3, 4))
    np.testing.assert_allclose(store.table["outside_mask"], share, atol=1e-6)
    words = (
        f"on average {100 * share.mean():.1f} % of a scan's summed intensity lies outside the mask ball.nii.gz > 0.5"
    )
    assert words in caplog.text
    assert f"most of c/p{share.argmax():02d}//: {100 * share.max():.1f} %" in caplog.text
    caplog.clear()
    nearly = np.ones(VOLUME.shape[1:], bool)
    nearly[:, 0, 0] = False  # 0.2 %
    assert 0 < build(tmp_path, "nearly", mask=Mask("m", 0.0, nearly)).table["outside_mask"].max() < 0.01
    assert "outside the mask" not in caplog.text


@pytest.mark.parametrize("axes", ["RAS", "LAS", "PSR"])
def test_a_mask_is_brought_to_ras_by_its_header(tmp_path, axes):
    mask = load_mask(mask_file(tmp_path, axes=axes), 0.5, GRID)
    np.testing.assert_array_equal(mask.inside, INSIDE)
    assert (mask.name, mask.threshold, mask.shape) == ("mask.nii.gz", 0.5, GRID.shape)


def test_of_a_template_with_several_tissues_the_first_is_the_mask(tmp_path):
    tissues = np.stack([INSIDE, ~INSIDE], axis=-1)
    nib.save(nib.Nifti1Image(tissues.astype(np.float32), GRID.affine), tmp_path / "tpm.nii")
    np.testing.assert_array_equal(load_mask(tmp_path / "tpm.nii", 0.05, GRID).inside, INSIDE)


def test_a_mask_on_another_grid_is_refused_with_both(tmp_path):
    shifted = GRID.affine.copy()
    shifted[0, 3] += 2
    with pytest.raises(StoreError) as refusal:
        load_mask(mask_file(tmp_path, affine=shifted), 0.5, GRID)
    assert "grid of gm, (6, 7, 8) voxels of [2.0, 2.0, 3.0] mm from [-10.0, -20.0, -5.0] mm" in str(refusal.value)
    assert "found (6, 7, 8) voxels of [2.0, 2.0, 3.0] mm from [-8.0, -20.0, -5.0] mm" in str(refusal.value)
    with pytest.raises(StoreError, match=r"found \(6, 7, 7\) voxels"):
        load_mask(mask_file(tmp_path, values=INSIDE[..., :7]), 0.5, GRID)
    with pytest.raises(StoreError, match=r"a mask is for volumes, found rois"):
        load_mask(mask_file(tmp_path), 0.5, VECTOR)
    with pytest.raises(StoreError, match=r"expected samples \(1, 16, 16, 32\), found vector \(3,\) \(rois\)"):
        MASK.contract(VECTOR)


def test_a_mask_that_is_absent_torn_empty_or_not_finite_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"nothing\.nii: file not found"):
        load_mask(tmp_path / "nothing.nii", 0.5, GRID)
    whole = mask_file(tmp_path).read_bytes()
    (tmp_path / "torn.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match=r"torn\.nii\.gz: damaged or no NIfTI file"):
        load_mask(tmp_path / "torn.nii.gz", 0.5, GRID)
    with pytest.raises(StoreError, match=r"no voxel above data\.mask_threshold=0\.95, the largest is 0\.9"):
        load_mask(mask_file(tmp_path), 0.95, GRID)
    with pytest.raises(StoreError, match="not finite"):
        load_mask(mask_file(tmp_path, values=np.where(INSIDE, np.nan, 1)), 0.5, GRID)


def test_a_mask_replaced_after_preparation_is_refused_with_the_reason(tmp_path):
    before = contents(build(tmp_path, mask=MASK).path)
    replaced = Mask(MASK.name, MASK.threshold, ~MASK.inside)
    with pytest.raises(StoreError) as refusal:
        build(tmp_path, mask=replaced)
    assert f"mask: expected ball.nii.gz > 0.5 of {replaced.voxels} voxels (digest {replaced.digest[:8]})" in str(
        refusal.value
    )
    assert f"found ball.nii.gz > 0.5 of {MASK.voxels} voxels" in str(refusal.value)
    assert "the file of the mask was replaced after the store was prepared" in str(refusal.value)
    with pytest.raises(StoreError, match=r"mask: expected none \(whole volumes\), found ball\.nii\.gz"):
        build(tmp_path)
    assert len(build(tmp_path, mask=dataclasses.replace(MASK, name="moved.nii.gz"))) == 12  # the same voxels
    assert contents(tmp_path / "store") == before
    assert len(Cohort(tmp_path).reads()) == 12


def test_a_mask_named_by_a_contract_is_of_no_use_without_its_voxels(tmp_path):
    with pytest.raises(StoreError, match=r"has the mask ball\.nii\.gz; expected its voxels"):
        prepare_store(people(), MASK.contract(VOLUME), Cohort(tmp_path).read, tmp_path / "store")


def test_an_encoder_trained_inside_a_mask_is_not_fed_whole_volumes():
    with pytest.raises(ContractError, match=r"mask: expected ball\.nii\.gz > 0\.5 .*, found none \(whole volumes\)"):
        MASK.contract(VOLUME).refuse_other(VOLUME, "encoder")
    MASK.contract(VOLUME).refuse_other(dataclasses.replace(MASK, name="moved").contract(VOLUME), "encoder")
    with pytest.raises(ContractError, match="a mask belongs to volumes"):
        dataclasses.replace(VECTOR, mask=MASK.contract(VOLUME).mask)
    with pytest.raises(ContractError, match="a mask belongs to volumes and needs name"):
        dataclasses.replace(VOLUME, mask={"name": "m"})


def test_the_mask_of_a_store_that_is_absent_torn_or_another_is_refused_by_name(tmp_path):
    store = build(tmp_path, mask=MASK)
    (store.path / "mask.npy").write_bytes(b"torn")
    with pytest.raises(StoreError, match=r"mask\.npy is torn .*; delete the folder"):
        ArrayStore.open(store.path)
    np.save(store.path / "mask.npy", ~MASK.inside)
    with pytest.raises(StoreError, match=r"mask\.npy does not fit contract\.json"):
        ArrayStore.open(store.path)
    (store.path / "mask.npy").unlink()
    with pytest.raises(StoreError, match=r"mask\.npy not found"):
        ArrayStore.open(store.path)
