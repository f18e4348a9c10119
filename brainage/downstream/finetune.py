"""The encoder itself trained on a diagnosis: from its pre-trained weights, or from none.

Legend: n scans, B scans of a batch, F trunk features. Labels are 0 and 1, 1 being the diagnosis.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.utils.data import DataLoader

from brainage.augment import apply_views, draw_views
from brainage.augment.draw import check_augment
from brainage.config import Experiment, FinetuneConfig, OptimConfig
from brainage.data.source import ScanSource
from brainage.data.splits import refuse_seen
from brainage.data.table import person_keys, sample_numbers
from brainage.downstream.low_rank import add_low_rank, merge_low_rank, stages_of
from brainage.encoders import build_encoder
from brainage.encoders.layers import Encoder
from brainage.errors import ConfigError, DataError, LeakageError, TrainingStopped
from brainage.imaging.contract import InputContract
from brainage.pretraining.checkpoint import load_module
from brainage.pretraining.module import Normaliser
from brainage.pretraining.optimisation import rate_factor
from brainage.pretraining.trainer import PRECISION, leave_signals_alone, quieten_lightning
from brainage.runtime import choose_device, guard_precision, set_threads

_CERTAIN = 1e-12  # probabilities keep this far from 0 and 1, so that their log odds are finite

FitPredict = Callable[[str, np.ndarray, np.ndarray, np.ndarray, int], np.ndarray]


class FinetuneModule(L.LightningModule):
    """Encoder, dropout and a linear unit under binary cross-entropy with balanced class weights.

    Which weights train follows from `finetune.mode`; frozen stages are in evaluation mode, so that their BatchNorm
    keeps its running statistics and their dropout is off. The unit's weights start at 0: training starts from the
    predictor that gives everybody the log odds of the training labels. A step's views (one a scan) and dropout follow
    from (seed, step), the views also from the scan.

    Balanced weights make the unit learn log odds as if both classes were equally frequent. Those of the training labels
    are added (`log_odds`; Saerens et al. 2002), so that probabilities are calibrated for people as these.

    `encoder` and `normaliser` are changed in place. Raises ConfigError where the mode does not fit the encoder.
    """

    log_odds: Tensor
    class_weights: Tensor

    def __init__(
        self, encoder: Encoder, normaliser: Normaliser, contract: InputContract, experiment: Experiment,
        *, labels: np.ndarray, seed: int, steps: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = experiment.finetune
        self.augment = dataclasses.replace(experiment.augment, views=1)
        self.contract, self.seed, self.steps = contract, seed, steps
        self.normaliser, self.encoder = normaliser, encoder
        self.dropout = nn.Dropout(self.config.dropout)
        self.head = nn.Linear(encoder.features, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        counts = np.bincount(labels, minlength=2)
        self.register_buffer("log_odds", torch.tensor(np.log(counts[1] / counts[0]), dtype=torch.float32))
        self.register_buffer("class_weights", torch.tensor(len(labels) / (2 * counts), dtype=torch.float32))
        self._stages = [list(stage) for stage in stages_of(encoder)]  # a list: no second name for a parameter
        self._frozen = self._freeze()
        self.train()

    def _freeze(self) -> list[nn.Module]:
        """What stays in evaluation mode."""
        if self.config.mode == "full":
            return []
        if self.config.mode == "low_rank":
            add_low_rank(self.encoder, self.config.rank)
            return [self.encoder]
        found, wanted = len(self._stages), self.config.last_stages
        if not 1 <= wanted <= found:
            raise ConfigError(f"finetune.last_stages={wanted}: expected 1 to {found}, the stages of this encoder")
        frozen = [unit for stage in self._stages[: found - wanted] for unit in stage]
        for unit in frozen:
            unit.requires_grad_(False)
        return frozen

    def train(self, mode: bool = True) -> FinetuneModule:
        super().train(mode)
        for unit in self._frozen:
            unit.eval()
        return self

    def forward(self, samples: Tensor) -> Tensor:
        """Stored samples [B, *shape] -> log odds of the diagnosis [B], without augmentation."""
        return self._balanced(self.encoder(self.normaliser(samples))) + self.log_odds

    def _balanced(self, trunk: Tensor) -> Tensor:
        """Trunk features [B, F] -> log odds [B] as if both classes were equally frequent."""
        with torch.autocast(trunk.device.type, enabled=False):
            return self.head(self.dropout(trunk.float())).squeeze(1)

    def transfer_batch_to_device(self, batch: dict[str, Any], device: torch.device, dataloader_idx: int) -> Any:
        """Samples travel as stored; the keys stay with the host, which draws views from them."""
        moved = {name: value for name, value in batch.items() if name != "key"}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), "key": batch["key"]}

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        torch.manual_seed(_derived(self.seed, self.global_step))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        with torch.autocast(self.device.type, enabled=False):
            x = self.normaliser(batch["sample"])
            if self.config.augment:
                drawn = draw_views(self.augment, self.contract, batch["key"], seed=self.seed, step=self.global_step)
                x = apply_views(x, drawn)
        logits = self._balanced(self.encoder(x))
        label = batch["label"]
        return F.binary_cross_entropy_with_logits(logits, label.float(), weight=self.class_weights[label])

    def configure_optimizers(self) -> Any:
        optimiser = torch.optim.AdamW(self.rate_groups(), weight_decay=self.config.weight_decay)
        factor = rate_factor(OptimConfig(schedule="cosine"), 1, self.steps)  # the last weights, which count, settle
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def rate_groups(self) -> list[dict[str, Any]]:
        """Trainable parameters with their learning rates: `finetune.lr` for the head, and for each stage
        `finetune.lr_decay` times that of the next deeper one (Clark et al. 2020, arXiv 2003.10555; the head counts as
        the deepest)."""
        groups = [{"params": list(self.head.parameters()), "lr": self.config.lr}]
        for depth, stage in enumerate(reversed(self._stages), start=1):
            values = [p for unit in stage for p in unit.parameters() if p.requires_grad]
            if values:
                groups.append({"params": values, "lr": self.config.lr * self.config.lr_decay**depth})
        return groups


def _read(arrays: Any, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([arrays[row] for row in rows]))


def deal(scans: int, config: FinetuneConfig, seed: int) -> list[np.ndarray]:
    """Positions of each step's scans: in every epoch all of them once, in another order, in parts that differ by one
    scan at most and are no larger than `finetune.batch_size` unless one scan would be alone (BatchNorm needs two).

    >>> [len(part) for part in deal(9, FinetuneConfig(epochs=2, batch_size=4), seed=0)]
    [3, 3, 3, 3, 3, 3]
    """
    parts = max(1, min(-(-scans // config.batch_size), scans // 2))
    orders = [np.random.default_rng([seed, epoch]).permutation(scans) for epoch in range(config.epochs)]
    return [part for order in orders for part in np.array_split(order, parts)]


def network_predictor(
    experiment: Experiment, checkpoint: Path | None, data: ScanSource, *, pretrained: bool
) -> FitPredict:
    """`fit_predict(pair_name, train_rows, train_labels, test_rows, seed)` -> probabilities [len(test_rows)], float64.

    `pretrained`: the encoder of `checkpoint`, trained on as `experiment.finetune` says. Otherwise the same encoder
    (without a checkpoint: that of `experiment`) from fresh weights, by the same recipe in mode full, its input scaled
    by the train rows. Rows are those of `data.table`. After `finetune.epochs` the last weights are taken: the test rows
    decide nothing. The same seed gives the same probabilities on the same device.

    Raises ConfigError and ContractError before anything is read. `fit_predict` raises DataError when the labels are not
    of two classes, LeakageError when a person is in both sets of rows or was seen by the pre-training and is scored
    (unless `evaluate.allow_seen`), and TrainingStopped when the training diverges.
    """
    return _NetworkPredictor(experiment, checkpoint, data, pretrained)


class _NetworkPredictor:
    def __init__(self, experiment: Experiment, checkpoint: Path | None, data: ScanSource, pretrained: bool) -> None:
        if checkpoint is None and pretrained:
            raise ConfigError("predictor finetuned: expected a checkpoint to start from; found none")
        self.name = "finetuned" if pretrained else "scratch"
        config = experiment.finetune if pretrained else dataclasses.replace(experiment.finetune, mode="full")
        self.experiment = dataclasses.replace(experiment, finetune=_checked(config))
        self.data, self.pretrained = data, pretrained
        self.origin, self.seen, self.salt = experiment, list[str](), ""
        if checkpoint is not None:
            self.module, payload = load_module(checkpoint)
            self.module.contract.refuse_other(data.contract, f"{checkpoint} ({self.name})")
            self.origin, self.seen, self.salt = payload.experiment, payload.seen, payload.salt
        if config.augment:
            check_augment(experiment.augment, data.contract)
        self.device = choose_device(experiment.trainer.accelerator)
        set_threads(experiment.trainer.threads)
        if data.contract.kind == "volume":
            guard_precision(experiment.trainer.precision, self.device, (config.batch_size, *data.contract.shape))
        self.keys, self.people = sample_numbers(data.table), person_keys(data.table).to_numpy()

    def __call__(
        self, pair_name: str, train_rows: np.ndarray, train_labels: np.ndarray, test_rows: np.ndarray, seed: int
    ) -> np.ndarray:
        context = f"{self.name} {pair_name}"
        train_rows, test_rows = np.asarray(train_rows), np.asarray(test_rows)
        labels = _two_classes(train_rows, train_labels, context)
        self._refuse_leaks(train_rows, test_rows, context)
        batches = deal(len(labels), self.experiment.finetune, seed)
        module = self._fresh(train_rows, labels, seed, len(batches))

        def batch_of(positions: list[int]) -> dict[str, Any]:
            rows = train_rows[positions]
            label = torch.from_numpy(labels[positions])
            return {"sample": _read(self.data.store.arrays, rows), "label": label, "key": self.keys[rows]}

        every: Any = range(len(labels))
        loader: DataLoader[Any] = DataLoader(every, batch_sampler=batches, collate_fn=batch_of)  # type: ignore[arg-type]
        quiet_trainer(self.experiment, len(batches)).fit(module, loader)
        scores = self._scores(module, test_rows)
        if not np.isfinite(scores).all():
            raise TrainingStopped(f"{context}: training diverged (scores are NaN); lower finetune.lr")
        return scores.clip(_CERTAIN, 1 - _CERTAIN)

    def _fresh(self, train_rows: np.ndarray, labels: np.ndarray, seed: int, steps: int) -> FinetuneModule:
        torch.manual_seed(_derived(seed))
        contract = self.data.contract
        if self.pretrained:
            encoder, normaliser = copy.deepcopy(self.module.encoder), copy.deepcopy(self.module.normaliser)
        else:
            encoder = build_encoder(self.origin.encoder, contract)
            normaliser = Normaliser(self.origin.data.intensity, contract.shape)
            normaliser.fit(self.data.store.arrays, train_rows)
        return FinetuneModule(encoder, normaliser, contract, self.experiment, labels=labels, seed=seed, steps=steps)

    def _refuse_leaks(self, train_rows: np.ndarray, test_rows: np.ndarray, context: str) -> None:
        both = set(self.people[train_rows]) & set(self.people[test_rows])
        if both:
            raise LeakageError(f"{context}: {len(both)} people are trained on and scored, first {min(both)}")
        if self.pretrained:
            scored, allow = self.data.table.iloc[test_rows], self.experiment.evaluate.allow_seen
            refuse_seen(scored, self.seen, self.salt, allow=allow, context=context)

    def _scores(self, module: FinetuneModule, rows: np.ndarray) -> np.ndarray:
        merge_low_rank(module.encoder)
        module = module.eval().to(self.device)
        size = self.experiment.finetune.batch_size
        parts = [np.empty(0)]
        with torch.inference_mode():
            for start in range(0, len(rows), size):
                samples = _read(self.data.store.arrays, rows[start : start + size])
                parts.append(torch.sigmoid(module(samples.to(self.device)).double()).cpu().numpy())
        return np.concatenate(parts)


def quiet_trainer(experiment: Experiment, steps: int) -> L.Trainer:
    """A Lightning trainer of so many steps in this process alone, that writes and says nothing."""
    device = choose_device(experiment.trainer.accelerator)
    deterministic = experiment.trainer.deterministic
    quieten_lightning()
    warnings.filterwarnings("ignore", r".*module\(s\) in eval mode at the start of training.*")  # the frozen ones
    trainer = L.Trainer(
        max_epochs=1, max_steps=steps, accelerator={"cuda": "gpu"}.get(device.type, device.type),
        devices=[device.index] if device.type == "cuda" else 1, plugins=[LightningEnvironment()],
        precision=PRECISION[experiment.trainer.precision],  # type: ignore[arg-type]
        deterministic="warn" if deterministic else None, benchmark=not deterministic,
        use_distributed_sampler=False, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    leave_signals_alone(trainer)
    return trainer


def _checked(config: FinetuneConfig) -> FinetuneConfig:
    lowest = {"epochs": 1, "batch_size": 2, "last_stages": 1, "rank": 1, "lr": 1e-12, "lr_decay": 1e-3, "dropout": 0}
    highest = {"lr_decay": 1, "dropout": 0.99}
    for key, low in lowest.items():
        value, high = getattr(config, key), highest.get(key, float("inf"))
        if not low <= value <= high:
            raise ConfigError(f"finetune.{key}={value}: expected {low:g} to {high:g}")
    return config


def _two_classes(rows: np.ndarray, labels: np.ndarray, context: str) -> np.ndarray:
    labels = np.asarray(labels)
    found = sorted(set(labels.tolist()))
    if len(labels) != len(rows) or found != [0, 1]:
        raise DataError(
            f"{context}: expected a label 0 or 1 for each of {len(rows)} scans and both among them, found "
            f"{len(labels)} labels of {found[:5]}; fit on more people, or leave this pair out"
        )
    return labels.astype(np.int64)


def _derived(*numbers: int) -> int:
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])
