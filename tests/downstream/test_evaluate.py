"""From a finished run to results: everybody on the same people, nobody who was trained on, nothing lost in silence."""

from __future__ import annotations

import dataclasses
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from brainage.config import apply_overrides, run_folder, sibling
from brainage.data.splits import seen_people
from brainage.data.table import person_keys, read_table, scan_keys
from brainage.downstream import evaluate as evaluation
from brainage.downstream.embed import embed
from brainage.downstream.evaluate import evaluate
from brainage.downstream.features import read_embeddings
from brainage.downstream.results import parts_of, read_results
from brainage.errors import CheckpointError, DataError, LeakageError, TrainingStopped
from brainage.pretraining.checkpoint import PAYLOAD, checkpoints, load_checkpoint, load_module
from tests.scans import SimulatedScans

SCORED = ["test_external", "test_internal"]


@pytest.fixture(scope="module")
def evaluated(finished, tmp_path_factory):
    """(experiment, scans, folder, results): two seeds of L^exp and L1, every baseline; to be read only."""
    experiment, data, folder = copy_of(finished, tmp_path_factory.mktemp("evaluated"))
    overrides = ["evaluate.seeds=2", "evaluate.losses=[l1]", "evaluate.baselines=[untrained,pca_ridge,ridge]"]
    experiment = apply_overrides(experiment, overrides)
    return experiment, data, folder, evaluate(experiment, data, folder)


@pytest.fixture
def copied(finished, tmp_path):
    """(experiment, scans, folder) of a finished run that a test may damage; nothing is compared with it."""
    experiment, data, folder = copy_of(finished, tmp_path)
    return apply_overrides(experiment, ["evaluate.losses=[]", "evaluate.baselines=[]"]), data, folder


def copy_of(finished, folder):
    experiment, data, run = finished
    shutil.copytree(run.folder, folder / run.folder.name)
    return dataclasses.replace(experiment, runs=str(folder)), data, folder / run.folder.name


def change_checkpoint(path, change) -> None:
    """Apply `change` to a checkpoint and date the file back, as copying a folder may."""
    checkpoint = load_checkpoint(path)
    change(checkpoint)
    torch.save(checkpoint, path)
    os.utime(path, (0, 0))


def value(results, run, split, metric="mae_years", task="age") -> float:
    rows = results[
        (results["run"] == run)
        & (results["split"] == split)
        & (results["metric"] == metric)
        & (results["task"] == task)
    ]
    assert len(rows) == 1, rows
    return float(rows["estimate"].iloc[0])


def test_every_network_and_baseline_is_there_with_its_seeds(evaluated):
    runs = set(evaluated[3]["run"])
    expected = {
        f"{label}{seed}" for label in ("exp", "l1", "l1_head", "untrained") for seed in ("", "-seed0", "-seed1")
    }
    expected |= {"pca_ridge", "ridge", "mean_predictor", "chance"}
    differences = {f"exp - {other}" for other in ("l1", "l1_head", "untrained", "pca_ridge", "ridge")}
    assert {run for run in runs if " - " not in run and " minus " not in run} == expected
    assert len(runs) == len(expected) + len(differences)
    rows = evaluated[3]
    rows = rows[rows["task"].isin(["age", "site", "challenge"])]
    whole = rows[np.array([not parts_of(note) for note in rows["note"]])]
    assert len(whole) > 100
    assert whole["estimate"].notna().all()


def test_tasks_that_this_cohort_has_no_facts_for_say_so(evaluated):
    rows = evaluated[3][evaluated[3]["run"] == "exp-seed0"]
    assert set(rows["task"]) >= {"gap", "diagnosis", "longitudinal", "survival", "fairness"}
    lost = rows[rows["task"].isin(["diagnosis", "longitudinal", "survival"])]
    assert lost["estimate"].isna().all()
    assert lost["note"].str.contains("not computed").all()


def test_what_single_people_got_is_beside_the_results_for_every_network(evaluated):
    _, data, folder, _ = evaluated
    gaps = read_table(folder / "gaps.parquet")
    assert set(gaps["model"]) == {"exp", "l1", "untrained", "pca_ridge", "ridge"}
    assert gaps.loc[gaps["model"] == "exp", "seed"].nunique() == 2
    tested = data.table["split"].isin(SCORED).sum()
    assert (gaps.groupby(["model", "seed"]).size() == tested).all()


def test_results_and_predictions_are_in_the_run_folder(evaluated):
    _, data, folder, results = evaluated
    pd.testing.assert_frame_equal(read_results(folder / "results.csv"), results)
    predictions = read_table(folder / "predictions.parquet")
    assert set(predictions["model"]) == {"exp", "l1", "l1_head", "untrained", "pca_ridge", "ridge"}
    scored = data.table[data.table["split"].isin(SCORED)]
    for _, rows in predictions.groupby(["model", "seed"]):
        assert sorted(scan_keys(rows)) == sorted(scan_keys(scored))


def test_numbers_follow_from_the_predictions(evaluated):
    _, _, folder, results = evaluated
    predictions = read_table(folder / "predictions.parquet")
    predictions["error"] = (predictions["predicted_age_years"] - predictions["age_years"]).abs()
    for (model, split), rows in predictions.groupby(["model", "split"]):
        by_seed = rows.groupby("seed")["error"].mean()
        assert value(results, model, split) == pytest.approx(by_seed.mean())
        for seed, mae in by_seed.items():
            if len(by_seed) > 1:
                assert value(results, f"{model}-seed{seed}", split) == pytest.approx(mae)


def test_nobody_scored_was_seen_by_any_encoder(evaluated):
    experiment, data, folder, _ = evaluated
    predictions = read_table(folder / "predictions.parquet")
    train = data.table[data.table["split"] == "train"]
    assert not set(person_keys(predictions)) & set(person_keys(train))
    for loss in ("exp", "l1"):
        for seed in (0, 1):
            _, payload = load_module(checkpoints(run_folder(sibling(experiment, loss, seed)))[0])
            assert payload.seen
            assert not set(seen_people(predictions, payload.salt)) & set(payload.seen)


def test_a_supervised_networks_own_head_gives_its_own_ages(evaluated):
    experiment, data, folder, _ = evaluated
    module, _ = load_module(checkpoints(run_folder(sibling(experiment, "l1", 1)))[0])
    found = embed(module, data, np.arange(len(data.table)))
    expected = pd.Series(found.head[:, 0].astype(float), index=scan_keys(data.table))
    predictions = read_table(folder / "predictions.parquet")
    own = predictions[(predictions["model"] == "l1_head") & (predictions["seed"] == 1)]
    np.testing.assert_allclose(own["predicted_age_years"], expected.loc[scan_keys(own)], rtol=1e-5)


def test_the_untrained_baseline_is_the_network_before_its_first_step(evaluated):
    experiment, data, folder, _ = evaluated
    for seed in (0, 1):
        module = evaluation.build_module(sibling(experiment, "exp", seed), data)
        expected = embed(module, data, np.arange(len(data.table))).trunk
        found = read_embeddings(folder / "embeddings" / f"untrained-seed{seed}.parquet").trunk
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_second_evaluation_computes_no_embedding_and_trains_nothing(evaluated, monkeypatch):
    experiment, data, folder, results = evaluated

    def never(*_args, **_options):
        raise AssertionError("computed again")

    monkeypatch.setattr(evaluation, "embed", never)
    kept = [*folder.glob("embeddings/*.parquet"), *folder.parent.glob("*/checkpoints/*.ckpt")]
    stamps = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 6 + 8  # two networks and the untrained one, two seeds each; four networks keep two checkpoints
    again = evaluate(experiment, data, folder)
    pd.testing.assert_frame_equal(again, results)
    assert [path.stat().st_mtime_ns for path in kept] == stamps


@pytest.mark.parametrize("resume", ["never", "named"])
def test_however_a_run_was_started_its_evaluation_does_not_train_it_again(copied, resume):
    experiment, data, folder = copied
    chosen = "never" if resume == "never" else str(checkpoints(folder)[1])
    before = checkpoints(folder)[0].read_bytes()
    evaluate(apply_overrides(experiment, [f"checkpoint.resume={chosen}", "evaluate.losses=[l1]"]), data, folder)
    assert checkpoints(folder)[0].read_bytes() == before
    assert not list(folder.parent.glob("*.old*"))


def test_a_changed_checkpoint_is_embedded_anew_even_if_its_file_looks_old(copied):
    experiment, data, folder = copied
    first = evaluate(experiment, data, folder)
    kept = read_embeddings(folder / "embeddings" / "exp-seed0.parquet").trunk

    def change(checkpoint):
        checkpoint["state_dict"]["encoder.layers.0.weight"].mul_(-1)

    change_checkpoint(checkpoints(folder)[0], change)
    second = evaluate(experiment, data, folder)
    assert not np.allclose(read_embeddings(folder / "embeddings" / "exp-seed0.parquet").trunk, kept)
    assert value(first, "exp", "test_external") != value(second, "exp", "test_external")


def test_other_samples_than_the_run_was_trained_on_are_refused(copied, monkeypatch):
    experiment, data, folder = copied
    monkeypatch.setitem(data.store.record, "checksum", "of other bytes")
    with pytest.raises(CheckpointError, match="trained on other samples or ages"):
        evaluate(experiment, data, folder)


def test_a_run_that_was_moved_is_evaluated_where_it_lies(copied):
    experiment, data, folder = copied
    moved = folder.rename(folder.with_name("best"))
    evaluate(experiment, data, moved)
    assert (moved / "results.csv").is_file()
    assert not folder.exists()
    assert yaml.safe_load((moved / "evaluate.yaml").read_text())["bootstrap"] == experiment.evaluate.bootstrap


def test_a_person_who_was_trained_on_is_not_scored(copied):
    experiment, data, folder = copied

    def learn_somebody_of_the_test(checkpoint):
        payload = checkpoint[PAYLOAD]
        tested = data.table[data.table["split"] == "test_external"].iloc[:1]
        payload["seen"] = payload["seen"] + seen_people(tested, payload["salt"])

    change_checkpoint(checkpoints(folder)[0], learn_somebody_of_the_test)
    with pytest.raises(LeakageError, match=r"exp-seed0 .*: 1 of 15 people were trained on"):
        evaluate(experiment, data, folder)
    assert not (folder / "results.csv").exists()
    evaluate(apply_overrides(experiment, ["evaluate.allow_seen=true"]), data, folder)
    assert (folder / "results.csv").exists()


def test_scans_under_another_split_are_refused(copied):
    experiment, _, folder = copied
    other = SimulatedScans(apply_overrides(experiment, ["data.split_seed=1"]))
    with pytest.raises(CheckpointError, match="people or splits changed"):
        evaluate(experiment, other, folder)
    assert not (folder / "results.csv").exists()


def test_a_sibling_that_collapses_is_a_row_with_its_reason(copied, capsys):
    experiment, data, folder = copied
    harsh = ["health.every_steps=1", "health.patience=1", "health.min_effective_rank=100"]  # nobody passes
    results = evaluate(apply_overrides(experiment, [*harsh, "evaluate.losses=[yaware]"]), data, folder)
    lost = results[results["run"] == "yaware"]
    assert lost["split"].tolist() == ["test_internal", "test_external"]
    assert lost["estimate"].isna().all()
    assert lost["note"].str.contains("training stopped: .*collapsed").all()
    assert np.isfinite(value(results, "exp", "test_external"))
    assert set(read_table(folder / "predictions.parquet")["model"]) == {"exp"}
    assert "yaware is not scored" in capsys.readouterr().err


def test_one_lost_seed_leaves_the_others(copied, monkeypatch):
    experiment, data, folder = copied
    train = evaluation.pretrain

    def stops(config, *args, **options):
        if config.seed == 1:
            raise TrainingStopped("collapsed for 25 looks in a row")
        return train(config, *args, **options)

    monkeypatch.setattr(evaluation, "pretrain", stops)
    results = evaluate(apply_overrides(experiment, ["evaluate.seeds=2"]), data, folder)
    assert np.isnan(value(results, "exp-seed1", "test_external"))
    assert np.isfinite(value(results, "exp-seed0", "test_external"))
    pooled = results[(results["run"] == "exp") & (results["task"] == "age") & results["estimate"].notna()]
    assert pooled["note"].str.contains("1 of 2 seeds").all()


def test_a_sibling_trained_on_other_samples_is_a_row_that_says_how_to_train_it_again(copied):
    experiment, data, folder = copied
    both = apply_overrides(experiment, ["evaluate.losses=[yaware]"])
    evaluate(both, data, folder)
    other = run_folder(sibling(dataclasses.replace(experiment, runs=str(folder.parent)), "yaware", experiment.seed))
    marker = other / "finished.json"
    marker.write_text(marker.read_text().replace('"data_digest": "', '"data_digest": "0'))
    results = evaluate(both, data, folder)
    assert np.isfinite(value(results, "exp", "test_external"))
    notes = results[results["run"] == "yaware"]["note"]
    assert notes.str.contains("trained on other samples").all()
    assert notes.str.contains("checkpoint.resume=never").all()


def test_what_was_scored_before_an_evaluation_ended_is_kept(copied, monkeypatch):
    experiment, data, folder = copied
    train = evaluation.pretrain

    def killed(config, *args, **options):
        if config.loss.name == "yaware":
            raise KeyboardInterrupt
        return train(config, *args, **options)

    monkeypatch.setattr(evaluation, "pretrain", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(apply_overrides(experiment, ["evaluate.losses=[yaware]", "evaluate.baselines=[ridge]"]), data, folder)
    assert {"exp", "ridge"} <= set(read_results(folder / "results.csv")["run"])


def test_a_network_whose_features_are_constant_is_a_row_with_its_reason(copied):
    experiment, data, folder = copied

    def collapse(checkpoint):
        for name, weights in checkpoint["state_dict"].items():
            if name.startswith("encoder.") and weights.is_floating_point():
                weights.zero_()

    change_checkpoint(checkpoints(folder)[0], collapse)
    baselines = apply_overrides(experiment, ["evaluate.baselines=[ridge]"])
    results = evaluate(baselines, data, folder)
    lost = results[results["run"] == "exp"]
    assert lost["note"].str.contains("the encoder has collapsed").all()
    assert np.isfinite(value(results, "ridge", "test_external"))
    age = results[results["task"] == "age"]
    assert not age["metric"].str.contains("difference").any()  # there is nothing to take a difference from
    with pytest.raises(DataError, match="the encoder has collapsed"):  # and nothing else to show
        evaluate(experiment, data, folder)


def test_too_few_people_are_said_before_anything_is_computed(copied, monkeypatch):
    experiment, data, folder = copied
    few = data.table.assign(split=["train"] * 3 + ["test_internal"] * (len(data.table) - 3))
    monkeypatch.setattr(data, "_table", few)
    monkeypatch.setattr(evaluation, "pretrain", None)  # calling it would fail
    with pytest.raises(DataError, match=r"3 people in train and val, 37 scans .*: too few to evaluate"):
        evaluate(experiment, data, folder)
    monkeypatch.setattr(data, "_table", data.table.assign(split="train"))
    with pytest.raises(DataError, match=r"40 people in train and val, 0 scans .*: too few to evaluate"):
        evaluate(experiment, data, folder)


def test_probes_may_read_the_head_instead_of_the_trunk(copied):
    experiment, data, folder = copied
    trunk = value(evaluate(experiment, data, folder), "exp", "test_external")
    head = evaluate(apply_overrides(experiment, ["evaluate.features=head"]), data, folder)
    assert value(head, "exp", "test_external") != trunk
