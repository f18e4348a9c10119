"""The whole road: a cohort folder on disk becomes a report, and MLflow has what may leave the machine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from brainage.config import Experiment, flatten, load_experiment, run_folder, sibling
from brainage.data.table import read_table, scan_keys
from brainage.downstream.results import read_results
from brainage.errors import ContractError, TrainingStopped
from brainage.evaluation_stages import embed_stage, evaluate_stage
from brainage.stages import pretrain_stage
from brainage.tracking import MlflowRun, read_journal
from data_modules.cohort import CohortDataModule
from data_modules.simulated.openbhb import write_openbhb

MODELS = {"exp", "l1", "l1_head", "untrained", "pca_ridge"}


class Road(NamedTuple):
    root: Path
    experiment: Experiment
    data: CohortDataModule
    folder: Path
    results: pd.DataFrame


def experiment_on(root: Path, name: str, *overrides: str) -> Experiment:
    small = [
        f"data.root={root}", f"data.store={root.parent / f'store_{name}'}", f"runs={root.parent / 'runs'}",
        f"tracking.uri=sqlite:///{root.parent / 'mlflow.db'}", "data.workers=0", "data.prepare_workers=1",
        "data.batch_size=16", "trainer.accelerator=cpu", "trainer.precision=fp32", "trainer.threads=1",
        "trainer.progress=false", "trainer.epochs=2", "health.every_steps=1", "checkpoint.every_steps=2",
        "evaluate.bootstrap=100", *overrides,
    ]  # fmt: skip
    return load_experiment("openbhb_exp", small)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """64 people at 10 mm: volumes and region volumes."""
    out = tmp_path_factory.mktemp("road") / "openbhb"
    return write_openbhb(out, subjects=64, seed=5, spacing_mm=10.0, workers=1, modalities=("vbm", "vbm_roi"))


@pytest.fixture(scope="module")
def road(cohort):
    """The shipped experiment, narrow and short, from the folder to the report."""
    experiment = experiment_on(cohort, "vbm", "encoder.width=0.125")
    data = CohortDataModule(experiment.data, seed=experiment.seed)
    folder = pretrain_stage(experiment, data)
    return Road(cohort, experiment, data, folder, evaluate_stage(experiment, data, folder))


@pytest.fixture(scope="module")
def tracked(road):
    """(client, the run as MLflow has it)"""
    from mlflow import MlflowClient

    client = MlflowClient(road.experiment.tracking.uri)
    return client, client.get_run(run_id_of(road.folder, road.experiment))


def run_id_of(folder: Path, experiment: Experiment) -> str:
    run_id = MlflowRun(folder, experiment.tracking).run_id
    assert run_id
    return run_id


def artifacts(client, run_id: str, path: str = "") -> set[str]:
    found = set()
    for entry in client.list_artifacts(run_id, path):
        found |= artifacts(client, run_id, entry.path) if entry.is_dir else {entry.path}
    return found


def test_every_scan_of_the_cohort_is_on_the_road(road):
    sheet = pd.read_csv(road.root / "participants.tsv", sep="\t", dtype=str)
    table = read_table(road.folder / "table.parquet")
    assert sorted(table["participant_id"]) == sorted(sheet["participant_id"])
    assert set(table["split"]) == {"train", "val", "test_internal", "test_external"}
    assert len(read_table(road.folder / "embeddings" / "exp-seed0.parquet")) == 64
    predictions = read_table(road.folder / "predictions.parquet")
    scored = table[table["split"].isin(["test_internal", "test_external"])]
    for model in MODELS:
        assert set(scan_keys(predictions[predictions["model"] == model])) == set(scan_keys(scored))


def test_the_report_shows_the_numbers_of_the_results(road):
    results = read_results(road.folder / "results.csv")
    pd.testing.assert_frame_equal(results, road.results)
    headline = pd.read_csv(road.folder / "tables" / "headline.csv").set_index("model")
    page = (road.folder / "report.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", page)
    for model in MODELS:
        for split in ("internal", "external"):
            rows = results[(results["run"] == model) & (results["split"] == f"test_{split}")]
            row = rows[(rows["task"] == "age") & (rows["metric"] == "mae_years")].iloc[0]
            assert headline.loc[model, f"mae_{split}"] == pytest.approx(row["estimate"])
            assert headline.loc[model, f"n_{split}"] == row["n"]
            assert f"{row['estimate']:.2f}" in text
            assert f"[{row['low']:.2f}, {row['high']:.2f}]" in text


def test_mlflow_has_the_run_with_its_parameters_curves_and_results(road, tracked):
    client, run = tracked
    assert run.info.status == "FINISHED"
    assert run.data.params["loss.name"] == "exp"
    assert run.data.params["split_hash"] == road.data.split_hash
    assert set(run.data.params) == {*flatten(road.experiment), "split_hash"}
    loss = client.get_metric_history(run.info.run_id, "train/loss")
    journal = read_journal(road.folder / "metrics.jsonl").query("name == 'train/loss'")
    assert [(p.step, p.value) for p in loss] == list(zip(journal["step"], journal["value"], strict=True))
    assert len(loss) == 4
    results = road.results[(road.results["run"] == "exp") & (road.results["metric"] == "mae_years")]
    for split in ("test_internal", "test_external"):
        expected = results[(results["split"] == split) & (results["task"] == "age")]["estimate"].iloc[0]
        assert run.data.metrics[f"age/{split}/mae_years"] == pytest.approx(expected)
    assert {"health/effective_rank", "speed/images_per_s", "val/loss"} <= set(run.data.metrics)


def test_mlflow_knows_the_cohort_and_gets_nothing_of_single_persons(road, tracked):
    client, run = tracked
    (dataset,) = run.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("openbhb_vbm", road.data.split_hash)
    sent = artifacts(client, run.info.run_id)
    assert {"report.html", "results.csv", "config.yaml", "environment.json", "tables/headline.csv"} <= sent
    assert {Path(path).suffix for path in sent} <= {".html", ".csv", ".tex", ".pdf", ".yaml", ".json", ".svg", ".png"}
    for path in sent:
        if Path(path).suffix in (".csv", ".tex", ".yaml", ".json", ".html"):
            text = (road.folder / path).read_text(encoding="utf-8")
            named = [who for who in road.data.table["participant_id"] if re.search(rf"\b(sub-)?{who}\b", text)]
            assert not named, f"{path} names {named}"


def test_the_compared_network_is_a_run_of_its_own_below_it(road, tracked):
    client, run = tracked
    folder = run_folder(sibling(road.experiment, "l1", 0))
    other = client.get_run(run_id_of(folder, road.experiment))
    assert other.info.run_id != run.info.run_id
    assert other.data.tags["mlflow.parentRunId"] == run.info.run_id
    assert other.info.status == "FINISHED"


def test_a_stopped_run_is_failed_in_mlflow(road):
    from mlflow import MlflowClient

    overrides = ["encoder.width=0.125", "loss.name=l2", "optim.name=sgd", "optim.lr=1e30"]
    experiment = experiment_on(road.root, "vbm", *overrides)
    with pytest.raises(TrainingStopped, match="not finite"):
        pretrain_stage(experiment, CohortDataModule(experiment.data, seed=0))
    client = MlflowClient(experiment.tracking.uri)
    (experiment_id,) = [e.experiment_id for e in client.search_experiments() if e.name == "brainage"]
    failed = [run for run in client.search_runs([experiment_id]) if run.data.params["optim.name"] == "sgd"]
    assert [run.info.status for run in failed] == ["FAILED"]


def test_a_second_request_finds_everything_done(road, capsys):
    journal = (road.folder / "metrics.jsonl").read_bytes()
    assert pretrain_stage(road.experiment, road.data) == road.folder
    assert "finished before, nothing to train" in capsys.readouterr().out
    assert (road.folder / "metrics.jsonl").read_bytes() == journal


def test_vectors_take_the_same_road(cohort):
    vectors = ["data.modality=vbm_roi", "data.intensity=standardise", "encoder.name=mlp", "encoder.hidden=[16]"]
    views = [f"augment.{name}_p=0" for name in ("flip", "affine", "blur", "cutout")] + ["augment.noise_p=1"]
    evaluation = ["evaluate.losses=[]", "evaluate.baselines=[ridge]", "tracking.enabled=false"]
    experiment = experiment_on(cohort, "roi", *vectors, *views, *evaluation)
    data = CohortDataModule(experiment.data, seed=0)
    folder = pretrain_stage(experiment, data)
    results = evaluate_stage(experiment, data, folder)
    assert {"exp", "ridge"} <= set(results["run"])
    assert (folder / "report.html").is_file()
    assert not (folder / "outbox.jsonl").exists()


def test_an_encoder_of_maps_refuses_region_volumes(road, tmp_path):
    experiment = experiment_on(road.root, "roi", "data.modality=vbm_roi")
    with pytest.raises(ContractError, match="kind: expected 'volume', found 'vector'"):
        embed_stage(experiment, CohortDataModule(experiment.data, seed=0), road.folder, tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
