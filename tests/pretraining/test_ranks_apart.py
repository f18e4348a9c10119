"""Ranks that each norm their own samples, against the same written down for one process; and ranks from the shell."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from brainage.data.sampling import StepBatches, share
from brainage.pretraining.caching import batch_norms
from brainage.pretraining.checkpoint import checkpoints, load_module
from brainage.pretraining.folder import read_finished
from brainage.pretraining.run import build_module, pretrain
from tests.pretraining.groups import together
from tests.pretraining.test_resume import final_weights, journal
from tests.scans import SimulatedScans, small_experiment

RATE = 0.05
KEYS = (
    "encoder.norm=batch", "encoder.head=mlp_bn", "optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0",
    f"optim.lr={RATE}", "trainer.epochs=2", "data.batch_size=6", "trainer.sync_batchnorm=false", "trainer.devices=2",
)  # fmt: skip


def of(runs: Path, loss: str, *more: str):
    return small_experiment(runs, *KEYS, f"loss.name={loss}", *more)


def train_each(rank: int, ranks: int, runs: Path) -> list[Path]:
    experiments = [of(runs, loss) for loss in ("exp", "l1")]
    return [pretrain(experiment, SimulatedScans(experiment)).folder for experiment in experiments]


def by_hand(experiment) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Weights, and the loss of each step: every batch in two parts, each normed by itself; the mean over all anchors
    is what is minimised, and running statistics are those of the first part."""
    data = SimulatedScans(experiment)
    module = build_module(experiment, data)
    dataset, losses = data.train_dataloader().dataset, []
    order = StepBatches(len(dataset), 6, experiment.seed)
    for step in range(len(order) * 2):
        positions, outputs = order.batch(step), {}
        for rank in (1, 0):
            batch = dataset.__getitems__(share(positions, rank, 2))
            before = [buffer.clone() for norm in batch_norms(module) for buffer in norm.buffers()]
            outputs[rank] = module.head_output(module.encoder(module.views(batch, step))).unflatten(0, (-1, 2))
            if rank:
                for buffer, kept in zip(
                    (b for norm in batch_norms(module) for b in norm.buffers()), before, strict=True
                ):
                    buffer.data.copy_(kept)
        everybody = dataset.__getitems__(positions)
        out, ages = torch.cat([outputs[0], outputs[1]]), everybody["age_years"]
        if experiment.loss.name == "l1":
            loss = (out.flatten() - ages.repeat_interleave(2)).abs().mean()
        else:
            loss = module.loss(out, ages, everybody["subject"])
        losses.append(loss.item())
        for weight, grad in zip(module.parameters(), torch.autograd.grad(loss, [*module.parameters()]), strict=True):
            weight.data -= RATE * grad
    return module.state_dict(), losses


def test_ranks_that_norm_apart_learn_what_is_written_down_for_them(tmp_path):
    folders = together(2, train_each, tmp_path)
    assert folders[0] == folders[1]
    for loss, folder in zip(("exp", "l1"), folders[0], strict=True):
        expected, losses = by_hand(of(tmp_path, loss))
        found = final_weights(folder)
        assert [journal(folder)[step, "train/loss"] for step in range(1, len(losses) + 1)] == pytest.approx(
            losses, rel=1e-4
        )
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
        one = of(tmp_path / "one", loss, "trainer.devices=1")
        whole = final_weights(pretrain(one, SimulatedScans(one)).folder)  # normed over both parts: another training
        gap = max(float((whole[name] - value).abs().max()) for name, value in expected.items() if "running" in name)
        assert gap > 1e-2


@pytest.mark.slow
def test_the_command_trains_on_two_devices_what_it_trains_on_one(simulated, tmp_path):
    keys = [
        "data.modality=vbm_roi", "data.batch_size=8", "data.intensity=standardise", "data.prepare_workers=1",
        "data.workers=0", "augment.flip_p=0", "augment.affine_p=0", "augment.blur_p=0", "augment.noise_p=1",
        "encoder.name=mlp", "encoder.hidden=[16]", "encoder.head_dim=8", "optim.name=sgd", "trainer.epochs=2",
        "trainer.precision=fp32", "trainer.accelerator=cpu", "trainer.threads=1", "tracking.enabled=false",
        f"data.store={tmp_path / 'store'}",
    ]  # fmt: skip
    folders = {}
    for devices in (2, 1):
        runs = tmp_path / f"runs{devices}"
        words = ["-m", "brainage.cli", "pretrain", "openbhb_exp", "--data", str(simulated), *keys, f"runs={runs}"]
        done = subprocess.run(
            [sys.executable, *words, f"trainer.devices={devices}"], capture_output=True, text=True, timeout=280,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        folders[devices] = next(path.parent for path in runs.glob("*/finished.json"))
        assert ("2 (2 on each of 1 nodes)" in done.stdout.replace("\n", " ")) == (devices == 2)
    assert folders[1].name == folders[2].name
    assert read_finished(folders[2]) is not None
    one, two = (load_module(checkpoints(folders[devices])[0])[0].state_dict() for devices in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}")
