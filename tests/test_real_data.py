"""Real people: IXI thickness and a handful of IXI volumes go down the same road. Needs BRAINAGE_REAL_DATA."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from brainage.config import load_experiment
from brainage.data.table import read_table, scan_keys
from brainage.downstream.features import read_embeddings
from brainage.downstream.results import read_results
from brainage.errors import ContractError, DataError
from brainage.evaluation_stages import embed_stage, evaluate_stage
from brainage.stages import pretrain_stage
from data_modules.cohort import CohortDataModule
from data_modules.simulated.openbhb import write_openbhb

REAL = os.environ.get("BRAINAGE_REAL_DATA", "")
pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif(not REAL, reason="BRAINAGE_REAL_DATA does not name the folder of real data"),
]


def start(name: str, out: Path, *overrides: str):
    """(experiment, scans) of a shipped experiment on real input, everything written below `out`."""
    here = [
        f"runs={out / 'runs'}", f"data.store={out / 'store'}", "data.prepare_workers=1", "tracking.enabled=false",
        "trainer.progress=false", "trainer.threads=1",
    ]  # fmt: skip
    experiment = load_experiment(name, [*here, *overrides])
    return experiment, CohortDataModule(experiment.data, seed=experiment.seed)


@pytest.fixture(scope="module")
def thickness(tmp_path_factory):
    """(scans, run folder, results) of ixi_thickness_exp with one seed, two losses and few epochs."""
    short = ["trainer.epochs=4", "evaluate.seeds=1", "evaluate.losses=[l1]", "evaluate.bootstrap=100"]
    experiment, data = start(
        "ixi_thickness_exp", tmp_path_factory.mktemp("thickness"), f"data.root={REAL}/ixi_tables", *short
    )
    folder = pretrain_stage(experiment, data)
    return data, folder, evaluate_stage(experiment, data, folder)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Modality -> (experiment, scans, run folder) of ixi_volumes_smoke at 6 mm."""
    runs = {}
    for modality, folder in (("brain", "ixi_1mm"), ("head", "ixi_2mm")):
        out = tmp_path_factory.mktemp(modality)
        overrides = [f"data.root={REAL}/{folder}", f"data.modality={modality}", "data.spacing_mm=6"]
        experiment, data = start("ixi_volumes_smoke", out, *overrides, "encoder.width=0.125")
        runs[modality] = experiment, data, pretrain_stage(experiment, data)
    return runs


def test_the_thickness_cohort_has_its_558_people_and_iop_is_external_alone(thickness):
    table = read_table(thickness[1] / "table.parquet")
    assert len(table) == table["participant_id"].nunique() == 558
    assert table["site"].value_counts().to_dict() == {"Guys": 311, "HH": 180, "IOP": 67}
    assert set(table.loc[table["split"] == "test_external", "site"]) == {"IOP"}
    assert set(table.loc[table["site"] == "IOP", "split"]) == {"test_external"}
    assert set(table.loc[table["split"] == "train", "site"]) == {"Guys", "HH"}
    assert 19 < table["age_years"].min() < 21
    assert 85 < table["age_years"].max() < 87


def test_the_thickness_results_are_plausible(thickness):
    _, folder, results = thickness
    mae = results[(results["metric"] == "mae_years") & (results["task"] == "age")].set_index(["run", "split"])
    mean = mae.loc[("mean_predictor", "test_internal"), "estimate"]
    assert 13 < mean < 16
    assert 7 < mae.loc[("ridge", "test_internal"), "estimate"] < 11  # about 9 is known
    for model in ("exp", "l1", "l1_head", "ridge"):
        assert mae.loc[(model, "test_internal"), "estimate"] < 0.85 * mean
        assert mae.loc[(model, "test_external"), "n"] == 67
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert f"{mae.loc[('exp', 'test_external'), 'estimate']:.2f}" in page
    assert "IXI012" not in page  # nobody by name


def test_real_brains_and_heads_train_two_epochs_and_are_embedded(smoke, tmp_path):
    for modality, people in (("brain", 6), ("head", 10)):
        experiment, data, folder = smoke[modality]
        assert len(data.table) == people
        assert data.table["path"].is_unique
        embed_stage(experiment, data, folder, tmp_path / f"{modality}.parquet")
        embedded = read_embeddings(tmp_path / f"{modality}.parquet")
        assert scan_keys(embedded.keys).tolist() == scan_keys(data.table).tolist()
        for vectors in (embedded.trunk, embedded.head):
            assert np.isfinite(vectors).all()
            assert len(np.unique(vectors.round(6), axis=0)) == people  # nobody looks like somebody else


def test_a_handful_of_people_is_evaluated_with_what_cannot_be_said_left_open(smoke):
    """Six brains: four to fit on, one in each test. No interval, and a reason beside every number that is not there."""
    experiment, data, folder = smoke["brain"]
    assert data.table["split"].value_counts().to_dict() == {"train": 4, "test_internal": 1, "test_external": 1}
    evaluate_stage(experiment, data, folder)
    results = read_results(folder / "results.csv")
    assert results.loc[results["estimate"].isna(), "note"].str.contains("not computed: |not shown: ").all()
    mae = results[(results["metric"] == "mae_years") & (results["task"] == "age") & (results["run"] == "exp")]
    assert mae["n"].tolist() == [1, 1]
    assert mae["low"].isna().all()
    assert (folder / "report.html").is_file()


def test_too_few_people_to_evaluate_are_said(smoke, monkeypatch):
    experiment, data, folder = smoke["head"]
    monkeypatch.setattr(data, "_table", data.table.assign(split=["train"] * 3 + ["test_internal"] * 7))
    with pytest.raises(DataError, match=r"3 people in train and val, 7 scans .*: too few to evaluate"):
        evaluate_stage(experiment, data, folder)


def test_brains_and_heads_are_two_contracts(smoke, tmp_path):
    with pytest.raises(ContractError, match="modality: expected 'head', found 'brain'"):
        embed_stage(*smoke["brain"][:2], smoke["head"][2], tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()


def test_an_encoder_of_grey_matter_maps_refuses_a_real_brain_and_says_what_differs(tmp_path):
    root = write_openbhb(tmp_path / "openbhb", subjects=24, seed=0, spacing_mm=10.0, workers=1)
    short = ["trainer.epochs=1", "encoder.width=0.125", "trainer.accelerator=cpu", "data.batch_size=4"]
    cpu = ["trainer.precision=fp32", "data.workers=0", "data.val_fraction=0"]
    experiment, data = start("openbhb_exp", tmp_path / "maps", f"data.root={root}", *short, *cpu)
    folder = pretrain_stage(experiment, data)
    brains = start("ixi_volumes_smoke", tmp_path / "brains", f"data.root={REAL}/ixi_1mm", "data.spacing_mm=6")
    with pytest.raises(ContractError) as refused:
        embed_stage(*brains, folder, tmp_path / "out.parquet")
    message = str(refused.value)
    for found in ("modality: expected 'cat12vbm_gm', found 'brain'", "space: expected", "spacing_mm: expected"):
        assert found in message
    assert not (tmp_path / "brains" / "store").exists()  # refused before hours of preparation
