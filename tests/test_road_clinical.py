"""The second half of the road: an encoder trained on one cohort judged on another one, with a disease in it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from brainage.config import load_experiment, read_experiment
from brainage.data.table import read_table
from brainage.downstream.results import parts_of, read_results
from brainage.errors import ConfigError, LeakageError
from brainage.evaluation_stages import (
    evaluate_on_stage,
    evaluate_stage,
    evaluation_experiment,
    run_experiment,
    runs_in,
    summarise_runs,
)
from brainage.stages import pretrain_stage
from brainage.tracking import read_journal
from data_modules.cohort import CohortDataModule
from data_modules.simulated.adni import write_adni
from data_modules.simulated.openbhb import write_openbhb

SPACING_MM = 12.0
OVERRIDES = ["data.prepare_workers=1", "evaluate.bootstrap=100", "evaluate.site_permutations=20"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """(folder, simulated OpenBHB, simulated ADNI)"""
    folder = tmp_path_factory.mktemp("clinical")
    write_openbhb(folder / "openbhb", subjects=60, seed=5, spacing_mm=SPACING_MM, workers=1)
    write_adni(folder / "adni", subjects=60, seed=5, spacing_mm=SPACING_MM, workers=1, form="bids", modalities=("vbm",))
    return folder, folder / "openbhb", folder / "adni"


@pytest.fixture(scope="module")
def trained(places):
    """The run folder of a tiny network, evaluated on its own cohort."""
    folder, openbhb, _ = places
    words = [
        f"data.root={openbhb}", f"data.store={folder / 'store'}", f"runs={folder / 'runs'}", "trainer.progress=false",
        f"tracking.uri=sqlite:///{folder / 'mlflow.db'}", "data.batch_size=16", "trainer.threads=1",
        "encoder.width=0.125", "trainer.epochs=1", "evaluate.losses=[]", "evaluate.baselines=[]",
        "evaluate.after_training=false", "evaluate.tasks=[age]", *OVERRIDES,
    ]  # fmt: skip
    experiment = load_experiment("demo", words)
    data = CohortDataModule(experiment.data, seed=experiment.seed)
    run = pretrain_stage(experiment, data)
    evaluate_stage(experiment, data, run)
    return run


def words(places, *more: str) -> list[str]:
    folder, _, adni = places
    return [f"data.root={adni}", f"data.store={folder / 'store_adni'}", *OVERRIDES, *more]


@pytest.fixture(scope="module")
def judged(places, trained):
    """(run folder, results) of the evaluation `adni`, by the shipped file with fewer ways."""
    few = ["evaluate.predictors=[age_sex,gap,probe,finetuned]", "evaluate.pairs=[CN-AD]", "evaluate.label_shares=[1]"]
    few += ["finetune.epochs=1", "evaluate.harmonise=[combat]", "evaluate.diagnosis_by_site=false"]
    experiment, name = evaluation_experiment(trained, "adni", words(places, *few, "evaluate.baselines=[pca_ridge]"))
    data = CohortDataModule(experiment.data, seed=experiment.seed)
    return trained, evaluate_on_stage(experiment, data, trained, name)


def rows_of(results: pd.DataFrame, task: str, **parts: str) -> pd.DataFrame:
    rows = results[(results["run"] == "exp") & (results["task"] == task)]
    return rows[np.array([parts.items() <= parts_of(note).items() for note in rows["note"]], dtype=bool)]


def test_every_task_has_numbers_on_the_other_cohort(judged):
    _, results = judged
    for task in ("age", "gap", "gap_contrast", "diagnosis", "diagnosis_paired", "longitudinal", "site", "fairness"):
        assert rows_of(results, task)["estimate"].notna().any(), task
    assert set(results["cohort"]) == {"adni"}
    assert set(results["run"].str.split(" ").str[0]) >= {"exp", "pca_ridge"}
    for predictor in ("age_sex", "gap", "probe", "finetuned"):
        auc = rows_of(results, "diagnosis", pair="CN-AD", predictor=predictor)
        assert auc.loc[auc["metric"] == "auc", "estimate"].between(0, 1).all(), predictor


def test_ages_are_scored_on_healthy_people_and_gaps_are_there_for_everybody(judged):
    run, results = judged
    folder = run / "evaluations" / "adni"
    table, gaps = read_table(folder / "table.parquet"), read_table(folder / "gaps.parquet")
    ours = gaps[gaps["model"] == "exp"]
    assert len(ours) == len(table)
    ill = table.loc[table["diagnosis"].isin(["MCI", "AD"]), "participant_id"].unique()
    predictions = read_table(folder / "predictions.parquet")
    assert not set(predictions["participant_id"]) & set(ill)
    mae = rows_of(results, "age")
    mae = mae[(mae["metric"] == "mae_years") & np.array([not parts_of(note) for note in mae["note"]])]
    expected = predictions[predictions["model"] == "exp"]
    error = (expected["predicted_age_years"] - expected["age_years"]).abs().mean()
    assert mae["estimate"].iloc[0] == pytest.approx(error)
    assert (ours.loc[ours["participant_id"].isin(ill), "corrected_by"] == -1).all()
    assert (ours.loc[ours["healthy"], "corrected_by"] >= 0).all()


def test_the_evaluation_folds_under_the_run_in_mlflow_and_the_run_shows_it_at_a_glance(judged, places):
    import mlflow

    mlflow.set_tracking_uri(f"sqlite:///{places[0] / 'mlflow.db'}")
    found = mlflow.search_runs(search_all_experiments=True)
    child = found[found["tags.stage"] == "evaluate"]
    parent = found[found["tags.stage"] == "pretrain"]
    assert child["tags.mlflow.parentRunId"].tolist() == parent["run_id"].tolist()
    assert parent["metrics.auc CN-AD on adni"].notna().all()
    assert parent["metrics.mae internal"].notna().all()


def test_nothing_about_single_persons_is_sent(judged):
    run, _ = judged
    sent = (run / "evaluations" / "adni" / "outbox.jsonl").read_text()
    assert "results.csv" in sent
    assert ".parquet" not in sent
    assert len(read_journal(run / "evaluations" / "adni" / "metrics.jsonl"))


def test_the_report_of_the_run_shows_the_other_cohort(judged):
    run, _ = judged
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "adni" in text
    assert "Hedges" in text


def test_ages_fitted_on_the_runs_own_people_are_another_readout(judged, places):
    run, first = judged
    only = ["evaluate.tasks=[age]", "evaluate.baselines=[pca_ridge]", "evaluate.age_fitted_on=run"]
    experiment, _ = evaluation_experiment(run, "adni", words(places, *only))
    data = CohortDataModule(experiment.data, seed=experiment.seed)
    second = evaluate_on_stage(experiment, data, run, "by_run")
    note = rows_of(second, "age")["note"].iloc[0]
    assert "healthy people of openbhb" in note
    assert "healthy people of adni, cross-fitted" in rows_of(first, "age")["note"].iloc[0]
    guess = second[(second["run"] == "mean_predictor") & (second["metric"] == "mae_years")]
    assert len(guess) == 1  # that of the run's people; the baseline's ages are of a model of this cohort
    assert second.loc[second["run"] == "pca_ridge", "estimate"].notna().any()


def test_an_evaluation_leaves_nothing_of_the_one_before_it(judged, places):
    run, _ = judged
    folder = run / "evaluations" / "again"
    words_of = ["evaluate.baselines=[]", "evaluate.predictors=[age_sex]", "evaluate.pairs=[CN-AD]"]
    for tasks, wanted in (("[diagnosis]", {"diagnosis", "gaps"}), ("[gap]", {"gaps"})):
        experiment, _ = evaluation_experiment(run, "adni", words(places, f"evaluate.tasks={tasks}", *words_of))
        evaluate_on_stage(experiment, CohortDataModule(experiment.data, seed=experiment.seed), run, "again")
        assert {path.stem for path in folder.glob("*.parquet")} == {"table", *wanted}


def test_people_whom_the_encoder_was_trained_on_are_refused(judged, places, tmp_path):
    run, _ = judged
    file = tmp_path / "again.yaml"
    file.write_text("data: {cohort: openbhb}\n")
    folder, openbhb, _ = places
    experiment, name = evaluation_experiment(run, str(file), [f"data.root={openbhb}", f"data.store={folder / 'store'}"])
    data = CohortDataModule(experiment.data, seed=experiment.seed)
    with pytest.raises(LeakageError, match="were trained on"):
        evaluate_on_stage(experiment, data, run, name)


def test_an_evaluation_cannot_change_the_training(trained, tmp_path, places):
    with pytest.raises(ConfigError, match="loss"):
        evaluation_experiment(trained, "adni", ["loss.sigma_years=9"])
    file = tmp_path / "x.yaml"
    file.write_text("loss: {name: l1}\n")
    with pytest.raises(ConfigError, match="an evaluation has description, data, evaluate, finetune"):
        evaluation_experiment(trained, str(file), [])
    with pytest.raises(ConfigError, match=r"evaluation 'adn': not shipped; did you mean 'adni'\?"):
        evaluation_experiment(trained, "adn", [])
    assert run_experiment(trained, []).data.cohort == "openbhb"


def test_a_folder_of_runs_is_one_table(judged):
    run, results = judged
    assert runs_in(run) == [run]
    assert runs_in(run.parent) == [run]
    table = summarise_runs(run.parent, [run])
    found = rows_of(results, "diagnosis", pair="CN-AD", predictor="probe")
    auc = found.loc[found["metric"] == "auc", "estimate"].iloc[0]
    assert table["auc CN-AD on adni"].iloc[0] == pytest.approx(auc)
    assert (run.parent / "runs.csv").is_file()
    own = read_results(run / "results.csv")
    expected = own[(own["run"] == read_experiment(run / "config.yaml").loss.name) & (own["metric"] == "mae_years")]
    expected = expected[(expected["task"] == "age") & (expected["split"] == "test_internal")]["estimate"].iloc[0]
    assert table["mae internal"].iloc[0] == pytest.approx(expected)
