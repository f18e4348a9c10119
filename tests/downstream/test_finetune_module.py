"""The network that is trained on a diagnosis: which weights move, how fast, and from where they start."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from brainage.config import EncoderConfig
from brainage.downstream.finetune import FinetuneModule, deal, quiet_trainer
from brainage.encoders import build_encoder
from brainage.errors import ConfigError
from brainage.pretraining.module import Normaliser
from tests.downstream.diagnosed_scans import VOLUMES, cohort
from tests.scans import small_experiment


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


def test_what_a_step_drops_follows_from_seed_and_step_and_not_from_what_was_drawn_before():
    module = module_of()
    drawn = []
    for _ in range(2):
        module.on_train_batch_start({}, 0)
        drawn.append(torch.rand(8))
    assert torch.equal(*drawn)
    module.seed = 4
    module.on_train_batch_start({}, 0)
    assert not torch.equal(torch.rand(8), drawn[0])


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
