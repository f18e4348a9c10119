"""Encoders trained on a diagnosis, pre-trained and from scratch: what they learn, repeat and refuse."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.utils.parametrize import is_parametrized

from brainage.augment import draw_views
from brainage.data.table import sample_numbers
from brainage.downstream.finetune import FinetuneModule, network_predictor
from brainage.errors import ConfigError, ContractError, DataError, LeakageError, TrainingStopped
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.module import Normaliser
from tests.downstream.diagnosed_scans import VOLUMES, cohort
from tests.scans import small_experiment

QUICK = ("finetune.epochs=3",)


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


def started(fit_predict, labels, monkeypatch):
    """The module that `fit_predict` is about to train."""

    class Begun(Exception):  # noqa: N818 - it ends the training before it begins
        pass

    def fit(module, loader):
        raise Begun(module)

    monkeypatch.setattr("brainage.downstream.finetune.quiet_trainer", lambda *_: SimpleNamespace(fit=fit))
    with pytest.raises(Begun) as begun:
        fit_predict("CN-AD", np.arange(30), labels[:30], np.arange(30, 48), 0)
    return begun.value.args[0].eval()


@pytest.mark.parametrize("mode", ["full", "last", "low_rank"])
def test_training_starts_at_the_pre_trained_function_or_from_scratch_elsewhere(checkpoint, monkeypatch, mode):
    data, labels = cohort()
    samples = torch.from_numpy(data.store.arrays)
    setting = f"finetune.mode={mode}"
    module = started(predictor(data, checkpoint, setting), labels, monkeypatch)
    fresh = started(predictor(data, checkpoint, setting, pretrained=False), labels, monkeypatch)
    with torch.no_grad():
        expected = load_module(checkpoint)[0].embed(samples)[0]
        assert torch.equal(module.encoder(module.normaliser(samples)), expected)
        assert not torch.allclose(fresh.encoder(fresh.normaliser(samples)), expected)
    assert all(parameter.requires_grad for parameter in fresh.parameters())
    assert sum(p.numel() for p in fresh.encoder.parameters()) == sum(
        p.numel() for p in load_module(checkpoint)[0].encoder.parameters()
    )


def test_each_step_draws_one_view_a_scan_from_seed_step_and_scan(checkpoint, monkeypatch):
    data, labels = cohort()
    train, test = halves()
    drawn = []

    def draw(augment, contract, keys, *, seed, step):
        drawn.append((augment.views, seed, step))
        assert set(keys) <= set(sample_numbers(data.table)[train])
        return draw_views(augment, contract, keys, seed=seed, step=step)

    monkeypatch.setattr("brainage.downstream.finetune.draw_views", draw)
    predictor(data, checkpoint, *QUICK)("CN-AD", train, labels[train], test, 7)
    assert drawn == [(1, 7, step) for step in range(6)]
    drawn.clear()
    predictor(data, checkpoint, *QUICK, "finetune.augment=false")("CN-AD", train, labels[train], test, 7)
    assert drawn == []


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
    [
        "finetune.epochs=0",
        "finetune.batch_size=1",
        "finetune.lr_decay=0",
        "finetune.dropout=1",
        "finetune.rank=0",
        "finetune.lr=0",
    ],
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


def test_an_overfitted_network_is_certain_but_never_infinitely_so(checkpoint, monkeypatch):
    data, labels = cohort()
    train, test = halves()

    def certain(self, samples):
        assert not any(is_parametrized(layer) for layer in self.modules())  # low-rank updates are merged by now
        return torch.full((len(samples),), 80.0)

    monkeypatch.setattr(FinetuneModule, "forward", certain)
    scores = predictor(data, checkpoint, *QUICK, "finetune.mode=low_rank")("CN-AD", train, labels[train], test, 0)
    assert (scores == 1 - 1e-12).all()


def test_low_precision_trains_near_full_precision(checkpoint):
    data, labels = cohort(effect=1)
    train, test = halves()
    arguments = ("CN-AD", train, labels[train], test, 3)
    whole = predictor(data, checkpoint, *QUICK)(*arguments)
    rounded = predictor(data, checkpoint, *QUICK, "trainer.precision=bf16")(*arguments)
    assert not np.array_equal(whole, rounded)
    np.testing.assert_allclose(rounded, whole, atol=0.1)


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
