"""Drawn parameters: pure functions of their key, uniform, within the configured ranges, refused where impossible."""

from __future__ import annotations

import time
from dataclasses import fields, replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from scipy.stats import kstest

from brainage.augment import ViewParameters, draw_views
from brainage.augment.draw import DRAWS, stream, stream_states, to_unit
from brainage.config import AugmentConfig
from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract

VOLUME = InputContract("vbm", "volume", (1, 30, 36, 24), spacing_mm=(2.0, 3.0, 4.0), origin_mm=(0.0,) * 3, axes="RAS")
VECTOR = InputContract("thickness", "vector", (68,))
EVERYTHING = AugmentConfig(
    flip_p=0.5, affine_p=0.5, crop_p=0.5, blur_p=0.5, noise_p=0.5, intensity_p=0.5, gamma=0.3, cutout_p=0.5
)
KEYS = np.arange(1000, 1064, dtype=np.uint64)


def rows(views: ViewParameters, picked: np.ndarray) -> list[np.ndarray]:
    return [getattr(views, f.name)[picked] for f in fields(views) if f.name not in ("views", "spacing_mm")]


def assert_same(first: list[np.ndarray], second: list[np.ndarray]) -> None:
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("config", "contract"), [(EVERYTHING, VOLUME), (AugmentConfig(noise_p=0.5, cutout_p=0.5), VECTOR)]
)
def test_a_view_depends_on_nothing_else_in_the_batch(config, contract):
    whole = draw_views(config, contract, KEYS, seed=3, step=17)
    order = np.random.default_rng(0).permutation(len(KEYS))[:20]
    part = draw_views(config, contract, KEYS[order], seed=3, step=17)
    assert_same(rows(part, np.arange(40)), rows(whole, (order[:, None] * 2 + [0, 1]).ravel()))


def test_the_first_view_does_not_depend_on_how_many_follow():
    one = draw_views(replace(EVERYTHING, views=1), VOLUME, KEYS, seed=3, step=17)
    three = draw_views(replace(EVERYTHING, views=3), VOLUME, KEYS, seed=3, step=17)
    assert_same(rows(one, np.arange(len(KEYS))), rows(three, np.arange(len(KEYS)) * 3))


def test_seed_step_key_and_view_each_change_the_draws():
    states = [
        stream_states(seed, step, np.array([key, key + 1]), 2) for seed in (0, 1) for step in (0, 1) for key in (5, 7)
    ]
    assert len(np.unique(np.concatenate(states))) == 32


def test_signed_and_unsigned_keys_and_any_seed_are_taken():
    first = draw_views(EVERYTHING, VOLUME, KEYS.astype(np.int64), seed=-1, step=0)
    assert_same(
        rows(first, slice(None)), rows(draw_views(EVERYTHING, VOLUME, KEYS, seed=2**64 - 1, step=0), slice(None))
    )


def test_draws_stay_what_they_were_in_earlier_versions():
    """A resumed run must see the views of the uninterrupted one; the numbers come from a plain-integer SplitMix64."""
    draws = to_unit(stream(stream_states(3, 17, np.array([1000]), 2), 0, len(DRAWS)))
    assert (DRAWS.index("noise_seed"), DRAWS.index("cutout_z")) == (19, 25)
    pinned = [
        [0.5715955998619873, 0.8359161880010252, 0.3852634476618033],
        [0.07864656816111093, 0.10269658843559792, 0.8441103325897937],
    ]
    np.testing.assert_array_equal(draws[:, [0, 19, 25]], pinned)


def test_switching_one_operation_leaves_the_others_as_they_were():
    whole = draw_views(EVERYTHING, VOLUME, KEYS, seed=0, step=0)
    without = draw_views(replace(EVERYTHING, blur_p=0.0, crop_p=0.0), VOLUME, KEYS, seed=0, step=0)
    assert not without.blur_sigma_mm.any()
    for name in ("gamma", "gain", "offset", "noise_sd", "noise_seed", "box"):
        np.testing.assert_array_equal(getattr(without, name), getattr(whole, name))


def test_draws_are_uniform_and_unrelated_between_places_views_and_neighbouring_keys():
    states = stream_states(0, 0, np.arange(10_000), 2)
    u = to_unit(stream(states, 0, len(DRAWS)))
    assert min(kstest(column, "uniform").pvalue for column in u.T) > 1e-4
    first, second = u[0::2], u[1::2]
    together = np.concatenate([first, second, np.roll(first, 1, axis=0)], axis=1)
    correlation = np.corrcoef(together.T) - np.eye(together.shape[1])
    assert np.abs(correlation).max() < 5 / np.sqrt(len(together))


def test_an_operation_hits_its_share_of_views():
    views = draw_views(replace(EVERYTHING, blur_p=0.2), VOLUME, np.arange(5000), seed=0, step=0)
    hit = {"blur": views.blur_sigma_mm > 0, "noise": views.noise_sd > 0, "intensity": views.gain != 1}
    for name, p in (("blur", 0.2), ("noise", 0.5), ("intensity", 0.5)):
        assert abs(hit[name].mean() - p) < 4 * np.sqrt(p * (1 - p) / 10_000)
    assert abs(views.mirrored.mean() - 0.5 * 0.25) < 0.015  # mirrored and neither affine nor crop


def test_certain_operations_always_happen_and_impossible_ones_never():
    always = AugmentConfig(flip_p=1, blur_p=1, noise_p=1, intensity_p=1, cutout_p=1)
    views = draw_views(always, VOLUME, KEYS, seed=0, step=0)
    assert views.mirrored.all()
    assert (views.blur_sigma_mm >= 0.1).all()
    assert (views.noise_sd >= 0.1).all()
    never = draw_views(AugmentConfig(), VOLUME, KEYS, seed=0, step=0)
    assert not never.mirrored.any()
    assert not never.resampled.any()
    assert (never.box[:, :, 0] == never.box[:, :, 1]).all()


def test_the_matrix_undoes_mirror_scale_rotation_shift_and_crop_in_that_order():
    """Rebuilt from the drawn numbers with scipy's rotations: where a point of the image goes, in mm."""
    config = replace(EVERYTHING, affine_p=1.0, crop_p=0.5, flip_p=0.5, rotate_degrees=30.0, crop_share=0.6)
    views = draw_views(config, VOLUME, KEYS, seed=1, step=2)
    draws = to_unit(stream(stream_states(1, 2, KEYS, 2), 0, len(DRAWS)))
    half_mm = np.array([30 * 2, 36 * 3, 24 * 4]) / 2
    points = np.random.default_rng(0).uniform(-20, 20, (5, 3))
    for row, u in enumerate(dict(zip(DRAWS, values, strict=True)) for values in draws):
        degrees = [60 * u[f"rotate_{axis}"] - 30 for axis in "xyz"]
        moved = points * ([-1, 1, 1] if u["flip"] < 0.5 else [1, 1, 1]) * (0.9 + 0.2 * u["scale"])
        moved = Rotation.from_euler("xyz", degrees, degrees=True).apply(moved)
        moved = moved + [16 * u[f"translate_{axis}"] - 8 for axis in "xyz"]
        if u["crop"] < 0.5:
            moved = (moved - 0.4 * half_mm * [2 * u[f"crop_{axis}"] - 1 for axis in "xyz"]) / 0.6
        back = np.c_[moved, np.ones(5)] @ views.matrix[row].T
        np.testing.assert_allclose(back[:, :3], points, atol=1e-9)


def test_a_crop_stays_inside_the_grid_and_reaches_its_border():
    config = AugmentConfig(crop_p=1.0, crop_share=0.5)
    matrix = draw_views(config, VOLUME, np.arange(2000), seed=0, step=0).matrix
    half_mm = np.array([30 * 2, 36 * 3, 24 * 4]) / 2
    corners = np.array([[x, y, z, 1] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * [*half_mm, 1]
    reach = np.abs((corners @ matrix.transpose(0, 2, 1))[..., :3] / half_mm).max(axis=(0, 1))
    assert (reach <= 1 + 1e-12).all()
    assert (reach > 0.99).all()


def test_cut_out_boxes_have_their_share_of_each_edge_and_reach_every_corner():
    views = draw_views(AugmentConfig(cutout_p=1.0, cutout_share=0.25), VOLUME, np.arange(5000), seed=0, step=0)
    edges = views.box[:, :, 1] - views.box[:, :, 0]
    np.testing.assert_array_equal(edges, np.broadcast_to([8, 9, 6], edges.shape))
    assert (views.box[:, :, 0].min(axis=0) == 0).all()
    assert (views.box[:, :, 1].max(axis=0) == [30, 36, 24]).all()


def test_vectors_lose_an_exact_share_of_features_each_equally_often():
    views = draw_views(AugmentConfig(cutout_p=0.5, cutout_share=0.25), VECTOR, np.arange(4000), seed=0, step=0)
    counts = views.zeroed.sum(axis=1)
    assert set(counts) == {0, 17}
    assert abs((counts > 0).mean() - 0.5) < 0.025
    share = views.zeroed[counts > 0].mean(axis=0)
    assert np.abs(share - 0.25).max() < 5 * np.sqrt(0.25 * 0.75 / (counts > 0).sum())


@pytest.mark.parametrize("key", ["flip_p", "affine_p", "crop_p", "blur_p", "intensity_p"])
def test_operations_on_images_are_refused_for_vectors(key):
    with pytest.raises(ConfigError, match=rf"augment\.{key}=0\.5: thickness samples are vectors.*set augment\.{key}=0"):
        draw_views(replace(AugmentConfig(), **{key: 0.5}), VECTOR, KEYS, seed=0, step=0)


@pytest.mark.parametrize(
    "change", [{"scale": 1.0}, {"crop_share": 0.0}, {"blur_sigma_mm": [1.0, 0.1]}, {"noise_sd": [0.1]}]
)
def test_values_that_cannot_be_drawn_are_refused(change):
    with pytest.raises(ConfigError, match=f"augment.{next(iter(change))}="):
        draw_views(replace(EVERYTHING, **change), VOLUME, KEYS, seed=0, step=0)


def test_drawing_a_batch_takes_less_than_five_milliseconds():
    def seconds(step: int) -> float:
        start = time.perf_counter()
        draw_views(EVERYTHING, VOLUME, KEYS, seed=0, step=step)
        return time.perf_counter() - start

    assert min(seconds(step) for step in range(20)) < 0.005
