"""The encoder trained on a diagnosis: what trains, how fast, what it learns, and what it refuses."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from brainage.config import EncoderConfig
from brainage.downstream.finetune import FinetuneModule, deal, network_predictor, quiet_trainer
from brainage.encoders import build_encoder
from brainage.errors import ConfigError, ContractError, DataError, LeakageError, TrainingStopped
from brainage.imaging.contract import InputContract
from brainage.pretraining.module import Normaliser
from tests.scans import FEATURES, small_experiment

VECTORS = InputContract("features", "vector", (FEATURES,))
VOLUMES = InputContract("vbm", "volume", (1, 12, 12, 12), spacing_mm=(8.0,) * 3, origin_mm=(0.0,) * 3, axes="RAS")
QUICK = ("finetune.epochs=3",)


def cohort(contract=VECTORS, people=48, effect=0.0, seed=0):
    """(data, labels): patients differ from the others by `effect` standard deviations in every second value."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(people) % 3 == 0).astype(int)
    arrays = rng.normal(50, 20, (people, *contract.shape)) + 20 * effect * labels.reshape(
        -1, *[1] * len(contract.shape)
    )
    arrays[..., ::2] -= 20 * effect * labels.reshape(-1, *[1] * len(contract.shape))
    table = pd.DataFrame({"cohort": "c", "participant_id": [f"n{i:03d}" for i in range(people)]})
    table = table.assign(session_id="1", run="", age_years=70.0)
    store = SimpleNamespace(arrays=arrays.astype(contract.dtype))
    return SimpleNamespace(contract=contract, table=table, store=store), labels


def module_of(*overrides, name="resnet18", contract=VOLUMES, labels=(0, 0, 0, 1), steps=4):
    torch.manual_seed(0)
    experiment = small_experiment("runs", "augment.noise_p=0", *overrides)
    encoder = build_encoder(EncoderConfig(name=name, width=0.1, hidden=[8, 6]), contract)
    normaliser = Normaliser("zscore" if contract is VOLUMES else "none", contract.shape)
    return FinetuneModule(encoder, normaliser, contract, experiment, labels=np.array(labels), seed=0, steps=steps)


def steps_of(module, count=3):
    """Train for so many steps on noise, by the trainer."""
    data, labels = cohort(module.contract, people=8)
    batch = {"sample": torch.from_numpy(data.store.arrays), "label": torch.from_numpy(labels), "key": np.arange(8)}
    loader = DataLoader([batch] * count, batch_size=None, collate_fn=lambda one: one)
    quiet_trainer(small_experiment("runs"), count).fit(module, loader)


def test_training_starts_from_the_log_odds_of_the_labels():
    module = module_of().eval()
    samples = torch.from_numpy(cohort(VOLUMES, 4)[0].store.arrays)
    with torch.no_grad():
        np.testing.assert_allclose(torch.sigmoid(module(samples)), 0.25, rtol=1e-6)


def test_the_loss_is_the_balanced_one_of_scikit_learns_weights():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0] * 6 + [1] * 2)
    module = module_of("finetune.augment=false", "finetune.dropout=0", labels=labels).eval()
    weights = compute_class_weight("balanced", classes=np.array([0, 1]), y=labels)
    np.testing.assert_allclose(module.class_weights, weights, rtol=1e-6)
    torch.nn.init.normal_(module.head.weight, std=0.1)
    sample = torch.from_numpy(cohort(VOLUMES, 8)[0].store.arrays)
    with torch.no_grad():
        p = torch.sigmoid(module(sample) - module.log_odds).double().numpy()
        found = float(module.training_step({"sample": sample, "label": torch.from_numpy(labels)}, 0))
    expected = np.mean(weights[labels] * -np.log(np.where(labels == 1, p, 1 - p)))
    assert found == pytest.approx(expected, rel=1e-5)


def test_in_mode_full_everything_trains_and_a_stage_at_its_share_of_the_next_ones_rate():
    module = module_of("finetune.lr=0.01", "finetune.lr_decay=0.5")
    groups = module.rate_groups()
    assert [group["lr"] for group in groups] == [0.01, 0.005, 0.0025, 0.00125, 0.000625, 0.0003125]
    assert groups[0]["params"] == [module.head.weight, module.head.bias]
    assert {id(p) for p in module.encoder.stem.parameters()} == {id(p) for p in groups[-1]["params"]}
    assert {id(p) for p in module.encoder.blocks[6:].parameters()} == {id(p) for p in groups[1]["params"]}
    assert sorted(id(p) for g in groups for p in g["params"]) == sorted(id(p) for p in module.parameters())


def test_the_optimiser_begins_with_those_rates_and_ends_near_none():
    module = module_of("finetune.lr=0.01", "finetune.lr_decay=0.5", steps=10)
    configured = module.configure_optimizers()
    optimiser, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert isinstance(optimiser, torch.optim.AdamW)
    assert [group["lr"] for group in optimiser.param_groups[:3]] == [0.01, 0.005, 0.0025]
    for _ in range(9):
        optimiser.step()
        schedule.step()
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.01 * 0.5 * (1 + np.cos(0.9 * np.pi)))


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("full", lambda name: True),
        ("last", lambda name: name.startswith(("head.", "encoder.blocks.6.", "encoder.blocks.7."))),
        ("low_rank", lambda name: name.startswith("head.") or name.endswith((".up", ".down"))),
    ],
)
def test_a_mode_changes_its_own_weights_and_leaves_every_bit_of_the_others(mode, trained):
    module = module_of(f"finetune.mode={mode}", "finetune.lr=0.05")
    assert {n for n, p in module.named_parameters() if p.requires_grad} == {
        n for n, _ in module.named_parameters() if trained(n)
    }
    before = copy.deepcopy(module.state_dict())
    steps_of(module)
    after = module.state_dict()
    names = {name for name, _ in module.named_parameters()}
    statistics = [name for name in after if "running_" in name]
    assert statistics
    for name in [*names, *statistics]:
        changed = not torch.equal(before[name], after[name])
        assert changed == (trained(name) and (mode != "low_rank" or name in names)), name


def test_frozen_parts_stay_in_evaluation_mode_whoever_asks_for_training():
    module = module_of("finetune.mode=last", "finetune.last_stages=2")
    module.eval()
    module.train()
    norms = [m.training for m in module.encoder.modules() if isinstance(m, torch.nn.BatchNorm3d)]
    assert norms == [False] * 10 + [True] * 10  # the stem's, 4 + 5 of stages 1 and 2; 5 and 5 of stages 3 and 4
    assert module.dropout.training


def test_more_stages_than_there_are_cannot_train():
    with pytest.raises(ConfigError, match=r"finetune.last_stages=6: expected 1 to 5"):
        module_of("finetune.mode=last", "finetune.last_stages=6")


@pytest.mark.parametrize(("scans", "batch_size"), [(2, 16), (3, 2), (17, 16), (33, 16), (9, 4), (40, 8)])
def test_every_epoch_holds_everybody_once_and_nobody_is_alone(scans, batch_size):
    config = small_experiment("runs", "finetune.epochs=3", f"finetune.batch_size={batch_size}").finetune
    parts = deal(scans, config, seed=4)
    assert sorted(np.concatenate(parts).tolist()) == sorted(list(range(scans)) * 3)
    a_epoch = len(parts) // 3
    epochs = [np.concatenate(parts[start : start + a_epoch]).tolist() for start in range(0, len(parts), a_epoch)]
    assert all(sorted(epoch) == list(range(scans)) for epoch in epochs)
    assert scans == 2 or len({tuple(epoch) for epoch in epochs}) > 1
    sizes = {len(part) for part in parts}
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)


@pytest.fixture(scope="module")
def checkpoint(finished):
    return finished[2].checkpoint


def predictor(data, checkpoint, *overrides, pretrained=True):
    experiment = small_experiment("runs", "augment.noise_sd=[0.1,0.3]", *overrides)
    return network_predictor(experiment, checkpoint, data, pretrained=pretrained)


def halves(people=48):
    order = np.random.default_rng(5).permutation(people)
    return order[: people * 2 // 3], order[people * 2 // 3 :]


@pytest.mark.parametrize("mode", ["full", "last", "low_rank"])
def test_the_same_seed_gives_the_same_scores_and_another_seed_others(checkpoint, mode):
    data, labels = cohort(effect=1)
    train, test = halves()
    fit_predict = predictor(data, checkpoint, f"finetune.mode={mode}", *QUICK)
    one = fit_predict("CN-AD", train, labels[train], test, 3)
    torch.rand(5), np.random.rand(3)
    assert one.dtype == np.float64
    assert one.shape == test.shape
    assert ((one >= 0) & (one <= 1)).all()
    np.testing.assert_array_equal(fit_predict("CN-AD", train, labels[train], test, 3), one)
    assert not np.array_equal(fit_predict("CN-AD", train, labels[train], test, 4), one)


def test_test_rows_and_their_company_decide_nothing(checkpoint):
    data, labels = cohort(effect=1)
    train, test = halves()
    fit_predict = predictor(data, checkpoint, *QUICK)
    whole = fit_predict("CN-AD", train, labels[train], test, 3)
    few = fit_predict("CN-AD", train, labels[train], test[3:5], 3)
    np.testing.assert_allclose(few, whole[3:5], rtol=1e-5)
    assert fit_predict("CN-AD", train, labels[train], test[:0], 3).shape == (0,)


def test_from_scratch_is_another_network_and_needs_no_checkpoint(checkpoint):
    data, labels = cohort(effect=1)
    train, test = halves()
    arguments = ("CN-AD", train, labels[train], test, 3)
    finetuned = predictor(data, checkpoint, *QUICK)(*arguments)
    scratch = predictor(data, checkpoint, *QUICK, "finetune.mode=low_rank", pretrained=False)(*arguments)
    assert not np.allclose(finetuned, scratch)
    without = predictor(data, None, *QUICK, pretrained=False)(*arguments)
    np.testing.assert_array_equal(without, scratch)  # the encoder of the checkpoint's experiment, in mode full


@pytest.mark.parametrize(("pretrained", "mode"), [(True, "full"), (True, "last"), (True, "low_rank"), (False, "full")])
def test_a_planted_disease_is_learnt(checkpoint, pretrained, mode):
    data, labels = cohort(people=120, effect=1, seed=1)
    train, test = halves(120)
    settings = (f"finetune.mode={mode}", "finetune.epochs=10", "finetune.lr=0.01")
    fit_predict = predictor(data, checkpoint, *settings, pretrained=pretrained)
    assert roc_auc_score(labels[test], fit_predict("CN-AD", train, labels[train], test, 0)) > 0.8


def test_shuffled_labels_are_not_learnt(checkpoint):
    data, labels = cohort(people=120, effect=1, seed=1)
    train, test = halves(120)
    fit_predict = predictor(data, checkpoint, *QUICK, "finetune.lr=0.01")
    found = []
    for seed in range(6):
        shuffled = np.random.default_rng(seed).permutation(labels[train])
        found.append(roc_auc_score(labels[test], fit_predict("CN-AD", train, shuffled, test, seed)))
    assert 0.3 < np.mean(found) < 0.7


def test_what_the_checkpoint_holds_is_left_as_it_was(checkpoint):
    data, labels = cohort(effect=1)
    train, test = halves()
    fit_predict = predictor(data, checkpoint, *QUICK)
    before = copy.deepcopy(fit_predict.module.state_dict())
    fit_predict("CN-AD", train, labels[train], test, 3)
    assert all(torch.equal(before[name], value) for name, value in fit_predict.module.state_dict().items())


def test_scratch_scales_its_input_by_the_rows_it_trains_on(checkpoint, monkeypatch):
    data, labels = cohort()
    train, test = halves()
    seen = []
    monkeypatch.setattr(Normaliser, "fit", lambda self, samples, rows: seen.append(rows))
    predictor(data, checkpoint, *QUICK, pretrained=False)("CN-AD", train, labels[train], test, 0)
    predictor(data, checkpoint, *QUICK)("CN-AD", train, labels[train], test, 0)
    np.testing.assert_array_equal(seen, [train])


@pytest.mark.parametrize("labels", [[0, 0, 0], [1, 1, 1], [0, 1], [0, 1, 2], [0.0, 1.0, np.nan]])
def test_labels_that_are_not_two_classes_are_refused(checkpoint, labels):
    data, _ = cohort()
    with pytest.raises(DataError, match="finetuned CN-AD: expected a label 0 or 1 for each of 3 scans"):
        predictor(data, checkpoint)("CN-AD", np.arange(3), np.array(labels), np.arange(5, 8), 0)


def test_a_person_on_both_sides_is_refused(checkpoint):
    data, _ = cohort()
    data.table.loc[1, "participant_id"] = "n007"
    with pytest.raises(LeakageError, match=r"1 people are trained on and scored, first .*n007"):
        predictor(data, checkpoint)("CN-AD", np.arange(5), np.array([0, 1, 0, 1, 0]), np.arange(5, 12), 0)


def test_people_of_the_pre_training_are_not_scored_unless_asked_for(finished):
    _, scans, run = finished
    labels = np.arange(40) % 2
    test = scans.rows("train")[:6]
    train = np.setdiff1d(np.arange(40), test)
    with pytest.raises(LeakageError, match="6 of 6 people were trained on"):
        predictor(scans, run.checkpoint)("CN-AD", train, labels[train], test, 0)
    allowed = predictor(scans, run.checkpoint, "evaluate.allow_seen=true", "finetune.epochs=1")
    assert len(allowed("CN-AD", train, labels[train], test, 0)) == 6
    fresh = predictor(scans, run.checkpoint, "finetune.epochs=1", pretrained=False)
    assert len(fresh("CN-AD", train, labels[train], test, 0)) == 6


@pytest.mark.parametrize("pretrained", [True, False])
def test_samples_of_another_kind_are_refused_before_any_is_read(checkpoint, pretrained):
    with pytest.raises(ContractError, match="modality: expected 'features', found 'vbm'"):
        network_predictor(
            small_experiment("runs"), checkpoint, SimpleNamespace(contract=VOLUMES), pretrained=pretrained
        )


@pytest.mark.parametrize(
    "override",
    ["finetune.epochs=0", "finetune.batch_size=1", "finetune.lr_decay=0", "finetune.dropout=1", "finetune.rank=0"],
)
def test_a_setting_out_of_range_is_refused_by_its_key(checkpoint, override):
    with pytest.raises(ConfigError, match=override.split("=")[0]):
        predictor(cohort()[0], checkpoint, override)
    with pytest.raises(ConfigError, match="expected a checkpoint"):
        predictor(cohort()[0], None)


def test_a_training_that_diverges_gives_no_scores(checkpoint):
    data, labels = cohort()
    train, test = halves()
    data.store.arrays[train[0]] = np.nan
    with pytest.raises(TrainingStopped, match="finetuned CN-AD: training diverged"):
        predictor(data, checkpoint, *QUICK)("CN-AD", train, labels[train], test, 0)


VOLUME_NETWORK = ("encoder.name=resnet18", "encoder.width=0.1", "data.intensity=zscore", "augment.flip_p=0.5")


def test_volumes_travel_as_stored_and_train(monkeypatch):
    data, labels = cohort(VOLUMES, people=24, effect=2)
    kinds = []
    forward = Normaliser.forward
    monkeypatch.setattr(Normaliser, "forward", lambda self, x: kinds.append(x.dtype) or forward(self, x))
    fit_predict = predictor(data, None, *VOLUME_NETWORK, *QUICK, pretrained=False)
    scores = fit_predict("CN-AD", np.arange(16), labels[:16], np.arange(16, 24), 0)
    assert np.isfinite(scores).all()
    assert set(kinds) == {torch.float16}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_repeats_itself_and_learns():
    data, labels = cohort(VOLUMES, people=60, effect=2)
    settings = (*VOLUME_NETWORK, "trainer.accelerator=gpu", "finetune.epochs=10")
    fit_predict = predictor(data, None, *settings, pretrained=False)
    arguments = ("CN-AD", np.arange(40), labels[:40], np.arange(40, 60), 0)
    scores = fit_predict(*arguments)
    np.testing.assert_array_equal(fit_predict(*arguments), scores)
    assert roc_auc_score(labels[40:], scores) > 0.8
