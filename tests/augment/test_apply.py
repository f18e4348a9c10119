"""Applied views against scipy and closed forms, and the promise that untouched rows keep their bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from brainage.augment import ViewParameters, apply_views, draw_views
from brainage.augment import apply as apply_module
from brainage.augment.apply import transform
from brainage.config import AugmentConfig
from brainage.errors import DataError
from brainage.imaging.contract import InputContract

SPACING_MM = np.array([2.0, 3.0, 4.0])
VOLUME = InputContract("vbm", "volume", (1, 30, 24, 20), spacing_mm=(2.0, 3.0, 4.0), origin_mm=(0.0,) * 3, axes="RAS")
VECTOR = InputContract("thickness", "vector", (68,))
HALF = AugmentConfig(
    flip_p=0.5, affine_p=0.5, crop_p=0.5, blur_p=0.5, noise_p=0.5, intensity_p=0.5, gamma=0.3, cutout_p=0.5,
    blur_sigma_mm=[0.5, 4.0], rotate_degrees=20.0,
)  # fmt: skip
KEYS = np.arange(50, 58, dtype=np.uint64)


def draw(config: AugmentConfig, keys: np.ndarray = KEYS, contract: InputContract = VOLUME) -> ViewParameters:
    return draw_views(config, contract, keys, seed=0, step=0)


def smooth_volumes(count: int, seed: int = 0) -> np.ndarray:
    """[count, 1, X, Y, Z] float64 random fields without any symmetry, mean 0 and sd 1."""
    noise = np.random.default_rng(seed).standard_normal((count, *VOLUME.shape))
    fields = ndimage.gaussian_filter(noise, (0, 0, 3, 3, 3))
    return (fields - fields.mean()) / fields.std()


def centres_mm() -> np.ndarray:
    """[X, Y, Z, 3] RAS positions of the voxels from the grid's centre."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in VOLUME.shape[1:]), indexing="ij"), axis=-1)
    return (index - (np.array(VOLUME.shape[1:]) - 1) / 2) * SPACING_MM


def test_one_view_without_augmentation_is_the_input_itself():
    x = torch.randn(8, *VOLUME.shape)
    assert apply_views(x, draw(AugmentConfig(views=1))) is x
    half = x.half()
    found = apply_views(half, draw(AugmentConfig(views=1)))
    assert found.dtype == torch.float32
    assert torch.equal(found, half.float())


def test_views_without_augmentation_are_exact_copies_side_by_side():
    x = torch.randn(8, *VOLUME.shape).half()
    found = apply_views(x, draw(AugmentConfig(views=3))).unflatten(0, (8, 3))
    assert all(torch.equal(found[:, view], x.float()) for view in range(3))


def test_a_mirrored_volume_exchanges_left_and_right_and_nothing_else():
    x = torch.randn(8, *VOLUME.shape)
    assert torch.equal(apply_views(x, draw(AugmentConfig(views=1, flip_p=1.0))), x.flip(2))
    still = AugmentConfig(views=1, flip_p=1.0, affine_p=1.0, rotate_degrees=0.0, scale=0.0, translate_mm=0.0)
    torch.testing.assert_close(apply_views(x, draw(still)), x.flip(2), rtol=0, atol=2e-5)


def test_resampling_equals_scipy_on_an_anisotropic_grid():
    x = smooth_volumes(8)
    views = draw(replace(HALF, views=2, affine_p=1.0, blur_p=0, noise_p=0, intensity_p=0, cutout_p=0))
    found = transform(torch.from_numpy(x), views).numpy()
    middle = (np.array(VOLUME.shape[1:]) - 1) / 2
    for row, matrix in enumerate(views.matrix):
        voxels = matrix[:3, :3] * SPACING_MM / SPACING_MM[:, None]
        offset = matrix[:3, 3] / SPACING_MM + middle - voxels @ middle
        expected = ndimage.affine_transform(x[row // 2, 0], voxels, offset, order=1, mode="nearest")
        np.testing.assert_allclose(found[row, 0], expected, atol=1e-12)


def test_a_blob_goes_where_the_drawn_motion_sends_it():
    """Independent of any resampler: the centre of mass, in mm, of a Gaussian blob away from the middle."""
    place_mm = np.array([8.0, -6.0, 5.0])
    blob = np.exp(-0.5 * ((centres_mm() - place_mm) ** 2).sum(-1) / 5.0**2)
    config = AugmentConfig(views=2, affine_p=1.0, flip_p=0.5, rotate_degrees=20.0, translate_mm=6.0)
    views = draw(config)
    found = transform(torch.from_numpy(blob)[None, None].repeat(8, 1, 1, 1, 1), views).numpy()
    mass = found / found.sum(axis=(2, 3, 4), keepdims=True)
    centre_mm = np.einsum("ncxyz,xyzk->nk", mass, centres_mm())
    expected = np.linalg.inv(views.matrix) @ [*place_mm, 1.0]
    np.testing.assert_allclose(centre_mm, expected[:, :3], atol=0.15)
    assert np.linalg.norm(expected[:, :3] - place_mm, axis=1).max() > 10


def test_a_shift_is_in_millimetres_towards_right_front_and_top():
    x = smooth_volumes(1)
    views = draw(AugmentConfig(views=1, affine_p=1.0), KEYS[:1])
    shift = np.eye(4)
    shift[:3, 3] = [-4.0, -6.0, -12.0]  # the pull of a motion by +2, +2 and +3 voxels
    found = transform(torch.from_numpy(x), replace(views, matrix=shift[None])).numpy()
    np.testing.assert_allclose(found[:, :, 2:, 2:, 3:], x[:, :, :-2, :-2, :-3], atol=1e-12)


def test_a_crop_is_enlarged_to_the_grid():
    ramp = np.broadcast_to(centres_mm()[..., 1], VOLUME.shape)[None].copy()
    views = draw(AugmentConfig(views=1, crop_p=1.0, crop_share=0.5), KEYS[:1])
    found = transform(torch.from_numpy(ramp), views).numpy()[0, 0, 15, 5:-5, 10]
    np.testing.assert_allclose(np.diff(found), 0.5 * SPACING_MM[1], atol=1e-9)


def test_single_precision_stays_within_1e_5_of_double():
    x = torch.from_numpy(smooth_volumes(8))
    views = draw(replace(HALF, noise_p=0.0, affine_p=1.0, blur_p=1.0, intensity_p=1.0))
    torch.testing.assert_close(
        transform(x.float(), views).double(), transform(x.float().double(), views), rtol=0, atol=1e-5
    )


def test_blur_equals_scipy_with_each_row_its_own_width_in_millimetres():
    x = np.random.default_rng(0).standard_normal((8, *VOLUME.shape))
    views = draw(AugmentConfig(blur_p=0.7, blur_sigma_mm=[0.1, 5.0]))
    found = transform(torch.from_numpy(x), views).numpy()
    for row, sigma_mm in enumerate(views.blur_sigma_mm):
        expected = x[row // 2, 0]
        if sigma_mm > 0:
            expected = ndimage.gaussian_filter(expected, sigma_mm / SPACING_MM, mode="nearest", truncate=4.0)
        np.testing.assert_allclose(found[row, 0], expected, atol=1e-12)
    assert 0 < (views.blur_sigma_mm > 0).sum() < len(views)


def test_intensity_follows_its_formula():
    x = smooth_volumes(8)
    views = draw(AugmentConfig(intensity_p=0.7, gamma=0.5))
    found = transform(torch.from_numpy(x), views).numpy()
    for row in range(len(views)):
        image = x[row // 2]
        span = image.max() - image.min()
        curved = ((image - image.min()) / span) ** views.gamma[row] * span + image.min()
        np.testing.assert_allclose(found[row], curved * views.gain[row] + views.offset[row], atol=1e-12)
    assert 0 < (views.gamma != 1).sum() < len(views)


def test_a_constant_image_survives_every_intensity_change():
    x = torch.full((8, *VOLUME.shape), -0.7)
    views = draw(AugmentConfig(intensity_p=1.0, gamma=0.5))
    expected = torch.as_tensor(-0.7 * views.gain + views.offset, dtype=torch.float32).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(apply_views(x, views), expected.expand(16, *VOLUME.shape), rtol=0, atol=1e-6)


def test_noise_has_its_drawn_spread_and_differs_between_views():
    x = torch.zeros(8, *VOLUME.shape)
    views = draw(AugmentConfig(noise_p=1.0))
    found = apply_views(x, views).flatten(1)
    np.testing.assert_allclose(found.std(dim=1).numpy() / views.noise_sd, 1, atol=5 / np.sqrt(2 * found.shape[1]))
    correlation = torch.corrcoef(found) - torch.eye(len(found))
    assert correlation.abs().max() < 5 / found.shape[1] ** 0.5


def test_a_cut_out_box_is_zero_and_the_rest_untouched_even_behind_noise():
    x = torch.randn(8, *VOLUME.shape)
    views = draw(AugmentConfig(views=1, cutout_p=1.0))
    (x0, x1), (y0, y1), (z0, z1) = views.box[3]
    expected = x[3].clone()
    expected[0, x0:x1, y0:y1, z0:z1] = 0
    assert torch.equal(apply_views(x, views)[3], expected)
    noisy = apply_views(x, draw(AugmentConfig(views=1, cutout_p=1.0, noise_p=1.0)))[3]
    assert not noisy[0, x0:x1, y0:y1, z0:z1].any()
    assert (noisy != 0).sum() == noisy.numel() - (x1 - x0) * (y1 - y0) * (z1 - z0)


def test_rows_that_an_operation_leaves_alone_keep_their_bits():
    x = torch.randn(8, *VOLUME.shape).half()
    views = draw(
        replace(HALF, flip_p=0.2, affine_p=0.3, crop_p=0.0, blur_p=0.3, noise_p=0.3, intensity_p=0.2, cutout_p=0.2)
    )
    box = (views.box[:, 0, 1] > views.box[:, 0, 0]) | views.mirrored | views.resampled
    alone = np.flatnonzero(~box & (views.blur_sigma_mm == 0) & (views.noise_sd == 0) & (views.gain == 1))
    assert 0 < len(alone) < len(views)
    found = apply_views(x, views)
    assert torch.equal(found[alone], x.float()[alone // 2])
    assert all(not torch.equal(found[row], x[row // 2].float()) for row in set(range(16)) - set(alone))


@pytest.mark.parametrize(("config", "contract"), [(HALF, VOLUME), (AugmentConfig(noise_p=0.5, cutout_p=0.5), VECTOR)])
def test_a_view_is_the_same_to_the_bit_in_any_batch(config, contract):
    x = torch.randn(8, *contract.shape)
    whole = apply_views(x, draw(config, KEYS, contract)).unflatten(0, (8, 2))
    order = [6, 0, 3]
    part = apply_views(x[order], draw(config, KEYS[order], contract)).unflatten(0, (3, 2))
    assert torch.equal(part, whole[order])


def test_the_size_of_the_chunks_changes_no_bit(monkeypatch):
    x = torch.randn(8, *VOLUME.shape)
    whole = apply_views(x, draw(HALF))
    monkeypatch.setattr(apply_module, "CHUNK_VOXELS_CPU", 1)
    assert torch.equal(apply_views(x, draw(HALF)), whole)


@pytest.mark.parametrize("views", [1, 2])
def test_the_input_is_never_changed(views):
    x = torch.randn(8, *VOLUME.shape)
    kept = x.clone()
    apply_views(x, draw(replace(HALF, views=views)))
    assert torch.equal(x, kept)


def test_vectors_get_noise_and_lose_features():
    x = torch.randn(8, 68)
    views = draw(AugmentConfig(cutout_p=0.5), contract=VECTOR)
    found = apply_views(x, views)
    expected = x.repeat_interleave(2, 0) * torch.from_numpy(~views.zeroed)
    assert torch.equal(found, expected)
    assert (found == 0).sum() == 17 * views.zeroed.any(axis=1).sum() > 0
    noisy = apply_views(x, draw(AugmentConfig(noise_p=1.0, noise_sd=[0.5, 0.5]), contract=VECTOR))
    assert 0.45 < (noisy - x.repeat_interleave(2, 0)).std() < 0.55


def test_parameters_of_another_batch_are_refused():
    with pytest.raises(DataError, match="expected 8 samples as drawn, found 7"):
        apply_views(torch.zeros(7, *VOLUME.shape), draw(HALF))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_geometry_and_intensity_agree_between_cpu_and_gpu_even_where_tf32_is_on(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x = torch.from_numpy(smooth_volumes(8)).float()
    views = draw(replace(HALF, noise_p=0.0))
    torch.testing.assert_close(apply_views(x.cuda(), views).cpu(), apply_views(x, views), rtol=0, atol=1e-5)
    noisy = draw(HALF)
    assert torch.equal(apply_views(x.cuda(), noisy), apply_views(x.cuda(), noisy))
