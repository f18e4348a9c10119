"""Input rules, both modules, and what decides a run's random numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brainage.errors import ConfigError
from brainage.imaging.contract import InputContract
from brainage.pretraining.contrastive import ContrastiveModule
from brainage.pretraining.module import Normaliser
from brainage.pretraining.run import build_module
from brainage.pretraining.supervised import SupervisedModule
from tests.scans import SimulatedScans, small_experiment

VOLUME = (1, 5, 6, 4)


@pytest.fixture(scope="module")
def scans():
    return SimulatedScans()


def first_batch(data):
    return next(iter(data.train_dataloader()))


def test_no_rule_changes_nothing_but_the_type():
    samples = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    found = Normaliser("none", (3,))(samples)
    assert found.dtype == torch.float32
    assert found.tolist() == samples.tolist()


def test_zscore_is_numpys_over_all_voxels_of_each_image():
    volumes = np.random.default_rng(0).gamma(2, 50, (3, *VOLUME)).astype(np.float16)
    found = Normaliser("zscore", VOLUME)(torch.from_numpy(volumes)).numpy()
    for volume, normalised in zip(volumes.astype(np.float64), found, strict=True):
        np.testing.assert_allclose(normalised, (volume - volume.mean()) / volume.std(), atol=2e-5)


def test_zscore_of_an_empty_image_is_zero_and_not_nan():
    assert Normaliser("zscore", VOLUME)(torch.full((1, *VOLUME), 7.0)).abs().max() < 1e-3


def test_standardise_is_numpys_over_the_given_rows_only():
    rng = np.random.default_rng(0)
    samples = (rng.normal(size=(30, 4)) * [1e-3, 1, 50, 1e4] + [5, 0, -80, 1e6]).astype(np.float32)
    rows = np.arange(0, 30, 2)
    samples[1::2] += 1e5  # rows that must not be looked at
    normaliser = Normaliser("standardise", (4,))
    normaliser.fit(samples, rows)
    train = samples[rows].astype(np.float64)
    found = normaliser(torch.from_numpy(samples[rows])).numpy()
    np.testing.assert_allclose(found, (train - train.mean(0)) / train.std(0), atol=2e-3)
    np.testing.assert_allclose(normaliser.sd.numpy(), train.std(0), rtol=1e-5)


def test_a_constant_feature_becomes_zero():
    samples = np.stack([np.full(20, 2.7), np.linspace(0, 1, 20), np.zeros(20)], axis=1).astype(np.float32)
    normaliser = Normaliser("standardise", (3,))
    normaliser.fit(samples, np.arange(20))
    found = normaliser(torch.from_numpy(samples))
    assert found[:, 0].abs().max() < 1e-6
    assert found[:, 2].abs().max() == 0
    assert found[:, 1].std(correction=0) == pytest.approx(1.0, abs=1e-5)


def test_only_training_rows_shape_the_input_of_a_module(scans):
    module = build_module(small_experiment("runs"), scans)
    train = scans.store.arrays[scans.rows("train")].astype(np.float64)
    np.testing.assert_allclose(module.normaliser.mean, train.mean(0), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(module.normaliser.sd, train.std(0), rtol=1e-4)
    assert not np.allclose(module.normaliser.mean, scans.store.arrays.mean(0), rtol=1e-3)


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before(scans):
    one = build_module(small_experiment("runs"), scans).state_dict()
    torch.rand(17), np.random.rand(3)
    two = build_module(small_experiment("runs"), scans).state_dict()
    other = build_module(small_experiment("runs", "seed=1"), scans).state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["encoder.layers.0.weight"], other["encoder.layers.0.weight"])
    assert scans.seed == 1  # the order of the scans follows the run's seed


def test_a_supervised_network_starts_near_the_mean_predictor(scans):
    module = build_module(small_experiment("runs", "loss.name=l1"), scans)
    assert isinstance(module, SupervisedModule)
    ages = scans.table["age_years"].to_numpy()[scans.rows("train")]
    assert float(module.age_mean) == pytest.approx(ages.mean(), rel=1e-6)
    assert float(module.age_sd) == pytest.approx(ages.std(), rel=1e-6)
    with torch.no_grad():
        _, predicted = module.eval().embed(torch.from_numpy(np.array(scans.store.arrays)))
    assert predicted.shape == (40, 1)
    np.testing.assert_allclose(predicted, ages.mean(), rtol=1e-6)


def test_a_supervised_network_leaves_the_mean_predictor_at_once(scans):
    """A head of zeros passes no gradient to the encoder in the first step; from the second on it does."""
    module = build_module(small_experiment("runs", "loss.name=l1"), scans)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    batch, norms = first_batch(scans), []
    for step in range(2):
        optimiser.zero_grad()
        loss, _ = module.loss_of(module.trunk(batch, step), batch)
        loss.backward()
        optimiser.step()
        norms.append(float(module.encoder.layers[0].weight.grad.norm()))
    assert norms[0] == 0
    assert norms[1] > 0


@pytest.mark.parametrize(("head", "layers"), [("linear", 1), ("mlp", 3), ("mlp_bn", 4)])
def test_each_head_gives_unit_embeddings(scans, head, layers):
    module = build_module(small_experiment("runs", f"encoder.head={head}"), scans)
    assert isinstance(module, ContrastiveModule)
    assert len(module.head) == layers
    batch = first_batch(scans)
    loss, seen = module.loss_of(module.trunk(batch, 0), batch)
    assert seen["z"].shape == (5, 2, 8)
    torch.testing.assert_close(seen["z"].norm(dim=2), torch.ones(5, 2))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_losses_are_float32_inside_a_bf16_encoder(scans):
    for loss_name in ("exp", "l1"):
        module = build_module(small_experiment("runs", f"loss.name={loss_name}"), scans)
        module.trainer = None
        seen_types = []
        module.encoder.register_forward_hook(lambda _m, _i, output, seen=seen_types: seen.append(output.dtype))
        batch = first_batch(scans)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            trunk = module.trunk(batch, 0)
            with torch.autocast("cpu", enabled=False):
                loss, seen = module.loss_of(trunk.float(), batch)
        assert loss.dtype == torch.float32
        assert seen["z"].dtype == torch.float32


def test_views_follow_from_step_and_scan_and_never_from_the_batch(scans):
    module = build_module(small_experiment("runs"), scans)
    batch = first_batch(scans)
    views = module.views(batch, step=4)
    assert views.shape == (10, 12)
    alone = module.views({name: values[2:3] for name, values in batch.items()}, step=4)
    torch.testing.assert_close(alone, views[4:6])
    assert not torch.allclose(module.views(batch, step=5), views)
    assert not torch.allclose(views[0::2], views[1::2])  # two views of one scan differ


def test_augmenting_leaves_the_stored_samples_as_they_are(scans):
    module = build_module(small_experiment("runs", "data.intensity=none", "augment.views=1"), scans)
    batch = first_batch(scans)
    before = batch["sample"].clone()
    module.views(batch, step=0)
    assert torch.equal(batch["sample"], before)


def test_two_visits_of_a_person_are_left_out_of_each_others_sums(scans):
    module = build_module(small_experiment("runs"), scans)
    batch = first_batch(scans)
    trunk = module.trunk(batch, 0)
    twins = batch | {"subject": torch.tensor([0, 0, 1, 2, 3])}
    apart = batch | {"subject": torch.arange(5)}
    with torch.no_grad():
        assert float(module.loss_of(trunk, twins)[0]) != float(module.loss_of(trunk, apart)[0])


def test_an_encoder_that_cannot_read_the_samples_is_refused(scans):
    with pytest.raises(ConfigError, match=r"encoder\.name=resnet18: expected volumes, found vectors"):
        build_module(small_experiment("runs", "encoder.name=resnet18"), scans)


def test_an_augmentation_for_volumes_is_refused_for_vectors(scans):
    with pytest.raises(ConfigError, match="augment"):
        build_module(small_experiment("runs", "augment.flip_p=0.5"), scans)


def test_a_module_holds_every_tensor_once():
    for name in ("exp", "l1"):
        module = build_module(small_experiment("runs", f"loss.name={name}"), SimulatedScans())
        places = [tensor.data_ptr() for tensor in module.state_dict().values()]
        assert len(set(places)) == len(places)


@pytest.mark.slow  # importing the compiler takes ten seconds
def test_compiling_keeps_the_names_of_the_weights():
    contract = InputContract("features", "vector", (12,))
    module = ContrastiveModule(small_experiment("runs"), contract)
    names = list(module.state_dict())
    module.compile_encoder()
    assert list(module.state_dict()) == names
