"""`brainage bench`: rows that add up, what a CPU cannot do named, nothing left behind."""

from __future__ import annotations

import math
import time

import pytest
import torch

from brainage import bench
from brainage.bench import VARIANTS, BenchRow, bench_stage, run_bench
from tests.scans import SimulatedScans, small_experiment


@pytest.fixture
def slowed(monkeypatch):
    """(experiment, scans): loading a batch takes 20 ms, a training step 5 ms and its own time."""
    experiment = small_experiment("runs", "data.batch_size=5")
    data = SimulatedScans(experiment)
    data.store  # noqa: B018 (prepared before the clock runs)
    build = bench._step_of
    monkeypatch.setattr(bench, "WARM_STEPS", 1)

    def later(*arguments):
        step = build(*arguments)
        return lambda batch, number: (time.sleep(0.005), step(batch, number))

    monkeypatch.setattr(bench, "_step_of", later)
    dataset = type(data.train_dataloader().dataset)
    read = dataset.__getitems__
    monkeypatch.setattr(dataset, "__getitems__", lambda self, rows: time.sleep(0.02) or read(self, rows))
    return experiment, data


def test_the_loader_the_network_and_both_are_timed(slowed):
    rows = {row.what: row for row in run_bench(*slowed, steps=6)}
    data, model, both = rows["data only"], rows["model only"], rows["both"]
    assert data.step_ms >= 20
    assert data.loader_wait_share > 0.9
    assert model.loader_wait_share == 0
    assert model.step_ms >= 5
    assert both.step_ms >= 25  # one after the other: no workers
    assert 0.2 < both.loader_wait_share < 0.95
    for row in (data, model, both):
        assert row.images_per_s == pytest.approx(10 / row.step_ms * 1000)  # 5 scans, 2 views
        assert 0.05 < row.memory_gib < 64
        assert not row.skipped


def test_what_needs_a_gpu_is_named_and_skipped_on_a_cpu(slowed):
    rows = run_bench(*slowed, steps=1)[3:]
    assert [row.what for row in rows] == [*(f"model only, {name}" for name in VARIANTS), "both, data.resident=device"]
    assert {row.skipped for row in rows} == {"needs a GPU"}
    assert all(math.isnan(row.images_per_s) for row in rows)


def test_variants_are_what_they_are_called_where_they_run(slowed, monkeypatch):
    """Timed here on a CPU, as if it were a GPU that had nothing to refuse."""
    seen = []
    monkeypatch.setattr(
        bench, "_why_not", lambda changes, device, kind: "" if not changes.get("channels_last") else "v"
    )
    timed = bench._timed

    def note(what, experiment, data, steps, **options):
        trainer = experiment.trainer
        seen.append((what, trainer.precision, trainer.tf32, trainer.channels_last, trainer.compile))
        return timed(what, experiment, data, steps, **options)

    monkeypatch.setattr(bench, "_timed", note)
    experiment, data = slowed
    experiment.trainer.precision = "bf16"
    found = run_bench(experiment, data, steps=1)
    assert [row.skipped for row in found[3:]] == ["", "", "", "v", "v", "needs a GPU"]
    assert seen[2] == ("both", "bf16", False, False, False)
    assert seen[3:] == [
        ("model only, fp32 NCDHW", "fp32", False, False, False),
        ("model only, tf32", "fp32", True, False, False),
        ("model only, bf16", "bf16", False, False, False),
    ]


def test_the_network_learns_in_the_timed_step():
    """Else forward passes alone would be timed."""
    experiment = small_experiment("runs", "loss.name=l1", "optim.lr=0.1")
    data = SimulatedScans(experiment)
    step = bench._step_of(experiment, data, torch.device("cpu"))
    batch = next(bench._batches(data, torch.device("cpu")))
    module = step.__closure__[[*step.__code__.co_freevars].index("module")].cell_contents
    before = module.head.bias.detach().clone()
    step(batch, 0)
    assert not torch.equal(module.head.bias, before)


def test_torch_is_left_as_it_was(slowed):
    flags = lambda: (  # noqa: E731
        torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )  # fmt: skip
    before = flags()
    run_bench(*slowed, steps=1)
    assert flags() == before


def test_the_table_is_printed_with_how_to_read_it(monkeypatch, capsys):
    rows = [BenchRow("data only", 1234.5, 10.0, 1.0, 0.51), BenchRow("model only, tf32", skipped="needs a GPU")]
    monkeypatch.setattr(bench, "run_bench", lambda *a, **k: rows)
    experiment = small_experiment("runs")
    assert bench_stage(experiment, SimulatedScans(experiment)) is rows
    out = " ".join(capsys.readouterr().out.split())
    for words in ("data only", "1,234", "100%", "0.51", "needs a GPU", "How to read it", "mlp x 1 on 12"):
        assert words in out
